"""The launcher's named options, which may stand anywhere before, between or after the positional arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ascend_cpt.errors import ClusterError


@dataclass(frozen=True, kw_only=True)
class Option:
    """A whole number given as `--name N`, by `variable` of the environment, or else `default`."""

    name: str
    variable: str
    default: int
    help: str


OPTIONS = (
    Option(
        name="--max-restarts",
        variable="ASCEND_CPT_MAX_RESTARTS",
        default=0,
        help="after a crash start the job again, at most N times; it goes on from its newest checkpoint",
    ),
    Option(
        name="--restart-delay",
        variable="ASCEND_CPT_RESTART_DELAY_S",
        default=5,
        help="seconds before the first restart; doubled while no step is gained",
    ),
    Option(
        name="--rejoin-timeout",
        variable="ASCEND_CPT_REJOIN_TIMEOUT_S",
        default=600,
        help="seconds in which a lost node must be back for a restart",
    ),
    Option(
        name="--stop-grace",
        variable="ASCEND_CPT_STOP_GRACE_S",
        default=120,
        help="seconds that workers have to save after SIGTERM or SIGINT",
    ),
)


def describe_options() -> str:
    """Return the lines of the usage."""
    return "\n".join(
        f"  {f'{option.name} N':20} {option.help} (default {option.default}; {option.variable})" for option in OPTIONS
    )


def split_options(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[list[str], dict[str, int]]:
    """Return the positional arguments, and the value of every option by its name.

    Raises ClusterError for a value that is not a whole number. Words that are no option of ours stay positional.
    """
    known = {option.name: option for option in OPTIONS}
    positional: list[str] = []
    texts: dict[str, tuple[str, str]] = {}
    words = iter(arguments)
    for word in words:
        name, equals, text = word.partition("=")
        if name in known:
            texts[name] = (name, text if equals else next(words, ""))
        else:
            positional.append(word)
    values = {}
    for option in OPTIONS:
        given, text = texts.get(option.name) or (option.variable, environ.get(option.variable) or str(option.default))
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise ClusterError(f"{given} must be a whole number of at least 0, not {text!r}")
        values[option.name] = int(text)
    return positional, values
