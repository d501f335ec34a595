"""The list of rejected and dropped records, and the limit on bad records."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ascend_cpt.data.readers.documents import Reject, format_reject
from ascend_cpt.data.shards.pack import ShardResult
from ascend_cpt.errors import DataError
from ascend_cpt.files import write_text

_BLOCK_BYTES = 4 << 20


def rejects_path(output_prefix: str) -> Path:
    """Return `{output_prefix}.rejects.jsonl`."""
    return Path(f"{output_prefix}.rejects.jsonl")


def write_rejects(output_prefix: str, results: Sequence[ShardResult], listings: Sequence[Path] = ()) -> list[Reject]:
    """Write the rejects with line numbers to the rejects file and return them. If there are none, remove the file.

    The dropped documents in the `listings` of the shards, if they exist, are appended.
    """
    rejects = number_lines([reject for result in results for reject in result.rejects])
    path = rejects_path(output_prefix)
    listings = [listing for listing in listings if listing.is_file() and listing.stat().st_size]
    try:
        if rejects or listings:
            write_text(path, itertools.chain(map(format_reject, rejects), *map(_iter_lines, listings)))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    return rejects


def check_rejects(
    output_prefix: str, rejects: Sequence[Reject], results: Sequence[ShardResult], max_bad_fraction: float
) -> None:
    """Raise DataError if there are more bad records than allowed, or no documents.

    `rejects` are the listed rejects, with their lines.
    """
    counts = add_counts(result.rejected for result in results)
    num_rejected = sum(counts.values())
    num_records = sum(result.num_records for result in results)
    num_documents = sum(result.shards[0].num_documents for result in results)
    if num_rejected > max_bad_fraction * max(num_records, num_documents + num_rejected):
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        first = rejects[0]
        listed = "all" if len(rejects) == num_rejected else f"the first {len(rejects)}"
        raise DataError(
            f"{num_rejected} of {num_records} records rejected ({kinds}), more than --max-bad-fraction "
            f"{max_bad_fraction:g} allows; the first is {first.file}:{first.line}, and {listed} are listed in "
            f"{rejects_path(output_prefix)}; fix the input, or raise the fraction to skip them"
        )
    if not num_documents:
        raise DataError(f"--input: no documents in {num_records} records; check the input")


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the summed counts by kind, sorted by kind."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))


def number_lines(rejects: Sequence[Reject]) -> list[Reject]:
    """Fill in missing line numbers, which are unknown for shards that start inside a file."""
    positions: dict[str, list[int]] = {}
    for reject in rejects:
        if reject.line is None:
            positions.setdefault(reject.file, []).append(reject.position)
    lines = {file: _count_lines(file, wanted) for file, wanted in positions.items()}
    return [
        reject if reject.line is not None else dataclasses.replace(reject, line=lines[reject.file][reject.position])
        for reject in rejects
    ]


def _iter_lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as lines:
        yield from lines


def _count_lines(file: str, positions: list[int]) -> dict[int, int]:
    """Return the line number, from 1, of each byte offset."""
    lines = {}
    line, offset = 1, 0
    with open(file, "rb") as stream:
        for position in sorted(set(positions)):
            while offset < position:
                block = stream.read(min(_BLOCK_BYTES, position - offset))
                if not block:
                    break
                line += block.count(b"\n")
                offset += len(block)
            lines[position] = line
    return lines
