"""The launcher's integer options, which may stand at any position of its command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ascend_cpt.errors import ClusterError

# Just under HCCL's own limit for a collective (HCCL_EXEC_TIMEOUT, 1836 s), whose error does not name the cause.
DEFAULT_HANG_TIMEOUT_S = 1800
SPARE_NODES, MIN_NODES = "--spare-nodes", "--min-nodes"


@dataclass(frozen=True, kw_only=True)
class Option:
    """An integer option: `--name N`, else the environment variable `variable`, else `default`."""

    name: str
    variable: str
    default: int
    help: str


OPTIONS = (
    Option(
        name="--max-restarts",
        variable="ASCEND_CPT_MAX_RESTARTS",
        default=0,
        help="restart the job after a crash, at most N times; it resumes from its newest checkpoint",
    ),
    Option(
        name="--restart-delay",
        variable="ASCEND_CPT_RESTART_DELAY_S",
        default=5,
        help="seconds before the first restart; doubled after each restart without progress",
    ),
    Option(
        name="--rejoin-timeout",
        variable="ASCEND_CPT_REJOIN_TIMEOUT_S",
        default=600,
        help="seconds to wait for a lost node to rejoin",
    ),
    Option(
        name=SPARE_NODES,
        variable="ASCEND_CPT_SPARE_NODES",
        default=0,
        help="start N more launchers, with the highest node ranks; they wait and take the place of lost nodes",
    ),
    Option(
        name=MIN_NODES,
        variable="ASCEND_CPT_MIN_NODES",
        default=0,
        help="continue without lost nodes if at least N nodes are left, with the same global batch; 0: never",
    ),
    Option(
        name="--lost-node-timeout",
        variable="ASCEND_CPT_LOST_NODE_TIMEOUT_S",
        default=120,
        help="seconds for a lost node to return before the job continues on fewer nodes",
    ),
    Option(
        name="--stop-grace",
        variable="ASCEND_CPT_STOP_GRACE_S",
        default=120,
        help="seconds for workers to save after SIGTERM or SIGINT",
    ),
    Option(
        name="--hang-timeout",
        variable="ASCEND_CPT_HANG_TIMEOUT_S",
        default=DEFAULT_HANG_TIMEOUT_S,
        help="seconds without a finished step after which the job counts as hung and is ended; 0: never",
    ),
)


def describe_options() -> str:
    """Return the options part of the usage text."""
    return "\n".join(
        f"  {f'{option.name} N':22} {option.help} (default {option.default}; {option.variable})" for option in OPTIONS
    )


def split_options(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[list[str], dict[str, int]]:
    """Return the positional arguments and the values of all options by name.

    Raises ClusterError for a value that is not a whole number. Unknown options stay positional.
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


def check_lost_nodes(options: Mapping[str, int], num_nodes: int) -> None:
    """Check the options about lost nodes for a job on `num_nodes` nodes.

    Raises:
        ClusterError: when they do not fit the job.
    """
    if options[SPARE_NODES] and num_nodes < 2:
        raise ClusterError(
            f"{SPARE_NODES} {options[SPARE_NODES]}: the job has one node, node 0, and no spare can take its place; "
            "drop the option"
        )
    if options[MIN_NODES] > num_nodes:
        raise ClusterError(
            f"{MIN_NODES} {options[MIN_NODES]} is more than the {num_nodes} node{'s' if num_nodes > 1 else ''} of the "
            "job; lower it"
        )
