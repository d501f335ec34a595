"""The command line of tools/evaluate.py."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed.network_inputs import DOCUMENT_ATTENTION
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, TYPE_HELP, parse_tokenizer_type
from ascend_cpt.errors import ConfigError
from ascend_cpt.run.evaluation.plan import EvaluationSettings, read_settings
from ascend_cpt.tasks.check import find_task_problems

POLL_S = 30.0


def collect_settings(args: argparse.Namespace, config: RunConfig | None) -> EvaluationSettings:
    """Return the settings from the command line and the configuration.

    Raises:
        ConfigError: malformed --validation or --task.
    """
    sets: dict[str, ValidationSetConfig] = {}
    for text in args.validation:
        name, separator, path = text.partition("=")
        if not name or not separator or not path:
            raise ConfigError(f"--validation {text}: expected NAME=PATH, such as general=/data/valid/general")
        sets[name] = ValidationSetConfig(path=path)
    tasks: dict[str, TaskConfig] = {}
    for text in args.task:
        name, separator, rest = text.partition("=")
        kind, colon, path = rest.partition(":")
        if not name or not separator or not colon or not path:
            raise ConfigError(f"--task {text}: expected NAME=KIND:PATH, such as mmlu=multiple_choice:/data/mmlu.jsonl")
        tasks[name] = TaskConfig(path=path, kind=kind)
        if problems := find_task_problems(tasks[name]):
            raise ConfigError(f"--task {text}: {'; '.join(problems)}")
    settings = EvaluationSettings(
        sets=sets,
        tasks=tasks,
        tokenizer=args.tokenizer,
        tokenizer_type=args.tokenizer_type,
        max_rows=args.max_rows,
        seq_length=args.seq_length,
        document_attention=args.document_attention,
        device=args.device or "",
        dtype=args.dtype,
        batch_size=args.batch_size,
        tensor_parallel=args.tensor_parallel or 0,
        model=None,
        context={},
    )
    if config is not None:
        return read_settings(config, settings)
    return dataclasses.replace(settings, device=settings.device or "CPU")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="tools/evaluate.py",
        description="Evaluate held-out losses and tasks of a run, a checkpoint or a Hugging Face folder.",
        epilog="Example: python tools/evaluate.py output/my_run --config my.yaml --watch",
    )
    add = parser.add_argument
    add(
        "model",
        type=Path,
        nargs="+",
        metavar="MODEL",
        help="run, checkpoint (iteration_*) or Hugging Face folder; without shared storage, the folders of all nodes",
    )
    add_evaluation_options(parser)
    add("--json", type=Path, metavar="FILE", help="also write the results to this file")
    add(
        "--watch",
        action="store_true",
        help="evaluate each new checkpoint of the run MODEL and record the results there",
    )
    add(
        "--poll",
        type=float,
        default=POLL_S,
        metavar="S",
        help="with --watch: seconds between checks for new checkpoints [%(default)s]",
    )
    args = parser.parse_args(argv)
    check_evaluation_options(args)
    if not args.poll > 0:
        raise ConfigError(f"--poll {args.poll:g}: must be above 0")
    if args.watch and args.json:
        raise ConfigError("--json: with --watch the results are in the run's evaluations.jsonl; remove one of the two")
    return args


def add_evaluation_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that say what is evaluated and how."""
    add = parser.add_argument
    add("--config", metavar="YAML", help="configuration with cpt.validation, model and layout, as for training")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key of the configuration")
    add("--validation", action="append", default=[], metavar="NAME=PATH", help="a packed dataset; may be repeated")
    add("--task", action="append", default=[], metavar="NAME=KIND:PATH", help="a task file; may be repeated")
    add("--tokenizer", type=Path, metavar="PATH", help="tokenizer of the tasks [from the configuration or MODEL]")
    add("--tokenizer-type", type=parse_tokenizer_type, default=HUGGING_FACE, metavar="TYPE", help=TYPE_HELP)
    add("--max-rows", type=int, metavar="N", help="rows per validation set, spread over it [all]")
    add("--seq-length", type=int, metavar="N", help="tokens per row [the configuration's, or those of the data]")
    add("--batch-size", type=int, default=1, metavar="N", help="rows per device and forward pass [%(default)s]")
    add("--tensor-parallel", type=int, metavar="N", help="devices that share the weights [the configuration's, or 1]")
    add("--document-attention", choices=DOCUMENT_ATTENTION, help="[the configuration's, or that of the run]")
    add("--device", choices=("CPU", "Ascend"), help="[the configuration's, or CPU]")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the computation for a Hugging Face folder without --config [%(default)s]",
    )
    add("--no-verify", action="store_true", help="do not verify the checksums of the checkpoint and the data")


def check_evaluation_options(args: argparse.Namespace) -> None:
    """Raise ConfigError if a number is not possible."""
    for name in ("max_rows", "seq_length", "batch_size", "tensor_parallel"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
