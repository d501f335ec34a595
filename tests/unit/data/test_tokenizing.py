"""Tokenizers: reading their files, and comparing the fast engine with the reference engine."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ascend_cpt.data.tokenizing import engine_choice, gigatoken_engine
from ascend_cpt.data.tokenizing.base import Encoded, Engine, TokenizerFile
from ascend_cpt.data.tokenizing.engine_choice import choose_engine, load_engine
from ascend_cpt.data.tokenizing.files import fingerprint_tokenizer, open_tokenizer
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, SENTENCE_PIECE, TIKTOKEN
from ascend_cpt.data.tokenizing.probe_texts import PROBE_TEXTS
from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine
from ascend_cpt.errors import DataError

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "tokenizers"


def save_tokenizer(folder: Path, specials: Sequence[str] = ("<|endoftext|>", "<|pad|>"), **config: Any) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the quick brown fox, the lazy dog and the end of text"] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"} | config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), pad_token="<|pad|>")


def ids_of(engine: Engine, text: str) -> list[int]:
    ids: list[int] = engine.encode_batch([text]).ids.tolist()
    return ids


def id_of(folder: Path, token: str) -> int:
    token_id: int = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token)
    return token_id


def test_hugging_face_folder(folder: Path) -> None:
    info = open_tokenizer(HUGGING_FACE, folder).info
    assert (info.eod_id, info.pad_id, info.bos_id) == (id_of(folder, "<|endoftext|>"), id_of(folder, "<|pad|>"), None)
    assert info.vocab_size == id_of(folder, "<think>") + 1
    assert info.fingerprint == fingerprint_tokenizer(folder)
    assert open_tokenizer(HUGGING_FACE, folder, eod_token="<|pad|>").info.eod_id == info.pad_id


@pytest.mark.parametrize(
    ("specials", "config", "expected"),
    [
        (["<|endoftext|>", "<|im_start|>", "<|fim_pad|>"], {"pad_token": "<|endoftext|>"}, "<|fim_pad|>"),
        (["<|endoftext|>", "<|im_start|>"], {}, "<|im_start|>"),
        (["<|endoftext|>", "<unk>", "<|x|>"], {"unk_token": {"content": "<unk>"}}, "<unk>"),
        (["<s>", "<|endoftext|>", "<|x|>"], {"bos_token": "<s>"}, "<|x|>"),
    ],
)
def test_padding_is_never_eod(tmp_path: Path, specials: list[str], config: dict[str, Any], expected: str) -> None:
    save_tokenizer(tmp_path, specials, **config)
    info = open_tokenizer(HUGGING_FACE, tmp_path).info
    assert info.pad_id == id_of(tmp_path, expected) != info.eod_id


def test_missing_padding_token_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_tokenizer(tmp_path, ["<|endoftext|>"])
    info = open_tokenizer(HUGGING_FACE, tmp_path).info
    assert info.pad_id != info.eod_id and "no padding token" in caplog.text


def test_fingerprint_does_not_depend_on_formatting(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    relaid = tmp_path / "relaid"
    relaid.mkdir()
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    (relaid / "tokenizer.json").write_text(json.dumps(content | {"truncation": {"max_length": 5}}, indent=3))
    assert fingerprint_tokenizer(relaid) == fingerprint_tokenizer(folder)
    content["model"]["merges"][:2] = content["model"]["merges"][1::-1]
    (relaid / "tokenizer.json").write_text(json.dumps(content))
    assert fingerprint_tokenizer(relaid) != fingerprint_tokenizer(folder)


def test_bad_tokenizers(folder: Path, tmp_path: Path) -> None:
    for type_name, path, message in (
        (HUGGING_FACE, tmp_path / "missing", "no such tokenizer folder"),
        (HUGGING_FACE, tmp_path, "contains no tokenizer.json"),
        (SENTENCE_PIECE, tmp_path / "missing.model", "no such tokenizer model file"),
        (SENTENCE_PIECE, folder / "tokenizer.json", "not a SentencePiece model"),
        (TIKTOKEN, folder / "tokenizer.json", "not a tiktoken rank file"),
    ):
        with pytest.raises(DataError, match=message):
            open_tokenizer(type_name, path)
    with pytest.raises(DataError, match="'<eod>' is not in the vocabulary"):
        open_tokenizer(HUGGING_FACE, folder, eod_token="<eod>")
    nameless = save_tokenizer(tmp_path / "nameless")
    (nameless / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="set one with --eod-token"):
        open_tokenizer(HUGGING_FACE, nameless)
    (nameless / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        open_tokenizer(HUGGING_FACE, nameless)
    (tmp_path / "few.tiktoken").write_text("YQ== 0\nYg== 1\n")
    with pytest.raises(DataError, match="no known tokenizer has 2 ranks"):
        open_tokenizer(TIKTOKEN, tmp_path / "few.tiktoken")


@pytest.mark.parametrize("requested", ["gigatoken", "reference"])
def test_control_strings_are_text_unless_parsed(folder: Path, requested: str) -> None:
    file = open_tokenizer(HUGGING_FACE, folder)
    engine = load_engine(file, choose_engine(file, requested, []))
    assert engine.name == ("gigatoken" if requested == "gigatoken" else "tokenizers")
    assert file.info.eod_id not in ids_of(engine, "the <|endoftext|> end")
    assert id_of(folder, "<think>") in ids_of(engine, "the <think> end"), "no control token: part of the text's rules"
    file = open_tokenizer(HUGGING_FACE, folder, parse_control=True)
    engine = load_engine(file, choose_engine(file, requested, []))
    assert file.info.eod_id in ids_of(engine, "the <|endoftext|> end")


def test_gigatoken_is_used_if_it_agrees(folder: Path) -> None:
    file = open_tokenizer(HUGGING_FACE, folder)
    chosen = choose_engine(file, "auto", ["a document"])
    assert (chosen.name, chosen.check) == ("gigatoken", "same ids")
    assert chosen.num_checked_texts > len(PROBE_TEXTS) and chosen.num_checked_tokens > 1000
    fast, reference = load_engine(file, chosen), load_engine(file, choose_engine(file, "reference", []))
    got, expected = fast.encode_batch(PROBE_TEXTS), reference.encode_batch(PROBE_TEXTS)
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_array_equal(got.offsets, expected.offsets)
    assert got.ids.dtype == np.int32


def test_a_difference_falls_back_with_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = engine_choice.GigatokenEngine

    class WrongEngine(real):  # type: ignore[valid-type, misc]
        def encode_batch(self, texts: Sequence[str]) -> Encoded:
            encoded: Encoded = super().encode_batch(texts)
            return Encoded(np.where(encoded.ids == encoded.ids[-1], 0, encoded.ids), encoded.offsets)

    monkeypatch.setattr(engine_choice, "GigatokenEngine", WrongEngine)
    file = open_tokenizer(HUGGING_FACE, folder)
    chosen = choose_engine(file, "auto", ["only here: ~"])
    assert chosen.name == "tokenizers" and "differs" in chosen.check
    assert "gigatoken gives different ids" in caplog.text
    requested = choose_engine(file, "gigatoken", [])
    assert requested.name == "gigatoken" and "used as requested, although its ids differ for " in requested.check


def test_a_tokenizer_that_gigatoken_cannot_load(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: TokenizerFile) -> None:
        raise engine_choice.UnsupportedTokenizerError("no such model\n\nLocation:\n    src/x.rs:1")

    monkeypatch.setattr(engine_choice, "GigatokenEngine", refuse)
    caplog.set_level(logging.WARNING)
    assert choose_engine(open_tokenizer(HUGGING_FACE, folder), "auto", []).name == "tokenizers"
    assert "gigatoken cannot load this tokenizer (no such model)" in caplog.text


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real vocabularies are not on this machine")
@pytest.mark.parametrize(
    ("type_name", "path", "engine", "expected"),
    [
        (HUGGING_FACE, "qwen3", "gigatoken", (151_646, 151_643, 151_644, None)),
        (HUGGING_FACE, "llama3", "gigatoken", (128_002, 128_001, 128_000, None)),
        (SENTENCE_PIECE, "llama2/tokenizer.model", "gigatoken", (32_000, 2, 0, 1)),
        (TIKTOKEN, "llama3/tokenizer.model", "tiktoken", (128_256, 128_001, 128_004, 128_000)),
        (TIKTOKEN, "qwen3/qwen.tiktoken", "gigatoken", (151_851, 151_643, 151_646, None)),
    ],
)
def test_real_vocabularies(type_name: str, path: str, engine: str, expected: tuple[int, ...]) -> None:
    file = open_tokenizer(type_name, SHARED / path)
    info: TokenizerInfo = file.info
    assert (info.vocab_size, info.eod_id, info.pad_id, info.bos_id) == expected
    chosen = choose_engine(file, "auto", [])
    assert chosen.name == engine
    used = load_engine(file, chosen)
    for text in ("Hello </s> <|endoftext|> <|end_of_text|> world", "caf\u00e9 \u4f60\u597d\n\n  x = 1"):
        assert info.eod_id not in ids_of(used, text)
        assert used.decode(ids_of(used, text)).strip() == text


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real vocabularies are not on this machine")
def test_wrong_type_suggests_the_right_one() -> None:
    with pytest.raises(DataError, match="use --tokenizer-type TikToken"):
        open_tokenizer(SENTENCE_PIECE, SHARED / "llama3" / "tokenizer.model")
    with pytest.raises(DataError, match="use --tokenizer-type SentencePiece"):
        open_tokenizer(TIKTOKEN, SHARED / "llama2" / "tokenizer.model")


def test_engine_is_recreated_to_bound_its_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = gigatoken_engine.GigatokenEngine(open_tokenizer(HUGGING_FACE, folder))
    expected = engine.encode_batch(PROBE_TEXTS)
    real, loaded = gigatoken_engine._load, []

    def load(file: TokenizerFile) -> Any:
        loaded.append(file)
        return real(file)

    monkeypatch.setattr(gigatoken_engine, "_load", load)
    monkeypatch.setattr(gigatoken_engine, "_MAX_GROWTH_BYTES", -(1 << 40))
    got = engine.encode_batch(PROBE_TEXTS)
    assert len(loaded) == 1, "it had grown beyond the bound"
    np.testing.assert_array_equal(got.ids, expected.ids)
    monkeypatch.setattr(gigatoken_engine, "_MAX_GROWTH_BYTES", 1 << 40)
    engine.encode_batch(PROBE_TEXTS)
    assert len(loaded) == 1


def test_only_new_characters_use_the_reference(folder: Path) -> None:
    engine = gigatoken_engine.GigatokenEngine(open_tokenizer(HUGGING_FACE, folder))
    for text in (
        "plain",
        "e\u0301 a\u0323\u0308",
        "\u4f60\u597d \u2014 \u0928\u092e\u0938\u094d\u0924\u0947 \U0001f600",
    ):
        engine.encode_batch([text])
        assert engine.reference is None, text
    engine.encode_batch(["\u0c15\u0c3c\u0301"])
    assert engine.reference is not None


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real vocabularies are not on this machine")
@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_every_character_and_pair_of_marks(name: str) -> None:
    file = open_tokenizer(HUGGING_FACE, SHARED / name)
    fast, reference = gigatoken_engine.GigatokenEngine(file), make_reference_engine(file)
    characters = [chr(k) for k in range(0x110000) if not 0xD800 <= k < 0xE000 and (k < 0x20000 or k % 8 == 0)]
    marks = [mark for mark in characters if unicodedata.combining(mark)]
    usual = "\u0300\u0301\u0302\u0307\u0308\u0323\u0334\u0345\u05b0\u0315\u094d\u3099"
    decompositions = [unicodedata.decomposition(character) for character in characters]
    new_blocks = (0x105C0, 0x10600), (0x11380, 0x11400), (0x11900, 0x11960), (0x16100, 0x16140), (0x16D40, 0x16D80)
    texts = [*characters, *(a + b for a in marks for b in marks)]
    texts += [text for a in characters[:0x20000] for b in usual for text in (f"a{a}{b}", f"a{b}{a}")]
    texts += ["".join(chr(int(k, 16)) for k in entry.split()) for entry in decompositions if entry and entry[0] != "<"]
    texts += [chr(a) + chr(b) for first, after in new_blocks for a in range(first, after) for b in range(first, after)]
    for begin in range(0, len(texts), 20_000):
        batch = texts[begin : begin + 20_000]
        np.testing.assert_array_equal(fast.encode_batch(batch).ids, reference.encode_batch(batch).ids)
