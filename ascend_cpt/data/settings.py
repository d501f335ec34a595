"""Settings for a preprocessing run."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ascend_cpt.data.packed.manifest import OUTPUT_FORMATS
from ascend_cpt.data.packed.packing import CONCAT, PACKINGS
from ascend_cpt.data.readers.input_files import FORMATS
from ascend_cpt.data.tokenizing.names import ENGINES, HUGGING_FACE, TOKENIZER_TYPES
from ascend_cpt.errors import DataError

RUN_ENGINES = ("local", "ray")
TAILS = ("pad", "drop")
TXT_DOCUMENTS = ("line", "blank-line", "file")
MAX_RECORD_BYTES = 1 << 30
MAX_SEQ_LENGTH = 1 << 24
MAX_SHARDS = 100_000
MAX_NGRAM = 1000
MAX_HASHES = 4096
DECONTAMINATION_ACTIONS = ("drop", "list")
MINHASH_FUNCTIONS = ("xxhash", "sha1")
MINHASH_PRECISIONS = (64, 32)
MINHASH_WORDS = ("english", "characters")
INPUT_FORMATS = tuple(sorted(set(FORMATS.values())))


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings:
    """Settings for tools/preprocess_data.py; see its `--help`."""

    inputs: tuple[str, ...]
    output_prefix: str
    tokenizer_path: str
    seq_length: int = 0
    """Required for MindRecord; 0 for mmap."""
    tokenizer_type: str = HUGGING_FACE
    tokenizer_engine: str = "auto"
    handler_name: str = "GeneralPretrainHandler"
    json_keys: tuple[str, ...] = ("text",)
    input_format: str | None = None
    output_format: str = "mindrecord"
    dataset_name: str | None = None
    """Name of the dataset files, instead of `{output_prefix}_{key}_document`."""
    num_shards: int = 1
    workers: int = 1
    engine: str = "local"
    """`local` (processes of this machine) or `ray`."""
    ray_address: str | None = None
    sub_range: tuple[int, int] | None = None
    """Pack only these shards (start, stop), without a manifest."""
    append_eod: bool = True
    append_bos: bool = False
    eod_token: str | None = None
    parse_special_tokens: bool = False
    tail: str = "pad"
    packing: str = CONCAT
    """How documents are put into rows: one of `PACKINGS`."""
    txt_documents: str = "line"
    max_bad_fraction: float = 0.001
    max_record_bytes: int | None = None
    """Longer records are rejected; None for the default, which keeps a worker below 1 GB."""
    drop_duplicates: bool = False
    """Drop documents with identical text."""
    decontaminate: tuple[str, ...] = ()
    """Files, folders or globs with evaluation items; see `selection/decontamination.py`."""
    decontaminate_ngram: int = 13
    """Words of an n-gram that must not be shared with an evaluation item."""
    decontaminate_action: str = "drop"
    """`drop` documents that share an n-gram, or only `list` them."""
    drop_near_duplicates: bool = False
    """Drop near-duplicates, found with MinHash; see `selection/near_duplicates.py`."""
    minhash_ngram: int = 5
    minhash_buckets: int = 14
    minhash_hashes: int = 8
    """Hashes of a bucket."""
    minhash_hash: str = "xxhash"
    minhash_precision: int = 64
    minhash_words: str = "english"
    """`english`, or `characters`: each Han character is a word."""
    filters_path: str | None = None
    """YAML file with the filters for datatrove; see `selection/datatrove_filters.py`."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the settings without accessing files. Raise DataError for the first problem."""
        for is_good, message in (
            (
                self.seq_length >= 1 or self.output_format == "mmap",
                f"--seq-length {self.seq_length}: must be at least 1",
            ),
            (self.seq_length <= MAX_SEQ_LENGTH, f"--seq-length {self.seq_length}: must be at most {MAX_SEQ_LENGTH}"),
            (
                self.packing == CONCAT or self.output_format != "mmap",
                f"--packing {self.packing}: an indexed dataset stores whole documents, which training concatenates and "
                "cuts into rows; use --output-format mindrecord",
            ),
            (
                self.packing == CONCAT or self.tail == "pad",
                f"--tail {self.tail}: needs --packing {CONCAT}, because with {self.packing} every row may be padded",
            ),
            (self.num_shards >= 1, f"--n-subs {self.num_shards}: must be at least 1"),
            (self.num_shards <= MAX_SHARDS, f"--n-subs {self.num_shards}: must be at most {MAX_SHARDS}"),
            (self.workers >= 1, f"--workers {self.workers}: must be at least 1"),
            (0 <= self.max_bad_fraction <= 1, f"--max-bad-fraction {self.max_bad_fraction}: must be from 0 to 1"),
            (
                self.max_record_bytes is None or 1 <= self.max_record_bytes <= MAX_RECORD_BYTES,
                f"--max-record-bytes {self.max_record_bytes}: must be from 1 to {MAX_RECORD_BYTES}",
            ),
            (self.inputs, "--input: give at least one file, folder or glob"),
            (self.json_keys, "--json-keys: give at least one key"),
            (len(set(self.json_keys)) == len(self.json_keys), "--json-keys: duplicate key"),
            (
                not any(os.sep in key for key in self.json_keys),
                f"--json-keys: a key is used in file names and must not contain {os.sep}",
            ),
            (
                not self.dataset_name or len(self.json_keys) == 1,
                "--dataset-name: not possible with several --json-keys",
            ),
            (
                os.sep not in (self.dataset_name or ""),
                "--dataset-name: must be a file name without a folder",
            ),
            (
                "\0" not in "".join((self.output_prefix, self.dataset_name or "", *self.json_keys)),
                "--output-prefix, --dataset-name, --json-keys: a file name must not contain a NUL character",
            ),
            (os.path.basename(self.output_prefix), f"--output-prefix {self.output_prefix}: must end in a file name"),
        ):
            if not is_good:
                raise DataError(message)
        if self.sub_range is not None and not 0 <= self.sub_range[0] < self.sub_range[1] <= self.num_shards:
            first, after = self.sub_range
            raise DataError(f"--sub-range {first}:{after}: must be A:B with 0 <= A < B <= --n-subs ({self.num_shards})")
        self._check_selection()
        assert self.engine in RUN_ENGINES
        assert self.packing in PACKINGS
        assert self.tail in TAILS and self.txt_documents in TXT_DOCUMENTS and self.output_format in OUTPUT_FORMATS
        assert self.tokenizer_engine in ENGINES and self.tokenizer_type in TOKENIZER_TYPES
        assert self.input_format is None or self.input_format in INPUT_FORMATS

    def _check_selection(self) -> None:
        if self.sub_range is not None and self.selection_flags:
            flags = " and ".join(self.selection_flags)
            need = "need" if len(self.selection_flags) > 1 else "needs"
            raise DataError(f"--sub-range: {flags} {need} all documents; run without a range")
        for flag, value, maximum in (
            ("--decontaminate-ngram", self.decontaminate_ngram, MAX_NGRAM),
            ("--minhash-ngram", self.minhash_ngram, MAX_NGRAM),
            ("--minhash-buckets", self.minhash_buckets, MAX_HASHES),
            ("--minhash-hashes", self.minhash_hashes, MAX_HASHES),
            ("--minhash-buckets * --minhash-hashes", self.minhash_buckets * self.minhash_hashes, MAX_HASHES),
        ):
            if not 1 <= value <= maximum:
                raise DataError(f"{flag} {value}: must be from 1 to {maximum}")
        assert self.decontaminate_action in DECONTAMINATION_ACTIONS
        assert self.minhash_hash in MINHASH_FUNCTIONS and self.minhash_precision in MINHASH_PRECISIONS
        assert self.minhash_words in MINHASH_WORDS

    @property
    def selection_flags(self) -> tuple[str, ...]:
        """The given flags that select documents to drop or to list."""
        return (
            *(("--drop-duplicates",) if self.drop_duplicates else ()),
            *(("--decontaminate",) if self.decontaminate else ()),
            *(("--filters",) if self.filters_path is not None else ()),
            *(("--drop-near-duplicates",) if self.drop_near_duplicates else ()),
        )

    def dataset_prefix(self, key: str) -> str:
        """Return the prefix of the dataset for `key`."""
        if self.dataset_name:
            return os.path.join(os.path.dirname(self.output_prefix), self.dataset_name)
        return f"{self.output_prefix}_{key}_document"
