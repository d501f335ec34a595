"""Generates the assembly of the stub library: a function or a data object for every symbol, chosen by its name.

x86-64 System V ABI: results are returned in rax; the address of an object returned by value is passed in rdi and
returned in rax. Names are mangled by the Itanium C++ ABI: `_ZTV` is a vtable, `_ZTI`, `_ZTS`, `_ZTT` and `_ZGV` are
other data, `C1` and `C2` constructors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SOC_NAME = "Ascend910B1"
POINTER_BYTES = 8
SMALL_OBJECT_BYTES = 16  # a shared pointer, the only member of most ge:: classes
DATA_BYTES = 256
NUM_VTABLE_ENTRIES = (DATA_BYTES - 2 * POINTER_BYTES) // POINTER_BYTES

_DATA = ("_ZTI", "_ZTS", "_ZTT", "_ZGV")
_CONSTRUCTOR = re.compile(r"_ZN2ge\d+\w+?C[12]E")
_OPERATOR_CONSTRUCTOR = re.compile(r"_ZN2ge8OperatorC[12]E")
_RETURNS_OBJECT = re.compile(
    r"_ZNK?2ge.*(GetShape|GetOriginShape|Nodes|DirectNode|GetInputDesc|GetOutputDesc|GetShapeRange)"
)
_RETURN_ZERO = ["xorl %eax,%eax", "xorl %edx,%edx", "ret"]
# A ge::Operator: a vtable with callable entries, then an empty shared pointer.
_MAKE_OPERATOR = [
    "xorl %ecx,%ecx",
    "movq %rcx,8(%rdi)",
    "movq %rcx,16(%rdi)",
    "leaq .Lvtable(%rip),%rcx",
    "movq %rcx,(%rdi)",
    "movq %rdi,%rax",
    "ret",
]
_HEAD = [
    ".section .rodata",
    f'.Lsoc: .asciz "{SOC_NAME}"',
    '.Lempty: .asciz ""',
    ".text",
    ".Lzero:",
    *_RETURN_ZERO,
]


def render_assembly(symbols: Iterable[str]) -> str:
    """Return the source of a library that defines all of `symbols`."""
    code: list[str] = []
    data = [".data", ".balign 64", ".Lbuffer: .zero 4096", ".zero 16", ".Lvtable:", *_list_vtable_entries()]
    for symbol in symbols:
        if symbol.startswith("_ZTV"):
            data += [*_declare(symbol, "object"), f".size {symbol},{DATA_BYTES}", f"{symbol}:", ".zero 16"]
            data += _list_vtable_entries()
        elif symbol.startswith(_DATA):
            data += [*_declare(symbol, "object"), f".size {symbol},{DATA_BYTES}", f"{symbol}: .zero {DATA_BYTES}"]
        else:
            code += [*_declare(symbol, "function"), f"{symbol}:", *_choose_body(symbol)]
    return "\n".join([*_HEAD, *code, '.section .note.GNU-stack,"",@progbits', *data]) + "\n"


def _choose_body(symbol: str) -> list[str]:
    if symbol == "aclrtGetSocName":
        return ["leaq .Lsoc(%rip),%rax", "ret"]
    if symbol.startswith("_ZNK2ge") and "GetString" in symbol:
        return ["leaq .Lempty(%rip),%rax", "ret"]
    if symbol.startswith("acl") and "Create" in symbol:
        return ["leaq .Lbuffer(%rip),%rax", "xorl %edx,%edx", "ret"]
    if "CreateOperator" in symbol or _OPERATOR_CONSTRUCTOR.match(symbol):
        return _MAKE_OPERATOR
    if _CONSTRUCTOR.match(symbol):
        return [*_clear_object(), "xorl %eax,%eax", "ret"]
    if _RETURNS_OBJECT.match(symbol):
        return [*_clear_object(), "movq %rdi,%rax", "ret"]
    return _RETURN_ZERO


def _clear_object() -> list[str]:
    stores = [f"movq %rcx,{offset}(%rdi)" for offset in range(0, SMALL_OBJECT_BYTES, POINTER_BYTES)]
    return ["xorl %ecx,%ecx", *stores]


def _declare(symbol: str, kind: str) -> list[str]:
    return [f".globl {symbol}", f".type {symbol},@{kind}"]


def _list_vtable_entries() -> list[str]:
    return [f".rept {NUM_VTABLE_ENTRIES}", ".quad .Lzero", ".endr"]
