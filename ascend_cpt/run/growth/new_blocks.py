"""Adds new blocks to a Hugging Face model, of which only the new blocks are then trained (LLaMA-Pro)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt import __version__
from ascend_cpt.weights.convert import Options, Summary, write_hf
from ascend_cpt.weights.growth.blocks import ExpandedBlocks, expand_config, plan_blocks
from ascend_cpt.weights.hf_folder import HfFolder, list_companions

RECORD_NAME = "new_blocks.json"


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """The result: the new model, and its new blocks, numbered from 0."""

    summary: Summary
    num_layers: int
    new_layers: tuple[int, ...]


def add_new_blocks(base: Path, target: Path, *, every: int, options: Options) -> Expansion:
    """Write the folder of the model with a new block after every `every` blocks.

    Raises:
        CheckpointError: the model is damaged, `every` does not divide its blocks, or the target exists or cannot be
            written.
    """
    folder = HfFolder(base)
    folder.check()
    blocks = plan_blocks(folder.sizes.num_layers, every)
    config = expand_config(folder.config, blocks)
    new_layers = tuple(layer for layer, block in enumerate(blocks) if block.is_new)
    record = {
        "base": str(base),
        "ascend_cpt": __version__,
        "every": every,
        "num_layers": len(blocks),
        "new_layers": list(new_layers),
        "copied_from": [blocks[layer].source for layer in new_layers],
    }
    texts = {RECORD_NAME: json.dumps(record, indent=1) + "\n"}
    source = ExpandedBlocks(folder, config, blocks)
    summary = write_hf(source, config, target, options, list_companions(base), texts=texts)
    return Expansion(summary=summary, num_layers=len(blocks), new_layers=new_layers)
