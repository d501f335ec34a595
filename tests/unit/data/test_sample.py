"""The sample corpus: deterministic, split without leakage, damage is detected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from ascend_cpt.data.sample import EOD_TOKEN, PAD_TOKEN, is_whole, make_sample
from ascend_cpt.errors import DataError

SPLITS = [(domain, split) for domain in ("general", "code") for split in ("train", "valid")]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    assert make_sample(folder)
    return folder


def read_rows(sample: Path, domain: str, split: str) -> list[dict[str, str]]:
    with open(sample / domain / f"{split}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_parquet_and_jsonl_hold_the_same(sample: Path) -> None:
    for domain, split in SPLITS:
        rows = read_rows(sample, domain, split)
        assert pq.read_table(sample / domain / f"{split}.parquet").to_pylist() == rows
        assert len(rows) > 10


def test_sizes(sample: Path) -> None:
    sizes = {key: sum(len(row["text"].encode()) for row in read_rows(sample, *key)) for key in SPLITS}
    assert 500_000 < sizes["general", "train"] < 10_000_000
    assert 1_000_000 < sizes["code", "train"] < 6_000_000
    assert sizes["general", "valid"] > 50_000 and sizes["code", "valid"] > 100_000


def test_no_duplicate_texts(sample: Path) -> None:
    texts = [row["text"] for key in SPLITS for row in read_rows(sample, *key)]
    assert len(texts) == len(set(texts))


def test_a_module_is_in_the_same_split_in_both_domains(sample: Path) -> None:
    modules = {}
    for split in ("train", "valid"):
        rows = read_rows(sample, "general", split) + read_rows(sample, "code", split)
        modules[split] = {row["source"].removeprefix("docstrings ") for row in rows}
    assert modules["train"] and modules["valid"]
    assert not modules["train"] & modules["valid"]


def test_tokenizer(sample: Path) -> None:
    tokenizer = Tokenizer.from_file(str(sample / "tokenizer" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 4096
    assert tokenizer.token_to_id(EOD_TOKEN) != tokenizer.token_to_id(PAD_TOKEN)
    text = "def main() -> None:\n\treturn 'gr\u00fc\u00df \U0001f600'\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    prose = read_rows(sample, "general", "valid")[0]["text"]
    assert len(prose.encode()) / len(tokenizer.encode(prose).ids) > 2.5


def test_deterministic_and_reused(sample: Path, tmp_path: Path) -> None:
    assert is_whole(sample)
    assert not make_sample(sample), "a whole sample is reused"
    shutil.copytree(sample, tmp_path / "copy")
    victim = tmp_path / "copy" / "code" / "valid.jsonl"
    original = victim.read_bytes()
    victim.write_bytes(original[:-1])
    assert not is_whole(tmp_path / "copy")
    assert make_sample(tmp_path / "copy"), "a damaged one is made again"
    assert victim.read_bytes() == original
    assert (tmp_path / "copy" / "sample.json").read_text() == (sample / "sample.json").read_text()


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        make_sample(tmp_path / "file" / "sample")
