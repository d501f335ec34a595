"""Inputs that once ended in a traceback or a crash, most of them found by tests/attacks/fuzz: each has an outcome.

A file of the corpus is named `<target of the fuzzer>.<what it is>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.coordination import coordinator
from ascend_cpt.data.packed import mindrecord_writer
from ascend_cpt.errors import CptError
from tests.attacks.fuzz.harness import Prepared
from tests.attacks.fuzz.targets import TARGETS

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
MAX_MESSAGE_CHARS = 10_000


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Prepared]]:
    names = {path.name.partition(".")[0] for path in CORPUS}
    with pytest.MonkeyPatch.context() as patch:
        # Targets set these; they are restored afterwards.
        patch.setattr(mindrecord_writer, "PAGE_BYTES", mindrecord_writer.PAGE_BYTES)
        patch.setattr(coordinator, "POLL_S", coordinator.POLL_S)
        found = {t.name: t.prepare(tmp_path_factory.mktemp(t.name)) for t in TARGETS if t.name in names}
        assert found.keys() == names
        yield found


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_a_case_of_the_corpus(path: Path, prepared: dict[str, Prepared]) -> None:
    target = prepared[path.name.partition(".")[0]]
    for case in (path.read_bytes(), *target.seeds):  # valid input is still accepted after a bad one
        try:
            target.run(case)
        except CptError as error:
            assert case not in target.seeds
            assert 0 < len(str(error)) < MAX_MESSAGE_CHARS
