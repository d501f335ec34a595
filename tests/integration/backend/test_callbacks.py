"""The callbacks with MindSpore's callback parameters in forms that only occur on a cluster."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from ascend_cpt.backend.checkpointing.node_local import load_own_shards, save_own_shards
from ascend_cpt.backend.checkpointing.writer import CheckpointWriter
from ascend_cpt.backend.training import step_monitor
from ascend_cpt.backend.training.spike_guards import StepGuard
from ascend_cpt.backend.training.step_monitor import Speed, StepMonitor
from ascend_cpt.checkpoint.locate import check_checkpoint
from ascend_cpt.checkpoint.state import RunState
from ascend_cpt.config.monitoring_schema import GuardConfig
from ascend_cpt.errors import CheckpointError, RunStopped
from ascend_cpt.monitor.accounting import PhaseSpan
from ascend_cpt.monitor.guard import StepJudge
from ascend_cpt.monitor.record import Record
from ascend_cpt.monitor.sinks import SinkGroup
from ascend_cpt.recipe.budget import Budget

OUTPUTS = (Tensor(8.0), Tensor(False), Tensor(1.0), Tensor(1e-3), Tensor(0.5))


class Collected:
    def __init__(self) -> None:
        self.records: list[Any] = []

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        pass


class TrainOneStep(nn.Cell):
    """Stub of MindFormers' wrapper: a network and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Dense(2, 2)
        self.optimizer = nn.Momentum(self.network.trainable_params(), 0.1, 0.9)
        self.optimizer.global_step = Parameter(Tensor([3], ms.int32), name="global_step")


@pytest.mark.parametrize(("num_accumulation_steps", "loss"), [(1, 8.0), (4, 2.0)])
def test_loss_is_the_mean_over_micro_batches(num_accumulation_steps: int, loss: float) -> None:
    budget = Budget(
        seq_length=4,
        global_batch_size=num_accumulation_steps,
        micro_batch_size=1,
        num_accumulation_steps=num_accumulation_steps,
        total_steps=10,
    )
    sink = Collected()
    monitor = make_monitor(budget, sink)
    context = make_context(2)
    monitor.on_train_begin(context)
    monitor.on_train_step_begin(context)
    monitor.on_train_step_end(context)
    record = sink.records[0]
    assert (record.step, record.loss, record.tokens) == (7, loss, 7 * 4 * num_accumulation_steps)
    assert record.learning_rate == pytest.approx(1e-3) and record.grad_norm == 0.5
    assert record.mfu == pytest.approx(record.tokens_per_s * 100.0 / 1e12)


def make_monitor(budget: Budget, sink: Collected, guard: StepGuard | None = None) -> StepMonitor:
    judge = StepJudge(GuardConfig())
    return StepMonitor(
        budget=budget,
        initial_step=5,
        speed=Speed(num_devices=1, flops_per_token=100.0, peak_flops=1e12),
        phases=[PhaseSpan(name="train", first_step=0, stop_step=10)],
        guard=guard or StepGuard(judge, run_dir=Path(), list_rows=lambda step: [], reports=False),
        account=None,
        sinks=SinkGroup([sink], None),
    )


def make_context(cur_step_num: int, loss: float = 8.0, in_sink: bool = False) -> Any:
    parameters = SimpleNamespace(
        net_outputs=(Tensor(loss), *OUTPUTS[1:]),
        cur_step_num=cur_step_num,
        network=TrainOneStep(),
        dataset_sink_mode=in_sink,
    )
    return SimpleNamespace(original_args=lambda: parameters)


BUDGET = Budget(seq_length=4, global_batch_size=2, micro_batch_size=2, num_accumulation_steps=1, total_steps=10)


def test_step_time_is_data_wait_plus_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation and saving are not part of it."""
    now_s = 100.0
    monkeypatch.setattr(step_monitor, "time", SimpleNamespace(perf_counter=lambda: now_s))
    sink = Collected()
    monitor = make_monitor(BUDGET, sink)
    monitor.on_train_begin(make_context(0))
    for step in (1, 2):
        now_s += 0.25 * step  # the data
        monitor.on_train_step_begin(make_context(step))
        now_s += 0.5 * step  # the device
        monitor.on_train_step_end(make_context(step))
        now_s += 64.0  # validation and saving
        monitor.mark_step_over()
    times = [(record.data_wait_s, record.compute_s, record.step_time_s) for record in sink.records]
    assert times == [(0.25, 0.5, 0.75), (0.5, 1.0, 1.5)]
    assert sink.records[1].tokens_per_s == pytest.approx(8 / 1.5)


def test_data_wait_is_none_in_sink_mode() -> None:
    sink = Collected()
    monitor = make_monitor(BUDGET, sink)
    monitor.on_train_begin(make_context(0))
    monitor.on_train_step_begin(make_context(1, in_sink=True))
    monitor.on_train_step_end(make_context(1, in_sink=True))
    assert sink.records[0].data_wait_s is None and sink.records[0].compute_s is None
    assert sink.records[0].step_time_s > 0


def test_non_finite_loss_stops_the_run_and_writes_the_rows(tmp_path: Path) -> None:
    sink = Collected()
    rows = {6: [("web", 17), ("code", 3)]}
    guard = StepGuard(StepJudge(GuardConfig()), run_dir=tmp_path, list_rows=rows.__getitem__, reports=True)
    monitor = make_monitor(BUDGET, sink, guard)
    monitor.on_train_begin(make_context(0))
    monitor.on_train_step_begin(make_context(2))
    with pytest.raises(RunStopped, match="stopped at step 7: the loss is nan; the rows of its batch are in") as error:
        monitor.on_train_step_end(make_context(2, loss=float("nan")))
    assert error.value.exit_code == 1 and "\n" not in str(error.value)
    saved = json.loads((tmp_path / "stopped_at_step_7.json").read_text(encoding="utf-8"))
    assert saved["rows"] == [{"source": "web", "row": 17}, {"source": "code", "row": 3}]
    assert (saved["step"], saved["loss"], saved["reason"]) == (7, "nan", "the loss is nan")
    assert math.isnan(sink.records[0].loss), "the record of the step is written before the end"


def test_ranks_save_and_load_their_own_shards(tmp_path: Path) -> None:
    wrappers = [TrainOneStep() for _ in range(2)]
    for rank, wrapper in enumerate(wrappers):
        for parameter in wrapper.network.get_parameters():
            parameter.set_data(ms.Tensor(np.full(parameter.shape, rank + 1.0, np.float32)))
        save_own_shards(tmp_path, wrapper.network, wrapper.optimizer, prefix="cpt", rank=rank, num_ranks=2)
    assert len(list(tmp_path.glob("cpt-model-*.safetensors"))) == 2
    loaded = TrainOneStep()
    load_own_shards(tmp_path, loaded.network, loaded.optimizer, prefix="cpt", rank=1, num_ranks=2)
    assert all((parameter.asnumpy() == 2.0).all() for parameter in loaded.network.get_parameters())
    with pytest.raises(CheckpointError, match="not found on this node"):
        load_own_shards(tmp_path, loaded.network, None, prefix="cpt", rank=2, num_ranks=4)


def test_checkpoint_in_sink_mode_has_the_networks_parameters(tmp_path: Path) -> None:
    wrapper = TrainOneStep()
    # In sink mode MindSpore replaces the training network by a cell that fetches the data.
    parameters = SimpleNamespace(
        network=wrapper, train_network=SimpleNamespace(network=wrapper), cur_epoch_num=1, net_outputs=OUTPUTS
    )
    state = RunState(step=0, total_steps=10, tokens=0, position=0, fingerprint={"seq_length": 4})
    writer = CheckpointWriter(
        tmp_path,
        initial_state=state,
        global_batch_size=2,
        keep_last=1,
        keep_every_steps=None,
        shared=True,
        completes=True,
        rank=0,
        num_ranks=1,
    )
    folder = writer.save(3, parameters)
    checkpoint = check_checkpoint(folder)
    assert (checkpoint.state.step, checkpoint.state.position, checkpoint.state.tokens) == (3, 6, 24)
    assert json.loads((folder / "common.json").read_text())["global_step"] == 3
    saved = ms.load_checkpoint(str(folder / "cpt-model-0000000-0000001.safetensors"), format="safetensors")
    assert set(saved) == set(wrapper.network.parameters_dict())
    weight = wrapper.network.weight
    assert np.array_equal(saved[weight.name].asnumpy(), weight.asnumpy())
