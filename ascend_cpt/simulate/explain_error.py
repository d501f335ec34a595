"""MindSpore's and MindFormers' errors, retold in one paragraph with the key of the configuration to change."""

from __future__ import annotations

import re

from ascend_cpt.config.loader import RunConfig

MAX_CHARACTERS = 600
# What the message says → the key, and what to do.
_ADVICE: tuple[tuple[str, str, str], ...] = (
    (r"num_attention_heads|'num_heads'", "parallel_config.model_parallel", "it must divide the attention heads"),
    (r"kv_num_heads|num_query_groups", "parallel_config.model_parallel", "it must divide the key-value heads"),
    (r"mask.compression", "model.model_config.use_attn_mask_compression", "set it to False for short rows"),
    (r"sequence parallelism without", "parallel_config.use_seq_parallel", "it needs model_parallel above 1"),
    (r"\boffset\b", "model.model_config.offset", "it must bring the layers of all stages to num_hidden_layers"),
    (r"micro.?(batch|size)", "parallel_config.micro_batch_num", "a pipeline needs as many micro batches as stages"),
    (r"pipeline", "parallel_config.pipeline_stage", "its stages must divide layers and devices"),
    (r"divisible|strategy|shard", "parallel_config", "a size of the model or the batch is not divisible by it"),
    (r"recompute", "recompute_config", "take True or False"),
    (r"dtype|bfloat16|float16", "model.model_config.compute_dtype", "this type is not possible here"),
)
# Where C++ begins to tell its own story.
_END_OF_MESSAGE = re.compile(r"\n-{10,}|\n- C\+\+ Call Stack|\n- The Traceback of Net Construct Code|\n- Ascend Error")


def explain_error(message: str, *, ending: str, log: str, config: RunConfig) -> str:
    """Return what went wrong in a paragraph.

    Args:
        message: The exception's text, empty when the process died without one.
        ending: How the process ended, for people.
        log: The end of its output.
        config: Where the key that helps was written.
    """
    if not message:
        cause = ending or "ended without a result"
        return f"the process {cause}; it said last: {_shorten(_last_lines(log))}"
    text = _shorten(_END_OF_MESSAGE.split(message)[0])
    for pattern, key, advice in _ADVICE:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{text} → {config.locate(*key.split('.'))}: {key}: {advice}"
    return f"{text} (no key of the configuration is known to help)"


def _last_lines(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip() and "[WARNING]" not in line]
    return " ".join(lines[-3:]) or "nothing"


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
