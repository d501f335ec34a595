"""Search for a blend: train small models on sampled blends, fit how the losses depend on the shares, recommend a blend.

python tools/search_mixture.py configs/my.yaml search/ --proxy configs/proxy.yaml --proxies 32 --max-forgetting 0.05
python tools/search_mixture.py configs/my.yaml anneal/ --proxy configs/proxy.yaml --microanneal --seeds 1 2 3

The same command continues an interrupted search. See docs/mixtures.md.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.installed import require

require()

from ascend_cpt.errors import run_command
from ascend_cpt.mixture_search.command_line import parse_arguments
from ascend_cpt.mixture_search.search import main


def start() -> int:
    """Search. SIGTERM ends the launch in progress, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    return main(parse_arguments(str(__doc__)))


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(run_command(start))
