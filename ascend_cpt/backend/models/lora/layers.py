"""Linear layers with low-rank adapters: y = x·Wᵀ + scale · (x·Aᵀ)·Bᵀ, where W is frozen.

`ascend_cpt.model.lora` describes A and B of a layer that joins several modules. Each row of B is multiplied only with
the part of x·Aᵀ that belongs to the row's module, which a mask selects.

As in MindFormers' layers, the computation is one Morph operator: MindSpore shards its inputs and outputs by layout and
runs its function on each device's slices. A column-parallel layer has the whole A and its rows of B. A row-parallel
layer has its columns of A and the whole B; its partial sums are reduced together with those of W.

MindFormers' own LoRA layers are not used. They have one A for all modules of a layer, so adapters of only some of the
modules are not possible, and neither is the exchange with PEFT. They reduce twice in a row-parallel layer, and have no
rsLoRA.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindformers.parallel_core.training_graph.device_matrix import layout
from mindformers.parallel_core.training_graph.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    func_infer_dtype,
    func_infer_shape,
)
from mindspore import Parameter, Tensor, ops
from mindspore.ops.auto_generate import Concat
from mindspore.ops.operations import Morph

from ascend_cpt.model.lora import LORA_A, LORA_B, AdaptedLayer


def _make_operator(function: Any, in_layouts: tuple[Any, ...], out_layout: Any) -> Any:
    """Return a Morph whose output has the shape and dtype of x·Wᵀ; its first inputs are x and W."""
    operator = Morph(function, func_infer_shape, func_infer_dtype).add_prim_attr("self_define_shard", True)
    if ms.get_auto_parallel_context("parallel_mode") == ms.ParallelMode.SEMI_AUTO_PARALLEL:
        operator.shard(in_strategy=tuple(layout(*names) for names in in_layouts), out_strategy=(layout(*out_layout),))
    return operator


class LoraColumnLinear(ColumnParallelLinear):
    """A column-parallel layer with adapters. `add_adapter` makes one from MindFormers' layer."""

    def construct(self, input_: Tensor, weight: Tensor | None = None) -> Any:
        """Return the output and the bias that the caller adds, if any."""
        weight = self.cast(self.weight, self.compute_dtype)
        lora_a = self.cast(self.lora_a, self.compute_dtype)
        lora_b = self.cast(self.lora_b, self.compute_dtype)
        if not self.skip_bias_add and self.has_bias:
            bias = self.cast(self.bias, self.compute_dtype)
            return self.lora_operator(input_, weight, lora_a, lora_b, bias), None
        return self.lora_operator(input_, weight, lora_a, lora_b), self.bias

    def compute(self, input_: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor) -> Any:
        """Return x·Wᵀ + scale · (x·Aᵀ)·Bᵀ. All arguments are this device's slices."""
        rows = self.cast(self.reshape(input_, (-1, self.input_size)), self.compute_dtype)
        output = self.forward_func(input_, weight)
        inner = self.lora_matmul(rows, lora_a) * self.lora_scale
        columns = self.lora_join((lora_b,) * self.lora_modules) if self.lora_modules > 1 else lora_b
        delta = self.lora_matmul(inner, columns * self.lora_mask)
        return output + self.cast(self.reshape(delta, output.shape), output.dtype)

    def compute_with_bias(self, input_: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, bias: Tensor) -> Any:
        """Return the output with the bias."""
        output = self.compute(input_, weight, lora_a, lora_b)
        return output + self.cast(bias, output.dtype)


class LoraRowLinear(RowParallelLinear):
    """A row-parallel layer with adapters. `add_adapter` makes one from MindFormers' layer."""

    def construct(self, input_: Tensor) -> Any:
        """Return the output and the bias that the caller adds, if any."""
        weight = self.cast(self.weight, self.compute_dtype)
        lora_a = self.cast(self.lora_a, self.compute_dtype)
        lora_b = self.cast(self.lora_b, self.compute_dtype)
        return self.lora_operator(input_, weight, lora_a, lora_b), self.bias

    def compute(self, input_: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor) -> Any:
        """Return x·Wᵀ + scale · (x·Aᵀ)·Bᵀ, reduced over the tensor-parallel ranks. All arguments are slices."""
        shape = (*input_.shape[:-1], weight.shape[0])
        if self.sequence_parallel:
            shape = (shape[0] // self.tp, *shape[1:])
        rows = self.cast(self.reshape(input_, (-1, self.input_size_per_partition)), self.compute_dtype)
        inner = self.lora_matmul(rows, lora_a) * self.lora_scale
        output = self.lora_matmul(rows, weight) + self.lora_matmul(inner, lora_b)
        if self.tp != 1:
            output = self.reduce_scatter(output) if self.sequence_parallel else self.all_reduce(output)
        return self.reshape(self.cast(output, input_.dtype), shape)


def add_adapter(layer: Any, adapted: AdaptedLayer, *, scale: float, seed: int, pipeline_stage: int | None) -> None:
    """Turn a linear layer of MindFormers into one with adapters, in place. A is random and B is 0."""
    assert isinstance(layer, (ColumnParallelLinear, RowParallelLinear)) and layer.transpose_b
    name_a, name_b = adapted.name + LORA_A, adapted.name + LORA_B
    layer.lora_a = Parameter(Tensor(adapted.make_a(seed)), name=name_a)
    layer.lora_b = Parameter(Tensor(np.zeros(adapted.shapes[name_b], np.float32)), name=name_b)
    layer.lora_a.name, layer.lora_b.name = name_a, name_b
    if pipeline_stage is not None:
        for parameter in (layer.lora_a, layer.lora_b):
            parameter.add_pipeline_stage(pipeline_stage)
    layer.lora_matmul = ops.MatMul(transpose_b=True)
    layer.lora_scale = scale
    if isinstance(layer, ColumnParallelLinear):
        _finish_column(layer, adapted)
    else:
        assert not layer.has_bias, "no family has one"
        layer.__class__ = LoraRowLinear
        rows, out = ("cp", "dp", "tp"), ("cp_tp" if layer.sequence_parallel else "cp", "dp", "None")
        layer.lora_operator = _make_operator(
            layer.compute, (rows, ("None", "tp"), ("None", "tp"), ("None", "None")), out
        )


def _finish_column(layer: Any, adapted: AdaptedLayer) -> None:
    layer.__class__ = LoraColumnLinear
    shards = 1
    if ms.get_auto_parallel_context("parallel_mode") == ms.ParallelMode.SEMI_AUTO_PARALLEL:
        shards = layer.config.tensor_model_parallel_size or 1
    masks = np.split(adapted.make_mask(), shards)
    assert all(np.array_equal(mask, masks[0]) for mask in masks), "every rank has the same order of modules"
    layer.lora_mask = Tensor(masks[0], layer.compute_dtype)
    layer.lora_modules = sum(adapted.is_adapted)
    layer.lora_join = Concat(1)
    layouts = (("cp", "dp", "None"), ("tp", "None"), ("None", "None"), ("tp", "None"))
    out = ("cp", "dp", "tp")
    if layer.has_bias and not layer.skip_bias_add:
        layer.lora_operator = _make_operator(layer.compute_with_bias, (*layouts, ("tp",)), out)
    else:
        layer.lora_operator = _make_operator(layer.compute, layouts, out)
