"""Measure the overhead of monitoring over MindFormers' own callbacks.

    python benchmarks/monitoring.py --hidden 512 --layers 4                          CPU: time per step
    ASCEND_CPT_SOFTNPU=1 python benchmarks/monitoring.py                             software NPU: calls per step
    ASCEND_CPT_SOFTNPU=1 bash scripts/msrun_launcher.sh "benchmarks/monitoring.py --tensor 2" 2

A small Qwen3 is trained. MindFormers' MFLossMonitor runs at every step; our callbacks (records to console,
metrics.jsonl and TensorBoard, guards, data usage, exchanges between ranks) run in one of two blocks of steps per round,
alternately the first and the second. Both blocks use the same graph, kernels and data, so load on the machine affects
both. Validation and checkpoints are not included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ascend_cpt.backend.training import trainer
from ascend_cpt.backend.training.msrun_scheduler import is_scheduler, serve_workers
from ascend_cpt.config.loader import load_config
from ascend_cpt.data.packed.manifest import Manifest, Shard, load_manifest, manifest_path, write_manifest
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import run_command
from ascend_cpt.monitor.console import captured_output
from ascend_cpt.run.launch.command_line import read_process
from ascend_cpt.run.mindformers_yaml import make_mindformers_config, render_yaml
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.softnpu.counters import DeviceCounts, read_counts
from ascend_cpt.softnpu.environment import enter, is_requested

SEQ_LENGTH, VOCAB_SIZE, NUM_ROWS, BATCH_SIZE = 256, 4096, 400, 4
EMULATED_SEQ_LENGTH = 32  # the number of calls does not depend on the sizes
WARM_STEPS = 20
NUM_RESAMPLES = 10_000
# The settings of the Atlas configurations that change how a step is run.
ASCEND = {
    "context": {"mode": 0, "device_target": "Ascend", "jit_config": {"jit_level": "O0"}, "max_device_memory": "4GB"},
    "runner_config": {"sink_mode": True},
    "parallel": {"parallel_mode": 1, "enable_alltoall": True, "enable_parallel_optimizer": True},
}


def make_dataset(folder: Path, seq_length: int = SEQ_LENGTH) -> Manifest:
    """Write random rows as a packed dataset."""
    from mindspore.mindrecord import FileWriter

    path = folder / "rows_text_document.mindrecord0"
    rows = np.random.default_rng(0).integers(1, VOCAB_SIZE - 1, (NUM_ROWS, seq_length + 1), dtype=np.int32)
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
        key="text", output_format="mindrecord", seq_length=seq_length, tokenizer=tokenizer, shards=(shard,)
    )
    prefix = folder / "rows_text_document"
    write_manifest(manifest, manifest_path(prefix))
    return load_manifest(str(prefix))


def make_run(folder: Path, total_steps: int, args: argparse.Namespace, world_size: int) -> ResolvedRun:
    """Resolve a run of `total_steps` steps on random rows."""
    path = folder / "run.yaml"
    base = ROOT / "configs/base"
    path.write_text(f"base_config: [{base / 'cpu_tiny.yaml'}, {base / 'qwen3_tiny.yaml'}]\n", encoding="utf-8")
    layout = {"data_parallel": world_size // args.tensor // args.pipeline}
    layout |= {"model_parallel": args.tensor, "pipeline_stage": args.pipeline}
    size = {"hidden_size": args.hidden, "intermediate_size": 3 * args.hidden, "num_hidden_layers": args.layers}
    seq_length = EMULATED_SEQ_LENGTH if is_requested(os.environ) else SEQ_LENGTH
    overrides: dict[str, Any] = {
        "cpt.seq_length": seq_length,
        **({**ASCEND, "parallel_config": layout} if is_requested(os.environ) else {}),
        **{f"model.model_config.{key}": value for key, value in size.items()},
        "output_dir": str(folder / "output"),
        "cpt.init_from": "random",
        "cpt.train_tokens": total_steps * BATCH_SIZE * seq_length,
        "cpt.global_batch_size": BATCH_SIZE,
        "cpt.schedule": {"kind": "constant", "peak_lr": 1e-4},
        "cpt.sources": {"rows": {"path": str(folder)}},
        "cpt.monitor": {"print_every_steps": 1},
        "cpt.guards": {"loss_spike": {}, "grad_norm_spike": {}} if args.guards else {},
    }
    run = resolve(
        load_config(path, overrides), world_size=world_size, sources={"rows": make_dataset(folder, seq_length)}
    )
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
        self.counts: dict[int, DeviceCounts] = {}  # step → calls of the device until the end of the step

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

    def calls_per_step(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the mean number of calls per step, with only MindFormers' callbacks and with ours."""
        totals = [dict.fromkeys(asdict(self.counts[1]), 0), dict.fromkeys(asdict(self.counts[1]), 0)]
        # The last step ends the run.
        steps = range(WARM_STEPS + 1, self.total_steps)
        for step in steps:
            for name, number in asdict(self.counts[step] - self.counts[step - 1]).items():
                totals[self.has_ours(step)][name] += number
        num_ours = sum(map(self.has_ours, steps))
        alone, ours = (
            {name: number / num_steps for name, number in total.items()}
            for total, num_steps in zip(totals, (len(steps) - num_ours, num_ours), strict=True)
        )
        return alone, ours


def wrap_callbacks(blocks: Blocks) -> None:
    """Run our callbacks only in their blocks, and record the time at every step."""
    from mindspore.train import Callback

    from ascend_cpt.backend.training.step_monitor import HostOutputs

    build = trainer._build_callbacks

    class Gate(Callback):
        def __init__(self, callbacks: list[Any]) -> None:
            self._callbacks = callbacks
            # The trainer calls these methods of the last callback.
            controller = callbacks[-1]
            self.restore_alarm, self.raise_ending = controller.restore_alarm, controller.raise_ending
            self.finish_saving = controller.finish_saving

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
            if is_requested(os.environ):
                blocks.counts[step] = read_counts()

    class GatedOutputs(HostOutputs):
        def on_train_step_end(self, run_context: Any) -> None:
            if blocks.has_ours(run_context.original_args().cur_step_num):
                super().on_train_step_end(run_context)

    def build_gated(run: ResolvedRun, launch: trainer.Launch) -> list[Any]:
        callbacks = build(run, launch)
        if isinstance(callbacks[0], HostOutputs):  # it runs before MindFormers' callbacks
            return [GatedOutputs(), Gate(callbacks[1:])]
        return [Gate(callbacks)]

    trainer._build_callbacks = build_gated


def print_times(name: str, alone: list[float], ours: list[float]) -> None:
    """Print the times per step in each round, and the overhead with its confidence interval."""
    overheads = [100 * (ours_ms / alone_ms - 1) for alone_ms, ours_ms in zip(alone, ours, strict=True)]
    print(f"{name} time\nround  MindFormers' alone  with ours  overhead")
    for number, row in enumerate(zip(alone, ours, overheads, strict=True), start=1):
        print(f"{number:>5}  {row[0]:>15.2f} ms  {row[1]:>6.2f} ms  {row[2]:>+7.2f} %")
    alone_ms, ours_ms = statistics.median(alone), statistics.median(ours)
    print(f"median of a step: {alone_ms:.2f} ms alone, {ours_ms:.2f} ms with ours ({ours_ms - alone_ms:+.3f} ms)")
    low, high = find_interval(overheads)
    print(f"overhead: median {statistics.median(overheads):+.2f} %, 95 % confidence {low:+.2f} to {high:+.2f} %")


def find_interval(values: list[float]) -> tuple[float, float]:
    """Return the bootstrap 95 % confidence interval of the median."""
    draws = np.random.default_rng(0).choice(np.array(values), (NUM_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def print_calls(alone: dict[str, float], ours: dict[str, float]) -> None:
    """Print the calls of the device per step."""
    print("calls per step       MindFormers' alone  with ours  difference")
    for name, number in alone.items():
        print(f"{name.replace('_', ' '):<19}  {number:>18.2f}  {ours[name]:>9.2f}  {ours[name] - number:>+10.2f}")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block-steps", type=int, default=25, help="steps per block")
    parser.add_argument("--guards", action="store_true", help="enable the spike guards, which run on the device")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks (software NPU)")
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline stages (software NPU)")
    return parser.parse_args()


def main() -> int:
    """Train in blocks and print the figures."""
    args = parse_arguments()
    enter()
    if is_scheduler():
        serve_workers()
        return 0
    process = read_process()
    blocks = Blocks(args.rounds, args.block_steps)
    with tempfile.TemporaryDirectory() as name:
        run = make_run(Path(name), blocks.total_steps, args, process.world_size)
        wrap_callbacks(blocks)
        log = run.run_dir / f"logs/rank_{process.rank}.log"
        with captured_output(log), open("/dev/null", "w", encoding="utf-8") as console:
            launch = trainer.Launch(
                resolved_yaml=run.run_dir / "resolved.yaml",
                initial_step=0,
                stop_at_step=None,
                console=console,
                is_first_on_node=process.rank == 0,
            )
            trainer.train(run, launch)
    if process.rank == run.report_rank:
        if is_requested(os.environ):
            print_calls(*blocks.calls_per_step())
        else:
            for clock, clock_name in enumerate(("wall", "CPU")):
                print_times(clock_name, *blocks.times_ms(clock))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
