"""Measure the overhead of monitoring over MindFormers' own callbacks: `python benchmarks/monitoring.py`.

One process trains a tiny Qwen3 on the CPU. MindFormers' MFLossMonitor runs at every step; our callbacks (records to
console, metrics.jsonl and TensorBoard, guards, data usage) run in one of two blocks of steps per round, alternately the
first and the second. Both blocks use the same graph, kernels and data, so load on the machine affects both. Validation
and checkpoints are not included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ascend_cpt.backend.training import trainer
from ascend_cpt.config.loader import load_config
from ascend_cpt.data.packed.manifest import Manifest, Shard, load_manifest, manifest_path, write_manifest
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import run_command
from ascend_cpt.monitor.console import captured_output
from ascend_cpt.run.mindformers_yaml import make_mindformers_config, render_yaml
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun

SEQ_LENGTH, VOCAB_SIZE, NUM_ROWS, BATCH_SIZE = 256, 4096, 400, 4
WARM_STEPS = 20


def make_dataset(folder: Path) -> Manifest:
    """Write random rows as a packed dataset."""
    from mindspore.mindrecord import FileWriter

    path = folder / "rows_text_document.mindrecord0"
    rows = np.random.default_rng(0).integers(1, VOCAB_SIZE - 1, (NUM_ROWS, SEQ_LENGTH + 1), dtype=np.int32)
    writer = FileWriter(str(path), 1)
    writer.add_schema({"input_ids": {"type": "int32", "shape": [-1]}})
    writer.write_raw_data([{"input_ids": row} for row in rows])
    writer.commit()
    index = path.with_name(f"{path.name}.db")
    shard = Shard(
        file=path.name,
        size_bytes=path.stat().st_size,
        sha256="",
        index_file=index.name,
        index_size_bytes=index.stat().st_size,
        index_sha256="",
        num_rows=NUM_ROWS,
        num_tokens=rows.size,
        num_documents=NUM_ROWS,
        text_bytes=4 * rows.size,
    )
    tokenizer = TokenizerInfo(
        type="PretrainedFromHF", name="none", fingerprint="", vocab_size=VOCAB_SIZE, eod_id=0, pad_id=VOCAB_SIZE - 1
    )
    manifest = Manifest(
        key="text", output_format="mindrecord", seq_length=SEQ_LENGTH, tokenizer=tokenizer, shards=(shard,)
    )
    prefix = folder / "rows_text_document"
    write_manifest(manifest, manifest_path(prefix))
    return load_manifest(str(prefix))


def make_run(folder: Path, total_steps: int, guards: bool) -> ResolvedRun:
    """Resolve a run of `total_steps` steps on random rows."""
    path = folder / "run.yaml"
    base = ROOT / "configs/base"
    path.write_text(f"base_config: [{base / 'cpu_tiny.yaml'}, {base / 'qwen3_tiny.yaml'}]\n", encoding="utf-8")
    overrides: dict[str, Any] = {
        "output_dir": str(folder / "output"),
        "cpt.init_from": "random",
        "cpt.train_tokens": total_steps * BATCH_SIZE * SEQ_LENGTH,
        "cpt.global_batch_size": BATCH_SIZE,
        "cpt.schedule": {"kind": "constant", "peak_lr": 1e-4},
        "cpt.sources": {"rows": {"path": str(folder)}},
        "cpt.monitor": {"print_every_steps": 1},
        "cpt.guards": {"loss_spike": {}, "grad_norm_spike": {}} if guards else {},
    }
    run = resolve(load_config(path, overrides), world_size=1, sources={"rows": make_dataset(folder)})
    run.run_dir.mkdir(parents=True)
    sections = make_mindformers_config(run, resume_from=None, init_from=None)
    (run.run_dir / "resolved.yaml").write_text(render_yaml(sections, "benchmark"), encoding="utf-8")
    return run


class Blocks:
    """Steps (from 1) with our callbacks. Each round has two blocks, and ours comes first in every other round."""

    def __init__(self, num_rounds: int, block_steps: int) -> None:
        self.num_rounds, self.block_steps = num_rounds, block_steps
        self.total_steps = WARM_STEPS + 2 * num_rounds * block_steps
        self.ends_s: dict[int, tuple[float, float]] = {}  # step → wall time and CPU time at the end of the step

    def has_ours(self, step: int) -> bool:
        """Return whether our callbacks run at a step. They do during warmup."""
        block = (step - WARM_STEPS - 1) // self.block_steps
        return block < 0 or (block + block // 2) % 2 == 0

    def times_ms(self, clock: int) -> tuple[list[float], list[float]]:
        """Return the time per step in each round, with only MindFormers' callbacks and with ours.

        `clock` 0 is wall time, 1 is CPU time over all threads.
        """
        alone, ours = [], []
        for block in range(2 * self.num_rounds):
            first = WARM_STEPS + block * self.block_steps
            took_s = self.ends_s[first + self.block_steps][clock] - self.ends_s[first][clock]
            took_ms = took_s * 1e3 / self.block_steps
            (ours if self.has_ours(first + 1) else alone).append(took_ms)
        return alone, ours


def wrap_callbacks(blocks: Blocks) -> None:
    """Run our callbacks only in their blocks, and record the time at every step."""
    from mindspore.train import Callback

    build = trainer._build_callbacks

    class Gate(Callback):
        def __init__(self, callbacks: list[Any]) -> None:
            self._callbacks = callbacks

        def on_train_begin(self, run_context: Any) -> None:
            for callback in self._callbacks:
                callback.on_train_begin(run_context)

        def on_train_step_begin(self, run_context: Any) -> None:
            if blocks.has_ours(run_context.original_args().cur_step_num):
                for callback in self._callbacks:
                    callback.on_train_step_begin(run_context)

        def on_train_step_end(self, run_context: Any) -> None:
            step = run_context.original_args().cur_step_num
            # The last step would save a checkpoint.
            if blocks.has_ours(step) and step < blocks.total_steps:
                for callback in self._callbacks:
                    callback.on_train_step_end(run_context)
            blocks.ends_s[step] = time.perf_counter(), time.process_time()

    def build_gated(run: ResolvedRun, launch: trainer.Launch) -> list[Any]:
        return [Gate(build(run, launch))]

    trainer._build_callbacks = build_gated


def print_figures(name: str, alone: list[float], ours: list[float]) -> None:
    """Print the times per step in each round, and the overhead."""
    overheads = [100 * (ours_ms / alone_ms - 1) for alone_ms, ours_ms in zip(alone, ours, strict=True)]
    print(f"{name} time\nround  MindFormers' alone  with ours  overhead")
    for number, row in enumerate(zip(alone, ours, overheads, strict=True), start=1):
        print(f"{number:>5}  {row[0]:>15.2f} ms  {row[1]:>6.2f} ms  {row[2]:>+7.2f} %")
    alone_ms, ours_ms = statistics.median(alone), statistics.median(ours)
    print(f"median of a step: {alone_ms:.2f} ms alone, {ours_ms:.2f} ms with ours ({ours_ms - alone_ms:+.3f} ms)")
    print(f"overhead: median {statistics.median(overheads):+.2f} %, {min(overheads):+.2f} to {max(overheads):+.2f} %")


def main() -> int:
    """Train in blocks and print the figures."""
    parser = argparse.ArgumentParser(description="Measure the overhead of monitoring over MindFormers' own callbacks.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block-steps", type=int, default=25, help="steps per block")
    parser.add_argument("--guards", action="store_true", help="enable the spike guards, which run on the device")
    args = parser.parse_args()
    blocks = Blocks(args.rounds, args.block_steps)
    with tempfile.TemporaryDirectory() as name:
        run = make_run(Path(name), blocks.total_steps, args.guards)
        wrap_callbacks(blocks)
        with captured_output(run.run_dir / "logs/rank_0.log"), open("/dev/null", "w", encoding="utf-8") as console:
            launch = trainer.Launch(
                resolved_yaml=run.run_dir / "resolved.yaml",
                initial_step=0,
                stop_at_step=None,
                console=console,
                is_first_on_node=True,
            )
            trainer.train(run, launch)
    for clock, name in enumerate(("wall", "CPU")):
        print_figures(name, *blocks.times_ms(clock))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
