"""Cost of evaluation, beside that of training: seconds per million tokens, and the share of a run.

    python benchmarks/evaluation.py output/my_run --config my.yaml

Evaluates the newest checkpoint of a run on a CPU with its own validation sets and tasks, twice: the first time
compiles.
Training's speed is the median of the run's metrics.jsonl, measured before, so run both on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.config.loader import load_config
from ascend_cpt.data.packed.row_choice import choose_rows
from ascend_cpt.errors import run_command
from ascend_cpt.monitor.console import captured_output
from ascend_cpt.monitor.history import read_metrics
from ascend_cpt.run.evaluation.command_line import collect_settings, parse_arguments
from ascend_cpt.run.evaluation.plan import make_plan


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--config", required=True, help="its configuration")
    parser.add_argument("--batch-size", type=int, default=4, help="rows per forward pass [%(default)s]")
    args = parser.parse_args()
    records = list(read_metrics(args.run / "metrics.jsonl"))
    steps = [record for record in records if record["kind"] == "step"]
    training = statistics.median(record["tokens"] / record["step"] / record["step_time_s"] for record in steps[1:])
    words = [str(args.run), "--config", args.config, "--batch-size", str(args.batch_size)]
    settings = collect_settings(parse_arguments(words), load_config(args.config, {}))
    with tempfile.TemporaryDirectory() as logs, captured_output(Path(logs) / "mindformers.log") as console:
        from ascend_cpt.backend.evaluation_network import EvaluationNetwork
        from ascend_cpt.backend.training.validation import Evaluator

        plan = make_plan(args.run, settings, world_size=1)
        network = EvaluationNetwork(
            plan.model, row_format=plan.row_format, layout=plan.layout, device=plan.device, rank=0, context=plan.context
        )
        network.load(args.run)
        length, seconds = plan.row_format.seq_length, {}
        for name, sets, tasks in (("validation", plan.sets, ()), ("tasks", (), plan.tasks)):
            evaluator = Evaluator(network.scorer, sets, tasks, max_rows=plan.max_rows)
            for _ in range(2):
                start_s = time.perf_counter()
                evaluator.evaluate(0)
                seconds[name] = time.perf_counter() - start_s
        rows = {
            "validation": sum(len(choose_rows(dataset.num_rows, plan.max_rows)) for dataset in plan.sets),
            "tasks": sum(len(task.requests) for task in plan.tasks),
        }
        print(f"training    {1e6 / training:.1f} s per million tokens", file=console)
        trained_s = sum(record["step_time_s"] for record in steps)
        num_evaluations = len({record["step"] for record in records if record["kind"] in ("validation", "task")})
        for name, num_rows in rows.items():
            if num_rows:
                per_million = seconds[name] / (num_rows * length) * 1e6
                share = num_evaluations * seconds[name] / (trained_s + num_evaluations * seconds[name])
                print(
                    f"{name:<11} {per_million:.1f} s per million tokens, {per_million * training / 1e6:.2f} of "
                    f"training; {num_rows} rows of {length} tokens, {num_evaluations} times: {share:.0%} of the run",
                    file=console,
                )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
