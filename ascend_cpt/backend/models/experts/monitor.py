"""Records the experts' loads and the routers' losses every few steps."""

from __future__ import annotations

import json
from pathlib import Path

from mindspore import nn

from ascend_cpt.backend.models.experts.sums import ExpertSums, LanguageModelLoss
from ascend_cpt.files import write_text
from ascend_cpt.model.sizes import ModelSizes
from ascend_cpt.monitor.experts.load import ExpertsRecord, count_tokens, find_overload, make_record
from ascend_cpt.recipe.budget import Budget

LOADS_NAME = "expert_loads.json"


class ExpertMonitor:
    """Takes the routers' sums after every `every_steps` steps and after the last step of the run.

    Create it before the network is built.

    Args:
        sizes: The model.
        budget: The run's steps and tokens.
        num_ranks: Ranks of the run.
        num_stages: Its pipeline stages.
        every_steps: Steps between records.
        max_load: `cpt.guards.max_expert_load`.
        loads_path: Where to write the loads of all experts; None on ranks that do not report.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        *,
        budget: Budget,
        num_ranks: int,
        num_stages: int,
        every_steps: int,
        max_load: float | None,
        loads_path: Path | None,
    ) -> None:
        self._sizes, self._budget, self._num_ranks, self._num_stages = sizes, budget, num_ranks, num_stages
        self._every, self._max_load, self._loads_path = every_steps, max_load, loads_path
        self._language_model_loss = LanguageModelLoss()
        self._sums: ExpertSums | None = None

    @property
    def language_model_loss(self) -> float:
        """The language model's part of the last step's loss on this rank, summed over its micro batches."""
        value = self._language_model_loss.value
        assert value is not None, "MindFormers' monitor has read the loss"
        return float(value)

    def begin(self, network: nn.Cell, initial_step: int) -> None:
        """Find the routers in the training network. A new run starts without the sums of the weights' run."""
        self._sums = ExpertSums(
            network, num_layers=self._sizes.num_layers, num_ranks=self._num_ranks, num_stages=self._num_stages
        )
        if initial_step == 0:
            self._sums.reset()

    def observe(self, step: int) -> tuple[ExpertsRecord | None, str]:
        """Return the record that is due after this step, if any, and why the run must stop. All ranks get the same."""
        if step % self._every and step != self._budget.total_steps:
            return None, ""
        assert self._sums is not None and self._sizes.experts is not None
        sums = self._sums.take()
        num_steps = (step - 1) % self._every + 1
        record = make_record(sums, step=step, num_steps=num_steps)
        if self._loads_path is not None:
            num_tokens = self._budget.count_tokens(step) - self._budget.count_tokens(step - num_steps)
            tokens = count_tokens(sums, num_tokens * self._sizes.experts.num_per_token)
            content = {"step": step, "num_steps": num_steps, "tokens": tokens}
            write_text(self._loads_path, json.dumps(content) + "\n")
        return record, find_overload(record, self._max_load)
