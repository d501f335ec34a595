"""The identity of a dataset: everything that determines its content. Used to detect finished or changed output."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ascend_cpt.data.packed.manifest import Manifest, SourceFile
from ascend_cpt.data.packed.packing import CONCAT
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.data.tokenizing.info import TokenizerInfo

Identity = dict[str, Any]
"""JSON values with the keys `settings`, `sources` and `tokenizer`, as in the manifest."""

# Key in the manifest → attribute of PreprocessSettings. Keys must not change: they are stored in datasets.
_DECISIVE_SETTINGS = {
    "json_keys": "json_keys",
    "seq_length": "seq_length",
    "num_subs": "num_shards",
    "append_eod": "append_eod",
    "append_bos": "append_bos",
    "tail": "tail",
    "txt_documents": "txt_documents",
    "output_format": "output_format",
    "dataset_name": "dataset_name",
    "parse_special_tokens": "parse_special_tokens",
    "tokenizer_engine": "tokenizer_engine",
    "drop_duplicates": "drop_duplicates",
}


def make_identity(
    settings: PreprocessSettings,
    handler: str,
    sources: Sequence[SourceFile],
    tokenizer: TokenizerInfo,
    filters: dict[str, Any] | None,
    named_format: str | None = None,
    *,
    decontaminate: dict[str, Any] | None = None,
    minhash: dict[str, Any] | None = None,
) -> Identity:
    """Return the identity of the dataset that this run will create.

    `handler`, `filters`, `decontaminate` and `minhash` are descriptions. `named_format` is the input format if it
    differs from the file ending's.
    """
    record = {
        "settings": {key: getattr(settings, name) for key, name in _DECISIVE_SETTINGS.items()}
        | {"handler": handler, "filters": filters}
        | ({} if named_format is None else {"format": named_format})
        | ({} if settings.max_record_bytes is None else {"max_record_bytes": settings.max_record_bytes})
        | ({} if decontaminate is None else {"decontaminate": decontaminate})
        | ({} if minhash is None else {"minhash": minhash})
        | ({} if settings.packing == CONCAT else {"packing": settings.packing}),
        "sources": [dataclasses.asdict(source) for source in sources],
        "tokenizer": dataclasses.asdict(tokenizer),
    }
    return _through_json(record)


def identity_of(manifest: Manifest) -> Identity:
    """Return the identity of a finished dataset."""
    record = dataclasses.asdict(manifest)
    return _through_json({name: record[name] for name in ("settings", "sources", "tokenizer")})


def hash_identity(identity: Identity) -> str:
    """Return the SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def describe_difference(before: Identity, now: Identity) -> str:
    """Describe the first difference, or return "" if none. Tokenizers are compared by fingerprint, not name."""
    for part in ("settings", "tokenizer"):
        for name in sorted({*before[part], *now[part]} - {"name"}):
            old, new = before[part].get(name), now[part].get(name)
            # A setting missing from an older dataset was off.
            if (old or None) != (new or None):
                return f"{part}: {name} was {old!r} and is now {new!r}"
    return _describe_sources(before["sources"], now["sources"])


def _describe_sources(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    if before == now:
        return ""
    old = {source["path"]: source["fingerprint"] for source in before}
    new = {source["path"]: source["fingerprint"] for source in now}
    for path in sorted({*old, *new}):
        if path not in new:
            return f"input: {path} is missing"
        if path not in old:
            return f"input: {path} is new"
        if old[path] != new[path]:
            return f"input: {path} has changed"
    return "input: the file order has changed"


def _through_json(record: Identity) -> Identity:
    """Return the record as read back from JSON (tuples become lists)."""
    result: Identity = json.loads(json.dumps(record))
    return result
