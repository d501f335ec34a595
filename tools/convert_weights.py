"""Convert weights between Hugging Face and MindFormers, add blocks, upcycle models, and verify the result.

    python tools/convert_weights.py to-hf output/my_run exported/ --like /models/Qwen3-8B-Base
    python tools/convert_weights.py verify exported/ --against output/my_run
    python tools/convert_weights.py to-hf output/my_lora adapters/
    python tools/convert_weights.py to-hf output/my_lora exported/ --merge
    python tools/convert_weights.py to-mindformers /models/Qwen3-8B-Base converted/
    python tools/convert_weights.py expand /models/Qwen3-8B-Base expanded/ --every 4
    python tools/convert_weights.py upcycle /models/Qwen3-1.7B-Base mixture/ --experts 8 --per-token 2

Model sizes are read from config.json or from the run. Training reads Hugging Face folders without conversion.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.errors import EXIT_FAILURE, EXIT_OK, run_command
from ascend_cpt.run.export.adapters import check_merge, export_adapters
from ascend_cpt.run.export.model_card import make_card
from ascend_cpt.run.growth.new_blocks import add_new_blocks
from ascend_cpt.run.trained_model import TrainedModel, open_trained
from ascend_cpt.weights.compare import KindReport, compare_folders, compare_round_trip
from ascend_cpt.weights.convert import Options, Upcycling, convert_to_hf, convert_to_mindformers, upcycle
from ascend_cpt.weights.dtypes import DTYPES
from ascend_cpt.weights.folder_writer import DEFAULT_SHARD_BYTES
from ascend_cpt.weights.hf_folder import HfFolder, is_hf_folder


def parse_args() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    to_mindformers = commands.add_parser(
        "to-mindformers", help="convert Hugging Face weights to a MindFormers checkpoint"
    )
    to_mindformers.add_argument("source", type=Path, metavar="FOLDER", help="Hugging Face folder")
    to_hf = commands.add_parser("to-hf", help="export a run or checkpoint of any layout to a Hugging Face folder")
    to_hf.add_argument(
        "source", type=Path, metavar="RUN", help="run folder (newest step), RUN/best, or checkpoint/iteration_*"
    )
    to_hf.add_argument("--like", type=Path, metavar="FOLDER", help="take tokenizer and config.json from this folder")
    to_hf.add_argument("--no-verify", action="store_true", help="do not verify the checksums of the files")
    to_hf.add_argument("--average", type=int, default=1, metavar="K", help="mean of the K newest checkpoints [1]")
    to_hf.add_argument(
        "--merge", action="store_true", help="for a run with adapters: write the whole model, not only the adapters"
    )
    expand = commands.add_parser("expand", help="add blocks to a Hugging Face model without changing its output")
    expand.add_argument("source", type=Path, metavar="FOLDER", help="Hugging Face folder")
    expand.add_argument("--every", type=int, required=True, metavar="K", help="add a block after every K blocks")
    upcycle_parser = commands.add_parser(
        "upcycle", help="make a mixture of experts whose experts are copies of a dense model's MLP"
    )
    upcycle_parser.add_argument("source", type=Path, metavar="FOLDER", help="Hugging Face folder of a dense Qwen3")
    upcycle_parser.add_argument("--experts", type=int, required=True, metavar="N", help="experts per layer")
    upcycle_parser.add_argument("--per-token", type=int, required=True, metavar="K", help="experts per token")
    upcycle_parser.add_argument(
        "--noise", type=float, default=0.0, metavar="X", help="noise on every expert, relative to its weights [0]"
    )
    upcycle_parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of routers and noise [0]")
    for command in (to_mindformers, to_hf, expand, upcycle_parser):
        command.add_argument("target", type=Path, metavar="TARGET", help="folder to write; must not exist")
        command.add_argument(
            "--max-shard-gb", type=float, default=DEFAULT_SHARD_BYTES / 1e9, metavar="GB", help="[%(default)g]"
        )
    for command in (to_mindformers, to_hf, upcycle_parser):
        command.add_argument("--dtype", choices=sorted(DTYPES), help="data type of the written weights [unchanged]")
    for command in (to_mindformers, to_hf):
        command.add_argument(
            "--resize-vocab",
            type=int,
            metavar="N",
            help="vocabulary size to write; new rows are the mean of the existing ones",
        )

    verify = commands.add_parser("verify", help="compare tensors bit by bit, and logits with a reference")
    verify.add_argument("source", type=Path, metavar="FOLDER", help="Hugging Face folder")
    verify.add_argument("--against", type=Path, metavar="PATH", help="run, checkpoint or folder it was converted from")
    verify.add_argument("--average", type=int, default=1, metavar="K", help="FOLDER is the mean of K checkpoints [1]")
    verify.add_argument("--no-verify", action="store_true", help="do not verify the checksums of the files of PATH")
    for command in (to_hf, verify):
        command.add_argument(
            "--base", type=Path, metavar="FOLDER", help="base weights of the run's adapters [the recorded folder]"
        )
    verify.add_argument("--no-logits", action="store_true", help="compare tensors only, without building the network")
    return parser.parse_args()


def main() -> int:
    """Run one command."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    args = parse_args()
    if args.command == "verify":
        return verify(args)
    if args.command == "expand":
        return expand(args)
    options = Options(dtype=args.dtype, max_shard_bytes=int(args.max_shard_gb * 1e9))
    if args.command == "upcycle":
        upcycling = Upcycling(num_experts=args.experts, num_per_token=args.per_token, noise=args.noise, seed=args.seed)
        print(upcycle(HfFolder(args.source), args.target, upcycling, options))
        return EXIT_OK
    options = replace(options, vocab_size=args.resize_vocab)
    if args.command == "to-mindformers":
        print(convert_to_mindformers(HfFolder(args.source), args.target, options))
        return EXIT_OK
    trained = open_trained(
        args.source,
        num_averaged=args.average,
        like=args.like,
        verify=not args.no_verify,
        base=args.base,
        dtype=args.dtype,
    )
    check_merge(trained, args.source, merge=args.merge)
    print(f"from {', '.join(str(path) for path in trained.origins)}")
    if trained.adapters is not None and not args.merge:
        print(export_adapters(trained, args.target, options))
        return EXIT_OK
    card = make_card(args.target, trained, options)
    print(convert_to_hf(trained.source, trained.config, args.target, options, trained.companions, card=card))
    return EXIT_OK


def expand(args: argparse.Namespace) -> int:
    """Write the model with new blocks, and print the keys for training them."""
    options = Options(max_shard_bytes=int(args.max_shard_gb * 1e9))
    expansion = add_new_blocks(args.source, args.target, every=args.every, options=options)
    print(expansion.summary)
    patterns = ", ".join(f"'decoder.layers.{layer}.*'" for layer in expansion.new_layers)
    print(f"  model.model_config.num_hidden_layers: {expansion.num_layers}")
    print(f"  cpt.trainable: [{patterns}]   # only the new blocks")
    return EXIT_OK


def verify(args: argparse.Namespace) -> int:
    """Print the comparisons. Return 1 if any comparison finds a difference."""
    folder = HfFolder(args.source)
    is_equal = print_tensors("converted to MindFormers and back", compare_round_trip(folder))
    if args.against:
        is_hf = is_hf_folder(args.against)
        other = HfFolder(args.against) if is_hf else open_against(args, folder).source
        is_equal &= print_tensors(f"against {args.against}", compare_folders(folder, other))
    if not args.no_logits:
        is_equal &= print_logits(args.source)
    print("equal" if is_equal else "NOT EQUAL")
    return EXIT_OK if is_equal else EXIT_FAILURE


def open_against(args: argparse.Namespace, folder: HfFolder) -> TrainedModel:
    """Return the run or checkpoint named by --against. Adapters are merged in the dtype of `folder`."""
    stored = next(iter(folder.tensors.values())).dtype
    dtype = next(name for name, kind in DTYPES.items() if kind == stored)
    return open_trained(args.against, num_averaged=args.average, verify=not args.no_verify, base=args.base, dtype=dtype)


def print_tensors(title: str, reports: Sequence[KindReport]) -> bool:
    """Print a line for every kind of tensor and return whether all are bit-equal."""
    print(title)
    for report in reports:
        difference = "" if report.max_difference == 0 else f", differs by up to {report.max_difference:.3g}"
        print(f"  {report.kind:28} {report.num_equal:>4} of {report.num_tensors:<4} bit-equal{difference}")
    return all(report.num_equal == report.num_tensors for report in reports)


def print_logits(folder: Path) -> bool:
    """Print the difference between the network's logits and a reference. Return whether it is within tolerance."""
    from ascend_cpt.backend.inference.compare_logits import compare_logits
    from ascend_cpt.monitor.console import captured_output

    with tempfile.TemporaryDirectory() as logs, captured_output(Path(logs) / "mindformers.log"):
        os.environ.setdefault("LOG_MF_PATH", logs)
        report = compare_logits(folder)
    print(f"logits of MindFormers' network against {report.reference}")
    print(f"  differ by at most {report.max_difference:.1e} of their standard deviation")
    return report.is_equal


if __name__ == "__main__":
    sys.exit(run_command(main))
