"""Show, check or convert a packed dataset.

    python tools/inspect_data.py data/corpus_text_document --verify --histogram
    python tools/inspect_data.py data/corpus_text_document --samples 3 --tokenizer /models/Qwen3-8B-Base
    python tools/inspect_data.py megatron_text_document --convert data/corpus --tokenizer /models/Qwen3-8B-Base \\
        --seq-length 4096
    python tools/inspect_data.py adopt wiki4096.mindrecord --tokenizer /models/llama2/tokenizer.model

`adopt` writes the manifest of a dataset made by MindFormers, MindSpeed-LLM or Megatron; see `adopt --help`.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.data.adoption.settings import AdoptSettings
from ascend_cpt.data.packed.manifest import Manifest, describe_packing, load_manifest
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, TYPE_HELP, parse_tokenizer_type
from ascend_cpt.errors import DataError, run_command
from ascend_cpt.terminal_text import strip_controls


def parse_args() -> argparse.Namespace:
    """Return the parsed command line, without the subcommand `adopt`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prefix", help="prefix of the dataset, its manifest, or the folder of a single dataset")
    add("--verify", action="store_true", help="read everything and compare it with the manifest")
    add("--samples", type=int, default=0, metavar="N", help="show the first N documents as text (needs --tokenizer)")
    add("--histogram", action="store_true", help="show a histogram of document lengths")
    add("--png", type=Path, metavar="FILE", help="plot document lengths and token frequencies")
    add("--tokenizer", metavar="PATH", help="the tokenizer of the dataset: folder or model file")
    add("--tokenizer-type", type=parse_tokenizer_type, default=HUGGING_FACE, metavar="TYPE", help=TYPE_HELP)
    add = parser.add_argument_group("conversion of an indexed dataset (.bin, .idx) to MindRecord").add_argument
    add("--convert", metavar="OUTPUT_PREFIX", help="folder and name prefix of the output files")
    add("--seq-length", type=int, default=0, help="trained tokens per row")
    add("--n-subs", type=int, default=1, help="number of output files [%(default)s]")
    add("--workers", type=int, default=1, help="processes [%(default)s]")
    args = parser.parse_args()
    if (args.samples or args.convert) and not args.tokenizer:
        raise DataError("--tokenizer: needed to show samples and to convert")
    return args


def parse_adopt(arguments: list[str]) -> AdoptSettings:
    """Return the settings of `adopt` from its command line."""
    parser = argparse.ArgumentParser(
        prog="inspect_data.py adopt",
        description="Check a packed dataset without a manifest (MindRecord, or .bin and .idx) and write the manifest "
        "that training needs. The data files are not changed.",
    )
    add = parser.add_argument
    add("path", type=Path, help="a data file of the dataset, its prefix, or a folder with only this dataset")
    add("--tokenizer", required=True, metavar="PATH", help="the tokenizer it was made with: folder or model file")
    add(
        "--tokenizer-type",
        type=parse_tokenizer_type,
        metavar="TYPE",
        help="[by its name: a folder, *.tiktoken or SentencePiece]",
    )
    add("--eod-token", help="end-of-document token [the tokenizer's eos_token]")
    add(
        "--seq-length",
        type=int,
        help="trained tokens per row: as many as a row has ids, or one less [whichever is even]",
    )
    add("--pad-id", type=int, help="id with which rows are padded at the end [the tokenizer's padding token]")
    add("--ignore-labels", action="store_true", help="train on every token, whatever the labels in the file are")
    args = parser.parse_args(arguments)
    return AdoptSettings(
        path=args.path,
        tokenizer_path=args.tokenizer,
        tokenizer_type=args.tokenizer_type,
        eod_token=args.eod_token,
        seq_length=args.seq_length,
        pad_id=args.pad_id,
        ignore_labels=args.ignore_labels,
    )


def show_manifest(manifest: Manifest) -> None:
    """Print a summary of the manifest."""
    tokenizer = manifest.tokenizer
    extra = "" if manifest.lacks_last_label else " + 1"
    rows = f"rows of {manifest.seq_length}{extra}" if manifest.seq_length else "documents"
    rejected, left_out = (
        ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
        for counts in (manifest.rejected, manifest.left_out)
    )
    size = f"{manifest.text_bytes} bytes" if manifest.text_bytes else "unknown size"
    print(f"{manifest.path}")
    print(f"  {manifest.output_format}: {manifest.num_rows} {rows}, {manifest.num_tokens} tokens")
    print(f"  {manifest.num_documents} documents of {size}, from {manifest.num_records} records")
    print(f"  packing: {describe_packing(manifest)}")
    print(f"  rejected: {rejected}; filtered: {manifest.num_filtered}; dropped tokens: {manifest.dropped_tokens}")
    print(f"  dropped documents: {left_out}")
    print(
        f"  tokenizer: {tokenizer.type} {tokenizer.name}, {tokenizer.vocab_size} entries, EOD {tokenizer.eod_id}, ",
        end="",
    )
    print(f"padding {tokenizer.pad_id}; encoded by {manifest.engine.get('name')}: {manifest.engine.get('check')}")
    print(f"  digest: {manifest.digest}")
    for shard in manifest.shards:
        tail = f", {shard.tail_tokens} tokens in the last row" if shard.tail_tokens else ""
        print(
            f"  {shard.file}: {shard.num_rows} rows, {shard.num_documents} documents, {shard.num_tokens} tokens{tail}"
        )


def show_samples(manifest: Manifest, args: argparse.Namespace) -> None:
    """Print the first documents of the dataset as text, with their boundaries."""
    from ascend_cpt.data.inspection import iter_shard_documents
    from ascend_cpt.data.tokenizing.files import open_tokenizer
    from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine

    file = open_tokenizer(args.tokenizer_type, args.tokenizer)
    if file.info.fingerprint != manifest.tokenizer.fingerprint:
        raise DataError(
            f"{args.tokenizer}: not the tokenizer that {manifest.path} was packed with (fingerprints differ)"
        )
    engine = make_reference_engine(file)
    documents = (ids for shard in manifest.shards for ids in iter_shard_documents(manifest, shard))
    for number, ids in enumerate(itertools.islice(documents, args.samples)):
        print(f"--- document {number}: {ids.size} tokens")
        print(strip_controls(engine.decode(ids.tolist())))


def convert(args: argparse.Namespace) -> None:
    """Pack an indexed dataset into MindRecord."""
    from ascend_cpt.data.pipeline import preprocess
    from ascend_cpt.data.settings import PreprocessSettings

    settings = PreprocessSettings(
        inputs=(args.prefix.removesuffix(".idx").removesuffix(".bin") + ".idx",),
        output_prefix=args.convert,
        seq_length=args.seq_length,
        tokenizer_path=args.tokenizer,
        tokenizer_type=args.tokenizer_type,
        num_shards=args.n_subs,
        workers=args.workers,
    )
    for manifest in preprocess(settings):
        show_manifest(manifest)


def main() -> None:
    """Run the command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if sys.argv[1:2] == ["adopt"]:
        from ascend_cpt.data.adoption.adopt import adopt

        show_manifest(adopt(parse_adopt(sys.argv[2:])))
        return
    args = parse_args()
    if args.convert:
        convert(args)
        return
    manifest = load_manifest(args.prefix)
    show_manifest(manifest)
    if args.verify:
        from ascend_cpt.data.inspection import verify

        verify(manifest)
        print("verified: all files, rows and documents match the manifest")
    if args.histogram or args.png:
        from ascend_cpt.data.inspection import compute_statistics, draw_histograms, format_histogram

        statistics = compute_statistics(manifest)
        if args.histogram:
            print(format_histogram(statistics))
        if args.png:
            draw_histograms(statistics, args.png)
            print(f"picture: {args.png}")
    if args.samples:
        show_samples(manifest, args)


if __name__ == "__main__":
    sys.exit(run_command(main))
