"""Merged folders: files, shards, records, memory, and models that cannot be merged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.merge.merge import Merge, MergeOptions
from ascend_cpt.weights.merge.recipe import make_recipe

REFERENCE = Path(__file__).resolve().parents[3] / "reference"
REPO_ROOT = REFERENCE.parents[1]
BASE, CONTINUED, INSTRUCT = (REFERENCE / "merge" / name for name in ("base", "continued", "instruct"))


def merge(
    *paths: Path, target: Path, like: Path | None = None, options: MergeOptions | None = None, card: str | None = None
) -> Merge:
    """Write the mean of the models and return the merge."""
    recipe = make_recipe("linear", [str(path) for path in paths], base=None, t=None, normalize=None)
    found = Merge(recipe, like=like or paths[0], options=options or MergeOptions())
    found.write(recipe.at({}), target, card=card)
    return found


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def copy_with(source: Path, target: Path, **fields: Any) -> Path:
    """Copy a model with other fields in config.json."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")
    return target


def add_tokenizer(folder: Path, vocabulary: dict[str, int], added: dict[str, int] | None = None) -> None:
    entries = [{"content": token, "id": number} for token, number in (added or {}).items()]
    content = {"model": {"vocab": vocabulary}, "added_tokens": entries}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def test_same_inputs_give_the_same_bytes_in_shards(tmp_path: Path) -> None:
    options = MergeOptions(dtype="bfloat16", max_shard_bytes=4000)
    for name in ("a", "b"):
        merge(BASE, CONTINUED, target=tmp_path / name / "merged", options=options, card="card\n")
    files = read_folder(tmp_path / "a/merged")
    assert files == read_folder(tmp_path / "b/merged")
    shards = [name for name in files if name.endswith(".safetensors")]
    assert len(shards) > 2 and files["README.md"] == b"card\n"
    index = json.loads(files["model.safetensors.index.json"])
    assert set(index["weight_map"].values()) == set(shards)
    merged = HfFolder(tmp_path / "a/merged")
    merged.check()
    assert merged.config["dtype"] == "bfloat16" and {info.dtype for info in merged.tensors.values()} == {"BF16"}


def test_data_type_config_and_tokenizer_are_those_of_the_chosen_model(tmp_path: Path) -> None:
    chosen = copy_with(CONTINUED, tmp_path / "chosen", eos_token_id=7)
    for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja", "added_tokens.json"):
        (chosen / name).write_text(f'"{name}"', encoding="utf-8")
    merge(BASE, chosen, target=tmp_path / "first")
    merge(BASE, chosen, target=tmp_path / "second", like=chosen)
    first, second = HfFolder(tmp_path / "first"), HfFolder(tmp_path / "second")
    assert {info.dtype for info in first.tensors.values()} == {"BF16"} and first.config["eos_token_id"] == 2
    assert {info.dtype for info in second.tensors.values()} == {"F32"} and second.config["eos_token_id"] == 7
    files = read_folder(tmp_path / "second")
    assert files["chat_template.jinja"] == b'"chat_template.jinja"' and len(files) == 7
    assert set(read_folder(tmp_path / "first")) == {"config.json", "merge.json", "model.safetensors"}


def test_record(tmp_path: Path) -> None:
    recipe = make_recipe("task_arithmetic", [f"{CONTINUED}=1", f"{INSTRUCT}=lambda"], base=BASE, t=None, normalize=None)
    Merge(recipe, like=INSTRUCT, options=MergeOptions(dtype="float32")).write(
        recipe.at({"lambda": 0.3}), tmp_path / "a"
    )
    record = json.loads((tmp_path / "a/merge.json").read_text(encoding="utf-8"))
    assert record["merge_method"] == "task_arithmetic" and record["parameters"] == {"normalize": False}
    assert record["base_model"]["path"] == str(BASE) and "weight" not in record["base_model"]
    assert [(entry["path"], entry["weight"]) for entry in record["models"]] == [
        (str(CONTINUED), 1.0),
        (str(INSTRUCT), 0.3),
    ]
    assert record["config_and_tokenizer"] == str(INSTRUCT) and record["out_dtype"] == "float32"
    before = [record["base_model"]["tensors"], *(entry["tensors"] for entry in record["models"])]
    assert len(set(before)) == 3
    # One changed value changes the checksum of that model only.
    changed = tmp_path / "changed"
    shutil.copytree(CONTINUED, changed)
    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"][3] += 0.5
    save_file(tensors, changed / "model.safetensors")
    recipe = make_recipe("task_arithmetic", [f"{changed}=1", f"{INSTRUCT}=0.3"], base=BASE, t=None, normalize=None)
    Merge(recipe, like=INSTRUCT, options=MergeOptions()).write(recipe.at({}), tmp_path / "b")
    record = json.loads((tmp_path / "b/merge.json").read_text(encoding="utf-8"))
    after = [record["base_model"]["tensors"], *(entry["tensors"] for entry in record["models"])]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_slerp_record(tmp_path: Path) -> None:
    recipe = make_recipe("slerp", [str(CONTINUED)], base=BASE, t="0.25", normalize=None)
    Merge(recipe, like=BASE, options=MergeOptions()).write(recipe.at({}), tmp_path / "a")
    record = json.loads((tmp_path / "a/merge.json").read_text(encoding="utf-8"))
    assert record["parameters"] == {"t": 0.25} and [set(entry) for entry in record["models"]] == [{"path", "tensors"}]


def test_tied_models_are_merged_without_an_output_layer(tmp_path: Path) -> None:
    merge(REFERENCE / "llama32_tied", REFERENCE / "llama32_tied", target=tmp_path / "merged")
    merged, source = HfFolder(tmp_path / "merged"), HfFolder(REFERENCE / "llama32_tied")
    assert "lm_head.weight" not in merged.tensors
    for name in merged.tensors:
        np.testing.assert_array_equal(merged.read(name), source.read(name))


def test_models_of_other_sizes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        merge(BASE, REFERENCE / "llama3", target=tmp_path / "merged")
    assert "hidden_size is 48, not 16" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="family is qwen3, not llama"):
        merge(REFERENCE / "llama3", REFERENCE / "qwen3", target=tmp_path / "merged")
    with pytest.raises(CheckpointError, match="tie_word_embeddings is True, not False"):
        merge(REFERENCE / "llama31", REFERENCE / "llama32_tied", target=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_extended_vocabulary_is_rejected(tmp_path: Path) -> None:
    larger = copy_with(BASE, tmp_path / "larger", vocab_size=35)
    tensors = {}
    for name, tensor in load_file(CONTINUED / "model.safetensors").items():
        rows = [tensor, tensor[:3]] if name in ("lm_head.weight", "model.embed_tokens.weight") else [tensor]
        tensors[name] = np.concatenate(rows)
    save_file(tensors, larger / "model.safetensors")
    for first, second, text in ((BASE, larger, "35 rows, 3 more than"), (larger, BASE, "32 rows, 3 fewer than")):
        with pytest.raises(CheckpointError) as caught:
            merge(first, second, target=tmp_path / "merged")
        assert text in str(caught.value) and "\n" not in str(caught.value)


def test_tokenizers(tmp_path: Path) -> None:
    first, second = (copy_with(BASE, tmp_path / name) for name in ("first", "second"))
    add_tokenizer(first, {"a": 0, "b": 1}, {"<s>": 2})
    add_tokenizer(second, {"a": 0, "b": 1}, {"<s>": 2})
    assert merge(first, second, target=tmp_path / "same").warnings == []
    add_tokenizer(second, {"a": 0, "b": 1}, {"<s>": 2, "<chat>": 3})
    (warning,) = merge(first, second, target=tmp_path / "more").warnings
    assert "differ in 1 tokens, such as '<chat>'" in warning
    add_tokenizer(second, {"a": 1, "b": 0})
    with pytest.raises(CheckpointError, match=r"different ids for 2 tokens \(such as 'a': 1, not 0\)"):
        merge(first, second, target=tmp_path / "moved")
    (second / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}))  # unigram
    assert "<s>" in merge(first, second, target=tmp_path / "unigram").warnings[0]
    (second / "tokenizer.json").write_text('{"model": {"vocab": {"a": "x"}}}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a Hugging Face tokenizer"):
        merge(first, second, target=tmp_path / "damaged")


def test_another_rope_is_a_warning(tmp_path: Path) -> None:
    longer = copy_with(CONTINUED, tmp_path / "longer", rope_theta=5e5)
    (warning,) = merge(BASE, longer, target=tmp_path / "merged").warnings
    assert warning.startswith(f"{longer}: rope is ") and "--like" in warning
    assert HfFolder(tmp_path / "merged").config["rope_theta"] == 10000.0


def test_values_that_are_not_finite_are_rejected(tmp_path: Path) -> None:
    broken = copy_with(CONTINUED, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][2] = np.nan
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{broken}: model\.norm\.weight contains NaN or infinity"):
        merge(BASE, broken, target=tmp_path / "merged")
    recipe = make_recipe("linear", [f"{CONTINUED}=3e38", f"{BASE}=3e38"], base=None, t=None, normalize=False)
    with pytest.raises(CheckpointError, match="outside the range of float32"):
        Merge(recipe, like=BASE, options=MergeOptions()).write(recipe.at({}), tmp_path / "merged")
    recipe = make_recipe("linear", [f"{CONTINUED}=1e6", f"{BASE}=1"], base=None, t=None, normalize=False)
    with pytest.raises(CheckpointError, match="outside the range of F16"):
        Merge(recipe, like=BASE, options=MergeOptions(dtype="float16")).write(recipe.at({}), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == [broken]


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoint").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="export a run to one first"):
        merge(BASE, run, target=tmp_path / "merged")
    cut = copy_with(CONTINUED, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((CONTINUED / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        merge(BASE, cut, target=tmp_path / "merged")
    gpt = copy_with(CONTINUED, tmp_path / "gpt", model_type="gpt2")
    with pytest.raises((CheckpointError, ConfigError), match="gpt2"):
        merge(BASE, gpt, target=tmp_path / "merged")
    (tmp_path / "merged").mkdir()
    with pytest.raises(CheckpointError, match="already exists"):
        merge(BASE, CONTINUED, target=tmp_path / "merged")


MEASURE = r"""
import re, sys
from pathlib import Path
from ascend_cpt.weights.merge.merge import Merge, MergeOptions
from ascend_cpt.weights.merge.recipe import make_recipe
def read_status(key):
    return int(re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[1])
before = read_status("VmRSS")
models = [f"{path}=1" for path in sys.argv[2:]]
recipe = make_recipe("task_arithmetic", models, base=Path(sys.argv[2]), t=None, normalize=None)
Merge(recipe, like=Path(sys.argv[2]), options=MergeOptions()).write(recipe.at({}), Path(sys.argv[1]))
print((read_status("VmHWM") - before) // 1024)
"""


def test_memory_does_not_grow_with_the_number_of_models(tmp_path: Path) -> None:
    """The embedding has 48 MB; two results (one is written while the next is made) and the parts are in memory."""
    model = copy_with(BASE, tmp_path / "model", vocab_size=1_500_000)
    tensors = load_file(CONTINUED / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = np.resize(tensors[name].astype(np.float16), (1_500_000, 16))
    save_file(tensors, model / "model.safetensors")
    peaks = []
    for count in (1, 4):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / f"merged{count}"), *[str(model)] * count]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO_ROOT)
        peaks.append(int(re.findall(r"\d+", result.stdout)[-1]))
        shutil.rmtree(tmp_path / f"merged{count}")
    assert peaks[1] < 350, peaks
    assert peaks[1] - peaks[0] < 120, peaks
