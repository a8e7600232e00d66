"""What a program sees of this machine: Python, its standard library, a few packages; read-only, and nothing else."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from grpo_jax.tools.results import SandboxError

PACKAGES = ("numpy", "sympy", "mpmath", "gmpy2", "scipy")  # shown where they are installed
NEEDED = ("numpy", "sympy")
PLACE = "/packages"  # where they stand in the sandbox
SOURCE = "/sandbox"  # and these modules, where they must be read from inside
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


class View(NamedTuple):
    """Files and directories, by their place here and in the sandbox."""

    binds: list[tuple[str, str]]
    empty: list[str]  # directories inside `binds` that are shown empty
    search: list[str]  # sys.path there
    python: str  # the interpreter


def view(packages: tuple[str, ...] = PACKAGES) -> View:
    """The view for this interpreter.

    Raises `SandboxError` if a needed package is not installed.
    """
    python = os.path.realpath(sys.executable)
    library = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    library = list(dict.fromkeys(path for path in library if os.path.isdir(path)))
    dynamic = [os.path.realpath(path) for path in sys.path if path.endswith("lib-dynload")]
    sites = [f"{path}/{name}" for path in library for name in ("site-packages", "dist-packages")]
    binds = [(path, path) for path in [python, *library, *_shared_libraries()]]
    binds += [(path, f"{PLACE}/{os.path.basename(path)}") for path in _folders(packages)]
    return View(
        list(dict.fromkeys(binds)), [path for path in sites if os.path.isdir(path)], [*library, *dynamic, PLACE], python
    )


def own_sources() -> list[tuple[str, str]]:
    """These modules, for an interpreter that starts inside."""
    tools = Path(__file__).resolve().parent
    here = [tools.parent / "__init__.py", tools]
    return [(str(path), f"{SOURCE}/{path.relative_to(tools.parent.parent)}") for path in here]


def _folders(packages: tuple[str, ...]) -> list[str]:
    """The folders of packages, with the libraries that wheels put beside them."""
    found = []
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            if name in NEEDED:
                raise SandboxError(f"the Python tool needs {name}, which is not installed: pip install {name}")
            continue
        folder = Path(next(iter(spec.submodule_search_locations))).resolve()
        beside = folder.parent / f"{name}.libs"
        found += [str(folder), *([str(beside)] if beside.is_dir() else [])]
    return found


def _shared_libraries() -> list[str]:
    """Where the interpreter's own library and those of the system are."""
    own = Path(sysconfig.get_config_var("LIBDIR") or "/") / (sysconfig.get_config_var("INSTSONAME") or "-")
    machine = sysconfig.get_config_var("MULTIARCH") or "-"
    narrow = [f"/usr/lib/{machine}", f"/lib/{machine}"]
    wide = ["/usr/lib64", "/usr/lib", "/lib"]
    folders = [*(narrow if os.path.isdir(narrow[0]) else wide), "/lib64", "/etc/ld.so.cache"]
    return [path for path in [str(own), *folders] if os.path.exists(path)]
