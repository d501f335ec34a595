"""Stands for the training job in tests of the session: `job.py COMMAND`, started with --launch.

`seed` in the trial's changes selects what it does; without it, it records steps of 0.1 s. It imports little, to start
fast.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

FASTER, SLOWER, RAISES, HANGS, KILLED, EMPTY, ALSO_FASTER = range(1, 8)
STEP_S = {0: 0.1, FASTER: 0.08, SLOWER: 0.2, ALSO_FASTER: 0.07, FASTER + ALSO_FASTER: 0.05}
INFO = {
    "tokens_per_step": 1000,
    "peak_flops": 1e9,
    "flops_per_token": 1e4,
    "num_devices": 2,
    "device_name": "Ascend910B",
}
START = {"total_s": 12.0, "import_s": 2.0, "data_s": 1.0, "weights_s": 3.0, "validation_s": 0.0, "compile_s": 6.0}
STEP = {
    "total_steps": 100,
    "loss": 3.0,
    "learning_rate": 1e-5,
    "grad_norm": 1.0,
    "tokens": 1000,
    "tokens_per_s": 1e4,
}
TRACEBACK = "[WARNING] noise\nTraceback (most recent call last):\n  File x\nRuntimeError: out of memory\nmore"


def main(command: str) -> None:
    words = shlex.split(command)
    folder = Path(words[words.index("--config") + 1]).parent
    num_steps = int(words[words.index("--stop-at-step") + 1])
    changes = (folder / "changes.yaml").read_text()
    seed = re.search(r"^seed: (\d+)", changes, re.MULTILINE)
    action = (int(seed[1]) if seed else 0) + (ALSO_FASTER if "weight_decay" in changes else 0)
    if action == RAISES:
        print(TRACEBACK, flush=True)
        sys.exit(1)
    if action == HANGS:
        time.sleep(60)
    if action == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    run = folder / "output" / "trial"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(INFO))
    lines: list[dict[str, object]] = [{"kind": "start", "step": 1, **START}]
    for step in range(1, 1 + (num_steps if action != EMPTY else 1)):
        step_s = 9.0 if step == 1 else STEP_S[action]
        lines.append({"kind": "step", "step": step, "step_time_s": step_s, "peak_memory_bytes": 2**30, **STEP})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (folder.parents[1] / "started").open("a") as file:
        file.write(f"{folder.name}\n")


if __name__ == "__main__":
    main(sys.argv[1])
