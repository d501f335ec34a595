"""`--reshard`: a run that continues in other layouts has the same losses, and loads the same values, bit by bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_cpt.checkpoint.gather import gather_checkpoint
from ascend_cpt.rehearsal.emulated_job import EmulatedJob
from ascend_cpt.weights.mindformers_folder import METADATA_NAME
from tests.emulation import needs_emulation
from tests.integration.conftest import read_history
from tests.integration.softnpu.layouts import GUARDED, PARTS, SCALED, SHORT_ROWS, Layout, Reference
from tests.integration.softnpu.trial import TIMEOUT_S, describe_layout

pytestmark = needs_emulation
STEPS = 2
"""Steps in each layout."""
MAX_LOSS_DIFFERENCE = 1e-4
PROBE = "tests/integration/softnpu/loaded_state.py"
TWO_DEVICES = [Layout(data=2, accumulation=2), Layout(tensor=2, accumulation=2), Layout(pipeline=2, accumulation=4)]
LAYOUTS = [Layout(data=2, tensor=2, accumulation=2), Layout(tensor=4, accumulation=2), TWO_DEVICES[2]]
BACK = [
    Layout(),
    Layout(data=2, pipeline=2, accumulation=4, optimizer={"gradient_accumulation_shard": True}),
    LAYOUTS[0],
]
LLAMA = Reference(family="llama3")
CASES = [
    pytest.param(GUARDED, {}, TWO_DEVICES, id="two_devices"),
    pytest.param(GUARDED, {}, LAYOUTS, id="qwen3"),
    pytest.param(LLAMA, {**SCALED, **PARTS}, [*LAYOUTS, *BACK], id="llama3"),
]


def start(layout: Layout, dataset: Path, folder: Path, name: str, *arguments: str, program: str, **cpt: Any) -> str:
    """Train in a layout, in the output folder of the earlier ones, and return the console."""
    saving = {"every": f"{STEPS} steps", "keep_last": 0}
    config = describe_layout(layout, dataset, folder / name, Path("random"), validation=None, checkpoint=saving, **cpt)
    job = EmulatedJob(config, folder, workers=layout.workers, timeout_s=TIMEOUT_S, program=program)
    job.start(*arguments)
    job.expect_success()
    return job.read_console()


def list_areas(folder: Path) -> dict[str, tuple[tuple[int, ...], dict[int, tuple[slice, ...]]]]:
    """Return the shape of every parameter and the area that each rank has of it, from a checkpoint's metadata.json.

    One device writes no metadata.json.
    """
    from mindformers.checkpoint.reshard import infer_slice_area_by_rank

    areas: dict[str, Any] = {}
    if not (folder / METADATA_NAME).exists():
        for path in folder.glob("*.safetensors"):
            shapes = {name: value.shape for name, value in load_file(path).items() if name != "global_step"}
            areas |= {name: (shape, {0: tuple(slice(0, size) for size in shape)}) for name, shape in shapes.items()}
        return areas
    for name, entry in json.loads((folder / METADATA_NAME).read_text())["state_dict_metadata"].items():
        layout, shape = entry["layout"], tuple(entry["global_shape"])
        ranks = {}
        for number, rank in enumerate(layout["rank_list"]):
            bounds = infer_slice_area_by_rank(layout["device_matrix"], layout["tensor_map"], number, shape)
            ranks[rank] = tuple(slice(*pair) for pair in bounds)
        areas[name] = (shape, ranks)
    return areas


def read_whole(folder: Path) -> dict[str, np.ndarray]:
    """Return the weights and the optimizer state of a checkpoint, put together from the files of all ranks."""
    parts: dict[int, dict[str, np.ndarray]] = {}
    for path in folder.glob("*.safetensors"):
        parts.setdefault(int(path.name.split("-")[2]), {}).update(load_file(path))
    whole = {}
    for name, (shape, ranks) in list_areas(folder).items():
        whole[name] = np.full(shape, np.nan, np.float32)
        for rank, area in ranks.items():
            whole[name][area] = parts[rank][name]
        assert not np.isnan(whole[name]).any(), name
    return whole


def check_loaded(loaded: Path, before: Path, after: Path, workers: int) -> None:
    """Compare what every rank has loaded with its slices of the checkpoint before, which the one after describes."""
    whole, areas = read_whole(before), list_areas(after)
    weights = [name.removeprefix("adam_m.") for name in whole if name.startswith("adam_m.")]
    names = {f"{prefix}{name}" for name in weights for prefix in ("", "adam_m.", "adam_v.")}
    assert weights and names <= whole.keys() and names <= areas.keys()
    found = {rank: load_file(loaded / f"{rank}.safetensors") for rank in range(workers)}
    step = json.loads((before / "common.json").read_text())["global_step"]
    assert all(tensors.pop("global_step").tolist() == [step] for tensors in found.values())
    for name in names:
        for rank, area in areas[name][1].items():
            np.testing.assert_array_equal(found[rank].pop(name), whole[name][area], err_msg=f"{name}, rank {rank}")
    assert not any(found.values()), "a rank has loaded parameters that it should not have"


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("reference", "sections", "layouts"), CASES)
def test_a_run_continues_in_other_layouts(
    reference: Reference,
    sections: dict[str, Any],
    layouts: list[Layout],
    get_dataset: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layouts = [dataclasses.replace(layout, reference=reference, sections=sections) for layout in layouts]
    dataset, total = get_dataset(SHORT_ROWS), STEPS * len(layouts)
    start(layouts[0], dataset, tmp_path / "whole", "config", "--stop-at-step", str(total), program="run_cpt.py")
    whole, chain = (tmp_path / name / "node0/output/run" for name in ("whole", "chain"))
    shutil.copytree(whole, chain)
    for step in range(2 * STEPS, total + 1, STEPS):
        shutil.rmtree(chain / f"checkpoint/iteration_{step:08d}")
    for number, layout in enumerate(layouts[1:], start=1):
        loaded = tmp_path / f"loaded_{number}"
        loaded.mkdir()
        folders = [chain / f"checkpoint/iteration_{STEPS * count:08d}" for count in (number, number + 1)]
        arguments, cpt = ["--reshard", "--stop-at-step", str(STEPS * (number + 1))], {}
        if number == 1:  # as on nodes without shared storage
            gathered = tmp_path / "gathered"
            gather_checkpoint([folders[0]], gathered)
            arguments += ["--resume_training", str(gathered)]
            cpt = {"storage": {"shared": False}}
        monkeypatch.setenv("LOADED_STATE", str(loaded))
        console = start(layout, dataset, tmp_path / "chain", f"config_{number}", *arguments, program=PROBE, **cpt)
        assert f"continuing at step {STEPS * number}" in console
        assert f"new parallel layout from step {STEPS * number} on" in console
        check_loaded(loaded, *folders, workers=layout.workers)
    expected, found = read_history(whole), read_history(chain)
    assert (
        [record[:2] for record in found]
        == [record[:2] for record in expected]
        == [("step", step) for step in range(1, total + 1)]
    )
    assert [record[3] for record in found] == [record[3] for record in expected], "learning rates"
    differences = [abs(have[2] - want[2]) for have, want in zip(found, expected, strict=True)]
    print("largest difference in loss:", f"{max(differences):.1e}")
    assert 0 < max(differences) < MAX_LOSS_DIFFERENCE
    last = f"checkpoint/iteration_{total:08d}/common.json"
    assert json.loads((chain / last).read_text())["loss_scale"] == json.loads((whole / last).read_text())["loss_scale"]
