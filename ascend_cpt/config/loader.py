"""Loads a configuration from a YAML file and the command line. All problems are reported at once."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.config.names import KeyPath, rename_keys
from ascend_cpt.config.schema import CptConfig, NotNegative, Positive, Tokens
from ascend_cpt.config.sections import check_sections, nearest
from ascend_cpt.config.values import Interval, Patience, parse_count, parse_float, parse_interval, parse_patience
from ascend_cpt.config.yaml_file import YamlTree, load_yaml_tree, merge_trees, parse_yaml_value
from ascend_cpt.errors import ConfigError

COMMAND_LINE = "command line"
MINIMA = {Positive: 1, NotNegative: 0}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A checked configuration: the `cpt` section and the MindFormers sections."""

    path: Path
    cpt: CptConfig
    mindformers: dict[str, Any]
    tree: YamlTree

    @property
    def initial_weights(self) -> str | None:
        """The folder of the initial weights, `random`, or None: `cpt.init_from` or MindFormers' `load_checkpoint`."""
        return self.cpt.init_from or self.mindformers.get("load_checkpoint")

    def locate(self, *keys: str) -> str:
        """Return where a key was set: `file:line` or `command line`."""
        return self.tree.locate(keys)


def load_config(
    path: str | Path, overrides: Mapping[str, Any] | None = None, replace: tuple[str, ...] = ()
) -> RunConfig:
    """Load a configuration file, apply `overrides` (dotted key → value) and check every key and type.

    Mappings in `overrides` are merged with the file's, except that the keys in `replace` are replaced.

    Raises:
        ConfigError: lists every problem with its file, line and dotted key.
    """
    path = Path(path)
    tree = load_yaml_tree(path)
    for dotted in replace:
        _remove_key(tree.data, dotted.split("."))
    if overrides:
        tree = merge_trees(tree, _overrides_to_tree(overrides))
    if "cpt" not in tree.data:
        raise ConfigError(
            f"{path}: has no `cpt:` section; add one with seq_length, global_batch_size and sources "
            "(see docs/configuration.md)"
        )
    problems: list[str] = []
    sections = {key: value for key, value in tree.data.items() if key != "cpt"}
    check_sections(sections, tree, problems)
    cpt = _build(CptConfig, tree.data["cpt"], ("cpt",), tree, problems)
    raise_problems(path, problems)
    assert isinstance(cpt, CptConfig)
    raise_problems(path, _find_source_problems(cpt, tree))
    return RunConfig(path=path, cpt=cpt, mindformers=sections, tree=tree)


def raise_problems(path: Path, problems: list[str]) -> None:
    """Raise one ConfigError that lists all problems, if there are any."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{path}: {len(problems)} problems:\n" + "\n".join(f"  {problem}" for problem in problems))


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse `--set a.b=value` arguments into a dict of dotted key → value.

    Raises:
        ConfigError: an argument has no `=`, or its value is not valid YAML.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {assignment}: expected key=value, for example --set cpt.train_tokens=1B")
        try:
            overrides[key.strip()] = parse_yaml_value(text)
        except ValueError as error:
            raise ConfigError(f"--set {assignment}: {error}") from None
    return overrides


def _find_source_problems(cpt: CptConfig, tree: YamlTree) -> list[str]:
    """Return a problem for each source that does not have exactly one of `path` and `raw`."""
    return [
        f"{tree.locate(('cpt', 'sources', name))}: cpt.sources.{name}: give either path (packed data) or raw (text)"
        for name, source in cpt.sources.items()
        if bool(source.path) == (source.raw is not None)
    ]


def _remove_key(data: dict[str, Any], keys: list[str]) -> None:
    for key in keys[:-1]:
        data = data.get(key) or {}
    data.pop(keys[-1], None)


def _overrides_to_tree(overrides: Mapping[str, Any]) -> YamlTree:
    data: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    for dotted, value in overrides.items():
        keys = tuple(dotted.split("."))
        node = data
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{COMMAND_LINE}: {dotted} and one of its parents are both set; keep one")
        node[keys[-1]] = copy.deepcopy(value)  # dotted keys may add to it
        for length in range(1, len(keys) + 1):
            origins.setdefault(keys[:length], COMMAND_LINE)
    rename_keys(data, origins)
    return YamlTree(data=data, origins=origins)


def _build(cls: type, data: Any, path: KeyPath, tree: YamlTree, problems: list[str]) -> Any:
    """Build an instance of the dataclass `cls` from a mapping, or return None if problems were added."""
    where = f"{tree.locate(path)}: {'.'.join(path)}"
    if not isinstance(data, Mapping):
        problems.append(f"{where}: expected keys and values, got {data!r}")
        return None
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    num_problems = len(problems)
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key in fields:
            values[key] = convert_value(hints[key], value, (*path, key), tree, problems)
        else:
            location = tree.locate((*path, str(key)))
            problems.append(f"{location}: {'.'.join((*path, str(key)))}: unknown key{nearest(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            problems.append(f"{where}.{name}: missing; add it")
    return cls(**values) if len(problems) == num_problems else None


def convert_value(hint: Any, value: Any, path: KeyPath, tree: YamlTree, problems: list[str]) -> Any:
    """Convert `value`, found at `path` in `tree`, to the annotated type. Return None if a problem was added."""
    if hint is Any:
        return value
    if hint is Tokens:
        return _try(parse_count, value, path, tree, problems)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        for arg in inner[1:]:
            is_list = typing.get_origin(arg) is tuple and isinstance(value, list)
            if is_list or (dataclasses.is_dataclass(arg) and isinstance(value, Mapping)):
                return convert_value(arg, value, path, tree, problems)
        return convert_value(inner[0], value, path, tree, problems)
    if hint is Interval:
        return _try(parse_interval, value, path, tree, problems)
    if hint is Patience:
        return _try(parse_patience, value, path, tree, problems)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path, tree, problems)
    if origin is tuple:
        if isinstance(value, str) and typing.get_args(hint)[0] is str:
            value = [value]
        if not isinstance(value, (list, tuple)):
            problems.append(f"{tree.locate(path)}: {'.'.join(path)}: expected a list, got {value!r}")
            return None
        item_hint = typing.get_args(hint)[0]
        return tuple(
            convert_value(item_hint, item, (*path, str(index)), tree, problems) for index, item in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            problems.append(f"{tree.locate(path)}: {'.'.join(path)}: expected names and values, got {value!r}")
            return None
        item_hint = typing.get_args(hint)[1]
        return {
            str(key): convert_value(item_hint, item, (*path, str(key)), tree, problems) for key, item in value.items()
        }
    if hint in MINIMA:
        hint, minimum = int, MINIMA[hint]
        if isinstance(value, int) and not isinstance(value, bool) and value < minimum:
            problems.append(f"{tree.locate(path)}: {'.'.join(path)}: must be at least {minimum}, got {value}")
            return None
    if hint is float:
        return _try(parse_float, value, path, tree, problems)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        words = {int: "a whole number", str: "text", bool: "True or False"}
        problems.append(f"{tree.locate(path)}: {'.'.join(path)}: expected {words[hint]}, got {value!r}")
        return None
    return value


def _try(parse: Any, value: Any, path: KeyPath, tree: YamlTree, problems: list[str]) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        problems.append(f"{tree.locate(path)}: {'.'.join(path)}: {error}")
        return None
