"""Generate replay text with the base model itself, for use when its original data is not available.

python tools/generate_replay.py base/ replay.jsonl --num-texts 2000 --max-tokens 256
python tools/generate_replay.py base/ replay.jsonl --prompts general.jsonl --prompt-tokens 16 --top-p 0.95
python tools/generate_replay.py replay.jsonl --from-vllm outputs.jsonl

On the CPU, this is for tiny models; for large ones, generate with vLLM and filter its outputs here. The same command
continues after an interruption. Pack OUTPUT with tools/preprocess_data.py. See docs/mixtures.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.data.tokenizing.names import HUGGING_FACE, TYPE_HELP, parse_tokenizer_type
from ascend_cpt.errors import ConfigError, run_command
from ascend_cpt.run.replay.filters import ReplayFilter
from ascend_cpt.run.replay.generate import ReplayOrder, chain, generate_parts, remove_parts, write_replay
from ascend_cpt.run.replay.sampling import Sampling
from ascend_cpt.run.replay.vllm import read_vllm


def parse_args() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", type=Path, nargs="?", metavar="MODEL", help="run, checkpoint or Hugging Face folder of the base model")
    add("output", type=Path, metavar="OUTPUT", help='JSONL file to write, with one {"text": ...} per line')
    add("--from-vllm", type=Path, nargs="+", default=[], metavar="JSONL", help="filter these outputs of vLLM instead")
    add("--num-texts", type=int, default=1000, metavar="N", help="number of texts to generate [%(default)s]")
    add("--max-tokens", type=int, default=256, metavar="N", help="tokens per text, with the prompt [%(default)s]")
    add("--batch-size", type=int, default=64, metavar="N", help="texts generated at the same time [%(default)s]")
    add("--prompts", nargs="+", default=[], metavar="PATH", help="texts whose first tokens begin the generated texts")
    add("--json-key", default="text", metavar="KEY", help="key of the texts in --prompts [%(default)s]")
    add("--prompt-tokens", type=int, default=16, metavar="N", help="tokens per prompt [%(default)s]")
    add("--temperature", type=float, default=1.0, help="0 selects the most likely token [%(default)s]")
    add("--top-p", type=float, default=1.0, help="nucleus sampling threshold [%(default)s]")
    add("--seed", type=int, default=0, help="random seed [%(default)s]")
    add("--tokenizer", type=Path, metavar="PATH", help="tokenizer folder or model file [from MODEL]")
    add("--tokenizer-type", type=parse_tokenizer_type, default=HUGGING_FACE, metavar="TYPE", help=TYPE_HELP)
    add("--min-chars", type=int, default=100, metavar="N", help="drop shorter texts [%(default)s]")
    add(
        "--max-repetition",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="drop texts with a larger share of repeated sequences of 4 words [%(default)s]",
    )
    args = parser.parse_args()
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    for name, minimum in (("num_texts", 1), ("max_tokens", 1), ("batch_size", 1), ("prompt_tokens", 1), ("seed", 0)):
        if getattr(args, name) < minimum:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least {minimum}")
    if not args.temperature >= 0:
        raise ConfigError(f"--temperature {args.temperature:g}: must be at least 0")
    for name in ("top_p", "max_repetition"):
        if not 0 < getattr(args, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name):g}: must be above 0 and at most 1")
    if (args.model is None) == (not args.from_vllm):
        raise ConfigError("give either MODEL to generate from, or OUTPUT --from-vllm FILES")
    if args.prompts and args.prompt_tokens >= args.max_tokens:
        raise ConfigError(f"--prompt-tokens {args.prompt_tokens}: leaves nothing to generate; raise --max-tokens")
    if args.output.suffix != ".jsonl":
        raise ConfigError(f"{args.output}: give a name that ends with .jsonl, which tools/preprocess_data.py reads")
    if args.output.exists():
        raise ConfigError(f"{args.output}: already exists; remove it, or give another name")


def main() -> int:
    """Write the text and print the counts."""
    args = parse_args()
    kept_by = ReplayFilter(min_chars=args.min_chars, max_repetition=args.max_repetition)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    parts = args.output.with_name(f".{args.output.name}.parts")
    if args.from_vllm:
        settings = {"from_vllm": [str(path) for path in args.from_vllm]}
        counts = write_replay(
            args.output, chain([read_vllm(path) for path in args.from_vllm]), kept_by, settings=settings
        )
    else:
        order = ReplayOrder(
            model=args.model,
            tokenizer=args.tokenizer or args.model,
            tokenizer_type=args.tokenizer_type,
            num_texts=args.num_texts,
            batch_size=args.batch_size,
            sampling=Sampling(
                temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_tokens, seed=args.seed
            ),
            prompts=tuple(args.prompts),
            json_key=args.json_key,
            prompt_tokens=args.prompt_tokens,
        )
        texts = generate_parts(order, parts, lambda line: print(line, flush=True))
        counts = write_replay(args.output, texts, kept_by, settings=vars(order))
        remove_parts(parts)
    dropped = ", ".join(f"{counts[name]} {name}" for name in ("short", "repetitive", "duplicate", "failed"))
    print(f"{args.output}: {counts['kept']} texts, {counts['characters']} characters; dropped: {dropped}")
    if not counts["kept"]:
        print("warning: every text was dropped; see --min-chars and --max-repetition", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
