"""Generate text with a trained run or a Hugging Face folder.

python tools/generate.py output/my_run --tokenizer /models/Qwen3-8B-Base --prompt "The court held that"
python tools/generate.py exported/ --prompt "The court held that" --temperature 0.8 --top-p 0.95
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.backend.inference.sampling import Sampling
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, TYPE_HELP, parse_tokenizer_type
from ascend_cpt.errors import run_command
from ascend_cpt.monitor.console import captured_output


def parse_args() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="run folder, RUN/best, checkpoint folder (iteration_*), or Hugging Face folder",
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer folder or model file [from MODEL]")
    parser.add_argument(
        "--tokenizer-type", type=parse_tokenizer_type, default=HUGGING_FACE, metavar="TYPE", help=TYPE_HELP
    )
    parser.add_argument("--num-tokens", type=int, default=50, metavar="N", help="maximum new tokens [%(default)s]")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 selects the most likely token [%(default)s]")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling threshold [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="random seed for sampling [%(default)s]")
    parser.add_argument("--device", choices=("CPU", "Ascend"), default="CPU", help="[%(default)s]")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="[%(default)s]")
    return parser.parse_args()


def main() -> int:
    """Print the prompt and its continuation."""
    args = parse_args()
    with tempfile.TemporaryDirectory() as logs, captured_output(Path(logs) / "mindformers.log") as console:
        os.environ.setdefault("LOG_MF_PATH", logs)
        from ascend_cpt.backend.inference.text_model import TextModel

        model = TextModel(
            args.model,
            tokenizer=args.tokenizer or args.model,
            tokenizer_type=args.tokenizer_type,
            device=args.device,
            compute_dtype=args.dtype,
        )
        sampling = Sampling(temperature=args.temperature, top_p=args.top_p, seed=args.seed)
        print(model.complete(args.prompt, num_tokens=args.num_tokens, sampling=sampling), file=console)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
