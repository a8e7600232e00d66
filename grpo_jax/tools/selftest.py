"""Tries known attacks on a sandbox before it is trusted, and says of each whether it was contained."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import NamedTuple

from grpo_jax.tools import attacks
from grpo_jax.tools.results import Limits, ToolResult

CONTAINED = "contained"
LIMITS = Limits(wall=5.0, cpu=5.0, memory=256 << 20, disk=32 << 20)
LEAVE = "open('/tmp/left', 'w').write('x')\nopen('/dev/shm/left', 'w').write('x')\nimport sympy\nsympy.left = 1"
LOOK = (
    "import os, sympy\nprint([p for p in ('/tmp/left', '/dev/shm/left') if os.path.exists(p)], hasattr(sympy, 'left'))"
)
CONTROLS = {
    "sympy": ("import sympy\nx = sympy.symbols('x')\nprint(sympy.solve(x**2 - 5*x + 6, x))", "[2, 3]"),
    "numpy": ("import numpy as np\nnp.linalg.solve([[2., 0.], [0., 4.]], [1., 2.])", "[0.5 0.5]"),
}

Submit = Callable[..., "Future[ToolResult]"]


class Host(NamedTuple):
    """What the attacks go for."""

    secret: str
    content: str
    server: socket.socket
    abstract: socket.socket

    def places(self) -> dict[str, str]:
        """The words of the attacks, and what stands for them."""
        name = self.abstract.getsockname().decode("ascii").lstrip("\0")
        port = self.server.getsockname()[1]
        return {"SECRET": self.secret, "PORT": str(port), "ABSTRACT": name, "PARENT": str(os.getpid())}

    def harm(self) -> str | None:
        """What has happened to it; None: nothing."""
        with open(self.secret, encoding="ascii") as file:
            if file.read() != self.content:
                return "a host file was changed"
        for server in (self.server, self.abstract):
            with contextlib.suppress(BlockingIOError):
                server.accept()[0].close()
                return "a connection came out"
        return None


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """A file with a secret and two servers, for as long as the attacks last."""
    with (
        tempfile.NamedTemporaryFile("w", encoding="ascii", prefix="grpo-jax-secret-") as file,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        content = secrets.token_hex(16)
        file.write(content)
        file.flush()
        os.chmod(file.name, 0o666)
        abstract.bind("\0grpo-jax-" + secrets.token_hex(8))
        abstract.listen()
        for each in (server, abstract):
            each.setblocking(False)
        yield Host(file.name, content, server, abstract)


def attack(submit: Submit, workers: int, names: tuple[str, ...] = tuple(attacks.QUICK)) -> dict[str, str]:
    """Run attacks and controls, and say of each `contained`, or what came through.

    Args:
        submit: of a sandbox.
        workers: that it has.
        names: the attacks; by default those that end by themselves.
    """
    with host() as target:
        places = target.places()
        futures = {name: submit(attacks.program(name, places), LIMITS) for name in names}
        found = {name: judged(future.result(), target.content) for name, future in futures.items()}
        found["harms the host"] = target.harm() or CONTAINED
    found["leaves something behind"] = _left(submit, workers)
    for name, (code, wanted) in CONTROLS.items():
        result = submit(code, LIMITS).result()
        works = result.status == "ok" and result.text == wanted
        found[f"control: {name}"] = CONTAINED if works else f"{result.status}: {result.text[-200:]}"
    return found


def judged(result: ToolResult, secret: str) -> str:
    """Whether an attack was contained, from its result."""
    if "ESCAPED" in result.text or secret in result.text:
        return f"came through: {result.text[-200:]}"
    if result.status == "refused":
        return f"was not run: {result.text[-200:]}"
    if "the sandbox" in result.text and result.status == "killed":
        return f"took the sandbox with it: {result.text[-200:]}"
    return CONTAINED


def _left(submit: Submit, workers: int) -> str:
    """Whether a program sees what one before it left, whichever worker ran that."""
    for future in [submit(LEAVE, LIMITS) for _ in range(workers)]:
        future.result()  # all of them are over before any looks
    seen = [submit(LOOK, LIMITS) for _ in range(2 * workers)]  # so that those that left something get one
    texts = [future.result().text for future in seen]
    return CONTAINED if set(texts) == {"[] False"} else f"came through: {texts}"
