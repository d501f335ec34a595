"""Checks of `cpt.loss_chunks`, the number of parts in which a micro batch's loss is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.config.sections import find_section

# Dotted keys whose values require the logits or losses from MindFormers' own loss function.
UNSUPPORTED = (
    "model.model_config.mtp_num_layers",
    "model.model_config.num_nextn_predict_layers",
    "monitor_config.device_local_loss_format",
    "monitor_config.local_loss_format",
)


def find_chunk_problems(config: RunConfig, layout: ParallelLayout) -> list[str]:
    """Return a problem for every part of the configuration that does not work with a chunked loss."""
    chunks, length = config.cpt.loss_chunks, config.cpt.seq_length
    if chunks == 1:
        return []
    where = f"{config.locate('cpt', 'loss_chunks')}: cpt.loss_chunks {chunks}"
    problems = []
    if length % (chunks * layout.context_parallel):
        parts = f"{length} tokens" + (f" / context parallel {layout.context_parallel}" * (layout.context_parallel > 1))
        problems.append(f"{where} does not divide the part of a row on a device ({parts}); choose a power of 2")
    problems += [
        f"{where} does not work with {dotted}; remove one of them"
        for dotted in find_keys_without_chunks(config.mindformers)
    ]
    return problems


def find_keys_without_chunks(sections: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in MindFormers' sections that do not work with a chunked loss."""
    found = []
    for dotted in UNSUPPORTED:
        parent, _, key = dotted.rpartition(".")
        section: Any = find_section(sections, parent)
        if isinstance(section, Mapping) and section.get(key):
            found.append(dotted)
    return found
