"""tools/extend_vocabulary.py and convert_weights.py expand: whole folders from whole folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.data.readers.input_files import fingerprint_file
from ascend_cpt.data.texts import TextInput
from ascend_cpt.data.tokenizing.files import open_tokenizer
from ascend_cpt.data.tokenizing.names import HUGGING_FACE
from ascend_cpt.errors import CheckpointError, CptError, DataError
from ascend_cpt.model.families import HF_EMBEDDING, HF_OUTPUT
from ascend_cpt.run.growth.new_tokens import Extension, NewTokenSettings, add_new_tokens
from ascend_cpt.weights.hf_folder import HfFolder
from tests.growth import make_domain, make_general, write_byte_level, write_model, write_sentence_piece, write_texts

REPO_ROOT = Path(__file__).resolve().parents[3]


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPO_ROOT, capture_output=True, text=True, check=False, timeout=300
    )


def extend(tmp_path: Path, base: Path, name: str = "new", **changes: object) -> Extension:
    corpus = write_texts(tmp_path / "domain.jsonl", make_domain(1000))
    values: dict[str, object] = {
        "base": base,
        "target": tmp_path / name,
        "corpus": TextInput(paths=(str(corpus),)),
        "num_tokens": 30,
        "held_out_share": 0.1,
        "min_count": 3,
        **changes,
    }
    return add_new_tokens(NewTokenSettings(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_whole_model(tmp_path: Path, is_tied: bool) -> None:
    # The tokenizer has 302 ids; the 18 free rows of the model are used before new ones are added.
    base = write_model(tmp_path / "base", write_byte_level(tmp_path / "tokenizer"), 320, is_tied=is_tied)
    general = write_texts(tmp_path / "general.jsonl", make_general(50, seed=9))
    extension = extend(tmp_path, base, general=TextInput(paths=(str(general),)))
    assert (extension.first_id, extension.num_rows, extension.is_tied) == (302, 384, is_tied)
    new, old = HfFolder(tmp_path / "new"), HfFolder(base)
    new.check()
    assert new.config == {**old.config, "vocab_size": 384}
    record = json.loads((tmp_path / "new/new_tokens.json").read_text(encoding="utf-8"))
    for name in [HF_EMBEDDING] if is_tied else [HF_EMBEDDING, HF_OUTPUT]:
        before, after = old.read(name), new.read(name)
        assert np.array_equal(before[:302], after[:302])
        for token in record["tokens"]:
            expected = before[token["parts"]].mean(axis=0, dtype=np.float64)
            np.testing.assert_allclose(after[token["id"]], expected, atol=1e-7)
    assert open_tokenizer(HUGGING_FACE, tmp_path / "new").info.vocab_size == 332
    assert (tmp_path / "new/tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()
    held_out, general_texts = extension.comparisons["held out"], extension.comparisons["general"]
    assert 60 < held_out.num_documents < 140
    assert held_out.new_bytes_per_token > 1.4 * held_out.old_bytes_per_token
    assert (general_texts.num_documents, general_texts.unchanged_share) == (50, 1.0)
    assert record["comparisons"]["held out"]["num_new_tokens"] == held_out.num_new_tokens
    (corpus,) = TextInput(paths=(str(tmp_path / "domain.jsonl"),)).find_files()
    assert record["corpus"][0]["fingerprint"] == fingerprint_file(corpus)

    # The same command gives the same bytes.
    extend(tmp_path, base, "again", general=TextInput(paths=(str(general),)))
    for path in (tmp_path / "new").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_held_out_texts_are_not_learned_from(tmp_path: Path) -> None:
    """Every document has characters of its own, so the new pieces are only in the documents they were learned from."""
    base = write_sentence_piece(tmp_path / "base")
    texts = [(chr(0x4E00 + 2 * k) + chr(0x4E01 + 2 * k)) * 20 for k in range(60)]
    corpus = TextInput(paths=(str(write_texts(tmp_path / "own.jsonl", texts)),))
    extension = extend(tmp_path, base, corpus=corpus, held_out_share=0.5, num_tokens=20)
    held_out = extension.comparisons["held out"]
    assert 10 < held_out.num_documents < 50 and held_out.num_used == 0
    extension = extend(tmp_path, base, "given", corpus=corpus, held_out=corpus, num_tokens=20)
    assert extension.comparisons["held out"].num_used == 20


def test_a_part_of_a_large_corpus_is_used(tmp_path: Path) -> None:
    base = write_byte_level(tmp_path / "base")
    corpus = write_texts(tmp_path / "domain.jsonl", make_domain(1000))
    # A tenth of the bytes gives about a tenth of the counts.
    whole = extend(tmp_path, base, "whole", min_count=250, num_tokens=5)
    assert whole.num_tokens == 5
    with pytest.raises(DataError, match="new pieces that occur at least 250 times"):
        extend(tmp_path, base, "rare", max_bytes=corpus.stat().st_size // 10, min_count=250, num_tokens=5)
    # It is a random part, not the first one: of 60 documents, the new characters are not all from the first 20.
    texts = [(chr(0x4E00 + 2 * k) + chr(0x4E01 + 2 * k)) * 20 for k in range(60)]
    own = write_texts(tmp_path / "own.jsonl", texts)
    source = TextInput(paths=(str(own),))
    changes = {"corpus": source, "held_out": source, "max_bytes": own.stat().st_size // 2, "num_tokens": 40}
    extend(tmp_path, write_sentence_piece(tmp_path / "pieces"), "random", **changes)
    record = json.loads((tmp_path / "random/new_tokens.json").read_text(encoding="utf-8"))
    assert max(token["text"] for token in record["tokens"]) > texts[24]


def test_a_sentence_piece_model_and_its_weights(tmp_path: Path) -> None:
    tokenizer = write_sentence_piece(tmp_path / "tokenizer")
    extension = extend(tmp_path, write_model(tmp_path / "base", tokenizer, 512), num_tokens=60, multiple=64)
    assert extension.num_rows is not None and extension.num_rows % 64 == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "config.json", "model.safetensors", "new_tokens.json", "tokenizer.model",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"num_tokens": 0}, DataError, "--new-tokens 0: must be at least 1"),
        ({"held_out_share": 1.0}, DataError, "--heldout-share 1.0: must be between 0 and 1"),
        ({"held_out_share": 1e-9}, DataError, "no document of the corpus is held out; raise it, or give --heldout"),
        ({"num_tokens": 9000}, DataError, "--new-tokens 9000: the corpus has only"),
        ({"target": "base"}, CheckpointError, "already exists: remove it or choose another folder"),
        ({"corpus": TextInput(paths=("missing.jsonl",))}, DataError, "missing.jsonl"),
        ({"corpus": "other key"}, DataError, "no key 'body'"),
    ],
)
def test_errors(tmp_path: Path, changes: dict[str, object], kind: type[CptError], message: str) -> None:
    base = write_byte_level(tmp_path / "base")
    if changes.get("target") == "base":
        changes = {"target": base}
    if changes.get("corpus") == "other key":
        corpus = write_texts(tmp_path / "domain.jsonl", make_domain(10))
        changes = {"corpus": TextInput(paths=(str(corpus),), key="body")}
    with pytest.raises(kind, match=message):
        extend(tmp_path, base, **changes)
    assert not (tmp_path / "new").exists()


def test_the_tokenizer_must_fit_the_embedding(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", write_byte_level(tmp_path / "tokenizer"), 300)
    with pytest.raises(CheckpointError, match="ids up to 301, but the embedding has only 300 rows"):
        extend(tmp_path, base)


def find_line(lines: Sequence[str], start: str) -> str:
    (found,) = [line.strip() for line in lines if line.strip().startswith(start)]
    return found


def test_commands_print_the_keys_of_the_training(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", write_byte_level(tmp_path / "tokenizer"), 302)
    corpus = write_texts(tmp_path / "domain.jsonl", make_domain(1000))
    command = ["tools/extend_vocabulary.py", str(base), str(tmp_path / "new"), "--input", str(corpus)]
    result = run_tool(*command, "--new-tokens", "20", "--heldout-share", "0.1", "--min-count", "3", "--pad-to", "1")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "byte-level BPE: 20 new tokens, ids 302 to 321"
    assert find_line(lines, "model.model_config.vocab_size") == "model.model_config.vocab_size: 322"
    rows = "['embedding.word_embeddings.weight[302:]', 'output_layer.weight[302:]']"
    assert find_line(lines, "cpt.trainable").startswith(f"cpt.trainable: {rows}")
    wrong = run_tool(*command, "--new-tokens", "20", "--max-bytes", "ten")
    assert wrong.returncode == 2 and "error: --max-bytes: expected a number" in wrong.stderr

    result = run_tool("tools/convert_weights.py", "expand", str(base), str(tmp_path / "expanded"), "--every", "1")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert find_line(lines, "model.model_config.num") == "model.model_config.num_hidden_layers: 4"
    patterns = "['decoder.layers.1.*', 'decoder.layers.3.*']"
    assert find_line(lines, "cpt.trainable").startswith(f"cpt.trainable: {patterns}")
    record = json.loads((tmp_path / "expanded/new_blocks.json").read_text())
    assert (record["new_layers"], record["copied_from"]) == ([1, 3], [0, 1])
    assert (tmp_path / "expanded/tokenizer.json").is_file()
    wrong = run_tool("tools/convert_weights.py", "expand", str(base), str(tmp_path / "other"), "--every", "3")
    assert wrong.returncode == 2 and "--every 3: does not divide the 2 blocks; choose one of 1, 2" in wrong.stderr
