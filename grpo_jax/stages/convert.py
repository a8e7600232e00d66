"""A checkpoint to a Hugging Face directory; what is written is read again and compared before it has its name.

Nothing is changed where it is read, so that a run may go on meanwhile. Only one copy of the weights is in memory.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from grpo_jax.data.encoding import TokenizerError
from grpo_jax.data.tokenizer import eos_ids, load_tokenizer
from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.hf import load_params, read_config
from grpo_jax.models.lora import attach, count_adapters, merge
from grpo_jax.models.parameters import count
from grpo_jax.models.peft import check_adapters, load_adapters
from grpo_jax.reporting.progress import Progress
from grpo_jax.stages.convert_check import Text, Values, changed, differences, evaluator, fingerprint, make_text
from grpo_jax.stages.convert_folder import check_model, copy_tokenizer, is_converted, load_model, restore_as
from grpo_jax.stages.convert_place import (
    BYTES,
    RESULT,
    finish,
    local_mesh,
    new_directory,
    require_room,
    say,
    workspace,
    writing,
)
from grpo_jax.stages.convert_source import ConvertError, Source, find_source, locate, plain
from grpo_jax.stages.policy import abstract, export_adapters, export_weights
from grpo_jax.training.manifest import CheckpointError
from grpo_jax.training.storage import entries

MERGED = 0.01  # nats: adapters beside the weights and within them differ by less, in float32


class Request(NamedTuple):
    """What `to-hf` is asked for."""

    source: str
    out: str
    dtype: str | None = None  # None: the type that the run computes in
    merge: bool = False
    max_shard_bytes: int = 5_000_000_000
    stage: str | None = None
    step: int | None = None
    model: str | None = None  # where the run's base model lies now


class Job(NamedTuple):
    """An export: what, as what, and where."""

    source: Source
    adapters: bool  # they alone are written, and their base stays where it is
    merge: bool
    dtype: str
    max_shard_bytes: int
    out: Path
    mesh: Mesh

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder of what is written."""
        decoder = self.source.decoder
        return decoder if self.adapters else dataclasses.replace(decoder, lora=None)

    @property
    def numbers(self) -> int:
        """How many are written."""
        return (count_adapters if self.adapters else count)(self.source.decoder)

    @property
    def size(self) -> int:
        """Bytes of what is written."""
        return self.numbers * BYTES[self.dtype]

    @property
    def what(self) -> str:
        """What is written, in words."""
        return "adapters" if self.adapters else "weights"


class Found(NamedTuple):
    """What the comparison has found."""

    unmerged: Values  # of adapters beside their base, or of the weights
    meant: Values  # of what was to be written
    got: Values  # of what was read back


def to_hf(request: Request) -> None:
    """Write a checkpoint as a Hugging Face directory.

    Raises `ConvertError` (and others with exit code 2) for what cannot be done, `CheckpointError` for a checkpoint
    that is not as it was written, and `MismatchError` if what was written reads back otherwise.
    """
    job = open_job(request)
    try:
        export(job)
    except CheckpointError as error:
        folder = job.source.checkpoints.directory
        checkpoint = folder / str(job.source.step)
        if checkpoint.exists():
            there = ", ".join(map(str, sorted(entries(folder)[0])))
            raise CheckpointError(f"{error}; --step takes another: there are {there}") from error
        say(f"{checkpoint}: the run has removed it meanwhile; beginning again")
        export(open_job(request))


def export(job: Job) -> None:
    """Write, read back, compare, and give the result its name if all is well."""
    source = job.source
    text = make_text(*source.texts(), source.tokenizer, source.decoder.longest)
    numbers = f"{job.numbers:,} numbers of {job.what} in {job.dtype}"
    say(f"to-hf: {source.name} to {job.out}: {numbers}, {job.mesh.size} device(s)")
    with workspace(job.out) as work:
        found, wrong = write_and_compare(job, text, work / RESULT)
        finish(work, job.out, wrong)
    tell(job, text, found)


def open_job(r: Request) -> Job:
    """Check all that can be checked before a weight is read."""
    out = new_directory(r.out, locate(r.source).root)
    source = find_source(r.source, stage=r.stage, step=r.step, model=r.model, note=say)
    adapters = source.decoder.lora is not None and not r.merge
    if r.merge and source.decoder.lora is None:
        raise ConvertError(f"--merge: {source.name} has no adapters; leave --merge out")
    if adapters and r.dtype not in (None, "float32"):
        raise ConvertError(f"--dtype {r.dtype}: adapters are written in float32, no bit lost; --dtype is for --merge")
    dtype = "float32" if adapters else r.dtype or source.dtype
    mesh = local_mesh(source.decoder)
    if source.decoder.lora:
        check_model(source.config.model.model_name_or_path, source.decoder, mesh)
    job = Job(source, adapters, r.merge, dtype, r.max_shard_bytes, out, mesh)
    require_room(out, job.size)
    return job


def write_and_compare(job: Job, text: Text, path: Path) -> tuple[Found | None, list[str]]:
    """Write the result to `path` and read it back; returns what both say of the text, and what is wrong, in lines."""
    values = evaluator(job.source.decoder, job.mesh, text)
    with Progress("read", total=2, unit="part") as progress:
        with progress.phase("read the checkpoint"):
            params = jax.block_until_ready(restore(job))
        progress.advance()
        with progress.phase("log-probabilities"):
            unmerged = meant = values(params)
            if job.merge:
                params = merged(params, job.source.decoder)
                meant = values(params)
            numbers = fingerprint(params["lora"] if job.adapters else params, job.dtype)
        progress.advance()
    with writing(path.parent, job.size):
        write(job, params, path)
    base = without_adapters(params) if job.adapters else None
    del params
    try:
        if wrong := settings_that_differ(job, path, text):
            return None, wrong
        with Progress("check", total=2, unit="part") as progress:
            with progress.phase("read what was written"):
                params = jax.block_until_ready(read_back(job, path))
            progress.advance()
            with progress.phase("compare"):
                names = changed(numbers, fingerprint(params, job.dtype))
                found = Found(unmerged, meant, values(attach(base, params)))
            progress.advance()
    except ValueError as error:  # what our own loaders refuse
        return None, [str(error)]
    return found, [f"{name}: its numbers are not those that were meant" for name in names] + gaps_too_large(job, found)


def restore(job: Job) -> Any:
    """The policy of a checkpoint on the mesh: its weights, or adapters on their base."""
    source, base = job.source, None
    if source.decoder.lora:
        base = load_model(source.config.model.model_name_or_path, source.decoder, job.mesh)
    return attach(base, restore_as(source.checkpoints, source.step, abstract(source.decoder, job.mesh)))


def merged(params: Any, decoder: DecoderConfig) -> Any:
    """Base and adapters as one; the base's memory is used again."""
    base = without_adapters(params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, base)
    return jax.jit(partial(merge, config=decoder), donate_argnums=0, out_shardings=shardings)(base, params["lora"])


def without_adapters(params: Any) -> Any:
    """The base of a policy."""
    return {name: leaf for name, leaf in params.items() if name != "lora"}


def write(job: Job, params: Any, path: Path) -> None:
    """Write a Hugging Face directory, or a PEFT one."""
    source = job.source
    if job.adapters:
        export_adapters(params["lora"], source.config, source.decoder, source.tokenizer, path)
    else:
        options = {"dtype": job.dtype, "max_shard_bytes": job.max_shard_bytes}
        export_weights(params, job.decoder, source.tokenizer, source.ends, path, **options)
    copy_tokenizer(source.tokenizer_files, path)


def read_back(job: Job, path: Path) -> Any:
    """The weights or adapters of what was written."""
    return (load_adapters if job.adapters else load_params)(path, job.decoder, job.mesh)


def settings_that_differ(job: Job, path: Path, text: Text) -> list[str]:
    """What the settings and the tokenizer that were written say otherwise than they should, a line for each."""
    source, found = job.source, []
    try:
        tokenizer = load_tokenizer(str(path), lambda note: None, prompt_format="text")
    except TokenizerError as error:
        return [f"as transformers loads it for model type {job.decoder.family}: {error}"]
    before, after = (t(text.sentence)["input_ids"] for t in (source.tokenizer, tokenizer))
    if before != after:
        found.append(f"tokenizer: {text.sentence!r} was {before} and became {after}")
    if tokenizer.chat_template != source.tokenizer.chat_template:
        found.append("tokenizer: the chat template has changed")
    if job.adapters:
        check_adapters(path, source.decoder)
        return found
    options = {"head": source.decoder.head, "experts_kernel": source.decoder.experts_kernel}
    found += [f"config.json: {line}" for line in differences(job.decoder, plain(read_config(path, **options)))]
    if (ends := set(eos_ids(tokenizer, str(path)))) != set(source.ends):
        found.append(f"ends of a completion: {sorted(source.ends)} became {sorted(ends)}")
    return found


def gaps_too_large(job: Job, found: Found) -> list[str]:
    """What is wrong with the log-probabilities: in float32 they must be the same, and merging must change little."""
    lines = []
    gap, merging = found.meant.gap(found.got), found.unmerged.gap(found.meant)
    if not gap <= (0.0 if job.dtype == "float32" else float("inf")):  # NaN too
        lines.append(f"log-probabilities: max |gap| {gap:.3g}, which should be 0")
    if job.merge and not merging <= MERGED:
        lines.append(f"merging: max |gap| of log-probabilities {merging:.3g}, which should be below {MERGED}")
    return lines


def tell(job: Job, text: Text, found: Found) -> None:
    """Say what was found, and how to see it in another program."""
    what = "scores" if job.decoder.head == "scalar" else "log-probabilities"
    where = f"on {int(found.got.counted.sum())} tokens of {text.origin}"
    rounded = "" if job.dtype == "float32" else f", rounded to {job.dtype}"
    say(
        f"{job.what}: all {job.numbers:,} numbers read back as those of the checkpoint{', merged' * job.merge}{rounded}"
    )
    say(f"{what}: max |gap| {found.meant.gap(found.got):.3g} {where}")
    if job.merge:
        say(f"merged against adapters beside their base: max |gap| {found.unmerged.gap(found.got):.3g}")
    if job.adapters and is_converted(job.source.config.model.model_name_or_path):
        say("torch needs the base as a Hugging Face directory: what from-hf was given, or what to-hf makes of it")
    elif len(text.rows[0]) > 1:
        say(f"check it in torch: {torch_line(job, text, found.got)}")
    say(f"done: {job.out}, {'a PEFT adapter directory' if job.adapters else 'a Hugging Face directory'}")


def torch_line(job: Job, text: Text, values: Values) -> str:
    """A command that computes with transformers what was computed here, and the number that it should print."""
    scalar = job.decoder.head == "scalar"
    model = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    load = f"from transformers import {model} as M, AutoTokenizer as T; "
    if job.adapters:
        load = "from peft import AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; "
    path, sentence = json.dumps(str(job.out)), json.dumps(text.sentence)  # its quotes leave the shell's alone
    inputs = f'p = {path}; i = T.from_pretrained(p)({sentence}, add_special_tokens=False, return_tensors="pt"); '
    result = "m(**i).logits.item()" if scalar else 'm(**i, labels=i["input_ids"]).loss.item()'
    code = f'{load}{inputs}m = M.from_pretrained(p, dtype="float32"); print({result})'
    number = values.first if scalar else -values.first
    return f"python -c {shlex.quote(code)} prints {number:.5f}"
