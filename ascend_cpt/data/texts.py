"""Reads the texts of input files one after another, for programs that do not pack them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ascend_cpt.data.preview import preview_texts
from ascend_cpt.data.readers.documents import Tally, extract_documents
from ascend_cpt.data.readers.formats import ReadOptions
from ascend_cpt.data.readers.handlers import joins_records, load_handler, needed_columns
from ascend_cpt.data.readers.input_files import InputFile, find_input_files
from ascend_cpt.data.readers.records import read_records
from ascend_cpt.data.readers.spans import Span

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """Files with texts, read like those of tools/preprocess_data.py."""

    paths: tuple[str, ...]
    """Files, folders or globs."""
    key: str = "text"
    format: str | None = None
    handler_name: str = "GeneralPretrainHandler"
    txt_documents: str = "line"

    def find_files(self) -> list[InputFile]:
        """Return the files. Raise DataError if there are none, or if their formats are mixed."""
        return find_input_files(self.paths, only_format=self.format)


def iter_texts(source: TextInput) -> Iterator[str]:
    """Yield the texts of all documents. Bad records are skipped and counted in the log.

    Raises:
        DataError: there are no files, or the records of a file lack the key.
    """
    files = source.find_files()
    handler = load_handler(source.handler_name)
    options = ReadOptions(
        columns=needed_columns(handler, (source.key,)),
        txt_documents=source.txt_documents,
        keep_blank_lines=joins_records(handler),
    )
    preview_texts(files, handler, (source.key,), options)  # checks the key
    tally = Tally()
    for file in files:
        whole = Span(file=file, start=0, stop=sys.maxsize, weight=1)
        for record in read_records(whole, options, handler):
            for document in extract_documents(handler, (source.key,), file, record, tally, options.max_record_bytes):
                yield document.texts[0]
    if tally.rejected:
        kinds = ", ".join(f"{count} {kind}" for kind, count in tally.rejected.items())
        logger.warning("%s: skipped bad records: %s", source.paths[0], kinds)
