"""Random layouts of up to eight emulated NPUs: what the checks accept must train as the CPU does.

ASCEND_CPT_LAYOUT_SEED: seed of the draws (0); ASCEND_CPT_NUM_LAYOUTS: how many accepted ones are trained (20).
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.emulation import needs_emulation
from tests.integration.conftest import run_command
from tests.integration.softnpu.layouts import LLAMA, QWEN2, Layout, Reference
from tests.integration.softnpu.trial import CpuRun, compare_runs, describe_layout, train_whole

SEED = int(os.environ.get("ASCEND_CPT_LAYOUT_SEED", "0"))
NUM_LAYOUTS = int(os.environ.get("ASCEND_CPT_NUM_LAYOUTS", "20"))
MAX_WORKERS = 8


def draw_layout(generator: random.Random) -> Layout:
    """Return a layout that may be illegal."""
    while True:
        sizes = {name: generator.choice((1, 1, 2, 4)) for name in ("data", "tensor", "pipeline")}
        sizes["context"] = generator.choice((1, 1, 1, 2))
        layout = Layout(**sizes)
        if 2 <= layout.workers <= MAX_WORKERS and sizes["pipeline"] <= 2:
            break
    pipeline, data = sizes["pipeline"], sizes["data"]
    accumulation = generator.choice([number for number in (1, 2, 4, 8) if pipeline <= number <= 8 // data])
    recompute = generator.choice([False, True, [generator.choice((0, 1)) for _ in range(pipeline)]])
    return Layout(
        **sizes,
        accumulation=accumulation,
        parallel_config={
            "use_seq_parallel": sizes["tensor"] > 1 and generator.random() < 0.7,
            "vocab_emb_dp": generator.random() < 0.3,
            "context_parallel_algo": "colossalai_cp",
        },
        optimizer=generator.choice(
            [{}, {"off": True}, {"parallel_optimizer_threshold": 64}, {"optimizer_weight_shard_size": 2}]
        ),
        sections={
            "recompute_config": {"recompute": recompute, "select_recompute": not recompute and generator.random() < 0.5}
        },
        reference=generator.choice((Reference(), LLAMA, QWEN2)),
    )


@pytest.mark.slow
@pytest.mark.timeout(10_000)
@needs_emulation
def test_accepted_layouts_train_as_the_cpu_does(
    get_reference: Callable[[Reference], CpuRun], get_dataset: Callable[[int], Path], tmp_path: Path
) -> None:
    generator, num_trained, num_refused = random.Random(SEED), 0, 0
    while num_trained < NUM_LAYOUTS:
        layout = draw_layout(generator)
        cpu, dataset = get_reference(layout.reference), get_dataset(layout.reference.seq_length)
        folder = tmp_path / f"layout_{num_trained + num_refused}"
        config = describe_layout(layout, dataset, folder / "dry", cpu.start)
        dry = run_command(
            [sys.executable, "run_cpt.py", "--config", str(config), "--dry-run", "--world-size", str(layout.workers)]
        )
        if dry.returncode:
            assert dry.returncode == 2, dry.stderr
            print(f"refused: {dry.stderr.strip().splitlines()[-1]}")
            num_refused += 1
            continue
        outcome = compare_runs(layout, cpu, train_whole(layout, cpu, dataset, folder / "whole"))
        print(f"{num_trained}: {layout}\n   {outcome}", flush=True)
        assert outcome.loss_difference <= layout.max_loss_difference, layout
        assert not outcome.validation_difference > layout.max_loss_difference, layout
        assert outcome.share_after_step_1 <= layout.max_share_of_other_updates, layout
        num_trained += 1
    print(f"{num_trained} layouts trained, {num_refused} refused")
