"""Fixtures and collection order for all tests."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import hypothesis
import pytest

from tests.ports import find_free_port

REPO_ROOT = Path(__file__).resolve().parents[1]

# Removed so that launch variables of a surrounding job do not affect the jobs that the tests start.
LAUNCH_VARIABLES = (
    "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "NNODES", "NPUS_PER_NODE", "GPUS_PER_NODE", "WORLD_SIZE", "DRY_RUN",
    "RANK_ID", "RANK_SIZE", "DEVICE_ID", "MS_ROLE", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_NODE_ID",
    "MS_LOCAL_WORKER", "MS_NODE_RANK", "RANK", "LOCAL_WORLD_SIZE", "NPROC_PER_NODE", "VC_WORKER_HOSTS", "VC_TASK_INDEX",
    "SLURM_STEP_NUM_NODES", "ASCEND_CPT_ALLOW_LOCAL_MASTER", "ASCEND_CPT_MAX_RESTARTS",
    "ASCEND_CPT_INSECURE",
)  # fmt: skip

# No deadline: the time of an example depends on the load of the machine.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


# Slow files run right after the unit tests, so that no worker is idle at the end.
LONGEST = ("integration/test_training.py", "integration/backend", "integration/test_phases.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of a file on one worker, in order, because they share fixtures.

    Tests of integration/backend also share MindFormers' global state, so all of them run on one worker.
    """
    tests = Path(__file__).parent
    for item in items:
        group = item.path.relative_to(tests)
        if group.parts[:2] == ("integration", "backend"):
            group = group.parent
        item.add_marker(pytest.mark.xdist_group(group.as_posix()))

    def rank(item: pytest.Item) -> tuple[bool, bool]:
        place = item.path.relative_to(tests).as_posix()
        return not place.startswith("unit"), not place.startswith(LONGEST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job secret, which the launches of several nodes find by its variable."""
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.touch(0o600)
    path.write_text(secrets.token_hex(32), encoding="ascii")
    return path


@pytest.fixture(autouse=True)
def clean_launch_environment(monkeypatch: pytest.MonkeyPatch, secret_file: Path) -> None:
    """Remove the launch variables of the caller's environment, and give the jobs of tests their own secret."""
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ASCEND_CPT_SECRET_FILE", str(secret_file))


@pytest.fixture
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture
def free_port() -> int:
    """A free port, different for pytest workers that run at the same time."""
    return find_free_port()


@pytest.fixture
def clean_environ() -> dict[str, str]:
    """A copy of the environment for subprocesses, without launch variables and with few threads."""
    environ = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    return environ | {"OMP_NUM_THREADS": "1"}
