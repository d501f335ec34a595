"""Megatron .bin/.idx as output, read by MindFormers, and as input, packed to the same MindRecord files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore.dataset import MindDataset
from tokenizers import Tokenizer

from ascend_cpt.data.packed.manifest import Manifest, check_shards, load_manifest
from ascend_cpt.data.pipeline import preprocess
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.errors import DataError

TEXTS = ["one two three", "x" * 3000, "four \u00e9\n\n", "<|endoftext|>"] * 10


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    folder = tmp_path_factory.mktemp("mmap")
    (folder / "sample").symlink_to(sample)
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def pack(corpus: Path, source: Path, prefix: Path, **settings: Any) -> Manifest:
    defaults = {"tokenizer_path": str(corpus / "sample" / "tokenizer")}
    (manifest,) = preprocess(
        PreprocessSettings(inputs=(str(source),), output_prefix=str(prefix), **defaults | settings)
    )
    return manifest


def read_rows(manifest: Manifest) -> list[list[int]]:
    files = [str(manifest.folder / shard.file) for shard in manifest.shards]
    dataset = MindDataset(files, shuffle=False)
    return [row["input_ids"].tolist() for row in dataset.create_dict_iterator(num_epochs=1, output_numpy=True)]


@pytest.mark.parametrize("num_shards", [1, 7])
def test_mindformers_reads_the_documents(corpus: Path, tmp_path: Path, num_shards: int) -> None:
    from mindformers.dataset.blended_datasets.indexed_dataset import IndexedDataset

    manifest = pack(corpus, corpus / "in.jsonl", tmp_path / "x", output_format="mmap", num_shards=num_shards)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "x_text_document.bin",
        "x_text_document.idx",
        "x_text_document.manifest.json",
    ]
    assert (manifest.seq_length, manifest.num_documents, len(manifest.shards)) == (None, len(TEXTS), 1)
    check_shards(manifest, checksums=True)
    dataset = IndexedDataset(str(tmp_path / "x_text_document"))
    assert dataset[0].dtype == np.uint16
    tokenizer = Tokenizer.from_file(str(corpus / "sample" / "tokenizer" / "tokenizer.json"))
    documents = [dataset[k].tolist() for k in range(len(dataset))]
    assert all(document[-1] == manifest.tokenizer.eod_id for document in documents)
    assert [tokenizer.decode(document[:-1], skip_special_tokens=False) for document in documents] == TEXTS
    assert dataset.document_indices.tolist() == list(range(len(TEXTS) + 1))
    assert pack(corpus, corpus / "in.jsonl", tmp_path / "x", output_format="mmap", num_shards=num_shards) == manifest


def test_bytes_do_not_depend_on_the_number_of_shards(corpus: Path, tmp_path: Path) -> None:
    for name, num_shards in (("one", 1), ("many", 60)):
        pack(corpus, corpus / "in.jsonl", tmp_path / name / "x", output_format="mmap", num_shards=num_shards)
    for name in ("x_text_document.bin", "x_text_document.idx"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


@pytest.mark.parametrize("append_eod", [True, False])
def test_mmap_input_gives_the_same_mindrecord(corpus: Path, tmp_path: Path, append_eod: bool) -> None:
    name = "dataset" if append_eod else None
    mmap = pack(
        corpus, corpus / "in.jsonl", tmp_path / "m", output_format="mmap", append_eod=append_eod, dataset_name=name
    )
    source = tmp_path / mmap.shards[0].index_file
    assert source.name == ("dataset.idx" if append_eod else "m_text_document.idx")
    direct = pack(corpus, corpus / "in.jsonl", tmp_path / "direct", seq_length=32)
    converted = pack(corpus, source, tmp_path / "converted", seq_length=32)
    assert read_rows(converted) == read_rows(direct), "EOD is added where it is missing, and not twice"
    assert (converted.num_tokens, converted.num_documents) == (direct.num_tokens, direct.num_documents)
    assert converted.engine["check"] == "the input holds ids"
    many = pack(corpus, source, tmp_path / "many", seq_length=32, num_shards=5)
    assert (many.num_tokens, many.num_documents, len(many.shards)) == (direct.num_tokens, len(TEXTS), 5)


@pytest.mark.parametrize("wrong", [5000, -3])
def test_other_tokenizer_is_detected(corpus: Path, tmp_path: Path, wrong: int) -> None:
    from ascend_cpt.data.packed.megatron_indexed import IndexedWriter
    from ascend_cpt.data.tokenizing.base import join_encoded

    writer = IndexedWriter(tmp_path / "x", np.dtype(np.int32))
    writer.write(join_encoded([[1, wrong]]))
    writer.close()
    with pytest.raises(DataError, match=f"contains id {wrong}, but the vocabulary of tokenizer has 4096"):
        pack(corpus, tmp_path / "x.idx", tmp_path / "out", seq_length=8)
    (tmp_path / "x.bin").unlink()
    with pytest.raises(DataError, match=r"x\.bin: cannot be read"):
        pack(corpus, tmp_path / "x.idx", tmp_path / "out", seq_length=8)


def test_command_line(corpus: Path, tmp_path: Path) -> None:
    tool = Path(__file__).resolve().parents[2] / "tools" / "preprocess_data.py"
    command = [sys.executable, tool, "--input", corpus / "in.jsonl", "--output-prefix", tmp_path / "x"]
    command += ["--tokenizer-name-or-path", corpus / "sample" / "tokenizer"]
    command += ["--output-format", "mmap", "--dataset-name", "dataset"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "in dataset.bin and dataset.idx" in result.stdout
    assert load_manifest(tmp_path / "dataset").output_format == "mmap"
