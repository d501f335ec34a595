"""Parses the command line of run_cpt.py and loads the run that it describes."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ascend_cpt.cluster.job.job_nodes import JobNodes, read_job_nodes
from ascend_cpt.config.foreign_flags import TRAIN_FLAGS, ExplainingParser
from ascend_cpt.config.loader import RunConfig, load_config, parse_assignments
from ascend_cpt.errors import ConfigError
from ascend_cpt.run.export.target import check_target
from ascend_cpt.run.launch.lost_nodes import check_lost_nodes
from ascend_cpt.run.planning.dry_run import load_dry_run, parse_assumed
from ascend_cpt.run.resolve import load_run
from ascend_cpt.run.resolved_run import ResolvedRun

PACK_ONLY = "--pack-only"


@dataclass(frozen=True, kw_only=True)
class Process:
    """The rank and world size of this process, from msrun's environment variables."""

    rank: int
    world_size: int
    launched: bool
    nodes: JobNodes | None = None
    """The nodes of a job that can continue without some of them; None for other jobs."""

    @property
    def full_world_size(self) -> int | None:
        """The world size of the whole job, if it can continue without some of its nodes."""
        return self.nodes.num_workers if self.nodes else None


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = ExplainingParser(
        explanations=TRAIN_FLAGS,
        prog="run_cpt.py",
        description="Continue the pretraining of a model on Ascend NPUs or, for small models, on CPUs.",
        epilog='Example: bash scripts/msrun_launcher.sh "run_cpt.py --config configs/qwen3/cpt_qwen3_tiny.yaml" 2',
    )
    parser.add_argument("--config", required=True, metavar="YAML", help="configuration file")
    parser.add_argument(
        "--train_dataset_dir",
        "--train_dataset",
        metavar="PATH",
        help="packed dataset to train on (replaces cpt.sources)",
    )
    parser.add_argument("--load_checkpoint", metavar="PATH", help="start from these weights (like cpt.init_from)")
    parser.add_argument("--output_dir", metavar="PATH", help="parent of the run folders (default: the configuration's)")
    parser.add_argument(
        "--use_parallel", type=parse_bool, metavar="BOOL", help="train with several workers (default: as launched)"
    )
    parser.add_argument(
        "--run_mode", choices=["train", "finetune", "predict"], default="train", help="finetune is the same as train"
    )
    parser.add_argument(
        "--resume_training",
        metavar="auto|PATH|never",
        help="resume from the newest complete checkpoint (auto or True, the default), "
        "from PATH, or do not resume (never or False)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override any key, such as cpt.train_tokens=1B"
    )
    parser.add_argument(
        "--stop-at-step", type=int, metavar="N", help="save and stop after step N; run again to continue"
    )
    parser.add_argument(
        "--no-shared-storage",
        action="store_true",
        help="every node has its own copy of the data and its own output (like cpt.storage.shared: false)",
    )
    parser.add_argument("--extend", action="store_true", help="continue a run to which tokens or phases were added")
    parser.add_argument("--reshard", action="store_true", help="continue a run in another parallel layout")
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="start without verifying the checksums of the checkpoint and the data (like cpt.checkpoint.verify: false "
        "and cpt.storage.verify_data: false)",
    )
    parser.add_argument(
        PACK_ONLY, action="store_true", help="pack the raw text of cpt.sources, which training then uses, and stop"
    )
    _add_plan_arguments(parser)
    args = parser.parse_args(argv)
    if read_job_nodes():
        args.reshard = True  # on fewer nodes, the data-parallel size differs from that of the checkpoint
    return args


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan and stop")
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="with --dry-run: plan for N devices [those of parallel_config]"
    )
    parser.add_argument(
        "--assume",
        metavar="NAME=TOKENS,...",
        help="with --dry-run: sizes of missing datasets, such as web=200B,qa=2.8B",
    )


def parse_bool(text: str) -> bool:
    """Parse a boolean: true, yes, 1, false, no or 0.

    Raises:
        argparse.ArgumentTypeError: for any other text.
    """
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return words[text.lower()]


def read_process(world_size: int | None = None) -> Process:
    """Return the process that msrun's environment variables describe, or a single process if they are not set."""
    size = os.environ.get("RANK_SIZE") or os.environ.get("MS_WORKER_NUM")
    nodes = read_job_nodes()
    # A single worker has no scheduler, also if it is the one that is left of a larger job.
    launched = bool(size) and bool(os.environ.get("MS_SCHED_HOST") or nodes)
    rank = int(os.environ.get("RANK_ID", "0")) if launched else 0
    world_size = world_size or (int(size or 1) if launched else 1)
    return Process(rank=rank, world_size=world_size, launched=launched, nodes=nodes)


def collect_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Return dotted key → value for everything set on the command line."""
    overrides = parse_assignments(args.set)
    if args.train_dataset_dir:
        overrides["cpt.sources"] = {"train": {"path": args.train_dataset_dir}}
    if args.no_shared_storage:
        overrides["cpt.storage.shared"] = False
    if args.no_verify:
        overrides.update({"cpt.checkpoint.verify": False, "cpt.storage.verify_data": False})
    if args.output_dir:
        overrides["output_dir"] = args.output_dir
    if args.load_checkpoint:
        overrides["load_checkpoint"] = args.load_checkpoint
    return overrides


def list_replaced(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the sections of the configuration that the command line replaces."""
    return ("cpt.sources",) if args.train_dataset_dir else ()


def check_launch(config: RunConfig, args: argparse.Namespace, process: Process) -> None:
    """Check that the command line, the configuration and the launch are consistent.

    Raises:
        ConfigError: when the three contradict each other.
    """
    if args.run_mode == "predict":
        raise ConfigError(
            "--run_mode predict: this program only trains; export the checkpoint with tools/convert_weights.py to-hf, "
            "and generate text from it with tools/generate.py"
        )
    if args.world_size is not None and (args.world_size < 1 or not args.dry_run):
        raise ConfigError(f"--world-size {args.world_size}: needs --dry-run and must be at least 1")
    use_parallel = args.use_parallel if args.use_parallel is not None else config.mindformers.get("use_parallel")
    if args.use_parallel and not process.launched:
        raise ConfigError("--use_parallel True needs several workers: start with bash scripts/msrun_launcher.sh")
    if use_parallel is False and process.world_size > 1:
        raise ConfigError(
            f"use_parallel is False, but the launch has {process.world_size} workers; remove use_parallel or "
            "launch one worker"
        )
    if not config.cpt.sources:
        raise ConfigError(f"{config.path}: cpt.sources is empty; add a dataset or give --train_dataset_dir")
    if config.cpt.init_from and config.mindformers.get("load_checkpoint"):
        raise ConfigError(
            f"cpt.init_from ({config.locate('cpt', 'init_from')}) and load_checkpoint "
            f"({config.locate('load_checkpoint')}) are both set; keep one, or replace the first "
            "with --set cpt.init_from=PATH"
        )
    if args.pack_only and not any(source.raw for source in config.cpt.sources.values()):
        raise ConfigError(f"{PACK_ONLY}: no source of {config.path} has raw text; remove {PACK_ONLY}")
    if args.stop_at_step is not None and args.stop_at_step < 1:
        raise ConfigError(f"--stop-at-step {args.stop_at_step}: must be at least 1")


def check_ramp(run: ResolvedRun, args: argparse.Namespace) -> None:
    """Check that a run with a batch ramp resumes from its newest checkpoint, since each batch size restarts the run.

    Raises:
        ConfigError: the run does not resume from it.
    """
    given = args.resume_training or str(run.config.mindformers.get("resume_training", "auto"))
    if run.budget.ramp and given.lower() not in ("auto", "true", "none"):
        raise ConfigError(
            f"--resume_training {given}: a run with a batch ramp continues from its newest checkpoint; remove it, or "
            "start another run with --set cpt.run_name=NAME"
        )


def load_config_of_arguments(args: argparse.Namespace, process: Process) -> RunConfig:
    """Return the configuration with the command line's overrides.

    Raises:
        ConfigError: when the configuration is invalid or inconsistent with the launch.
    """
    config = load_config(args.config, collect_overrides(args), list_replaced(args))
    check_launch(config, args, process)
    return config


def load_run_of_arguments(
    args: argparse.Namespace, process: Process, packed: Mapping[str, str] | None = None
) -> ResolvedRun:
    """Return the run that the command line describes. `packed` is as for `load_run`.

    If the job can continue without some of its nodes, also check that the run can.

    Raises:
        CptError: when either is invalid.
    """
    run = load_run(
        args.config,
        collect_overrides(args),
        world_size=process.world_size,
        full_world_size=process.full_world_size,
        replace=list_replaced(args),
        check_config=lambda config: check_launch(config, args, process),
        packed=packed,
    )
    check_target(run)
    if process.nodes:
        check_lost_nodes(run, load_config_of_arguments(args, process), process.nodes, writes=process.rank == 0)
    return run


def load_dry_run_of_arguments(args: argparse.Namespace, process: Process, packed: Mapping[str, str]) -> ResolvedRun:
    """Return the run for `--dry-run`; datasets may be missing. `packed` is as for `load_run`.

    Raises:
        CptError: when the command line or the configuration is invalid.
    """

    def check(config: RunConfig, world_size: int) -> None:
        check_launch(config, args, dataclasses.replace(process, world_size=world_size))

    run = load_dry_run(
        args.config,
        collect_overrides(args),
        world_size=process.world_size if process.launched else args.world_size,
        replace=list_replaced(args),
        packed=packed,
        assumed=parse_assumed(args.assume) if args.assume else {},
        check_config=check,
    )
    check_target(run)
    return run
