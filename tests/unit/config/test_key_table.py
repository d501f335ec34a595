"""The checked-in key table. tests/integration compares it with MindFormers."""

from __future__ import annotations

from ascend_cpt.config.sections import load_key_table


def test_common_sections_are_known() -> None:
    sections = load_key_table()["sections"]
    for section in ("runner_config", "optimizer", "parallel_config", "parallel", "context", "model.model_config"):
        assert sections[section], section
    assert {"num_key_value_heads", "rope_theta", "tie_word_embeddings", "offset"} <= set(sections["model.model_config"])
