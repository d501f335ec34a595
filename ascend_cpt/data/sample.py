"""Creates a small sample corpus and tokenizer from the Python installation, without network access.

The general domain is English prose from `pydoc_data.topics` (the language reference) and the standard library's
docstrings. The code domain is the standard library's source. The same Python version always gives the same bytes.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.errors import DataError
from ascend_cpt.files import write_text, write_whole

logger = logging.getLogger(__name__)

EOD_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
RECORD_FILE = "sample.json"

_SAMPLE_VERSION = 1
_VOCAB_SIZE = 4096
_TOKENIZER_TRAINING_BYTES = 4 << 20
_CODE_BYTES = 5 << 20
_MAX_SOURCE_FILE_BYTES = 120_000
_MIN_DOCSTRING_CHARS = 100
_MIN_DOCUMENT_CHARS = 200
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "__pycache__", "encodings", "pydoc_data"}
)
_VALID_ONE_IN = 10


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text and its source."""

    text: str
    source: str
    module: str
    """The module (or topic) of the text, which determines its split."""


def make_sample(folder: Path, *, overwrite: bool = False) -> bool:
    """Write the sample corpus and its tokenizer to `folder`. Return False if they already exist and are complete.

    The files are `{general,code}/{train,valid}.{parquet,jsonl}` (columns: text, source), `tokenizer/` (a Hugging Face
    folder) and `sample.json` (written last, with the files' checksums).

    Raises:
        DataError: the folder cannot be written, or this Python has no standard-library source.
    """
    if not overwrite and is_whole(folder):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        splits = {name: split_documents(documents) for name, documents in collect_domains().items()}
        files = [path for name, split in splits.items() for path in _write_domain(folder / name, split)]
        files += _write_tokenizer(folder / "tokenizer", [split["train"] for split in splits.values()])
        record = {
            "sample_version": _SAMPLE_VERSION,
            "python": platform.python_version(),
            "tokenizers": importlib.metadata.version("tokenizers"),
            "domains": {name: _count(split) for name, split in splits.items()},
            "files": {str(path.relative_to(folder)): checksum_file(path) for path in files},
        }
        write_text(folder / RECORD_FILE, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{folder}: the sample corpus cannot be written: {error}") from error
    return True


def is_whole(folder: Path) -> bool:
    """Return whether `folder` has a complete sample corpus for this version, with matching checksums."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if record["sample_version"] != _SAMPLE_VERSION:
            return False
        return all(checksum_file(folder / name) == checksum for name, checksum in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def collect_domains() -> dict[str, list[Document]]:
    """Return each domain's documents, sorted, without short ones or exact duplicates (also across domains)."""
    sources = list(_find_source_files())
    if not sources:
        raise DataError(f"{sysconfig.get_path('stdlib')}: no Python source for the sample corpus")
    seen: set[str] = set()
    general = _deduplicate((*_read_topics(), *_read_docstrings(sources)), seen)
    code = _limit(_deduplicate(_read_code(sources), seen), _CODE_BYTES)
    return {"general": general, "code": code}


def split_documents(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Split into `train` and `valid` (about one in ten) by a hash of the module.

    A module's docstrings and its source, which contains them, are in the same split, so that no domain's training text
    is in the other's validation set.
    """
    split: dict[str, list[Document]] = {"train": [], "valid": []}
    for document in documents:
        split["valid" if int(_hash(document.module), 16) % _VALID_ONE_IN == 0 else "train"].append(document)
    return split


def _find_source_files() -> Iterator[tuple[str, str]]:
    """Yield (module path, source) of the standard library's readable UTF-8 files, in sorted order."""
    root = Path(sysconfig.get_path("stdlib"))
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix != ".py" or name.startswith("_sysconfigdata") or not path.is_file():
                continue
            try:
                source = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue
            yield path.relative_to(root).as_posix(), source.replace("\r\n", "\n")


def _read_topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        logger.warning("this Python has no pydoc_data.topics: the general sample consists of docstrings only")
        return
    for name in sorted(topics):
        yield Document(text=inspect.cleandoc(topics[name]), source=f"topic {name}", module=f"topic {name}")


def _read_docstrings(sources: Iterable[tuple[str, str]]) -> Iterator[Document]:
    """Yield one document per module: its docstring, and the names and docstrings of its classes and functions."""
    for path, source in sources:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        parts = [text for text in _walk_docstrings(tree, "") if len(text) >= _MIN_DOCSTRING_CHARS]
        yield Document(text="\n\n".join(dict.fromkeys(parts)), source=f"docstrings {path}", module=path)


def _walk_docstrings(node: ast.AST, prefix: str) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield f"{prefix}\n\n{docstring}" if prefix else docstring
        for child in node.body:
            name = getattr(child, "name", "")
            yield from _walk_docstrings(child, f"{prefix}.{name}" if prefix else name)


def _read_code(sources: Iterable[tuple[str, str]]) -> Iterator[Document]:
    for path, source in sources:
        if len(source) <= _MAX_SOURCE_FILE_BYTES:
            yield Document(text=source, source=path, module=path)


def _deduplicate(documents: Iterable[Document], seen: set[str]) -> list[Document]:
    """Remove short texts and duplicates, including duplicates of texts in `seen`, which is updated."""
    kept = []
    for document in documents:
        key = _hash(document.text)
        if key not in seen and len(document.text) >= _MIN_DOCUMENT_CHARS:
            seen.add(key)
            kept.append(document)
    return kept


def _limit(documents: list[Document], max_bytes: int) -> list[Document]:
    """Keep documents up to `max_bytes`, selected by hash to cover the whole library. The order is preserved."""
    kept: set[str] = set()
    num_bytes = 0
    for document in sorted(documents, key=lambda document: _hash(document.text)):
        num_bytes += len(document.text.encode())
        if num_bytes > max_bytes:
            break
        kept.add(document.source)
    return [document for document in documents if document.source in kept]


def _write_domain(folder: Path, split: dict[str, list[Document]]) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, documents in split.items():
        rows = [{"text": document.text, "source": document.source} for document in documents]
        jsonl = folder / f"{name}.jsonl"
        write_text(jsonl, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        parquet = folder / f"{name}.parquet"
        with write_whole(parquet) as temporary:
            pq.write_table(pa.Table.from_pylist(rows), temporary, row_group_size=64, compression="zstd")
        paths += [jsonl, parquet]
    return paths


def _write_tokenizer(folder: Path, domains: list[list[Document]]) -> list[Path]:
    """Train a byte-level BPE on equal, bounded parts of all domains and write it as a Hugging Face folder."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE - 2, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    part_bytes = _TOKENIZER_TRAINING_BYTES // len(domains)
    texts = [document.text for documents in domains for document in _limit(documents, part_bytes)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (EOD_TOKEN, PAD_TOKEN)]
    )
    assert tokenizer.get_vocab_size() == _VOCAB_SIZE, "the corpus is too small for the vocabulary"
    specials = {"eos_token": EOD_TOKEN, "pad_token": PAD_TOKEN}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
        # transformers would otherwise return token_type_ids, which these models do not take.
        "model_input_names": ["input_ids", "attention_mask"],
        **specials,
    }
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "tokenizer.json": tokenizer.to_str(pretty=False),
        "tokenizer_config.json": json.dumps(config, indent=1),
        "special_tokens_map.json": json.dumps(specials, indent=1),
    }
    for name, content in contents.items():
        write_text(folder / name, content + "\n")
    return [folder / name for name in contents]


def _count(split: dict[str, list[Document]]) -> dict[str, dict[str, int]]:
    return {
        name: {
            "num_documents": len(documents),
            "text_bytes": sum(len(document.text.encode()) for document in documents),
        }
        for name, documents in split.items()
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
