"""Measure how long training waits for a checkpoint: `python benchmarks/saving.py`.

One process trains a multilayer perceptron with Adam on the CPU. In every round it saves once in the foreground (a full
write: copies, files, checksums, flushing, state, removal of the old checkpoint) and once in the background, where
training continues. Both write to the same disk, so load on the machine affects both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mindspore as ms
from mindspore import nn

from ascend_cpt.backend.checkpointing.writer import CheckpointWriter
from ascend_cpt.checkpoint.state import RunState
from ascend_cpt.recipe.budget import Budget

BATCH_SIZE = 16
NUM_CALM_STEPS = 5
MAX_STEPS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Round:
    """What was measured in one round, in seconds."""

    full_s: float
    """A save in the foreground."""
    stall_s: float
    """Time that training waited for a save in the background, until it was complete."""
    complete_s: float
    """Time until the background save was complete."""
    calm_step_s: float
    """Median step time while nothing is written."""
    writing_step_s: float
    """Median step time until the background save was complete."""


def make_training(hidden: int, layers: int) -> tuple[nn.Cell, Callable[[], None]]:
    """Return a network with its optimizer, and a function that trains one step."""
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    network = nn.SequentialCell([nn.Dense(hidden, hidden) for _ in range(layers)])
    wrapper = nn.TrainOneStepCell(
        nn.WithLossCell(network, nn.MSELoss()), nn.Adam(network.trainable_params(), learning_rate=1e-5)
    )
    wrapper.set_train()
    rows = ms.Tensor(np.random.default_rng(0).standard_normal((BATCH_SIZE, hidden)).astype(np.float32))

    def train() -> None:
        wrapper(rows, rows).asnumpy()

    return wrapper, train


def make_writer(root: Path, background: bool) -> CheckpointWriter:
    """Return a writer that keeps one checkpoint."""
    return CheckpointWriter(
        root,
        initial_state=RunState(step=0, total_steps=MAX_STEPS, tokens=0, position=0, fingerprint={"seq_length": 1}),
        budget=Budget(
            seq_length=1, global_batch_size=1, micro_batch_size=1, num_accumulation_steps=1, total_steps=MAX_STEPS
        ),
        keep_last=1,
        keep_every_steps=None,
        shared=True,
        completes=True,
        rank=0,
        num_ranks=1,
        background=background,
    )


def measure(work: Callable[[], Any]) -> float:
    """Return how long a call takes, in seconds."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def run_round(number: int, wrapper: nn.Cell, train: Callable[[], None], writers: tuple[Any, Any]) -> Round:
    """Save with both writers."""
    outputs = (ms.Tensor(1.0), ms.Tensor(False), ms.Tensor(1.0))
    parameters = SimpleNamespace(network=wrapper, cur_epoch_num=1, net_outputs=outputs)
    foreground, background = writers
    full_s = measure(lambda: foreground.save(number, parameters))
    calm = [measure(train) for _ in range(NUM_CALM_STEPS)]
    start_s = time.perf_counter()
    folder: list[Path] = []
    stall_s = measure(lambda: folder.append(background.save(number, parameters, wait=False)))
    writing: list[float] = []
    while not (folder[0] / "cpt_state.json").is_file():
        writing.append(measure(train))
        stall_s += measure(background.advance)
    complete_s = time.perf_counter() - start_s
    background.finish()
    return Round(
        full_s=full_s,
        stall_s=stall_s,
        complete_s=complete_s,
        calm_step_s=statistics.median(calm),
        writing_step_s=statistics.median(writing),
    )


def main() -> int:
    """Save in rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="where to write; by default, the folder for temporary files")
    args = parser.parse_args()
    wrapper, train = make_training(args.hidden, args.layers)
    train()
    size_mb = sum(parameter.nbytes for parameter in wrapper.get_parameters()) / 1e6
    print(f"{size_mb:.0f} MB per checkpoint")
    print("round  full write   stall  stall / full  complete after  step  step while writing")
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        writers = make_writer(Path(folder) / "foreground", False), make_writer(Path(folder) / "background", True)
        writers[1].prepare(wrapper)
        for number in range(1, args.rounds + 1):
            one = run_round(number, wrapper, train, writers)
            rounds.append(one)
            print(
                f"{number:>5}  {one.full_s:>8.2f} s  {one.stall_s:>5.2f} s  {100 * one.stall_s / one.full_s:>10.1f} %  "
                f"{one.complete_s:>12.2f} s  {one.calm_step_s:.3f} s  {one.writing_step_s:.3f} s",
                flush=True,
            )
    shares = [100 * one.stall_s / one.full_s for one in rounds]
    slowdowns = [one.writing_step_s / one.calm_step_s for one in rounds]
    print(f"median: stall {statistics.median(shares):.1f} % of a full write; ", end="")
    print(f"steps take {statistics.median(slowdowns):.2f} times as long while files are written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
