"""How fast the NPUs of a job compute: the ranks agree on a matrix size, time its product and exchange the times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ascend_cpt.rehearsal.emulated_job import EmulatedJob
from tests.emulation import needs_emulation
from tests.integration.conftest import REPOSITORY
from tests.integration.softnpu.trial import TIMEOUT_S

pytestmark = [needs_emulation, pytest.mark.slow]

PROGRAM = """
import dataclasses, json, sys
from pathlib import Path
sys.path.insert(0, "REPOSITORY")
from ascend_cpt.softnpu.environment import enter

if __name__ == "__main__":
    enter()
    import mindspore as ms
    from mindspore.communication import get_rank, init
    from ascend_cpt.backend.training.ranks.rank_exchange import RankExchange
    ms.set_context(mode=ms.GRAPH_MODE, device_target="Ascend")
    init()
    ms.set_auto_parallel_context(parallel_mode="semi_auto_parallel")
    exchange, found = RankExchange(get_rank(), 2), []
    for step in range(1, 5):
        # Steps of 100 s: every exchange measures, and the product may take 0.1 s.
        result = exchange.exchange(step, is_stop_requested=False, step_s=100.0, data_wait_s=0.0)
        found.append([dataclasses.asdict(times) for times in result.times])
    matrix = exchange._speed._matrix
    text = json.dumps([matrix.shape, str(matrix.dtype), found])
    Path(sys.argv[2]).with_name(f"rank_{get_rank()}.json").write_text(text)
"""


def test_ranks_exchange_the_times_of_a_product(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("REPOSITORY", str(REPOSITORY)), encoding="utf-8")
    job = EmulatedJob(tmp_path / "none.yaml", tmp_path, workers=2, timeout_s=TIMEOUT_S, program=str(program))
    job.start()
    job.expect_success()
    ranks = [json.loads((tmp_path / f"rank_{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    (shape, dtype, found), other = ranks
    assert ranks[0] == other, "both ranks have the same times"
    assert shape[0] == shape[1] >= 128 and dtype == "BFloat16"
    # The first exchange has nothing to send yet.
    assert [len(times) for times in found] == [0, 2, 2, 2]
    assert all(0 < one["computing_s"] < 60 for times in found for one in times)
