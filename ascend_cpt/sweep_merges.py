"""Evaluates a merge at several values of a coefficient, for `tools/merge_weights.py --sweep`."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ascend_cpt.backend.training.msrun_scheduler import is_scheduler, serve_workers
from ascend_cpt.errors import CheckpointError
from ascend_cpt.evaluate import Evaluation, open_evaluation
from ascend_cpt.files import write_text
from ascend_cpt.locks import take_lock
from ascend_cpt.run.merging.command_line import Order
from ascend_cpt.run.merging.picture import draw_sweep
from ascend_cpt.run.merging.results import PICTURE_NAME, TABLE_NAME, SweepResults, choose_general, make_table
from ascend_cpt.weights.merge.merge import Merge

_MERGED_NAME = "merged"
"""Folder of the merged weights while they are evaluated."""


def main(order: Order) -> int:
    """Run the sweep and return the exit code. Values whose results are stored are not evaluated again."""
    assert order.sweep is not None
    if is_scheduler():
        serve_workers()
        return 0
    merge = Merge(order.recipe, like=order.like, options=order.options)
    with open_evaluation(order.args) as evaluation, contextlib.ExitStack() as stack:
        general = choose_general(evaluation.settings, order.args.general)
        for line in merge.warnings:
            evaluation.print(f"warning: {line}")
        results: SweepResults | None = None
        if evaluation.is_first:
            stack.enter_context(_hold_folder(order.target))
            results = SweepResults(order.target, order, evaluation.settings)
            stack.callback(shutil.rmtree, order.target / _MERGED_NAME, ignore_errors=True)
        pending = results.list_pending() if results is not None else []
        for value in evaluation.channel.all_gather("values to evaluate", pending)[0]:
            evaluation.print(f"{order.sweep.variable} = {value:g}")
            _evaluate(order, merge, value, evaluation, results)
        if results is not None:
            _report(order, results, general, evaluation)
    return 0


def _evaluate(order: Order, merge: Merge, value: float, evaluation: Evaluation, results: SweepResults | None) -> None:
    """Merge at one value in the first process, and evaluate the result in all of them."""
    assert order.sweep is not None
    merged = order.target / _MERGED_NAME
    if results is not None:
        shutil.rmtree(merged, ignore_errors=True)  # of the previous value, or of a killed process
        merge.write(order.recipe.at({order.sweep.variable: value}), merged)
    evaluation.channel.all_gather("merged weights", value)
    records = evaluation.evaluate([merged])
    if results is not None:
        results.add(value, records)


def _report(order: Order, results: SweepResults, general: tuple[str, ...], evaluation: Evaluation) -> None:
    """Write and print the table, and draw the picture."""
    points = results.points
    table = make_table(results.variable, points)
    write_text(order.target / TABLE_NAME, table)
    picture = order.target / PICTURE_NAME
    has_trade_off = draw_sweep(results.variable, points, general, picture, title=order.recipe.method)
    evaluation.print(f"\n{table}")
    evaluation.print(f"{picture}: {'gain against forgetting' if has_trade_off else 'losses and scores'}")
    if not has_trade_off:
        evaluation.print(
            "to plot gain against forgetting, evaluate sets for both, and name those for forgetting with --general"
        )
    evaluation.print(f"to write a merge, repeat the command without --sweep, with a number for {results.variable}")


@contextlib.contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock until the block or the process ends.

    Raises:
        CheckpointError: another process holds it, or it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be created: {error.strerror}; choose another folder") from error
    try:
        if not take_lock(descriptor, folder, risk="do not start a second sweep in this folder"):
            raise CheckpointError(
                f"{folder}: another process is writing a sweep there; wait for it, or choose another folder"
            )
        yield
    finally:
        os.close(descriptor)
