"""Heat maps of needle tasks, in the report and as a picture; other sinks do not have the cells."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.monitor.heat_map import choose_heat_maps, read_heat_maps
from ascend_cpt.monitor.picture import draw_needles
from ascend_cpt.monitor.record import TaskRecord, to_scalars, to_values
from ascend_cpt.monitor.report.run_data import load_run
from ascend_cpt.monitor.report.write_report import render_report
from ascend_cpt.monitor.sinks import ConsoleSink, JsonlSink
from tests.unit.monitor.report.test_report import read_data, write_run

CELLS = {"8192/0": 1.0, "8192/0.5": 0.5, "8192/1": 1.0, "16384/0": 0.25, "16384/0.5": 0.0, "16384/1": 1.0}


def make_record(step: int, factor: float = 1.0, name: str = "find/it") -> TaskRecord:
    values = {"acc": 0.625, "exact": 0.5}
    values |= {f"{metric}/{cell}": value * factor for metric in ("acc", "exact") for cell, value in CELLS.items()}
    return TaskRecord(step=step, name=name, metric="acc", score=0.625, num_items=6, values=values)


def write_needles(run_dir: Path, steps: tuple[int, ...] = (0, 10, 20)) -> Path:
    """Add a needle task, whose scores grow with the steps, and a task without cells to a run."""
    sink = JsonlSink(write_run(run_dir) / "metrics.jsonl", 20)
    for step in steps:
        sink.write(make_record(step, factor=step / 20))
        sink.write(TaskRecord(step=step, name="exam", metric="acc", score=0.5, num_items=9, values={"acc": 0.5}))
    sink.close()
    return run_dir


def test_maps_of_a_record() -> None:
    acc, exact = read_heat_maps(to_values(make_record(7)))
    assert (acc.step, acc.metric, exact.metric) == (7, "acc", "exact")
    assert acc.lengths == (8192, 16384) and acc.depths == (0.0, 0.5, 1.0)
    assert acc.scores[16384, 0.0] == 0.25 and len(acc.scores) == 6
    invalid = to_values(make_record(7, factor=math.nan))
    assert math.isnan(read_heat_maps(invalid)[0].scores[8192, 0.0])
    assert read_heat_maps({"step": 1, "values": {"acc": 1.0, "bits_per_byte": 2.0}}) == []


def test_first_and_last_are_chosen() -> None:
    records = [to_values(make_record(step)) for step in (0, 10, 20)]
    assert [[found.step for found in maps] for maps in choose_heat_maps(records)] == [[0, 20], [0, 20]]
    assert [[found.step for found in maps] for maps in choose_heat_maps(records[:1])] == [[0], [0]]
    assert choose_heat_maps([]) == []


def test_report_has_heat_maps(tmp_path: Path) -> None:
    page = render_report([load_run(write_run(tmp_path / "two")), load_run(write_needles(tmp_path / "one"))])
    maps = read_data(page)["maps"]
    assert [found["title"] for found in maps] == [
        f"find/it: {metric} at step {step}, by depth and tokens" for metric in ("acc", "exact") for step in (0, 20)
    ], "two metrics, first and last; none of the task without cells"
    assert {found["run"] for found in maps} == {1} and page.count('data-maps="1"') == 1
    assert maps[1]["lengths"] == ["8,192", "16,384"] and maps[1]["depths"] == ["0%", "50%", "100%"]
    assert maps[1]["scores"] == [[1, 0.25], [0.5, 0], [1, 1]] and maps[0]["scores"] == [[0, 0], [0, 0], [0, 0]]


def test_cells_that_are_missing_or_nan(tmp_path: Path) -> None:
    sink = JsonlSink(write_run(tmp_path) / "metrics.jsonl", 20)
    values: dict[str, Any] = {"acc": math.nan, "acc/8/0": math.nan, "acc/16/1": 1.0}
    sink.write(TaskRecord(step=20, name="find", metric="acc", score=math.nan, num_items=2, values=values))
    sink.close()
    (found,) = read_data(render_report([load_run(tmp_path)]))["maps"]
    assert found["scores"] == [[None, None], [None, 1]]
    assert draw_needles(tmp_path / "metrics.jsonl", tmp_path) == [tmp_path / "needle_find.png"]


@pytest.mark.parametrize("steps", [(0,), (0, 10, 20)])
def test_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
    from matplotlib.axes import Axes

    shown: list[Any] = []
    draw = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda *args, **options: shown.append(args[1]) or draw(*args, **options))
    run_dir = write_needles(tmp_path / "one", steps)
    files = draw_needles(run_dir / "metrics.jsonl", run_dir)
    assert files == [run_dir / "needle_find_it.png"] and files[0].read_bytes()[:4] == b"\x89PNG"
    assert len(shown) == 2 * min(len(steps), 2)
    assert shown[-1] == [[each * steps[-1] / 20 for each in row] for row in ([1.0, 0.25], [0.5, 0.0], [1.0, 1.0])]
    assert draw_needles(write_run(tmp_path / "two") / "metrics.jsonl", tmp_path) == []


def test_console_and_trackers_have_no_cells() -> None:
    stream = io.StringIO()
    ConsoleSink(stream, 1).write(make_record(7, name="find"))
    assert stream.getvalue() == "task at step 7: find  acc 0.6250  exact 0.5000  6 items\n"
    assert to_scalars(make_record(7, name="find")) == {"task/find/acc": 0.625, "task/find/exact": 0.5}
