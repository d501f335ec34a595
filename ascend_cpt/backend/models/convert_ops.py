"""MindFormers' own loading of Hugging Face weights, told by the same tables that `ascend_cpt.weights` converts with."""

from __future__ import annotations

from mindformers.checkpoint.converter.convert_op import ConcatConvertOp, ConvertOp, QKVConvertOp, RenameConvertOp

from ascend_cpt.weights.families import FAMILIES
from ascend_cpt.weights.layout import GroupedQkv, InterleavedRows, Same

_OPS = {Same: RenameConvertOp, GroupedQkv: QKVConvertOp, InterleavedRows: ConcatConvertOp}


def make_convert_ops(family: str) -> list[ConvertOp]:
    """Return MindFormers' weight converters for a family's table. MindFormers' "concat" interleaves rows."""
    return [
        _OPS[type(row.layout)](hf_names=[name for name, _ in row.hf], mf_names=[row.mindformers])
        for row in FAMILIES[family]
    ]
