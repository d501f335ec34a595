"""Measure small changes to a configuration on this machine, and write the combination of those that speed up training.

python tools/tune.py configs/qwen3/cpt_qwen3_8b.yaml --steps 20 --write configs/qwen3/tuned.yaml

Every overlay of configs/tuning and the configuration itself are run alternately, with random weights, for a few steps
and without saving. An overlay that fails is dropped, and the reason is printed. The same command continues an
interrupted session. See docs/tuning.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.errors import EXIT_OK, ConfigError, run_command
from ascend_cpt.run.planning.assumed_run import choose_world_size
from ascend_cpt.softnpu.environment import is_requested
from ascend_cpt.tune.compare import render_table
from ascend_cpt.tune.overlays import load_overlays
from ascend_cpt.tune.session import Outcome, open_session
from ascend_cpt.tune.trial import TrialSettings
from ascend_cpt.tune.write_winner import write_winner

DEVICES_PER_NODE = 8
OVERLAYS = Path(__file__).resolve().parents[1] / "configs" / "tuning"


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit code: 0 measured, 1 the configuration itself fails, 2 wrong arguments, 130 interrupted.",
    )
    parser.add_argument("config", type=Path, metavar="YAML", help="configuration; its datasets must exist")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key")
    parser.add_argument(
        "--overlays",
        type=Path,
        nargs="+",
        default=[OVERLAYS],
        metavar="PATH",
        help="overlays or folders with overlays (default: configs/tuning)",
    )
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps of a trial (default: 20)")
    parser.add_argument(
        "--warmup-steps", type=int, default=5, metavar="N", help="first steps that are not measured (default: 5)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of every overlay (default: 3)")
    parser.add_argument(
        "--timeout", type=float, default=1800, metavar="S", help="time limit of a trial in seconds (default: 1800)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes of a trial (default: as the layout needs)")
    parser.add_argument(
        "--launch",
        metavar="CMD",
        help="command that starts a job on several nodes; {} stands for the training command",
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="results and logs (default: tuning/<YAML's name>)")
    parser.add_argument("--write", type=Path, metavar="YAML", help="write the fastest configuration to this new file")
    parser.add_argument("--retry-failed", action="store_true", help="run overlays that failed earlier again")
    args = parser.parse_args()
    for name, minimum in (("steps", 1), ("warmup_steps", 0), ("rounds", 2), ("timeout", 1), ("workers", 1)):
        value = getattr(args, name)
        if value is not None and value < minimum:
            parser.error(f"--{name.replace('_', '-')} {value}: must be at least {minimum}")
    if args.steps - args.warmup_steps < 2:
        parser.error(f"--steps {args.steps}: leaves fewer than 2 steps after --warmup-steps {args.warmup_steps}")
    if args.write is not None and args.write.exists():
        parser.error(f"--write {args.write}: already exists; choose a new file")
    return args


def count_workers(args: argparse.Namespace) -> int:
    """Return the number of processes in a trial.

    Raises:
        ConfigError: the layout needs several nodes, but there is no command that starts a job on them.
    """
    config = load_config(args.config, parse_assignments(args.set))
    if args.workers is not None:
        workers = int(args.workers)
    else:
        workers = 1 if uses_cpu(config) else choose_world_size(config, None, DEVICES_PER_NODE)
    if workers > DEVICES_PER_NODE and args.launch is None and not is_requested(os.environ):
        raise ConfigError(
            f"{args.config}: needs {workers} devices, more than one node has; give --launch with a command that starts "
            "the job on all nodes (docs/tuning.md)"
        )
    return workers


def describe_device(outcome: Outcome) -> str:
    """Return a warning if the speeds were not measured on NPUs, or an empty string."""
    if outcome.device == "CPU":
        return "Measured on a CPU; the results do not apply to NPUs."
    if is_requested(os.environ):
        return "Measured on emulated NPUs; the results do not apply to real NPUs."
    return ""


def print_outcome(args: argparse.Namespace, outcome: Outcome, notice: str) -> None:
    """Print the table, the dropped overlays and the winner."""
    print(f"\n{render_table(outcome.comparisons)}")
    for name, reason in outcome.dropped.items():
        print(f"dropped {name}: {reason}")
    if notice:
        print(notice)
    if outcome.winner is None:
        print("No overlay gained more than the noise; keep the configuration as it is.")
        return
    candidate, comparison = outcome.winner
    print(f"Fastest: {', '.join(candidate.overlays)} ({comparison.gain:+.1%}, noise ±{comparison.noise:.1%})")
    if args.write is not None:
        write_winner(args.write, args.config, parse_assignments(args.set), outcome.winner, notice)
        print(f"Written: {args.write}")


def interrupt(number: int, _frame: object) -> None:
    """Exit as with Ctrl-C, which stops the running trial."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the session and print the table."""
    args = parse_arguments()
    signal.signal(signal.SIGTERM, interrupt)
    workers = count_workers(args)
    overlays = load_overlays(args.overlays)

    def make_settings(base: Path) -> TrialSettings:
        return TrialSettings(
            base=base,
            workers=workers,
            launch=args.launch,
            num_steps=args.steps,
            num_warmup_steps=args.warmup_steps,
            timeout_s=args.timeout,
        )

    folder = args.folder or Path("tuning") / args.config.stem
    print(f"overlays: {len(overlays)}; rounds: {args.rounds}; steps: {args.steps}; devices: {workers}; logs: {folder}")
    with open_session(
        args.config,
        parse_assignments(args.set),
        folder,
        overlays,
        settings=make_settings,
        num_rounds=args.rounds,
        report=lambda line: print(line, flush=True),
        retry_failed=args.retry_failed,
    ) as session:
        outcome = session.run()
    print_outcome(args, outcome, describe_device(outcome))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
