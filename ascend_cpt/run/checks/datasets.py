"""Checks that the packed datasets fit the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.config.values import format_count
from ascend_cpt.data.packed.packing import CONCAT
from ascend_cpt.recipe.budget import Budget
from ascend_cpt.run.resolved_run import Dataset

VALIDATION = "validation.sets"
NOTED_PADDING = 0.02
"""Share of padding in a run from which a warning is printed."""


def find_dataset_problems(config: RunConfig, datasets: Sequence[Dataset], kind: str) -> list[str]:
    """Return a problem for each dataset whose row length, vocabulary or padding does not fit the run.

    Args:
        config: The run's configuration.
        datasets: The datasets of one section.
        kind: The section within `cpt`: `sources` or `validation.sets`.
    """
    problems: list[str] = []
    model = config.mindformers["model"]["model_config"]
    for dataset in datasets:
        tokenizer = dataset.manifest.tokenizer
        where = f"{config.locate('cpt', *kind.split('.'), dataset.name)}: cpt.{kind}.{dataset.name}"
        if not dataset.num_rows:
            problems.append(f"{where}: has no rows; pack it again from an input that has documents")
        problem = find_length_problem(dataset, config.cpt.seq_length, may_be_shorter=kind == VALIDATION)
        if problem:
            problems.append(f"{where}{problem}")
        if tokenizer.vocab_size > model["vocab_size"]:
            problems.append(
                f"{where}: packed with a tokenizer of {tokenizer.vocab_size} entries, but the model has "
                f"vocab_size {model['vocab_size']}; use the model's own tokenizer"
            )
        if model.get("pad_token_id") not in (None, tokenizer.pad_id):
            problems.append(
                f"{config.locate('model', 'model_config', 'pad_token_id')}: model.model_config.pad_token_id "
                f"{model['pad_token_id']} is not the padding token of {dataset.name} ({tokenizer.pad_id}; its "
                f"end-of-document token is {tokenizer.eod_id}); remove the key, because it is set from the dataset"
            )
        if tokenizer.pad_id == tokenizer.eod_id:
            problems.append(
                f"{where}: padded with its end-of-document token {tokenizer.eod_id}, which would be masked in the "
                "loss; pack it again with this version"
            )
    return problems


def find_length_problem(dataset: Dataset, seq_length: int, *, may_be_shorter: bool) -> str:
    """Return the end of a message saying why a dataset's rows do not fit `seq_length`, or "" if they fit.

    An mmap dataset is cut into rows of any length when it is read.
    """
    packed, requested = dataset.manifest.seq_length, dataset.seq_length
    if packed not in (None, requested):
        return f".seq_length: {requested}, but the dataset has rows of {packed} tokens; remove the key"
    if requested == seq_length or (may_be_shorter and requested < seq_length):
        return ""
    if packed is None:
        return f".seq_length: {requested}, more than cpt.seq_length {seq_length}; lower it"
    return (
        f": packed with sequence length {packed}, but cpt.seq_length is {seq_length}; pack it again with "
        f"--seq-length {seq_length}"
    )


def find_tokenizer_problems(config: RunConfig, datasets: Sequence[Dataset]) -> list[str]:
    """Return a problem for datasets packed with different tokenizers or padding tokens."""
    problems: list[str] = []
    fingerprints: dict[str, str] = {}
    for dataset in datasets:
        fingerprints.setdefault(dataset.manifest.tokenizer.fingerprint, dataset.name)
    if len(fingerprints) > 1:
        names = ", ".join(fingerprints.values())
        problems.append(
            f"{config.locate('cpt', 'sources')}: the datasets {names} were packed with different tokenizers; "
            "pack them again with the same one"
        )
    by_padding = {dataset.manifest.tokenizer.pad_id: dataset.name for dataset in datasets}
    if len(by_padding) > 1:
        pads = ", ".join(f"{name} ({token})" for token, name in by_padding.items())
        problems.append(
            f"{config.locate('cpt', 'sources')}: the datasets are padded with different tokens: {pads}; "
            "pack them again with the same one"
        )
    return problems


def note_padding(
    config: RunConfig, budget: Budget, sources: Sequence[Dataset], num_rows: Mapping[str, int]
) -> tuple[str, ...]:
    """Return warnings about padded rows if they make up more than `NOTED_PADDING` of the run.

    Args:
        config: The run's configuration.
        budget: The run's batch and steps.
        sources: The run's sources.
        num_rows: Number of rows of each source that the run trains on.
    """
    padded = {s.name: s.manifest.padding_share for s in sources if s.manifest.packing != CONCAT}
    share = sum(num_rows[name] * part for name, part in padded.items()) / max(1, sum(num_rows.values()))
    if share < NOTED_PADDING:
        return ()
    parts = ", ".join(f"{name} {100 * part:.1f} %" for name, part in padded.items())
    total = budget.total_tokens
    notes = [
        f"warning: {100 * share:.1f} % of the tokens are padding ({parts}); budgets, intervals and tokens/s "
        f"include it: about {format_count(round(total * (1 - share)))} of the {format_count(total)} tokens are real; "
        f"for {format_count(total)} real tokens, train on about {format_count(round(total / (1 - share)))}, or pack "
        "with --packing best-fit"
    ]
    if budget.num_accumulation_steps > 1 and not uses_cpu(config):
        notes.append(
            f"warning: the {budget.num_accumulation_steps} micro batches of a step have equal weights, whatever their "
            "padding: the loss is the mean over the real tokens of a micro batch on all data-parallel ranks, then over "
            "the micro batches; larger micro batches or --packing best-fit reduce the difference"
        )
    return tuple(notes)
