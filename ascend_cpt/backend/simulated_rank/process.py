"""Compiles one rank of a cluster on the simulated device. Run this module with `python -m` and the job's JSON file.

The parent (`ascend_cpt.simulate.run_rank`) sets the environment. MindFormers' Trainer runs as in training, with its
data loader and callbacks replaced. The outcome is written to the job's result file; the process may abort at exit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from ascend_cpt.backend.simulated_rank.messages import Job, ParameterOnRank, RankOutcome
from ascend_cpt.files import write_text
from ascend_cpt.model.lora import read_settings
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.processes import die_with_parent

LOADER_NAME = "SimulatedRows"
CALLBACK_NAME = "SimulationCallback"
NUM_LAYOUT_ENTRIES = 8
KILOBYTE = 1024


def main(job_path: Path) -> int:
    """Compile and run a job's steps."""
    job = Job(**json.loads(job_path.read_text(encoding="utf-8")))
    die_with_parent(job.parent_pid)
    try:
        _run(job)
    except Exception as error:
        # The parent reports MindSpore's error to the user; the traceback is in the log.
        traceback.print_exc()
        outcome = RankOutcome(error=f"{type(error).__name__}: {error}")
        write_text(Path(job.result_path), json.dumps(dataclasses.asdict(outcome)))
        return 1
    return 0


def _run(job: Job) -> None:
    if not job.uses_cann:
        # MindSpore checks for the HCCL wheel, which is part of CANN.
        from mindspore.communication._comm_helper import GlobalComm

        GlobalComm.CHECK_ENVS = False
    from mindformers import build_context
    from mindformers.tools.register import MindFormerConfig
    from mindformers.trainer import Trainer
    from mindformers.utils.file_utils import set_output_path

    # These modules register themselves with MindFormers on import.
    import ascend_cpt.backend.models
    import ascend_cpt.backend.training.learning_rate  # noqa: F401

    register_loader_and_callback(job)
    always_run_optimizer()
    skip_weight_initialization()
    if job.loss_chunks > 1:
        from ascend_cpt.backend.models.chunked_loss import chunk_losses

        chunk_losses(job.loss_chunks)
    set_output_path(os.getcwd())
    config = MindFormerConfig(job.yaml_path)
    if job.lora:
        from ascend_cpt.backend.models.lora.network import train_adapters

        train_adapters(read_sizes(config.model.model_config), read_settings(job.lora), seed=0)
    elif job.frozen:
        from ascend_cpt.backend.models.freeze import freeze_weights

        freeze_weights(job.frozen)
    build_context(config)
    write_phase("building the network")
    Trainer(config).train()


def write_phase(phase: str) -> None:
    """Write the current phase for the parent to print."""
    Path("phase").write_text(phase, encoding="utf-8")


def always_run_optimizer() -> None:
    """Make the step run its optimizer unconditionally.

    MindFormers runs it `if not overflow`. The simulated device computes no flag, so the branch would not be taken and
    the optimizer states would not be allocated. Without a pipeline or a cluster, the branch cannot even be compiled.
    """
    from mindspore.nn.wrap.loss_scale import TrainOneStepWithLossScaleCell

    TrainOneStepWithLossScaleCell.process_loss_scale = _return_no_overflow


def skip_weight_initialization() -> None:
    """Skip random initialization, whose values are unused but cost minutes and memory for a large model."""
    from mindspore.common.initializer import Initializer

    Initializer.__call__ = _initialize_nothing


def _initialize_nothing(self: Any, array: Any) -> None:
    return None


def _return_no_overflow(self: Any, overflow: Any) -> bool:
    return False


def register_loader_and_callback(job: Job) -> None:
    """Register the data loader and callback named in the job's YAML file with MindFormers."""
    import mindspore.dataset as ds
    import numpy as np
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
    from mindspore import Callback, runtime

    from ascend_cpt.data.packed.network_inputs import RowFormat

    class SimulatedRows:
        """Rows of zeros in the run's format. The simulated device does not read them."""

        def __new__(
            cls,
            num_rows: int,
            row_format: dict[str, Any],
            column_names: list[str],
            num_shards: int | None = None,
            **_: Any,
        ) -> ds.GeneratorDataset:
            resolved = RowFormat.from_record(row_format)
            row = np.zeros(resolved.seq_length + 1, np.int32)
            rows = [resolved.make(row, place) for place in range(num_rows // (num_shards or 1))]
            return ds.GeneratorDataset(rows, column_names=column_names, shuffle=False, num_parallel_workers=1)

    class SimulationCallback(Callback):
        """Writes the job's outcome after its last step."""

        def on_train_begin(self, run_context: Any) -> None:
            write_phase("compiling")
            self.started = (time.monotonic(), time.process_time())
            self.compiled = self.started

        def on_train_step_end(self, run_context: Any) -> None:
            params = run_context.original_args()
            if params.cur_step_num == 1:
                self.compiled = (time.monotonic(), time.process_time())
            write_phase(f"step {params.cur_step_num}")
            if params.cur_step_num < job.num_steps:
                return
            outcome = RankOutcome(
                parameters=list_parameters(params.train_network),
                num_steps=job.num_steps,
                peak_bytes=int(runtime.max_memory_allocated()),
                host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTE,
                compile_s=self.compiled[0] - self.started[0],
                compile_cpu_s=self.compiled[1] - self.started[1],
            )
            write_text(Path(job.result_path), json.dumps(dataclasses.asdict(outcome)))
            run_context.request_stop()

    register = MindFormerRegister.register_cls
    register(SimulatedRows, MindFormerModuleType.DATASET_LOADER)
    register(SimulationCallback, MindFormerModuleType.CALLBACK)


def list_parameters(network: Any) -> list[ParameterOnRank]:
    """Return the parameters of this rank's stage, as sharded by MindSpore."""
    layouts = network.parameter_layout_dict
    found = []
    for parameter in network.get_parameters():
        layout = layouts.get(parameter.name)
        if layout is None and layouts:
            continue  # belongs to another stage
        shape = [int(size) for size in parameter.shape]
        if layout is None:  # one device: nothing is sharded
            found.append(ParameterOnRank(name=parameter.name, shape=shape, tensor_shape=shape, stored_shape=shape))
            continue
        assert len(layout) >= NUM_LAYOUT_ENTRIES
        found.append(
            ParameterOnRank(
                name=parameter.name,
                shape=[int(size) for size in layout[6]],
                tensor_shape=[int(size) for size in layout[2]],
                stored_shape=shape,
            )
        )
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
