"""What may be written where, once the kinds are chosen: narrowed types, and the defaults of whole sections.

`Config` says `source: Annotated[Any, Kind("data.sources")]`. Here the `Config` of the kind that the settings
name takes the place of `Any`, so that pydantic checks its keys and `--help` lists them.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

from grpo_jax.config import Kind
from grpo_jax.configure.documents import ConfigError, Key, merge, place, tree_of
from grpo_jax.configure.kinds import kind_class, names


class Schema(NamedTuple):
    """A config class narrowed to the kinds chosen, with the settings it is to hold, defaults filled in."""

    cls: type
    tree: Any


class Given(NamedTuple):
    """What the user chose: kinds by flag, and where each key was written."""

    kinds: Mapping[Key, str]
    origins: Mapping[Key, str]


def narrow(cls: type, tree: Any, given: Given, key: Key = ()) -> Schema:
    """Narrow `cls` to the kinds that `tree` and the flags choose, and fill in the defaults of whole sections.

    A section given in part keeps the other values of the field's default (`sft.optimizer` has a learning rate
    of its own). An absent section is `None`, and its flags do not exist. Raises `ConfigError` where a kind is
    not said.
    """
    if not isinstance(tree, dict):
        return Schema(cls, tree)  # `validate` says what should stand there
    fields, filled = [], dict(tree)
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        here = (*key, field.name)
        kind, section = _kind(hints[field.name]), _section(hints[field.name])
        if kind is not None:
            part = _narrow_kinds(kind, field, tree.get(field.name), given, here)
        elif section is not None:
            value = _with_default(field, tree)
            absent = value is None and type(None) in get_args(hints[field.name])
            part = _absent() if absent else narrow(section, value, given, here)
        else:
            continue
        fields.append((field.name, part.cls))
        if field.name in tree or part.tree is not None or field.default is None:
            filled[field.name] = part.tree
    return Schema(_subclass(cls, fields), filled) if fields else Schema(cls, filled)


def _absent() -> Schema:
    return Schema(Annotated[None, tyro.conf.Suppress], None)


def _subclass(cls: type, fields: list[tuple[str, Any]]) -> type:
    space = {"__doc__": cls.__doc__, "__module__": cls.__module__, "__plain__": cls}
    return dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True, namespace=space)


def _with_default(field: dataclasses.Field, tree: dict[str, Any]) -> Any:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if not dataclasses.is_dataclass(default):
        return tree.get(field.name)
    given = tree.get(field.name, {})
    return merge(tree_of(default), given) if isinstance(given, dict) else given


def _parts(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the hint alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _kind(hint: Any) -> tuple[Kind, bool] | None:
    """Return the mark of a field that holds a kind, and whether it holds several."""
    for part in _parts(hint):
        for mark in getattr(part, "__metadata__", ()):
            if isinstance(mark, Kind):
                return mark, get_origin(part.__origin__) is tuple
    return None


def _section(hint: Any) -> type | None:
    """Return the dataclass of a field that holds a section."""
    return next((part for part in _parts(hint) if dataclasses.is_dataclass(part)), None)


def may_be_absent(cls: type, key: Key) -> bool:
    """Whether a key of `cls` is a section, a kind or a list of kinds that can be left out."""
    hint = get_type_hints(cls, include_extras=True).get(key[0])
    section = _section(hint)
    if len(key) > 1:
        return section is not None and may_be_absent(section, key[1:])
    return type(None) in get_args(hint) and (section is not None or _kind(hint) is not None)


def _narrow_kinds(kind: tuple[Kind, bool], field: dataclasses.Field, value: Any, given: Given, key: Key) -> Schema:
    mark, several = kind
    if value is None and field.default is None and key not in given.kinds:
        return _absent()
    if not several:
        return _narrow_kind(mark, value, given, key)
    if not isinstance(value, list):
        raise ConfigError(f"{place(given.origins, key)} should be a list: {_example(mark, several=True)}")
    parts = [_narrow_kind(mark, item, given, (*key, str(i))) for i, item in enumerate(value)]
    cls = tuple[tuple(part.cls for part in parts)] if parts else Annotated[tuple[()], tyro.conf.Suppress]
    return Schema(cls, [part.tree for part in parts])


def _narrow_kind(mark: Kind, value: Any, given: Given, key: Key) -> Schema:
    value = {} if value is None else value
    kind = given.kinds.get(key) or (value.get("kind") if isinstance(value, dict) else None)
    if not isinstance(kind, str) or not isinstance(value, dict):
        what = "is missing" if value == {} else "has no kind" if isinstance(value, dict) else f"is {value!r}"
        raise ConfigError(f"{place(given.origins, key)} {what}; write {_example(mark)}")
    try:
        cls = kind_class(mark.package, kind)
    except ConfigError as error:
        raise ConfigError(f"{place(given.origins, (*key, 'kind'))}: {error}") from error
    return narrow(cls, {**value, "kind": kind}, given, key)


def _example(mark: Kind, several: bool = False) -> str:
    there = names(mark.package)
    example = f"{{kind: {there[0] if there else '...'}}}"
    return f"`{f'[{example}]' if several else example}`; kinds: {', '.join(there)}"


def keys(cls: Any, key: Key = ()) -> Iterator[Key]:
    """Yield every key that may be set, sections not included; absent sections have none."""
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        here, hint = (*key, field.name), hints[field.name]
        items = get_args(hint) if get_origin(hint) is tuple else ()
        if tyro.conf.Suppress in getattr(hint, "__metadata__", ()):
            continue
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, here)
        elif items and all(dataclasses.is_dataclass(item) for item in items):
            for i, item in enumerate(items):
                yield from keys(item, (*here, str(i)))
        else:
            yield here


def plain(value: Any) -> Any:
    """Return narrowed settings as instances of the plain classes and of the kinds' classes, which pickle."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if not dataclasses.is_dataclass(value):
        return value
    cls = type(value).__dict__.get("__plain__", type(value))
    return cls(**{f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)})


def draft(cls: Any, tree: Any) -> Any:
    """Return the settings as unchecked dataclasses, for tyro: what is missing is `tyro.MISSING`."""
    if dataclasses.is_dataclass(cls) and isinstance(tree, dict):
        hints = get_type_hints(cls)
        values = {
            f.name: draft(hints[f.name], tree[f.name]) if f.name in tree else _default(f)
            for f in dataclasses.fields(cls)
        }
        return cls(**values)
    if isinstance(tree, list):
        items = get_args(cls) if get_origin(cls) is tuple else ()
        return tuple(draft(items[i] if len(items) == len(tree) else Any, v) for i, v in enumerate(tree))
    return tree


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default
