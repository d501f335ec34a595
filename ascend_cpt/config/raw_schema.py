"""Raw text as a source in the `cpt:` section: `cpt.sources.<name>.raw`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

# schema.py has the same annotation, but it imports this module.
AtLeastOne = Annotated[int, "positive"]


@dataclass(frozen=True, kw_only=True)
class RawConfig:
    """Text that is packed before training. The keys are the flags of tools/preprocess_data.py."""

    input: tuple[str, ...]
    """Files, folders or globs."""
    format: str | None = None
    """Format of the files, for other endings and for folders with several formats."""
    json_keys: tuple[str, ...] = ("text",)
    """The key or column with the text."""
    handler_name: str = "GeneralPretrainHandler"
    """Handler that makes documents from records."""
    txt_documents: str = "line"
    """What one document is in .txt files: `line`, `blank-line` or `file`."""
    tokenizer: str | None = None
    """Hugging Face folder or model file; default: `cpt.validation.tokenizer`, or the folder `init_from`."""
    tokenizer_type: str | None = None
    """`PretrainedFromHF` (default), `SentencePiece`, `TikToken` or a tokenizer's name such as `Llama2Tokenizer`."""
    tokenizer_engine: str = "auto"
    """`auto`, `gigatoken` or `reference`: the library that encodes."""
    eod_token: str | None = None
    """End-of-document token; default: the tokenizer's eos_token."""
    append_eod: bool = True
    """End each document with the end-of-document token."""
    append_bos: bool = False
    """Begin each document with the tokenizer's bos_token."""
    parse_special_tokens: bool = False
    """Encode special tokens in documents as such instead of as text."""
    packing: str = "concat"
    """How documents become rows: `concat`, `document` or `best-fit`."""
    tail: str = "pad"
    """With `concat`: `pad` or `drop` the last, incomplete row of each file."""
    drop_duplicates: bool = False
    """Drop documents with the same text as an earlier one."""
    decontaminate: tuple[str, ...] = ()
    """Validation texts and task items: files, folders or globs. Drop documents that share an n-gram with them."""
    decontaminate_ngram: AtLeastOne = 13
    """Words of an n-gram."""
    decontaminate_action: str = "drop"
    """`drop` these documents, or only `list` them."""
    filters: str | None = None
    """YAML file with datatrove's filters."""
    drop_near_duplicates: bool = False
    """Drop all but the first document of each cluster of near-duplicates, found with MinHash."""
    minhash_ngram: AtLeastOne = 5
    """Words of a shingle."""
    minhash_buckets: AtLeastOne = 14
    """Near-duplicates agree in at least one bucket."""
    minhash_hashes: AtLeastOne = 8
    """Hashes of a bucket."""
    minhash_hash: str = "xxhash"
    """`xxhash` or `sha1`: hash of a shingle."""
    minhash_precision: AtLeastOne = 64
    """Bits of a hash: 64 or 32."""
    minhash_words: str = "english"
    """`english`, or `characters`: each Chinese character is a word."""
    max_bad_fraction: float = 0.001
    """Fail above this fraction of invalid records."""
    max_record_bytes: AtLeastOne | None = None
    """Reject longer records and documents."""
    n_subs: AtLeastOne = 8
    """Number of parts, each packed to one file by one process."""
    workers: AtLeastOne | None = None
    """Parallel processes; default: as many as there are cores."""
    cache_dir: str | None = None
    """Folder for the packed datasets; default: `packed` in `output_dir`."""
