"""Add new tokens, learned on your corpus, to a tokenizer and to the model that uses it.

    python tools/extend_vocabulary.py /models/Qwen3-8B-Base extended/ --input corpus/ --new-tokens 20000

All old ids are kept. The new folder is a complete Hugging Face model (or a tokenizer, if the base is only a tokenizer).
See docs/new_tokens.md for training it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.config.values import parse_count
from ascend_cpt.data.settings import INPUT_FORMATS, TXT_DOCUMENTS
from ascend_cpt.data.texts import TextInput
from ascend_cpt.errors import DataError, run_command
from ascend_cpt.run.growth.new_tokens import RECORD_NAME, Extension, NewTokenSettings, add_new_tokens
from ascend_cpt.weights.folder_writer import DEFAULT_SHARD_BYTES
from ascend_cpt.weights.growth.rows import MEAN, METHODS


def parse_args() -> NewTokenSettings:
    """Return the settings given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, metavar="BASE", help="Hugging Face folder of the model, or of its tokenizer")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder to write; must not exist")
    parser.add_argument("--new-tokens", type=int, required=True, metavar="N", help="number of new tokens")

    add = parser.add_argument_group("text").add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help="corpus: files, folders or globs")
    add("--heldout", nargs="+", metavar="PATH", help="texts for the comparison [a share of the corpus]")
    add("--heldout-share", type=float, default=0.01, metavar="SHARE", help="share of the corpus [%(default)s]")
    add("--general", nargs="+", metavar="PATH", help="other texts, to count the documents whose ids do not change")
    add("--max-bytes", default="100M", metavar="BYTES", help="learn from a random part of this size [%(default)s]")
    add("--format", choices=INPUT_FORMATS, help="format of files with other extensions; as in preprocess_data.py")
    add("--json-key", default="text", metavar="KEY", help="key or column of the text [%(default)s]")
    add("--handler-name", default="GeneralPretrainHandler", help="as in preprocess_data.py [%(default)s]")
    add("--txt-documents", choices=TXT_DOCUMENTS, default="line", help="what counts as a .txt document [%(default)s]")

    add = parser.add_argument_group("new tokens").add_argument
    add("--min-count", type=int, default=10, metavar="N", help="minimum occurrences of a merged pair [%(default)s]")
    add("--max-chars", type=int, default=16, metavar="N", help="maximum characters in a new token [%(default)s]")

    add = parser.add_argument_group("weights").add_argument
    add(
        "--init",
        choices=METHODS,
        default=MEAN,
        help="values of new rows: mean of the old tokens that a new one replaces, mean of all rows plus slight noise, "
        "or random [%(default)s]",
    )
    add("--pad-to", type=int, default=128, metavar="N", help="pad the vocabulary to a multiple of N [%(default)s]")
    add("--seed", type=int, default=42, metavar="N", help="for mean-all and random [%(default)s]")
    add("--max-shard-gb", type=float, default=DEFAULT_SHARD_BYTES / 1e9, metavar="GB", help="[%(default)g]")
    args = parser.parse_args()

    def describe(paths: list[str] | None) -> TextInput | None:
        if paths is None:
            return None
        return TextInput(
            paths=tuple(paths),
            key=args.json_key,
            format=args.format,
            handler_name=args.handler_name,
            txt_documents=args.txt_documents,
        )

    corpus = describe(args.input)
    assert corpus is not None
    try:
        max_bytes = parse_count(args.max_bytes)
    except ValueError as error:
        raise DataError(f"--max-bytes: {error}") from error
    return NewTokenSettings(
        base=args.base,
        target=args.target,
        corpus=corpus,
        num_tokens=args.new_tokens,
        held_out=describe(args.heldout),
        held_out_share=args.heldout_share,
        general=describe(args.general),
        max_bytes=max_bytes,
        min_count=args.min_count,
        max_chars=args.max_chars,
        method=args.init,
        seed=args.seed,
        multiple=args.pad_to,
        max_shard_bytes=int(args.max_shard_gb * 1e9),
    )


def print_result(settings: NewTokenSettings, extension: Extension) -> None:
    """Print the comparison, the new ids and the keys for training."""
    last_id = extension.first_id + extension.num_tokens - 1
    print(f"{extension.kind}: {extension.num_tokens} new tokens, ids {extension.first_id} to {last_id}")
    print(f"  {'texts':10} {'documents':>9} {'MB':>8} {'bytes per token':>17} {'new ids used':>12} {'unchanged':>9}")
    for name, found in extension.comparisons.items():
        change = f"{found.old_bytes_per_token:.3f} → {found.new_bytes_per_token:.3f}"
        print(
            f"  {name:10} {found.num_documents:>9} {found.num_bytes / 1e6:>8.2f} {change:>17} "
            f"{100 * found.num_used / extension.num_tokens:>10.1f} % {100 * found.unchanged_share:>7.1f} %"
        )
    if extension.equal_models:
        print(f"  tokenizer.json and tokenizer.model give the same ids for {extension.equal_models} documents")
    print(f"  {settings.target / RECORD_NAME} lists all new tokens and these figures")
    if extension.summary is None:
        print(f"{settings.target}: a tokenizer without weights, because {settings.base} has none")
        return
    print(extension.summary)
    names = ["embedding.word_embeddings.weight", *([] if extension.is_tied else ["output_layer.weight"])]
    rows = ", ".join(f"'{name}[{extension.first_id}:]'" for name in names)
    print(f"  model.model_config.vocab_size: {extension.num_rows}")
    print(f"  cpt.trainable: [{rows}]   # first stage: only the new rows")


def main() -> None:
    """Run the command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    settings = parse_args()
    print_result(settings, add_new_tokens(settings))


if __name__ == "__main__":
    sys.exit(run_command(main))
