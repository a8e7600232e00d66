"""The file name is the registry: `algorithm: {kind: dapo}` is `grpo_jax/algorithms/dapo.py`.

A kind is a module with a class `Config` and a function `build`; one with a dot is the user's own module.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import tyro

from grpo_jax.configure.documents import ConfigError


def names(package: str) -> list[str]:
    """Return the kinds of `grpo_jax.<package>`: its modules with a `Config`, or all where none has one."""
    folder = importlib.import_module(f"grpo_jax.{package}").__path__
    modules = [m.name for m in pkgutil.iter_modules(folder) if not m.ispkg]
    sources = {name: Path(folder[0], f"{name}.py").read_text("utf-8") for name in modules}
    return [name for name in modules if re.search(r"^class Config\b", sources[name], re.MULTILINE)] or modules


def find(package: str, kind: str) -> ModuleType:
    """Import `grpo_jax.<package>.<kind>` or, with a dot in `kind`, the user's own module.

    Raises `ConfigError` listing the names there are.
    """
    dot = "." in kind
    name = kind if dot else f"grpo_jax.{package}.{kind}"
    if all(part.isidentifier() for part in kind.split(".")) and _exists(name):
        return importlib.import_module(name)
    if dot:
        raise ConfigError(f"no module {kind!r} can be imported; is its folder on PYTHONPATH?")
    raise ConfigError(
        f"no {kind!r} in grpo_jax/{package.replace('.', '/')}; there are {', '.join(names(package))}, "
        "or give the dotted name of a module of your own"
    )


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


@functools.cache
def kind_class(package: str, kind: str) -> type:
    """Return the kind's `Config` with a field `kind` added; the same class at every call, and it pickles.

    Raises `ConfigError` if the module has no `Config` or no `build`.
    """
    module = find(package, kind)
    base = getattr(module, "Config", None)
    if not (dataclasses.is_dataclass(base) and base.__dataclass_params__.frozen and hasattr(module, "build")):
        raise ConfigError(
            f"{module.__name__} is not a kind; it should have a class `Config`, decorated with "
            "`grpo_jax.config.config`, and a function `build`"
        )
    meaning = tyro.conf.arg(help=f"One of {', '.join(names(package))}, or the dotted name of a module.")
    return dataclasses.make_dataclass(
        base.__name__,
        [("kind", Annotated[Literal[kind], meaning], kind)],
        bases=(base,),
        frozen=True,
        kw_only=True,
        namespace={
            "__doc__": base.__doc__,
            "__module__": base.__module__,
            "__reduce__": lambda self: (restore, (package, kind, _values(self))),
        },
    )


def restore(package: str, kind: str, values: dict[str, Any]) -> Any:
    """Rebuild an unpickled instance of `kind_class(package, kind)`."""
    return kind_class(package, kind)(**values)


def _values(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
