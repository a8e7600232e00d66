"""What is wrong with settings: where it stands, the key, the value, and what would be right."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Collection
from typing import Any

import pydantic

from grpo_jax.configure.documents import ConfigError, Key, at, dotted, place
from grpo_jax.configure.schema import Given, Schema, keys, plain

SHOWN = 6  # problems named in one message


@functools.lru_cache(maxsize=4)
def _adapter(cls: type) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(cls)


def validate(schema: Schema, given: Given, pending: Collection[Key] = ()) -> Any | None:
    """Return the settings as frozen dataclasses, or None if they lack but `pending` keys.

    Types are strict, as in JSON: no text for a number, no fraction for an integer, no truth value for either.
    Raises `ConfigError` with a line for each of the first problems.
    """
    try:
        return plain(_adapter(schema.cls).validate_json(json.dumps(schema.tree), strict=True))
    except pydantic.ValidationError as error:
        known = known_keys(schema)
        found = [e for e in error.errors() if e["type"] != "missing" or _key(e) not in pending]
        refuse([_describe(e, schema, given, known) for e in found])
        return None


def refuse(found: list[str]) -> None:
    """Raise `ConfigError` with the first few problems, if there are any."""
    if found:
        more = [f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise ConfigError("\n".join(found[:SHOWN] + more))


def known_keys(schema: Schema) -> list[Key]:
    """Return every key there is, sections included, in the order of the config."""
    leaves = [*keys(schema.cls), *((field.name,) for field in dataclasses.fields(schema.cls))]
    return list(dict.fromkeys(key[:n] for key in leaves for n in range(1, len(key) + 1)))


def nearest(key: Key, known: Collection[Key]) -> Key | None:
    """Return the key probably meant: a neighbour spelt alike, or the same name, or one alike, elsewhere."""
    beside = [k for k in known if k[:-1] == key[:-1]]
    same = [k for k in known if k[-1] == key[-1]]
    found = _alike(key, beside) or same or _alike(key, known)
    return max(found, key=lambda k: sum(a == b for a, b in zip(k, key, strict=False)), default=None)


def _alike(key: Key, known: Collection[Key]) -> list[Key]:
    names = difflib.get_close_matches(key[-1], {k[-1] for k in known}, 1, 0.7)
    return [k for k in known if k[-1] in names]


def suggest(key: Key, known: Collection[Key], *, flag: str = "") -> str:
    """Return "did you mean ...?", or the names there are in the key's section."""
    if (meant := nearest(key, known)) is not None:
        return f"did you mean {flag}{dotted(meant)}?"
    beside = [k[-1] for k in known if k[:-1] == key[:-1]]
    return f"there are {', '.join(beside)}" if beside else "--help lists all"


def _key(error: Any) -> Key:
    return tuple(map(str, error["loc"]))


def _describe(error: Any, schema: Schema, given: Given, known: list[Key]) -> str:
    key = _key(error)
    if error["type"] == "missing":
        return f"{at(given.origins, key[:-1])}{dotted(key)} is missing"
    if error["type"] == "unexpected_keyword_argument":
        kind = _kind(key, schema, given)
        return f"{place(given.origins, key)}: no such setting{kind}; {suggest(key, known)}"
    while key and not _has(schema.tree, key):  # pydantic appends the member of a union
        key = key[:-1]
    message = error["msg"].removeprefix("Input ").replace("an object", "a section").replace("array", "list")
    if error["type"] == "bool_type":
        message = "should be true or false"
    value = json.dumps(error["input"], ensure_ascii=False)
    value = value if len(value) <= 80 else f"{value[:77]}..."
    return f"{place(given.origins, key)} is {value}; it {message}"


def _kind(key: Key, schema: Schema, given: Given) -> str:
    """Name the kind that does not know the key and, where a flag or another file chose it, the remedy."""
    section, chosen = _get(schema.tree, key[:-1]), (*key[:-1], "kind")
    if "kind" not in section:
        return ""
    chooser = f"--{dotted(chosen)}" if key[:-1] in given.kinds else given.origins.get(chosen, "")
    elsewhere = chooser.partition(":")[0] != given.origins.get(key, "").partition(":")[0]
    return f" of kind {section['kind']}" + (f", which {chooser} chose; delete it" if elsewhere else "")


def _has(tree: Any, key: Key) -> bool:
    try:
        _get(tree, key)
    except (KeyError, IndexError, TypeError, ValueError):
        return False
    return True


def _get(tree: Any, key: Key) -> Any:
    for name in key:
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    return tree
