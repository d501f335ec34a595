"""Makes the reference values of evaluation tasks with lm-evaluation-harness, for the tests of ascend_cpt/tasks.

Run it where torch, transformers and lm_eval[hf] are installed, from the repository root; it needs no network:

    python tests/reference/make_task_reference.py

It writes into tests/reference/tasks the item files, a byte-level BPE tokenizer with at most 127 entries
(tokenizer.json), and lm_eval.json, what lm-evaluation-harness computes from them with its own task files and its HFLM,
in float32, on the models of make_reference.py. lm_eval.json:

    versions            of python, torch, transformers, tokenizers and lm_eval
    seq_length          `max_length` of HFLM
    models.<model>      prefix_token, and adds_bos: whether every context begins with it
    tasks.<name>
      config            the fields of TaskConfig; paths are relative to tests/reference/tasks
      prompts           [context, [continuation, ...]] of each item as text
      metrics           our metric → its name in lm-evaluation-harness
      results.<model>
        tokens          [context ids, [continuation ids, ...]] of each item
        log_likelihoods sums over the continuation tokens, in nats; one for each request, items and choices in order
        greedy          whether every continuation token is the most likely one, for each request
        scores          values and standard errors (`<metric>_stderr`; absent where it has none) by their own names

Same versions, same bytes. The models have random weights, so scores are near chance; the LAMBADA items are chosen such
that some of their last words are what a model predicts.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from make_task_items import BOS_ID, SPECIAL_TOKENS, make_contexts, make_items, train_tokenizer, write_rows
from tokenizers import Tokenizer, processors

HERE = Path(__file__).resolve().parent
TASKS = HERE / "tasks"
SEQ_LENGTH = 512
MODELS = {"qwen3": False, "llama3": True}
"""Model → whether its tokenizer adds BOS."""
NUM_PREDICTED, NUM_OTHER = 3, 6
"""LAMBADA items whose last word a model predicts (for each model), and others."""

DESCRIPTION = "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n"
MULTIPLE_CHOICE = {"acc": "acc", "acc_norm": "acc_norm"}
ACC = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in MULTIPLE_CHOICE]


def score_bits(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """Return log-likelihood and bytes, as lm-evaluation-harness does for its rolling log-likelihoods."""
    return {"bits_per_byte": (results[0][0], len(doc["continuation"].encode("utf-8")))}


# name → (our configuration, changes of its task file, split of the items, our metric → its metric)
TASK_TABLE: dict[str, tuple[dict[str, Any], dict[str, Any], str, dict[str, str]]] = {
    "mmlu": (
        {"path": "mmlu.jsonl", "kind": "multiple_choice", "few_shot": 2, "few_shot_path": "mmlu_dev.jsonl"},
        {"yaml": "mmlu/default/mmlu_abstract_algebra.yaml", "metric_list": ACC},
        "test",
        MULTIPLE_CHOICE,
    ),
    "ceval": (
        {"path": "ceval.jsonl", "kind": "multiple_choice", "few_shot": 1, "few_shot_path": "ceval_dev.jsonl"},
        {"yaml": "ceval/ceval-valid_accountant.yaml"},
        "val",
        MULTIPLE_CHOICE,
    ),
    "cmmlu": (
        {"path": "cmmlu.jsonl", "kind": "multiple_choice", "description": DESCRIPTION},
        {"yaml": "cmmlu/cmmlu_agronomy.yaml", "fewshot_split": None, "fewshot_config": None},
        "test",
        MULTIPLE_CHOICE,
    ),
    "hellaswag": (
        {"path": "hellaswag.jsonl", "kind": "multiple_choice", "metric": "acc_norm"},
        {"yaml": "hellaswag/hellaswag.yaml", "training_split": None},
        "validation",
        MULTIPLE_CHOICE,
    ),
    "arc": (
        {"path": "arc.jsonl", "kind": "multiple_choice", "metric": "acc_norm"},
        {"yaml": "arc/arc_easy.yaml", "training_split": None, "validation_split": None},
        "test",
        MULTIPLE_CHOICE,
    ),
    "lambada": (
        {"path": "lambada.jsonl", "kind": "continuation"},
        {"yaml": "lambada/lambada_openai.yaml"},
        "test",
        {"exact": "acc"},
    ),
    "lambada_few_shot": (
        {"path": "lambada.jsonl", "kind": "continuation", "few_shot": 2, "few_shot_path": "lambada_dev.jsonl"},
        {"yaml": "lambada/lambada_openai.yaml", "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}},
        "test",
        {"exact": "acc"},
    ),
    "plain_choices": (
        {"path": "plain_choices.jsonl", "kind": "multiple_choice"},
        {
            "task": "plain_choices",
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "{{query}}",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": ACC,
        },
        "test",
        MULTIPLE_CHOICE,
    ),
    "plain_answers": (
        {"path": "plain_answers.jsonl", "kind": "answer_bits"},
        {
            "task": "plain_answers",
            "output_type": "loglikelihood",
            "test_split": "test",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{continuation}}",
            "process_results": score_bits,
            "metric_list": [
                {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
            ],
        },
        "test",
        {"bits_per_byte": "bits_per_byte"},
    ),
}


class RecordingLM(HFLM):
    """HFLM that keeps the token ids of the last call."""

    token_ids: list[tuple[list[int], list[int]]]

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        self.token_ids = [(context, continuation) for _, context, continuation in requests]
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *args, **kwargs)
        return answers


def load_model(name: str, folder: Path, tokenizer: Tokenizer) -> RecordingLM:
    """Return a model of make_reference.py with our tokenizer."""
    shutil.copytree(HERE / name, folder)
    if MODELS[name]:
        bos = SPECIAL_TOKENS[BOS_ID]
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, BOS_ID)])
    tokenizer.save(str(folder / "tokenizer.json"))
    unk, bos, eos = SPECIAL_TOKENS
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unk, "bos_token": bos, "eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    lm = RecordingLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8, max_length=SEQ_LENGTH)
    starts_with_bos = lm.tok_encode("the set")[0] == BOS_ID
    assert lm.prefix_token_id == BOS_ID and starts_with_bos == MODELS[name]
    return lm


def choose_lambada_items(lms: dict[str, RecordingLM], contexts: list[str]) -> list[dict[str, str]]:
    """Return items of which some end with the word that a model predicts."""
    rows = [{"text": f"{context} {context.split()[1]}"} for context in contexts[:NUM_OTHER]]
    for lm in lms.values():
        found = 0
        for context in contexts[NUM_OTHER:]:
            ids = lm.tok_encode(context)
            with torch.no_grad():
                predicted = int(lm.model(torch.tensor([ids])).logits[0, -1].argmax())
            word = lm.tokenizer.decode([predicted])
            if word[:1] == " " and word[1:].isalpha() and lm.tok_encode(context + word) == [*ids, predicted]:
                rows.append({"text": context + word})
                found += 1
                if found == NUM_PREDICTED:
                    break
        assert found == NUM_PREDICTED
    return rows


def evaluate(lm: RecordingLM, name: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the prompts of a task and its results on a model."""
    config, upstream, split, metrics = TASK_TABLE[name]
    files = {split: str(TASKS / config["path"])}
    if config.get("few_shot"):
        files["dev"] = str(TASKS / config["few_shot_path"])
    task = dict(upstream)
    if "yaml" in task:
        task = {**load_yaml(Path(lm_eval.__file__).parent / "tasks" / task.pop("yaml"), resolve_func=True), **task}
        task.pop("tag", None)
    task |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    output = lm_eval.simple_evaluate(
        model=lm, tasks=[task], num_fewshot=config.get("few_shot", 0), bootstrap_iters=1000, log_samples=True
    )
    (label,) = output["results"]
    prompts, tokens, log_likelihoods, greedy, position = [], [], [], [], 0
    for sample in sorted(output["samples"][label], key=lambda sample: sample["doc_id"]):
        pairs = [tuple(argument) for argument in sample["arguments"]]
        ids = lm.token_ids[position : position + len(pairs)]
        position += len(pairs)
        (context,) = {context for context, _ in pairs}
        prompts.append([context, [continuation for _, continuation in pairs]])
        tokens.append([ids[0][0], [continuation for _, continuation in ids]])
        for ((log_likelihood, is_greedy),) in sample["resps"]:
            log_likelihoods.append(float(log_likelihood))
            greedy.append(str(is_greedy) == "True")  # lm-evaluation-harness may log it as text
    assert position == len(lm.token_ids)
    found = output["results"][label]
    scores = {metric: found[f"{metric},none"] for metric in metrics.values()}
    errors = {f"{metric}_stderr": found.get(f"{metric}_stderr,none") for metric in metrics.values()}
    scores |= {metric: error for metric, error in errors.items() if isinstance(error, float)}
    results = {"tokens": tokens, "log_likelihoods": log_likelihoods, "greedy": greedy, "scores": scores}
    return prompts, results


def list_texts(items: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return texts that have every character of the prompts."""
    rows = [json.dumps(list(row.values()), ensure_ascii=False) for file in items.values() for row in file]
    frames = [
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n",
        "以下是中国关于注册会计师的单项选择题，请选出其中的正确答案。\n\n答案：",
        DESCRIPTION,
        "\nA. \nB. \nC. \nD. \nAnswer: A\nQuestion: The set. : ",
    ]
    return [*rows, *frames]


def main() -> None:
    TASKS.mkdir(exist_ok=True)
    items, contexts = make_items(), make_contexts(4000)
    tokenizer = train_tokenizer(list_texts(items))
    tokenizer.save(str(TASKS / "tokenizer.json"))
    tasks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        lms = {name: load_model(name, Path(folder, name), tokenizer) for name in MODELS}
        items["lambada.jsonl"] = choose_lambada_items(lms, contexts)
        for file, rows in items.items():
            write_rows(TASKS / file, rows)
        for name, (config, _, _, metrics) in TASK_TABLE.items():
            results = {}
            for model, lm in lms.items():
                prompts, results[model] = evaluate(lm, name)
            tasks[name] = {"config": config, "prompts": prompts, "metrics": metrics, "results": results}
    packages = ("torch", "transformers", "tokenizers", "lm_eval")
    reference = {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "seq_length": SEQ_LENGTH,
        "models": {name: {"prefix_token": BOS_ID, "adds_bos": adds_bos} for name, adds_bos in MODELS.items()},
        "tasks": tasks,
    }
    text = json.dumps(reference, ensure_ascii=False, separators=(",", ":"))
    (TASKS / "lm_eval.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
