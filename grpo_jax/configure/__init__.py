"""From YAML files and command line to `Config`: strict, by kinds, with errors that name place and remedy."""

from grpo_jax.configure.checks import STAGES, check, check_output
from grpo_jax.configure.command import Command, default_file, load, resolve
from grpo_jax.configure.documents import ConfigError, dump, tree_of
from grpo_jax.configure.kinds import find, kind_class, names
from grpo_jax.configure.resume import MAY_CHANGE, check_resume, difference

__all__ = [
    "MAY_CHANGE",
    "STAGES",
    "Command",
    "ConfigError",
    "check",
    "check_output",
    "check_resume",
    "default_file",
    "difference",
    "dump",
    "find",
    "kind_class",
    "load",
    "names",
    "resolve",
    "tree_of",
]
