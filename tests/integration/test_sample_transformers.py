"""transformers loads the sample tokenizer."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from ascend_cpt.data.sample import EOD_TOKEN, PAD_TOKEN


def test_auto_tokenizer_loads_the_sample_tokenizer(sample: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sample / "tokenizer")
    assert (tokenizer.eos_token, tokenizer.pad_token) == (EOD_TOKEN, PAD_TOKEN)
    assert len(tokenizer) == 4096
    text = "Hello, w\u00f6rld!\n    indented"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert set(tokenizer(text)) == {"input_ids", "attention_mask"}
