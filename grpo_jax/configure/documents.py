"""Strict YAML in, plain YAML out; every value keeps the place where it was written, for errors and record.

Scalars are read as YAML 1.2 reads them: `1e-6` is a number, `no` and `on` are text, `010` is ten. A key that
is written twice is refused. Lists are replaced as a whole when files are merged, mappings key by key.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Key = tuple[str, ...]  # the way to a value: ("rl", "rewards", "0", "weight")


class ConfigError(ValueError):
    """Settings that cannot be run; the message names file or flag, key, value and the remedy."""

    exit_code = 2


class Document(NamedTuple):
    """Plain values, and for every key the place where it was written."""

    tree: dict[str, Any]
    origins: dict[Key, str]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML keeps its table on the class


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read back as text."""


_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor(_TAG + "int", lambda loader, node: int(node.value))
_Dumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))


def dotted(key: Key) -> str:
    """Return a key as it is written on the command line: `rl.rewards.0.weight`."""
    return ".".join(key)


def at(origins: Mapping[Key, str], key: Key) -> str:
    """Return "file:line: " or "flag: " of a key, or of the nearest section above it that was written."""
    written = (origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origins)
    return next((f"{origin}: " for origin in written), "")


def place(origins: Mapping[Key, str], key: Key) -> str:
    """Return "file:line: key", or the flag alone, or the key that nobody wrote."""
    flag = f"--{dotted(key)}"
    return flag if origins.get(key) == flag else at(origins, key) + dotted(key)


def read(path: Path) -> Document:
    """Read one YAML file.

    Raises `ConfigError` naming file and line if it is missing, is not YAML, or has a key twice.
    """
    try:
        loader = _Loader(path.read_text("utf-8-sig"))
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML in UTF-8: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{_neighbours(path)}") from error
    if node is None:
        return Document({}, {})
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: should be a mapping of settings, `key: value` in each line")
    origins: dict[Key, str] = {}
    return Document(_value(node, (), path, loader, origins), origins)


def _neighbours(path: Path) -> str:
    names = sorted(str(p) for p in path.parent.glob("*.y*ml")) or sorted(map(str, Path("configs").glob("*.yaml")))
    return f"; there are {', '.join(names[:8])}" if names else ""


def _value(node: yaml.Node, key: Key, path: Path, loader: _Loader, origins: dict[Key, str]) -> Any:
    """Return the plain value of a node, and note in `origins` where each key below it stands."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            origins[*key, str(i)] = _place(path, item)
        return [_value(item, (*key, str(i)), path, loader, origins) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for name, item in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise ConfigError(f"{_place(path, name)}: a key should be a word, not a list or mapping")
            here = (*key, name.value)
            if name.value in values:
                first = origins[here]
                raise ConfigError(f"{_place(path, name)}: {dotted(here)} stands at {first} too; delete one")
            origins[here] = _place(path, name)
            values[name.value] = _value(item, here, path, loader, origins)
        return values
    try:
        value = loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{_place(path, node)}: {dotted(key)}: cannot read {node.value!r}: {error}") from error
    if not isinstance(value, str | int | float | None):
        raise ConfigError(f"{_place(path, node)}: {dotted(key)}: write {node.value!r} as text, without {node.tag}")
    return value


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it: mappings key by key, all else replaced."""
    both = {k: merge(base[k], v) if _mappings(base.get(k), v) else v for k, v in over.items()}
    return {**base, **both}


def _mappings(a: Any, b: Any) -> bool:
    return isinstance(a, Mapping) and isinstance(b, Mapping)


def read_all(paths: list[Path]) -> Document:
    """Read YAML files and merge them in order, the later ones over the earlier."""
    tree, origins = {}, {}
    for document in map(read, paths):
        tree = merge(tree, document.tree)
        whole = set(_leaves(document.tree, ()))
        kept = {k: v for k, v in origins.items() if not any(k[:n] in whole for n in range(len(k)))}
        origins = {**kept, **document.origins}
    return Document(tree, origins)


def _leaves(tree: Mapping[str, Any], key: Key) -> Iterator[Key]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*key, name))
        else:
            yield (*key, name)


def tree_of(value: Any) -> Any:
    """Return settings as plain mappings, lists and scalars; `kind` comes first in its section."""
    if dataclasses.is_dataclass(value):
        tree = {f.name: tree_of(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": tree.pop("kind"), **tree} if "kind" in tree else tree
    if isinstance(value, Mapping):
        return {str(k): tree_of(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [tree_of(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def dump(config: Any, origins: Mapping[Key, str] | None = None) -> str:
    """Return settings as YAML that loads to an equal config; `origins` become comments."""
    return "".join(f"{line}\n" for line in _lines(tree_of(config), (), origins or {}))


def _lines(tree: Mapping[str, Any] | list, key: Key, origins: Mapping[Key, str]) -> Iterator[str]:
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for name, value in pairs:
        here = (*key, str(name))
        lead = f"{_scalar(name)}:" if isinstance(tree, Mapping) else "-"
        nested = isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
        if not value or not nested:
            origin = origins.get(here)
            yield f"{lead} {_scalar(value)}" + (f"  # {origin}" if origin else "")
        elif lead == "-":
            first, *rest = _lines(value, here, origins)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
        else:
            yield lead
            yield from (f"  {line}" for line in _lines(value, here, origins))


def _scalar(value: Any) -> str:
    style = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        default_style=style,
        width=float("inf"),
        allow_unicode=True,
    )
    return text.removesuffix("\n...\n").strip()
