"""Measure the row order of a large blended run: time to the first batch, time for all rows, and peak memory.

    python benchmarks/sample_order.py [--rows 100000000]

Positions are computed on demand. For comparison, it also measures an index in memory: a NumPy permutation of the same
number of rows.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from ascend_cpt.recipe.blend import normalize_shares
from ascend_cpt.recipe.phases import Phase, SampleOrder

WINDOW_ROWS, BATCH_ROWS = 1 << 18, 1000


def main() -> int:
    """Measure and print the results. Return 1 if a limit (10 s to the first batch, 1 GB) is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    args = parser.parse_args()
    num_steps = args.rows // BATCH_ROWS
    start = time.perf_counter()
    order = SampleOrder(
        num_rows={"web": args.rows // 2, "code": args.rows // 4, "qa": args.rows // 100},
        phases=(
            Phase(
                name="general", first_step=0, stop_step=num_steps // 2, shares=normalize_shares({"web": 7, "code": 3})
            ),
            Phase(
                name="qa",
                first_step=num_steps // 2,
                stop_step=num_steps,
                shares=normalize_shares({"web": 0.6, "code": 0.3, "qa": 0.1}),
            ),
        ),
        global_batch_size=BATCH_ROWS,
        seed=1,
    )
    order.locate(np.arange(args.rows - BATCH_ROWS, args.rows))
    counts = order.count(0, order.total_rows)
    first_s = time.perf_counter() - start
    start = time.perf_counter()
    for position in range(0, order.total_rows, WINDOW_ROWS):
        order.locate(np.arange(position, min(position + WINDOW_ROWS, order.total_rows)))
    all_s = time.perf_counter() - start
    own_peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    start = time.perf_counter()
    np.random.default_rng(1).permutation(args.rows)
    shuffle_s = time.perf_counter() - start
    print(f"{args.rows:,} rows: {counts}")
    print(f"last batch and all counts, without cache: {first_s:.3f} s, peak {own_peak_gb:.2f} GB")
    print(f"every row once: {all_s:.1f} s ({1e9 * all_s / args.rows:.0f} ns per row)")
    print(f"a permutation in memory: {shuffle_s:.1f} s, {8 * args.rows / 1e9:.2f} GB")
    return 0 if first_s < 10 and own_peak_gb < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
