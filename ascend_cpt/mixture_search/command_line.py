"""The command line of tools/search_mixture.py."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import parse_assignments
from ascend_cpt.config.yaml_file import parse_yaml_value
from ascend_cpt.errors import ConfigError
from ascend_cpt.strict_json import shorten

_COUNTS = (("proxies", 1), ("confirm", 0), ("timeout", 1))


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the command line asks for."""

    config: Path
    proxy: Path | None
    overrides: dict[str, Any]
    folder: Path
    num_proxies: int
    seeds: tuple[int, ...]
    temperature: float
    design_seed: int
    blends: tuple[dict[str, float], ...]
    """Further blends to measure."""
    general: tuple[str, ...]
    max_forgetting: float | None
    num_confirmed: int
    microanneal: bool
    upweight: float
    workers: int | None
    launch: str | None
    timeout_s: float
    retry_failed: bool


def parse_arguments(description: str, argv: list[str] | None = None) -> Order:
    """Return the parsed command line.

    Raises:
        ConfigError: an argument is malformed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", type=Path, metavar="YAML", help="configuration with cpt.sources and cpt.validation")
    add("folder", type=Path, metavar="FOLDER", help="folder for the results; the same command continues the search")
    add("--proxy", type=Path, metavar="YAML", help="changes for the proxies: model, init_from, train_tokens, schedule")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key for the proxies")
    add("--proxies", type=int, default=32, metavar="N", help="number of sampled blends [%(default)s]")
    add("--seeds", type=int, nargs="+", default=[1], metavar="N", help="seeds of every blend [1]")
    add(
        "--temperature",
        type=float,
        default=0.5,
        metavar="T",
        help="exponent of the token shares around which blends are sampled: 1 keeps them, 0 is uniform [%(default)s]",
    )
    add("--design-seed", type=int, default=0, metavar="N", help="seed of the sampled blends [%(default)s]")
    add("--blend", action="append", default=[], metavar="{NAME: WEIGHT, ...}", help="also measure this blend")
    add(
        "--general",
        action="append",
        default=[],
        metavar="NAME",
        help="set or task that measures forgetting [those with an alarm, else one named general]",
    )
    add("--max-forgetting", type=float, metavar="NATS", help="largest mean increase of the losses of --general")
    add("--confirm", type=int, default=0, metavar="N", help="train N blends of the frontier and compare [%(default)s]")
    add("--microanneal", action="store_true", help="instead of a search: upweight each source over a linear decay")
    add("--upweight", type=float, default=0.5, metavar="S", help="token share replaced by each source [%(default)s]")
    add("--workers", type=int, metavar="N", help="processes per proxy [from the layout]")
    add("--launch", metavar="CMD", help="command that starts a job on several nodes; {} is the training command")
    add("--timeout", type=float, default=1800, metavar="S", help="time limit without a new step [%(default)s]")
    add("--retry-failed", action="store_true", help="train proxies that failed earlier again")
    args = parser.parse_args(argv)
    _check(args)
    return Order(
        config=args.config,
        proxy=args.proxy,
        overrides=parse_assignments(args.set),
        folder=args.folder,
        num_proxies=args.proxies,
        seeds=tuple(args.seeds),
        temperature=args.temperature,
        design_seed=args.design_seed,
        blends=tuple(_parse_blend(text) for text in args.blend),
        general=tuple(args.general),
        max_forgetting=args.max_forgetting,
        num_confirmed=args.confirm,
        microanneal=args.microanneal,
        upweight=args.upweight,
        workers=args.workers,
        launch=args.launch,
        timeout_s=args.timeout,
        retry_failed=args.retry_failed,
    )


def _check(args: argparse.Namespace) -> None:
    for name, minimum in (*_COUNTS, ("workers", 1)):
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise ConfigError(f"--{name} {value:g}: must be at least {minimum}")
    if len(set(args.seeds)) < len(args.seeds):
        raise ConfigError("--seeds: contains a seed twice; remove one")
    if not 0 <= args.temperature <= 10:
        raise ConfigError(f"--temperature {args.temperature:g}: must be between 0 and 10")
    if not 0 < args.upweight < 1:
        raise ConfigError(f"--upweight {args.upweight:g}: must be between 0 and 1")
    if args.microanneal and (args.confirm or args.blend or args.max_forgetting is not None):
        raise ConfigError("--microanneal: cannot be combined with --blend, --confirm or --max-forgetting; remove them")


def _parse_blend(text: str) -> dict[str, float]:
    """Return the weights in a blend as it is written in a configuration, with or without braces.

    Raises:
        ConfigError: the text is not a mapping of names to positive numbers.
    """
    inner = text.strip().removeprefix("blend:").strip()
    try:
        values = parse_yaml_value(inner if inner.startswith("{") else f"{{{inner}}}")
    except ValueError:
        values = None
    is_number = isinstance(values, dict) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < float("inf")
        for one in values.values()
    )
    if not is_number or not sum(values.values()) > 0:
        raise ConfigError(f"--blend {shorten(text)}: expected weights of sources, such as {{web: 0.7, code: 0.3}}")
    return {str(name): float(weight) for name, weight in values.items()}
