"""The layouts that are trained on the software NPU, and the runs on the CPU target that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHORT_ROWS, LONG_ROWS = 64, 2048  # a compressed attention mask needs rows of 2048 tokens

# Where the layout is not the subject: Ascend, sink mode, everything that can be sharded is.
ASCEND: dict[str, Any] = {
    "context": {"mode": 0, "device_target": "Ascend", "jit_config": {"jit_level": "O0"}, "max_device_memory": "4GB"},
    "runner_config": {"sink_mode": True, "sink_size": 1},
    "parallel": {
        "parallel_mode": 1,
        "enable_alltoall": True,
        "enable_parallel_optimizer": True,
        "parallel_optimizer_config": {"gradient_accumulation_shard": False, "parallel_optimizer_threshold": 0},
    },
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A run on the CPU target in one process; several layouts can have the same one."""

    family: str = "qwen3"
    seq_length: int = SHORT_ROWS
    global_batch_size: int = 8
    sections: dict[str, Any] = field(default_factory=dict)
    """MindFormers sections that change what is computed."""
    cpt: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return repr(self)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A run on emulated NPUs.

    The tolerances are for float32. Emulated operators round once to the output's type, and sums are taken in another
    order than on the CPU. An element whose gradient is almost 0 may get the other sign from Adam's first steps, which
    are about ± the rate; an optimizer that reads stale moments makes all updates differ.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    accumulation: int = 1
    parallel_config: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    """Changes of `parallel.parallel_optimizer_config`; `{"off": True}` turns the parallel optimizer off."""
    sections: dict[str, Any] = field(default_factory=dict)
    reference: Reference = Reference()
    max_loss_difference: float = 1e-4
    max_share_of_other_updates: float = 0.02

    @property
    def workers(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    def make_sections(self) -> dict[str, Any]:
        """Return the MindFormers sections of the layout."""
        parallel = {
            "data_parallel": self.data,
            "model_parallel": self.tensor,
            "pipeline_stage": self.pipeline,
            "context_parallel": self.context,
            "vocab_emb_dp": False,
            "use_seq_parallel": self.tensor > 1,
            **self.parallel_config,
        }
        rows, rest = divmod(self.reference.global_batch_size, self.data * self.accumulation)
        assert rest == 0, "the global batch is not a multiple of data parallel × accumulation"
        runner = {**ASCEND["runner_config"], "batch_size": rows}
        if self.pipeline > 1:
            parallel["micro_batch_num"] = self.accumulation
        elif self.accumulation > 1:
            runner["gradient_accumulation_steps"] = self.accumulation
        sections = {**ASCEND, "runner_config": runner, "parallel_config": parallel}
        options = dict(self.optimizer)
        enabled = not options.pop("off", False)
        merged = {**ASCEND["parallel"]["parallel_optimizer_config"], **options}
        sections["parallel"] = {
            **ASCEND["parallel"],
            "enable_parallel_optimizer": enabled,
            "parallel_optimizer_config": merged,
        }
        return {**sections, **self.sections}


def _with_model(**sizes: Any) -> dict[str, Any]:
    return {"model": {"model_config": sizes}}


# KV heads 2 are fewer than tensor 2 × data 2.
FEW_KV_HEADS = {"num_key_value_heads": 2}
LLAMA = Reference(family="llama3", sections=_with_model(**FEW_KV_HEADS))
QWEN2 = Reference(family="qwen2", sections=_with_model(**FEW_KV_HEADS))
LONG = Reference(seq_length=LONG_ROWS, global_batch_size=4)
WITHIN = Reference(seq_length=LONG_ROWS, global_batch_size=4, cpt={"document_attention": "within"})
# The window is full after two steps; a gradient norm above 0.1 standard deviations is a spike: steps are skipped.
GUARDED = Reference(cpt={"guards": {"grad_norm_spike": {"sigmas": 0.1, "window_steps": 4}}})
# Rows of four times the original length.
YARN = Reference(
    sections=_with_model(
        rope_scaling={
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0,
            "beta_slow": 0.25,
        },
        **FEW_KV_HEADS,
    )
)  # fmt: skip
COMPRESSED = _with_model(use_attn_mask_compression=True)
SCALED = {
    "runner_wrapper": {
        "type": "MFTrainOneStepCell",
        "scale_sense": {
            "type": "DynamicLossScaleUpdateCell", "loss_scale_value": 1024, "scale_factor": 2, "scale_window": 1000,
        },
        "use_clip_grad": True,
        "max_grad_norm": 1.0,
    }
}  # fmt: skip
FOUR_LAYERS = Reference(sections=_with_model(num_hidden_layers=4))
PARTS = {"cpt": {"loss_chunks": 4}}
# With tensor 2, each rank has 256 of the 512 rows: the first trained row is on the second rank, and on the first.
ROWS = Reference(cpt={"trainable": ["embedding.word_embeddings.weight[300:]", "output_layer.weight[200:]"]})
# Their base is the reference's start, which is trained without adapters.
ADAPTERS = Reference(cpt={"lora": {"rank": 4, "alpha": 8}})
SOME_ADAPTERS = Reference(
    cpt={"lora": {"rank": 3, "alpha": 4, "rank_stabilized": True, "targets": ["q_proj", "v_proj", "down_proj"]}}
)
BFLOAT16 = _with_model(compute_dtype="bfloat16")

LAYOUTS: dict[str, Layout] = {
    "data 2": Layout(data=2),
    "data 2, accumulation 4": Layout(data=2, accumulation=4),
    "data 2, pipeline 2, sharded gradients": Layout(
        data=2, pipeline=2, accumulation=4, optimizer={"gradient_accumulation_shard": True}
    ),
    "data 2, no parallel optimizer": Layout(data=2, optimizer={"off": True}),
    "data 2, optimizer threshold 64 KB": Layout(data=2, optimizer={"parallel_optimizer_threshold": 64}),
    "data 4, optimizer shard size 2": Layout(data=4, optimizer={"optimizer_weight_shard_size": 2}),
    "data 2, guards that skip": Layout(data=2, reference=GUARDED),
    "data 2, loss scaling": Layout(data=2, sections=SCALED),
    "tensor 2": Layout(tensor=2),
    "tensor 2, accumulation 4": Layout(tensor=2, accumulation=4),
    "tensor 2, no sequence parallel": Layout(tensor=2, parallel_config={"use_seq_parallel": False}),
    "tensor 2, new rows": Layout(tensor=2, reference=ROWS),
    "tensor 2, accumulation 4, new rows, loss in parts": Layout(
        tensor=2, accumulation=4, sections=PARTS, reference=ROWS
    ),
    "tensor 2, adapters": Layout(tensor=2, reference=ADAPTERS),
    "data 2, tensor 2, pipeline 2, some adapters": Layout(
        data=2, tensor=2, pipeline=2, accumulation=4, reference=SOME_ADAPTERS
    ),
    "pipeline 2": Layout(pipeline=2, accumulation=4),
    "pipeline 2, recompute list": Layout(
        pipeline=2, accumulation=4, sections={"recompute_config": {"recompute": [1, 0]}}
    ),
    # Stage 0 has layers 0 and 2, stage 1 has layers 1 and 3.
    "pipeline 2, interleaved": Layout(
        pipeline=2, accumulation=4, sections=_with_model(pp_interleave_num=2), reference=FOUR_LAYERS
    ),
    "tensor 2, pipeline 2": Layout(tensor=2, pipeline=2, accumulation=4),
    "context 2": Layout(context=2, parallel_config={"context_parallel_algo": "colossalai_cp"}),
    "data 2, tensor 2, recompute": Layout(data=2, tensor=2, sections={"recompute_config": {"recompute": True}}),
    "data 2, tensor 2, select recompute": Layout(
        data=2, tensor=2, sections={"recompute_config": {"recompute": False, "select_recompute": True}}
    ),
    "data 2, tensor 2, Llama": Layout(data=2, tensor=2, reference=LLAMA),
    "data 2, tensor 2, Qwen2": Layout(data=2, tensor=2, reference=QWEN2),
    "data 2, tensor 2, YaRN": Layout(data=2, tensor=2, reference=YARN),
    "tensor 2, compressed mask": Layout(tensor=2, sections=COMPRESSED, reference=LONG),
    "data 2, documents within": Layout(data=2, reference=WITHIN),
    "tensor 2, context 2, documents within": Layout(
        tensor=2, context=2, parallel_config={"context_parallel_algo": "colossalai_cp"}, reference=WITHIN
    ),
    # bfloat16 has 8 significant bits: a rounding error of up to 0.4 % in every activation. The CPU computes in float32.
    "data 2, tensor 2, bfloat16": Layout(
        data=2, tensor=2, sections=BFLOAT16, max_loss_difference=2e-2, max_share_of_other_updates=0.5
    ),
    "data 2, tensor 2, pipeline 2": Layout(data=2, tensor=2, pipeline=2, accumulation=4),
    "data 2, tensor 2, loss in parts": Layout(data=2, tensor=2, sections=PARTS),
    "tensor 2, pipeline 2, loss in parts": Layout(tensor=2, pipeline=2, accumulation=4, sections=PARTS),
    "data 2, context 2, loss in parts": Layout(
        data=2, context=2, parallel_config={"context_parallel_algo": "colossalai_cp"}, sections=PARTS
    ),
}
