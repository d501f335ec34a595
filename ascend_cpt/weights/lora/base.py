"""The weights that adapters are added to, and their identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from ascend_cpt.weights.hf_folder import HfFolder

FOLDER, IDENTITY = "folder", "identity"
_SAMPLE_ELEMENTS = 4096


@dataclass(frozen=True, kw_only=True)
class BaseWeights:
    """A Hugging Face folder or a checkpoint folder, and a string that identifies its weights."""

    folder: Path
    identity: str

    def to_record(self) -> dict[str, str]:
        """Return the entry for a checkpoint's state."""
        return {FOLDER: str(self.folder.absolute()), IDENTITY: self.identity}


def identify_model(folder: HfFolder) -> str:
    """Return a hash of the weights of a Hugging Face folder, which does not depend on how they are divided into files.

    It covers every tensor's name, dtype, shape, and its first and last 4096 elements. Training changes these in every
    tensor that it changes, and reading the whole model at every start would take minutes.
    """
    digest = xxhash.xxh3_128()
    for name, info in sorted(folder.tensors.items()):
        digest.update(f"{name} {info.dtype} {info.shape}\n".encode())
        count = min(_SAMPLE_ELEMENTS, info.num_elements)
        digest.update(folder.read_part(name, 0, count).tobytes())
        digest.update(folder.read_part(name, info.num_elements - count, info.num_elements).tobytes())
    return f"model {digest.hexdigest()}"


def identify_checkpoint(fingerprint_hash: str, step: int, checksums: Mapping[str, str]) -> str:
    """Return a string that identifies the weights of a checkpoint, from its state."""
    digest = xxhash.xxh3_128(repr(sorted(checksums.items())).encode()).hexdigest() if checksums else "no checksums"
    return f"step {step} of {fingerprint_hash}, {digest}"
