"""The user's run is checked with its data and weights where they are on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.errors import CptError
from ascend_cpt.rehearsal.dataset import Vocabulary, make_dataset
from ascend_cpt.rehearsal.shrink import compute_in_float32, shrink
from ascend_cpt.rehearsal.user_run import resolve_user_run
from ascend_cpt.rehearsal.weights import write_random_folder
from ascend_cpt.run.resolved_run import ResolvedRun
from tests.small_model import SMALL

CONFIG = Path(__file__).resolve().parents[3] / "configs/qwen3/cpt_qwen3_0_6b_4k.yaml"


def resolve(**overrides: object) -> ResolvedRun:
    return resolve_user_run(load_config(CONFIG, overrides), None, 8)


def pack(prefix: Path, *, vocab_size: int, seq_length: int = 4096) -> str:
    vocabulary = Vocabulary(size=vocab_size)
    make_dataset("none", prefix, num_rows=3, seq_length=seq_length, vocabulary=vocabulary, seed=1)
    return str(prefix)


def test_data_that_is_here_is_opened(tmp_path: Path) -> None:
    run = resolve(**{"cpt.sources.domain.path": pack(tmp_path / "x", vocab_size=1000)})
    assert [source.num_rows for source in run.sources] == [3]
    assert resolve().sources[0].num_rows > 1_000_000, "elsewhere it is assumed to be large enough"


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CptError, match="seq_length"):
        resolve(**{"cpt.sources.domain.path": pack(tmp_path / "short", vocab_size=1000, seq_length=128)})


def test_weights_that_are_here_must_be_of_the_model(tmp_path: Path) -> None:
    model = {**SMALL, "model_type": "qwen3", "qk_layernorm": True, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
    model |= {"architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 128}
    write_random_folder(model, tmp_path / "start", seed=1)
    with pytest.raises(CptError, match="a different model: vocab_size is"):
        resolve(**{"cpt.init_from": str(tmp_path / "start")})


def test_half_precision_is_replaced_and_printed() -> None:
    rehearsal = shrink(resolve(), 8)
    exact = compute_in_float32(rehearsal)
    assert rehearsal.model["compute_dtype"] == "bfloat16" and exact.model["compute_dtype"] == "float32"
    line = "compute_dtype: bfloat16 -> float32, for an exact comparison with one device"
    assert exact.changes == (*rehearsal.changes, line)
    assert not [value for key, value in exact.model.items() if key.endswith("dtype") and value != "float32"]
