"""`--packing` through the command line: documents, counts and bytes of each kind of packing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from ascend_cpt.data.inspection import compute_statistics, verify
from ascend_cpt.data.packed.manifest import Manifest, load_manifest
from ascend_cpt.data.packed.packing import BEST_FIT, CONCAT, DOCUMENT, strip_padding
from ascend_cpt.data.packed.token_stream import TokenStream, read_rows
from ascend_cpt.data.pipeline import preprocess
from ascend_cpt.data.settings import PreprocessSettings

REPOSITORY = Path(__file__).resolve().parents[2]
SEQ_LENGTH = 63
WORDS = ["the", "model", "reads", "a", "row", "of", "tokens", "and", "learns", "from", "every", "one", "of", "them"]


def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "tools" / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    generator = np.random.default_rng(0)
    sizes = np.minimum(generator.lognormal(2.5, 1.2, 300).astype(int) + 1, 400)
    texts = [" ".join(generator.choice(WORDS, size)) for size in sizes]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path, texts


def list_bytes(manifest: Manifest) -> list[bytes]:
    return [(manifest.folder / shard.file).read_bytes()[:200_000_000] for shard in manifest.shards]


def check_readers(manifest: Manifest, lengths: list[int]) -> None:
    """Check what the inspection and the token stream read from rows that end in padding."""
    num_real = sum(lengths)
    verify(manifest)
    statistics = compute_statistics(manifest)
    assert int(statistics.token_counts.sum()) == num_real == int(statistics.lengths.sum())
    if manifest.packing != BEST_FIT:
        assert sorted(statistics.lengths.tolist()) == sorted(lengths)
    tokens = TokenStream(manifest)
    for start, count in ((0, 10), (num_real // 2, 300), (num_real - 40, 40), (0, num_real)):
        assert tokens.read(start, count).size == count
    assert sorted(tokens.read(0, num_real).tolist()) == sorted(
        np.repeat(np.arange(len(statistics.token_counts)), statistics.token_counts).tolist()
    )


@pytest.mark.parametrize("packing", [CONCAT, DOCUMENT, BEST_FIT])
def test_packing(packing: str, sample: Path, texts: tuple[Path, list[str]], tmp_path: Path) -> None:
    source, documents = texts
    options = ("--input", source, "--tokenizer-name-or-path", sample / "tokenizer", "--seq-length", SEQ_LENGTH)
    ran = run(
        "preprocess_data.py", *options, "--packing", packing, "--n-subs", 2, "--workers", 2,
        "--output-prefix", tmp_path / "many/x",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    manifest = load_manifest(tmp_path / "many/x_text_document")
    assert manifest.packing == packing
    tokenizer = Tokenizer.from_file(str(sample / "tokenizer/tokenizer.json"))
    lengths = [len(tokenizer.encode(text).ids) + 1 for text in documents]
    eod, pad = manifest.tokenizer.eod_id, manifest.tokenizer.pad_id
    found: list[str] = []
    num_real = 0
    for shard in manifest.shards:
        rows = read_rows(manifest.folder / shard.file, 0, shard.num_rows - 1)
        stream = strip_padding(rows, pad)
        num_real += stream.size
        if packing != BEST_FIT:
            parts = np.split(stream, np.flatnonzero(stream == eod) + 1)
        else:
            parts = [part for row in rows for part in np.split(row, np.flatnonzero(row == eod) + 1)]
        found += [tokenizer.decode(part[:-1].tolist()) for part in parts if part.size and part[-1] == eod]
    whole = [text for text, length in zip(documents, lengths, strict=True) if length <= SEQ_LENGTH + 1]
    assert len(found) == len(documents) == manifest.num_documents
    # The rests of long documents are in other rows than their beginnings with best fit.
    assert sorted(found) == sorted(documents) if packing != BEST_FIT else not set(whole) - set(found)
    assert num_real == manifest.num_tokens == sum(lengths)
    totals = json.loads((tmp_path / "many/x_text_document.manifest.json").read_text(encoding="utf-8"))["totals"]
    num_cells = manifest.num_rows * (SEQ_LENGTH + 1)
    assert totals["padding_tokens"] == num_cells - num_real
    num_cut = totals["num_cut_documents"]
    if packing == CONCAT:
        assert num_cut > len(documents) - len(whole)
    else:
        assert num_cut == len(documents) - len(whole)
    assert (
        f"packing {packing}: share of cut documents {100 * num_cut / len(documents):.2f} %, of padding "
        f"{100 * (1 - num_real / num_cells):.2f} %\n" in ran.stdout
    )
    assert (totals["padding_tokens"] / num_cells > 0.3) == (packing == DOCUMENT)

    (alone,) = preprocess(
        PreprocessSettings(
            inputs=(str(source),), output_prefix=str(tmp_path / "one/x"), seq_length=SEQ_LENGTH, num_shards=2,
            tokenizer_path=str(sample / "tokenizer"), packing=packing,
        )
    )  # fmt: skip
    assert alone.digest == manifest.digest
    assert list_bytes(alone) == list_bytes(manifest), "the same bytes for any number of workers"

    check_readers(manifest, lengths)


def test_settings_that_packing_excludes(sample: Path, texts: tuple[Path, list[str]], tmp_path: Path) -> None:
    options = ("--input", texts[0], "--tokenizer-name-or-path", sample / "tokenizer", "--output-prefix", tmp_path / "x")
    mmap = run("preprocess_data.py", *options, "--packing", "document", "--output-format", "mmap")
    assert mmap.returncode == 2 and "--packing document: an indexed dataset stores whole documents" in mmap.stderr
    drop = run("preprocess_data.py", *options, "--packing", "best-fit", "--tail", "drop", "--seq-length", 8)
    assert drop.returncode == 2 and "--tail drop: needs --packing concat" in drop.stderr
    assert not list(tmp_path.iterdir())
