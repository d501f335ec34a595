"""Measure the checksums of checkpoints: speed, share of a save, and what is left for training meanwhile.

    python benchmarks/checksums.py [--folder /a/disk/with/room] [--gb 2]

Writes a safetensors file as MindSpore does, flushes it and computes its checksum; drops it from the page cache and
verifies it again. Also compares the strict JSON reader with Python's on a large shard map.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import xxhash
from safetensors.numpy import save_file

from ascend_cpt.checkpoint.checksums import checksum_file
from ascend_cpt.files import sync_file
from ascend_cpt.strict_json import parse_json

MIN_GB_PER_S = 1.0
BLOCK_BYTES = 64 << 20
ALGORITHMS: dict[str, Callable[[bytes], object]] = {
    "xxh3-128": lambda block: xxhash.xxh3_128(block).digest(),
    "crc32": zlib.crc32,
    "sha256": lambda block: hashlib.sha256(block).digest(),
    "blake2b": lambda block: hashlib.blake2b(block).digest(),
}


def measure_s(work: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def drop_from_cache(path: Path) -> None:
    """Remove a flushed file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def count_loops(stop: threading.Event) -> int:
    """Count short Python loops in this thread until `stop` is set."""
    count = 0
    while not stop.is_set():
        sum(range(100))
        count += 1
    return count


def measure_loops(path: Path, duration_s: float = 2.0) -> tuple[float, float]:
    """Return the main thread's loops per second, alone and while another thread computes checksums."""
    rates = []
    for is_alone in (True, False):
        stop = threading.Event()
        threading.Timer(duration_s, stop.set).start()

        def verify(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                checksum_file(path)

        if not is_alone:
            threading.Thread(target=verify, daemon=True).start()
        rates.append(count_loops(stop) / duration_s)
    return rates[0], rates[1]


def make_shard_map(num_shards: int) -> bytes:
    """Return text like a large job's metadata.json."""
    storage = {
        f"('model.layers.{k // 1000}.mlp.weight', ({k},))": [
            {"file_name": f"cpt-model-{k:07d}-0004096.safetensors", "storage_rank": k, "rank_group": [k]}
        ]
        for k in range(num_shards)
    }
    return json.dumps({"state_dict_metadata": {}, "storage_data": storage}).encode()


def main() -> int:
    """Measure and print the results. Return 1 if the checksums are too slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write the file [a temporary folder]")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the file [%(default)g]")
    args = parser.parse_args()
    block = np.random.default_rng(0).bytes(BLOCK_BYTES)
    for name, digest in ALGORITHMS.items():
        fastest_s = min(measure_s(lambda digest=digest: digest(block)) for _ in range(3))  # type: ignore[misc]
        print(f"{name:10} {BLOCK_BYTES / fastest_s / 1e9:6.2f} GB/s in memory")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "cpt-model-0000000-0000001.safetensors"
        rows = int(args.gb * 1e9 / 8 / 4 / 4096)
        tensors = {f"layer.{k}": np.random.default_rng(k).random((rows, 4096), np.float32) for k in range(8)}
        write_s = measure_s(lambda: save_file(tensors, path))
        sync_s = measure_s(lambda: sync_file(path))
        size_gb = path.stat().st_size / 1e9
        cached_s = measure_s(lambda: checksum_file(path))
        drop_from_cache(path)
        disk_s = measure_s(lambda: checksum_file(path))
        drop_from_cache(path)
        read_s = measure_s(lambda: np.fromfile(path, np.uint8).size)
        alone, meanwhile = measure_loops(path)
    print(f"save of {size_gb:.2f} GB: write {write_s:.2f} s, flush {sync_s:.2f} s, checksum {cached_s:.2f} s")
    print(f"share of the save: {cached_s / (write_s + sync_s + cached_s):.1%}")
    print(f"checksum_file: {size_gb / cached_s:.2f} GB/s just written, {size_gb / disk_s:.2f} GB/s from disk")
    print(f"reading the file from disk without a checksum: {size_gb / read_s:.2f} GB/s")
    print(f"Python in another thread meanwhile: {meanwhile / alone:.0%} of its speed alone")
    text = make_shard_map(400_000)
    plain_s, strict_s = measure_s(lambda: json.loads(text)), measure_s(lambda: parse_json(text))
    print(f"shard map of {len(text) / 1e6:.0f} MB: json {plain_s:.2f} s, strict {strict_s:.2f} s")
    return 0 if size_gb / cached_s >= MIN_GB_PER_S else 1


if __name__ == "__main__":
    sys.exit(main())
