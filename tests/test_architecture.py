"""The direction of dependency, read from the imports, and the grain of the code."""

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From left to right: a module imports from layers to its right, and from its own package.
LAYERS = (
    {"launch"},
    {"benchmark", "reproduce"},
    {"stages"},
    {"evaluation", "training", "reporting"},
    {"sampler", "algorithms", "rewards", "tools", "data", "corpus"},
    {"models"},
    {"sharding"},
    {"configure"},
    {"types", "config"},
    {"texts", "steps"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
KINDS = ("algorithms", "rewards", "data/sources", "data/labels", "evaluation/benchmarks", "tools")
HEAVY = {
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax",
    "transformers",
    "tensorflow_datasets",
    "datasets",
    "torch",
}
ROOMS_WITHOUT_A_NAME = {"utils", "util", "helpers", "helper", "common", "misc"}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60


def sources() -> dict[str, Path]:
    """Return every module of the package and every launcher by dotted name."""
    paths = [*ROOT.glob("grpo_jax/**/*.py"), *ROOT.glob("launch/**/*.py")]
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in paths}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


SOURCES = sources()
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}


def imported(module: str, tree: ast.AST, path: Path) -> Iterator[str]:
    """Yield the full names a tree imports, anywhere in it; `from package import module` yields the module."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in SOURCES else base


def for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def without(tree: ast.Module, *, functions: bool) -> ast.Module:
    """Return the tree without imports for types and, if asked, without what only runs in functions."""

    class Rest(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None if functions else node

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):
            return None if for_types_only(node) else self.generic_visit(node)

    return Rest().visit(ast.parse(ast.unparse(tree)))


IMPORTS = {name: set(imported(name, tree, SOURCES[name])) for name, tree in TREES.items()}


def room(module: str) -> str:
    """Return the package a module belongs to: `rewards` of `grpo_jax.rewards.score`."""
    parts = module.split(".")
    return parts[0] if parts[0] != "grpo_jax" else [*parts, ""][1]


def test_every_room_has_a_layer():
    unknown = {room(module) for module in SOURCES} - set(LAYER) - {""}
    assert not unknown, f"no layer is written down for {unknown}; add it to LAYERS, where it belongs"


def test_imports_go_to_the_right():
    wrong = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        for target in targets & SOURCES.keys()
        if room(target) and room(module) and room(target) != room(module)
        if LAYER[room(target)] <= LAYER[room(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_top_of_the_package_imports_nothing_of_it():
    assert not [name for name in IMPORTS["grpo_jax"] if name.startswith("grpo_jax.")]


def test_no_cycles():
    """Imports in functions count, imports for types do not: they are never run."""
    graph = {m: set(imported(m, without(t, functions=False), SOURCES[m])) for m, t in TREES.items()}
    order, path = {}, []  # 1: being visited, 2: done

    def visit(module):
        assert order.get(module) != 1, " -> ".join([*path[path.index(module) :], module])
        if module not in order:
            order[module] = 1
            path.append(module)
            for target in sorted(graph[module] & SOURCES.keys() - {module}):
                visit(target)
            path.pop()
            order[module] = 2

    for module in SOURCES:
        visit(module)


@pytest.mark.parametrize(
    ("forbidden", "allowed_in"),
    [("torch", ()), ("flax.linen", ("models", "sharding")), ("flax.nnx", ()), ("tensorflow", ())],
)
def test_forbidden_libraries(forbidden, allowed_in):
    def is_it(name):
        return name == forbidden or name.startswith(f"{forbidden}.")

    spelt = {
        module: {f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        for module, tree in TREES.items()
    }
    # The workers of peers run in environments of their own, and are no part of the package.
    here = [m for m in SOURCES if not m.startswith("launch.benchmark_peers")]
    wrong = [m for m in here if room(m) not in allowed_in and any(map(is_it, IMPORTS[m] | spelt[m]))]
    assert not wrong, f"{forbidden} is imported in {wrong}"


def test_names_of_modules():
    wrong = [m for m in SOURCES if ROOMS_WITHOUT_A_NAME & set(m.split("."))]
    assert not wrong, f"{wrong}: name the module after what is in it"


def kind_modules() -> list[str]:
    """Return the modules that `--help` imports: those in the kinds' folders that have a `Config`."""
    folders = [ROOT / "grpo_jax" / kind for kind in KINDS]
    inside = [m for m, path in SOURCES.items() if path.parent in folders]
    return [m for m in inside if any(isinstance(n, ast.ClassDef) and n.name == "Config" for n in TREES[m].body)]


def test_kinds_import_nothing_heavy():
    """Nor anything that does, so that `--help` answers in a second."""
    at_once = {m: set(imported(m, without(t, functions=True), SOURCES[m])) for m, t in TREES.items()}
    assert kind_modules()
    for kind in kind_modules():
        reached, front = set(), {kind}
        while front:
            reached |= front
            packages = {name.rpartition(".")[0] for name in front & SOURCES.keys()}
            front = (packages | {n for m in front & SOURCES.keys() for n in at_once[m]}) - reached - {""}
        heavy = {name for name in reached if name.split(".")[0] in HEAVY}
        assert not heavy, f"{kind} imports {heavy} at its top or through {sorted(reached & SOURCES.keys())}"


def test_kinds_have_config_and_build():
    for module in kind_modules():
        names = {node.name for node in TREES[module].body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        assert "build" in names, f"{module} has a Config but no build"


def test_length_of_files():
    lengths = {m: len(path.read_text("utf-8").splitlines()) for m, path in SOURCES.items()}
    long = {m: n for m, n in lengths.items() if n > MOST_LINES}
    assert not long, f"over {MOST_LINES} lines: {long}"


def test_length_of_functions():
    long = [
        f"{module}.{node.name}: {node.end_lineno - node.lineno + 1}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]
    assert not long, f"over {MOST_LINES_OF_A_FUNCTION} lines: {long}"


def test_no_path_of_a_machine_is_committed():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    paths = ["/" + "work/", "/" + "root/", "/" + "home/"]
    found = []
    for name in filter(None, listed):
        file = ROOT / name.decode()
        text = file.read_bytes() if file.is_file() else b""
        if b"\0" not in text:
            found += [f"{file}: {p}" for p in paths if p.encode() in text]
    assert not found, "\n".join(found)
