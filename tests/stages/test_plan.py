"""Plans: their bytes are those of the programs that a run compiles and of its arrays, and what they propose fits."""

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import pytest
from small_runs import EVALUATION, SUMS, quick_compilation, run, write_settings

from grpo_jax.config import MeshConfig
from grpo_jax.configure import load
from grpo_jax.configure.flags import device_memory
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.reporting.plan_table import show_plan, wide_console
from grpo_jax.rewards.reward import RewardError
from grpo_jax.sharding import ShardingError
from grpo_jax.stages import label, learned, plan_command, reward_model, rl, sft, tooling
from grpo_jax.stages.arithmetic import arithmetic, problems_here
from grpo_jax.stages.plan import USABLE, Study, open_plan, open_shape
from grpo_jax.stages.plan_command import PlanError, Request, as_content
from grpo_jax.stages.remedies import KNOBS, flags, meshes, nearest, turn, with_value
from grpo_jax.stages.targets import Target, gpu_target
from tests.gpu_worker import QWEN

ROOT = Path(__file__).resolve().parent.parent.parent
MESH = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
ITERATED = {"num_iterations": 2, "max_steps": 1, "microbatches": 1}
EIGHT = 8


PLAIN = {"microbatches": 1, "head_chunk": 4}  # the plan of what is said, not of what a device would choose


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    return write_settings(
        folder / "run.yaml", sft={"max_steps": 1, **PLAIN}, rl={**ITERATED, **PLAIN}, evaluation=EVALUATION
    )


@pytest.fixture(scope="module")
def config(file):
    return load([str(file), *MESH, "--print_config"]).config


def quiet(name):
    return mock.MagicMock()


def target(memory=10**9, count=EIGHT) -> Target:
    return gpu_target(count, memory, plugin=False)


@pytest.fixture(scope="module")
def study():
    return Study((), quiet)


@pytest.fixture(scope="module")
def planned(config, study):
    """The plan of the tiny pipeline on eight fake devices."""
    with quick_compilation():
        return study.plan(open_plan(config, open_shape(config, print), target()), target())


class Recorder:
    """Stands for the functions that make programs, and keeps what each program takes and is given first."""

    def __init__(self):
        self.memory, self.arguments = {}, {}

    def watch(self, name, program):
        def call(*arguments, **more):
            if name not in self.memory:
                self.memory[name] = program.lower(*arguments, **more).compile().memory_analysis()
                leaves = jax.tree.leaves((arguments[0], more))
                self.arguments[name] = sum(x.addressable_shards[0].data.nbytes for x in leaves if x.ndim)
            return program(*arguments, **more)

        call._cache_size = program._cache_size
        return call

    def rl_programs(self, *arguments):
        made = original["rl"](*arguments)
        # The policy's own, then the reference's: two programs where the types of the weights differ.
        count = iter(("rl: old log-probabilities", "rl: reference log-probabilities"))
        return made._replace(
            sample=self.watch("rl: sampling", made.sample),
            logprobs=self.alternating(made.logprobs, list(count)),
            update=self.watch("rl: update", made.update),
        )

    def alternating(self, program, names):
        watched = [self.watch(name, program) for name in names]

        def call(*arguments):
            watched.append(watched.pop(0))
            return watched[-1](*arguments)

        call._cache_size = program._cache_size
        return call

    def sft_program(self, *arguments):
        return self.watch("sft: update", original["sft"](*arguments))

    def sampling_program(self, model, sampling):
        name = "evaluation: sampling" if sampling.num_generations > 1 else "evaluation: greedy"
        return self.watch(name, original["evaluation"](model, sampling))


original = {"rl": rl.rl_programs, "sft": sft.sft_program, "evaluation": tooling.sampling_program}


@pytest.fixture(scope="module")
def ran(file, tmp_path_factory, workers):
    """A run of the same pipeline on the same mesh."""
    recorder = Recorder()
    with (
        mock.patch.object(rl, "rl_programs", recorder.rl_programs),
        mock.patch.object(sft, "sft_program", recorder.sft_program),
        mock.patch.object(tooling, "sampling_program", recorder.sampling_program),
    ):
        run(file, tmp_path_factory.mktemp("ran") / "run", workers, *MESH)
    return recorder


def test_the_bytes_are_those_of_the_programs_that_a_run_compiles(planned, ran):
    found = {measured.phase.name: measured.footprint for measured in planned.measured if measured.phase.compile}
    assert list(found) == [
        "sft: update",
        "rl: sampling",
        "rl: old log-probabilities",
        "rl: reference log-probabilities",
        "rl: update",
        "evaluation: sampling",
    ]
    for name, footprint in found.items():
        memory = ran.memory[name]
        assert footprint.arguments == memory.argument_size_in_bytes, name
        assert footprint.outputs == memory.output_size_in_bytes, name
        assert footprint.donated == memory.alias_size_in_bytes, name
        assert footprint.temporaries == memory.temp_size_in_bytes, name


def test_the_bytes_held_are_those_of_the_arrays(planned, ran):
    held = {measured.phase.name: measured.phase.held for measured in planned.measured}
    state = held["rl: update"]
    assert ran.arguments["rl: sampling"] == state.parameters
    assert ran.arguments["rl: reference log-probabilities"] == state.reference
    assert ran.arguments["rl: update"] == pytest.approx(state.parameters + state.optimizer, abs=32), "counters, key"
    assert ran.arguments["evaluation: sampling"] == held["evaluation: sampling"].parameters
    assert held["loading"] == (state.parameters, state.optimizer, 0, 0, 0)


def test_a_change_that_fits_is_found_and_compiled(study, planned):
    """Memory for all but one update: more micro-batches, and only these."""
    peaks = {measured.phase.name: measured.footprint.peak for measured in planned.measured}
    largest = max(peaks, key=peaks.get)
    assert largest == "sft: update"
    small = target(int((peaks[largest] - 1) / USABLE))
    asked = planned._replace(target=small)
    assert [measured.phase.name for measured in asked.too_large] == [largest]
    with quick_compilation():
        found = nearest(study, asked, [small])
    assert not found.too_large and len(found.measured) == len(asked.measured)
    assert flags(asked, found) == ["--sft.microbatches 2"]
    after = {measured.phase.name: measured.footprint.peak for measured in found.measured}
    assert after.pop(largest) < peaks.pop(largest) and after == peaks


def test_what_cannot_fit_is_not_found_and_compiles_nothing(study, planned):
    """The weights alone are too many, on any mesh."""
    small = planned._replace(target=target(2000))
    with mock.patch.object(study, "measure", side_effect=AssertionError("compiled")):
        assert nearest(study, small, [small.target]) is None


def test_refusal_says_what_does_not_fit_and_what_would(config, capfd, monkeypatch):
    """The command, with a device that has room for the moments of a half."""
    monkeypatch.setattr(plan_command, "gpu_target", lambda count, memory: target(memory, count))
    request = Request(with_value(config, "mesh.tensor", 1), ("sft",), 4, 40_000, None, as_json=True)
    with quick_compilation(), pytest.raises(PlanError, match="does not fit") as refused:
        plan_command.plan(request)
    printed = json.loads(capfd.readouterr().out)
    assert not printed["fits"] and refused.value.exit_code == 2
    for plan in (printed, printed["remedy"]) if printed["remedy"] else (printed,):
        for phase in plan["phases"]:
            parts = ("parameters", "optimizer", "reference", "reward_models", "cache", "batch", "temporaries")
            assert sum(phase[part] for part in parts) == phase["peak"]
            assert phase["fits"] == (phase["peak"] <= USABLE * plan["target"]["memory"])


def test_the_table(config, planned, capsys):
    request = Request(config, (), EIGHT, None, None, as_json=False)
    show_plan(as_content(planned, request), wide_console())
    text = capsys.readouterr().out
    for words in ("mesh data 2 x fsdp 2 x tensor 2", "upper bound", "rl: update", "evaluation: sampling"):
        assert words in text
    assert max(map(len, text.splitlines())) < 260


def test_batches(config):
    rows = {row["stage"]: row for row in arithmetic(config, 4, (), problems_here)}
    assert rows["sft"]["rows_a_device"] == 2 and rows["sft"]["tokens_a_step"] == 8 * 16
    assert rows["rl"]["rows"] == 16 and rows["rl"]["rows_a_device"] == 4
    assert rows["rl"]["tokens_a_step"] == 16 * 4 + 4 * 5
    assert rows["rl"]["epochs"] == pytest.approx(4 / rows["rl"]["problems"])
    assert [row["stage"] for row in arithmetic(config, 4, ("rl",), lambda source, seed: None)] == ["rl"]


# --- reward models ---

ASKED = {"kind": "learned", "whole": "min"}
SCORED = {
    "sft": None,
    "label": {
        "source": {**SUMS, "size": 8},
        "reward": {"kind": "accuracy"},
        "num_solutions": 2,
        "num_completions": 2,
        "batch_prompts": 8,
        "sampling": {"max_completion_length": 4},
    },
    "reward_model": {"max_steps": 1, "batch_size": 8, "max_length": 16, "held_out": 0.0, "supervision": "process"},
    "rl": {"rewards": [ASKED], "num_generations": 4, "max_steps": 1, **PLAIN},
    "evaluation": {**EVALUATION, "scorer": {"kind": "learned"}, "source": {**SUMS, "split": "test", "size": 8}},
}


class Scored(Recorder):
    """Keeps the programs about reward models."""

    def label(self, model, sampling):
        self.opened.append(sampling.num_generations)
        program = original["evaluation"](model, sampling)
        return self.watch("label: solutions", program) if len(self.opened) == 1 else program

    def update(self, *arguments):
        return self.watch("reward_model: update", original_update(*arguments))

    def scoring(self, *arguments):
        name = "rl: scores of a reward model" if self.asked else "evaluation: scores of a reward model"
        self.asked.append(name)
        return self.watch(name, original_scoring(*arguments))

    def __init__(self):
        super().__init__()
        self.opened, self.asked = [], []


original_update, original_scoring = reward_model.update_program, learned.scoring_program


def test_phases_about_reward_models(tmp_path):
    """In the order of the pipeline, with what lies beside each: nothing is compiled."""
    file = write_settings(tmp_path / "run.yaml", **SCORED)
    config = load([str(file), "--print_config"]).config
    plant = open_plan(config, open_shape(config, print), target(count=1))
    found = {phase.name: phase for phase in Study((), quiet).phases(plant)}
    scores = "scores of a reward model"
    label = ["label: solutions", "label: completions of the longest", "reward_model: update"]
    rl = ["rl: sampling", f"rl: {scores}", "rl: reference log-probabilities", "rl: update"]
    assert list(found) == ["loading", *label, *rl, "evaluation: sampling", f"evaluation: {scores}"]
    policy, model = found["loading"].held.parameters, found[f"rl: {scores}"].held.reward_models
    assert model > policy, "the trunk and a score head"
    assert {found[name].held.reward_models for name in [*rl, f"evaluation: {scores}"]} == {model}
    for name in [*rl, f"evaluation: {scores}"]:
        taken = sum(found[name].held) - found[name].beside
        assert taken == model if scores in name else found[name].beside >= model, name
    assert found[label[2]].beside == policy and found[label[2]].held.optimizer > 2 * model
    assert found[label[1]].work.prompt_length == 5 + 4 > found[label[0]].work.prompt_length == 5
    only = [phase.name for phase in Study(("rl",), quiet).phases(plant)]
    assert only == ["loading", *rl], "rl asks the model that section reward_model describes"


CONTINUED = {"reward": {"kind": "accuracy"}, "num_solutions": 2, "batch_prompts": 8, "batch_size": 16, "max_length": 32}


def test_phases_of_line_12(tmp_path):
    """What is sampled and learnt between outer iterations lies beside all of reinforcement but the reward model."""
    again = SCORED | {"rl": SCORED["rl"] | {"iterations": 2, "continue_reward_model": CONTINUED}}
    file = write_settings(tmp_path / "run.yaml", **again)

    def planned(*flags):
        config = load([str(file), *flags, "--print_config"]).config
        plant = open_plan(config, open_shape(config, print), target(count=1))
        return plant, {phase.name: phase for phase in Study(("rl",), quiet).phases(plant)}

    plant, found = planned()
    line_12 = [f"rl, line 12: {what}" for what in ("solutions", "completions of the longest", "update")]
    assert list(found)[-4:] == ["rl: update", *line_12]
    policy, moments, copy, batch, models = found["rl: sampling"].held
    solutions, completions, update = (found[name] for name in line_12)
    assert solutions.held == completions.held == (policy, moments, copy, batch, 0) and models > 0
    assert solutions.beside == completions.beside == moments + copy + batch
    assert update.beside == policy + moments + copy + batch and update.held.reward_models >= models
    assert update.held.optimizer - moments > 2 * models and (update.work.rows, update.work.length) == (16, 32)
    assert (solutions.work.rows, completions.work.rows) == (16, 8 * 8) and completions.work.prompt_length == 5 + 4
    for key, phase in (("batch_prompts", line_12[0]), ("microbatches", line_12[2])):
        before = found[phase].work.rows
        config = turn(
            plant.config, KNOBS[phase][-1 if key == "batch_prompts" else 0 :], 1, changed_in(key, plant.config)
        )
        plan = Study(("rl",), quiet).phases(plant._replace(config=config))
        assert next(p.work.rows for p in plan if p.name == phase) == before // 2

    outcome = ("--reward_model.supervision", "outcome")
    assert line_12[1] not in planned(*outcome)[1], "a model of outcomes needs no completions"
    with pytest.raises(ShardingError, match=r"rl.continue_reward_model.batch_size: 15 rows"):
        config = load([str(file), "--rl.continue_reward_model.batch_size", "15", "--print_config"]).config
        Study(("rl",), quiet).phases(open_plan(config, open_shape(config, print), target(count=2)))


def changed_in(key, config):
    return lambda new: getattr(new.rl.continue_reward_model, key) != getattr(config.rl.continue_reward_model, key)


@pytest.mark.slow
def test_the_programs_about_reward_models(tmp_path, workers):
    """Label, training, and scores in rl and in evaluation: the bytes of the programs that a run compiles."""
    file, recorder = write_settings(tmp_path / "run.yaml", **SCORED), Scored()
    scorer = ["--evaluation.scorer.path", str(tmp_path / "run"), *MESH]
    config = load([str(file), *scorer, "--print_config"]).config
    with (
        mock.patch.object(label, "sampling_program", recorder.label),
        mock.patch.object(reward_model, "update_program", recorder.update),
        mock.patch.object(learned, "scoring_program", recorder.scoring),
        mock.patch.object(rl, "rl_programs", recorder.rl_programs),
        mock.patch.object(tooling, "sampling_program", recorder.sampling_program),
    ):
        run(file, tmp_path / "run", workers, "--only", "label,reward_model", "--evaluation", "null", *MESH)
        run(file, tmp_path / "run", workers, *scorer)
    with quick_compilation():
        plan = Study((), quiet).plan(open_plan(config, open_shape(config, print), target()), target())
    found = {measured.phase.name: measured for measured in plan.measured if measured.phase.compile}
    about = {name for name in found if "scores" in name or name.startswith(("label", "reward_model"))}
    longest = "label: completions of the longest"  # which a run may not have
    assert len(about) == 5 and about - {longest} <= recorder.memory.keys()
    for name in about - {longest}:
        footprint, memory = found[name].footprint, recorder.memory[name]
        assert footprint.arguments == memory.argument_size_in_bytes, name
        assert footprint.outputs == memory.output_size_in_bytes, name
        assert footprint.temporaries == memory.temp_size_in_bytes, name
    assert found[longest].footprint.peak > found["label: solutions"].footprint.peak, "their prompts are longer"
    held = {name: measured.phase.held for name, measured in found.items()}
    weights = held["rl: scores of a reward model"].reward_models
    assert weights > 0 and {held[name].reward_models for name in held if name.startswith("rl")} == {weights}
    assert held["reward_model: update"].reward_models >= weights, "trained in float32"
    rows = {row["stage"]: row for row in arithmetic(config, 4, (), problems_here)}
    assert list(rows) == ["label", "reward_model", "rl", "evaluation"]
    assert (rows["label"]["rows"], rows["label"]["steps"], rows["reward_model"]["tokens_a_step"]) == (16, 1, 8 * 16)


def test_a_reward_model_that_is_nowhere(tmp_path):
    changes = {"sft": None, "rl": {"rewards": [{**ASKED, "path": str(tmp_path / "nowhere")}]}}
    config = load([str(write_settings(tmp_path / "run.yaml", **changes)), "--print_config"]).config
    with pytest.raises(RewardError, match=r"nowhere holds no reward_model/reward_model.json, which a plan needs"):
        Study((), quiet).phases(open_plan(config, open_shape(config, print), target(count=1)))


def test_problems_that_would_have_to_be_fetched_are_not_counted(tmp_path):
    tfds = dataclasses.make_dataclass("Config", [("kind", str), ("download", bool), ("manual_dir", str)])
    with mock.patch("grpo_jax.stages.arithmetic.find") as find:
        find().build.side_effect = lambda source, seed: [source.download, source.manual_dir].index(True)
        assert problems_here(tfds("tfds", True, "files"), 0) is None


def test_meshes_begin_with_the_configs_own_and_keep_what_is_left_open():
    ways = meshes(MeshConfig(data=1, fsdp=-1, tensor=2), {"data": 1, "fsdp": 4, "tensor": 2}, 8)
    assert ways[0] == MeshConfig(data=1, fsdp=-1, tensor=2)
    assert len(ways) == len(set(ways)) == 10 and all(way.fsdp == -1 for way in ways)
    assert {(way.data, way.tensor) for way in ways[1:4]} == {(1, 1), (1, 4), (2, 2)}, "by how much it changes"


def test_sizes():
    assert device_memory("80GB") == 80 * 10**9 and device_memory("40 GiB") == 40 * 2**30
    for wrong in ("80", "much", "-3GB", "0GB"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"write (80GB|5GB)"):
            device_memory(wrong)


def test_a_shape_needs_config_json_alone(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN))
    file = write_settings(tmp_path / "run.yaml", model={"model_name_or_path": str(folder), "dtype": "bfloat16"})
    config = load([str(file), "--print_config"]).config
    assert (open_shape(config, print).hidden_size, open_shape(config, print).dtype) == (896, "bfloat16")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elsewhere = with_value(config, "model.model_name_or_path", "nobody/has-this-model")
    with pytest.raises(ModelFolderError, match="DIR holds it"):
        open_shape(elsewhere, lambda note: None)


def test_the_launcher(file, tmp_path):
    """A process of its own, as it starts JAX itself: JSON on stdout, progress on stderr, nothing made."""
    words = [str(file), "--only", "evaluation", "--output_dir", str(tmp_path / "run"), "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    launch = [sys.executable, str(ROOT / "launch" / "plan.py"), "--devices", "2", "--device-memory", "1GB"]
    done = subprocess.run([*launch, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["fits"] and plan["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1} and plan["target"]["memory"] == 10**9
    assert [phase["name"] for phase in plan["phases"]] == ["loading", "evaluation: sampling"]
    assert "compiling evaluation: sampling" in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is None, reason="no plugin for GPUs")
def test_predicted_against_measured_on_a_gpu():
    """Skipped without a GPU: the peak of each phase as planned, and as the allocator counts it."""
    worker = [sys.executable, "-m", "tests.gpu_worker"]
    done = subprocess.run(worker, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": ""}, capture_output=True, text=True)
    if done.returncode == 5:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr[-4000:]
    for phase in json.loads(done.stdout.splitlines()[-1]):
        assert phase["measured"] == pytest.approx(phase["planned"], rel=0.05), phase
