"""Generates the assembly: a trampoline for each aclnn operator and a stub for every other function not in C++.

x86-64 System V: results are returned in rax. The address of an object returned by value is passed in rdi and returned
in rax. C++ names are mangled according to the Itanium ABI: `_ZTV` a vtable, `_ZTI`, `_ZTS`, `_ZTT`, `_ZGV` other data,
`C1` and `C2` constructors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

POINTER_BYTES = 8
SMALL_OBJECT_BYTES = 16  # a shared pointer, the only member of most classes in ge::
DATA_BYTES = 256
NUM_VTABLE_ENTRIES = (DATA_BYTES - 2 * POINTER_BYTES) // POINTER_BYTES

# Without these functions, MindSpore does not cache prepared calls.
_LEFT_OUT = {
    "InitPTACacheThreadLocal",
    "UnInitPTACacheThreadLocal",
    "PTAGetExecCache",
    "SetPTAHashKey",
    "CanUsePTACache",
}
# Functions that compute or move data must fail rather than return without doing anything.
_COMPUTES = re.compile(
    r"rt\w*Launch\w*|aclrtLaunchKernel\w*|aclmdl(?:Execute|RIExecute|Load|BundleLoad)\w*|acl(?:dvpp|vdec)(?!Destroy)\w*"
    r"|hi_mpi_\w+|Hccl(?:All|Reduce|Broadcast|Scatter|Send|Recv|Batch|Barrier|Create|CommInit)\w*|aclop(?:Compile|Execute)\w*"
    r"|rtIpc\w*|aclrtMem(?:Export|Import)\w*"
)
_DATA = ("_ZTI", "_ZTS", "_ZTT", "_ZGV")
_CONSTRUCTOR = re.compile(r"_ZN2ge\d+\w+?C[12]E")
# Objects without members are one byte wide. Clearing more overwrites what follows and causes
# errors at exit.
_REGISTRAR_CONSTRUCTOR = re.compile(r"_ZN2ge\d+\w+?RegisterC[12]E")
_OPERATOR_CONSTRUCTOR = re.compile(r"_ZN2ge8OperatorC[12]E")
_RETURNS_OBJECT = re.compile(
    r"_ZNK?2ge.*(GetShape|GetOriginShape|Nodes|DirectNode|GetInputDesc|GetOutputDesc|GetShapeRange)"
)
_RETURN_ZERO = ["xorl %eax,%eax", "xorl %edx,%edx", "ret"]
_RETURN_ONE = ["movl $1,%eax", "ret"]
_SET_FALSE = ["movb $0,(%rdx)", "xorl %eax,%eax", "ret"]
# An object of ge::Operator: a vtable whose entries can be called, then an empty shared pointer.
_MAKE_OPERATOR = [
    "xorl %ecx,%ecx",
    "movq %rcx,8(%rdi)",
    "movq %rcx,16(%rdi)",
    "leaq .Lvtable(%rip),%rcx",
    "movq %rcx,(%rdi)",
    "movq %rdi,%rax",
    "ret",
]
# eax: index of the operator. Saves the argument registers and passes them on with the caller's stack.
_TRAMPOLINE = """
.type .Lprepare,@function
.Lprepare:
 push %rbp
 mov %rsp,%rbp
 sub $128,%rsp
 mov %rdi,0(%rsp)
 mov %rsi,8(%rsp)
 mov %rdx,16(%rsp)
 mov %rcx,24(%rsp)
 mov %r8,32(%rsp)
 mov %r9,40(%rsp)
 movsd %xmm0,48(%rsp)
 movsd %xmm1,56(%rsp)
 movsd %xmm2,64(%rsp)
 movsd %xmm3,72(%rsp)
 movsd %xmm4,80(%rsp)
 movsd %xmm5,88(%rsp)
 movsd %xmm6,96(%rsp)
 movsd %xmm7,104(%rsp)
 mov %eax,%edi
 mov %rsp,%rsi
 lea 16(%rbp),%rdx
 call softnpu_prepare
 leave
 ret
"""


def render_assembly(operators: Iterable[str], symbols: Iterable[str], defined: set[str]) -> str:
    """Return the assembly of everything that the C++ files do not define.

    Args:
        operators: Names of aclnn operators, `aclnnAdd`; each gets both of its phases.
        symbols: All symbols that the plugin requires.
        defined: What the compiled C++ files define.
    """
    names = sorted(name for name in set(operators) if name not in defined)
    phases = {*names, *(f"{name}GetWorkspaceSize" for name in names)}
    code = [".text", _TRAMPOLINE, ".Lzero:", *_RETURN_ZERO]
    strings = [".section .rodata", '.Lempty: .asciz ""']
    table = ['.section .data.rel.ro,"aw"', ".balign 8", ".globl softnpu_operator_names"]
    table += [".hidden softnpu_operator_names", "softnpu_operator_names:"]
    data = [".data", ".balign 64", ".Lbuffer: .zero 4096", ".zero 16", ".Lvtable:", *_list_vtable_entries()]
    for index, name in enumerate(names):
        code += [*_declare(f"{name}GetWorkspaceSize", "function"), f"{name}GetWorkspaceSize:"]
        code += [f"movl ${index},%eax", "jmp .Lprepare"]
        code += [*_declare(name, "function"), f"{name}:", "jmp softnpu_execute"]
        strings.append(f'.Loperator{index}: .asciz "{name}"')
        table.append(f".quad .Loperator{index}")
    for index, symbol in enumerate(sorted(set(symbols) - defined - phases - _LEFT_OUT)):
        if symbol.startswith("_ZTV"):
            data += [*_declare(symbol, "object"), f".size {symbol},{DATA_BYTES}", f"{symbol}:", ".zero 16"]
            data += _list_vtable_entries()
        elif symbol.startswith(_DATA):
            data += [*_declare(symbol, "object"), f".size {symbol},{DATA_BYTES}", f"{symbol}: .zero {DATA_BYTES}"]
        else:
            strings.append(f'.Lname{index}: .asciz "{symbol}"')
            code += [*_declare(symbol, "function"), f"{symbol}:", *_choose_body(symbol, f".Lname{index}")]
    # Position-independent, and no executable stack.
    return "\n".join([*code, *strings, *table, *data, '.section .note.GNU-stack,"",@progbits']) + "\n"


def list_operators(symbols: Iterable[str], registered: Iterable[str]) -> list[str]:
    """Return the aclnn operators among the required symbols, together with those that the C++ files implement."""
    named = {name.removesuffix("GetWorkspaceSize") for name in symbols if re.match(r"aclnn[A-Z]", name)}
    return sorted((named | set(registered)) - {"aclnnInit", "aclnnFinalize"})


def _choose_body(symbol: str, name_label: str) -> list[str]:
    if _COMPUTES.fullmatch(symbol):
        return [f"leaq {name_label}(%rip),%rdi", "jmp softnpu_refuse"]
    if symbol.startswith("_ZNK2ge") and "GetString" in symbol:
        return ["leaq .Lempty(%rip),%rax", "ret"]
    if symbol == "_ZNK2ge8Operator7GetAttrEPKcRb":
        return _SET_FALSE
    if "IsExistOp" in symbol:
        return _RETURN_ONE
    if symbol.startswith("acl") and "Create" in symbol:
        return ["leaq .Lbuffer(%rip),%rax", "xorl %edx,%edx", "ret"]
    if "CreateOperator" in symbol or _OPERATOR_CONSTRUCTOR.match(symbol):
        return _MAKE_OPERATOR
    if _CONSTRUCTOR.match(symbol) and not _REGISTRAR_CONSTRUCTOR.match(symbol):
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
