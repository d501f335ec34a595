"""The callbacks with MindSpore's callback parameters in forms that only occur on a cluster."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
import pytest
from mindspore import Model, Parameter, RunContext, Tensor, nn
from mindspore.train.callback import _InternalCallbackParam

from ascend_cpt.backend.checkpointing.node_local import has_all_shards, load_own_shards
from ascend_cpt.backend.checkpointing.shard_files import name_files, read_shards, write_shards
from ascend_cpt.backend.checkpointing.writer import CheckpointWriter
from ascend_cpt.backend.training import step_monitor, stop_signals
from ascend_cpt.backend.training.ranks.rank_exchange import RankExchange
from ascend_cpt.backend.training.run_controller import RunController
from ascend_cpt.backend.training.spike_guards import StepGuard
from ascend_cpt.backend.training.step_monitor import Speed, StepMonitor
from ascend_cpt.checkpoint.locate import check_checkpoint
from ascend_cpt.checkpoint.state import RunState
from ascend_cpt.config.monitoring_schema import GuardConfig
from ascend_cpt.errors import CheckpointError, RunStopped
from ascend_cpt.monitor.accounting import PhaseSpan
from ascend_cpt.monitor.forgetting import AlarmLimits, ForgettingAlarm
from ascend_cpt.monitor.goodput.slow_ranks import SlowRankDetector
from ascend_cpt.monitor.guard import StepJudge
from ascend_cpt.monitor.record import Record, ValidationRecord
from ascend_cpt.monitor.sinks import SinkGroup
from ascend_cpt.recipe.budget import Budget

OUTPUTS = (Tensor(8.0), Tensor(False), Tensor(1.0), Tensor(1e-3), Tensor(0.5))


class Collected:
    def __init__(self) -> None:
        self.records: list[Any] = []
        self.num_closed = 0

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.num_closed += 1


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
    assert record.tflops_per_device == record.mfu, "the peak of this device is 1 TFLOPS"


def make_monitor(
    budget: Budget, sink: Collected, guard: StepGuard | None = None, gives_loss: bool | None = None
) -> StepMonitor:
    judge = StepJudge(GuardConfig())
    return StepMonitor(
        budget=budget,
        initial_step=5,
        speed=Speed(num_devices=1, flops_per_token=100.0, peak_flops=1e12),
        phases=[PhaseSpan(name="train", first_step=0, stop_step=10)],
        guard=guard or StepGuard(judge, run_dir=Path(), list_rows=lambda step: [], reports=False),
        account=None,
        sinks=SinkGroup([sink], None),
        gives_loss=gives_loss,
    )


def make_writer(
    root: Path, *, keep_last: int, background: bool = False, warn: Callable[[str], None] | None = None
) -> CheckpointWriter:
    """Return the writer of a run in one process."""
    return CheckpointWriter(
        root,
        initial_state=RunState(step=0, total_steps=10, tokens=0, position=0, fingerprint={"seq_length": 4}),
        budget=Budget(seq_length=4, global_batch_size=2, micro_batch_size=2, num_accumulation_steps=1, total_steps=10),
        keep_last=keep_last,
        keep_every_steps=None,
        shared=True,
        completes=True,
        rank=0,
        num_ranks=1,
        background=background,
        warn=warn,
    )


def make_context(cur_step_num: int, loss: float = 8.0, in_sink: bool = False) -> Any:
    parameters = _InternalCallbackParam()
    parameters.update(
        net_outputs=(Tensor(loss), *OUTPUTS[1:]),
        cur_step_num=cur_step_num,
        network=TrainOneStep(),
        dataset_sink_mode=in_sink,
    )
    return RunContext(parameters)


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
    context = make_context(2, loss=float("nan"))
    monitor.on_train_step_end(context)
    assert isinstance(monitor.ending, RunStopped) and context.get_stop_requested()
    assert str(monitor.ending).startswith("stopped at step 7: the loss is nan; the rows of its batch are in")
    assert monitor.ending.exit_code == 1 and "\n" not in str(monitor.ending)
    saved = json.loads((tmp_path / "stopped_at_step_7.json").read_text(encoding="utf-8"))
    assert saved["rows"] == [{"source": "web", "row": 17}, {"source": "code", "row": 3}]
    assert (saved["step"], saved["loss"], saved["reason"]) == (7, "nan", "the loss is nan")
    assert math.isnan(sink.records[0].loss), "the record of the step is written before the end"


def list_moments(wrapper: TrainOneStep) -> list[Parameter]:
    found = [parameter for parameter in wrapper.optimizer.get_parameters() if "moment" in parameter.name]
    assert found
    return found


def test_ranks_save_and_load_their_own_shards(tmp_path: Path) -> None:
    wrappers = [TrainOneStep() for _ in range(2)]
    for rank, wrapper in enumerate(wrappers):
        for parameter in wrapper.network.get_parameters():
            parameter.set_data(ms.Tensor(np.full(parameter.shape, rank + 1.0, np.float32)))
        for moment in list_moments(wrapper):
            moment.set_data(ms.Tensor(np.full(moment.shape, rank + 11.0, np.float32)))
        write_shards(name_files(tmp_path, "cpt", rank, 2), read_shards(wrapper.network, wrapper.optimizer))
    assert len(list(tmp_path.glob("cpt-model-*.safetensors"))) == 2
    loaded = TrainOneStep()
    load_own_shards(tmp_path, loaded.network, loaded.optimizer, prefix="cpt", rank=1, num_ranks=2)
    assert all((parameter.asnumpy() == 2.0).all() for parameter in loaded.network.get_parameters())
    assert all((moment.asnumpy() == 12.0).all() for moment in list_moments(loaded))
    saved = ms.load_checkpoint(str(tmp_path / "cpt-opt-0000001-0000002.safetensors"), format="safetensors")
    assert not set(saved) & set(loaded.network.parameters_dict()), "the weights are not saved a second time"
    with pytest.raises(CheckpointError, match="not found on this node"):
        load_own_shards(tmp_path, loaded.network, None, prefix="cpt", rank=2, num_ranks=4)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cpt-model-0000000-0000002"], False),
        (["cpt-model-0000000-0000002", "cpt-model-0000001-0000002"], True),
        (["cpt-model-0000000-0000001"], True),  # saved by one process: the start of a run on several nodes
        (["model-00001-of-00002"], True),  # a Hugging Face folder
    ],
)
def test_folder_without_all_shards_is_recognized(tmp_path: Path, names: list[str], expected: bool) -> None:
    for name in names:
        (tmp_path / f"{name}.safetensors").touch()
    assert has_all_shards(tmp_path) == expected


def test_checkpoint_in_sink_mode_has_the_networks_parameters(tmp_path: Path) -> None:
    wrapper = TrainOneStep()
    # In sink mode MindSpore replaces the training network by a cell that fetches the data.
    parameters = SimpleNamespace(
        network=wrapper, train_network=SimpleNamespace(network=wrapper), cur_epoch_num=1, net_outputs=OUTPUTS
    )
    writer = make_writer(tmp_path, keep_last=1)
    folder = writer.save(3, parameters)
    checkpoint = check_checkpoint(folder)
    assert (checkpoint.state.step, checkpoint.state.position, checkpoint.state.tokens) == (3, 6, 24)
    assert json.loads((folder / "common.json").read_text())["global_step"] == 3
    saved = ms.load_checkpoint(str(folder / "cpt-model-0000000-0000001.safetensors"), format="safetensors")
    assert set(saved) == set(wrapper.network.parameters_dict())
    weight = wrapper.network.weight
    assert np.array_equal(saved[weight.name].asnumpy(), weight.asnumpy())


class LossFromData(TrainOneStep):
    """Returns what MindFormers' wrapper does, with the loss that the data holds."""

    def construct(self, loss: Tensor) -> tuple[Tensor, ...]:
        return (loss, *OUTPUTS[1:])


class HeldOutLosses:
    """Stands for the evaluator of one set: its losses are given."""

    def __init__(self, losses: dict[int, float]) -> None:
        self.losses = losses

    def evaluate(self, step: int) -> list[ValidationRecord]:
        return [ValidationRecord(step=step, name="held", loss=self.losses[step], num_labels=1)]


def make_stoppable(
    folder: Path,
    sink: Collected,
    *,
    initial_step: int = 0,
    held_losses: dict[int, float] | None = None,
    patience_steps: int = 0,
) -> tuple[StepMonitor, RunController]:
    sinks = SinkGroup([sink], None)
    guard = StepGuard(StepJudge(GuardConfig()), run_dir=folder, list_rows=lambda step: [], reports=True)
    monitor = StepMonitor(
        budget=BUDGET,
        initial_step=initial_step,
        speed=Speed(num_devices=1, flops_per_token=100.0, peak_flops=1e12),
        phases=[PhaseSpan(name="train", first_step=0, stop_step=10)],
        guard=guard,
        account=None,
        sinks=sinks,
    )
    writer = make_writer(folder / "checkpoint", keep_last=9)
    sets = {"held": AlarmLimits(max_change=0.5, stops=True, patience_steps=patience_steps)}
    recorded = [{"name": "held", "step": step, "loss": loss} for step, loss in (held_losses or {}).items()]
    controller = RunController(
        total_steps=10,
        initial_step=initial_step,
        writer=writer,
        save_every_steps=1,
        build_evaluator=None if held_losses is None else lambda network: HeldOutLosses(held_losses),  # type: ignore[arg-type, return-value]
        validate_every_steps=1,
        stop_at_step=None,
        exchange=RankExchange(0, 1),
        slow_ranks=SlowRankDetector(0.1),
        reports_to_launcher=False,
        alarm=ForgettingAlarm(sets=sets),
        recorded_validations=recorded if initial_step else [],
        sinks=sinks,
        monitor=monitor,
    )
    return monitor, controller


def train_on(losses: list[float], callbacks: tuple[StepMonitor, RunController]) -> None:
    data = ds.NumpySlicesDataset(np.array(losses, np.float32), column_names=["loss"], shuffle=False)
    Model(LossFromData()).train(1, data, callbacks=list(callbacks), dataset_sink_mode=False)


def list_saved(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in (folder / "checkpoint").glob("*/cpt_state.json"))


def test_guard_stop_is_raised_after_the_loop(tmp_path: Path) -> None:
    sink = Collected()
    callbacks = make_stoppable(tmp_path, sink)
    train_on([2.0, float("nan"), 2.0], callbacks)  # raises nothing: the loop must release the data queue
    assert [record.step for record in sink.records] == [1, 2] and sink.num_closed == 1
    assert list_saved(tmp_path) == ["iteration_00000001"], "the step that stopped the run is not saved"
    with pytest.raises(RunStopped, match="stopped at step 2: the loss is nan"):
        callbacks[1].raise_ending()


def test_alarm_stop_saves_and_is_raised_after_the_loop(tmp_path: Path) -> None:
    sink = Collected()
    callbacks = make_stoppable(tmp_path, sink, held_losses={0: 2.0, 1: 2.1, 2: 2.6})
    train_on([2.0, 2.0, 2.0], callbacks)
    assert list_saved(tmp_path) == ["iteration_00000001", "iteration_00000002"] and sink.num_closed == 1
    with pytest.raises(RunStopped, match="stopped by on_increase: .* at step 2 .*; saved in .*iteration_00000002"):
        callbacks[1].raise_ending()


def test_alarm_with_patience_stops_after_it_is_used_up(tmp_path: Path) -> None:
    sink = Collected()
    losses = {0: 2.0, 1: 2.6, 2: 2.0, 3: 2.6, 4: 2.6, 5: 2.6, 6: 2.6}
    callbacks = make_stoppable(tmp_path, sink, held_losses=losses, patience_steps=2)
    train_on([2.0] * 6, callbacks)
    assert list_saved(tmp_path)[-1] == "iteration_00000005"
    held = [record for record in sink.records if isinstance(record, ValidationRecord)]
    assert [record.above_since_step for record in held] == [None, 1, None, 3, 3, 3]
    with pytest.raises(RunStopped, match="at step 5 .* since step 3; patience of 2 steps used up; saved in"):
        callbacks[1].raise_ending()


def test_restored_alarm_is_raised_before_training(tmp_path: Path) -> None:
    sink = Collected()
    _, controller = make_stoppable(tmp_path, sink, initial_step=2, held_losses={0: 2.0, 2: 2.6})
    with pytest.raises(RunStopped, match="stopped by on_increase: "):
        controller.restore_alarm()
    assert sink.num_closed == 1 and not sink.records


def test_signal_stop_saves_and_is_raised_after_the_loop(tmp_path: Path) -> None:
    sink = Collected()
    callbacks = make_stoppable(tmp_path, sink)
    kept = {number: signal.getsignal(number) for number in stop_signals.SIGNALS}
    try:
        with (tmp_path / "console").open("w") as console:
            stop_signals.install(console)
            os.kill(os.getpid(), signal.SIGTERM)
            train_on([2.0, 2.0, 2.0], callbacks)
    finally:
        stop_signals._received.clear()
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert list_saved(tmp_path) == ["iteration_00000001"] and sink.num_closed == 1
    with pytest.raises(stop_signals.StoppedBySignal, match="stopped by SIGTERM after step 1 of 10; saved in"):
        callbacks[1].raise_ending()


def test_complete_run_raises_nothing(tmp_path: Path) -> None:
    sink = Collected()
    callbacks = make_stoppable(tmp_path, sink)
    train_on([2.0] * 10, callbacks)
    assert len(sink.records) == 10 and sink.num_closed == 1
    callbacks[1].raise_ending()


def test_loss_of_the_last_stage_is_recorded_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two ranks in one process: what the other one contributes to the sum.
    others = {True: 0.0, False: 8.0}
    for gives_loss, loss in ((True, 8.0), (False, 0.0)):
        monkeypatch.setattr(step_monitor, "sum_over_ranks", lambda own, num_ranks, more=others[gives_loss]: own + more)
        sink = Collected()
        monitor = make_monitor(BUDGET, sink, gives_loss=gives_loss)
        monitor.on_train_begin(make_context(0))
        monitor.on_train_step_begin(make_context(1))
        monitor.on_train_step_end(make_context(1, loss=loss))
        assert sink.records[0].loss == 8.0
