"""The worker's side of a user's reward function: load it, call it as TRL and Tunix do, check what it returns.

Imported by workers, so nothing heavy is imported here.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from numbers import Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple


class Request(NamedTuple):
    """One call: the function by its path, and the columns as keyword arguments, each a list of one length."""

    path: str
    columns: dict[str, list[Any] | None]
    size: int
    step: int = 0

    def row(self, index: int) -> Request:
        """Make the request for one row alone."""
        columns = {name: values and values[index : index + 1] for name, values in self.columns.items()}
        return self._replace(columns=columns, size=1)


class Answer(NamedTuple):
    """The values of a call, NaN for None; or, in `refused`, why what came back is no list of rewards."""

    values: tuple[float, ...] = ()
    nonfinite: int = 0
    refused: str | None = None


class NotFound(ValueError):
    """There is no function at the path."""


def split_path(path: str) -> tuple[str, str]:
    """Split "package.module:function", "package.module.function" or "file.py:function" before the function.

    Raises `NotFound` if it is none of these.
    """
    module, colon, name = path.rpartition(":")
    if not colon:
        module, _, name = path.rpartition(".")
    if not module or not name.isidentifier():
        raise NotFound(f"{path!r} is no path to a function; expected package.module:function or file.py:function")
    return module, name


@cache
def load(path: str) -> Callable[..., Any]:
    """Import the function at `path`; modules are also looked for in the working directory."""
    module_name, name = split_path(path)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module = _load_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    function = getattr(module, name, None)
    if not callable(function):
        there = sorted(n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_"))
        raise NotFound(f"{module_name!r} has no function {name!r}; it has {', '.join(there) or 'none'}")
    return function


def load_and_forget(path: str) -> None:
    """Load the function for later calls in this worker."""
    load(path)


def own_frames(text: str) -> str:
    """A worker's traceback without the frames of this package and of Python's import: what is left is the user's."""
    lines, shown = [], True
    for line in text.splitlines():
        if line.startswith("  File "):
            shown = not re.match(
                rf'  File "({re.escape(str(Path(__file__).parent))}|<frozen importlib|.*importlib/)', line
            )
        elif not line.startswith("    "):
            shown = True
        lines += [line] if shown else []
    return "\n".join(lines)


def _load_file(file: str) -> Any:
    path = Path(file).resolve()
    if not path.is_file():
        raise NotFound(f"no file {file!r}")
    spec = importlib.util.spec_from_file_location(f"_reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.append(str(path.parent))  # a file may import its neighbours
    spec.loader.exec_module(module)
    return module


def call(request: Request) -> Answer:
    """Call the function once on all rows of the request and check what comes back."""
    function = load(request.path)
    arguments: dict[str, Any] = {
        "trainer_state": SimpleNamespace(global_step=request.step),
        "log_extra": _ignore,
        "log_metric": _ignore,
        **request.columns,
    }
    result = function(**accepted(function, arguments))
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    return checked(result, request.size)


def accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Keep the arguments that the function has parameters for; all if it takes **kwargs or cannot be inspected."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return arguments
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    names = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    return {name: value for name, value in arguments.items() if name in names}


def checked(result: Any, size: int) -> Answer:
    """Read a list, tuple or array of `size` numbers or None; anything else is refused in words."""
    if hasattr(result, "tolist"):
        result = result.tolist()
    if not isinstance(result, list | tuple):
        return Answer(refused=f"expected a list of {size} numbers, got {_described(result)}")
    if len(result) != size:
        return Answer(refused=f"expected a list of {size} numbers, one a completion, got a list of {len(result)}")
    values, nonfinite = [], 0
    for index, element in enumerate(result):
        if hasattr(element, "item") and not isinstance(element, Real):
            element = element.item()  # an array of one number
        if element is not None and not isinstance(element, Real):
            return Answer(refused=f"expected numbers or None, got {_described(element)} at index {index}")
        value = math.nan if element is None else float(element)
        nonfinite += math.isinf(value)
        values.append(math.nan if math.isinf(value) else value)
    return Answer(tuple(values), nonfinite)


def _described(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"


def _ignore(*_: Any, **__: Any) -> None:
    """Stand in for TRL's logging callbacks."""
