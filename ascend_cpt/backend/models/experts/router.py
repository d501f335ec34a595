"""MindFormers' router with a z-loss, and with sums of each expert's load and of the two losses."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.parallel_core.training_graph.device_matrix import layout_moe as layout
from mindformers.parallel_core.training_graph.transformer.moe.router import TopKRouter
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import get_group_size
from mindspore.ops.auto_generate import AddExt, AssignAdd, Exp, Log, MeanExt, Mul, ReduceMax, ReduceSum, Sub


class _MeanOverRanks(nn.Cell):
    """The mean of a one-dimensional tensor over the processes of a CPU run, where every process has all weights."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM)
        self.num_processes = get_group_size()

    def construct(self, values: Tensor) -> Tensor:
        return self.all_reduce(values) / self.num_processes


class ExpertRouter(TopKRouter):
    """Chooses each token's experts, as upstream with `moe_router_load_balancing_type: gbs_aux_loss`.

    The balance loss is num_experts × Σ load × probability over the experts, 1 if they are balanced. The load is an
    expert's share of the tokens of this and the previous micro batches of the step on all devices, and the probability
    the mean over the micro batch. The z-loss is the mean over the tokens of the squared logarithm of Σ exp(logit)
    (ST-MoE, Zoph et al. 2022, arXiv 2202.08906, equation 5).

    `load_sum` (experts,) and `loss_sums` (balance loss, z-loss) are sums over micro batches, until
    `ExpertMonitor` takes them.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.z_loss_coeff = config.moe_z_loss_coeff or 0.0
        self.load_sum = _make_sum(self.expert_dim, "load_sum")
        self.loss_sums = _make_sum(2, "loss_sums")
        self.add_load, self.add_losses = AssignAdd().recompute(False), AssignAdd().recompute(False)
        self.top_logit, self.sum_exp = ReduceMax(keep_dims=True), ReduceSum(keep_dims=True)
        self.center, self.exp, self.log, self.add_top, self.square = Sub(), Exp(), Log(), AddExt(), Mul()
        self.mean_tokens, self.mean_rows = MeanExt(), MeanExt()
        self.first, self.second = Tensor([1.0, 0.0], ms.float32), Tensor([0.0, 1.0], ms.float32)
        mode = ms.get_auto_parallel_context("parallel_mode")
        self.mean_over_ranks = _MeanOverRanks() if mode == ms.ParallelMode.DATA_PARALLEL else None
        if mode == ms.ParallelMode.SEMI_AUTO_PARALLEL:
            self._shard_z_loss()

    def construct(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the experts of each token (dp, tokens, k), their weights, and the weighted sum of the two losses."""
        logits = self.gating(inputs)
        weights, experts, probabilities = self.routing(logits)
        balance = self.measure_balance(probabilities, experts)
        z_loss = self.measure_logits(logits)
        losses = self.mul_noshard(balance, self.first) + self.mul_noshard(z_loss, self.second)
        losses = ops.stop_gradient(losses)
        if self.mean_over_ranks is not None:
            losses = self.mean_over_ranks(losses)
        self.add_losses(self.loss_sums, losses)
        extra_loss = self.mul_noshard(balance, self.moe_aux_loss_coeff) + self.mul_noshard(z_loss, self.z_loss_coeff)
        return experts, weights, extra_loss

    def measure_balance(self, probabilities: Tensor, experts: Tensor) -> Tensor:
        """Return the balance loss, and add to `load_sum`."""
        probability = self.reduce_mean_aux_3d(self.reshape(probabilities, (self.dp, -1, self.expert_dim)), 1)
        chosen = self.reshape(experts, (self.dp, -1))
        chosen = self.cast(self.onehot_aux(chosen, self.expert_dim, self.on_value, self.off_value), ms.float32)
        load = self.reduce_mean_dp(self.reduce_mean_aux_3d(chosen, 1).reshape(self.dp, -1), 0)
        if self.mean_over_ranks is not None:
            load = self.mean_over_ranks(load)
        total = self.add_accu(self.fi_accu, load)
        shares = self.div(total, self.sum_accu(total)).reshape(1, 1, -1)
        shares = self.mul_dp(shares, self.ones_dp).reshape(self.dp, -1)
        self.assignadd(self.fi_accu, load)
        self.add_load(self.load_sum, load)
        mean = self.reduce_mean_aux_2d(self.mul_aux_2d(probability, shares))
        return self.mul_noshard(mean, self.expert_dim**2)

    def measure_logits(self, logits: Tensor) -> Tensor:
        """Return the z-loss."""
        top = ops.stop_gradient(self.top_logit(logits, 2))
        log_sum = self.add_top(self.log(self.sum_exp(self.exp(self.center(logits, top)), 2)), top)
        z_loss = self.mean_rows(self.mean_tokens(self.square(log_sum, log_sum), 1))
        return z_loss if self.z_loss_coeff else ops.stop_gradient(z_loss)

    def _shard_z_loss(self) -> None:
        tokens, rows = layout("dp_cp", "None", "None"), layout("dp_cp", "None")
        for reduction, result in ((self.top_logit, tokens), (self.sum_exp, tokens), (self.mean_tokens, rows)):
            reduction.add_prim_attr("self_define_shard", True)
            reduction.shard(in_strategy=(tokens,), out_strategy=(result,))
        for operator in (self.center, self.add_top, self.square):
            operator.shard((tokens, tokens))
        for operator in (self.exp, self.log):
            operator.shard((tokens,))
        self.mean_rows.shard((rows,))


def _make_sum(size: int, name: str) -> Parameter:
    zeros = Tensor(np.zeros(size, np.float32))
    return Parameter(zeros, name=name, requires_grad=False, parallel_optimizer=False)


@contextmanager
def use_expert_router() -> Iterator[None]:
    """Build networks in this block with `ExpertRouter`."""
    module: Any = importlib.import_module("mindformers.parallel_core.training_graph.transformer.moe.moe_layer")
    upstream = module.TopKRouter
    module.TopKRouter = ExpertRouter
    try:
        yield
    finally:
        module.TopKRouter = upstream
