"""Shows a run's progress as a bar on a terminal, or as log lines at intervals elsewhere."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

from ascend_cpt.data.shards.task import Progress

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0


class ProgressReporter:
    """Shows the share of the input processed, tokens per second and remaining time."""

    def __init__(self, total_weight: int) -> None:
        self._total = total_weight
        self._begin_s = self._logged_s = time.monotonic()
        self._bar = tqdm(total=total_weight, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), leave=False)

    def show(self, progress: Progress) -> None:
        now_s = time.monotonic()
        elapsed_s = max(now_s - self._begin_s, 1e-6)
        rate = f"{progress.num_tokens / elapsed_s / 1e6:.2f} Mtok/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(
                f"{progress.num_documents} documents, {progress.num_tokens / 1e6:.1f} Mtok, {rate}"
            )
            self._bar.update(progress.weight - self._bar.n)
        elif now_s - self._logged_s >= _LOG_EVERY_S and progress.weight:
            self._logged_s = now_s
            left_s = elapsed_s * (self._total - progress.weight) / progress.weight
            logger.info(
                "%.1f %%: %d documents, %.1f Mtok, %s, about %d s left",
                100 * progress.weight / max(self._total, 1),
                progress.num_documents,
                progress.num_tokens / 1e6,
                rate,
                left_s,
            )

    def close(self) -> None:
        self._bar.close()
