"""Loads a task and encodes the prompts and answers of its items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.errors import ConfigError, DataError
from ascend_cpt.tasks.check import METRICS, NEEDLE, find_task_problems
from ascend_cpt.tasks.prompts import Prompt, load_prompts
from ascend_cpt.tasks.records import raise_problems

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A continuation to score after a context."""

    item: int
    """Index of the item in the task."""
    choice: int
    """Index of the choice; 0 if the item has one request."""
    context: tuple[int, ...]
    """Token ids, at least one. The input of the network is context + continuation without the last token."""
    continuation: tuple[int, ...]
    """Token ids, at least one."""
    num_bytes: int
    """Bytes (UTF-8) of the answer, without the space that joins it to the prompt."""
    num_chars: int
    """Characters of the answer."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task that is ready to be scored."""

    name: str
    kind: str
    metric: str
    requests: tuple[Request, ...]
    """In the order of items and choices."""
    num_items: int
    gold: tuple[int, ...]
    """For each item the `choice` of the right answer."""
    items: tuple[str, ...]
    """For each item its file and line."""
    too_long: tuple[str, ...]
    """File and line of the items that were left out because a request does not fit into a row."""
    cells: tuple[str, ...] = ()
    """Kind needle: for each item `<length>/<depth>`; a score is computed for each of them."""


def load_task(
    name: str,
    config: TaskConfig,
    encode: Encode,
    *,
    seq_length: int,
    prefix_token: int | None,
    add_prefix: bool = False,
) -> Task:
    """Read a task's items and make their requests.

    Args:
        name: Name of the task.
        config: Its configuration.
        encode: Encodes text to token ids, without special tokens.
        seq_length: Length of the network's input. Items with a longer request are left out.
        prefix_token: Context of an empty prompt: the BOS token, or EOS if there is none.
        add_prefix: Begin every context with `prefix_token`, for tokenizers that add BOS.

    Raises:
        ConfigError: settings that cannot work.
        DataError: files or items are missing or invalid (all are listed), or no item fits in `seq_length`.
    """
    check_task(name, config, seq_length)
    assert config.kind != NEEDLE, "use load_needle_task"
    prompts = load_prompts(config)
    encoder = Encoder(encode=encode, prefix_token=prefix_token, add_prefix=add_prefix)
    invalid: list[str] = []
    requests: list[Request] = []
    kept: list[Prompt] = []
    too_long: list[str] = []
    shortest: int | None = None
    for prompt in prompts:
        try:
            made = _make_requests(len(kept), prompt, config.kind, encoder)
        except ValueError as error:
            invalid.append(f"{prompt.where}: {error}")
            continue
        length = max(len(request.context) + len(request.continuation) - 1 for request in made)
        if length > seq_length:
            too_long.append(prompt.where)
            shortest = min(length, shortest or length)
            continue
        requests += made
        kept.append(prompt)
    raise_problems(config.path, invalid)
    if not kept:
        raise DataError(
            f"{config.path}: no item fits into rows of {seq_length} tokens (the shortest needs {shortest}); "
            "use fewer few-shot examples or longer rows"
        )
    return Task(
        name=name,
        kind=config.kind,
        metric=config.metric or METRICS[config.kind][0],
        requests=tuple(requests),
        num_items=len(kept),
        gold=tuple(prompt.question.gold if config.kind == "multiple_choice" else 0 for prompt in kept),
        items=tuple(prompt.where for prompt in kept),
        too_long=tuple(too_long),
    )


def check_task(name: str, config: TaskConfig, seq_length: int) -> None:
    """Raise a ConfigError that lists a task's settings that cannot work, if there are any."""
    if problems := find_task_problems(config, seq_length):
        raise ConfigError("; ".join(f"task {name}: {problem}" for problem in problems))


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Encodes prompts and answers with a tokenizer."""

    encode: Encode
    prefix_token: int | None
    add_prefix: bool

    def encode_pairs(self, context: str, answers: Sequence[str]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the token ids of (context, answer) for each answer, like TemplateLM._encode_pair in lm-eval.

        Raises:
            ValueError: a context or an answer without tokens.
        """
        # Spaces belong to the token of the following word.
        stripped = context.rstrip()
        spaces, answers_ids = context[len(stripped) :], []
        context_ids = list(self.encode(stripped)) if context else []
        for answer in answers:
            whole = list(self.encode(stripped + spaces + answer))
            answers_ids.append(whole[len(context_ids) :])
        if self.add_prefix or not context:
            if self.prefix_token is None:
                raise ValueError("the prompt is empty, and the tokenizer has no BOS or EOS token to put in its place")
            context_ids.insert(0, self.prefix_token)
        if not context_ids or not all(answers_ids):
            raise ValueError("the prompt or an answer has no token of its own; check the text and the tokenizer")
        shared = tuple(context_ids)
        return [(shared, tuple(ids)) for ids in answers_ids]


def _make_requests(item: int, prompt: Prompt, kind: str, encoder: Encoder) -> list[Request]:
    """Return a request for each choice, or only for the right answer."""
    question = prompt.question
    choices = range(len(question.answers)) if kind == "multiple_choice" else (question.gold,)
    answers = [question.answers[choice] for choice in choices]
    pairs = encoder.encode_pairs(prompt.text, [question.delimiter + answer for answer in answers])
    return [
        Request(
            item=item,
            choice=choice,
            context=context,
            continuation=continuation,
            num_bytes=len(answer.encode("utf-8")),
            num_chars=len(answer),
        )
        for choice, (answer, (context, continuation)) in enumerate(zip(answers, pairs, strict=True))
    ]
