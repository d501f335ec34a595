"""Updates skipped on the device: MindFormers' wrapper with a network of one weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.wrapper.wrapper import MFTrainOneStepCell
from mindspore import Parameter, Tensor, nn

from ascend_cpt.backend.cpu import install_cpu_kernels
from ascend_cpt.backend.training import spike_guards as guards
from ascend_cpt.backend.training.spike_guards import StepGuard, install_guards
from ascend_cpt.config.monitoring_schema import GuardConfig, SpikeConfig
from ascend_cpt.monitor.guard import GRAD_NORM_SPIKE, LOSS_SPIKE, OVERFLOW, StepJudge, StepVerdict

SPIKE = SpikeConfig(sigmas=3.0, window_steps=4)


class OneWeight(nn.Cell):
    """Loss weight × x + y with gradient x, so that both can be chosen. Returns the four losses of an mcore model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(Tensor([1.0], ms.float32), name="weight")

    def construct(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        loss = (self.weight * x + y).sum()
        zero = loss * 0.0
        return loss, zero, zero, zero

    def get_gpt_transformer_config(self) -> SimpleNamespace:
        """Required by MindFormers."""
        return SimpleNamespace(moe_aux_loss_coeff=0.0, moe_layer_freq=None, num_layers=1, mtp_num_layers=0)


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def _mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install_cpu_kernels()
    monkeypatch.setattr("mindformers.wrapper.wrapper.is_legacy_model", lambda: False)
    ms.set_context(mode=request.param)
    registered = MindFormerRegister.get_cls(MindFormerModuleType.WRAPPER, "MFTrainOneStepCell")
    yield
    MindFormerRegister.register_cls(registered, MindFormerModuleType.WRAPPER, alias="MFTrainOneStepCell")
    guards._Guarded.guards_loss = False


class Run:
    """A training loop that does what the step monitor does."""

    def __init__(self, config: GuardConfig, tmp_path: Path) -> None:
        install_guards(config)
        network = OneWeight()
        optimizer = nn.SGD(network.trainable_params(), learning_rate=0.125)
        optimizer.global_step = Parameter(Tensor([0], ms.int32), name="global_step")
        wrapper = MindFormerRegister.get_cls(MindFormerModuleType.WRAPPER, "MFTrainOneStepCell")
        self.cell = wrapper(network, optimizer, use_clip_grad=True, max_grad_norm=1000.0).set_train(True)
        self.network, self.optimizer = network, optimizer
        self.guard = StepGuard(StepJudge(config), run_dir=tmp_path, list_rows=lambda step: [], reports=True)
        self.step = 0

    def train(self, x: float, loss: float) -> StepVerdict:
        """Run a step with gradient `x` and loss `loss`."""
        self.step += 1
        y = np.float32(loss) - np.float32(self.weight) * np.float32(x)
        outputs = self.cell(Tensor([x], ms.float32), Tensor([y], ms.float32))
        return self.guard.judge(
            self.cell,
            step=self.step,
            loss=float(outputs[0].asnumpy()),
            grad_norm=float(outputs[4].asnumpy().reshape(-1)[0]),
            is_skipped=bool(outputs[1].asnumpy()),
        )

    @property
    def weight(self) -> float:
        return float(self.network.weight.asnumpy()[0])


BOTH = GuardConfig(loss_spike=SPIKE, grad_norm_spike=SPIKE, stop_on_non_finite=False)


@pytest.mark.usefixtures("_mode")
def test_spikes_and_non_finite_steps_do_not_change_the_weights(tmp_path: Path) -> None:
    run = Run(BOTH, tmp_path)
    for x, loss in ((0.5, 2.0), (0.5, 2.25), (0.5, 2.0), (0.5, 2.25)):
        before = run.weight
        assert run.train(x, loss) == StepVerdict()
        assert run.weight == before - 0.125 * x
    weight = run.weight
    assert run.train(0.5, 5.0).skipped == LOSS_SPIKE
    assert run.train(3.0, 2.0).skipped == GRAD_NORM_SPIKE
    assert run.train(math.nan, 2.0).skipped == OVERFLOW
    assert run.weight == weight
    assert run.guard.num_skipped == 3
    assert int(run.optimizer.global_step.asnumpy()[0]) == run.step, "the learning rate follows the steps"
    assert run.train(0.5, 2.0) == StepVerdict() and run.weight == weight - 0.125 * 0.5


@pytest.mark.usefixtures("_mode")
def test_only_configured_guards_are_active(tmp_path: Path) -> None:
    run = Run(GuardConfig(grad_norm_spike=SPIKE), tmp_path)
    for x in (0.5, 0.75, 0.5, 0.75):
        run.train(x, 2.0)
    weight = run.weight
    assert run.train(0.5, 50.0) == StepVerdict() and run.weight < weight
    weight = run.weight
    assert run.train(2.0, 2.0).skipped == GRAD_NORM_SPIKE and run.weight == weight


@pytest.mark.usefixtures("_mode")
def test_without_spike_guards_the_wrapper_is_mindformers(tmp_path: Path) -> None:
    run = Run(GuardConfig(), tmp_path)
    assert type(run.cell) is MFTrainOneStepCell
    weight = run.weight
    assert run.train(math.inf, 2.0).stop == "the loss is nan"
    assert run.weight == weight
