"""Runs a target on mutated inputs in a child process, and finds wrong exceptions, hangs, crashes and growing memory."""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from ascend_cpt.errors import CptError
from tests.attacks.fuzz.mutate import Mutate, choose

CASE_LIMIT_S = 20.0
"""Of processor time. The machine may be busy, so that wall time says nothing."""
STUCK_LIMIT_S = 200.0
"""Of wall time: a case that the signal cannot end."""
MAX_GROWTH_MB = 40.0
MAX_PEAK_MB = 900.0
WARM_UP = 0.3
"""Share of the cases after which memory should not grow."""
MAX_FINDINGS = 20
REPOSITORY = Path(__file__).resolve().parents[3]


class HangError(BaseException):
    """A case took too long."""


class GrowthError(Exception):
    """The process uses more memory with every case."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A target that is ready.

    `run` takes the bytes of a case and raises nothing but CptError; it checks its own properties with `assert`.
    """

    seeds: Sequence[bytes]
    mutate: Mutate
    run: Callable[[bytes], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader of hostile input. `prepare` gets an empty folder in memory."""

    name: str
    num_cases: int
    prepare: Callable[[Path], Prepared]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A case that broke a property, and how."""

    target: str
    index: int
    case: bytes
    where: str
    """Exception and the innermost line of the package."""
    text: str

    @property
    def file_name(self) -> str:
        """Name in the corpus."""
        return f"{self.target}.{hashlib.sha256(self.case).hexdigest()[:10]}"


@dataclass(kw_only=True)
class Result:
    """What a target did with its cases."""

    target: str
    num_cases: int = 0
    num_accepted: int = 0
    """Cases that gave a result; the others gave a CptError."""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    growth_mb: float = 0.0
    peak_mb: float = 0.0
    findings: list[Finding] = field(default_factory=list)


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Yield a folder in /dev/shm, if there is one."""
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="fuzz_", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_case(target: str, prepared: Prepared, seed: int, index: int) -> bytes:
    """Return case `index` of a run; the first cases are the valid inputs."""
    if index < len(prepared.seeds):
        return prepared.seeds[index]
    random = Random(f"{seed}/{target}/{index}")
    case = prepared.mutate(random, choose(random, prepared.seeds))
    while random.randrange(4) == 0:
        try:
            case = prepared.mutate(random, case)
        except (ValueError, RecursionError, IndexError):  # no longer of the form that the mutator changes
            break
    return case


def check_case(prepared: Prepared, case: bytes) -> bool:
    """Run a case; return whether it was accepted. Raises what breaks a property."""
    signal.setitimer(signal.ITIMER_VIRTUAL, CASE_LIMIT_S)
    try:
        prepared.run(case)
        return True
    except CptError as error:
        assert str(error), "an error without a message"
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _raise_hang(number: int, frame: FrameType | None) -> None:
    raise HangError


def run_target(target: Target, num_cases: int, seed: int, report: Callable[[int, float], None]) -> Result:
    """Run a target in a child process; `report` gets the number of finished cases and the seconds since the start."""
    result = Result(target=target.name, num_cases=num_cases)
    started_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    first = 0
    with folder_in_memory() as folder:
        while first < num_cases and len(result.findings) < MAX_FINDINGS:
            first = _run_child(
                target, result, folder, first, seed, lambda done: report(done, time.monotonic() - started_s)
            )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result.wall_s = time.monotonic() - started_s
    return result


def _run_child(
    target: Target, result: Result, folder: Path, first: int, seed: int, report: Callable[[int], None]
) -> int:
    """Run the cases from `first` on; return the next one: after the end, or after a case that ended the child."""
    at = mmap.mmap(-1, 8)
    results = folder.with_name(folder.name + ".results")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _be_child(target, result, folder / str(first), first, seed, at, results)
    last, since_s = -1, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        done = int(struct.unpack("<q", at[:8])[0])
        report(done)
        if ended:
            break
        if done != last:
            last, since_s = done, time.monotonic()
        elif time.monotonic() - since_s > STUCK_LIMIT_S:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.1)
    if status == 0:
        found = pickle.loads(results.read_bytes())
        results.unlink()
        result.num_accepted += found.num_accepted
        result.growth_mb, result.peak_mb = max(result.growth_mb, found.growth_mb), max(result.peak_mb, found.peak_mb)
        result.findings += found.findings
        return result.num_cases
    with folder_in_memory() as other:
        case = make_case(target.name, target.prepare(other), seed, done)
    where = f"the process ended with status {status} (signal {status & 127})"
    result.findings.append(Finding(target=target.name, index=done, case=case, where=where, text=where))
    return done + 1


def _be_child(
    target: Target, result: Result, folder: Path, first: int, seed: int, at: mmap.mmap, results: Path
) -> None:
    """Run the cases and exit."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        if os.environ.get("FUZZ_OUTPUT") != "1":
            os.dup2(null, 2)
        signal.signal(signal.SIGVTALRM, _raise_hang)
        folder.mkdir()
        found = _run_cases(target, target.prepare(folder), range(first, result.num_cases), seed, at)
        results.write_bytes(pickle.dumps(found))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run_cases(target: Target, prepared: Prepared, indices: range, seed: int, at: mmap.mmap) -> Result:
    found = Result(target=target.name, num_cases=len(indices))
    seen: set[str] = set()
    warm = indices.start + int(len(indices) * WARM_UP)
    baseline_mb = 0.0
    for index in indices:
        at[:8] = struct.pack("<q", index)
        case = make_case(target.name, prepared, seed, index)
        try:
            is_accepted = check_case(prepared, case)
            assert is_accepted or index >= len(prepared.seeds), "a valid input is refused"
            found.num_accepted += is_accepted
        except (Exception, HangError) as error:
            where = describe_place(error)
            if where not in seen and len(seen) < MAX_FINDINGS:
                seen.add(where)
                text = "".join(traceback.format_exception(error))
                found.findings.append(Finding(target=target.name, index=index, case=case, where=where, text=text))
        if index == warm:
            gc.collect()
            baseline_mb = read_memory_mb()
    gc.collect()
    found.growth_mb = read_memory_mb() - baseline_mb
    found.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    at[:8] = struct.pack("<q", indices.stop)
    return found


def read_memory_mb() -> float:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def describe_place(error: BaseException) -> str:
    """Return the exception's name with the innermost line of the package, or of the target."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name != _raise_hang.__name__]
    own = [frame for frame in frames if f"{os.sep}ascend_cpt{os.sep}" in frame.filename] or frames
    path = Path(own[-1].filename)
    name = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
    return f"{type(error).__name__} at {name}:{own[-1].lineno}"


def minimize(prepared: Prepared, finding: Finding, limit_s: float = 20.0) -> bytes:
    """Return a shorter case with the same exception at the same place, found by removing parts."""

    def is_same(case: bytes) -> bool:
        try:
            check_case(prepared, case)
        except (Exception, HangError) as error:
            return describe_place(error) == finding.where
        return False

    case, deadline_s = finding.case, time.monotonic() + limit_s
    length = len(case) // 2
    while length:
        begin = 0
        while begin < len(case) and time.monotonic() < deadline_s:
            shorter = case[:begin] + case[begin + length :]
            if is_same(shorter):
                case = shorter
            else:
                begin += length
        length //= 2
    return case
