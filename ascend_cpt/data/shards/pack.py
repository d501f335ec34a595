"""Reads, tokenizes, packs and writes one shard in a worker process.

A shard's result file is written last, so a shard with a result file is complete and is not packed again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ascend_cpt.data.packed.manifest import Shard
from ascend_cpt.data.packed.shard_writers import open_output
from ascend_cpt.data.readers.documents import Reject, Tally
from ascend_cpt.data.shards.batches import iter_batches
from ascend_cpt.data.shards.task import Progress, ShardTask
from ascend_cpt.errors import DataError
from ascend_cpt.files import sync_file, sync_folder, write_text

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """A packed shard's files and counts."""

    shards: tuple[Shard, ...]
    """One per key."""
    num_records: int
    num_filtered: int
    rejects: tuple[Reject, ...]
    """The first rejected records and documents."""
    rejected: dict[str, int]
    """Rejected records and documents, by kind."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Documents dropped by deduplication and filters, by kind."""


def pack_shard(task: ShardTask, report: Callable[[Progress], None]) -> ShardResult:
    """Pack the shard and commit its result, calling `report` after each batch.

    Raises:
        DataError: the input cannot be read, or the output cannot be written.
    """
    # Each attempt has its own folder, because one on a node considered lost may still be writing.
    attempt = task.folder.with_name(f"{task.folder.name}.{uuid.uuid4().hex}")
    try:
        for earlier in task.folder.parent.glob(f"{task.folder.name}.*"):
            shutil.rmtree(earlier, ignore_errors=True)
        attempt.mkdir(parents=True)
        result = _pack(dataclasses.replace(task, folder=attempt), report)
        for file in sorted(attempt.iterdir()):
            sync_file(file)
        record = dataclasses.asdict(result) | {"run": task.run}
        write_text(attempt / RESULT_FILE, json.dumps(record))
        shutil.rmtree(task.folder, ignore_errors=True)
        os.rename(attempt, task.folder)
        sync_folder(task.folder.parent)
    except OSError as error:
        raise DataError(f"{error.filename or task.folder}: {error.strerror or error}") from error
    return result


def load_result(task: ShardTask) -> ShardResult | None:
    """Return the shard's committed result, or None if this run has none or it is damaged."""
    try:
        record = json.loads((task.folder / RESULT_FILE).read_text(encoding="utf-8"))
        return _from_record(record) if record["run"] == task.run else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        logger.warning("shard %d: its %s is damaged: packing it again", task.number, RESULT_FILE)
        return None


def _from_record(record: dict[str, Any]) -> ShardResult:
    return ShardResult(
        shards=tuple(Shard(**shard) for shard in record["shards"]),
        num_records=record["num_records"],
        num_filtered=record["num_filtered"],
        rejects=tuple(Reject(**reject) for reject in record["rejects"]),
        rejected=record.get("rejected") or _count_kinds(record["rejects"]),
        left_out=record["left_out"],
    )


def _count_kinds(rejects: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Count the rejects in a result written by an earlier version, which lists all of them."""
    return dict(sorted(Counter(str(reject["kind"]) for reject in rejects).items()))


def _pack(task: ShardTask, report: Callable[[Progress], None]) -> ShardResult:
    tally = Tally()
    vocab_size = task.tokenizer.info.vocab_size
    outputs = [
        open_output(task.output_format, task.folder / name, task.layout, task.packing, vocab_size)
        for name in task.file_names
    ]
    text_bytes = [0] * len(outputs)
    for batch in iter_batches(task, tally):
        for k, output in enumerate(outputs):
            output.add(batch.encoded[k])
            text_bytes[k] += batch.text_bytes[k]
        num_tokens = sum(output.num_tokens for output in outputs)
        report(Progress(weight=batch.weight, num_documents=tally.num_documents, num_tokens=num_tokens))
    tally.check()
    return ShardResult(
        shards=tuple(output.close(tally.num_documents, text_bytes[k]) for k, output in enumerate(outputs)),
        num_records=tally.num_records,
        num_filtered=tally.num_filtered,
        rejects=tuple(tally.rejects),
        rejected=dict(sorted(tally.rejected.items())),
        left_out=tally.dropped,
    )
