"""Names of tokenizer types and engines, in a separate module so that `--help` imports nothing else."""

from __future__ import annotations

HUGGING_FACE = "PretrainedFromHF"
SENTENCE_PIECE = "SentencePiece"
TIKTOKEN = "TikToken"
TOKENIZER_TYPES = (HUGGING_FACE, SENTENCE_PIECE, TIKTOKEN)

ENGINES = ("auto", "gigatoken", "reference")
