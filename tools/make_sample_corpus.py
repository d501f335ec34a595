"""Make the sample corpus and its tokenizer from the running Python installation, without network access.

python tools/make_sample_corpus.py --output-dir data/sample
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.data.sample import RECORD_FILE, make_sample
from ascend_cpt.errors import run_command


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("data/sample"), help="folder to write to [%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="rebuild it even if it is complete")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    made = make_sample(args.output_dir, overwrite=args.overwrite)
    record = json.loads((args.output_dir / RECORD_FILE).read_text(encoding="utf-8"))
    print(f"sample corpus in {args.output_dir}: " + ("created" if made else "already complete; reusing it"))
    for domain, splits in record["domains"].items():
        for split, counts in splits.items():
            print(f"  {domain}/{split}: {counts['num_documents']} documents, {counts['text_bytes'] / 1e6:.2f} MB")
    print(f"  tokenizer: {args.output_dir / 'tokenizer'}")


if __name__ == "__main__":
    sys.exit(run_command(main))
