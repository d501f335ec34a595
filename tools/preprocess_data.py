"""Pack raw text into MindRecord for pretraining.

    python tools/preprocess_data.py --input corpus/ --output-prefix data/corpus \\
        --tokenizer-name-or-path /models/Qwen3-8B-Base --seq-length 4096 --n-subs 8 --workers 8

Writes {output-prefix}_{key}_document.mindrecord{k}, k = 0 .. n-subs - 1, and ..._document.manifest.json.
The same command resumes an interrupted run; finished output is reused.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.config.foreign_flags import PREPROCESS_FLAGS, ExplainingParser
from ascend_cpt.config.values import format_number
from ascend_cpt.data.packed.manifest import OUTPUT_FORMATS, Manifest, describe_packing
from ascend_cpt.data.packed.packing import CONCAT, PACKINGS
from ascend_cpt.data.settings import (
    DECONTAMINATION_ACTIONS,
    INPUT_FORMATS,
    MINHASH_FUNCTIONS,
    MINHASH_PRECISIONS,
    MINHASH_WORDS,
    RUN_ENGINES,
    TAILS,
    TXT_DOCUMENTS,
    PreprocessSettings,
)
from ascend_cpt.data.tokenizing.names import (
    ENGINES,
    HUGGING_FACE,
    TOKENIZER_TYPES,
    TYPE_HELP,
    find_named_tokenizer,
    parse_tokenizer_type,
)
from ascend_cpt.errors import DataError, run_command


def parse_args() -> PreprocessSettings:
    """Return the settings given on the command line."""
    parser = ExplainingParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, explanations=PREPROCESS_FLAGS
    )
    add = parser.add_argument_group("input").add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help="files, folders (walked recursively) or globs")
    add(
        "--format",
        choices=INPUT_FORMATS,
        help="format of files with other extensions; in folders, read only files of this format",
    )
    add(
        "--json-keys",
        nargs="+",
        default=["text"],
        metavar="KEY",
        help="keys or columns to pack, one dataset each [text]",
    )
    add(
        "--handler-name",
        default="GeneralPretrainHandler",
        help="GeneralPretrainHandler, WikiTextHandler, or your own as package.module:Class [%(default)s]",
    )
    add(
        "--txt-documents",
        choices=TXT_DOCUMENTS,
        default="line",
        help="what one document is in .txt files [%(default)s]",
    )
    add(
        "--max-bad-fraction",
        type=float,
        default=0.001,
        help="fail above this fraction of invalid records [%(default)s]",
    )
    add(
        "--max-record-bytes",
        type=int,
        metavar="N",
        help="reject longer records and documents; a worker needs up to 50 times as much memory [16 MiB]",
    )
    add_selection(parser)

    add = parser.add_argument_group("tokenizer").add_argument
    add("--tokenizer-type", default=HUGGING_FACE, metavar="TYPE", help=TYPE_HELP)
    add("--tokenizer-name-or-path", metavar="FOLDER", help=f"Hugging Face folder with tokenizer.json ({HUGGING_FACE})")
    add("--tokenizer-model", metavar="FILE", help="tokenizer.model or qwen.tiktoken (the other types)")
    add(
        "--tokenizer-engine",
        choices=ENGINES,
        default="auto",
        help="auto uses gigatoken when its ids match the reference [auto]",
    )
    add("--append-eod", action=argparse.BooleanOptionalAction, default=True, help="end each document with EOD [yes]")
    add("--append-bos", action=argparse.BooleanOptionalAction, default=False, help="begin each document with BOS [no]")
    add("--eod-token", help="end-of-document token [the tokenizer's eos_token]")
    add(
        "--parse-special-tokens",
        action="store_true",
        help="encode special tokens in documents as such [no: as text]",
    )

    add = parser.add_argument_group("output").add_argument
    add("--output-prefix", required=True, help="folder and name prefix of the output files")
    add("--output-format", choices=OUTPUT_FORMATS, default="mindrecord", help="[%(default)s]")
    add("--dataset-name", help="name of the files, instead of {output-prefix}_{key}_document")
    add("--seq-length", type=int, help="trained tokens per row; a row has one more (not for mmap)")
    add("--n-subs", type=int, default=1, help="number of shards, each packed to one file [%(default)s]")
    add("--workers", type=int, default=os.cpu_count() or 1, help="parallel processes [cores: %(default)s]")
    add(
        "--packing",
        choices=PACKINGS,
        default=CONCAT,
        help="concat: one after the other; document: one per row, padded; best-fit: whole documents, little padding "
        "[%(default)s]",
    )
    add(
        "--tail",
        choices=TAILS,
        default="pad",
        help="concat: pad or drop the last, incomplete row of a shard [%(default)s]",
    )
    add("--overwrite", action="store_true", help="replace existing output that differs from this run's")
    add(
        "--log-interval",
        type=int,
        metavar="N",
        help="accepted but has no effect: progress is printed at regular time intervals",
    )

    add = parser.add_argument_group("several machines").add_argument
    add("--engine", choices=RUN_ENGINES, default="local", help="how to run the shards [%(default)s]")
    add("--ray-address", metavar="HOST:PORT", help="the Ray cluster of --engine ray [a new one on this machine]")
    add(
        "--sub-range",
        type=parse_range,
        metavar="A:B",
        help="pack only shards A to B - 1; run without it to finish",
    )
    args = parser.parse_args()
    tokenizer_type, tokenizer_path = choose_tokenizer(args)

    return PreprocessSettings(
        inputs=tuple(args.input),
        input_format=args.format,
        json_keys=tuple(args.json_keys),
        handler_name=args.handler_name,
        txt_documents=args.txt_documents,
        drop_duplicates=args.drop_duplicates,
        filters_path=args.filters,
        decontaminate=tuple(args.decontaminate),
        decontaminate_ngram=args.decontaminate_ngram,
        decontaminate_action=args.decontaminate_action,
        drop_near_duplicates=args.drop_near_duplicates,
        minhash_ngram=args.minhash_ngram,
        minhash_buckets=args.minhash_buckets,
        minhash_hashes=args.minhash_hashes,
        minhash_hash=args.minhash_hash,
        minhash_precision=args.minhash_precision,
        minhash_words=args.minhash_words,
        max_bad_fraction=args.max_bad_fraction,
        max_record_bytes=args.max_record_bytes,
        tokenizer_type=tokenizer_type,
        tokenizer_path=tokenizer_path,
        tokenizer_engine=args.tokenizer_engine,
        append_eod=args.append_eod,
        append_bos=args.append_bos,
        eod_token=args.eod_token,
        parse_special_tokens=args.parse_special_tokens,
        output_prefix=args.output_prefix,
        output_format=args.output_format,
        dataset_name=args.dataset_name,
        seq_length=choose_seq_length(args),
        num_shards=args.n_subs,
        workers=args.workers,
        engine=args.engine,
        ray_address=args.ray_address,
        sub_range=args.sub_range,
        tail=args.tail,
        packing=args.packing,
        overwrite=args.overwrite,
    )


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the flags that select documents to drop."""
    add = parser.add_argument_group("dropping documents").add_argument
    add("--drop-duplicates", action="store_true", help="drop documents with the same text as an earlier one")
    add(
        "--decontaminate",
        nargs="+",
        default=[],
        metavar="PATH",
        help="drop documents that share an n-gram of words with these validation texts or task items",
    )
    add("--decontaminate-ngram", type=int, default=13, metavar="N", help="words per n-gram [%(default)s]")
    add(
        "--decontaminate-action",
        choices=DECONTAMINATION_ACTIONS,
        default="drop",
        help="drop these documents, or only list them in {output-prefix}.contamination.jsonl [%(default)s]",
    )
    add("--filters", metavar="YAML", help="drop documents with datatrove's filters (docs/preprocessing.md)")
    add(
        "--drop-near-duplicates",
        action="store_true",
        help="drop all but the first document of each cluster of near-duplicates, found with MinHash",
    )
    add("--minhash-ngram", type=int, default=5, metavar="N", help="words per shingle [%(default)s]")
    add("--minhash-buckets", type=int, default=14, metavar="N", help="near-duplicates share at least one [%(default)s]")
    add("--minhash-hashes", type=int, default=8, metavar="N", help="hashes per bucket [%(default)s]")
    add("--minhash-hash", choices=MINHASH_FUNCTIONS, default="xxhash", help="hash of a shingle [%(default)s]")
    add("--minhash-precision", type=int, choices=MINHASH_PRECISIONS, default=64, help="bits per hash [%(default)s]")
    add(
        "--minhash-words",
        choices=MINHASH_WORDS,
        default="english",
        help="english: as datatrove; characters: each Chinese character is a word [%(default)s]",
    )


def parse_range(text: str) -> tuple[int, int]:
    """Parse `A:B` as two numbers."""
    first, _, after = text.partition(":")
    return int(first), int(after)


def choose_seq_length(args: argparse.Namespace) -> int:
    """Return the trained tokens per row, or 0 for mmap, which has no rows."""
    if args.seq_length is None and args.output_format == "mindrecord":
        raise DataError("--seq-length: missing; give the trained tokens per row, cpt.seq_length of the run (4096)")
    return int(args.seq_length or 0)


def choose_tokenizer(args: argparse.Namespace) -> tuple[str, str]:
    """Return the tokenizer's type and path: a Hugging Face folder, or a model file for other types."""
    try:
        kind = parse_tokenizer_type(args.tokenizer_type)
    except argparse.ArgumentTypeError as error:
        raise DataError(f"--tokenizer-type: {error}") from None
    flags = {
        "--tokenizer-name-or-path": args.tokenizer_name_or_path,
        "--tokenizer-model": args.tokenizer_model,
    }
    first, second = flags if kind == HUGGING_FACE else reversed(flags)
    if args.tokenizer_type in TOKENIZER_TYPES:
        if not flags[first]:
            raise DataError(f"{first}: needed with --tokenizer-type {kind}")
        return kind, str(flags[first])
    path = flags[first] or flags[second]
    if not path:
        raise DataError(f"{first}: needed with --tokenizer-type {args.tokenizer_type}")
    return find_named_tokenizer(kind, path)


def describe_rows(manifest: Manifest) -> str:
    """Describe how the tokens are stored."""
    if manifest.seq_length is None:
        return f"{manifest.shards[0].file} and {manifest.shards[0].index_file}"
    files = format_number(len(manifest.shards), "file")
    return f"{manifest.num_rows} rows of {manifest.seq_length}, {files}"


def describe_left_out(manifest: Manifest) -> str:
    """Describe the documents dropped by selection, if any."""
    return "".join(f", {count} dropped by {kind}" for kind, count in manifest.left_out.items())


def main() -> None:
    """Run the command."""
    settings = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from ascend_cpt.data.pipeline import preprocess

    for manifest in preprocess(settings, fork=True):
        print(
            f"{manifest.path}: {manifest.num_documents} documents, {manifest.num_tokens} tokens "
            f"in {describe_rows(manifest)}, "
            f"{sum(manifest.rejected.values())} records rejected{describe_left_out(manifest)}\n"
            f"  packing {describe_packing(manifest)}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
