"""Seeded mutators of bytes, lines and JSON values. The same generator state and input give the same output."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutate = Callable[[Random, bytes], bytes]

NUMBERS = (0, 1, -1, 2, 63, 64, 127, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63)
NUMBERS += (-(2**31), -(2**63), 2**64, 10**30, 10**400)
FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "\0", "a", ".", "..", "../x", "/etc/passwd", "a/b", "\\", "\x1b[31m", "é", "答", "\ud800", "😀" * 20)
TEXTS += (
    "x" * 300,
    "nan",
    "null",
    "-1",
    "1e999",
    "1" * 5000,
    "'",
    '"',
    "\n",
    "\r\n",
    "\ufeff",
    "{subject}",
    "x\u202ey",
)
TOKENS = (
    b"\0",
    b"\n",
    b"\r",
    b"\r\n",
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b":",
    b",",
    b"\\",
    b"\\u",
    b"\\ud800",
    b"\xff",
)
TOKENS += (b"\xef\xbb\xbf", b"NaN", b"Infinity", b"1e999", b"null", b"true", b"-", b"&a ", b"*a", b"!!", b"<<: ", b"- ")
TOKENS += (b"\x1b[2J", b"\xed\xa0\x80", b"\xc3", b"\t", b"#", b"%", b"@", b"|", b">", b"? ", b"---\n", b"0x", b"1_0")


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """Change one to four places of a text or of a binary file."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        _change_bytes(random, changed)
    return bytes(changed)


def _change_bytes(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    end = min(len(data), at + random.choice((1, 2, 4, 8, 40, 400)))
    kind = random.randrange(10)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << random.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
    elif kind == 2:
        width = random.choice((1, 2, 4, 8))
        number = random.choice(NUMBERS) % (1 << 8 * width)
        data[at : at + width] = number.to_bytes(width, random.choice(("little", "big")))
    elif kind == 3:
        del data[at:end]
    elif kind == 4:
        data[at:at] = data[at:end]
    elif kind == 5:
        data[at:at] = random.choice(TOKENS)
    elif kind == 6:
        del data[at:]
    elif kind == 7:
        other = random.randrange(len(data) + 1)
        data[at:at] = data[other : other + 20]
    elif kind == 8:
        data[at:end] = random.randbytes(end - at)
    else:
        data[at:at] = random.choice(TOKENS) * random.choice((2, 3, 70, 1000))


def mutate_json(random: Random, data: bytes) -> bytes:
    """Change one to three values of a JSON text, and sometimes its bytes."""
    if random.randrange(4) == 0:
        return mutate_bytes(random, data)
    value = json.loads(data)
    for _ in range(random.randint(1, 3)):
        value = change_value(random, value)
    return dump(random, value)


def dump(random: Random, value: Any) -> bytes:
    """Return a value as JSON text, sometimes with a repeated name, other spaces, or characters that need no escape."""
    indent = random.choice((None, None, None, 1))
    text = json.dumps(value, indent=indent, ensure_ascii=random.randrange(4) > 0).encode("utf-8", "surrogatepass")
    if random.randrange(30) == 0 and isinstance(value, dict) and value:
        name = json.dumps(random.choice(list(value)))
        text = text.rstrip()[:-1] + f", {name}: 0}}".encode("utf-8", "surrogatepass")
    return text


def change_value(random: Random, value: Any) -> Any:
    """Return a JSON value with one of its parts changed, at any depth."""
    if isinstance(value, dict | list) and value and random.randrange(6):
        key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
        copy = value.copy()
        if random.randrange(4):
            copy[key] = change_value(random, value[key])
        else:
            _change_entry(random, copy, key)
        return copy
    return make_value(random, value)


def _change_entry(random: Random, value: Any, key: Any) -> None:
    kind = random.randrange(4)
    if kind == 0:
        del value[key]
    elif kind == 1 and isinstance(value, dict):
        value[random.choice((*TEXTS, *value))] = value.pop(key)
    elif kind == 2 and isinstance(value, dict):
        value[random.choice((*TEXTS, "kind", "version"))] = make_value(random, value[key])
    elif isinstance(value, list):
        value[key:key] = [value[key]] * random.choice((1, 2, 40))
    else:
        value[key] = value[random.choice(list(value))]


def make_value(random: Random, old: Any) -> Any:
    """Return another value in place of `old`, often of the same type."""
    kind = random.randrange(12)
    if kind < 3 and isinstance(old, int | float):
        return random.choice((old + 1, old - 1, -old, old * 2, float(old) if abs(old) < 1e300 else 0.5))
    if kind < 3 and isinstance(old, str):
        at = random.randrange(len(old) + 1)
        return old[:at] + random.choice(TEXTS) + old[at:]
    if kind < 6:
        return random.choice(NUMBERS)
    if kind == 6:
        return random.choice(FLOATS)
    if kind < 9:
        return random.choice(TEXTS)
    if kind == 9:
        return random.choice((None, True, False, [], {}, [[]], {"": {}}, [None], [0], {"a": 1}))
    if kind == 10:
        return [old] if random.randrange(2) else {"x": old}
    nested: Any = old
    for _ in range(random.choice((3, 70, 300))):
        nested = [nested]
    return nested


def by_lines(mutate_line: Mutate) -> Mutate:
    """Return a mutator of one line of a text; sometimes lines are removed, repeated, swapped or joined."""

    def mutate(random: Random, data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        at = random.randrange(len(lines))
        kind = random.randrange(10)
        if kind < 6:
            lines[at] = mutate_line(random, lines[at].rstrip(b"\n")) + b"\n"
        elif kind == 6:
            del lines[at]
        elif kind == 7:
            lines.insert(random.randrange(len(lines)), lines[at])
        elif kind == 8:
            lines[at] = lines[at].rstrip(b"\r\n")
        else:
            return mutate_bytes(random, data)
        return b"".join(lines)

    return mutate


def one_of(*mutators: Mutate) -> Mutate:
    """Return a mutator that applies one of several."""
    return lambda random, data: random.choice(mutators)(random, data)


def rewrite(mutate: Mutate, complete: Callable[[bytes], bytes], share: float = 0.7) -> Mutate:
    """Return a mutator whose result `complete` mends in a share of the cases, for example its checksum."""

    def mended(random: Random, data: bytes) -> bytes:
        changed = mutate(random, data)
        return complete(changed) if random.random() < share else changed

    return mended


def choose(random: Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the valid inputs."""
    return seeds[random.randrange(len(seeds))]
