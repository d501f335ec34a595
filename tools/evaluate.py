"""Evaluate held-out losses and tasks.

python tools/evaluate.py output/my_run --config my.yaml
python tools/evaluate.py exported/ --validation general=data/valid/general --task mmlu=multiple_choice:mmlu.jsonl
bash scripts/msrun_launcher.sh "tools/evaluate.py output/my_run --config my.yaml --watch" 8
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.cluster.job.launcher_files import run_worker
from ascend_cpt.softnpu.environment import enter


def start() -> int:
    """Enter the software NPU if it is enabled, then import the modules that use MindSpore."""
    enter()
    from ascend_cpt.evaluate import main

    return main()


if __name__ == "__main__":
    sys.exit(run_worker(start))
