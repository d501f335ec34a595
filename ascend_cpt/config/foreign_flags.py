"""MindSpeed-LLM and Megatron-LM flags with another name or place here. The error message says which."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NoReturn

_EMBEDDING = "model.model_config.vocab_size of the run sets the size of the embedding; remove it"
_INSTRUCTIONS = "instruction data cannot be packed here; remove it, or pack plain documents"

PREPROCESS_FLAGS = {
    "--dataset-impl": "--output-format mmap writes .bin and .idx",
    "--streaming": "all formats are streamed; remove it",
    "--cache-dir": "no cache is written; remove it",
    "--overwrite-cache": "no cache is written; remove it",
    "--hf-datasets-params": "give the files or the folder with --input",
    "--datasets": "give the files or the folder with --input",
    "--split-sentences": "documents are not split into sentences; remove it",
    "--keep-newlines": "documents are not split into sentences; remove it",
    "--lang": "documents are not split into sentences; remove it",
    "--pad-vocab-size-to": _EMBEDDING,
    "--make-vocab-size-divisible-by": _EMBEDDING,
    "--tokenizer-not-use-fast": "ids are compared with those of the reference library; remove it",
    "--vocab-file": "give the folder with tokenizer.json with --tokenizer-name-or-path",
    "--merge-file": "give the folder with tokenizer.json with --tokenizer-name-or-path",
    "--merge-group-keys": "the shards of a dataset are used together; remove it",
    "--partitions": "use --n-subs",
    "--keep-sequential-samples": "documents keep their order; remove it",
    "--prompt-type": _INSTRUCTIONS,
    "--prompt-type-path": _INSTRUCTIONS,
    "--enable-thinking": _INSTRUCTIONS,
    "--reward-tokens": _INSTRUCTIONS,
    "--placeholder-token": _INSTRUCTIONS,
    "--map-keys": _INSTRUCTIONS,
    "--pack": "documents are always packed into rows; remove it",
    "--neat-pack": "documents are always packed into rows; set cpt.document_attention: within for the mask",
}

TRAIN_FLAGS = {
    "--train-iters": "set cpt.train_tokens to iterations × global batch × sequence length",
    "--train-samples": "set cpt.train_tokens to samples × sequence length",
    "--lr": "use cpt.schedule.peak_lr",
    "--min-lr": "use cpt.schedule.final_lr",
    "--lr-decay-style": "use cpt.schedule.kind",
    "--lr-warmup-fraction": "use cpt.schedule.warmup_share",
    "--lr-warmup-iters": "use cpt.schedule.warmup_tokens",
    "--lr-decay-iters": "use cpt.train_tokens; the rate decays over the whole run",
    "--micro-batch-size": "use runner_config.batch_size",
    "--global-batch-size": "use cpt.global_batch_size",
    "--rampup-batch-size": "use cpt.global_batch_size, a list of {until, size}",
    "--seq-length": "use cpt.seq_length",
    "--max-position-embeddings": "use model.model_config.max_position_embeddings",
    "--tensor-model-parallel-size": "use parallel_config.model_parallel",
    "--pipeline-model-parallel-size": "use parallel_config.pipeline_stage",
    "--context-parallel-size": "use parallel_config.context_parallel",
    "--sequence-parallel": "use parallel_config.use_seq_parallel",
    "--use-distributed-optimizer": "use parallel.enable_parallel_optimizer",
    "--data-path": "use cpt.sources, or --train_dataset_dir for one dataset",
    "--save": "use output_dir",
    "--save-interval": "use cpt.checkpoint.every, for example '1000 steps'",
    "--eval-interval": "use cpt.validation.every, for example '1000 steps'",
    "--eval-iters": "use cpt.validation.max_rows",
    "--log-interval": "use cpt.monitor.print_every_steps; metrics.jsonl has every step",
    "--weight-decay": "use optimizer.weight_decay",
    "--clip-grad": "use runner_wrapper.max_grad_norm",
    "--seed": "use the key seed",
    "--split": "use cpt.validation.sets, datasets that are packed separately",
    "--workers": "the number of workers is an argument of scripts/msrun_launcher.sh",
    "--num-workers": "each rank reads its rows with one thread; remove it",
    "--bf16": "bfloat16 is the default; use model.model_config.compute_dtype to change it",
    "--reset-attention-mask": "use cpt.document_attention: within",
    "--finetune": "use cpt.init_from",
}


class ExplainingParser(argparse.ArgumentParser):
    """An argument parser that, for a known flag of another program, says what to use instead.

    Args:
        explanations: Flag → what to use instead.
    """

    def __init__(self, *args: object, explanations: Mapping[str, str], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._explanations = explanations

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        if message.startswith("unrecognized arguments:"):
            flags = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
            known = [f"{flag}: {self._explanations[flag]}" for flag in flags if flag in self._explanations]
            unknown = [flag for flag in flags if flag not in self._explanations]
            if known:
                rest = [f"unknown: {', '.join(unknown)}"] if unknown else []
                self.exit(2, f"error: flags of another program: {'; '.join([*known, *rest])}\n")
        super().error(message)
