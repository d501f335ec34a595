"""Run an experiment: continuations of one base that differ in one setting, each with several seeds.

python tools/experiment.py replay                 all runs of experiments/replay.yaml, then its table and picture
python tools/experiment.py replay --quick         one seed and small budgets, to see that it runs
python tools/experiment.py replay --render        table and picture of the checked-in results, without a run

Complete runs are reused, also by other experiments with the same base, and the same command continues after an
interruption. Failed runs are listed with the reason; the same command trains them again. See docs/experiments.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.errors import EXIT_FAILURE, EXIT_OK, ConfigError, run_command
from ascend_cpt.experiment.jobs import REPOSITORY, list_jobs
from ascend_cpt.experiment.render import draw_picture, render_table
from ascend_cpt.experiment.results import collect_results, load_results, save_results
from ascend_cpt.experiment.run_jobs import Runner
from ascend_cpt.experiment.settings import find_experiment, load_experiment

EXPERIMENTS = REPOSITORY / "experiments"
PICTURES = REPOSITORY / "docs" / "pictures" / "experiments"


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit code: 0 all runs complete, 1 a run failed, 2 wrong arguments, 130 interrupted.",
    )
    parser.add_argument("experiments", nargs="+", metavar="NAME|YAML", help="experiments, by name or file")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds (default: those of the experiment)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="concurrent runs (default: 1)")
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("output/experiments"),
        metavar="DIR",
        help="runs, results and pictures (default: output/experiments)",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="one seed and small budgets; shows only that the runs work")
    mode.add_argument("--render", action="store_true", help="render the checked-in results without running anything")
    mode.add_argument(
        "--publish", action="store_true", help="also write the results to experiments/results and docs/pictures"
    )
    args = parser.parse_args()
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: must be at least 1")
    if args.seeds and (len(set(args.seeds)) != len(args.seeds) or min(args.seeds) < 1):
        parser.error(f"--seeds {' '.join(map(str, args.seeds))}: give different whole numbers of at least 1")
    return args


def prepare(commands: tuple[str, ...]) -> None:
    """Make the datasets.

    Raises:
        ConfigError: a command fails.
    """
    for command in commands:
        print(f"$ {command}", flush=True)
        environ = {**os.environ, "ASCEND_CPT_PYTHON": sys.executable}
        code = subprocess.run(
            ["bash", "-c", command], cwd=REPOSITORY, env=environ, stdout=subprocess.DEVNULL
        ).returncode
        if code:
            raise ConfigError(f"{command}: exit code {code}; run it by hand to see why")


def run_experiment(path: Path, args: argparse.Namespace) -> bool:
    """Run one experiment, print its table and write its results. Return whether all runs are complete."""
    experiment = load_experiment(path)
    seeds = tuple(args.seeds or (experiment.seeds[:1] if args.quick else experiment.seeds))
    print(f"{path.stem}: {experiment.title}" + (" (--quick: small budgets, no conclusions)" if args.quick else ""))
    list_jobs(experiment, seeds, quick=args.quick)  # finds mistakes before the datasets are made
    prepare(experiment.prepare)
    jobs = list_jobs(experiment, seeds, quick=args.quick)
    runner = Runner(args.output_dir / "runs", args.workers, lambda line: print(line, flush=True))
    runner.run(jobs)
    results = collect_results(experiment, jobs, runner.folder, runner.failed, quick=args.quick)
    name = f"{path.stem}_quick" if args.quick else path.stem
    targets = [(args.output_dir / f"{name}.json", args.output_dir / f"{name}.png")]
    if args.publish and results.runs:
        targets.append((EXPERIMENTS / "results" / f"{name}.json", PICTURES / f"{name}.png"))
    for results_path, picture_path in targets:
        save_results(results, results_path)
        draw_picture(results, picture_path)
        print(f"written: {results_path}, {picture_path}")
    print(f"\n{render_table(results)}")
    for line in results.failed:
        print(f"failed: {line}")
    return not results.failed


def render_experiment(path: Path) -> None:
    """Print the table of the checked-in results and redraw the picture."""
    results = load_results(EXPERIMENTS / "results" / f"{path.stem}.json")
    draw_picture(results, PICTURES / f"{path.stem}.png")
    print(f"{path.stem}: {results.title}\n\n{render_table(results)}")


def interrupt(number: int, _frame: object) -> None:
    """Exit as with Ctrl-C, which lets the running jobs save."""
    raise KeyboardInterrupt


def main() -> int:
    """Run or render the experiments."""
    args = parse_arguments()
    signal.signal(signal.SIGTERM, interrupt)
    paths = [find_experiment(name, EXPERIMENTS) for name in args.experiments]
    if args.render:
        for path in paths:
            render_experiment(path)
        return EXIT_OK
    complete = [run_experiment(path, args) for path in paths]
    return EXIT_OK if all(complete) else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(run_command(main))
