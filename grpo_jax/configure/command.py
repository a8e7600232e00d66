"""From the words of a command line to a `Command`: YAML files merged in order, then flags.

    python launch/train.py configs/deepseekmath_7b.yaml --only rl --rl.algorithm.beta 0.02 --mesh.tensor 4

Flags are read twice: `--rl.algorithm.kind dapo` first decides what the config's fields are; then tyro, which
writes the help, reads them all into those fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

import grpo_jax
from grpo_jax.config import Config
from grpo_jax.configure.checks import STAGES, check, check_output
from grpo_jax.configure.documents import ConfigError, Document, Key, dotted, read_all, tree_of
from grpo_jax.configure.problems import known_keys, refuse, suggest, validate
from grpo_jax.configure.schema import Given, Schema, draft, keys, may_be_absent, narrow

DEFAULT = Path("configs", "tiny.yaml")
NOTHING = "null"
"""What a flag says to leave a section out, as YAML does: `--sft null`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What to run, and how."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    """The pipeline."""
    only: tuple[str, ...] = ()
    """Run these sections of the pipeline and no others: `--only sft,rl`."""
    debug: bool = False
    """Show the traceback of every error."""
    print_config: bool = False
    """Print the resolved config, with the place where each value was written, and exit."""
    coordinator: str | None = None
    """`host:port` of process 0, or `auto` on TPU pods and SLURM; None: a single process."""
    num_processes: int | None = None
    """Processes in all, with a coordinator that is not `auto`."""
    process_id: int | None = None
    """Number of this process, from 0, with a coordinator that is not `auto`."""
    origins: Annotated[Mapping[Key, str], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    """Where each value was written, `file:line` or the flag; what is not in it is a default."""


def load(argv: Sequence[str], prog: str = "launch/train.py") -> Command:
    """Resolve a command line: YAML files, merged in order (none: configs/tiny.yaml), then flags.

    Raises `ConfigError` naming file or flag, key, value and remedy, before any device is touched. `--help`
    prints every key of the chosen kinds and raises `SystemExit`.
    """
    paths = [Path(word) for word in argv if _is_yaml(word)] or [default_file()]
    words = [word for word in argv if not _is_yaml(word)]
    if words and not words[0].startswith("-"):
        raise ConfigError(f"{words[0]} is neither a .yaml file nor a flag; flags begin with --")
    return resolve(read_all(paths), words, paths, prog)


def resolve(document: Document, words: Sequence[str], paths: Sequence[Path], prog: str) -> Command:
    """Resolve settings with their origins and the flags over them; `paths` are the files that messages name.

    Raises as `load`.
    """
    words, document = _left_out(words, document)
    flags = _flags(words)
    kinds = {key[:-1]: value for key, value in flags.items() if key[-1] == "kind"}
    given = Given(kinds, document.origins | {_positive(key): f"--{dotted(key)}" for key in flags})
    schema = narrow(Config, document.tree, given)
    known = known_keys(schema)
    helping = not {("help",), ("h",)}.isdisjoint(flags)
    refuse(list(_unknown_flags(flags, schema, known, paths)))
    validate(schema, Given(kinds, document.origins), pending=known if helping else flags)
    command = _parse(schema, words, prog)
    config = validate(Schema(schema.cls, tree_of(command.config)), given)
    config = _effective(config, flags)
    only = _stages(command.only, config)
    _check_cluster(command)
    check(config)
    if not command.print_config:
        check_output(config)
    values = {f.name: getattr(command, f.name) for f in dataclasses.fields(Command)}
    return Command(**values | {"config": config, "only": only, "origins": given.origins})


def default_file() -> Path:
    """Return the tiny pipeline's file: beside the package in a clone, or below the current directory.

    Raises `ConfigError` if there is none.
    """
    here = Path.cwd()
    for folder in (Path(grpo_jax.__file__).resolve().parent.parent, here):
        if (path := folder / DEFAULT).is_file():
            return path.relative_to(here) if path.is_relative_to(here) else path
    raise ConfigError(f"no {DEFAULT} beside the package or here; give a YAML file")


def _is_yaml(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) and not word.startswith("-")


def _flags(words: Sequence[str]) -> dict[Key, str]:
    """Return the flags, dashes as underscores, each with the word after it."""
    flags = {}
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("--") or word == "-h":
            name, _, value = word.lstrip("-").partition("=")
            flags[tuple(name.replace("-", "_").split("."))] = value or after
    return flags


def _left_out(words: Sequence[str], document: Document) -> tuple[list[str], Document]:
    """Leave out the sections of which flags say so, such as `--sft null`; the other words, and what is left."""
    kept, tree, origins = [], document.tree, dict(document.origins)
    pairs = itertools.zip_longest(words, words[1:], fillvalue="")
    for word, after in pairs:
        (key, value), *_ = _flags([word, after]).items() or [((), "")]
        if not (word.startswith("--") and value == NOTHING and may_be_absent(Config, key) and _is_there(tree, key)):
            kept.append(word)
            continue
        tree, origins = _with_nothing(tree, key), origins | {key: f"--{dotted(key)}"}
        if "=" not in word:
            next(pairs, None)  # its value
    return kept, Document(tree, origins)


def _is_there(tree: Any, key: Key) -> bool:
    """Whether no section that a key is in is absent."""
    above = (key[:n] for n in range(1, len(key)))
    found = [(section, _follow(tree, section)) for section in above if may_be_absent(Config, section)]
    return all(end == section and value is not None for section, (end, value) in found)


def _with_nothing(tree: Mapping[str, Any], key: Key) -> dict[str, Any]:
    """Plain settings with nothing at a key."""
    inside = None if len(key) == 1 else _with_nothing(tree.get(key[0]) or {}, key[1:])
    return {**tree, key[0]: inside}


def _positive(key: Key) -> Key:
    """Return the setting that a flag such as `--sft.no_packing` switches off."""
    return (*key[:-1], key[-1].removeprefix("no_"))


def _unknown_flags(flags: Iterable[Key], schema: Schema, known: list[Key], paths: Sequence[Path]) -> Iterator[str]:
    """Say of each flag that is no setting whether its section is absent, or what was probably meant."""
    controls = [(field.name,) for field in dataclasses.fields(Command)]
    settable = {*keys(schema.cls), *controls, ("help",), ("h",)}
    for key in flags:
        flag = f"--{dotted(key)}"
        if key in settable or _positive(key) in settable or key[0].startswith("tyro_"):
            continue
        end, value = _follow(schema.tree, key)
        files = ", ".join(map(str, paths))
        if value is None and end != key:
            yield f"{flag}: no section {dotted(end)} in {files}; write one there, or in a YAML file after it"
        elif isinstance(value, list):
            yield f"{flag}: {dotted(end)} has {len(value)} entries in {files}; write others there"
        elif key in known:
            inside = [dotted(k) for k in known if k[:-1] == key]
            out = f", or leave it out with {flag} {NOTHING}" if may_be_absent(Config, key) else ""
            yield f"{flag} is a section; set what is in it{out}: {', '.join(f'--{name}' for name in inside)}"
        else:
            yield f"{flag}: no such setting; {suggest(key, [*known, *controls], flag='--')}"


def _follow(tree: Any, key: Key) -> tuple[Key, Any]:
    """Return how far `key` leads into the tree, and what stands there."""
    for n, name in enumerate(key):
        if isinstance(tree, dict) and name in tree:
            tree = tree[name]
        elif isinstance(tree, list) and name.isdecimal() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return key[:n], tree
    return key, tree


def _parse(schema: Schema, words: Sequence[str], prog: str) -> Any:
    """Let tyro, if there are flags, read them over the settings of the files, or print the help."""
    config = ("config", Annotated[schema.cls, tyro.conf.arg(name="")])
    cls = dataclasses.make_dataclass("Command", [config], bases=(Command,), frozen=True, kw_only=True)
    settings = cls(config=draft(schema.cls, schema.tree))
    if not words:
        return settings
    absent = [stage for stage in STAGES if schema.tree[stage] is None]
    absent += ["model.lora"] if schema.tree["model"].get("lora") is None else []
    description = "Run a pipeline: YAML files are merged in order, then come the flags." + (
        f" Sections that these files do not have, and whose flags are not listed: {', '.join(absent)}."
        if absent
        else ""
    )
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        try:
            return tyro.cli(
                tyro.conf.AvoidSubcommands[cls],
                default=settings,
                args=list(words),
                use_underscores=True,
                prog=prog,
                description=description,
            )
        except SystemExit as stop:
            if not stop.code:
                raise
    raise ConfigError(_unboxed(printed.getvalue()))


def _unboxed(text: str) -> str:
    """Return tyro's message without its frame and title, up to the first rule below it, in words.

    The frame is of box characters, or in a terminal that has none of spaces and dashes.
    """
    lines = [line.strip(" │|") for line in text.splitlines()[1:]]
    lines = list(itertools.dropwhile(_is_rule, lines))
    message = " ".join(itertools.takewhile(lambda line: not _is_rule(line), lines))
    for reason, what in (
        (r"invalid literal for int\(\) with base 10", "an integer"),
        (r"could not convert string to float", "a number"),
    ):
        message = re.sub(rf"^Error parsing (\S+): {reason}: (.*)", rf"\1 is \2; it should be {what}", message)
    return message


def _is_rule(line: str) -> bool:
    return not line or re.match(r"[─╰+-]{3}", line) is not None


def _effective(config: Config, flags: Iterable[Key]) -> Config:
    """Leave out the architecture where the weights of a directory or hub name are used.

    Raises `ConfigError` if a flag sets what would be left out.
    """
    if config.model.model_name_or_path is None or config.model.architecture is None:
        return config
    for key in flags:
        if key[:2] == ("model", "architecture"):
            raise ConfigError(
                f"--{dotted(key)} has no effect: the model is {config.model.model_name_or_path!r} "
                "(model.model_name_or_path); give one or the other"
            )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, architecture=None))


def _check_cluster(command: Command) -> None:
    """Raise `ConfigError` unless the processes of a cluster can be counted."""
    numbers = (command.num_processes, command.process_id)
    if command.coordinator in (None, "auto"):
        if numbers != (None, None):
            raise ConfigError("--num_processes and --process_id need --coordinator host:port")
    elif None in numbers or not 0 <= command.process_id < command.num_processes:
        raise ConfigError(
            f"--coordinator {command.coordinator} needs --num_processes and --process_id (from 0); they are "
            f"{command.num_processes} and {command.process_id}"
        )


def _stages(only: tuple[str, ...], config: Config) -> tuple[str, ...]:
    """Return the stages named by `--only`, in the pipeline's order; refuse what the config does not have."""
    named = [stage for part in only for stage in part.split(",") if stage]
    present = [stage for stage in STAGES if getattr(config, stage) is not None]
    for stage in named:
        if stage not in present:
            raise ConfigError(f"--only {','.join(named)}: no section {stage!r}; there are {', '.join(present)}")
    return tuple(stage for stage in present if stage in named)
