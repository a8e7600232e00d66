"""What every stage of a run shares: the settings, the mesh, the model and its tokenizer, the grading workers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from jax.sharding import Mesh

from grpo_jax.config import Config, RLConfig, SamplingConfig, SFTConfig
from grpo_jax.configure import ConfigError, tree_of
from grpo_jax.data.encoding import encode_answer, unmarked
from grpo_jax.data.prompts import encode_prompts, prompt_messages, prompt_text, uses_chat
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.lora import attach
from grpo_jax.reporting.files import is_primary, write_atomically
from grpo_jax.reporting.ledger import Ledger
from grpo_jax.reporting.metrics import MetricsWriter
from grpo_jax.rewards.reward import Encoding, RewardError
from grpo_jax.rewards.workers import Workers
from grpo_jax.sampler.draw import Distribution, distribution_of
from grpo_jax.sampler.sample import Sampling
from grpo_jax.sampler.stop import cut_at_stop
from grpo_jax.sharding import ShardingError, agree, batch_shards, global_to_host, host_to_global, named
from grpo_jax.stages.best import best_step
from grpo_jax.stages.policy import frozen_params
from grpo_jax.stages.rounds import Tool
from grpo_jax.training.checkpoint import Checkpoints, Saved
from grpo_jax.training.health import RunHealthError
from grpo_jax.training.interrupt import Interruption
from grpo_jax.training.manifest import CheckpointError
from grpo_jax.types import Problem, Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a pipeline."""

    config: Config
    directory: Path
    mesh: Mesh
    model: Decoder
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    workers: Workers
    interruption: Interruption
    base: dict[str, Any]  # what checkpoints keep of the base of adapters, and how these are added; {} without
    tools: dict[str, Tool] = dataclasses.field(default_factory=dict)  # by the section that has one
    whole: Run | None = None  # that this one is a part of

    @functools.cached_property
    def frozen(self) -> Any | None:
        """The base of the adapters, one for all stages, policies and references, loaded when it is first needed."""
        if self.whole is not None:
            return self.whole.frozen
        return frozen_params(self.config, self.model.config, self.mesh)

    @functools.cached_property
    def ledger(self) -> Ledger:
        """What each stage does and takes."""
        return Ledger(self.directory, self.config, self.mesh.size)

    def part(self, config: Config, directory: Path) -> Run:
        """The run as stages see it that are a part of one of its own; what is frozen lies on the devices once."""
        return dataclasses.replace(self, config=config, directory=directory, whole=self)

    def policy(self, trainable: Any) -> Any:
        """The parameters that sampler and scoring take: what is trained, on what is frozen."""
        return attach(self.frozen, trainable)

    @property
    def name(self) -> str:
        """What trackers call the run."""
        return self.directory.name

    @property
    def conversational(self) -> bool:
        """Whether prompts are conversations, as reward functions written for TRL want to know."""
        return uses_chat(Problem(question="", answer=""), self.config.prompt, self.tokenizer)

    def sampling(
        self,
        config: SamplingConfig,
        num_generations: int,
        *,
        greedy: bool = False,
        decode_rows: int = 0,
        weights: Literal["same", "int8"] = "same",
    ) -> Sampling:
        """The sampler's static settings for a section's `sampling`."""
        c = config
        distribution = distribution_of(c)
        return Sampling(
            distribution=Distribution(temperature=0.0) if greedy else distribution,
            num_generations=num_generations,
            max_completion_length=c.max_completion_length,
            eos_ids=self.eos_ids,
            pad_id=self.pad_id,
            decode_rows=decode_rows,
            weights=weights,
            cache_block=c.cache_block,
        )

    def prompts(self, problems: Sequence[Problem], indices: np.ndarray) -> Prompts:
        """The prompts of some problems on the mesh, split over the batch axis."""
        return self.place(encode_prompts(problems, indices, self.config.prompt, self.tokenizer))

    def prompt_as_seen(self, problem: Problem) -> Any:
        """The prompt as reward functions get it: the text, or the messages of a conversation."""
        if uses_chat(problem, self.config.prompt, self.tokenizer):
            messages = prompt_messages(problem, self.config.prompt, self.tokenizer)
            return [message | {"content": unmarked(message["content"])} for message in messages]
        return prompt_text(problem, self.config.prompt, self.tokenizer)

    def encoding(self, longest: int) -> Encoding:
        """How a policy that continues a prompt would write an answer, for rewards that compare tokens."""
        decode = functools.partial(self.tokenizer.decode, skip_special_tokens=True)
        return Encoding(functools.partial(encode_answer, self.tokenizer), self.eos_ids, longest, decode)

    def place(self, tree: Any) -> Any:
        """Lay host arrays on the mesh, their first axis over the batch shards."""
        return host_to_global(tree, named(self.mesh, "batch"))

    def check_batch(self, key: str, size: int) -> None:
        """Refuse a batch that the mesh does not divide, before anything is compiled."""
        shards = batch_shards(self.mesh)
        if size % shards:
            lower, upper = size // shards * shards, (size // shards + 1) * shards
            raise ShardingError(
                f"{key}: {size} rows cannot be split over {shards} batch shards (mesh data "
                f"{self.mesh.shape['data']} x fsdp {self.mesh.shape['fsdp']}); choose "
                f"{f'{lower} or ' if lower else ''}{upper}, or another mesh"
            )

    def check_length(self, key: str, length: int) -> None:
        """Refuse rows longer than the model was made for: beyond it, positions mean nothing to it."""
        if length > self.model.config.longest:
            raise ConfigError(
                f"{key}: {length} tokens are more than the {self.model.config.longest} positions of the model; lower it"
            )

    def end_at_stop(self, rollout: Rollout, stop: Sequence[str]) -> Rollout:
        """Apply stop strings, which need text, and lay the changed rollout on the mesh again."""
        return self.place(self.cut_at_stop(global_to_host(rollout), stop)) if stop else rollout

    def cut_at_stop(self, rollout: Rollout, stop: Sequence[str]) -> Rollout:
        """A rollout of host arrays, its completions ended at the stop strings."""
        return cut_at_stop(rollout, self.tokenizer.decode, stop, pad_id=self.pad_id)

    def texts(self, rollout: Rollout) -> list[str]:
        """The text of each completion [B], without special tokens; what a tool wrote is a part of it."""
        tokens, segments = global_to_host((rollout.completions.tokens, rollout.completions.segments))
        return self.decode([row[there > 0].tolist() for row, there in zip(tokens, segments, strict=True)])

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of tokens, without special tokens."""
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def note(self, message: str) -> None:
        """Tell the user something once; only process 0 speaks."""
        if is_primary():
            print(message, flush=True)

    def stage(self, name: str) -> Path:
        """The directory of a stage."""
        return self.directory / name

    def metrics_log(self, stage: str) -> MetricsWriter:
        """Where a stage's numbers go."""
        return MetricsWriter(self.stage(stage), self.config.report_to, f"{self.name}/{stage}", tree_of(self.config))

    def checkpoints(self, stage: str, save_total_limit: int | None = None) -> Checkpoints:
        """A stage's checkpoints, for writing with a limit and for reading without; what is on disk is announced."""

        def announce(saved: Saved) -> None:
            self.note(f"{stage}: step {saved.step} is saved ({saved.seconds:.1f} s)")
            self.ledger.saved(stage, saved.step)

        return Checkpoints(
            self.stage(stage) / "checkpoints",
            save_total_limit,
            announce=announce,
            spare=lambda steps: self.best_step(stage, steps),
        )

    def best_step(self, stage: str, steps: Collection[int] | None = None) -> int | None:
        """The step of a stage with the largest `best_metric`, if the stage has one, of these steps or of all."""
        metric = getattr(getattr(self.config, stage), "best_metric", None)
        best = best_step(self.stage(stage), metric, steps) if metric else None
        return best.step if best else None

    def restore(
        self, checkpoints: Checkpoints, abstract: Callable[[int], Any], data: dict[str, Any]
    ) -> tuple[Any, int]:
        """The newest good checkpoint, of the form `abstract(step)`, and its step; or None and 0.

        Says what was passed over and why, and opens the stage's account in the ledger.

        Raises `CheckpointError` if the problems are not those of the checkpoint, as what follows would be others, and
        what `check_base` raises.
        """
        newest, stage = checkpoints.latest(), checkpoints.directory.parent.name
        for reason in newest.passed_over:
            self.note(f"passed over: {reason}")
        if newest.step is None:
            self.ledger.begin(stage, data)
            return None, 0
        meta = checkpoints.meta(newest.step)
        saved = meta["data"]
        if saved != data:
            then, now = (f"{d['problems']} with fingerprint {d['fingerprint']}" for d in (saved, data))
            raise CheckpointError(
                f"{checkpoints.directory / str(newest.step)}: the problems have changed since it was saved: "
                f"{then} then, {now} now; bring them back, or start in another output_dir"
            )
        self.check_base(checkpoints, newest.step)
        tree, _ = checkpoints.restore(newest.step, abstract(newest.step))
        self.ledger.begin(stage, data, meta.get("ledger"), step=newest.step)
        self.note(f"resumed at step {newest.step} of {stage}")
        return tree, newest.step

    def check_base(self, checkpoints: Checkpoints, step: int) -> None:
        """Raise `CheckpointError` if the adapters of a checkpoint were trained on another base, or added otherwise."""
        saved = checkpoints.meta(step)
        for key, what in (("base", "the model that the adapters were trained on"), ("lora", "model.lora")):
            then, now = saved.get(key) or {}, self.base.get(key) or {}
            if then != now:
                raise CheckpointError(
                    f"{checkpoints.directory / str(step)}: {what} was {_values(then, now)} when it was saved and is "
                    f"{_values(now, then)} now; bring back what it was saved with, or start in another output_dir"
                )

    def save_if_due(
        self,
        checkpoints: Checkpoints,
        config: SFTConfig | RLConfig,
        done: int,
        total: int,
        state: Any,
        data: dict[str, Any],
        asked: Any = None,
    ) -> None:
        """Save after so many steps, the best so far, the last, and before stopping on a signal; then stop.

        Of a signal `asked` was asked before, or it is now. On several hosts nothing else is asked of the others but
        after an evaluation: an answer would come after the completions that are being sampled.
        """
        checkpoints.poll()  # a save that failed in the background is known within a step
        stop = self.interruption.requested_anywhere(asked)
        best = measured(config, done) and bool(agree(self.best_step(checkpoints.directory.parent.name) == done))
        if stop or done == total or best or (config.save_steps and done % config.save_steps == 0):
            checkpoints.save(done, state, self.kept(checkpoints, done, data))
        if stop and done < total:
            self.stop_saved(checkpoints, done, total)
        if done == total:
            checkpoints.wait()

    def kept(self, checkpoints: Checkpoints, step: int, data: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint keeps beside its arrays."""
        return {"data": data, "ledger": self.ledger.kept(checkpoints.directory.parent.name, step)} | self.base

    def leave_if_asked(
        self, checkpoints: Checkpoints, finished: int, total: int, state: Any, data: dict[str, Any], asked: Any = None
    ) -> None:
        """Within a step: if a signal asked to stop, save the last finished step; the one under way is made again."""
        if not self.interruption.requested_anywhere(asked):
            return
        if not finished:
            raise self.interruption.interrupted("stopped before the first step; the same command starts it again")
        checkpoints.save(finished, state, self.kept(checkpoints, finished, data))
        self.stop_saved(checkpoints, finished, total)

    @contextlib.contextmanager
    def keeping(self, checkpoints: Checkpoints, finished: int, state: Any, data: dict[str, Any]) -> Iterator[None]:
        """Save the last finished step if what is inside stops the run and the state is not to blame."""
        try:
            yield
        except (RewardError, RunHealthError) as error:
            if finished and getattr(error, "sound", True):
                checkpoints.save(finished, state, self.kept(checkpoints, finished, data))
                checkpoints.wait()
            raise

    def stop_saved(self, checkpoints: Checkpoints, done: int, total: int) -> NoReturn:
        """Stop on a signal, once the last finished step is on the disk."""
        checkpoints.wait()
        raise self.interruption.interrupted(
            f"stopped after step {done} of {total}, which is saved; the same command goes on from there"
        )

    def stop_if_asked(self, where: str) -> None:
        """Stop on a signal where nothing is under way that would have to be saved."""
        if self.interruption.requested_anywhere():
            raise self.interruption.interrupted(f"stopped {where}; the same command goes on from there")

    def finished_step(self, stage: str) -> int | None:
        """The last step of a finished stage, None if it is not finished."""
        path = self.stage(stage) / "done.json"
        step = int(agree(json.loads(path.read_text())["step"] if path.is_file() else -1))
        return step if step >= 0 else None

    def finish(self, stage: str, step: int) -> None:
        """Record that a stage is finished, and say which step was best; it is not run again. All processes call it."""
        if (best := self.best_step(stage)) is not None:
            metric = getattr(self.config, stage).best_metric
            self.note(f"{stage}: {metric} was best at step {best}, which is kept")
        self.ledger.finish(stage, step)
        if is_primary():
            write_atomically(self.stage(stage) / "done.json", json.dumps({"step": step}) + "\n")
        agree(np.int32(step))  # no process goes on, to read what the first one writes, before it is there


def measured(config: SFTConfig | RLConfig, done: int) -> bool:
    """Whether a held-out metric that chooses the best step was measured after so many steps."""
    every = getattr(config, "eval_steps", 0)
    return bool(getattr(config, "best_metric", None) and every) and done % every == 0


def _values(record: dict[str, Any], other: dict[str, Any]) -> str:
    """What differs from another record, in words."""
    return ", ".join(f"{key} {value}" for key, value in record.items() if value != other.get(key)) or "absent"
