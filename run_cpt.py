"""Train: `python run_cpt.py --config configs/qwen3/cpt_qwen3_tiny.yaml`, or under scripts/msrun_launcher.sh."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ascend_cpt.installed import require

require()

from ascend_cpt.cluster.job.launcher_files import run_worker
from ascend_cpt.softnpu.environment import enter


def start() -> int:
    """Enter the software NPU if it is enabled, then import the modules that use MindSpore."""
    enter()
    from ascend_cpt.train import main

    return main()


if __name__ == "__main__":
    sys.exit(run_worker(start))
