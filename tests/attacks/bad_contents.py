"""Contents of input files that cannot be packed, and what preprocessing says about each."""

from __future__ import annotations

import gzip
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

GOOD = b'{"text": "good"}\n'
DEEP = 100_000


def make_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def make_arrow(*arrays: pa.Array, names: tuple[str, ...] = ("text",)) -> bytes:
    buffer = io.BytesIO()
    batch = pa.RecordBatch.from_arrays(list(arrays), names=list(names))
    with pa.ipc.new_stream(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    return buffer.getvalue()


def make_feather(array: pa.Array) -> bytes:
    buffer = io.BytesIO()
    batch = pa.RecordBatch.from_arrays([array], names=["text"])
    with pa.ipc.new_file(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    return buffer.getvalue()


def make_strings(offsets: list[int], data: bytes) -> bytes:
    """A stream with one array of strings with these offsets, which need not be possible."""
    possible = np.arange(len(offsets), dtype="<i4")
    buffers = [None, pa.py_buffer(possible.tobytes()), pa.py_buffer(data)]
    stream = make_arrow(pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers))
    before, found, after = stream.rpartition(possible.tobytes())
    assert found
    return before + np.array(offsets, "<i4").tobytes() + after


def flip(content: bytes, start: int, stop: int) -> bytes:
    return content[:start] + bytes(byte ^ 0x55 for byte in content[start:stop]) + content[stop:]


def compress_streaming(content: bytes, parameters: zstandard.ZstdCompressionParameters) -> bytes:
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


def compress_with_dictionary(content: bytes) -> bytes:
    samples = [b"sample text number %d for a dictionary" % k for k in range(1000)]
    dictionary = zstandard.train_dictionary(4096, samples)
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(content)


TABLE = pa.table({"text": ["some words " * 100] * 100})
PARQUET = make_parquet(TABLE)
STREAM = make_arrow(pa.array(["some words " * 100] * 100))
FEATHER = make_feather(pa.array(["some words " * 100] * 100))
ZST = zstandard.compress(GOOD * 1000)
GZ = gzip.compress(GOOD * 1000)
BAD = "records rejected (1 malformed)"

# Name, file name, content, part of the error.
CONTENTS: list[tuple[str, str, bytes, str]] = [
    # JSON lines
    ("empty", "a.jsonl", b"", "no documents in 0 records"),
    ("blank lines", "a.jsonl", b"\n \n\t\n\r\n", "no documents in 0 records"),
    ("byte order mark", "a.jsonl", b"\xef\xbb\xbf", "no documents in 0 records"),
    ("zeros", "a.jsonl", bytes(100), BAD),
    ("cut object", "a.jsonl", GOOD + b'{"text": "a', BAD),
    ("number", "a.jsonl", GOOD + b"3\n", BAD),
    ("string", "a.jsonl", GOOD + b'"text"\n', BAD),
    ("list", "a.jsonl", GOOD + b"[1]\n", BAD),
    ("null", "a.jsonl", GOOD + b"null\n", BAD),
    ("nan", "a.jsonl", GOOD + b"NaN\n", BAD),
    ("trailing comma", "a.jsonl", GOOD + b'{"text": "a",}\n', BAD),
    ("single quotes", "a.jsonl", GOOD + b"{'text': 'a'}\n", BAD),
    ("comment", "a.jsonl", GOOD + b"// comment\n", BAD),
    ("two objects on a line", "a.jsonl", GOOD + b'{"text": "a"} {"text": "b"}\n', BAD),
    ("old mac line ends", "a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', BAD),
    ("control character in string", "a.jsonl", b'{"text": "a\x01"}\n', BAD),
    ("open nested lists", "a.jsonl", GOOD + b'{"text": ' + b"[" * DEEP + b"\n", BAD),
    ("open nested objects", "a.jsonl", GOOD + b'{"text": ' * DEEP + b"\n", BAD),
    ("nested lists", "a.jsonl", GOOD + b'{"text": ' + b"[" * DEEP + b"]" * DEEP + b"}\n", BAD),
    ("nested objects", "a.jsonl", GOOD + b'{"text": ' * DEEP + b"1" + b"}" * DEEP + b"\n", BAD),
    ("escape without digits", "a.jsonl", GOOD + b'{"text": "\\u12"}\n', BAD),
    ("integer of 10,000 digits", "a.jsonl", GOOD + b'{"text": ' + b"1" * 10_000 + b"}\n", "records rejected (1 "),
    ("number beyond floats", "a.jsonl", GOOD + b'{"text": 1e999}\n', "1 wrong_type"),
    ("text is null", "a.jsonl", GOOD + b'{"text": null}\n', "1 null"),
    ("text is a number", "a.jsonl", GOOD + b'{"text": 3}\n', "1 wrong_type"),
    ("text is a list", "a.jsonl", GOOD + b'{"text": ["a"]}\n', "1 wrong_type"),
    ("text is an object", "a.jsonl", GOOD + b'{"text": {"a": "b"}}\n', "1 wrong_type"),
    ("text is true", "a.jsonl", GOOD + b'{"text": true}\n', "1 wrong_type"),
    ("text is empty", "a.jsonl", GOOD + b'{"text": ""}\n', "1 empty"),
    ("lone surrogate", "a.jsonl", GOOD + b'{"text": "\\ud800"}\n', "1 invalid_utf8"),
    ("not utf-8", "a.jsonl", GOOD + b'{"text": "\xff"}\n', "1 invalid_utf8"),
    ("latin-1", "a.jsonl", GOOD + '{"text": "é"}\n'.encode("latin-1"), "1 invalid_utf8"),
    ("overlong utf-8", "a.jsonl", GOOD + b'{"text": "\xc0\xaf"}\n', "1 invalid_utf8"),
    ("utf-16", "a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "records rejected"),
    ("utf-16 without mark", "a.jsonl", '{"text": "a"}\n'.encode("utf-16-be"), "records rejected"),
    ("utf-32", "a.jsonl", '{"text": "a"}\n'.encode("utf-32"), "records rejected"),
    ("other key", "a.jsonl", b'{"body": "a"}\n', "no key 'text'; available keys: body"),
    ("no key", "a.jsonl", b"{}\n", "no key 'text'; available keys:"),
    ("escape sequences in keys", "a.jsonl", b'{"\\u001b[2J\\u0007x": "a"}\n', "available keys: x"),
    ("line feed in a key", "a.jsonl", b'{"a\\nb": "a"}\n', "available keys: a b"),
    ("lone surrogate in a key", "a.jsonl", GOOD + b'{"\\ud800": "a"}\n', "1 missing_key"),
    ("key of 1 MB", "a.jsonl", b'{"' + b"k" * 1_000_000 + b'": "a"}\n', "available keys: kkk"),
    ("100,000 keys", "a.jsonl", json.dumps({str(k): k for k in range(100_000)}).encode(), "available keys: 0, 1"),
    ("executable", "a.jsonl", b"\x7fELF" + bytes(range(256)) * 8, "records rejected"),
    ("gzip under the name of another format", "a.jsonl", GZ, "records rejected"),
    # JSON arrays
    ("open array", "a.json", b"[", "no documents in 0 records"),
    ("array of commas", "a.json", b"[,,,]", "no documents in 0 records"),
    ("array of numbers", "a.json", b"[1, 2]", "records rejected (2 malformed)"),
    ("array cut in an element", "a.json", b'[{"text": "a"}, {"text": "b', BAD),
    ("open string in an array", "a.json", b'[{"text": "a"}, {"text": "b}]', BAD),
    ("text after the array", "a.json", b'[{"text": "a"}] x', "text after the end of the JSON array"),
    ("two arrays", "a.json", b'[{"text": "a"}]\n[{"text": "b"}]', "a.json:2: text after the end"),
    ("bracket after the array", "a.json", b'[{"text": "a"}]]', "text after the end of the JSON array"),
    ("wrong bracket", "a.json", b'[{"text": "a"], {"text": "b"}]', "records rejected"),
    ("closing bracket", "a.json", b"]", BAD),
    ("open nested arrays", "a.json", b"[" * DEEP, BAD),
    ("nested arrays", "a.json", b"[" * DEEP + b"]" * DEEP, BAD),
    ("backslash at the end", "a.json", b'[{"text": "a\\', BAD),
    # CSV
    ("empty csv", "a.csv", b"", "no documents in 0 records"),
    ("only a header", "a.csv", b"text\n", "no documents in 0 records"),
    ("other header", "a.csv", b"content,url\nx,y\n", "no key 'text'; available keys: content, url"),
    ("semicolons", "a.csv", b"id;text\n1;a\n", "no key 'text'"),
    ("commas in tsv", "a.tsv", b"id,text\n1,a\n", "no key 'text'"),
    ("field missing", "a.csv", b"id,text\n1,a\n2\n", BAD),
    ("field too many", "a.csv", b"id,text\n1,a\n2,b,c\n", BAD),
    ("open quote", "a.csv", b'text\na\n"b\nc\n', BAD),
    ("quote inside a field", "a.csv", b'text\na\n"b"c\n', BAD),
    ("malformed header", "a.csv", b'"a"b,text\nx,y\n', "a.csv:1: the header line is malformed"),
    ("open quote in the header", "a.csv", b'"text\na\nb\n', "a.csv:1: the header line is malformed"),
    ("csv not utf-8", "a.csv", b"text\na\n\xff\n", "1 invalid_utf8"),
    ("empty field", "a.csv", b'text,id\na,1\n"",2\n', "1 empty"),
    # text
    ("empty text", "a.txt", b"", "no documents in 0 records"),
    ("blank text", "a.txt", b" \n\t\n\n", "no documents in 0 records"),
    ("text not utf-8", "a.txt", b"good\n\xff\xfe\n", "1 invalid_utf8"),
    # compressed
    ("not gzip", "a.jsonl.gz", GOOD, "cannot be decompressed"),
    ("gzip header only", "a.jsonl.gz", GZ[:10], "the compressed file is truncated"),
    ("cut gzip", "a.jsonl.gz", GZ[:-9], "the compressed file is truncated"),
    ("damaged gzip", "a.jsonl.gz", flip(GZ, 12, 30), "cannot be decompressed"),
    ("wrong checksum", "a.jsonl.gz", flip(GZ, len(GZ) - 8, len(GZ) - 4), "cannot be decompressed"),
    ("text after gzip", "a.jsonl.gz", GZ + GOOD, "cannot be decompressed"),
    ("gzip twice", "a.jsonl.gz", gzip.compress(gzip.compress(GOOD)), "records rejected"),
    ("empty gzip", "a.jsonl.gz", b"", "no documents in 0 records"),
    ("gzip of nothing", "a.jsonl.gz", gzip.compress(b""), "no documents in 0 records"),
    ("zeros for gzip", "a.jsonl.gz", bytes(1000), "no documents in 0 records"),
    ("not zstd", "a.jsonl.zst", GOOD, "cannot be decompressed"),
    ("cut zstd", "a.jsonl.zst", ZST[:-3], "the compressed file is truncated"),
    ("damaged zstd", "a.jsonl.zst", flip(ZST, 8, 20), "cannot be decompressed"),
    ("window of 2 GiB", "a.jsonl.zst", compress_streaming(GOOD, zstandard.ZstdCompressionParameters(window_log=31)),
     "a window above 256 MiB is not supported"),
    ("zstd with dictionary", "a.jsonl.zst", compress_with_dictionary(GOOD), "cannot be decompressed"),
    # parquet
    ("empty parquet", "a.parquet", b"", "not a readable parquet file"),
    ("text as parquet", "a.parquet", b"no parquet at all", "not a readable parquet file"),
    ("magic only", "a.parquet", b"PAR1PAR1", "not a readable parquet file"),
    ("footer of 4 GiB", "a.parquet", PARQUET[:-8] + b"\xff\xff\xff\xffPAR1", "not a readable parquet file"),
    ("garbage footer", "a.parquet", flip(PARQUET, len(PARQUET) - 300, len(PARQUET) - 8), "a.parquet"),
    ("encrypted", "a.parquet", PARQUET[:-4] + b"PARE", "not a readable parquet file"),
    ("cut parquet", "a.parquet", PARQUET[: len(PARQUET) // 2], "not a readable parquet file"),
    ("damaged pages", "a.parquet", flip(PARQUET, 20, 200), "a.parquet: cannot be read near row 1"),
    ("other column", "a.parquet", make_parquet(pa.table({"body": ["a"]})), "no column 'text'; its columns are: body"),
    ("no rows", "a.parquet", make_parquet(TABLE.slice(0, 0)), "no documents in 0 records"),
    ("column of numbers", "a.parquet", make_parquet(pa.table({"text": [1, 2]})), "2 wrong_type"),
    ("column of lists", "a.parquet", make_parquet(pa.table({"text": [["a"], None]})), "1 null, 1 wrong_type"),
    ("column of structs", "a.parquet", make_parquet(pa.table({"text": [{"a": "b"}]})), "1 wrong_type"),
    ("column of nulls", "a.parquet", make_parquet(pa.table({"text": pa.nulls(3)})), "3 null"),
    # arrow
    ("empty arrow", "a.arrow", b"", "not a readable arrow file"),
    ("text as arrow", "a.arrow", b"no arrow at all", "not a readable arrow file"),
    ("zeros as arrow", "a.arrow", bytes(1000), "a.arrow"),
    ("cut stream", "a.arrow", STREAM[: len(STREAM) // 2], "a.arrow: the arrow file is damaged"),
    ("damaged stream", "a.arrow", flip(STREAM, 8, 40), "a.arrow"),
    ("cut feather", "a.feather", FEATHER[:-200], "not a readable arrow file"),
    ("garbage footer of feather", "a.feather", flip(FEATHER, len(FEATHER) - 60, len(FEATHER) - 10), "a.feather"),
    ("offsets beyond the data", "a.arrow", make_strings([0, 1 << 30, 2], b"abc"), "record batch is damaged"),
    ("negative offsets", "a.arrow", make_strings([-5, 1, 3], b"abc"), "record batch is damaged"),
    ("falling offsets", "a.arrow", make_strings([0, 3, 1], b"abc"), "record batch is damaged"),
    ("arrow not utf-8", "a.arrow", make_strings([0, 1, 2], b"a\xff"), "1 invalid_utf8"),
    ("two columns of a name", "a.arrow", make_arrow(pa.array(["a"]), pa.array(["b"]), names=("text", "text")),
     "has several columns 'text'"),
    ("arrow numbers", "a.arrow", make_arrow(pa.array([1.5])), "1 wrong_type"),
    ("arrow without rows", "a.arrow", make_arrow(pa.array([], pa.string())), "no documents in 0 records"),
]  # fmt: skip

HEADER = struct.Struct("<9sQBQQ")


def make_index(lengths: list[int], boundaries: list[int], *, magic: bytes = b"MMIDIDX\0\0", code: int = 4) -> bytes:
    """The index of an indexed dataset of int32 ids."""
    starts = 4 * np.cumsum([0, *lengths[:-1]])
    parts = (np.array(lengths, "<i4"), starts.astype("<i8"), np.array(boundaries, "<i8"))
    header = HEADER.pack(magic, 1, code, len(lengths), len(boundaries))
    return header + b"".join(part.tobytes() for part in parts)


IDS = np.arange(1, 6, dtype="<i4").tobytes()
INDEX = make_index([2, 3], [0, 1, 2])
HUGE_INDEX = HEADER.pack(b"MMIDIDX\0\0", 1, 4, 1 << 60, 1 << 60) + INDEX[HEADER.size :]

# Name, index, data (None: no file), part of the error.
INDEXED: list[tuple[str, bytes, bytes | None, str]] = [
    ("no data", INDEX, None, "a.bin: cannot be read: No such file"),
    ("empty index", b"", IDS, "no readable .bin and .idx files"),
    ("cut header", INDEX[:20], IDS, "no readable .bin and .idx files"),
    ("wrong magic", make_index([2, 3], [0, 1, 2], magic=b"MMIDIDY\0\0"), IDS, "not the index of an indexed dataset"),
    ("unknown type", make_index([2, 3], [0, 1, 2], code=99), IDS, "not the index of an indexed dataset"),
    ("cut index", INDEX[:-3], IDS, "the index is truncated"),
    ("2^60 sequences", HUGE_INDEX, IDS, "the index is truncated"),
    ("short data", INDEX, IDS[:-4], "does not match"),
    ("empty data", INDEX, b"", "does not match"),
    ("negative length", make_index([8, -3], [0, 1, 2]), IDS, "a.idx: has impossible lengths"),
    ("boundary beyond the end", make_index([2, 3], [0, 1, 99]), IDS, "a.idx: has impossible lengths"),
    ("negative boundary", make_index([2, 3], [0, -1, 2]), IDS, "a.idx: has impossible lengths"),
    ("falling boundaries", make_index([2, 3], [0, 2, 1]), IDS, "a.idx: has impossible lengths"),
    ("no boundary", make_index([2, 3], []), IDS, "a.idx: has impossible lengths"),
    ("unknown ids", INDEX, np.full(5, 1 << 20, "<i4").tobytes(), "contains id 1048576, but the vocabulary"),
    ("negative ids", INDEX, np.full(5, -7, "<i4").tobytes(), "contains id -7"),
]
