"""Jobs that can continue without lost nodes (`--spare-nodes`, `--min-nodes`): checks, summary line and record."""

from __future__ import annotations

from pathlib import Path

from ascend_cpt.cluster.job.job_nodes import JobNodes, write_fitting
from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.values import format_number
from ascend_cpt.errors import ConfigError
from ascend_cpt.monitor.goodput.nodes import NodesRecord
from ascend_cpt.run.recipe.smaller_world import keep_global_batch
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun


def check_lost_nodes(run: ResolvedRun, config: RunConfig, nodes: JobNodes, *, writes: bool) -> None:
    """Check that the run can continue without some of its nodes. Every process calls this.

    Args:
        run: The resolved run.
        config: Its configuration as given.
        nodes: The nodes of the job.
        writes: Whether this process also finds out which smaller numbers of workers fit the run, and records them
            for the launcher.

    Raises:
        ConfigError: the storage is not shared, or no smaller number of workers fits the run.
    """
    if not run.config.cpt.storage.shared:
        raise ConfigError(
            f"{config.locate('cpt', 'storage', 'shared')}: cpt.storage.shared is false: --spare-nodes and --min-nodes "
            "need shared storage, because a lost node's part of the checkpoints is lost with it; drop these options"
        )
    if writes:
        write_fitting(Path(nodes.fitting_file), _find_fitting(run, config, nodes))


def _find_fitting(run: ResolvedRun, config: RunConfig, nodes: JobNodes) -> list[int]:
    """Return the numbers of workers that fit the run.

    Raises:
        ConfigError: there is none, although the job may run on fewer nodes.
    """
    fitting, problem = [], ""
    for size in sorted(nodes.smaller, reverse=True):
        try:
            resolve(
                keep_global_batch(config, world_size=size, full_world_size=nodes.num_workers),
                world_size=size,
                sources={dataset.name: dataset.manifest for dataset in run.sources},
                validation={dataset.name: dataset.manifest for dataset in run.validation},
            )
            fitting.append(size)
        except ConfigError as error:
            problem = problem or f"with {format_number(size, 'worker')}: {error}"
    if nodes.smaller and not fitting:
        per_node = nodes.num_workers // nodes.num_nodes
        raise ConfigError(
            f"--min-nodes {min(nodes.smaller) // per_node}: the run does not fit on fewer nodes; {problem}"
        )
    return fitting


def describe_nodes(nodes: JobNodes | None) -> list[str]:
    """Return a summary line with the nodes of the attempt and why they have changed."""
    if nodes is None:
        return []
    reason = f" ({nodes.reason})" if nodes.reason else ""
    count = f"{len(nodes.hosts)} of {nodes.num_nodes}"
    return [f"nodes    attempt {nodes.attempt} on {count}: {_list_hosts(nodes)}{reason}"]


def _list_hosts(nodes: JobNodes) -> str:
    shown = nodes.hosts if len(nodes.hosts) <= 8 else (*nodes.hosts[:4], "...", *nodes.hosts[-2:])
    return ", ".join(shown)


def record_nodes(run: ResolvedRun, nodes: JobNodes | None, step: int) -> NodesRecord | None:
    """Return the record of the attempt's nodes, or None for a job that always runs on the same nodes."""
    if nodes is None:
        return None
    return NodesRecord(
        step=step,
        attempt=nodes.attempt,
        num_nodes=len(nodes.hosts),
        of_nodes=nodes.num_nodes,
        hosts=list(nodes.hosts),
        num_devices=run.layout.world_size,
        data_parallel=run.layout.data_parallel,
        micro_batch_size=run.budget.micro_batch_size,
        num_accumulation_steps=run.budget.num_accumulation_steps,
        reason=nodes.reason,
    )
