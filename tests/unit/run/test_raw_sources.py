"""Raw text in `cpt.sources`: settings, the cache, and what a killed run leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.cluster.job.launcher_files import PROGRESS_FILE, report_ready, wait_until_ready
from ascend_cpt.config.loader import load_config
from ascend_cpt.config.raw_schema import RawConfig
from ascend_cpt.data.packed.manifest import load_manifest
from ascend_cpt.errors import CptError, DataError
from ascend_cpt.run.raw_sources import find_raw_sources, pack_raw_sources
from ascend_cpt.run.resolve import load_run
from tests.ports import find_free_port
from tests.unit.test_flags import FLAGS

REPOSITORY = Path(__file__).resolve().parents[3]
TOKENIZER = REPOSITORY / "tests/reference/tasks"
EOD = json.loads((TOKENIZER / "tokenizer.json").read_text())["added_tokens"][0]["content"]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a configuration with one source of raw text; arguments are keys of `raw`."""
    (tmp_path / "text").mkdir()
    for number in range(2):
        lines = [json.dumps({"text": f"the cat sat on mat number {k} " * 20}) for k in range(10)]
        (tmp_path / f"text/{number}.jsonl").write_text("\n".join(lines))

    def run(**raw: Any) -> Path:
        keys = {"input": str(tmp_path / "text"), "tokenizer": str(TOKENIZER), "eod_token": EOD, "n_subs": 2, **raw}
        bases = [str(REPOSITORY / f"configs/base/{name}.yaml") for name in ("cpu_tiny", "qwen3_tiny")]
        cpt = {
            "init_from": "random",
            "seq_length": 64,
            "global_batch_size": 2,
            "train_tokens": 10 * 2 * 64,
            "schedule": {"peak_lr": 1e-3},
            "sources": {"web": {"raw": {key: value for key, value in keys.items() if value is not None}}},
        }
        path = tmp_path / "config.yaml"
        sections = {"base_config": bases, "output_dir": str(tmp_path / "output"), "cpt": cpt}
        path.write_text(yaml.safe_dump(sections, sort_keys=False))
        return path

    return run


def pack(path: Path) -> dict[str, str]:
    with JobChannel(rank=0, size=1, node=0, address=None) as channel:
        return pack_raw_sources(load_config(path), channel, print)


def find_prefix(path: Path) -> str:
    return find_raw_sources(load_config(path))[0].prefix


def test_packs_once_and_then_uses_the_cache(write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write()
    with pytest.raises(DataError, match=r"config.yaml:\d+: cpt.sources.web: the text of raw is not packed yet"):
        load_run(path, {}, world_size=1)
    prefix = pack(path)["web"]
    assert "raw      web: 2 json files, " in (first := capfd.readouterr()).out
    assert "to be packed in" in first.out and "packed 20 documents" in first.out
    assert "packed" in first.err and "Mtok/s" in first.err, "progress of the packing process"
    manifest = load_manifest(prefix)
    assert (manifest.seq_length, manifest.num_documents, len(manifest.shards)) == (64, 20, 2)
    written = {file: file.stat().st_mtime_ns for file in Path(prefix).parent.iterdir()}
    assert pack(path) == {"web": prefix}
    assert "packed earlier in" in (again := capfd.readouterr()).out
    assert not again.err
    assert written == {file: file.stat().st_mtime_ns for file in Path(prefix).parent.iterdir()}
    # Other programs find the dataset in the cache.
    assert load_run(path, {}, world_size=1).sources[0].manifest == manifest


def test_the_cache_depends_on_content_tokenizer_and_settings(write: Write, tmp_path: Path) -> None:
    path = write()
    before = find_prefix(path)
    os.utime(tmp_path / "text/0.jsonl", (1, 1))
    assert find_prefix(path) == before, "only the content counts"
    assert find_prefix(write(workers=1)) == before, "it does not change the bytes"
    assert find_prefix(write(packing="concat")) == before, "it is the default"
    found = {before, find_prefix(write(n_subs=3)), find_prefix(write(append_eod=False))}
    found |= {find_prefix(write(packing=packing)) for packing in ("document", "best-fit")}
    found.add(find_prefix(write(tokenizer_engine="reference")))
    found.add(find_prefix(write(input=str(tmp_path / "text/0.jsonl"))))
    found.add(find_prefix(write(input=str(tmp_path / "text/0.jsonl"), format="txt")))
    folder = tmp_path / "other"
    folder.mkdir()
    content = (TOKENIZER / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content)
    assert find_prefix(write(tokenizer=str(folder))) == before, "the name of the tokenizer does not count"
    record = json.loads(content)
    record["model"]["vocab"]["zzz"] = max(record["model"]["vocab"].values()) + 1
    (folder / "tokenizer.json").write_text(json.dumps(record))
    found.add(find_prefix(write(tokenizer=str(folder))))
    with (tmp_path / "text/0.jsonl").open("a") as file:
        file.write('\n{"text": "more"}')
    found.add(find_prefix(write()))
    assert len(found) == 10


def test_rows_are_packed_as_asked(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = load_manifest(pack(write(packing="document"))["web"])
    printed = capfd.readouterr().out
    assert "rows of 64, packing document: to be packed in" in printed
    assert re.search(r"packed 20 documents, \d+ tokens, \d+ rows, packing document: ", printed)
    assert manifest.packing == "document"
    assert manifest.padding_share > 0


def test_the_tokenizer_is_found_as_by_the_tool(write: Write, tmp_path: Path) -> None:
    """A tokenizer of the tasks comes with its type, and a name of another program means the same file."""
    expected = find_prefix(write())
    assert find_prefix(write(tokenizer_type="Qwen3Tokenizer", tokenizer=str(TOKENIZER / "tokenizer.json"))) == expected
    assert find_prefix(write(tokenizer_type="Llama3Tokenizer")) == expected, "no model file, but a tokenizer.json"
    tasks = {"cpt.validation": {"tokenizer": str(TOKENIZER), "sets": {"a": {"path": "a"}}}}
    path = write(tokenizer=None)
    assert find_raw_sources(load_config(path, tasks))[0].prefix == expected
    tasks["cpt.validation"]["tokenizer_type"] = "SentencePiece"
    with pytest.raises(CptError, match="cpt.sources.web.raw: .*no such tokenizer model file .* of type SentencePiece"):
        find_raw_sources(load_config(path, tasks))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"json_keys": ["text", "input"]}, "json_keys: .* give one key, and a source for each"),
        ({"tokenizer": None}, "tokenizer: missing, and init_from has none"),
        ({"tail": "cut"}, "tail: 'cut' is unknown; choose one of pad, drop"),
        ({"packing": "tight"}, "packing: 'tight' is unknown; choose one of concat, document, best-fit"),
        ({"packing": "best-fit", "tail": "drop"}, "tail: drop: needs packing: concat, because with best-fit every row"),
        ({"tokenizer_engine": "fast"}, "tokenizer_engine: 'fast' is unknown; choose one of auto, gigatoken, reference"),
        ({"tokenizer_type": "Qwen9Tokenizer"}, "tokenizer_type: 'Qwen9Tokenizer' is unknown; choose from Pretrained"),
        ({"input": "missing/*.jsonl"}, r"no file matches it as a glob \(paths are relative to"),
        ({"inputs": "x"}, "cpt.sources.web.raw.inputs: unknown key; did you mean 'input'"),
        ({"n_subs": 0}, "n_subs: must be at least 1"),
    ],
)
def test_bad_settings_are_refused(write: Write, raw: dict[str, Any], message: str) -> None:
    with pytest.raises(CptError, match=message) as caught:
        find_raw_sources(load_config(write(**raw)))
    assert "config.yaml:" in str(caught.value) and "cpt.sources.web.raw" in str(caught.value)


def test_every_flag_of_the_tool_has_a_key_or_a_reason() -> None:
    """The cache names the files and replaces nothing, and several machines pack before the job."""
    named = {"output-prefix", "output-format", "dataset-name", "seq-length", "overwrite", "tokenizer-model"}
    elsewhere = {"sub-range", "engine", "ray-address"}
    without_effect = {"log-interval", "no-append-bos", "no-append-eod"}
    flags = {flag.removeprefix("--") for flag in FLAGS["tools/preprocess_data.py"]}
    keys = {field.name.replace("_", "-") for field in dataclasses.fields(RawConfig)} - {"cache-dir"}
    renamed = {"tokenizer": "tokenizer-name-or-path"}
    assert flags - named - elsewhere - without_effect == {renamed.get(key, key) for key in keys}


@pytest.mark.parametrize("both", [True, False])
def test_a_source_has_either_path_or_raw(write: Write, both: bool) -> None:
    overrides = {"cpt.sources.web.path": "x"} if both else {"cpt.sources.code": {"max_epochs": 2}}
    with pytest.raises(CptError, match="give either path .packed data. or raw"):
        load_config(write(), overrides)


def test_an_error_of_the_packing_process_is_one_line(write: Write, tmp_path: Path) -> None:
    path = write(json_keys="body")
    with pytest.raises(DataError, match="cpt.sources.web.raw: .*body"):
        pack(path)
    assert not Path(find_prefix(path) + ".manifest.json").exists()


@pytest.mark.parametrize("shared", [True, False])
def test_one_process_or_one_on_each_node_packs(write: Write, tmp_path: Path, shared: bool) -> None:
    """Ranks 0 and 1 are on node 0, rank 2 is on node 1, with a folder of its own unless storage is shared."""
    path, port, shown = write(), find_free_port(), []

    def run(rank: int) -> dict[str, str]:
        folder = tmp_path / f"node{0 if shared else rank // 2}"
        config = load_config(path, {"output_dir": str(folder), "cpt.storage.shared": shared})
        address = ("127.0.0.1", port)
        with JobChannel(rank=rank, size=3, node=rank // 2, address=address, key=b"k" * 32) as channel:
            return pack_raw_sources(config, channel, lambda line: shown.append((rank, line)))

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(run, range(3)))
    assert sorted({rank for rank, _ in shown}) == ([0] if shared else [0, 2])
    assert results[0] == results[1]
    assert (results[2] == results[0]) is shared
    manifests = [load_manifest(result["web"]) for result in results]
    assert len({manifest.digest for manifest in manifests}) == 1


@pytest.mark.parametrize("trains", [True, False])
def test_the_scheduler_waits_for_rank_0(tmp_path: Path, trains: bool) -> None:
    """Without training there is no rendezvous, so that the scheduler does not wait for workers that have exited."""
    environ = {PROGRESS_FILE: str(tmp_path / "last_step")}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_until_ready, environ)
        time.sleep(0.3)
        assert not waiting.done()
        report_ready(environ, trains=trains)
        assert waiting.result(timeout=10) is trains
    assert wait_until_ready({}), "without a launcher there is nothing to wait for"


def test_only_a_manifest_makes_a_packed_dataset(write: Write) -> None:
    """What a killed run leaves: the data files may be in place, but the manifest is written last."""
    path = write()
    prefix = pack(path)["web"]
    manifest = Path(f"{prefix}.manifest.json")
    expected = manifest.read_bytes()
    manifest.unlink()
    data = Path(f"{prefix}.mindrecord0")
    data.write_bytes(data.read_bytes()[:1000])
    assert not find_raw_sources(load_config(path))[0].is_packed
    pack(path)
    assert manifest.read_bytes() == expected
    assert load_run(path, {}, world_size=1).sources[0].num_rows == load_manifest(prefix).num_rows
