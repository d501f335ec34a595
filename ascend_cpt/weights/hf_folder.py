"""Reads a Hugging Face model folder: config.json and one or more safetensors files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.model.sizes import ModelSizes, read_config, read_sizes
from ascend_cpt.strict_json import JsonError, check_plain_name, read_json_object
from ascend_cpt.weights.dtypes import Array
from ascend_cpt.weights.mapping import check_hf_names
from ascend_cpt.weights.safetensors_file import SafetensorsFile, TensorInfo

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# Files other than weights and config.json that a usable model folder needs.
COMPANION_PATTERNS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
)


def is_hf_folder(path: Path) -> bool:
    """Return whether a path is a folder with Hugging Face weights (safetensors or pickle)."""
    names = (WEIGHTS_NAME, INDEX_NAME)
    return path.is_dir() and (any((path / name).is_file() for name in names) or any(path.glob("pytorch_model*.bin")))


class HfFolder:
    """A model's tensors by name. Data is read on demand.

    Raises:
        CheckpointError: the folder, a file, an entry of the index or a tensor is missing or damaged.
        ConfigError: the model in config.json is not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = read_config(path)
        self.sizes: ModelSizes = read_sizes(self.config)
        self._files = _open_files(path)
        self.tensors: dict[str, TensorInfo] = {name: file.tensors[name] for name, file in self._files.items()}

    def read(self, name: str) -> Array:
        """Return a tensor by name."""
        return self._files[name].read(name)

    def read_part(self, name: str, first: int, stop: int) -> Array:
        """Return the elements `first` to `stop` of a tensor, in the order of storage."""
        return self._files[name].read_part(name, first, stop)

    def check(self) -> None:
        """Check names and shapes of all tensors against config.json without reading their data.

        Raises:
            CheckpointError: tensors are missing, unexpected or have another shape.
        """
        try:
            check_hf_names(self.tensors, self.sizes)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        for name, shape in list_hf_shapes(self.sizes).items():
            if self.tensors[name].shape != shape:
                given = list(self.tensors[name].shape)
                raise CheckpointError(f"{self.path}: {name} has shape {given}, expected {list(shape)} from config.json")

    def check_model(self, model_config: Mapping[str, Any]) -> None:
        """Check that `model_config` (fields as in config.json) describes the model of this folder.

        YaRN may be added to a model without scaled rotary frequencies, because it is chosen when training continues.

        Raises:
            CheckpointError: fields differ. The message lists them.
            ConfigError: the model in `model_config` is not supported.
        """
        wanted = read_sizes(model_config)
        if wanted.rope.extends(self.sizes.rope):
            wanted = dataclasses.replace(wanted, rope=self.sizes.rope)
        differences = [
            f"{field.name} is {getattr(self.sizes, field.name)} in config.json and {getattr(wanted, field.name)} in "
            "model.model_config"
            for field in fields(ModelSizes)
            if getattr(self.sizes, field.name) != getattr(wanted, field.name)
        ]
        if differences:
            raise CheckpointError(
                f"{self.path}: a different model: {'; '.join(differences)}; make them equal or give another folder"
            )


def open_checked(path: Path, model_config: Mapping[str, Any]) -> HfFolder:
    """Return the folder after calling `check` and `check_model`, which may raise errors."""
    folder = HfFolder(path)
    folder.check()
    folder.check_model(model_config)
    return folder


def list_companions(folder: Path) -> list[Path]:
    """Return the tokenizer and generation_config files in a folder."""
    return sorted({path for pattern in COMPANION_PATTERNS for path in folder.glob(pattern) if path.is_file()})


def _open_files(path: Path) -> dict[str, SafetensorsFile]:
    """Return which file holds each tensor."""
    if (path / INDEX_NAME).is_file():
        return _open_indexed(path)
    if (path / WEIGHTS_NAME).is_file():
        file = SafetensorsFile(path / WEIGHTS_NAME)
        return dict.fromkeys(file.tensors, file)
    if any(path.glob("*.bin")):
        raise CheckpointError(
            f"{path}: has only .bin files (pickles, which can execute code when loaded): convert the model to "
            f"safetensors with transformers: AutoModelForCausalLM.from_pretrained({str(path)!r}).save_pretrained(...)"
        )
    if any(path.glob("*.safetensors")):
        raise CheckpointError(f"{path}: has no {INDEX_NAME} for its safetensors files: download it")
    raise CheckpointError(
        f"{path}: contains neither {WEIGHTS_NAME} nor {INDEX_NAME}: give the folder of a Hugging Face model"
    )


def _open_indexed(path: Path) -> dict[str, SafetensorsFile]:
    index_path = path / INDEX_NAME
    try:
        places = read_json_object(index_path).get("weight_map")
        if not isinstance(places, dict):
            raise JsonError("no weight_map of tensor names to files")
        file_names = sorted({check_plain_name(name) for name in places.values()})
    except (OSError, JsonError) as error:
        raise CheckpointError(f"{index_path}: damaged: {error}") from error
    files = {name: SafetensorsFile(path / name) for name in file_names}
    for name, file_name in places.items():
        if name not in files[file_name].tensors:
            raise CheckpointError(f"{path / file_name}: does not contain {name}, although {INDEX_NAME} lists it there")
    for file_name, file in files.items():
        for name in file.tensors:
            if places.get(name) != file_name:
                raise CheckpointError(f"{index_path}: has no entry for {name} in {file_name}: download the index again")
    return {name: files[file_name] for name, file_name in places.items()}
