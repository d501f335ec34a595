"""`cpt.loss_chunks`: what is refused, and what it costs in the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.run.checks.loss_chunks import find_chunk_problems

ONE = ParallelLayout(world_size=1, data_parallel=1)
CONTEXT = ParallelLayout(world_size=4, data_parallel=1, context_parallel=4)


def find_problems(tmp_path: Path, chunks: int, layout: ParallelLayout = ONE, sections: str = "") -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text(f"cpt: {{seq_length: 64, global_batch_size: 2, loss_chunks: {chunks}}}\n{sections}\n")
    return find_chunk_problems(load_config(path), layout)


@pytest.mark.parametrize(
    ("chunks", "layout", "refused"), [(8, ONE, 0), (6, ONE, 1), (16, CONTEXT, 0), (32, CONTEXT, 1)]
)
def test_chunks_divide_the_rows_of_a_device(tmp_path: Path, chunks: int, layout: ParallelLayout, refused: int) -> None:
    problems = find_problems(tmp_path, chunks, layout)
    assert len(problems) == refused
    assert all(f"run.yaml:1: cpt.loss_chunks {chunks} does not divide" in problem for problem in problems)


@pytest.mark.parametrize("key", ["local_loss_format", "device_local_loss_format"])
def test_local_losses_need_the_loss_of_mindformers(tmp_path: Path, key: str) -> None:
    sections = f"monitor_config: {{{key}: log}}"
    (problem,) = find_problems(tmp_path, 4, sections=sections)
    assert f"cpt.loss_chunks 4 does not work with monitor_config.{key}; remove one of them" in problem
    assert not find_problems(tmp_path, 1, sections=sections)


def test_predicting_several_tokens_is_refused(tmp_path: Path) -> None:
    sections = "model: {model_config: {mtp_num_layers: 1}}"
    (problem,) = find_problems(tmp_path, 4, sections=sections)
    assert "model.model_config.mtp_num_layers" in problem
