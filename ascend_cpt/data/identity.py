"""What decides the content of a dataset, compared between a run and what an earlier one left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ascend_cpt.data.packed.manifest import Manifest, SourceFile
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.data.tokenizing.info import TokenizerInfo

Identity = dict[str, Any]
"""As JSON: `settings`, `sources` and `tokenizer`, which are entries of the manifest as well."""

# Key in the manifest → attribute of PreprocessSettings. The keys stay as they are: finished datasets hold them.
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
) -> Identity:
    """The identity of the dataset that this run makes; `handler` and `filters` are their descriptions."""
    record = {
        "settings": {key: getattr(settings, name) for key, name in _DECISIVE_SETTINGS.items()}
        | {"handler": handler, "filters": filters},
        "sources": [dataclasses.asdict(source) for source in sources],
        "tokenizer": dataclasses.asdict(tokenizer),
    }
    return _through_json(record)


def identity_of(manifest: Manifest) -> Identity:
    """The identity of a finished dataset."""
    record = dataclasses.asdict(manifest)
    return _through_json({name: record[name] for name in ("settings", "sources", "tokenizer")})


def hash_identity(identity: Identity) -> str:
    """SHA-256 of the identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def describe_difference(before: Identity, now: Identity) -> str:
    """What changed, in words; empty when nothing did. The tokenizer's name may change: its fingerprint counts."""
    for part in ("settings", "tokenizer"):
        for name in sorted({*before[part], *now[part]} - {"name"}):
            old, new = before[part].get(name), now[part].get(name)
            # What an earlier version did not know was not done.
            if (old or None) != (new or None):
                return f"{part}: {name} was {old!r} and is {new!r}"
    return _describe_sources(before["sources"], now["sources"])


def _describe_sources(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    if before == now:
        return ""
    old = {source["path"]: source["fingerprint"] for source in before}
    new = {source["path"]: source["fingerprint"] for source in now}
    for path in sorted({*old, *new}):
        if path not in new:
            return f"input: {path} is gone"
        if path not in old:
            return f"input: {path} is new"
        if old[path] != new[path]:
            return f"input: {path} has changed"
    return "input: the files are in another order"


def _through_json(record: Identity) -> Identity:
    """As it comes back from a file: tuples as lists."""
    result: Identity = json.loads(json.dumps(record))
    return result
