"""The command line of tools/merge_weights.py."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.errors import ConfigError
from ascend_cpt.run.evaluation.command_line import add_evaluation_options, check_evaluation_options
from ascend_cpt.strict_json import shorten
from ascend_cpt.weights.dtypes import DTYPES
from ascend_cpt.weights.folder_writer import DEFAULT_SHARD_BYTES
from ascend_cpt.weights.merge.merge import MergeOptions
from ascend_cpt.weights.merge.methods import METHODS
from ascend_cpt.weights.merge.recipe import Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A variable and the values at which the merge is evaluated, in ascending order."""

    variable: str
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the command line asks for."""

    target: Path
    recipe: Recipe
    like: Path
    options: MergeOptions
    sweep: Sweep | None
    args: argparse.Namespace
    """The options of the evaluation, and `general`."""


def parse_arguments(description: str, argv: list[str] | None = None) -> Order:
    """Return the parsed command line.

    Raises:
        ConfigError: an argument is missing, malformed or contradicts another.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("target", type=Path, metavar="TARGET", help="folder to write: the merged model, or the results of --sweep")
    add("--method", required=True, metavar="NAME", help=f"{', '.join(METHODS)} (as in mergekit)")
    add("--base", type=Path, metavar="FOLDER", help="base model of slerp (t = 0) and task_arithmetic")
    add(
        "--model",
        action="append",
        default=[],
        metavar="FOLDER[=WEIGHT]",
        help="model to merge; repeat for each one. WEIGHT is a number [1] or, with --sweep, NAME, 1-NAME or -NAME",
    )
    add("--t", metavar="T", help="slerp: position from 0 (the base) to 1 (the model)")
    add(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="divide by the sum of the weights [linear: yes, task_arithmetic: no]",
    )
    add(
        "--like",
        type=Path,
        metavar="FOLDER",
        help="model whose config.json and tokenizer are used [--base, or the first]",
    )
    add("--out-dtype", choices=sorted(DTYPES), help="data type of the written weights [that of --like]")
    add("--max-shard-gb", type=float, default=DEFAULT_SHARD_BYTES / 1e9, metavar="GB", help="[%(default)g]")
    add("--sweep", metavar="NAME=V1,V2,...", help="evaluate the merge at each value of NAME instead of writing it")
    add(
        "--general",
        action="append",
        default=[],
        metavar="NAME",
        help="with --sweep: set or task that measures forgetting [those with an alarm, else one named general]",
    )
    evaluation = parser.add_argument_group("evaluation", "with --sweep, as in tools/evaluate.py")
    add_evaluation_options(evaluation)
    args = parser.parse_args(argv)
    check_evaluation_options(args)
    recipe = make_recipe(args.method, args.model, base=args.base, t=args.t, normalize=args.normalize)
    like = args.like or recipe.inputs[0]
    if like not in recipe.inputs:
        raise ConfigError(f"--like {like}: not one of the merged models; give one of them")
    if not args.max_shard_gb > 0:
        raise ConfigError(f"--max-shard-gb {args.max_shard_gb:g}: must be above 0")
    options = MergeOptions(dtype=args.out_dtype, max_shard_bytes=int(args.max_shard_gb * 1e9))
    return Order(
        target=args.target,
        recipe=recipe,
        like=like,
        options=options,
        sweep=parse_sweep(args.sweep, recipe) if args.sweep else None,
        args=args,
    )


def parse_sweep(text: str, recipe: Recipe) -> Sweep:
    """Return the sweep in `NAME=V1,V2,...`, after checking that the recipe is possible at each value.

    Raises:
        ConfigError: the text is malformed, or the recipe does not use the variable or is impossible at a value.
    """
    name, separator, rest = text.partition("=")
    try:
        values = [float(word) for word in rest.split(",")]
    except ValueError:
        values = []
    if not separator or not values or not all(map(math.isfinite, values)):
        raise ConfigError(f"--sweep {shorten(text)}: expected NAME=V1,V2,..., such as lambda=0,0.25,0.5,0.75,1")
    if len(set(values)) < len(values):
        raise ConfigError(f"--sweep {shorten(text)}: contains a value twice; remove one")
    if recipe.variables != {name}:
        used = ", ".join(sorted(recipe.variables)) or "none"
        raise ConfigError(
            f"--sweep {shorten(name)}: the coefficients must use this variable and no other (they use: {used}); for "
            f"example --model FOLDER={name or 'lambda'}"
        )
    for value in values:
        recipe.at({name: value})
    return Sweep(variable=name, values=tuple(sorted(values)))
