"""Summarizes MindSpore and MindFormers errors in one paragraph, with the configuration key to change."""

from __future__ import annotations

import re

from ascend_cpt.config.loader import RunConfig

MAX_CHARACTERS = 600
# Pattern in the message, configuration key, advice.
_ADVICE: tuple[tuple[str, str, str], ...] = (
    (r"num_attention_heads|'num_heads'", "parallel_config.model_parallel", "it must divide num_attention_heads"),
    (r"kv_num_heads|num_query_groups", "parallel_config.model_parallel", "it must divide num_key_value_heads"),
    (r"mask.compression", "model.model_config.use_attn_mask_compression", "set it to False for short rows"),
    (r"sequence parallelism without", "parallel_config.use_seq_parallel", "it needs model_parallel above 1"),
    (r"\boffset\b", "model.model_config.offset", "its layers per stage must add up to num_hidden_layers"),
    (
        r"micro.?(batch|size)",
        "parallel_config.micro_batch_num",
        "there must be at least as many micro batches as stages",
    ),
    (r"pipeline", "parallel_config.pipeline_stage", "the numbers of layers and devices must be divisible by it"),
    (
        r"divisible|strategy|shard",
        "parallel_config",
        "a size of the model or the batch is not divisible by one of its values",
    ),
    (r"recompute", "recompute_config", "set it to True or False"),
    (r"dtype|bfloat16|float16", "model.model_config.compute_dtype", "this dtype is not supported here"),
)
# The start of a message's C++ part.
_END_OF_MESSAGE = re.compile(r"\n-{10,}|\n- C\+\+ Call Stack|\n- The Traceback of Net Construct Code|\n- Ascend Error")


def explain_error(message: str, *, ending: str, log: str, config: RunConfig) -> str:
    """Return the error as one paragraph.

    Args:
        message: The exception's text, or "" if the process ended without an exception.
        ending: How the process ended, as text.
        log: The end of the process's output.
        config: The configuration, to locate the key.
    """
    if not message:
        cause = ending or "ended without a result"
        return f"the process {cause}; its last output: {_shorten(_last_lines(log))}"
    text = _shorten(_END_OF_MESSAGE.split(message)[0])
    for pattern, key, advice in _ADVICE:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{text} → {config.locate(*key.split('.'))}: {key}: {advice}"
    return f"{text} (no known configuration key fixes this)"


def _last_lines(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip() and "[WARNING]" not in line]
    return " ".join(lines[-3:]) or "nothing"


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
