"""Evaluation tasks in the `cpt:` section: `cpt.validation.tasks`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ascend_cpt.config.values import Patience

# schema.py has the same annotations, but it imports this module.
AtLeastOne = Annotated[int, "positive"]
AtLeastZero = Annotated[int, "not negative"]

ALARM_ACTIONS = ("warn", "stop")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """An evaluation task: items in a file, scored by the log-likelihoods of their answers (docs/evaluation.md)."""

    path: str
    """File with the items (`.jsonl`, `.jsonl.gz`, `.parquet`), or a folder of them. `needle`: a packed dataset."""
    kind: str
    """`multiple_choice`, `continuation`, `answer_bits` or `needle`."""
    schema: str | None = None
    """`mmlu`, `ceval`, `cmmlu`, `hellaswag`, `arc`, `lambada` or `plain`; default: detected from the keys."""
    description: str | None = None
    """Text before the first question; default: that of lm-evaluation-harness for the schema."""
    few_shot: AtLeastZero = 0
    """Number of solved examples before each question: the first ones of `few_shot_path`."""
    few_shot_path: str | None = None
    """File or folder with the examples, in the same schema."""
    max_items: AtLeastOne | None = None
    """Use at most this many items, spread over the file and chosen with a fixed seed; default: all."""
    metric: str | None = None
    """`acc`, `acc_norm`, `exact` or `bits_per_byte`; default: the first one of the kind."""
    lengths: tuple[AtLeastOne, ...] = ()
    """`needle`: tokens of a prompt with its answer; default: the five largest of `seq_length` and the
    powers of two below it, without lengths that are too short."""
    depths: AtLeastOne | None = None
    """`needle`: number of places for the needle, evenly spaced from the start to the end; default: 11."""
    per_cell: AtLeastOne | None = None
    """`needle`: needles for each length and depth; default: 1."""
    choices: AtLeastOne | None = None
    """`needle`: number of answers that are compared, including the right one; default: 4."""
    seed: AtLeastZero | None = None
    """`needle`: seed of facts and haystacks; default: 0."""
    max_drop: float | None = None
    """Alarm when the score is worse than before the first step by more than this."""
    on_drop: str = "warn"
    """`warn`, or `stop`: save a checkpoint and exit with code 1."""
    patience: Patience | None = None
    """With `on_drop: stop`: stop only after the score has been worse for this long; default: at once."""
