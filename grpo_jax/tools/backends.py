"""How a sandbox is started: by bubblewrap, by our own few calls to the kernel, or, if a person says so, not at all.

A backend is a function of the specification of `launch.py` that gives a command. The order of `BACKENDS` is the order
in which they are tried.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from grpo_jax.tools import syscalls
from grpo_jax.tools.results import SandboxError
from grpo_jax.tools.view import DEVICES, PLACE, SOURCE, View, own_sources

WAY_OUT = """install bubblewrap (apt-get install bubblewrap) or let this user make namespaces \
(sysctl kernel.unprivileged_userns_clone=1; user.max_user_namespaces above 0; in a container seccomp and AppArmor must \
let unshare and mount through). To run programs of a model without a sandbox, on a machine that has nothing to lose, \
say so: sandbox: unsafe"""

# The hash of strings is fixed, so that a program prints its sets in one order; a launcher's environment has no more.
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
_CODE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from grpo_jax.tools.launch import main; main()"

Backend = Callable[[View, dict[str, Any]], list[str]]


def bubblewrap(view: View, spec: dict[str, Any]) -> list[str]:
    """The command that starts `launch.py` in bubblewrap: new namespaces, a read-only view, no network, no environment.

    Raises `SandboxError` if it is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("bwrap is not installed")
    # Root needs no user namespace of bubblewrap's, and must be able to become nobody; all others do.
    root = os.geteuid() == 0
    user = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else ["--unshare-user"]
    command = [program, *user, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--hostname", "sandbox", "--die-with-parent", "--new-session", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    binds = [*view.binds, *own_sources()]
    targets = [target for _, target in binds] + list(DEVICES)
    for folder in sorted({str(parent) for target in targets for parent in PurePosixPath(target).parents} - {"/"}):
        command += ["--perms", "0755", "--dir", folder]  # else closed to nobody
    for source, target in binds:
        command += ["--ro-bind", source, target]
    for path in view.empty:
        command += ["--tmpfs", path, "--remount-ro", path]
    for device in DEVICES:
        command += ["--dev-bind", device, device]
    for folder in ("/tmp", "/dev/shm"):
        command += ["--perms", "1777", "--tmpfs", folder]
    command += ["--proc", "/proc", "--remount-ro", "/", "--chdir", "/"]
    return [*command, "--", *_python(view.python, SOURCE, spec | {"root": None, "namespaces": True})]


def namespaces(view: View, spec: dict[str, Any]) -> list[str]:
    """The command that starts `launch.py`, which makes the namespaces itself.

    Raises `SandboxError` where it has no table of system calls, or is not on Linux.
    """
    if sys.platform != "linux" or syscalls.architecture() is None:
        raise SandboxError(f"known for Linux on {', '.join(syscalls.ARCHITECTURES)} only")
    return _python(sys.executable, _package_root(), spec | {"namespaces": True})


def unsafe(view: View, spec: dict[str, Any]) -> list[str]:
    """The command without namespaces: rlimits, and what the kernel gives any process (seccomp, Landlock)."""
    here = [os.path.dirname(source) for source, target in view.binds if target.startswith(PLACE)]
    places = {"search": [*view.search[:-1], *dict.fromkeys(here)], "readable": [source for source, _ in view.binds]}
    return _python(sys.executable, _package_root(), spec | places | {"root": None, "namespaces": False})


BACKENDS: dict[str, Backend] = {"bubblewrap": bubblewrap, "namespaces": namespaces, "unsafe": unsafe}
SAFE = ("bubblewrap", "namespaces")


def candidates(name: str) -> tuple[str, ...]:
    """The backends to try for a setting: `auto` never means `unsafe`.

    Raises `SandboxError` for an unknown name.
    """
    if name == "auto":
        return SAFE
    if name not in BACKENDS:
        raise SandboxError(f"sandbox: {name!r} is none of auto, {', '.join(BACKENDS)}")
    return (name,)


def _python(program: str, place: str, spec: dict[str, Any]) -> list[str]:
    return [program, "-s", "-S", "-P", "-B", "-c", _CODE, place, json.dumps(spec)]


def _package_root() -> str:
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
