"""Objects, memory, queues and errors of the software NPU, through their C interface."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.softnpu.counters import DeviceCounts, read_counts
from tests.unit.softnpu.harness import DTYPES, Device, DeviceTensor, OperatorError, decode, encode, make_zeros

GIGABYTE = 1 << 30
QUEUE_FULL = 207014
OUT_OF_MEMORY = 207001
BETWEEN_HOSTS, TO_DEVICE, TO_HOST = 0, 1, 2


@pytest.fixture(scope="module")
def library(library_folder: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_folder / "libascendcl.so"))
    for name in ("CreateChannelWithCapacity", "CreateDataset", "CreateDataItem"):
        getattr(library, f"acltdt{name}").restype = ctypes.c_void_p
    library.aclGetRecentErrMsg.restype = ctypes.c_char_p
    return library


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_storing_rounds_once_to_nearest_even(device: Device, dtype: str) -> None:
    """Ties, the edge of overflow, subnormal numbers, and what rounding to float32 first would get wrong."""
    one_step = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}[dtype]
    ties = 1 + one_step * (np.arange(8) + 0.5)
    values = np.concatenate(
        [
            ties,
            ties + 2.0**-45,
            ties - 2.0**-45,
            [65519.99, 65520.0, 3.3961775e38, 3.4028236e38, 1e39],
            [2.0**-25, 3 * 2.0**-26, 2.0**-149, 2.0**-134, 1e-45, 0.0],
            np.random.default_rng(0).normal(size=500) * 10.0 ** np.random.default_rng(1).integers(-42, 38, 500),
        ]
    )
    values = np.concatenate([values, -values, [np.inf, -np.inf]])
    to = make_zeros(values.shape, dtype)
    device.run("Cast", DeviceTensor(values, "float64"), DTYPES[dtype][0], to)
    np.testing.assert_array_equal(to.values, decode(encode(values, dtype), dtype))
    nan = make_zeros((1,), dtype)
    device.run("Cast", DeviceTensor([np.nan], "float64"), DTYPES[dtype][0], nan)
    assert np.isnan(nan.values).all()


def test_unknown_operator_is_described(device: Device) -> None:
    size, executor = ctypes.c_uint64(), ctypes.c_void_p()
    tensor = device._make_tensor(DeviceTensor(np.zeros((2, 3)), "bfloat16", "transposed"))
    prepare = device._function("aclnnErfinvGetWorkspaceSize")
    with pytest.raises(OperatorError) as caught:
        device._check(prepare(tensor, ctypes.c_int64(5), None, ctypes.byref(size), ctypes.byref(executor)))
    text = str(caught.value)
    assert text.startswith("aclnnErfinv: the software NPU does not implement this operator; ")
    assert "called with (bfloat16[2,3]/(1,2), 5, 0" in text
    assert not executor.value
    with pytest.raises(OperatorError, match=r"NoSuchThing\(float32\[4\], ->.*int8\[1\]\)"):
        device.run_by_name("NoSuchThing", [DeviceTensor(np.zeros(4), "float32")], [make_zeros((1,), "int8")])


def test_an_error_names_the_arguments(device: Device) -> None:
    with pytest.raises(OperatorError, match=r"^aclnnMul\(float32\[2\], float32\[3\], float32\[3\]\): "):
        device.run("Mul", *(DeviceTensor(np.zeros(count), "float32") for count in (2, 3, 3)))


def test_functions_that_would_compute_refuse(library: ctypes.CDLL) -> None:
    assert library.rtKernelLaunch() != 0
    assert library.aclGetRecentErrMsg() == b"rtKernelLaunch: the software NPU does not implement this CANN function"
    assert library.rtSetSocVersion(b"") == 0


def test_memory_of_the_device_has_a_limit(library_folder: Path) -> None:
    """In a process of its own, whose device has 6 GB: 2 belong to the driver."""
    program = f"""
import ctypes
library = ctypes.CDLL({str(library_folder / "libascendcl.so")!r})
library.aclGetRecentErrMsg.restype = ctypes.c_char_p
free, total, first, second = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p(), ctypes.c_void_p()
def read():
    library.aclrtGetMemInfo(1, ctypes.byref(free), ctypes.byref(total))
    return free.value >> 30, total.value >> 30
print(read())
print(library.aclrtMalloc(ctypes.byref(first), ctypes.c_size_t(3 << 30), 0), read())
print(library.aclrtMalloc(ctypes.byref(second), ctypes.c_size_t(2 << 30), 0), library.aclGetRecentErrMsg().decode())
print(library.aclrtMallocPhysical(ctypes.byref(second), ctypes.c_size_t(2 << 30), None, ctypes.c_uint64(0)))
print(library.aclrtMallocHost(ctypes.byref(second), ctypes.c_size_t(2 << 30)), read())
print(library.aclrtFree(first), read(), library.aclrtFree(first), library.aclrtFree(None))
"""
    environment = {**os.environ, "ASCEND_CPT_SOFTNPU_MEMORY_GB": "6"}
    run = [sys.executable, "-c", program]
    lines = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "(4, 6)"
    assert lines[1] == "0 (1, 6)"
    assert lines[2].startswith(f"{OUT_OF_MEMORY} out of device memory: {2 * GIGABYTE} bytes requested, {GIGABYTE} free")
    assert lines[3] == str(OUT_OF_MEMORY)
    assert lines[4] == "0 (1, 6)"
    assert lines[5] == "0 (4, 6) 100000 0"


def test_copies_do_not_leave_the_destination(library: ctypes.CDLL) -> None:
    source, to = np.arange(8, dtype=np.uint8), np.zeros(8, np.uint8)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (to, source)]
    assert library.aclrtMemcpy(pointers[0], ctypes.c_size_t(4), pointers[1], ctypes.c_size_t(8), 0) != 0
    assert not to.any()
    assert library.aclrtMemcpy(pointers[0], ctypes.c_size_t(8), pointers[1], ctypes.c_size_t(8), 0) == 0
    assert (to == source).all()


def send(library: ctypes.CDLL, channel: int, values: np.ndarray, *, kind: int = 0, timeout_ms: int = 100) -> int:
    dims = (ctypes.c_int64 * values.ndim)(*values.shape)
    item = library.acltdtCreateDataItem(
        kind, dims, ctypes.c_size_t(values.ndim), 3, ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(values.nbytes)
    )
    dataset = ctypes.c_void_p(library.acltdtCreateDataset())
    library.acltdtAddDataItem(dataset, ctypes.c_void_p(item))
    code = library.acltdtSendTensor(ctypes.c_void_p(channel), dataset, timeout_ms)
    library.acltdtDestroyDataItem(ctypes.c_void_p(item))
    library.acltdtDestroyDataset(dataset)
    return int(code)


def get_next(library: ctypes.CDLL, device: Device, name: str, count: int) -> np.ndarray:
    to = make_zeros((count,), "int32")
    attributes = ctypes.c_void_p(device._function("aclopCreateAttr")())
    library.aclopSetAttrString(attributes, b"channel_name", name.encode())
    none, (descriptions, buffers) = device._describe([]), device._describe([to])
    device._check(
        library.aclopCompileAndExecuteV2(b"GetNext", 0, *none, 1, descriptions, buffers, attributes, 0, 0, None, None)
    )
    return to.values


def test_batches_come_in_order_and_the_queue_has_a_limit(library: ctypes.CDLL, device: Device) -> None:
    channel = library.acltdtCreateChannelWithCapacity(0, b"order", ctypes.c_size_t(2))
    batches = [np.full(3, number, np.int32) for number in range(3)]
    assert [send(library, channel, batch) for batch in batches] == [0, 0, QUEUE_FULL]
    assert get_next(library, device, "order", 3).tolist() == [0, 0, 0]
    assert send(library, channel, batches[2]) == 0
    assert get_next(library, device, "order", 3).tolist() == [1, 1, 1]
    with pytest.raises(OperatorError, match="has 12 bytes, but the step expects 16"):
        get_next(library, device, "order", 4)


def test_a_step_waits_for_its_batch_and_never_gets_an_old_one(library: ctypes.CDLL, device: Device) -> None:
    channel = library.acltdtCreateChannelWithCapacity(0, b"wait", ctypes.c_size_t(2))
    sender = threading.Timer(0.3, send, (library, channel, np.arange(3, dtype=np.int32)))
    sender.start()
    assert get_next(library, device, "wait", 3).tolist() == [0, 1, 2]
    threading.Timer(0.3, library.acltdtStopChannel, (ctypes.c_void_p(channel),)).start()
    with pytest.raises(OperatorError, match="was closed while a step waited"):
        get_next(library, device, "wait", 3)
    with pytest.raises(OperatorError, match="no data queue elsewhere"):
        get_next(library, device, "elsewhere", 3)


def test_the_end_of_data_is_an_error(library: ctypes.CDLL, device: Device) -> None:
    channel = library.acltdtCreateChannelWithCapacity(0, b"end", ctypes.c_size_t(2))
    send(library, channel, np.zeros(1, np.int32), kind=1)
    with pytest.raises(OperatorError, match="queue end has no more batches"):
        get_next(library, device, "end", 1)


def test_waiting_for_a_batch_has_a_limit(library: ctypes.CDLL, device: Device) -> None:
    library.acltdtCreateChannelWithCapacity(0, b"never", ctypes.c_size_t(2))
    library.aclrtSetOpExecuteTimeOut(1)
    started = time.monotonic()
    with pytest.raises(OperatorError, match="no batch arrived in the data queue never within 1 s"):
        get_next(library, device, "never", 1)
    assert time.monotonic() - started >= 1
    library.aclrtSetOpExecuteTimeOut(900)


def test_waiting_actors_give_way_to_threads_that_compute(device: Device) -> None:
    """MindSpore's actor threads wait in a busy loop while another thread launches the kernels."""
    ended = threading.Event()
    found: dict[str, int] = {}

    def wait(name: str) -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        found[name] = threading.get_native_id()
        ended.wait()

    threads = [threading.Thread(target=wait, args=(name,)) for name in ("ActorThread_7", "other")]
    for thread in threads:
        thread.start()
    try:
        while len(found) < len(threads):
            time.sleep(0.01)
        before = os.getpriority(os.PRIO_PROCESS, 0)
        to = make_zeros((1,), "float32")
        # They are looked for after 1, 2, 4, 8, ... kernels of the process.
        for _ in range(20_000):
            device.run("Cast", DeviceTensor([1.0], "float64"), DTYPES["float32"][0], to)
            if os.getpriority(os.PRIO_PROCESS, found["ActorThread_7"]) == 10:
                break
        assert os.getpriority(os.PRIO_PROCESS, found["ActorThread_7"]) == 10
        assert os.getpriority(os.PRIO_PROCESS, found["other"]) == os.getpriority(os.PRIO_PROCESS, 0) == before
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_use_of_the_device_is_counted(device: Device, library: ctypes.CDLL, library_folder: Path) -> None:
    before = read_counts(library_folder)
    block = ctypes.create_string_buffer(16)
    size = ctypes.c_size_t(16)
    for kind in (TO_DEVICE, TO_HOST, TO_HOST, BETWEEN_HOSTS):
        assert library.aclrtMemcpyAsync(block, size, bytes(16), size, kind, None) == 0
    assert library.aclrtMemcpy(block, size, bytes(16), size, TO_HOST) == 0
    assert library.aclrtSynchronizeStream(None) == library.aclrtSynchronizeStreamWithTimeout(None, -1) == 0
    assert library.aclrtSynchronizeDevice() == library.aclrtSynchronizeEvent(None) == 0
    for _ in range(3):
        device.run("Cast", DeviceTensor([1.5], "float64"), DTYPES["float32"][0], make_zeros((1,), "float32"))
    counts = read_counts(library_folder) - before
    assert counts == DeviceCounts(launches=3, collectives=0, synchronizations=5, copies_to_host=3, copies_to_device=1)
