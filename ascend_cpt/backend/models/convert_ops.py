"""Converters for MindFormers' `load_hf_checkpoint`, built from the same tables that `ascend_cpt.weights` uses."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindformers.checkpoint.converter.convert_op import (
    ConcatConvertOp,
    ConvertOp,
    ExpertsConvertOp,
    QKVBiasConvertOp,
    QKVConvertOp,
    RenameConvertOp,
)
from mindformers.checkpoint.converter.template import WeightTemplate

from ascend_cpt.model.families import FAMILIES, Row
from ascend_cpt.model.tensor_layout import Array, GroupedQkv, InterleavedRows, StackedExperts, Unchanged


class GroupedBiasConvertOp(QKVBiasConvertOp):
    """Joins query, key and value biases by key-value head. MindFormers assumes one query head per key head."""

    def _hf_to_mf(self, weights: list[Array]) -> list[Array]:
        num_groups = self.num_query_groups // self.tensor_model_parallel_size // self.optimizer_parallel_size
        return [np.concatenate([bias.reshape(num_groups, -1) for bias in weights], axis=1).reshape(-1)]


class DecoderTemplate(WeightTemplate):
    """MindFormers' `load_hf_checkpoint` converter, extended to the query, key and value biases that it skips."""

    def preprocess_hf_weights(
        self,
        src_name: str,
        parameter: Any,
        experts_weights: dict[str, Any],
        qkv_weights: dict[str, dict[str, Any]],
        num_moe_experts: int | None,
    ) -> tuple[str | None, Any]:
        """Collect a joined tensor's parts. Return its name and value once all parts are there, and None before that."""
        if not src_name.endswith(".bias"):
            return super().preprocess_hf_weights(src_name, parameter, experts_weights, qkv_weights, num_moe_experts)
        (name,) = self.get_mf_name(src_name)
        parts = qkv_weights.setdefault(name, {})
        parts[src_name] = parameter
        op = self.get_convert_op(src_name, self.hf_name_to_converter)
        if len(parts) < len(op.hf_names):
            return None, None
        # In the table's order: q_proj, k_proj, v_proj.
        ordered = [next(part for key, part in parts.items() if key.endswith(hf.split(".{}.")[1])) for hf in op.hf_names]
        joined = np.concatenate([part.reshape(op.num_query_groups, -1) for part in ordered], axis=1)
        return name, joined.reshape(-1)


# MindFormers' ConcatConvertOp interleaves rows.
_OPS = {
    Unchanged: RenameConvertOp,
    GroupedQkv: QKVConvertOp,
    InterleavedRows: ConcatConvertOp,
    StackedExperts: ExpertsConvertOp,
}


def make_convert_ops(family: str) -> list[ConvertOp]:
    """Return MindFormers' weight converters for a family's table."""
    return [
        _choose_op(row)(hf_names=[name.replace("{expert}", "{}") for name, _ in row.hf], mf_names=[row.mindformers])
        for row in FAMILIES[family]
    ]


def _choose_op(row: Row) -> type[ConvertOp]:
    return GroupedBiasConvertOp if row.mindformers.endswith("linear_qkv.bias") else _OPS[type(row.layout)]
