"""Merged tensors compared with those of mergekit (tests/reference/make_merge_reference.py), and recipes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.merge import merge as merge_module
from ascend_cpt.weights.merge.merge import Merge, MergeOptions
from ascend_cpt.weights.merge.methods import Angle, choose_slerp_weights
from ascend_cpt.weights.merge.recipe import Recipe, make_recipe, parse_coefficient
from ascend_cpt.weights.safetensors_file import SafetensorsFile

REFERENCE = Path(__file__).resolve().parents[3] / "reference/merge"
RECIPES: dict[str, dict[str, Any]] = json.loads((REFERENCE / "recipes.json").read_text(encoding="utf-8"))
EXPECTED = SafetensorsFile(REFERENCE / "mergekit.safetensors")
# In float32, mergekit rounds linear and slerp in another way. The tolerance is one unit in the last place of values
# from 1 to 2 (the largest here are 1.5). In bfloat16, all results are bit-equal.
TOLERANCE = {"linear": 1.2e-7, "slerp": 1.2e-7, "task_arithmetic": 0.0}
UNUSED = {"base": None, "t": None, "normalize": None}


def make(name: str) -> Recipe:
    """Return the recipe that corresponds to a configuration of mergekit."""
    settings = RECIPES[name]
    base = settings.get("base_model")
    models = [f"{REFERENCE / model}={weight}" for model, weight in settings.get("weights", {}).items()]
    models += [str(REFERENCE / model) for model in settings.get("models", ()) if model != base]
    parameters = settings.get("parameters", {})
    return make_recipe(
        settings["merge_method"],
        models,
        base=REFERENCE / base if base else None,
        t=str(parameters["t"]) if "t" in parameters else None,
        normalize=parameters.get("normalize"),
    )


@pytest.mark.parametrize("part_elements", [None, 100], ids=["whole", "parts"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RECIPES)
def test_mergekit_gives_the_same_tensors(
    name: str, dtype: str, part_elements: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part_elements is not None:
        monkeypatch.setattr(merge_module, "PART_ELEMENTS", part_elements)
    recipe = make(name)
    Merge(recipe, like=recipe.inputs[0], options=MergeOptions(dtype=dtype)).write(recipe.at({}), tmp_path / "merged")
    merged = HfFolder(tmp_path / "merged")
    merged.check()
    for tensor, info in merged.tensors.items():
        key = f"{name}/{dtype}/{tensor}"
        assert EXPECTED.tensors[key].dtype == info.dtype and EXPECTED.tensors[key].shape == info.shape
        ours, theirs = (to_float32(array, info.dtype) for array in (merged.read(tensor), EXPECTED.read(key)))
        if dtype == "bfloat16":
            np.testing.assert_array_equal(ours, theirs, err_msg=tensor)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE[recipe.method], err_msg=tensor)


def test_the_reference_covers_both_interpolations() -> None:
    """Of slerp: along the arc, and linear between models that are close to each other."""
    cosines = {}
    for other in ("continued", "other"):
        folders = [HfFolder(REFERENCE / "base"), HfFolder(REFERENCE / other)]
        angle = Angle()
        angle.add(*(to_float32(f.read("lm_head.weight"), f.tensors["lm_head.weight"].dtype) for f in folders))
        cosines[other] = angle.cosine()
    assert cosines["continued"] > 0.9995 and abs(cosines["other"]) < 0.3


def test_slerp_weights() -> None:
    assert choose_slerp_weights(0.25, 0.99951) == (0.75, 0.25)
    assert choose_slerp_weights(0.25, -0.99951) == (0.75, 0.25)
    weights = choose_slerp_weights(0.5, 0.0)
    assert weights == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))
    assert choose_slerp_weights(0.0, 0.3) == (1.0, 0.0) and choose_slerp_weights(1.0, 0.3) == pytest.approx((0.0, 1.0))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("-1", -1.0), ("2e-1", 0.2), ("lambda", 0.25), ("1-lambda", 0.75), ("-w", -0.25), ("1.5-t_1", 1.25)],
)
def test_coefficients(text: str, value: float) -> None:
    coefficient = parse_coefficient(text)
    assert coefficient is not None and coefficient.at({"lambda": 0.25, "w": 0.25, "t_1": 0.25}) == value
    assert parse_coefficient(str(coefficient)) == coefficient


@pytest.mark.parametrize("text", ["", "nan", "inf", "-inf", "1-", "lambda-1", "2*lambda", "1+lambda", "0..5", "1-2"])
def test_malformed_coefficients(text: str) -> None:
    assert parse_coefficient(text) is None


def test_a_folder_may_contain_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "run=3").mkdir()
    recipe = make_recipe("linear", [f"{tmp_path}/run=3", f"{tmp_path}/run=3=0.5"], **UNUSED)
    assert recipe.models == (tmp_path / "run=3", tmp_path / "run=3")
    assert recipe.at({}).weights == (1.0, 0.5)


@pytest.mark.parametrize(
    ("method", "models", "options", "message"),
    [
        ("ties", ["a", "b"], {}, "--method 'ties': not a known merge method; known: linear, slerp, task_arithmetic"),
        ("linear", ["a=1"], {}, "--model: missing"),
        ("linear", ["a=1", "b=1"], {"base": Path("c")}, "--base: linear has no base"),
        ("linear", ["a=1", "b=1"], {"t": "0.5"}, "--t: applies only to slerp"),
        ("linear", ["a=1", "b=half!"], {}, "--model 'b=half!': expected FOLDER or FOLDER=WEIGHT"),
        ("linear", ["a=1", "=1"], {}, "--model '=1': expected FOLDER or FOLDER=WEIGHT"),
        ("task_arithmetic", ["a=1"], {}, "--base: missing; task_arithmetic needs"),
        ("task_arithmetic", [], {"base": Path("c")}, "--model: missing"),
        ("slerp", ["a"], {"t": "0.5"}, "--base: missing; slerp needs"),
        ("slerp", ["a", "b"], {"base": Path("c"), "t": "0.5"}, "with exactly one --model FOLDER"),
        ("slerp", ["a=0.5"], {"base": Path("c"), "t": "0.5"}, "without a weight; use --t"),
        ("slerp", ["a"], {"base": Path("c")}, "--t: missing"),
        ("slerp", ["a"], {"base": Path("c"), "t": "2*x"}, "--t '2*x': expected a number from 0 to 1, NAME or 1-NAME"),
        ("slerp", ["a"], {"base": Path("c"), "t": "0.5", "normalize": True}, "--normalize: slerp has no weights"),
    ],
)
def test_wrong_recipes(method: str, models: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_recipe(method, models, **{**UNUSED, **options})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_values() -> None:
    slerp = make_recipe("slerp", ["a"], base=Path("b"), t="t", normalize=None)
    assert slerp.variables == {"t"}
    with pytest.raises(ConfigError, match=r"--t 1\.5: must be from 0"):
        slerp.at({"t": 1.5})
    with pytest.raises(ConfigError, match=r"t: has no value; use numbers, or pass --sweep t=0,0\.5,1"):
        slerp.at({})
    with pytest.raises(ConfigError, match="sum to 0"):
        make_recipe("linear", ["a=1", "b=-1"], **UNUSED).at({})
    assert make_recipe("linear", ["a=1", "b=-1"], **{**UNUSED, "normalize": False}).at({}).weights == (1.0, -1.0)
