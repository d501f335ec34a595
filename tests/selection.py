"""Shards of a JSON Lines file, for tests of the selection of documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from ascend_cpt.data.readers.formats import ReadOptions, load_reader
from ascend_cpt.data.readers.input_files import find_input_files
from ascend_cpt.data.readers.spans import split_input
from ascend_cpt.data.shards.task import ShardTask

NOTHING = cast(Any, None)


def make_tasks(folder: Path, records: list[Any], num_shards: int, keys: tuple[str, ...] = ("text",)) -> list[ShardTask]:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    files = find_input_files([str(path)])
    parts = split_input(
        files, [load_reader(file.format).measure(file, ReadOptions(columns=keys)) for file in files], num_shards
    )
    return [
        ShardTask(
            number=number,
            run="",
            spans=tuple(spans),
            folder=folder / f"sub-{number}",
            file_names=(),
            keys=keys,
            handler_name="GeneralPretrainHandler",
            read_options=ReadOptions(columns=keys),
            tokenizer=NOTHING,
            engine=NOTHING,
            layout=NOTHING,
            output_format="mindrecord",
        )
        for number, spans in enumerate(parts)
    ]
