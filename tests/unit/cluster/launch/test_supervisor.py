"""Which children of the launcher are workers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from ascend_cpt.cluster.launch.workers.supervisor import _runs_script


def test_a_child_is_a_worker_if_it_runs_the_script_or_has_ended(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, str(script)]) as running:
        while not psutil.Process(running.pid).cmdline():  # Popen returns shortly before the command is set
            time.sleep(0.01)
        assert _runs_script(running.pid, script) and not _runs_script(running.pid, tmp_path / "other.py")
        running.kill()
        while psutil.Process(running.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        # Ended, but not yet waited for: its command is no longer known.
        assert _runs_script(running.pid, tmp_path / "other.py")
