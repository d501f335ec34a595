"""Operators of the software NPU called through their C interface, on tensors over NumPy memory, without MindSpore."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
# aclDataType, and the NumPy dtype of the memory. NumPy has no bfloat16: its bits are kept as uint16.
DTYPES: dict[str, tuple[int, type]] = {
    "float32": (0, np.float32),
    "float16": (1, np.float16),
    "int8": (2, np.int8),
    "int32": (3, np.int32),
    "uint8": (4, np.uint8),
    "int16": (6, np.int16),
    "uint16": (7, np.uint16),
    "uint32": (8, np.uint32),
    "int64": (9, np.int64),
    "uint64": (10, np.uint64),
    "float64": (11, np.float64),
    "bool": (12, np.bool_),
    "bfloat16": (27, np.uint16),
}
FLOATS = ("float32", "float16", "bfloat16")
LAYOUTS = ("dense", "offset", "transposed", "gapped")
_FILLER = 7  # stands between the elements of a tensor with gaps, and has to stay


def round_to_bfloat16(values: npt.ArrayLike) -> Values:
    """Return the bits of the nearest bfloat16, ties to even, rounded from float64 at once."""
    exact = np.asarray(values, dtype=np.float64)
    magnitude = np.abs(exact)
    # Spacing of bfloat16: 8 bits of precision, at most 2^-133.
    exponent = np.frexp(np.where(magnitude == 0, 1.0, magnitude))[1]
    spacing = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.where(np.isfinite(exact), np.rint(exact / spacing) * spacing, exact)
        bits = np.atleast_1d(rounded).astype(np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16).reshape(exact.shape)


def encode(values: npt.ArrayLike, dtype: str) -> Values:
    """Return values in the memory format of a dtype, rounded once."""
    if dtype == "bfloat16":
        return round_to_bfloat16(values)
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(DTYPES[dtype][1])


def decode(memory: Values, dtype: str) -> Values:
    """Return the values of memory: float64 for floating-point dtypes, else as they are."""
    if dtype == "bfloat16":
        bits = np.atleast_1d(memory).astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64).reshape(memory.shape)
    return memory.astype(np.float64) if dtype.startswith("float") else memory


def measure_spacing(values: Values, dtype: str) -> Values:
    """Return the distance between neighbouring numbers of a floating-point dtype at each value."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bfloat16":
            exponent = np.frexp(np.where(values == 0, 1.0, np.abs(values)))[1]
            return np.asarray(np.ldexp(1.0, np.maximum(exponent - 8, -133)))
        return np.spacing(np.abs(values).astype(DTYPES[dtype][1])).astype(np.float64)


class DeviceTensor:
    """A tensor in NumPy memory: `dense`, at an `offset`, `transposed` (first dimension fastest) or `gapped`."""

    def __init__(self, values: npt.ArrayLike, dtype: str, layout: str = "dense") -> None:
        memory = encode(values, dtype)
        self.dtype, self.shape = dtype, memory.shape
        step, self.offset = (2, 1) if layout == "gapped" else (1, 3 if layout == "offset" else 0)
        order = range(memory.ndim) if layout == "transposed" else range(memory.ndim - 1, -1, -1)
        strides = [0] * memory.ndim
        for axis in order:
            strides[axis] = step
            step *= memory.shape[axis]
        self.strides = tuple(strides)
        self.storage = np.full(self.offset + max(step, 1), _FILLER, dtype=DTYPES[dtype][1])
        self._view()[...] = memory

    def _view(self) -> Values:
        start = self.storage[self.offset :]
        strides = [stride * self.storage.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(start, shape=self.shape, strides=strides)

    @property
    def values(self) -> Values:
        """The elements, decoded."""
        return decode(self._view().copy(), self.dtype)

    def is_intact_outside(self) -> bool:
        """Return whether memory between and before the elements was left alone."""
        used = np.zeros(self.storage.shape, dtype=bool)
        start = used[self.offset :]
        np.lib.stride_tricks.as_strided(start, shape=self.shape, strides=self.strides)[...] = True
        return bool((self.storage[~used] == np.array(_FILLER, dtype=self.storage.dtype)).all())


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """A scalar argument with its dtype."""

    value: float
    dtype: str = "float32"


class OperatorError(Exception):
    """What an operator reported."""


class Device:
    """The emulated libraries of one folder."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(folder / "libsoftnpu.so"))
        self._library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        for name in ("aclCreateTensor", "aclCreateScalar", "aclCreateIntArray", "aclCreateTensorList"):
            self._function(name).restype = ctypes.c_void_p
        for name in ("aclCreateTensorDesc", "aclCreateDataBuffer", "aclopCreateAttr", "NnopbaseGetExecutor"):
            self._function(name).restype = ctypes.c_void_p

    def _function(self, name: str) -> Any:
        return getattr(self._library, name)

    def list_operators(self) -> dict[str, str]:
        """Return the signature of every registered operator; `by name` for those that are called by name."""
        table = self._library.softnpu_list_operators
        table.restype = ctypes.c_char_p
        lines = table().decode().splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def run(self, name: str, *arguments: Any) -> None:
        """Run both phases of an aclnn operator.

        Raises:
            OperatorError: with the text of the device.
        """
        signature = self.list_operators()[f"aclnn{name}"]
        assert len(signature) == len(arguments), f"{name} takes {signature}"
        converted = [self._convert(code, value) for code, value in zip(signature, arguments, strict=True)]
        size, executor = ctypes.c_uint64(), ctypes.c_void_p()
        pointers = (ctypes.byref(size), ctypes.byref(executor))
        self._check(self._function(f"aclnn{name}GetWorkspaceSize")(*converted, *pointers))
        self._check(self._function(f"aclnn{name}")(None, ctypes.c_uint64(0), executor, None))

    def run_by_name(
        self,
        name: str,
        inputs: Sequence[DeviceTensor],
        outputs: Sequence[DeviceTensor],
        attributes: dict[str, int] | None = None,
    ) -> None:
        """Run an operator that is called by name, on dense tensors.

        Raises:
            OperatorError: with the text of the device.
        """
        attribute_object = ctypes.c_void_p(self._function("aclopCreateAttr")())
        for key, value in (attributes or {}).items():
            self._function("aclopSetAttrInt")(attribute_object, key.encode(), ctypes.c_int64(value))
        described = [self._describe(tensors) for tensors in (inputs, outputs)]
        (in_descriptions, in_buffers), (out_descriptions, out_buffers) = described
        self._check(
            self._function("aclopCompileAndExecuteV2")(
                name.encode(),
                len(inputs),
                in_descriptions,
                in_buffers,
                len(outputs),
                out_descriptions,
                out_buffers,
                attribute_object,
                0,
                0,
                None,
                None,
            )
        )

    def run_all_finite(self, tensor: DeviceTensor, flag: DeviceTensor) -> None:
        """Run AllFinite as MindSpore's own operator library does, with an executor filled argument by argument.

        Raises:
            OperatorError: with the text of the device.
        """
        executor = ctypes.c_void_p(self._function("NnopbaseGetExecutor")(None, b"AllFinite", None, 0, None, 0, None, 0))
        size = ctypes.c_uint64()
        self._function("NnopbaseAddInput")(executor, self._make_tensor(tensor), 0)
        self._function("NnopbaseAddOutput")(executor, self._make_tensor(flag), 0)
        self._check(self._function("NnopbaseRunForWorkspace")(executor, ctypes.byref(size)))
        self._check(self._function("NnopbaseRunWithWorkspace")(executor, None, None, ctypes.c_uint64(0)))

    def _check(self, code: int) -> None:
        if code:
            raise OperatorError(self._library.aclGetRecentErrMsg().decode())

    def _describe(self, tensors: Sequence[DeviceTensor]) -> tuple[Any, Any]:
        descriptions, buffers = (ctypes.c_void_p * len(tensors))(), (ctypes.c_void_p * len(tensors))()
        for index, tensor in enumerate(tensors):
            dims = (ctypes.c_int64 * len(tensor.shape))(*tensor.shape)
            code = DTYPES[tensor.dtype][0]
            descriptions[index] = self._function("aclCreateTensorDesc")(code, len(tensor.shape), dims, 2)
            pointer = ctypes.c_void_p(tensor.storage.ctypes.data)
            buffers[index] = self._function("aclCreateDataBuffer")(pointer, ctypes.c_size_t(tensor.storage.nbytes))
        return descriptions, buffers

    def _make_tensor(self, tensor: DeviceTensor) -> ctypes.c_void_p:
        rank = len(tensor.shape)
        dims, strides = (ctypes.c_int64 * rank)(*tensor.shape), (ctypes.c_int64 * rank)(*tensor.strides)
        storage = (ctypes.c_int64 * 1)(tensor.storage.size)
        return ctypes.c_void_p(
            self._function("aclCreateTensor")(
                dims,
                ctypes.c_uint64(rank),
                DTYPES[tensor.dtype][0],
                strides,
                ctypes.c_int64(tensor.offset),
                2,
                storage,
                ctypes.c_uint64(1),
                ctypes.c_void_p(tensor.storage.ctypes.data),
            )
        )

    def _convert(self, code: str, value: Any) -> Any:
        if value is None and code in "tsIL":
            return ctypes.c_void_p()
        if code == "t":
            return self._make_tensor(value)
        if code == "s":
            memory = encode(value.value, value.dtype).reshape(1)
            pointer = ctypes.c_void_p(memory.ctypes.data)
            return ctypes.c_void_p(self._function("aclCreateScalar")(pointer, DTYPES[value.dtype][0]))
        if code == "I":
            numbers = (ctypes.c_int64 * len(value))(*value)
            return ctypes.c_void_p(self._function("aclCreateIntArray")(numbers, ctypes.c_uint64(len(value))))
        if code == "L":
            tensors = (ctypes.c_void_p * len(value))(*(self._make_tensor(tensor).value for tensor in value))
            return ctypes.c_void_p(self._function("aclCreateTensorList")(tensors, ctypes.c_uint64(len(value))))
        kinds: dict[str, Any] = {"i": ctypes.c_int64, "w": ctypes.c_int32, "c": ctypes.c_int8, "b": ctypes.c_bool}
        if code in kinds:
            return kinds[code](value)
        return ctypes.c_double(value) if code == "d" else ctypes.c_char_p(value.encode())


def make_zeros(shape: Sequence[int], dtype: str, layout: str = "dense") -> DeviceTensor:
    """Return a tensor for a result, filled with a number that no test expects."""
    return DeviceTensor(np.full(shape, 77), dtype, layout)


def assert_rounded(tensor: DeviceTensor, expected: Values, *, slack: float = 1e-13) -> None:
    """Assert that a tensor holds values rounded once: each within half the spacing of its dtype.

    Args:
        slack: What the order of float64 arithmetic may change, relative to the largest value.
    """
    values, expected = tensor.values, np.asarray(expected, dtype=np.float64)
    assert values.shape == expected.shape
    assert tensor.is_intact_outside()
    finite = np.isfinite(decode(encode(expected, tensor.dtype), tensor.dtype))
    np.testing.assert_array_equal(values[~finite], decode(encode(expected[~finite], tensor.dtype), tensor.dtype))
    values, expected = values[finite], expected[finite]
    allowed = 0.5 * measure_spacing(expected, tensor.dtype) + slack * np.abs(expected).max(initial=0.0)
    wrong = np.abs(values - expected) > allowed
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size}: {values[wrong][:3]} instead of {expected[wrong][:3]}"
