"""Extended tokenizers keep all old ids, merge old tokens only, and learn the most frequent pairs."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from ascend_cpt.data.tokenizing.base import Engine
from ascend_cpt.data.tokenizing.engine_choice import choose_engine
from ascend_cpt.data.tokenizing.files import open_tokenizer
from ascend_cpt.data.tokenizing.growth.byte_level import count_characters
from ascend_cpt.data.tokenizing.growth.compare_tokenizers import compare_tokenizers
from ascend_cpt.data.tokenizing.growth.learn_merges import Learned, LearnSettings
from ascend_cpt.data.tokenizing.growth.model_proto import is_bpe
from ascend_cpt.data.tokenizing.growth.open_growable import open_growable
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, SENTENCE_PIECE
from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine
from ascend_cpt.errors import DataError
from tests.growth import (
    ADDED,
    EOD,
    make_domain,
    make_general,
    write_byte_level,
    write_json_of_sentence_piece,
    write_sentence_piece,
)

SETTINGS = LearnSettings(num_pieces=30, min_count=3, max_chars=16)
KINDS = ["byte level", "sentence piece"]


def write_old(kind: str, folder: Path) -> Path:
    return write_byte_level(folder) if kind == "byte level" else write_sentence_piece(folder)


def extend(old: Path, new: Path, settings: LearnSettings = SETTINGS) -> tuple[int, Learned]:
    """Extend the tokenizer of a folder and return the first new id and what was learned."""
    tokenizer = open_growable(old)
    learned = tokenizer.learn(make_domain(), settings)
    new.mkdir()
    for path in old.iterdir():
        (new / path.name).write_bytes(path.read_bytes())
    for name, content in tokenizer.extend(learned).items():
        (new / name).write_bytes(content)
    return tokenizer.first_id, learned


def open_engine(folder: Path, kind: str) -> Engine:
    if kind == "byte level":
        return make_reference_engine(open_tokenizer(HUGGING_FACE, folder))
    return make_reference_engine(open_tokenizer(SENTENCE_PIECE, folder / "tokenizer.model"))


def encode(engine: Engine, text: str) -> list[int]:
    return [int(number) for number in engine.encode_batch([text]).ids]


@pytest.mark.parametrize("kind", KINDS)
def test_new_ids_replace_their_parts_and_nothing_else(tmp_path: Path, kind: str) -> None:
    old_folder, new_folder = write_old(kind, tmp_path / "old"), tmp_path / "new"
    first_id, learned = extend(old_folder, new_folder)
    old, new = open_engine(old_folder, kind), open_engine(new_folder, kind)
    assert len(learned.pieces) == len({piece.text for piece in learned.pieces}) == 30
    parts = {first_id + k: list(piece.parts) for k, piece in enumerate(learned.pieces)}
    used = set()
    for text in [*make_domain(seed=5), *make_general(seed=5), "new 数据 <|endoftext|><think>x\n\n  y", ""]:
        ids = encode(new, text)
        assert [part for number in ids for part in parts.get(number, [number])] == encode(old, text)
        used |= set(ids) & set(parts)
    assert len(used) > 8
    # Texts without new pieces keep their ids.
    unchanged = compare_tokenizers(old, new, first_id, make_general(seed=6))
    assert unchanged.num_unchanged == unchanged.num_documents == 400
    changed = compare_tokenizers(old, new, first_id, make_domain(seed=7))
    assert changed.num_unchanged == 0
    assert changed.new_bytes_per_token > 1.5 * changed.old_bytes_per_token


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_depend_only_on_the_input(tmp_path: Path, kind: str) -> None:
    old = write_old(kind, tmp_path / "old")
    for name in ("a", "b"):
        extend(old, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def merge_pair(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return tuple(merged)


def test_every_merge_is_of_the_most_frequent_pair(tmp_path: Path) -> None:
    """Compare with the definition: count all pairs within words before every merge."""
    from tokenizers import Tokenizer

    old = write_byte_level(tmp_path / "old")
    _, learned = extend(old, tmp_path / "new")
    tokenizer = Tokenizer.from_file(str(old / "tokenizer.json"))
    words: Counter[tuple[str, ...]] = Counter()
    for encoding in tokenizer.encode_batch(make_domain(), add_special_tokens=False):
        for word in dict.fromkeys(encoding.word_ids):
            words[tuple(t for t, w in zip(encoding.tokens, encoding.word_ids, strict=True) if w == word)] += 1
    vocabulary = set(tokenizer.get_vocab())
    assert len(learned.merges) == 30
    for pair in learned.merges:
        counts: Counter[tuple[str, str]] = Counter()
        for tokens, count in words.items():
            for neighbours in pairwise(tokens):
                counts[neighbours] += count
        assert counts[pair] == max(n for two, n in counts.items() if "".join(two) not in vocabulary)
        merged: Counter[tuple[str, ...]] = Counter()
        for tokens, count in words.items():
            merged[merge_pair(tokens, pair)] += count
        words = merged


def test_byte_level_keeps_ids_of_added_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    old = write_byte_level(tmp_path / "old")
    (old / "vocab.json").write_text(json.dumps(json.loads((old / "tokenizer.json").read_text())["model"]["vocab"]))
    (old / "merges.txt").write_text("#version: 0.2\na b\n")
    first_id, learned = extend(old, tmp_path / "new")
    assert first_id == 302  # 300 pieces and two added tokens
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (old, tmp_path / "new"))
    assert before.get_vocab().items() <= after.get_vocab().items()
    assert len(after) == len(before) + 30
    assert after.convert_tokens_to_ids([EOD, ADDED]) == [300, 301]
    assert after.convert_ids_to_tokens(first_id) == learned.pieces[0].text
    text = f"数据{EOD}the cat{ADDED} over 训练"
    assert after.decode(after.encode(text)) == text
    assert {300, 301} <= set(after.encode(text))
    assert after.encode(text) == encode(
        make_reference_engine(open_tokenizer(HUGGING_FACE, tmp_path / "new", parse_control=True)), text
    )
    # The files of slow tokenizers.
    assert json.loads((tmp_path / "new/vocab.json").read_text())[learned.pieces[0].text] == first_id
    lines = (tmp_path / "new/merges.txt").read_text().splitlines()
    assert lines[:2] == ["#version: 0.2", "a b"] and len(lines) == 32
    # The fast engine accepts the new tokenizer.
    file = open_tokenizer(HUGGING_FACE, tmp_path / "new")
    assert file.info.vocab_size == 332
    assert choose_engine(file, "auto", make_domain()).check == "same ids"


def test_sentence_piece_scores_and_characters(tmp_path: Path) -> None:
    import sentencepiece

    old, new = write_sentence_piece(tmp_path / "old"), tmp_path / "new"
    first_id, learned = extend(old, new, LearnSettings(num_pieces=60, min_count=3, max_chars=16))
    before, after = (
        sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")) for folder in (old, new)
    )
    assert after.vocab_size() == before.vocab_size() + 60 == first_id + 60
    scores = [after.get_score(k) for k in range(first_id, first_id + 60)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] < min(before.get_score(k) for k in range(first_id))
    texts = [after.id_to_piece(k) for k in range(first_id, first_id + 60)]
    assert texts == [piece.text for piece in learned.pieces]
    characters = [text for text in texts if len(text) == 1]
    assert texts[: len(characters)] == characters and "数" in characters and "ぁ" in characters
    assert "数据" in texts
    # Pieces contain one script, and no digits.
    assert not [text for text in texts if len(text) > 1 and any(c.isdigit() for c in text)]
    assert not [text for text in texts if "，" in text and len(text) > 1]
    # A character of which the old model has only bytes, and the new one neither.
    assert after.decode(after.encode("数据\U0001f600")) == "数据\U0001f600"


def test_sentence_piece_and_its_json_agree(tmp_path: Path) -> None:
    old, new = write_sentence_piece(tmp_path / "old"), tmp_path / "new"
    write_json_of_sentence_piece(old)
    first_id, _ = extend(old, new, LearnSettings(num_pieces=60, min_count=3, max_chars=16))
    model, content = open_engine(new, "sentence piece"), open_engine(new, "byte level")
    assert first_id == open_tokenizer(HUGGING_FACE, old).info.vocab_size
    same = compare_tokenizers(model, content, first_id, [*make_domain(seed=9), *make_general(seed=9)])
    assert same.num_unchanged == same.num_documents == 800
    assert same.num_used > 20
    # The token that only the tokenizer.json has keeps its id, and is a control token of the model.
    import sentencepiece

    after = sentencepiece.SentencePieceProcessor(model_file=str(new / "tokenizer.model"))
    assert after.id_to_piece(first_id - 1) == "<pad>" and after.is_control(first_id - 1)


def test_long_pieces_and_rare_pairs_are_left_out(tmp_path: Path) -> None:
    old = write_byte_level(tmp_path / "old")
    _, short = extend(old, tmp_path / "short", LearnSettings(num_pieces=500, min_count=3, max_chars=3))
    assert max(count_characters(piece.text) for piece in short.pieces) == 3
    tokenizer = open_growable(old)
    frequent = tokenizer.learn(make_domain(), LearnSettings(num_pieces=500, min_count=200, max_chars=16))
    assert len(frequent.pieces) < len(short.pieces) < 500


def test_characters_of_byte_level_texts() -> None:
    assert count_characters("ab") == 2
    assert count_characters("Ġæķ°") == 2  # a space and 数
    assert count_characters("æķ") == 1  # the first bytes of 数


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("unigram", "not a SentencePiece BPE model with byte fallback"),
        ("ranks", "a tiktoken rank file cannot be extended; use the model's Hugging Face folder"),
        ("empty", "contains neither tokenizer.json nor tokenizer.model"),
        ("other", "not a byte-level BPE tokenizer"),
        ("damaged", "the tokenizers library cannot load it"),
        ("mixed", "does not have the vocabulary of tokenizer.model"),
        ("missing", "no such folder"),
    ],
)
def test_tokenizers_that_cannot_be_extended(tmp_path: Path, case: str, message: str) -> None:
    folder = tmp_path / "old"
    if case != "missing":
        folder.mkdir()
    if case == "unigram":
        write_sentence_piece(folder, "unigram", 60)
        assert not is_bpe((folder / "tokenizer.model").read_bytes())
    elif case == "ranks":
        (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    elif case in ("other", "mixed"):
        write_sentence_piece(folder)
        write_json_of_sentence_piece(folder)
        if case == "other":
            (folder / "tokenizer.model").unlink()
        else:
            content = json.loads((folder / "tokenizer.json").read_text())
            content["model"]["vocab"] = {"a": 0}
            (folder / "tokenizer.json").write_text(json.dumps(content))
    elif case == "damaged":
        (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=message):
        open_growable(folder)


def test_byte_level_of_llama3_prefers_whole_words(tmp_path: Path) -> None:
    """With ignore_merges, a word that is a piece is encoded as that piece."""
    old = write_byte_level(tmp_path / "old")
    content = json.loads((old / "tokenizer.json").read_text())
    content["model"]["ignore_merges"] = True
    (old / "tokenizer.json").write_text(json.dumps(content))
    first_id, learned = extend(old, tmp_path / "new")
    engine = open_engine(tmp_path / "new", "byte level")
    before = open_engine(old, "byte level")
    same = compare_tokenizers(before, engine, first_id, make_general(seed=6))
    assert same.unchanged_share == 1
    texts = {first_id + k: before.decode(piece.parts) for k, piece in enumerate(learned.pieces)}
    whole = {number: text for number, text in texts.items() if "\ufffd" not in text}
    assert len(whole) > 5
    assert all(encode(engine, text) == [number] for number, text in whole.items())
