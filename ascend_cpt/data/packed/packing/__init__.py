"""Packs documents' token ids into rows of equal length: one after another, one document per row, or by best fit."""

from __future__ import annotations

from collections.abc import Callable

from ascend_cpt.data.packed.packing.best_fit import BestFitPacker
from ascend_cpt.data.packed.packing.concat import ConcatPacker
from ascend_cpt.data.packed.packing.documents import DocumentPacker
from ascend_cpt.data.packed.packing.layout import Packer, RowLayout, Rows, add_special_tokens, strip_padding

CONCAT, DOCUMENT, BEST_FIT = "concat", "document", "best-fit"
PACKINGS = (CONCAT, DOCUMENT, BEST_FIT)

__all__ = [
    "BEST_FIT",
    "CONCAT",
    "DOCUMENT",
    "PACKINGS",
    "Packer",
    "RowLayout",
    "Rows",
    "add_special_tokens",
    "make_packer",
    "strip_padding",
]


def make_packer(packing: str, layout: RowLayout) -> Packer:
    """Return the packer with this name."""
    packers: dict[str, Callable[[RowLayout], Packer]] = {
        CONCAT: ConcatPacker,
        DOCUMENT: DocumentPacker,
        BEST_FIT: BestFitPacker,
    }
    return packers[packing](layout)
