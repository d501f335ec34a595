"""Compare the speed, the cut documents and the padding of the kinds of `--packing`.

    python benchmarks/packing.py [--mb 30] [--tokenizer FOLDER] [--seq-length 4096]
    python benchmarks/packing.py --input test.txt valid.txt --handler-name WikiTextHandler --tokenizer FOLDER

Packs one corpus in each way with the whole pipeline (reading, tokenizing, packing, writing, checksums) and prints the
speed of each and its ratio to `concat`. Runs alternate after a first run of each that does not count; medians of CPU
seconds are used, which do not need an idle machine. Without --input, text of this machine is gathered as in
benchmarks/preprocess.py; files with less than --mb of text are repeated with other letters. Fails if best-fit reaches
less than 0.7 of the speed of concat.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from preprocess import gather, repeat

from ascend_cpt.data.packed.manifest import Manifest, describe_packing
from ascend_cpt.data.packed.packing import BEST_FIT, CONCAT, PACKINGS
from ascend_cpt.data.pipeline import preprocess
from ascend_cpt.data.readers.formats import ReadOptions
from ascend_cpt.data.readers.handlers import joins_records, load_handler
from ascend_cpt.data.readers.input_files import find_input_files
from ascend_cpt.data.readers.records import read_records
from ascend_cpt.data.readers.spans import Span
from ascend_cpt.data.sample import make_sample
from ascend_cpt.data.settings import PreprocessSettings

MIN_RATIO = 0.7


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", metavar="FILE", help="[text of this machine]")
    parser.add_argument("--handler-name", default="GeneralPretrainHandler", help="[%(default)s]")
    parser.add_argument("--mb", type=int, default=30, help="size of the corpus [%(default)s]")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="[that of the sample corpus]")
    parser.add_argument("--seq-length", type=int, default=4096, help="[%(default)s]")
    parser.add_argument("--runs", type=int, default=3, help="[%(default)s]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = args.tokenizer
        if tokenizer is None:
            make_sample(folder / "sample")
            tokenizer = folder / "sample/tokenizer"
        first, corpus = folder / "first.jsonl", folder / "corpus.jsonl"
        if args.input:
            collect(args.input, args.handler_name, first)
        else:
            gather(first, args.mb << 20, [Path(sysconfig.get_path("stdlib")), Path("/usr/share"), Path("/usr/include")])
        repeat(first, corpus, args.mb << 20)
        seconds: dict[str, list[float]] = {packing: [] for packing in PACKINGS}
        manifests: dict[str, Manifest] = {}
        for number in range(args.runs + 1):
            for packing in PACKINGS:
                prefix = folder / f"{packing}-{number}"
                took_s, manifests[packing] = measure(corpus, prefix, tokenizer, packing, args.seq_length)
                if number:
                    seconds[packing].append(took_s)
                for path in folder.glob(f"{prefix.name}*"):
                    path.unlink()
    return report(seconds, manifests)


def collect(inputs: list[str], handler_name: str, target: Path) -> None:
    """Write the input documents as JSON Lines."""
    handler = load_handler(handler_name)
    options = ReadOptions(columns=None, txt_documents="line", keep_blank_lines=joins_records(handler))
    with target.open("w", encoding="utf-8") as output:
        for file in find_input_files(tuple(inputs)):
            for record in read_records(Span(file=file, start=0, stop=sys.maxsize, weight=1), options, handler):
                for document in handler.extract(record.row or {}):
                    output.write(json.dumps({"text": document["text"]}) + "\n")


def measure(corpus: Path, prefix: Path, tokenizer: Path, packing: str, seq_length: int) -> tuple[float, Manifest]:
    """Return the CPU seconds of a run, including its worker, and the manifest."""
    begin = os.times()
    (manifest,) = preprocess(
        PreprocessSettings(
            inputs=(str(corpus),),
            output_prefix=str(prefix),
            tokenizer_path=str(tokenizer),
            seq_length=seq_length,
            packing=packing,
        ),
        fork=True,
    )
    end = os.times()
    return sum(end[:4]) - sum(begin[:4]), manifest


def report(seconds: dict[str, list[float]], manifests: dict[str, Manifest]) -> int:
    """Print the table. Return 1 if best-fit is too slow."""
    medians = {packing: statistics.median(times) for packing, times in seconds.items()}
    concat = manifests[CONCAT]
    print(f"{concat.num_documents} documents, {concat.num_tokens / 1e6:.2f} Mtok, rows of {concat.seq_length}")
    for packing, median_s in medians.items():
        print(
            f"{median_s:6.2f} CPU s  {concat.num_tokens / median_s / 1e6:6.2f} Mtok/s  "
            f"{medians[CONCAT] / median_s:5.2f} of concat  {describe_packing(manifests[packing])}"
        )
    ratio = medians[CONCAT] / medians[BEST_FIT]
    if ratio < MIN_RATIO:
        print(f"best-fit reaches {ratio:.2f} of the speed of concat, less than {MIN_RATIO}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
