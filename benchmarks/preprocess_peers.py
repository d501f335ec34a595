"""Programs for comparison in benchmarks/preprocess.py: `preprocess_peers.py NAME ARGUMENTS`.

Each prints one line of JSON with at least `num_tokens`, including EOD.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCH_CHARS = 1 << 20
SEQ_LENGTH = 4096


def run_plain_loop(corpus: str, output: str, tokenizer: str) -> dict[str, Any]:
    """The simplest program: encode texts one by one with the tokenizers library and append the ids to a file."""
    import numpy as np
    from tokenizers import Tokenizer

    engine = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    num_tokens = 0
    with open(corpus, encoding="utf-8") as lines, open(output, "wb") as file:
        for line in lines:
            ids = engine.encode(json.loads(line)["text"], add_special_tokens=False).ids
            file.write(np.array([*ids, 0], np.int32).tobytes())
            num_tokens += len(ids) + 1
    return {"num_tokens": num_tokens}


def run_datatrove(folder: str, output: str, tokenizer: str, workers: str) -> dict[str, Any]:
    """Run datatrove's DocumentTokenizer with one task per file, without shuffling, in its own environment."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder, glob_pattern="*.jsonl"),
            DocumentTokenizer(
                output,
                tokenizer_name_or_path=f"{tokenizer}/tokenizer.json",
                eos_token="<|endoftext|>",
                shuffle_documents=False,
            ),
        ],
        tasks=len(list(Path(folder).glob("*.jsonl"))),
        workers=int(workers),
        logging_dir=f"{output}/logs",
        skip_completed=False,
    ).run()
    item_bytes = 4 if Path(tokenizer, "tokenizer.json").stat().st_size > 2_000_000 else 2
    num_bytes = sum(path.stat().st_size for path in Path(output).glob("*.ds"))
    return {"num_tokens": num_bytes // item_bytes}


def measure_ceiling(corpus: str, output: str, tokenizer: str) -> dict[str, Any]:
    """Measure the CPU seconds of the four necessary parts of preprocessing separately, on one core."""
    import gigatoken
    import numpy as np
    import orjson

    from ascend_cpt.data.packed.checksum import checksum_file
    from ascend_cpt.data.packed.mindrecord import MindRecordWriter

    engine = gigatoken.Tokenizer.from_json(Path(tokenizer, "tokenizer.json").read_bytes())
    engine.encode_batch(["warm up"], parallel=False)
    cpu_s = dict.fromkeys(("read", "encode", "write", "checksum"), 0.0)
    writer = MindRecordWriter(Path(output))
    rest = np.empty(0, np.int32)
    num_tokens = num_chars = 0
    texts: list[str] = []

    def timed(part: str, work: Callable[[], Any]) -> Any:
        begin_s = time.process_time()
        result = work()
        cpu_s[part] += time.process_time() - begin_s
        return result

    with open(corpus, "rb") as lines:
        while True:
            line = timed("read", lines.readline)
            if line:
                text = timed("read", lambda line=line: orjson.loads(line)["text"])
                texts.append(text)
                num_chars += len(text)
            if texts and (not line or num_chars >= BATCH_CHARS):
                layout = timed("encode", lambda batch=texts: engine.encode_batch(batch, parallel=False)).layout
                ids = np.concatenate((rest, np.asarray(layout.content.data).view(np.int32)))
                num_tokens += len(layout.content.data) + len(texts)
                whole = len(ids) // (SEQ_LENGTH + 1) * (SEQ_LENGTH + 1)
                rows, rest = ids[:whole].reshape(-1, SEQ_LENGTH + 1), ids[whole:]
                timed("write", lambda rows=rows: writer.write(rows))
                texts, num_chars = [], 0
            if not line:
                break
    timed("write", writer.close)
    timed("checksum", lambda: checksum_file(Path(output)))
    return {"num_tokens": num_tokens, "cpu_s": cpu_s}


PEERS = {"plain": run_plain_loop, "datatrove": run_datatrove, "ceiling": measure_ceiling}


if __name__ == "__main__":
    print(json.dumps(PEERS[sys.argv[1]](*sys.argv[2:])))
