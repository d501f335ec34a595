"""One rank of a communicator: `python -m tests.unit.softnpu.hccl_rank LIBRARIES WORK RANK SIZE SCENARIO`.

Every scenario draws the inputs of all ranks from the same seed, computes what must come out with NumPy, and raises when
something else does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.softnpu.harness import decode, encode

ROOT_INFO_BYTES = 4108
HCCL_TYPES = {"int8": 0, "int16": 1, "int32": 2, "float16": 3, "float32": 4, "int64": 5, "uint64": 6, "uint8": 7,
              "uint16": 8, "uint32": 9, "float64": 10, "bfloat16": 11}  # fmt: skip
SUM, PRODUCT, MAXIMUM, MINIMUM = range(4)
REDUCTIONS: dict[int, Callable[..., Any]] = {SUM: np.sum, PRODUCT: np.prod, MAXIMUM: np.max, MINIMUM: np.min}
NUM_BIG = 3_000_000  # more than fits into one round
MESSAGE_WAIT_S = 60


class SendRecvItem(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
        ("dtype", ctypes.c_int),
        ("peer", ctypes.c_uint32),
    )


class Communicator:
    """A group as HCCL's C interface shows it. Its first rank publishes the meeting point in `work`."""

    def __init__(self, library: ctypes.CDLL, work: Path, name: str, rank: int, size: int) -> None:
        self.library, self.rank, self.size = library, rank, size
        info, path = ctypes.create_string_buffer(ROOT_INFO_BYTES), work / f"{name}.info"
        if rank == 0:
            self.check(library.HcclGetRootInfo(info))
            path.with_suffix(".part").write_bytes(info.raw)
            path.with_suffix(".part").rename(path)
        else:
            deadline = time.monotonic() + MESSAGE_WAIT_S
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            info.raw = path.read_bytes()
        self.handle = ctypes.c_void_p()
        self.check(library.HcclCommInitRootInfo(size, info, rank, ctypes.byref(self.handle)))

    def check(self, code: int) -> None:
        if code:
            self.library.aclGetRecentErrMsg.restype = ctypes.c_char_p
            raise RuntimeError(self.library.aclGetRecentErrMsg().decode())

    def call(self, name: str, *arguments: Any) -> None:
        """Call `Hccl<name>`; arrays go in by their address, and integers of Python as 64 bits, which C narrows."""
        given = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arguments]
        given = [ctypes.c_uint64(a) if isinstance(a, int) else a for a in given]
        self.check(getattr(self.library, f"Hccl{name}")(*given, self.handle, None))


def draw(size: int, count: int, dtype: str, seed: int = 0) -> list[np.ndarray]:
    """Return every rank's memory."""
    random = np.random.default_rng(seed)
    if dtype.startswith(("int", "uint")):
        low = 0 if dtype.startswith("uint") else -3
        return [encode(random.integers(low, 4, count), dtype) for _ in range(size)]
    return [encode(random.normal(size=count), dtype) for _ in range(size)]


def reduce(parts: list[np.ndarray], dtype: str, reduction: int) -> np.ndarray:
    """Return the memory of the reduction: floating-point numbers in float64, rounded once; integers wrap."""
    if dtype.startswith(("int", "uint")):
        with np.errstate(over="ignore"):
            return np.asarray(REDUCTIONS[reduction](np.stack(parts), axis=0)).astype(parts[0].dtype)
    total = decode(parts[0], dtype)
    for part in parts[1:]:
        total = np.asarray(REDUCTIONS[reduction](np.stack([total, decode(part, dtype)]), axis=0))
    return encode(total, dtype)


def run_reductions(comm: Communicator) -> None:
    for dtype, code in HCCL_TYPES.items():
        for reduction in REDUCTIONS:
            parts = draw(comm.size, 13, dtype, seed=code)
            to = np.zeros_like(parts[0])
            comm.call("AllReduce", parts[comm.rank], to, 13, code, reduction)
            np.testing.assert_array_equal(to, reduce(parts, dtype, reduction), err_msg=f"{dtype} {reduction}")
            parts = draw(comm.size, 5 * comm.size, dtype, seed=code)
            to = np.zeros_like(parts[0][:5])
            comm.call("ReduceScatter", parts[comm.rank], to, 5, code, reduction)
            expected = reduce(parts, dtype, reduction)[5 * comm.rank : 5 * comm.rank + 5]
            np.testing.assert_array_equal(to, expected, err_msg=f"{dtype} {reduction}")


def run_copies(comm: Communicator) -> None:
    for dtype, code in HCCL_TYPES.items():
        parts = draw(comm.size, 7, dtype, seed=code)
        to = np.zeros(7 * comm.size, parts[0].dtype)
        comm.call("AllGather", parts[comm.rank], to, 7, code)
        np.testing.assert_array_equal(to, np.concatenate(parts))
        for root in range(comm.size):
            data = parts[comm.rank].copy()
            comm.call("Broadcast", data, 7, code, root)
            np.testing.assert_array_equal(data, parts[root])
    parts = draw(comm.size, 3 * comm.size, "float32")
    to = np.zeros(3, np.float32)
    comm.call("Scatter", parts[1], to, 3, HCCL_TYPES["float32"], 1)
    np.testing.assert_array_equal(to, parts[1][3 * comm.rank : 3 * comm.rank + 3])
    to = np.zeros_like(parts[0])
    comm.call("Reduce", parts[comm.rank], to, len(to), HCCL_TYPES["float32"], SUM, 1)
    expected = reduce(parts, "float32", SUM) if comm.rank == 1 else np.zeros_like(to)
    np.testing.assert_array_equal(to, expected)
    comm.call("Barrier")


def run_big(comm: Communicator) -> None:
    """Several rounds, in place, and a message longer than what is in the queue at once."""
    code = HCCL_TYPES["float32"]
    parts = draw(comm.size, NUM_BIG, "float32")
    data = parts[comm.rank].copy()
    comm.call("AllReduce", data, data, NUM_BIG, code, SUM)
    np.testing.assert_array_equal(data, reduce(parts, "float32", SUM))
    to = np.zeros(NUM_BIG * comm.size, np.float32)
    comm.call("AllGather", parts[comm.rank], to, NUM_BIG, code)
    np.testing.assert_array_equal(to, np.concatenate(parts))
    count = NUM_BIG // comm.size
    to = np.zeros(count, np.float32)
    comm.call("ReduceScatter", parts[comm.rank][: count * comm.size].copy(), to, count, code, SUM)
    start = count * comm.rank
    np.testing.assert_array_equal(to, reduce(parts, "float32", SUM)[start : start + count])
    for _ in range(3):
        to = np.zeros_like(parts[0])
        comm.call("Send", parts[comm.rank], NUM_BIG, code, (comm.rank + 1) % comm.size)
        comm.call("Recv", to, NUM_BIG, code, (comm.rank - 1) % comm.size)
        np.testing.assert_array_equal(to, parts[comm.rank - 1])


def run_exchanges(comm: Communicator) -> None:
    code, size, rank = HCCL_TYPES["bfloat16"], comm.size, comm.rank
    parts = draw(size, 4 * size, "bfloat16")
    to = np.zeros_like(parts[0])
    comm.call("AlltoAll", parts[rank], 4, code, to, 4, code)
    np.testing.assert_array_equal(to, np.concatenate([part[4 * rank : 4 * rank + 4] for part in parts]))
    # Rank i sends (i + 2 j) elements to rank j, from places in reverse order.
    counts = np.array([[i + 2 * j for j in range(size)] for i in range(size)], np.uint64)
    starts = [np.concatenate([np.cumsum(row[::-1])[::-1][1:], [0]]).astype(np.uint64) for row in counts]
    sent = draw(size, int(counts.sum(axis=1).max()), "int32", seed=5)
    received_starts = np.concatenate([[0], np.cumsum(counts[:, rank])[:-1]]).astype(np.uint64)
    to = np.zeros(int(counts[:, rank].sum()), np.int32)
    received_counts = counts[:, rank].copy()
    comm.call("AlltoAllV", sent[rank], counts[rank].copy(), starts[rank], 2, to, received_counts, received_starts, 2)
    expected = [sent[i][int(starts[i][rank]) :][: int(counts[i][rank])] for i in range(size)]
    np.testing.assert_array_equal(to, np.concatenate(expected))
    # The same counts, packed.
    packed = [np.concatenate([[0], np.cumsum(row)[:-1]]).astype(np.uint64) for row in counts]
    to = np.zeros_like(to)
    comm.call("AlltoAllVC", sent[rank], counts, 2, to, 2)
    expected = [sent[i][int(packed[i][rank]) :][: int(counts[i][rank])] for i in range(size)]
    np.testing.assert_array_equal(to, np.concatenate(expected))
    run_uneven(comm)
    # Everybody sends before anybody receives; the neighbours of a ring in one call.
    to = np.zeros_like(parts[0])
    items = (SendRecvItem * 2)(
        SendRecvItem(1, to.ctypes.data, len(to), code, (rank - 1) % size),
        SendRecvItem(0, parts[rank].ctypes.data, len(to), code, (rank + 1) % size),
    )
    comm.call("BatchSendRecv", items, 2)
    np.testing.assert_array_equal(to, parts[rank - 1])


def run_uneven(comm: Communicator) -> None:
    size, rank = comm.size, comm.rank
    counts = np.arange(1, size + 1, dtype=np.uint64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.uint64)
    total = int(counts.sum())
    parts = draw(size, total, "float32", seed=9)
    to = np.zeros(total, np.float32)
    comm.call("AllGatherV", parts[rank], rank + 1, to, counts, starts, 4)
    np.testing.assert_array_equal(to, np.concatenate([parts[r][: r + 1] for r in range(size)]))
    to = np.zeros(rank + 1, np.float32)
    comm.call("ReduceScatterV", parts[rank], counts, starts, to, rank + 1, 4, SUM)
    start = int(starts[rank])
    np.testing.assert_array_equal(to, reduce(parts, "float32", SUM)[start : start + rank + 1])


def wait_for_a_dead_rank(comm: Communicator) -> None:
    comm.call("Barrier")
    if comm.rank == comm.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    data = np.ones(4, np.float32)
    comm.call("AllReduce", data, data, 4, HCCL_TYPES["float32"], SUM)


def wait_for_a_dead_sender(comm: Communicator) -> None:
    comm.call("Barrier")
    if comm.rank == comm.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.call("Recv", np.ones(4, np.float32), 4, HCCL_TYPES["float32"], comm.size - 1)


def disagree(comm: Communicator) -> None:
    data = np.ones(8, np.float32)
    comm.call("AllReduce", data, data, 8 if comm.rank else 7, HCCL_TYPES["float32"], SUM)


def stay_away(comm: Communicator) -> None:
    if comm.rank == comm.size - 1:
        time.sleep(MESSAGE_WAIT_S)
    comm.call("Barrier")


def read_what_a_finished_rank_sent(comm: Communicator) -> None:
    if comm.rank == 0:
        comm.call("Send", np.arange(5, dtype=np.float32), 5, HCCL_TYPES["float32"], 1)
        return
    time.sleep(1)
    to = np.zeros(5, np.float32)
    if comm.rank == 1:
        comm.call("Recv", to, 5, HCCL_TYPES["float32"], 0)
        np.testing.assert_array_equal(to, np.arange(5))


def be_killed_while_busy(comm: Communicator) -> None:
    data = np.ones(NUM_BIG, np.float32)
    comm.call("Send", data, NUM_BIG, HCCL_TYPES["float32"], (comm.rank + 1) % comm.size)
    print("busy", flush=True)
    while True:
        comm.call("AllReduce", data, data, NUM_BIG, HCCL_TYPES["float32"], MAXIMUM)


SCENARIOS = {
    function.__name__: function
    for function in (
        run_reductions,
        run_copies,
        run_big,
        run_exchanges,
        wait_for_a_dead_rank,
        wait_for_a_dead_sender,
        disagree,
        stay_away,
        read_what_a_finished_rank_sent,
        be_killed_while_busy,
    )
}


def run_groups(library: ctypes.CDLL, work: Path, rank: int, size: int) -> None:
    """Two rows and two columns of a square of four ranks, used in turns, as tensor and data parallel groups are."""
    world = Communicator(library, work, "world", rank, size)
    row = Communicator(library, work, f"row{rank // 2}", rank % 2, 2)
    column = Communicator(library, work, f"column{rank % 2}", rank // 2, 2)
    for repeat in range(20):
        data = np.full(3, rank + repeat, np.float32)
        row.call("AllReduce", data, data, 3, HCCL_TYPES["float32"], SUM)
        column.call("AllReduce", data, data, 3, HCCL_TYPES["float32"], SUM)
        np.testing.assert_array_equal(data, np.full(3, 6 + 4 * repeat, np.float32))
    world.call("Barrier")


def main() -> None:
    folder, work, rank, size, scenario = sys.argv[1:]
    library = ctypes.CDLL(str(Path(folder) / "libhccl.so"))
    if scenario == "run_groups":
        run_groups(library, Path(work), int(rank), int(size))
    else:
        SCENARIOS[scenario](Communicator(library, Path(work), "world", int(rank), int(size)))
    print("done", flush=True)


if __name__ == "__main__":
    main()
