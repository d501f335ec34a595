"""Merge Hugging Face models, or evaluate a merge at several values of a coefficient.

python tools/merge_weights.py merged/ --method linear --model base/=0.3 --model continued/=0.7
python tools/merge_weights.py merged/ --method slerp --base base/ --model continued/ --t 0.7
python tools/merge_weights.py chat/ --method task_arithmetic --base base/ --model continued/=1 --model instruct/=1 \\
    --like instruct/
python tools/merge_weights.py sweep/ --method linear --model base/=1-w --model continued/=w \\
    --sweep w=0,0.25,0.5,0.75,1 --config my.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.cluster.job.launcher_files import run_worker
from ascend_cpt.run.merging.card import make_card
from ascend_cpt.run.merging.command_line import Order, parse_arguments
from ascend_cpt.softnpu.environment import enter
from ascend_cpt.weights.merge.merge import Merge


def start() -> int:
    """Merge, or start a sweep."""
    order = parse_arguments(str(__doc__))
    return write(order) if order.sweep is None else sweep(order)


def write(order: Order) -> int:
    """Write the merged model."""
    values = order.recipe.at({})
    merge = Merge(order.recipe, like=order.like, options=order.options)
    for line in merge.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(merge.write(values, order.target, card=make_card(order.target, merge, values)))
    return 0


def sweep(order: Order) -> int:
    """Enter the software NPU if it is enabled, then import the modules that use MindSpore."""
    enter()
    from ascend_cpt.sweep_merges import main

    return main(order)


if __name__ == "__main__":
    sys.exit(run_worker(start))
