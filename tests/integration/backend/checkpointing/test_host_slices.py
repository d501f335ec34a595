"""A rank's part of a stored slice is the right one in every type, and the rest of the slice is not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

from mindformers.checkpoint import reshard
from mindspore import Parameter, Tensor

from ascend_cpt.backend.checkpointing.host_slices import cut_tensor, slice_on_host

AREAS = [((2, 6), (0, 5)), ((0, 8), (1, 3)), ((4, 5), (4, 5)), ((0, 8), (0, 5))]


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16, ms.float16, ms.int32])
@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("is_one_of_several", [False, True])
def test_parts_are_those_of_mindformers(tmp_path: Path, dtype: Any, area: Any, is_one_of_several: bool) -> None:
    values = Tensor(np.arange(40).reshape(8, 5), dtype)
    ms.save_checkpoint([{"name": "x", "data": Parameter(values)}], str(tmp_path / "x"), format="safetensors")
    loaded = ms.load_checkpoint(str(tmp_path / "x.safetensors"), format="safetensors")["x"]
    part = cut_tensor(loaded, area, is_one_of_several)
    expected = reshard.smart_slice(loaded, area, is_one_of_several)
    if is_one_of_several:
        assert part.dtype == expected.dtype
        np.testing.assert_array_equal(part, expected, strict=True)
        return
    assert part.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(part.asnumpy(), expected.asnumpy(), strict=True)
    parameter = Parameter(part, name="x", requires_grad=False)
    assert parameter.dtype == dtype and parameter.shape == tuple(stop - first for first, stop in area)


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("is_one_of_several", [False, True])
def test_parts_of_an_array(area: Any, is_one_of_several: bool) -> None:
    """MindFormers passes arrays for tensors that it has converted from a Hugging Face file."""
    array = np.arange(40, dtype=np.float32).reshape(8, 5)
    part = cut_tensor(array, area, is_one_of_several)
    np.testing.assert_array_equal(part, reshard.smart_slice(array, area, is_one_of_several), strict=True)


def test_a_scalar_has_no_ranges() -> None:
    scalar = Parameter(Tensor(3.0))
    assert cut_tensor(scalar, ()) is scalar
    with pytest.raises(ValueError, match="1 ranges do not fit a tensor of 0 dimensions"):
        cut_tensor(scalar, ((0, 1),))


def test_only_the_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reshard, "smart_slice", reshard.smart_slice)
    slice_on_host()
    whole = np.arange(32 << 20, dtype=np.float32).reshape(-1, 1024)
    ms.save_checkpoint([{"name": "x", "data": Parameter(whole)}], str(tmp_path / "x"), format="safetensors")
    process, whole_bytes, first_row = psutil.Process(), whole.nbytes, whole[1024:1025].copy()
    del whole
    before = process.memory_info().rss
    loaded = ms.load_checkpoint(str(tmp_path / "x.safetensors"), format="safetensors")["x"]
    part = reshard.smart_slice(loaded, ((1024, 2048), (0, 1024)))
    read_bytes = process.memory_info().rss - before
    np.testing.assert_array_equal(part[0].asnumpy(), first_row[0])
    assert read_bytes < whole_bytes / 4, f"{read_bytes} bytes of {whole_bytes}"
