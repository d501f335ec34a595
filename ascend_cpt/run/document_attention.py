"""`cpt.document_attention`: how document boundaries reach the network, and what `within` requires."""

from __future__ import annotations

from collections.abc import Sequence

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import ParallelLayout, uses_cpu
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.network_inputs import ACROSS, DOCUMENT_ATTENTION

# The size of MindFormers' compressed mask, which does not work with shorter rows.
MIN_SEQ_LENGTH_ON_ASCEND = 2048
SPLIT_ROWS = "colossalai_cp"


def choose_boundaries(config: RunConfig) -> str:
    """Return the run's `RowFormat.boundaries`."""
    if config.cpt.document_attention == ACROSS:
        return "none"
    return "mask" if uses_cpu(config) else "ends"


def find_boundary_problems(
    config: RunConfig, layout: ParallelLayout, datasets: Sequence[tuple[str, Manifest]]
) -> list[str]:
    """Return a problem for everything that prevents `document_attention: within`.

    Args:
        datasets: The name and manifest of every dataset in the run.
    """
    requested = config.cpt.document_attention
    where = f"{config.locate('cpt', 'document_attention')}: cpt.document_attention"
    if requested not in DOCUMENT_ATTENTION:
        return [f"{where}: {requested!r} is unknown; choose {' or '.join(DOCUMENT_ATTENTION)}"]
    if requested == ACROSS:
        return []
    problems: list[str] = []
    for name, manifest in datasets:
        if manifest.settings.get("append_eod") is False:
            problems.append(
                f"{where}: {name} was packed without end-of-document tokens, so its document boundaries are unknown; "
                "pack it again without --no-append-eod"
            )
    by_token = {manifest.tokenizer.eod_id: name for name, manifest in datasets}
    if len(by_token) > 1:
        ends = ", ".join(f"{name} ({token})" for token, name in by_token.items())
        problems.append(
            f"{where}: the datasets end documents with different tokens: {ends}; pack them again with the same one"
        )
    if not uses_cpu(config):
        problems += _find_ascend_problems(config, layout, where)
    return problems


def _find_ascend_problems(config: RunConfig, layout: ParallelLayout, where: str) -> list[str]:
    problems: list[str] = []
    if config.cpt.seq_length < MIN_SEQ_LENGTH_ON_ASCEND:
        problems.append(
            f"{where}: needs cpt.seq_length of at least {MIN_SEQ_LENGTH_ON_ASCEND} on Ascend, got "
            f"{config.cpt.seq_length}"
        )
    model = config.mindformers["model"]["model_config"]
    parallel = config.mindformers.get("parallel_config") or {}
    if model.get("use_flash_attention") is False:
        problems.append(f"{where}: needs flash attention; remove model.model_config.use_flash_attention")
    if model.get("use_ring_attention"):
        problems.append(f"{where}: not supported by ring attention; remove model.model_config.use_ring_attention")
    algorithm = parallel.get("context_parallel_algo", SPLIT_ROWS)
    if layout.context_parallel > 1 and algorithm != SPLIT_ROWS:
        problems.append(f"{where}: not tested with parallel_config.context_parallel_algo {algorithm}; use {SPLIT_ROWS}")
    return problems
