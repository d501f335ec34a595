"""Loads YAML files with `base_config`, keeping every key's file and line for error messages.

`1e-5` is read as a number, as in YAML 1.2, whereas plain PyYAML reads it as a string.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.config.names import KeyPath, rename_keys
from ascend_cpt.errors import ConfigError

BASE_KEY = "base_config"
MAX_BASE_DEPTH = 8
MAX_BYTES = 4 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000  # aliases count on each use, because the data is expanded there


class _Loader(yaml.SafeLoader):
    """Safe loader that reads all YAML 1.2 floats."""


# Copied, so that the resolver is not added to yaml.SafeLoader.
_Loader.yaml_implicit_resolvers = {key: list(items) for key, items in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


@dataclass(frozen=True, kw_only=True)
class YamlTree:
    """A merged configuration and the location of each of its keys."""

    data: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def locate(self, path: KeyPath) -> str:
        """Return `file:line` of the key, or of its nearest parent with a location."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[:-1]
        return self.origins.get((), "configuration")


def load_yaml_tree(path: Path) -> YamlTree:
    """Load a YAML file and the files in its `base_config`.

    Later files override earlier ones, and the file itself overrides them all.

    Raises:
        ConfigError: a file is missing or invalid, a key is duplicated, or `base_config` files include each other.
    """
    return _load(path, ())


def _load(path: Path, parents: tuple[Path, ...]) -> YamlTree:
    resolved = path.resolve()
    if resolved in parents or len(parents) > MAX_BASE_DEPTH:
        chain = " -> ".join(str(item) for item in (*parents, resolved))
        raise ConfigError(f"{path}: {BASE_KEY} includes itself ({chain}); remove one of them")
    own = _load_one(path)
    bases = own.data.pop(BASE_KEY, None)
    if bases is None:
        return own
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{own.locate((BASE_KEY,))}: {BASE_KEY} must be a file name or a list of file names")
    merged = YamlTree(data={}, origins={(): str(path)})
    for name in names:
        base_path = path.parent / name
        # Unlike is_file(), isfile() is False for a name that is too long.
        if not os.path.isfile(base_path):
            raise ConfigError(f"{own.locate((BASE_KEY,))}: {BASE_KEY} names {name}, but {base_path} does not exist")
        merged = merge_trees(merged, _load(base_path, (*parents, resolved)))
    return merge_trees(merged, own)


def _load_one(path: Path) -> YamlTree:
    try:
        text = _read_text(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; give the path of a YAML file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    try:
        node, data = _parse(text)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level, got {type(data).__name__}")
    origins: dict[KeyPath, str] = {(): str(path)}
    _collect_origins(node, (), path, origins)
    rename_keys(data, origins)
    return YamlTree(data=data, origins=origins)


def read_yaml(path: Path) -> Any:
    """Return the value in a YAML file that may come from elsewhere.

    Raises:
        OSError: the file cannot be read.
        ValueError: the content is not valid. The message is one line.
    """
    return _parse(_read_text(path))[1]


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes")
    return content.decode("utf-8")


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    """Return the nodes and the value of YAML text.

    Raises:
        ValueError: not valid YAML, too deep or too large, an alias within its own anchor, or a NUL
            character or half of a surrogate pair; the message is one line.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            _check_node(node, MAX_NODES, ())
        return node, yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    except _NodeError as error:
        raise ValueError(str(error)) from None
    # For values such as the date 2001-99-99, PyYAML lets Python's own exceptions through.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None


class _NodeError(Exception):
    """A value that is valid YAML but not accepted."""


def _check_node(node: yaml.Node, num_left: int, parents: tuple[int, ...]) -> int:
    """Check a node and its descendants. Return how many more nodes the file may have."""
    line = f"line {node.start_mark.line + 1}"
    if id(node) in parents:
        raise _NodeError(f"{line}: an alias is used within its own anchor")
    if len(parents) >= MAX_DEPTH:
        raise _NodeError(f"{line}: nested deeper than {MAX_DEPTH} levels")
    num_left -= 1
    if num_left < 0:
        raise _NodeError(f"{line}: more than {MAX_NODES} values, including those repeated by aliases")
    if isinstance(node, yaml.ScalarNode):
        # Neither can be part of a path or be printed.
        if "\0" in node.value or any("\ud800" <= character <= "\udfff" for character in node.value):
            raise _NodeError(f"{line}: a string contains a NUL character or half of a surrogate pair")
        return num_left
    children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    for child in children:
        num_left = _check_node(child, num_left, (*parents, id(node)))
    return num_left


def _collect_origins(node: yaml.Node | None, prefix: KeyPath, path: Path, origins: dict[KeyPath, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[KeyPath] = set()
        for key_node, value_node in node.value:
            here = (*prefix, str(key_node.value))
            location = f"{path}:{key_node.start_mark.line + 1}"
            if here in seen:
                raise ConfigError(f"{location}: {'.'.join(here)} is set twice; remove one")
            seen.add(here)
            origins[here] = location
            _collect_origins(value_node, here, path, origins)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            here = (*prefix, str(index))
            origins[here] = f"{path}:{item.start_mark.line + 1}"
            _collect_origins(item, here, path, origins)


def merge_trees(base: YamlTree, override: YamlTree) -> YamlTree:
    """Merge `override` into `base`: mappings are merged key by key, other values are replaced."""
    return YamlTree(data=_merge(base.data, override.data), origins={**base.origins, **override.origins})


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_yaml_value(text: str) -> Any:
    """Parse `text` as a YAML value (for `--set a.b=text`).

    Raises:
        ValueError: the text is not valid YAML.
    """
    try:
        return _parse(text)[1]
    except ValueError as error:
        raise ValueError(f"not a valid value: {str(error).removeprefix('not valid YAML: ')}") from None
