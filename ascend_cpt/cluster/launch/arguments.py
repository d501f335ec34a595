"""Parses and checks the launcher's arguments and environment variables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ascend_cpt.cluster.job.job_nodes import FITTING_NAME
from ascend_cpt.cluster.launch.job_secret import SECRET_USAGE, SecretSource, split_secret_options
from ascend_cpt.cluster.launch.options import MIN_NODES, SPARE_NODES, check_lost_nodes, describe_options, split_options
from ascend_cpt.cluster.launch.schedulers import add_scheduler_values
from ascend_cpt.cluster.messages.ports import LAUNCHER_PORT_OFFSET, LAUNCHER_PORT_VARIABLE
from ascend_cpt.errors import ClusterError

REPO_ROOT = Path(__file__).resolve().parents[3]

DEFAULT_NUM_LOCAL_WORKERS = 8
DEFAULT_MASTER_ADDR = "127.0.0.1"
DEFAULT_MASTER_PORT = 8118
DEFAULT_LOG_DIR = "output/msrun_log"
# As in MindFormers' scripts/msrun_launcher.sh (msrun's own default is 600): the job ends if a node has not
# connected by then.
DEFAULT_CLUSTER_TIMEOUT_S = 7200

USAGE = f"""\
usage: bash scripts/msrun_launcher.sh CMD [WORKER_NUM]
       bash scripts/msrun_launcher.sh CMD WORKER_NUM LOCAL_WORKER MASTER_ADDR MASTER_PORT NODE_RANK
       ... the same six arguments, then LOG_DIR JOIN CLUSTER_TIME_OUT
       bash scripts/msrun_launcher.sh CMD WORKER_NUM MASTER_PORT LOG_DIR JOIN CLUSTER_TIME_OUT        (one node)

  CMD               one quoted string: a Python script and its arguments, e.g. "run_cpt.py --config x.yaml"
  WORKER_NUM        processes in the whole job; LOCAL_WORKER of them on each node
  NODE_RANK         0 on the node of MASTER_ADDR, 1, 2, ... on the others; the highest ones are the spare nodes
  LOG_DIR           default {DEFAULT_LOG_DIR}; with several nodes each writes to its subfolder node_<NODE_RANK>
  JOIN              True or False, accepted for compatibility with msrun; the launcher always waits for the job
  CLUSTER_TIME_OUT  seconds within which all nodes must connect, default {DEFAULT_CLUSTER_TIMEOUT_S}

Options, at any position:
{describe_options()}
{SECRET_USAGE}

Several nodes need the same secret on every node: by default the file ~/.config/ascend_cpt/secret.

Defaults come from the environment: WORLD_SIZE (workers), NNODES, NPUS_PER_NODE or GPUS_PER_NODE, MASTER_ADDR,
MASTER_PORT, NODE_RANK; or from the variables of Slurm (srun), Volcano, MindX, ModelArts or PAI.
DRY_RUN=1 prints the msrun command, or why the launch would be refused, without running it."""


class UsageError(ClusterError):
    """Positional arguments that do not match the usage text, which is printed with this error."""


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Settings for a launch on one node: script, number of processes, master address, log folder."""

    script: Path
    script_arguments: tuple[str, ...]
    num_workers: int
    num_local_workers: int
    master_addr: str
    master_port: int
    node_rank: int
    place: int
    """The node rank given to msrun. A spare in the place of a lost node has the place of that node."""
    log_dir: Path
    cluster_timeout_s: int
    launcher_port: int
    max_restarts: int
    restart_delay_s: int
    rejoin_timeout_s: int
    spare_nodes: int
    min_nodes: int
    lost_node_timeout_s: int
    stop_grace_s: int
    hang_timeout_s: int
    secret_source: SecretSource

    @property
    def num_nodes(self) -> int:
        return self.num_workers // self.num_local_workers

    @property
    def first_rank(self) -> int:
        """Global rank of this node's first worker."""
        return self.place * self.num_local_workers

    @property
    def is_spare(self) -> bool:
        """Whether this node only waits, as long as no other is lost."""
        return self.node_rank >= self.num_nodes

    @property
    def num_launchers(self) -> int:
        """Nodes of the job and spare nodes."""
        return self.num_nodes + self.spare_nodes

    @property
    def can_lose_nodes(self) -> bool:
        """Whether the job may continue without some of its nodes."""
        return self.spare_nodes > 0 or 0 < self.min_nodes < self.num_nodes

    def worker_log(self, rank: int) -> Path:
        """Return the file to which msrun writes the output of the worker with global rank `rank`."""
        return self.log_dir / f"worker_{rank}.log"

    @property
    def scheduler_log(self) -> Path:
        return self.log_dir / "scheduler.log"

    @property
    def msrun_log(self) -> Path:
        return self.log_dir / "msrun.log"

    @property
    def progress_file(self) -> Path:
        """File in which a worker on this node records the last finished step."""
        return self.log_dir / "last_step"

    @property
    def fitting_file(self) -> Path:
        """File in which rank 0 records the numbers of workers that fit the run."""
        return self.log_dir / FITTING_NAME

    @property
    def stop_file(self) -> Path:
        """File that a worker on this node creates when the run stops deliberately."""
        return self.log_dir / "stopped_itself"

    @property
    def continue_file(self) -> Path:
        """File that this node's workers create if the job is to be restarted after they have ended."""
        return self.log_dir / "continues"


def parse_launch(arguments: Sequence[str], environ: Mapping[str, str], folder: Path) -> LaunchSettings:
    """Return the settings for `arguments` (CMD first, options anywhere). Relative paths are resolved against `folder`.

    Arguments override `environ`. Raises UsageError when the arguments do not match the usage, and ClusterError for an
    invalid value, workers that cannot be divided evenly among the nodes, or a missing script.
    """
    arguments, secret_source = split_secret_options(arguments, environ)
    arguments, options = split_options(arguments, environ)
    environ = add_scheduler_values(environ)
    values = _name_arguments(arguments)
    script, script_arguments = _split_command(arguments[0], folder)
    _check_resume(script_arguments, options)
    num_workers, num_local_workers = _count_workers(values, environ, options[SPARE_NODES])
    if num_workers % num_local_workers:
        raise ClusterError(
            f"WORKER_NUM {num_workers} is not a multiple of LOCAL_WORKER {num_local_workers}; change one of them"
        )
    num_nodes = num_workers // num_local_workers
    check_lost_nodes(options, num_nodes)
    node_rank = _node_rank(values, environ, num_workers, num_nodes, options[SPARE_NODES])
    log_dir = folder / values.get("LOG_DIR", DEFAULT_LOG_DIR)
    master_port = _number("MASTER_PORT", values, environ, default=DEFAULT_MASTER_PORT, minimum=1024, maximum=65535)
    launcher_port = _number(
        LAUNCHER_PORT_VARIABLE, {}, environ, default=master_port + LAUNCHER_PORT_OFFSET, minimum=1024, maximum=65535
    )
    if num_nodes > 1 and launcher_port > 65535:
        raise ClusterError(f"MASTER_PORT {master_port} is too high: several nodes need the next two ports as well")
    settings = LaunchSettings(
        script=script,
        script_arguments=script_arguments,
        num_workers=num_workers,
        num_local_workers=num_local_workers,
        master_addr=_master_addr(values, environ, num_nodes),
        master_port=master_port,
        node_rank=node_rank,
        place=node_rank,
        log_dir=log_dir,
        cluster_timeout_s=_number("CLUSTER_TIME_OUT", values, {}, default=DEFAULT_CLUSTER_TIMEOUT_S, minimum=1),
        launcher_port=launcher_port,
        max_restarts=options["--max-restarts"],
        restart_delay_s=options["--restart-delay"],
        rejoin_timeout_s=options["--rejoin-timeout"],
        spare_nodes=options[SPARE_NODES],
        min_nodes=options[MIN_NODES],
        lost_node_timeout_s=options["--lost-node-timeout"],
        stop_grace_s=options["--stop-grace"],
        hang_timeout_s=options["--hang-timeout"],
        secret_source=secret_source,
    )
    return replace(settings, log_dir=log_dir / f"node_{settings.node_rank}") if num_nodes > 1 else settings


def _name_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """Return {name: text} of the positional arguments after CMD. JOIN in fifth place identifies the one-node form."""
    several_nodes = ("WORKER_NUM", "LOCAL_WORKER", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    tail = ("LOG_DIR", "JOIN", "CLUSTER_TIME_OUT")
    forms: dict[int, tuple[str, ...]] = {1: (), 2: ("WORKER_NUM",), 6: several_nodes, 9: (*several_nodes, *tail)}
    if len(arguments) == 6 and _is_join(arguments[4]):
        forms[6] = ("WORKER_NUM", "MASTER_PORT", *tail)
    names = forms.get(len(arguments))
    if names is None:
        raise UsageError(_explain_mismatch(arguments))
    values = dict(zip(names, arguments[1:], strict=True))
    for name, text in values.items():
        if not text:
            raise UsageError(f"{name} is empty; check that its variable is set")
    if "JOIN" in values and not _is_join(values["JOIN"]):
        raise UsageError(f"JOIN must be True or False, not {values['JOIN']!r}")
    if "MASTER_PORT" in values and "LOCAL_WORKER" not in values:
        # The one-node form is complete, so the environment is not used.
        values |= {"LOCAL_WORKER": values["WORKER_NUM"], "MASTER_ADDR": DEFAULT_MASTER_ADDR, "NODE_RANK": "0"}
    return values


def _explain_mismatch(arguments: Sequence[str]) -> str:
    if not arguments:
        return "CMD is missing"
    if len(arguments) == 5 and arguments[4].isdecimal() and int(arguments[4]) >= 1024:
        return "NODE_RANK is missing after MASTER_PORT; check that its variable is set"
    return f"{len(arguments)} arguments do not match the usage; quote CMD as one string and check all variables"


def _is_join(text: str) -> bool:
    return text.lower() in {"true", "false"}


def _split_command(command: str, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return CMD's script, searched for in `folder` and then in the repository, and its arguments."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ClusterError(f"CMD cannot be split into words ({error}): {command}") from error
    if words and re.fullmatch(r"python[0-9.]*", Path(words[0]).name):
        words = words[1:]
    if not words or words[0].startswith("-"):
        raise ClusterError(f"CMD must name a Python script and its arguments, not {command!r}")
    candidates = [folder / words[0], REPO_ROOT / words[0]]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.absolute(), tuple(words[1:])
    hint = ""
    if re.fullmatch(r"run_\w+\.py", Path(words[0]).name):
        # MindFormers' run_mindformer.py and its models' scripts, such as run_llama3.py.
        hint = "; use run_cpt.py instead, which takes MindFormers' flags"
    raise ClusterError(f"script not found: {words[0]} (looked in {folder} and {REPO_ROOT}){hint}")


def _check_resume(script_arguments: Sequence[str], options: Mapping[str, int]) -> None:
    """Raise ClusterError when restarts are enabled for a command that would not resume from its newest checkpoint."""
    option = next((name for name in ("--max-restarts", SPARE_NODES, MIN_NODES) if options[name]), None)
    values = []
    for position, word in enumerate(script_arguments):
        name, equals, value = word.partition("=")
        if name == "--resume_training":
            values.append(value if equals else " ".join(script_arguments[position + 1 : position + 2]))
    if option and values and values[-1].lower() not in {"auto", "true"}:
        raise ClusterError(
            f"{option} resumes from the newest checkpoint, but the command has --resume_training {values[-1]}; "
            "drop one of the two"
        )


def _count_workers(values: Mapping[str, str], environ: Mapping[str, str], num_spares: int) -> tuple[int, int]:
    """Return the number of workers in the job and on each node. NNODES counts the spare nodes as well."""
    per_node_name = "NPUS_PER_NODE" if environ.get("NPUS_PER_NODE") else "GPUS_PER_NODE"
    num_nodes = _number("NNODES", {}, environ, default=0)
    if num_nodes and num_nodes <= num_spares:
        raise ClusterError(
            f"{SPARE_NODES} {num_spares} leaves none of NNODES={num_nodes} to train on; NNODES includes the spare nodes"
        )
    num_nodes = num_nodes and num_nodes - num_spares
    per_node = _number(per_node_name, {}, environ, default=0)
    if "WORKER_NUM" in values:
        num_workers = _number("WORKER_NUM", values, {}, default=0)
    else:
        product = (num_nodes or 1) * (per_node or DEFAULT_NUM_LOCAL_WORKERS)
        num_workers = _number("WORLD_SIZE", {}, environ, default=product)
        if num_nodes and per_node and num_workers != product:
            raise ClusterError(
                f"WORLD_SIZE={num_workers} is not NNODES x {per_node_name} = {product}; "
                "it is the number of workers, not of nodes"
            )
    if "LOCAL_WORKER" in values:
        num_local_workers = _number("LOCAL_WORKER", values, {}, default=0)
    elif num_nodes:
        if num_workers % num_nodes:
            raise ClusterError(f"{num_workers} workers cannot be divided evenly among NNODES={num_nodes}")
        num_local_workers = num_workers // num_nodes
        if per_node and num_local_workers > per_node:
            raise ClusterError(
                f"{num_workers} workers on NNODES={num_nodes} are {num_local_workers} per node, more than "
                f"{per_node_name}={per_node}"
            )
    else:
        num_local_workers = min(num_workers, per_node) if per_node else num_workers
    if num_local_workers > num_workers:
        raise ClusterError(f"LOCAL_WORKER {num_local_workers} is more than WORKER_NUM {num_workers}")
    return num_workers, num_local_workers


def _node_rank(
    values: Mapping[str, str], environ: Mapping[str, str], num_workers: int, num_nodes: int, num_spares: int
) -> int:
    if num_nodes > 1 and not (values.get("NODE_RANK") or environ.get("NODE_RANK")):
        raise ClusterError(
            f"NODE_RANK is missing: the job has {num_nodes} nodes; number them from 0 to {num_nodes + num_spares - 1}"
        )
    node_rank = _number("NODE_RANK", values, environ, default=0, minimum=0)
    if node_rank >= num_nodes + num_spares:
        spares = f" and {num_spares} spare" if num_spares else ""
        raise ClusterError(
            f"NODE_RANK {node_rank} is out of range: nodes are numbered from 0, and the job has {num_nodes} "
            f"({num_workers} workers, {num_workers // num_nodes} on each){spares}"
        )
    return node_rank


def _master_addr(values: Mapping[str, str], environ: Mapping[str, str], num_nodes: int) -> str:
    address = values.get("MASTER_ADDR") or environ.get("MASTER_ADDR")
    if address is None and num_nodes > 1:
        raise ClusterError(f"MASTER_ADDR is missing: the job has {num_nodes} nodes; give the address of node 0")
    return address or DEFAULT_MASTER_ADDR


def _number(
    name: str,
    values: Mapping[str, str],
    environ: Mapping[str, str],
    *,
    default: int,
    minimum: int = 1,
    maximum: int | None = None,
) -> int:
    """Return the whole number called `name`, from the arguments, else the environment, else `default`."""
    text = values.get(name) or environ.get(name)
    if not text:
        return default
    limits = f"from {minimum} to {maximum}" if maximum else f"of at least {minimum}"
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < minimum or (maximum and int(text) > maximum):
        raise ClusterError(f"{name} must be a whole number {limits}, not {text!r}")
    return int(text)
