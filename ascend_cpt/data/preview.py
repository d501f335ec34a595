"""Reads some documents before preprocessing, to check the keys and get sample texts for the engine check."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

from ascend_cpt.data.readers.documents import MISSING_KEY, Tally, extract_documents
from ascend_cpt.data.readers.formats import ReadOptions
from ascend_cpt.data.readers.handlers import Handler
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.data.readers.records import read_records
from ascend_cpt.data.readers.spans import Span
from ascend_cpt.errors import DataError

_NUM_FILES = 8
_NUM_RECORDS = 64
_TEXT_CHARS = 4096
_FILE_CHARS = 16384


def preview_texts(files: Sequence[InputFile], handler: Handler, keys: Sequence[str], options: ReadOptions) -> list[str]:
    """Return the beginnings of some texts from up to 8 files across the input.

    Raises:
        DataError: all sampled records in a file lack a key. The message lists the available keys.
    """
    texts: list[str] = []
    num_files = min(_NUM_FILES, len(files))
    for file in [files[k * len(files) // num_files] for k in range(num_files)]:
        tally = Tally()
        found: list[str] = []
        for record in itertools.islice(read_records(_whole(file), options, handler), _NUM_RECORDS):
            for document in extract_documents(handler, keys, file, record, tally, options.max_record_bytes):
                found += [text[:_TEXT_CHARS] for text in document.texts]
            if sum(map(len, found)) >= _FILE_CHARS:
                break
        missing = [reject for reject in tally.rejects if reject.kind == MISSING_KEY]
        if missing and not found:
            raise DataError(f"{file.path}: {missing[0].detail} (see --json-keys)")
        texts += found
    return texts


def _whole(file: InputFile) -> Span:
    return Span(file=file, start=0, stop=sys.maxsize, weight=1)
