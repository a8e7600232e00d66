"""What is to be exported: a checkpoint of a run that goes on or is finished, or one made by `from-hf`; only read."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from grpo_jax.config import Config
from grpo_jax.configure import STAGES, find, kind_class
from grpo_jax.configure.documents import read
from grpo_jax.configure.problems import validate
from grpo_jax.configure.schema import Given, narrow
from grpo_jax.data.prompts import prompt_text
from grpo_jax.data.tokenizer import eos_ids, load_tokenizer
from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.hf import read_config
from grpo_jax.reporting.rollouts import read_rollouts, rollout_files
from grpo_jax.stages.convert_folder import CHECKPOINTS, is_converted, saved_leaves
from grpo_jax.stages.pipeline import TRAINING, started_stages
from grpo_jax.stages.policy import base_record, completion_ends, open_decoder, read_decoder_config
from grpo_jax.training import manifest
from grpo_jax.training.checkpoint import Checkpoints
from grpo_jax.training.manifest import CheckpointError
from grpo_jax.training.storage import entries

AT_HAND = ("arithmetic", "jsonl")  # sources that are read without a download
PROBLEMS = 64  # of a source, looked at for text
LARGE = 10**9  # bytes that take a while to compare


class ConvertError(ValueError):
    """A conversion that cannot be made as asked; the message names path or flag, and the remedy."""

    exit_code = 2


class Source(NamedTuple):
    """A checkpoint, and what is needed to make a model of its weights."""

    name: str  # for the reader: "rl, step 100"
    root: Path  # of the run or model; nothing is written below it
    checkpoints: Checkpoints
    step: int
    decoder: DecoderConfig  # computed in float32
    dtype: str  # of the files, where nothing else is asked for
    config: Config | None  # of the run
    tokenizer: Any
    tokenizer_files: Path  # the directory that they lie in
    ends: tuple[int, ...]  # ids that end a completion
    texts: Callable[[], tuple[list[str], str]]  # text of its own to compare on, and where it is from


class Place(NamedTuple):
    """Where a path on the command line leads."""

    root: Path
    stage: str | None = None
    step: int | None = None


def find_source(
    path: str, *, stage: str | None, step: int | None, model: str | None, note: Callable[[str], None]
) -> Source:
    """Find a checkpoint, and open its tokenizer and decoder; `model` says where a run's base model lies now.

    Raises `ConvertError` for what is no run and no checkpoint, and for a stage or step that is not there,
    `CheckpointError` where no checkpoint is whole.
    """
    place = locate(path)
    stage = _one(place.stage, stage, f"--stage {stage}: {path} is a checkpoint of {place.stage}")
    step = _one(place.step, step, f"--step {step}: {path} is the checkpoint of step {place.step}")
    if is_converted(place.root):
        if stage is not None or model is not None:
            raise ConvertError(f"{path}: is no run but a converted model; leave --stage and --model out")
        checkpoints = Checkpoints(place.root / CHECKPOINTS)
        return converted_source(place.root, checkpoints, choose_step(checkpoints, step, path, note))
    stage = stage or last_stage(place.root)
    if stage not in TRAINING:
        there = ", ".join(_with_checkpoints(place)) or "none"
        raise ConvertError(f"--stage {stage}: there is no such stage; checkpoints there are: {there}")
    checkpoints = Checkpoints(place.root / stage / CHECKPOINTS)
    number = choose_step(checkpoints, step, stage, note, others=_with_checkpoints(place))
    return run_source(place.root, checkpoints, number, model, note)


def locate(path: str) -> Place:
    """The run or converted model that a path is, or is in; raises `ConvertError`."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        what = "a file" if folder.exists() else "does not exist"
        raise ConvertError(f"{path}: {what}; give an output_dir of launch/train.py, or a checkpoint in one")
    step = int(folder.name) if folder.name.isdecimal() and folder.parent.name == CHECKPOINTS else None
    above = folder.parent if step is not None else folder
    above = above.parent if above.name == CHECKPOINTS else above
    if is_converted(above):
        return Place(above, None, step)
    if (above / "config.yaml").is_file():
        return Place(above, None, step)
    if (above.parent / "config.yaml").is_file() and (above / CHECKPOINTS).is_dir():
        return Place(above.parent, above.name, step)
    if (folder / "config.json").is_file():
        raise ConvertError(f"{path}: is a Hugging Face directory, not a run; from-hf makes a checkpoint of it")
    raise ConvertError(
        f"{path}: is no run (it has no config.yaml) and no checkpoint of one; give an output_dir of launch/train.py, "
        "RUN/STAGE/checkpoints/STEP in one, or a directory made by from-hf"
    )


def last_stage(run: Path) -> str:
    """The stage that a run has reached."""
    started = [stage for stage in started_stages(run) if stage in TRAINING]
    if not started:
        raise ConvertError(f"{run}: there is no checkpoint yet: no stage has been started")
    return started[-1]


def _one(found: Any, asked: Any, contradiction: str) -> Any:
    if found is not None and asked is not None and found != asked:
        raise ConvertError(f"{contradiction}; give one or the other")
    return asked if found is None else found


def _with_checkpoints(place: Place) -> list[str]:
    """ "stage (steps)" for each stage that has any."""
    found = {stage: entries(place.root / stage / CHECKPOINTS)[0] for stage in TRAINING}
    return [f"{stage} ({', '.join(map(str, reversed(s)))})" for stage, s in found.items() if s]


def choose_step(
    checkpoints: Checkpoints, step: int | None, name: str, note: Callable[[str], None], *, others: Sequence[str] = ()
) -> int:
    """The step asked for, which must be there, or the newest whose every byte is as written.

    Raises `ConvertError` where there is none, `CheckpointError` where none is whole.
    """
    folder = checkpoints.directory
    steps = sorted(entries(folder)[0])
    elsewhere = f"; checkpoints there are: {', '.join(others)}" if others else ""
    if not steps:
        raise ConvertError(f"{folder}: {name} has no checkpoint yet{elsewhere}")
    if step is not None and step not in steps:
        raise ConvertError(f"{folder}: there is no step {step}; there are {', '.join(map(str, steps))}")
    if step is not None:
        return step
    if (size := bytes_below(folder / str(steps[-1]))) > LARGE:
        note(f"{name}: comparing {size / 10**9:.1f} GB of step {steps[-1]} with their digests")
    newest = checkpoints.latest()
    if newest.step is None:
        raise CheckpointError("; ".join(newest.passed_over) + elsewhere)
    for reason in newest.passed_over:
        note(f"passed over: {reason}")
    return newest.step


def converted_source(root: Path, checkpoints: Checkpoints, step: int) -> Source:
    """What `from-hf` has made."""
    leaves = saved_leaves(checkpoints.directory / str(step))
    tokenizer = load_tokenizer(str(root), prompt_format="text")
    return Source(
        name=f"{root.name} (made by from-hf)",
        root=root,
        checkpoints=checkpoints,
        step=step,
        decoder=plain(read_config(root, head=head_of(leaves))),
        dtype="bfloat16" if leaves["embed"].startswith("bfloat16") else "float32",
        config=None,
        tokenizer=tokenizer,
        tokenizer_files=root,
        ends=eos_ids(tokenizer, str(root)),
        texts=lambda: ([], ""),
    )


def run_source(
    root: Path, checkpoints: Checkpoints, step: int, model: str | None, note: Callable[[str], None]
) -> Source:
    """A checkpoint of a run; its config.yaml says the rest."""
    settings, config = read_settings(root, model)
    tokenizer = load_tokenizer(str(root / "tokenizer"), note, prompt_format="text")
    try:
        decoder = open_decoder(config, tokenizer, read_decoder_config(config)).config
    except ModelFolderError as error:
        raise ModelFolderError(
            f"{error} (the base model of the run, model.model_name_or_path in {root / 'config.yaml'}; "
            "--model says where it lies now)"
        ) from error
    checkpoint = checkpoints.directory / str(step)
    leaves = saved_leaves(checkpoint)
    if decoder.lora:
        check_base(checkpoint, config, decoder)
    return Source(
        name=f"{checkpoints.directory.parent.name}, step {step} of {root.name}",
        root=root,
        checkpoints=checkpoints,
        step=step,
        decoder=plain(dataclasses.replace(decoder, head=head_of(leaves))),
        dtype=config.model.dtype,
        config=config,
        tokenizer=tokenizer,
        tokenizer_files=root / "tokenizer",
        ends=completion_ends(config, tokenizer),
        texts=lambda: own_text(root, settings, config, tokenizer),
    )


def check_base(checkpoint: Path, config: Config, decoder: DecoderConfig) -> None:
    """Raise `CheckpointError` if the adapters of a checkpoint were trained beside other weights than are there now."""
    then, now = manifest.read(checkpoint)["meta"].get("base"), base_record(config, decoder).get("base")
    if then != now:
        changed = [key for key in {*(then or {}), *(now or {})} if (then or {}).get(key) != (now or {}).get(key)]
        raise CheckpointError(
            f"{checkpoint}: {config.model.model_name_or_path} is not the model that its adapters were trained on "
            f"({', '.join(sorted(changed))} changed); --model says where that lies now"
        )


def head_of(leaves: Mapping[str, str]) -> str:
    """The head of a checkpoint's weights."""
    return "scalar" if "score" in leaves else "lm"


def plain(decoder: DecoderConfig) -> DecoderConfig:
    """The same decoder computed in float32: what differs between two sets of weights is then the weights."""
    return dataclasses.replace(decoder, dtype="float32", remat="none", scan_layers=True)


def read_settings(root: Path, model: str | None) -> tuple[dict[str, Any], Config]:
    """The settings of a run: as they are written, and as a config without its stages.

    What the stages name (reward functions, data) need not be here.
    """
    document = read(root / "config.yaml")
    tree = {key: value for key, value in document.tree.items() if key not in STAGES}
    if model is not None:
        tree["model"] = {**tree.get("model", {}), "model_name_or_path": model}
    given = Given({}, document.origins)
    return document.tree, validate(narrow(Config, tree, given), given)


def own_text(root: Path, settings: Mapping[str, Any], config: Config, tokenizer: Any) -> tuple[list[str], str]:
    """What the policy of a run wrote last, or problems that it learns from; none where they are not at hand."""
    files = rollout_files(root / "rl")
    for step in reversed(files):
        try:
            groups = read_rollouts(files[step])
        except (OSError, ValueError):  # removed or broken: there are others
            continue
        rows = [group["prompt"] + group["completions"][0]["text"] for group in groups]
        if rows:
            return rows, f"prompts and completions of rl, step {step}"
    return list(_problems(settings, config, tokenizer)), "problems of the run"


def _problems(settings: Mapping[str, Any], config: Config, tokenizer: Any) -> Iterator[str]:
    """Prompt and solution of the first problems of the first source that can be read at once."""
    sources = (settings[stage]["source"] for stage in TRAINING if settings.get(stage))
    source = next((source for source in sources if source["kind"] in AT_HAND), None)
    if source is None:
        return
    try:
        settings_of = pydantic.TypeAdapter(kind_class("data.sources", source["kind"]))
        problems = find("data.sources", source["kind"]).build(settings_of.validate_python(source), config.seed)
        for number in range(min(PROBLEMS, len(problems))):
            problem = problems[number]
            yield prompt_text(problem, config.prompt, tokenizer) + (problem.solution or problem.answer)
    except (OSError, ValueError):  # not at hand after all
        return


def bytes_below(folder: Path) -> int:
    """The bytes of all files below a directory in which files come and go."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total
