"""Small tokenizers, texts and a model for the tests of new tokens and new blocks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.weights.convert import Options, write_hf
from ascend_cpt.weights.dtypes import Array
from ascend_cpt.weights.safetensors_file import TensorInfo

EOD, ADDED = "<|endoftext|>", "<think>"
# fmt: off
_WORDS = "the cat and dog in an old house were not at home when rain came over hill".split()  # noqa: SIM905
# fmt: on
_NEW_WORDS = [
    "数据",
    "训练",
    "模型",
    "继续",
    "预训练",
    "分词器",
    "Qwertium",
    "qwertium",
    "zxcvbn",
    "词表",
    "嵌入",
    "ぁあ",
]


def make_general(num: int = 400, seed: int = 0) -> list[str]:
    """Return short English documents, the same for the same arguments."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(_WORDS, 12)).capitalize() + ".\n" for _ in range(num)]


def make_domain(num: int = 400, seed: int = 1) -> list[str]:
    """Return documents with words that the general ones lack, most of them Chinese."""
    generator = np.random.default_rng(seed)
    weights = np.arange(len(_NEW_WORDS), 0, -1) / sum(range(len(_NEW_WORDS) + 1))
    return [
        f"{' '.join(generator.choice(_WORDS, 3))} {''.join(generator.choice(_NEW_WORDS, 6, p=weights))}，"
        f"{' '.join(generator.choice(_NEW_WORDS, 3, p=weights))} 2026\n"
        for _ in range(num)
    ]


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def write_byte_level(folder: Path, vocab_size: int = 300) -> Path:
    """Train a byte-level BPE on the general documents, with two added tokens after its vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Qwen's.
    pattern = "|".join(
        [
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(make_general(), trainer)
    tokenizer.add_special_tokens([AddedToken(EOD, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(ADDED, special=False, normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    named = {"eos_token": EOD, "pad_token": EOD, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


def write_sentence_piece(folder: Path, model_type: str = "bpe", vocab_size: int = 400) -> Path:
    """Train a SentencePiece model like Llama 2's on the general documents."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_general()),
        model_prefix=str(folder / "tokenizer"),
        model_type=model_type,
        vocab_size=vocab_size,
        byte_fallback=model_type == "bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    return folder


def write_json_of_sentence_piece(folder: Path) -> None:
    """Write the tokenizer.json of a SentencePiece BPE model, as in a Llama 2 folder, with an added token after it."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = {model.id_to_piece(k): k for k in range(model.vocab_size())}
    merges = []
    for text in ids:
        pairs = [(text[:k], text[k:]) for k in range(1, len(text))]
        found = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += sorted(found, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    named = [("<unk>", 0), ("<s>", 1), ("</s>", 2), ("<pad>", len(ids))]
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for text, number in named
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": ids, "merges": [list(pair) for pair in merges]},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}), encoding="utf-8")


class RandomWeights:
    """A source of random weights for a model configuration."""

    def __init__(self, config: Mapping[str, Any], seed: int = 0) -> None:
        self.path = Path("random")
        self._seed = seed
        shapes = list_hf_shapes(read_sizes(config))
        self.tensors = {name: TensorInfo(name=name, dtype="F32", shape=shape) for name, shape in shapes.items()}

    def read(self, name: str) -> Array:
        index = list(self.tensors).index(name)
        values = np.random.default_rng([self._seed, index]).standard_normal(self.tensors[name].shape, np.float32)
        return values * np.float32(0.05) + np.float32("norm" in name)


def write_model(folder: Path, tokenizer: Path, vocab_size: int, *, is_tied: bool = False) -> Path:
    """Write a small Qwen3 with random weights and the files of a tokenizer."""
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": is_tied,
    }
    write_hf(RandomWeights(config), config, folder, Options(), sorted(tokenizer.glob("*")))
    return folder
