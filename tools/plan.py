"""Plan a run without NPUs: memory, speed, and whether the configuration compiles.

python tools/plan.py configs/qwen3/cpt_qwen3_8b.yaml
python tools/plan.py configs/llama3/cpt_llama3_70b.yaml --nodes 8 --suggest
python tools/plan.py configs/llama3/cpt_llama3_70b.yaml --compile --layers-per-stage 1
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.config.loader import parse_assignments
from ascend_cpt.errors import EXIT_FAILURE, EXIT_OK, ConfigError, run_command
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.plan.estimate import Estimate
from ascend_cpt.plan.machines import MACHINES
from ascend_cpt.plan.picture import draw_plan
from ascend_cpt.plan.report import render, to_record
from ascend_cpt.plan.speed.compile_time import CompileTime, estimate_compile
from ascend_cpt.run.planning.compile_records import find_compile_records, read_compile_records
from ascend_cpt.run.planning.measured import read_measured, read_run_speed, refit, render_changes_of, write_measured
from ascend_cpt.run.planning.plan_run import Cluster, plan_run
from ascend_cpt.run.planning.suggest_runs import OBJECTIVES, Goal, Suggestions, suggest_runs
from ascend_cpt.simulate.compile_ranks import record_compiles, render_reports, reports_to_records, simulate_run

STEPS = {"compile": 1, "simulate": 3}


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description="Estimate memory, speed and disk space of a run on a cluster, and compile it without NPUs.",
        epilog="Exit code: 0 it fits (and compiles as planned), 1 it does not, 2 the configuration is invalid.",
    )
    parser.add_argument("config", type=Path, metavar="YAML", help="configuration file; its datasets need not exist")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key")
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument("--nodes", type=int, metavar="N", help="number of nodes (default: as the layout requires)")
    cluster.add_argument("--devices-per-node", type=int, default=8, metavar="N", help="devices per node (default: 8)")
    cluster.add_argument("--device", default="910B", metavar="NAME", help=f"{', '.join(MACHINES)} (default: 910B)")
    cluster.add_argument("--hbm", type=float, default=64, metavar="GB", help="memory of a device (default: 64)")
    cluster.add_argument(
        "--measured", type=Path, nargs="+", metavar="RUN", help="fit the efficiencies to these runs, and save them"
    )
    cluster.add_argument(
        "--efficiencies",
        type=Path,
        metavar="JSON",
        help="file of efficiencies to use or, with --measured, to write (default then: plan_efficiencies.json)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--suggest", action="store_true", help="rank the layouts that fit")
    output.add_argument("--write", type=Path, metavar="YAML", help="write the configuration of the best layout")
    output.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="speed",
        help="speed on these devices, cost in device hours on up to --nodes, or fewest nodes for --days",
    )
    output.add_argument("--days", type=float, metavar="N", help="deadline of the run for --objective cost or nodes")
    output.add_argument(
        "--interleave", action="store_true", help="also search interleaved pipeline stages (pp_interleave_num)"
    )
    output.add_argument("--json", action="store_true", help="print JSON instead of text")
    output.add_argument("--picture", type=Path, metavar="PNG", help="plot memory and time to this file")
    compiling = parser.add_argument_group("compiling without NPUs")
    compiling.add_argument(
        "--compile", action="store_true", help="compile the training step of each pipeline stage's first rank"
    )
    compiling.add_argument(
        "--simulate", action="store_true", help="also run steps on MindSpore's simulated device, to measure peak memory"
    )
    compiling.add_argument("--ranks", metavar="0,8,...", help="compile these ranks instead")
    compiling.add_argument("--layers-per-stage", type=int, metavar="K", help="shorten the model for a quick check")
    compiling.add_argument(
        "--all-micro-batches",
        action="store_true",
        help="compile every micro batch of a step (default: at most two per stage)",
    )
    compiling.add_argument(
        "--timeout", type=float, default=3600, metavar="S", help="time limit per rank in seconds (default: 3600)"
    )
    compiling.add_argument("--log-dir", type=Path, metavar="DIR", help="keep the logs of the compiling processes")
    args = parser.parse_args()
    for name in ("nodes", "devices_per_node", "hbm", "days", "layers_per_stage", "timeout"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name.replace('_', '-')} {value}: must be a number above 0")
    for name in ("ranks", "layers_per_stage", "all_micro_batches", "log_dir"):
        if getattr(args, name) not in (None, False) and not (args.compile or args.simulate):
            parser.error(f"--{name.replace('_', '-')}: needs --compile or --simulate")
    if not args.suggest:
        for name, unset in (("write", None), ("objective", "speed"), ("days", None), ("interleave", False)):
            if getattr(args, name) != unset:
                parser.error(f"--{name}: needs --suggest")
    if args.objective == "nodes" and args.days is None:
        parser.error("--objective nodes: needs a deadline; add --days")
    if args.objective == "speed" and args.days is not None:
        parser.error("--days: needs --objective cost or nodes")
    return args


def parse_ranks(text: str | None) -> list[int] | None:
    """Parse ranks such as `0,8,16`.

    Raises:
        ConfigError: when the ranks are not whole numbers.
    """
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--ranks {text}: expected numbers such as 0,8,16") from None


def make_folder(folder: Path, flag: str) -> None:
    """Create the folder given by `flag`.

    Raises:
        ConfigError: when the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag}: {folder} cannot be created ({error.strerror}); choose another folder") from None


def apply_measured(args: argparse.Namespace, cluster: Cluster) -> Cluster:
    """Return the cluster with the efficiencies from `--measured` or `--efficiencies`.

    Raises:
        ConfigError: when the efficiencies were measured on another kind of machine.
    """
    if args.measured:
        speeds = [read_run_speed(path) for path in args.measured]
        measured, path = refit(speeds), args.efficiencies or Path("plan_efficiencies.json")
        write_measured(path, measured, speeds)
        print(f"{render_changes_of(speeds, measured)}\nwritten   {path}\n", file=sys.stderr)
    elif args.efficiencies:
        measured, path = read_measured(args.efficiencies), args.efficiencies
    else:
        return cluster
    if measured.device != args.device:
        raise ConfigError(f"{path}: measured on {measured.device}, but --device is {args.device}")
    return dataclasses.replace(cluster, efficiency=measured.efficiency, band=measured.band)


def suggest(args: argparse.Namespace, overrides: dict[str, Any], cluster: Cluster) -> Suggestions:
    """Return the suggestions. Write the first one's configuration if asked to."""
    goal = Goal(objective=args.objective, days=args.days, interleaves=args.interleave)
    suggestions = suggest_runs(args.config, overrides, cluster, goal)
    if args.write:
        print(f"written {suggestions.write(args.write)}", file=sys.stderr)
    return suggestions


def show_plan(
    args: argparse.Namespace, plan: Estimate, compile_time: CompileTime, suggestions: Suggestions | None
) -> None:
    """Print and plot the plan, and print the suggestions."""
    for flag, folder in (("--picture", args.picture and args.picture.parent), ("--log-dir", args.log_dir)):
        if folder:
            make_folder(folder, flag)
    if args.picture:
        draw_plan(plan, args.picture, title=args.config.stem)
    if not args.json:
        print(render(plan, compile_time))
        if suggestions is not None:
            print(f"\n{suggestions.render()}")


def main() -> int:
    """Print the plan and the results of compiling."""
    args = parse_arguments()
    ranks = parse_ranks(args.ranks)
    cluster = Cluster(
        num_nodes=args.nodes,
        devices_per_node=args.devices_per_node,
        device=args.device,
        device_bytes=int(args.hbm * GIGABYTE),
    )
    cluster = apply_measured(args, cluster)
    overrides = parse_assignments(args.set)
    suggestions = suggest(args, overrides, cluster) if args.suggest else None
    if suggestions is not None and suggestions.given is None:
        # The layout is impossible on these devices, so there is nothing else to show.
        print(json.dumps(suggestions.to_records(), indent=1) if args.json else suggestions.render())
        return EXIT_OK if suggestions.plans else EXIT_FAILURE
    run, plan = plan_run(args.config, overrides, cluster)
    record = to_record(plan)
    compile_time = estimate_compile(plan.case, read_compile_records(find_compile_records()))
    record["compile"] = dataclasses.asdict(compile_time)
    if suggestions is not None:
        record["suggestions"] = suggestions.to_records()
    show_plan(args, plan, compile_time, suggestions)
    is_ok = plan.fits
    if args.compile or args.simulate:
        case, reports = simulate_run(
            run,
            overrides,
            ranks=ranks,
            layers_per_stage=args.layers_per_stage,
            num_steps=STEPS["simulate" if args.simulate else "compile"],
            timeout_s=args.timeout,
            report=lambda line: print(line, file=sys.stderr, flush=True),
            all_micro_batches=args.all_micro_batches,
            log_dir=args.log_dir,
        )
        is_ok = is_ok and not any(report.result.error or report.differences for report in reports)
        record_compiles(case, reports)
        record["ranks"] = reports_to_records(reports)
        if not args.json:
            text = render_reports(case, reports, shows_peaks=args.simulate, pool_bytes=plan.limits.pool_bytes)
            print(f"\n{text}")
    if args.json:
        print(json.dumps(record, indent=1))
    return EXIT_OK if is_ok else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(run_command(main))
