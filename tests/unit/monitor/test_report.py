"""The report: reading, downsampling, and a page without external resources."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ascend_cpt.errors import DataError
from ascend_cpt.monitor.record import DataRecord, RunInfo, TaskRecord, ValidationRecord
from ascend_cpt.monitor.report.run_data import downsample, load_run, make_curve, smooth
from ascend_cpt.monitor.report.write_report import ReportSink, render_report, write_report
from ascend_cpt.monitor.sinks import JsonlSink
from tests.unit.monitor.test_sinks import make_step

PHASES = [
    {"name": "general", "first_step": 0, "stop_step": 12, "tokens": {"web": 1200}},
    {"name": "q&a <late>", "first_step": 12, "stop_step": 20, "tokens": {"web": 600, "qa": 200}},
]


def write_run(run_dir: Path, phases: list[dict[str, Any]] = PHASES) -> Path:
    """Write a run of 20 steps: a spike at step 7, a NaN at 9, validation, account and `run.json`."""
    sink = JsonlSink(run_dir / "metrics.jsonl", 0)
    for step in range(21):
        if step:
            loss = {7: 90.0, 9: math.nan}.get(step, 3 - step / 20)
            sink.write(make_step(step, loss=loss, skipped="loss spike" if step == 7 else "", data_wait_s=0.2))
        if step % 10 == 0:
            alarm = step == 20
            sink.write(ValidationRecord(step=step, name="general", loss=2 + step / 200, num_labels=9, alarm=alarm))
    sink.write(DataRecord(step=20, tokens={"q&a <late>": {"web": 600, "qa": 200}}, epochs={"web": 0.5, "qa": 2.0}))
    sink.close()
    info = RunInfo(
        name="x", model="qwen3", num_parameters=10**9, num_devices=8, device_name="Ascend910B3", flops_per_token=1.0,
        peak_flops=None, total_steps=20, tokens_per_step=100, phases=phases,
        sources={"web": {"rows": 1, "tokens": 3600}, "qa": {"rows": 1, "tokens": 100}},
        validation={"general": {"max_increase": 0.05}},
    )  # fmt: skip
    (run_dir / "run.json").write_text(json.dumps(info.to_values()), encoding="utf-8")
    return run_dir


def read_data(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert match
    data: dict[str, Any] = json.loads(match[1])
    return data


def test_charts_of_a_run(tmp_path: Path) -> None:
    page = render_report([load_run(write_run(tmp_path / "one"))])
    data = read_data(page)
    charts = {chart["title"]: chart for chart in data["charts"]}
    loss = charts["Training loss (nats per token)"]
    assert max(y for y in loss["lines"][0]["y"] if y is not None) == 90.0
    assert loss["lines"][0]["y"][8] is None, "NaN is a gap"
    assert loss["marks"] == [{"run": 0, "x": 7, "y": 90, "text": "skipped: loss spike"}]
    assert [phase["name"] for phase in loss["phases"]] == ["general", "q&a <late>"]
    held = charts["Validation: general (nats per token)"]
    assert held["lines"][0] == {"run": 0, "dots": True, "x": [0, 10, 20], "y": [2, 2.05, 2.1]}
    assert [(level["y"], level.get("alarm", False)) for level in held["levels"]] == [(2, False), (2.05, True)]
    assert held["marks"] == [{"run": 0, "x": 20, "y": 2.1, "text": "beyond its limit", "kind": "rise"}]
    assert "Learning rate" in charts and "Gradient norm" in charts and "MFU" not in charts


def test_tables_of_a_run(tmp_path: Path) -> None:
    page = render_report([load_run(write_run(tmp_path / "one"))])
    for text in (
        "<td>q&amp;a &lt;late&gt;</td><td>qa</td><td>200</td><td>25.0%</td><td>200 (25.0%)</td>",
        "<td>qa</td><td>2.00</td><td>100</td>",
        "qwen3, 1B parameters",
        "8 × Ascend910B3",
        "2.0000 → 2.1000 (+0.1000), ALARM",
        "1 of 20 steps, the last: step 7 (loss spike)",
        "2 s (median); 10.0% of the total time is data wait",
    ):
        assert text in page, text


def test_layouts_are_shown_if_they_changed(tmp_path: Path) -> None:
    path = write_run(tmp_path / "one") / "run.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    sizes = {"data_parallel": 2, "model_parallel": 4, "pipeline_stage": 1, "context_parallel": 1}
    last = dict.fromkeys(sizes, 1)
    for layouts, shown in (
        ([{"step": 0, **sizes}], False),
        ([{"step": 0, **sizes}, {"step": 12, **sizes, "data_parallel": 1}, {"step": 15, **last}], True),
    ):
        path.write_text(json.dumps({**info, "layouts": layouts}), encoding="utf-8")
        page = render_report([load_run(tmp_path / "one")])
        row = "<td>from step 1: data 2 × tensor 4, from step 13: tensor 4, from step 16: 1 device</td>"
        assert ("<th>Layouts</th>" in page, row in page) == (shown, shown)
    path.write_text(json.dumps({**info, "layouts": [{"step": "x"}]}), encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.layouts\[0\]\['step'\]: expected int"):
        load_run(tmp_path / "one")


def test_rise_and_recovery_of_a_loss_are_marked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    sink = JsonlSink(run / "metrics.jsonl", 20)
    sink.write(ValidationRecord(step=30, name="general", loss=2.0, num_labels=9))
    sink.close()
    held = {chart["title"]: chart for chart in read_data(render_report([load_run(run)]))["charts"]}
    assert held["Validation: general (nats per token)"]["marks"] == [
        {"run": 0, "x": 20, "y": 2.1, "text": "beyond its limit", "kind": "rise"},
        {"run": 0, "x": 30, "y": 2, "text": "within its limit again, after 10 steps", "kind": "recovery"},
    ]


def test_run_without_alarms_and_tasks_has_no_marks_and_no_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8").replace('"alarm": true', '"alarm": false'), encoding="utf-8")
    page = render_report([load_run(run)])
    charts = read_data(page)["charts"]
    assert "TFLOPS per device" not in page, "records of old versions do not have it"
    assert not [chart["title"] for chart in charts[1:] if "marks" in chart] and "<th>Task</th>" not in page


def write_tasks(run_dir: Path, *, higher_is_better: bool = True, metric: str = "acc") -> Path:
    """Add three scores of a task to a run: 0.5, one that is worse by 0.1, and 0.5 again."""
    sink = JsonlSink(write_run(run_dir) / "metrics.jsonl", 20)
    worse = 0.4 if higher_is_better else 0.6
    for step, score in ((0, 0.5), (10, worse), (20, 0.5)):
        sink.write(
            TaskRecord(
                step=step, name="a<b", metric=metric, score=score, num_items=50, values={metric: score},
                higher_is_better=higher_is_better, alarm=score == worse,
            )
        )  # fmt: skip
    sink.close()
    info = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    info["tasks"] = {"a<b": {"max_drop": 0.05, "on_drop": "warn"}}
    (run_dir / "run.json").write_text(json.dumps(info), encoding="utf-8")
    return run_dir


@pytest.mark.parametrize(("higher_is_better", "limit"), [(True, 0.45), (False, 0.55)])
def test_chart_and_table_of_a_task(tmp_path: Path, higher_is_better: bool, limit: float) -> None:
    page = render_report([load_run(write_tasks(tmp_path / "one", higher_is_better=higher_is_better))])
    (chart,) = (chart for chart in read_data(page)["charts"] if chart["title"] == "Task: a<b (acc)")
    worst = 0.4 if higher_is_better else 0.6
    assert chart["lines"] == [{"run": 0, "dots": True, "x": [0, 10, 20], "y": [0.5, worst, 0.5]}]
    assert [(level["y"], level.get("alarm", False)) for level in chart["levels"]] == [(0.5, False), (limit, True)]
    assert [(mark["x"], mark["kind"]) for mark in chart["marks"]] == [(10, "rise"), (20, "recovery")]
    words = "higher" if higher_is_better else "lower"
    assert (
        f"<tr><td>a&lt;b</td><td>acc ({words} is better)</td><td>50</td><td>0.5000 (step 0)</td><td>0.5000 (step 20)"
        "</td><td>+0.0000</td><td>steps 10 to 20</td></tr>"
    ) in page


def test_compute_of_a_device(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    sink = JsonlSink(run / "metrics.jsonl", 20)
    for step in range(21, 24):
        sink.write(make_step(step, tflops_per_device=100.0 + step, mfu=0.5))
    sink.close()
    page = render_report([load_run(run)])
    charts = {chart["title"]: chart for chart in read_data(page)["charts"]}
    assert charts["TFLOPS per device"]["lines"][0]["y"][-3:] == [121, 122, 123]
    assert "2.05K tokens/s, 122 TFLOPS per device, MFU 50.0% (medians)" in page


def test_page_loads_no_external_resources(tmp_path: Path) -> None:
    page = render_report([load_run(write_run(tmp_path / "one"))])
    assert not re.search(r"https?://|@import|url\(|<link|src=", page)
    assert not re.search(r"@[A-Z]+@", page), "every placeholder of the template is filled"


def test_several_runs_share_the_charts(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a/run")
    other = write_run(tmp_path / "b/run", PHASES[:1])
    data = read_data(render_report([load_run(first), load_run(other)]))
    assert data["runs"] == ["run (1)", "run (2)"]
    loss = data["charts"][0]
    assert [line["run"] for line in loss["lines"]] == [0, 1]
    assert loss["phases"] == [], "different phases are not shaded"


def test_names_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "validation", "step": 20, "name": "</script><b>", "loss": 1.0, "num_labels": 1}\n')
    page = render_report([load_run(run)])
    assert "</script><b>" not in page and "Validation: </script><b>" in read_data(page)["charts"][2]["title"]


@pytest.mark.parametrize("placeholder", ["@DATA@", "@SECTIONS@", "@TITLE@"])
def test_names_with_placeholders_of_the_template(tmp_path: Path, placeholder: str) -> None:
    name = f"{placeholder}<img src=x onerror=alert(1)><!--<script>"
    page = render_report([load_run(write_run(tmp_path / name))])
    elements: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: elements.append(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert "img" not in elements and elements.count("script") == 2
    assert read_data(page)["runs"] == [name]
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    assert "<" not in data


def test_run_without_run_json_and_with_a_truncated_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x")
    (run / "run.json").unlink()
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "step", "step": 21, "los')
    assert read_data(render_report([load_run(run)]))["charts"][0]["phases"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a run folder"),
        ("", "has no steps yet"),
        ("hello\n", "line 1 is not a valid record"),
        ('{"kind": "step", "step": 1}\n{}\n', "line 1 is not a valid record"),
        ("[1]\n", "line 1 is not a valid record"),
        ('{"kind": "validation", "step": 0, "name": "a", "loss": 1.0}\n', "has no steps yet"),
        ('{"kind": "validation", "step": 0, "name": "a", "loss": "many"}\n', "line 1 is not a valid record"),
        ('{"kind": "task", "step": 0, "name": "a", "metric": "acc", "score": "x"}\n', "line 1 is not a valid record"),
    ],
)
def test_damaged_run_gives_a_one_line_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        load_run(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_run_json_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x")
    (run / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json: is not valid JSON"):
        load_run(run)


@given(values=arrays(np.float64, st.integers(1, 5000), elements=st.floats(-1e6, 1e6) | st.just(math.nan)))
def test_downsampling_keeps_ends_extremes_and_gaps(values: Any) -> None:
    kept = downsample(values, 50)
    assert len(kept) <= 50 * 3 + 2 and kept[0] == 0 and kept[-1] == len(values) - 1
    assert (np.diff(kept) > 0).all()
    finite = values[np.isfinite(values)]
    if len(finite):
        assert np.nanmax(values[kept]) == finite.max() and np.nanmin(values[kept]) == finite.min()
    assert np.isnan(values[kept]).any() == np.isnan(values).any()


def test_smoothing_ignores_nan() -> None:
    values = np.arange(1000.0)
    values[500] = np.nan
    means, window = smooth(values)
    assert window == 21 and means[100] == 100.0 and means[0] == 5.0
    assert means[505] == pytest.approx((sum(range(495, 516)) - 500) / 20)


def test_column_without_values_has_no_curve() -> None:
    assert make_curve(np.arange(3.0), np.full(3, np.nan)) is None


def test_report_is_written_at_the_end_of_a_run(tmp_path: Path) -> None:
    ReportSink(write_run(tmp_path / "x")).close()
    assert "</html>" in (tmp_path / "x/report.html").read_text(encoding="utf-8")


def test_command(tmp_path: Path, repo_root: Path) -> None:
    run = write_run(tmp_path / "x")
    command = [sys.executable, "tools/report.py", str(run), "--output", str(tmp_path / "sub/page.html")]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "wrote" in result.stdout
    first = (tmp_path / "sub/page.html").read_bytes()
    write_report([run], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == first
    result = subprocess.run([*command[:2], str(tmp_path)], cwd=repo_root, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and "not a run folder" in result.stderr
