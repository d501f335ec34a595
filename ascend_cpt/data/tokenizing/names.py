"""Names of tokenizer types and engines, kept in a separate module so that `--help` imports nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path

HUGGING_FACE = "PretrainedFromHF"
SENTENCE_PIECE = "SentencePiece"
TIKTOKEN = "TikToken"
TOKENIZER_TYPES = (HUGGING_FACE, SENTENCE_PIECE, TIKTOKEN)

OTHER_NAMES = {
    "HuggingFaceTokenizer": HUGGING_FACE,
    "Qwen2Tokenizer": HUGGING_FACE,
    "Qwen2TokenizerFast": HUGGING_FACE,
    "Qwen3Tokenizer": HUGGING_FACE,
    "LlamaTokenizerFast": HUGGING_FACE,
    "PreTrainedTokenizerFast": HUGGING_FACE,
    "LlamaTokenizer": SENTENCE_PIECE,
    "Llama2Tokenizer": SENTENCE_PIECE,
    "SentencePieceTokenizer": SENTENCE_PIECE,
    "GPTSentencePieceTokenizer": SENTENCE_PIECE,
    "Llama3Tokenizer": TIKTOKEN,
    "TikTokenizer": TIKTOKEN,
    "QwenTokenizer": TIKTOKEN,
}
"""Names of tokenizers in MindSpeed-LLM, Megatron-LM, MindFormers and transformers, and their type here."""

TYPE_HELP = f"{', '.join(TOKENIZER_TYPES)}, or a tokenizer's name such as Qwen3Tokenizer [%(default)s]"

MODEL_FILES = {
    SENTENCE_PIECE: ("tokenizer.model",),
    TIKTOKEN: ("tokenizer.model", "original/tokenizer.model", "qwen.tiktoken"),
}
"""Where the model file is looked for in a folder."""

ENGINES = ("auto", "gigatoken", "reference")


def parse_tokenizer_type(text: str) -> str:
    """Return the tokenizer type for one of its names. Case is ignored in `OTHER_NAMES`.

    Raises:
        argparse.ArgumentTypeError: the name is unknown.
    """
    by_name = {name.lower(): kind for name, kind in OTHER_NAMES.items()}
    if text not in TOKENIZER_TYPES and text.lower() not in by_name:
        raise argparse.ArgumentTypeError(
            f"{text!r} is unknown; choose from {', '.join(TOKENIZER_TYPES)}, or the name of a tokenizer such as "
            f"{', '.join(sorted(OTHER_NAMES))}"
        )
    return text if text in TOKENIZER_TYPES else by_name[text.lower()]


def find_named_tokenizer(type_name: str, path: str) -> tuple[str, str]:
    """Return the type and path of a tokenizer that was given by name, such as Llama2Tokenizer.

    The path may be the tokenizer's folder or any file in it. A folder with a tokenizer.json but no model file is read
    as a Hugging Face folder.
    """
    place = Path(path)
    if type_name == HUGGING_FACE:
        return type_name, str(place.parent if place.is_file() else place)
    if place.is_dir():
        found = [place / name for name in MODEL_FILES[type_name] if (place / name).is_file()]
        if found:
            return type_name, str(found[0])
        if (place / "tokenizer.json").is_file():
            return HUGGING_FACE, str(place)
    return type_name, str(place)
