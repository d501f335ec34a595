"""Needle tasks are made from packed datasets, which are checked before a run starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.data.packed.manifest import Manifest, Shard, load_manifest, manifest_path, write_manifest
from ascend_cpt.data.packed.mindrecord_writer import FormatWriter
from ascend_cpt.data.tokenizing.files import open_tokenizer
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import ConfigError, DataError
from ascend_cpt.run.checks.job import check_job
from ascend_cpt.run.evaluation.needles import open_haystacks, open_needle_task
from ascend_cpt.run.evaluation.tasks import describe_tasks, load_tasks
from ascend_cpt.run.resolve import load_run
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.verified import ALONE

REPOSITORY = Path(__file__).resolve().parents[3]
INFO = TokenizerInfo(type="x", name="x", fingerprint="x", vocab_size=4096, eod_id=0, pad_id=1)
TEXT = "The river runs through the old town. People walk along it every evening, and children play there. "


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<eod>"])
    tokenizer.train_from_iterator([TEXT * 10], trainer)
    return tokenizer


TOKENIZER = train_tokenizer()


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Write a dataset of about 3000 tokens in rows of 65; return its prefix."""
    ids = np.array([*encode(TEXT * 40), 0], np.int32)
    ids = np.tile(ids, 3000 // len(ids) + 1)
    rows = np.full((-(-len(ids) // 65), 65), 1, np.int32)
    rows.reshape(-1)[: len(ids)] = ids
    writer = FormatWriter(tmp_path / "books.mindrecord0")
    writer.write(rows)
    writer.close()
    files = [tmp_path / name for name in ("books.mindrecord0", "books.mindrecord0.db")]
    sizes = [file.stat().st_size for file in files]
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    shard = Shard(
        file=files[0].name, size_bytes=sizes[0], sha256=sums[0], index_file=files[1].name, index_size_bytes=sizes[1],
        index_sha256=sums[1], num_rows=len(rows), num_tokens=len(ids), num_documents=1, text_bytes=1,
    )  # fmt: skip
    manifest = Manifest(key="text", output_format="mindrecord", seq_length=64, tokenizer=INFO, shards=(shard,))
    write_manifest(manifest, manifest_path(tmp_path / "books"))
    return tmp_path / "books"


def test_task_of_a_dataset(packed: Path) -> None:
    config = TaskConfig(path=str(packed), kind="needle", lengths=(256, 512), depths=3)
    task = open_needle_task("find", config, encode, INFO, seq_length=512, add_prefix=False)
    assert task.num_items == 6 and len(task.requests) == 24
    for request in task.requests:
        text = TOKENIZER.decode(list(request.context))
        value = re.search(r"(\d{7})\.\n", text)
        assert value is not None and re.search(r"\nAnswer: The [^\n]* is$", text) and "the old town" in text
        right = TOKENIZER.decode(list(request.continuation)) == f" {value[1]}"
        assert right == (request.choice == task.gold[request.item])
        assert len(request.context) + len(request.continuation) == int(task.cells[request.item].split("/")[0])
    middle = TOKENIZER.decode(list(task.requests[4].context))
    assert task.cells[1] == "256/0.5" and re.search(r"[.] ?\nThe [^\n]* is \d{7}[.]\n", middle), "after a sentence"


def test_needle_tasks_are_loaded_with_the_other_ones(packed: Path, tmp_path: Path) -> None:
    """With the tokenizer's own files; `open_needle_task` gets the same items from them."""
    (tmp_path / "tokenizer").mkdir()
    TOKENIZER.save(str(tmp_path / "tokenizer/tokenizer.json"))
    settings = {"eos_token": "<eod>", "bos_token": "<eod>"}
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    info = open_tokenizer("PretrainedFromHF", tmp_path / "tokenizer").info
    write_manifest(dataclasses.replace(load_manifest(packed), tokenizer=info), manifest_path(packed))
    (tmp_path / "items.jsonl").write_text('{"context": "two and two is", "continuation": " four"}\n', encoding="utf-8")
    configs = {
        "words": TaskConfig(path=str(tmp_path / "items.jsonl"), kind="continuation"),
        "find": TaskConfig(path=str(packed), kind="needle", lengths=(256,), depths=3),
    }
    words, find = load_tasks(
        configs,
        tokenizer=tmp_path / "tokenizer",
        tokenizer_type="PretrainedFromHF",
        seq_length=256,
        manifests={},
    )
    assert words.kind == "continuation" and words.num_items == 1
    assert find == open_needle_task("find", configs["find"], encode, info, seq_length=256, add_prefix=False)
    assert describe_tasks([find], 256) == ["task     find: 3 items, 12 rows of 256 tokens per evaluation"]


def test_dataset_of_another_tokenizer(packed: Path) -> None:
    other = dataclasses.replace(INFO, fingerprint="y", name="other")
    with pytest.raises(
        ConfigError, match=r"task find: .*books was packed with a different tokenizer \(x\) than .* \(other"
    ):
        open_needle_task(
            "find", TaskConfig(path=str(packed), kind="needle"), encode, other, seq_length=512, add_prefix=False
        )


def test_short_dataset(packed: Path) -> None:
    config = TaskConfig(path=str(packed), kind="needle", lengths=(8192,))
    with pytest.raises(DataError, match=r"books: has \d+ tokens, but the longest haystack of task find needs 8"):
        open_needle_task("find", config, encode, INFO, seq_length=8192, add_prefix=False)


def test_missing_dataset_is_named_before_a_run_starts(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the sample of the quickstart is not
    config = REPOSITORY / "configs/qwen3/cpt_qwen3_tiny.yaml"
    overrides: dict[str, Any] = {"cpt.validation.tasks": {"find": {"path": str(tmp_path / "none"), "kind": "needle"}}}
    with pytest.raises(DataError, match=r"command line: cpt\.validation\.tasks\.find: .*none") as caught:
        load_run(config, overrides, world_size=1)
    assert "\n" not in str(caught.value)
    overrides["cpt.validation.tasks"]["find"]["path"] = str(packed)
    with pytest.raises(DataError, match=r"cpt\.sources\.code"):  # the next dataset that is missing
        load_run(config, overrides, world_size=1)


def test_the_haystack_is_verified_before_a_run(
    packed: Path, tmp_path: Path, resolve_run: Callable[..., ResolvedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As other packed data: by size when it is opened, by checksum when the job is checked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tasks = {
        "find": TaskConfig(path=str(packed), kind="needle"),
        "exam": TaskConfig(path="none.jsonl", kind="multiple_choice"),
    }
    sums = [checksum_file(tmp_path / name) for name in ("books.mindrecord0", "books.mindrecord0.db")]
    manifest = load_manifest(packed)
    shard = dataclasses.replace(manifest.shards[0], sha256=sums[0], index_sha256=sums[1])
    write_manifest(dataclasses.replace(manifest, shards=(shard,)), manifest_path(packed))
    run = dataclasses.replace(resolve_run(), sources=(), validation=())
    haystacks = open_haystacks(tasks)
    assert list(haystacks) == ["find"]
    check_job(run, ALONE, haystacks)
    path = tmp_path / "books.mindrecord0"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 100)
        file.write(b"\xff\x01")
    with pytest.raises(DataError, match="books.mindrecord0: content differs from the checksum"):
        check_job(run, ALONE, open_haystacks(tasks))
    path.unlink()
    with pytest.raises(DataError, match="task find: .*books.mindrecord0: missing"):
        open_haystacks(tasks)
