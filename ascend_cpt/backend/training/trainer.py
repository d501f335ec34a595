"""Trains a resolved run with MindFormers' Trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ascend_cpt.checkpoint.full_disk import report_full_disk
from ascend_cpt.cluster.job.launcher_files import report_own_stop
from ascend_cpt.cluster.job.webhook import NO_WEBHOOK, Webhook
from ascend_cpt.config.parallel_layout import ParallelLayout, uses_cpu
from ascend_cpt.errors import RunStopped
from ascend_cpt.model.frozen import list_first_rows
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.monitor.goodput.nodes import NodesRecord
from ascend_cpt.monitor.goodput.timeline import NO_TIMELINE, Timeline
from ascend_cpt.run.launch.notices import NoticeSink
from ascend_cpt.run.launch.start_clock import StartClock
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.tasks.load import Task


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process's part in the run. With `is_first_on_node`, it does the work that is done once per node."""

    resolved_yaml: Path
    initial_step: int
    stop_at_step: int | None
    console: TextIO
    is_first_on_node: bool
    num_local_ranks: int = 1
    """Number of processes on this node."""
    tasks: tuple[Task, ...] = ()
    compile_cache: Path | None = None
    """Where this run's compiled training step is loaded from or saved to; None without a cache."""
    clock: StartClock | None = None
    """Measures the parts of the time to the first step."""
    timeline: Timeline = NO_TIMELINE
    """Records how the time of the run is spent."""
    webhook: Webhook = NO_WEBHOOK
    """Receives notices of the run; only on the rank that reports it."""
    nodes: NodesRecord | None = None
    """The nodes of this launch, in a job that can continue without lost nodes."""


def train(run: ResolvedRun, launch: Launch) -> None:
    """Train `run` from its resolved YAML file to the last step (or `stop_at_step`). Every rank calls this.

    Raises:
        DataError: when a dataset does not match its manifest.
        CheckpointError: when the disk is full.
        RunStopped: when a guard or an alarm stops the run.
        StoppedBySignal: after saving, when a stop signal was received.
    """
    os.environ.setdefault("LOG_MF_PATH", str(run.run_dir / "logs" / "mindformers"))
    cpu = uses_cpu(run.config)
    if cpu:
        from ascend_cpt.backend.cpu import install_cpu_kernels

        install_cpu_kernels()
        from ascend_cpt.backend.checkpointing.writer import load_whole_checkpoints

        load_whole_checkpoints()
    else:
        from ascend_cpt.backend.training.kernel_order import keep_kernel_order

        keep_kernel_order(run.config.mindformers.get("context") or {})
    from mindformers import build_context
    from mindformers.tools.register import MindFormerConfig
    from mindformers.trainer import Trainer
    from mindformers.utils.file_utils import set_output_path

    # These modules register themselves with MindFormers on import.
    import ascend_cpt.backend.models
    import ascend_cpt.backend.training.learning_rate  # noqa: F401
    from ascend_cpt.backend.training import stop_signals
    from ascend_cpt.backend.training.data_loader import reporting_data_errors

    # Building the context creates folders in MindFormers' output path, which defaults to the current folder.
    set_output_path(str(run.run_dir.absolute()))
    mindformers_config = MindFormerConfig(str(launch.resolved_yaml))
    build_context(mindformers_config)
    if launch.clock is not None:
        launch.clock.end("import")
    _prepare_loading(run, on_cpu=cpu)
    if launch.compile_cache is not None:
        from ascend_cpt.backend.collectives import get_rank_and_size
        from ascend_cpt.backend.compile_cache import cache_training_graph

        cache_training_graph(launch.compile_cache, get_rank_and_size(run.layout.world_size > 1)[0])
    callbacks = _build_callbacks(run, launch)
    controller = callbacks[-1]
    stop_signals.install(launch.console)
    try:
        controller.restore_alarm()
        with report_full_disk(run.run_dir, "training"), reporting_data_errors():
            Trainer(mindformers_config, callbacks=callbacks).train()
        controller.finish_saving()
        controller.raise_ending()
    except RunStopped:
        report_own_stop()
        raise


def _prepare_loading(run: ResolvedRun, *, on_cpu: bool) -> None:
    """Patch how MindFormers builds the network (adapters, frozen weights, chunked loss) and loads checkpoints."""
    from ascend_cpt.backend.checkpointing.complete_load import require_optimizer_state
    from ascend_cpt.backend.checkpointing.header_metadata import use_checked_shard_maps, use_headers
    from ascend_cpt.backend.checkpointing.host_slices import slice_on_host

    if not on_cpu and not run.config.cpt.storage.shared:
        from ascend_cpt.backend.checkpointing.node_local import use_own_shards
        from ascend_cpt.backend.checkpointing.writer import PREFIX
        from ascend_cpt.backend.collectives import get_rank_and_size

        use_own_shards(PREFIX, *get_rank_and_size(run.layout.world_size > 1))
    sizes, trainable = read_sizes(run.model), run.config.cpt.trainable
    if run.lora is not None:
        from ascend_cpt.backend.checkpointing.base_weights import load_base_first
        from ascend_cpt.backend.models.lora.network import train_adapters

        train_adapters(sizes, run.lora, seed=run.seed)
        assert run.base is not None, "adapters have a base"
        load_base_first(run.base.folder)
    elif frozen := run.frozen:
        from ascend_cpt.backend.models.freeze import freeze_weights

        freeze_weights(frozen)
    if run.frozen or run.lora is not None:
        from ascend_cpt.backend.checkpointing.frozen_layouts import add_frozen_layouts, require_frozen_weights

        if not on_cpu and run.layout.world_size > 1:
            add_frozen_layouts()
        require_frozen_weights(on_resume=run.lora is None)
    if run.config.cpt.loss_chunks > 1:
        from ascend_cpt.backend.models.chunked_loss import chunk_losses

        chunk_losses(run.config.cpt.loss_chunks)
    if first_rows := list_first_rows(sizes, trainable):
        from ascend_cpt.backend.models.trained_rows import train_rows

        train_rows(first_rows)
    slice_on_host()
    use_headers()
    use_checked_shard_maps()
    require_optimizer_state()


def _build_callbacks(run: ResolvedRun, launch: Launch) -> list[Any]:
    from ascend_cpt.backend.collectives import get_rank_and_size
    from ascend_cpt.backend.training.build_callbacks import build_callbacks

    rank, _ = get_rank_and_size(run.layout.world_size > 1)
    return build_callbacks(
        run,
        initial_step=launch.initial_step,
        stop_at_step=launch.stop_at_step,
        console=launch.console,
        rank=rank,
        data_rank=get_data_rank(run.layout, rank),
        is_first_on_node=launch.is_first_on_node,
        num_local_ranks=launch.num_local_ranks,
        tasks=launch.tasks,
        clock=launch.clock,
        timeline=launch.timeline,
        extra_sinks=[NoticeSink(launch.webhook, run.run_dir.name)],
        nodes=launch.nodes,
    )


def get_data_rank(layout: ParallelLayout, rank: int) -> int:
    """Return a rank's data-parallel index. Within a pipeline stage, ranks with the same index are adjacent."""
    ranks_per_stage = layout.world_size // layout.pipeline_parallel
    return rank % ranks_per_stage // (ranks_per_stage // layout.data_parallel)
