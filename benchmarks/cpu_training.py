"""Speed of training the tiny Qwen3 on a CPU, side by side with another source tree or with transformers and PyTorch.

    bash scripts/prepare_sample.sh
    python benchmarks/cpu_training.py --against /path/to/another/tree
    python benchmarks/cpu_training.py --torch-python /path/to/venv/bin/python     needs torch and transformers

All sides train the model of configs/qwen3/cpt_qwen3_tiny_base.yaml with the same batch size, row length and AdamW, in
float32. They take turns, a few steps at a time, so that other load on the machine affects all of them alike. The first
block of each side, which compiles, is not counted. Prints CPU time and wall time per step, and the ratios as medians
over the rounds.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from ascend_cpt.processes import die_with_parent

CONFIG = "configs/qwen3/cpt_qwen3_tiny_base.yaml"
BATCH, LENGTH = 4, 256
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": False,
}


class Turns:
    """A side's end of the pipes: waits for its turn, and sends the times of a block of steps."""

    def __init__(self, block_steps: int, read_from: int, write_to: int) -> None:
        self._block_steps, self._num_steps = block_steps, 0
        self._read, self._write = os.fdopen(read_from), os.fdopen(write_to, "w")
        self._start = (0.0, 0.0)

    def begin(self) -> None:
        """Wait for the first turn."""
        self._read.readline()
        self._start = (time.process_time(), time.perf_counter())

    def end_step(self) -> None:
        """Count a step. At the end of a block, send its times and wait for the next turn."""
        self._num_steps += 1
        if self._num_steps % self._block_steps == 0:
            times = (time.process_time() - self._start[0], time.perf_counter() - self._start[1])
            self._write.write(json.dumps([value / self._block_steps for value in times]) + "\n")
            self._write.flush()
            self.begin()


def train_ours(turns: Turns, tree: str, num_steps: int, threads: int) -> None:
    """Train with the source tree in `tree`."""
    for name in [name for name in sys.modules if name.startswith("ascend_cpt")]:
        del sys.modules[name]
    sys.path.insert(0, tree)
    os.chdir(tree)
    from ascend_cpt import train
    from ascend_cpt.backend.training.step_monitor import StepMonitor

    end_step: Any = StepMonitor.on_train_step_end

    def on_train_step_end(self: StepMonitor, run_context: Any) -> None:
        end_step(self, run_context)
        turns.end_step()

    StepMonitor.on_train_step_end = on_train_step_end  # type: ignore[method-assign]
    settings = {
        "cpt.train_tokens": num_steps * BATCH * LENGTH,
        "cpt.schedule.warmup_tokens": 0,
        "cpt.validation": "null",
        "cpt.checkpoint.save": False,
        "cpt.sources.general.path": ROOT / "data/sample/packed/general_train_text_document",
        "context.runtime_num_threads": threads,
    }
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["run_cpt.py", "--config", CONFIG, "--output_dir", folder]
        for key, value in settings.items():
            sys.argv += ["--set", f"{key}={value}"]
        turns.begin()
        train.main()


def train_torch(turns: Turns, num_steps: int, threads: int) -> None:
    """Train with transformers and PyTorch."""
    import torch  # type: ignore[import-not-found]
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, rope_theta=10000.0, attn_implementation="sdpa"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    ids = torch.randint(0, SIZES["vocab_size"], (BATCH, LENGTH))
    turns.begin()
    for _ in range(num_steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        turns.end_step()


class Side:
    """A process that trains in turns."""

    def __init__(self, name: str, python: str, words: list[str], log: Path) -> None:
        self.name = name
        read_turn, write_turn = os.pipe()
        read_times, write_times = os.pipe()
        command = [python, __file__, "--side", *words, "--pipes", str(read_turn), str(write_times)]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                pass_fds=(read_turn, write_times),
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        os.close(read_turn)
        os.close(write_times)
        self._turn, self._times = os.fdopen(write_turn, "w"), os.fdopen(read_times)
        self._log = log

    def start_block(self) -> None:
        """Let it train a block."""
        self._turn.write("\n")
        self._turn.flush()

    def read_times(self) -> tuple[float, float]:
        """Return CPU and wall seconds per step of the block that was started.

        Raises:
            SystemExit: the process ended.
        """
        line = self._times.readline()
        if not line:
            sys.exit(f"{self.name} ended:\n{self._log.read_text('utf-8', errors='replace')[-2000:]}")
        cpu_s, wall_s = json.loads(line)
        return cpu_s, wall_s


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="TREE", help="another source tree")
    parser.add_argument("--torch-python", metavar="PYTHON", help="interpreter with torch and transformers")
    parser.add_argument("--rounds", type=int, default=10, help="blocks per side [%(default)s]")
    parser.add_argument("--block-steps", type=int, default=5, help="steps per block [%(default)s]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side [%(default)s]")
    parser.add_argument("--side", choices=["ours", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--tree", default=str(ROOT), help=argparse.SUPPRESS)
    parser.add_argument("--pipes", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    num_steps = (args.rounds + 1) * args.block_steps
    if args.side:
        turns = Turns(args.block_steps, *args.pipes)
        if args.side == "ours":
            train_ours(turns, args.tree, num_steps, args.threads)
        else:
            train_torch(turns, num_steps, args.threads)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--rounds", str(args.rounds), "--block-steps", str(args.block_steps), "--threads", str(args.threads)]
        sides = [Side("this tree", sys.executable, ["ours", *shared], Path(folder) / "ours.log")]
        if args.against:
            words = ["ours", "--tree", str(args.against.resolve()), *shared]
            sides.append(Side(str(args.against), sys.executable, words, Path(folder) / "other.log"))
        if args.torch_python:
            sides.append(Side("torch", args.torch_python, ["torch", *shared], Path(folder) / "torch.log"))
        try:
            print_times(sides, args.rounds)
        finally:
            for side in sides:
                side.process.kill()
                side.process.wait()
    return 0


def print_times(sides: list[Side], num_rounds: int) -> None:
    """Let the sides take turns, and print the times and the ratios to the first side."""
    for side in sides:  # together, because it compiles
        side.start_block()
    for side in sides:
        side.read_times()
    times: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
    for number in range(num_rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            side.start_block()
            times[side.name].append(side.read_times())
        latest = ", ".join(f"{name} {values[-1][0] * 1e3:.0f} ms" for name, values in times.items())
        print(f"round {number + 1}: CPU {latest}", file=sys.stderr, flush=True)
    print(f"{num_rounds} rounds; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    ours = times[sides[0].name]
    for name, values in times.items():
        cpu, wall = (statistics.median(value[index] for value in values) for index in (0, 1))
        ratios = [
            statistics.median(value[index] / own[index] for value, own in zip(values, ours, strict=True))
            for index in (0, 1)
        ]
        print(
            f"{name}: CPU {cpu * 1e3:.0f} ms, wall {wall * 1e3:.0f} ms per step of {BATCH * LENGTH} tokens; "
            f"relative to this tree: CPU {ratios[0]:.2f}, wall {ratios[1]:.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
