"""One rank of a cluster, compiled in this process on the simulated device: `python -m ...child JOB.json`.

The environment is set by `launch` before the interpreter starts. MindFormers' Trainer runs as in training; only
data and callbacks are ours. What was found is written to the job's result file; the process may abort while it ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from ascend_cpt.backend.simulated_rank.messages import Job, ParameterOnRank, RankOutcome
from ascend_cpt.files import write_text
from ascend_cpt.processes import die_with_parent

LOADER_NAME = "SimulatedRows"
WATCH_NAME = "SimulationWatch"
NUM_LAYOUT_ENTRIES = 8
KILOBYTE = 1024


def main(job_path: Path) -> int:
    """Compile and run the steps of a job."""
    job = Job(**json.loads(job_path.read_text(encoding="utf-8")))
    die_with_parent(job.parent_pid)
    try:
        _run(job)
    except Exception as error:
        # MindSpore's own errors are told to the user by the parent; the traceback is in the log.
        traceback.print_exc()
        outcome = RankOutcome(error=f"{type(error).__name__}: {error}")
        write_text(Path(job.result_path), json.dumps(dataclasses.asdict(outcome)))
        return 1
    return 0


def _run(job: Job) -> None:
    if not job.uses_cann:
        # The wheel of HCCL, which MindSpore asks for, belongs to CANN.
        from mindspore.communication._comm_helper import GlobalComm

        GlobalComm.CHECK_ENVS = False
    from mindformers import build_context
    from mindformers.tools.register import MindFormerConfig
    from mindformers.trainer import Trainer
    from mindformers.utils.file_utils import set_output_path

    import ascend_cpt.backend.models
    import ascend_cpt.backend.training.learning_rate  # noqa: F401

    register_rows_and_watch(job)
    keep_optimizer_in_the_step()
    leave_weights_empty()
    set_output_path(os.getcwd())
    config = MindFormerConfig(job.yaml_path)
    build_context(config)
    report("building the network")
    Trainer(config).train()


def report(phase: str) -> None:
    """Tell the parent what begins now."""
    Path("phase").write_text(phase, encoding="utf-8")


def keep_optimizer_in_the_step() -> None:
    """Make the step always run its optimizer.

    MindFormers runs it `if not overflow`. The simulated device computes no flag, so the branch would not be taken and
    the optimizer's states never be allocated; without a pipeline or a cluster the branch cannot even be built.
    """
    from mindspore.nn.wrap.loss_scale import TrainOneStepWithLossScaleCell

    TrainOneStepWithLossScaleCell.process_loss_scale = _never_overflows


def leave_weights_empty() -> None:
    """Spare the minutes and the memory that random weights of a large model take: nothing looks at them."""
    from mindspore.common.initializer import Initializer

    Initializer.__call__ = _initialize_nothing


def _initialize_nothing(self: Any, array: Any) -> None:
    return None


def _never_overflows(self: Any, overflow: Any) -> bool:
    return False


def register_rows_and_watch(job: Job) -> None:
    """Register the data loader and the callback of the job's YAML with MindFormers."""
    import mindspore.dataset as ds
    import numpy as np
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
    from mindspore import Callback, runtime

    from ascend_cpt.data.packed.network_inputs import RowFormat

    class SimulatedRows:
        """Rows without content, as the run would have them; the simulated device does not look at them."""

        def __new__(
            cls,
            num_rows: int,
            row_format: dict[str, Any],
            column_names: list[str],
            num_shards: int | None = None,
            **_: Any,
        ) -> ds.GeneratorDataset:
            settled = RowFormat.from_record(row_format)
            row = np.zeros(settled.seq_length + 1, np.int32)
            rows = [settled.make(row, place) for place in range(num_rows // (num_shards or 1))]
            return ds.GeneratorDataset(rows, column_names=column_names, shuffle=False, num_parallel_workers=1)

    class SimulationWatch(Callback):
        """Writes what the compiled step holds, after the last of the job's steps."""

        def on_train_begin(self, run_context: Any) -> None:
            report("compiling")

        def on_train_step_end(self, run_context: Any) -> None:
            params = run_context.original_args()
            report(f"step {params.cur_step_num}")
            if params.cur_step_num < job.num_steps:
                return
            outcome = RankOutcome(
                parameters=list_parameters(params.train_network),
                num_steps=job.num_steps,
                peak_bytes=int(runtime.max_memory_allocated()),
                host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTE,
            )
            write_text(Path(job.result_path), json.dumps(dataclasses.asdict(outcome)))
            run_context.request_stop()

    register = MindFormerRegister.register_cls
    register(SimulatedRows, MindFormerModuleType.DATASET_LOADER)
    register(SimulationWatch, MindFormerModuleType.CALLBACK)


def list_parameters(network: Any) -> list[ParameterOnRank]:
    """Return the parameters that this rank's stage uses, as MindSpore cut them."""
    layouts = network.parameter_layout_dict
    found = []
    for parameter in network.get_parameters():
        layout = layouts.get(parameter.name)
        if layout is None and layouts:
            continue  # of another stage
        shape = [int(size) for size in parameter.shape]
        if layout is None:  # one device: nothing is cut
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
