"""YAML files and command line: what is accepted, what is refused, and with what words."""

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from grpo_jax.config import Config, RLConfig, SFTConfig
from grpo_jax.configure import (
    ConfigError,
    check_resume,
    default_file,
    difference,
    dump,
    find,
    kind_class,
    load,
    names,
    tree_of,
)

ROOT = Path(__file__).resolve().parent.parent

KIND = '''
import dataclasses
from grpo_jax.config import Positive, Share, config

@config
class Part:
    """A part."""
    name: str = "x"
    """Its name."""

@config
class Config:
    """{doc}"""
    {fields}

def build(config, *more):
    return config
'''

PIPELINE = """\
output_dir: run
seed: 3
model: {dtype: bfloat16}
sft:
  source: {kind: user_kinds.lines, path: train.jsonl}
  optimizer: {warmup_steps: 5}
rl:
  source:
    kind: user_kinds.lines
    path: train.jsonl
  algorithm: {kind: grpo, beta: 1e-2}
  rewards:
    - {kind: user_kinds.right}
    - {kind: user_kinds.short, most: 7}
  prompts_per_step: 4
  num_generations: 8
"""

EVALUATION = """\
evaluation:
  source: {kind: user_kinds.lines, path: test.jsonl}
  reward: {kind: user_kinds.right}
"""


@pytest.fixture(scope="session")
def user_kinds(tmp_path_factory):
    """A package of the user's own with a source and two rewards, and a method that knows other keys."""
    folder = tmp_path_factory.mktemp("user") / "user_kinds"
    folder.mkdir()
    modules = {
        "lines": (
            "Lines.",
            'path: str\n    """The file."""\n    part: Part = Part(name="y")\n    """One."""',
        ),
        "right": ("Right.", 'weight: float = 1.0\n    """Its weight."""'),
        "short": (
            "Short.",
            'weight: float = 0.5\n    """Its weight."""\n    most: Positive\n    """Tokens."""',
        ),
        "method": ("Method.", 'epsilon: Share = 0.3\n    """Clip."""'),
    }
    for name, (doc, fields) in modules.items():
        (folder / f"{name}.py").write_text(KIND.format(doc=doc, fields=fields))
    (folder / "__init__.py").write_text("")
    (folder / "nothing.py").write_text("x = 1\n")
    sys.path.insert(0, str(folder.parent))
    yield folder
    sys.path.remove(str(folder.parent))


@pytest.fixture
def write(user_kinds, tmp_path, monkeypatch):
    """Write YAML files into an empty current directory and return their names."""
    monkeypatch.chdir(tmp_path)

    def write(text=PIPELINE, name="a.yaml"):
        Path(name).write_text(text)
        return name

    return write


def refused(*argv) -> str:
    with pytest.raises(ConfigError) as error:
        load(argv)
    assert len(str(error.value).splitlines()) < 20
    return str(error.value)


# --- files ---


def test_one_file_is_one_pipeline(write):
    command = load([write()])
    config = command.config
    assert type(config) is Config and type(config.rl) is RLConfig and type(config.sft) is SFTConfig
    assert (config.seed, config.evaluation, command.only, command.debug) == (3, None, (), False)
    assert config.rl.algorithm.kind == "grpo"
    assert isinstance(config.rl.algorithm, find("algorithms", "grpo").Config)
    assert config.rl.algorithm.beta == 0.01
    assert [reward.kind for reward in config.rl.rewards] == ["user_kinds.right", "user_kinds.short"]
    assert isinstance(config.rl.rewards, tuple) and config.rl.rewards[1].most == 7
    assert command.origins["rl", "rewards", "1", "most"] == "a.yaml:14"


def test_a_section_given_in_part_keeps_its_own_defaults(write):
    config = load([write()]).config
    assert (config.sft.optimizer.learning_rate, config.sft.optimizer.warmup_steps) == (5e-5, 5)
    assert config.rl.optimizer.learning_rate == 1e-6
    assert config.model.architecture.hidden_size == 64 and config.model.dtype == "bfloat16"
    assert config.rl.source.part.name == "y"


def test_later_files_lie_over_earlier_ones(write):
    over = "rl: {algorithm: {beta: 0.5}, rewards: [{kind: user_kinds.right, weight: 2}]}\nsft: null\n"
    command = load([write(), write(over, "b.yaml"), write(EVALUATION, "c.yml")])
    assert command.config.rl.algorithm.beta == 0.5
    assert [reward.weight for reward in command.config.rl.rewards] == [2.0]
    assert command.config.rl.prompts_per_step == 4
    assert command.config.sft is None and command.config.evaluation.num_samples == 8
    assert command.origins["rl", "algorithm", "beta"] == "b.yaml:1"
    assert ("rl", "rewards", "1", "most") not in command.origins


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-06", "0.000001", ".000001"])
def test_floats_are_read_as_floats(write, text):
    assert load([write(PIPELINE.replace("1e-2", text))]).config.rl.algorithm.beta == 1e-6


@pytest.mark.parametrize(
    ("line", "value"),
    [("no", "no"), ("'1e-6'", "1e-6"), ("on", "on"), ("2024-01-01", "2024-01-01"), ("1:30", "1:30")],
)
def test_words_stay_words(write, line, value):
    assert load([write(PIPELINE + f"prompt: {{suffix: {line}}}\n")]).config.prompt.suffix == value


@pytest.mark.parametrize("sections", ["", "sft: null\nevaluation:\n"])
def test_absent_sections(write, sections):
    text = "rl:" + PIPELINE.split("rl:")[1] + sections
    assert load([write(text)]).config.sft is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("beta: 1e-2", "betta: 1e-2"), ["a.yaml:11: rl.algorithm.betta", "did you mean rl.algorithm.beta?"]),
        (("seed: 3", "sed: 3"), ["a.yaml:2: sed: no such setting", "did you mean seed?"]),
        (("seed: 3", "learning_rate: 3"), ["a.yaml:2: learning_rate", "optimizer.learning_rate?"]),
        (("  num_gen", "  beta: 1\n  num_gen"), ["a.yaml:16: rl.beta", "did you mean rl.algorithm.beta?"]),
        (("most: 7", "most: 7, mots: 1"), ["rl.rewards.1.mots", "user_kinds.short", "rl.rewards.1.most?"]),
        (("seed: 3", "seed: three"), ['a.yaml:2: seed is "three"', "integer"]),
        (("seed: 3", "seed: 3.0"), ["a.yaml:2: seed is 3.0", "integer"]),
        (("seed: 3", "seed: true"), ["a.yaml:2: seed is true", "integer"]),
        (("seed: 3", "seed: -1"), ["a.yaml:2: seed is -1", "greater than or equal to 0"]),
        (("seed: 3", "output: {dir: 3}"), ["a.yaml:2: output: no such setting", "output_dir"]),
        (("output_dir: run", "output_dir: false"), ["a.yaml:1: output_dir is false", "string"]),
        (("1e-2", "nan"), ['rl.algorithm.beta is "nan"', "number"]),
        (("1e-2", ".nan"), ["a.yaml:11: rl.algorithm.beta is NaN", "finite"]),
        (("1e-2", ".inf"), ["a.yaml:11: rl.algorithm.beta is Infinity", "finite"]),
        (
            ("num_generations: 8", "num_generations: 1"),
            ["rl.num_generations is 1", "greater than or equal to 2"],
        ),
        (("dtype: bfloat16", "dtype: bf16"), ['model.dtype is "bf16"', "'float32' or 'bfloat16'"]),
        (("model: {dtype: bfloat16}", "model: {scan_layers: no}"), ['"no"', "true or false"]),
        (("model: {dtype: bfloat16}", "model: small"), ['a.yaml:3: model is "small"', "section"]),
        (("model: {dtype: bfloat16}", "report_to: wandb"), ['a.yaml:3: report_to is "wandb"', "list"]),
        (("model: {dtype: bfloat16}", "mesh:"), ["a.yaml:3: mesh is null", "section"]),
        (("path: train.jsonl}", "limit: 3}"), ["a.yaml:5: sft.source.path is missing"]),
        (("kind: grpo", "kind: grop"), ["a.yaml:11: rl.algorithm.kind", "no 'grop' in", "grpo"]),
        (("kind: grpo, ", ""), ["a.yaml:11: rl.algorithm has no kind", "{kind: "]),
        (("algorithm: {kind: grpo, beta: 1e-2}", "algorithm: grpo"), ["rl.algorithm is 'grpo'", "{kind: "]),
        (("  algorithm: {kind: grpo, beta: 1e-2}\n", ""), ["a.yaml:7: rl.algorithm is missing", "{kind: "]),
        (("user_kinds.right", "user_kinds.left"), ["rl.rewards.0.kind", "'user_kinds.left'", "PYTHONPATH"]),
        (("user_kinds.right", "user_kinds.nothing"), ["user_kinds.nothing is not a kind", "`Config`"]),
        (("seed: 3", "output_dir: 4"), ["a.yaml:2: output_dir stands at a.yaml:1 too"]),
        (("seed: 3", "[a]: 3"), ["a.yaml:2: a key should be a word"]),
        (("seed: 3", "seed: [3"), ["a.yaml:", "not YAML"]),
        (("seed: 3", "seed: !!python/name:os.system 3"), ["a.yaml:2: seed: cannot read"]),
        (("seed: 3", "seed: !!binary aGk="), ["a.yaml:2: seed: write 'aGk=' as text"]),
        (("seed: 3", "\tseed: 3"), ["a.yaml:2: not YAML"]),
        (("seed: 3", "seed: \x07"), ["a.yaml: not YAML"]),
    ],
)
def test_a_bad_file_is_refused(write, change, expected):
    assert change[0] in PIPELINE
    message = refused(write(PIPELINE.replace(*change, 1)))
    assert all(part in message for part in expected), message


def test_rewards_must_be_a_list(write):
    text = PIPELINE.split("  rewards:")[0] + "  rewards: {kind: user_kinds.right}\n"
    assert "a.yaml:12: rl.rewards should be a list: `[{kind: " in refused(write(text))


def test_several_problems_are_named_at_once(write):
    message = refused(write(PIPELINE.replace("seed: 3", "seed: x").replace("1e-2", "x")))
    assert "seed" in message and "rl.algorithm.beta" in message
    many = "".join(f"x{i}: 1\n" for i in range(40))
    assert "... and 34 more" in refused(write(PIPELINE + many))


def test_files_that_are_none(write, tmp_path):
    write()
    assert "b.yaml: cannot be read: No such file or directory; there are a.yaml" in refused("b.yaml")
    (tmp_path / "d.yaml").mkdir()
    assert "d.yaml: cannot be read" in refused("d.yaml")
    (tmp_path / "b.yaml").write_bytes(b"seed: \xff\n")
    assert "b.yaml: not YAML in UTF-8" in refused("b.yaml")
    assert "should be a mapping" in refused(write("- 1\n", "l.yaml"))
    assert "there is nothing to run" in refused(write("", "empty.yaml"))
    assert "a is neither a .yaml file nor a flag" in refused("a")


def test_a_byte_order_mark_is_no_key(write):
    assert load([write("\ufeff" + PIPELINE)]).config.seed == 3


# --- flags ---


def test_flags_lie_over_files_in_any_order(write):
    flags = [
        "--rl.algorithm.beta",
        "0.02",
        "--mesh.tensor=4",
        "--rl.rewards.1.weight",
        "2",
        "--rl.max-steps",
        "7",
    ]
    command = load([*flags, write(), "--report_to", "wandb", "tensorboard", "--prompt.system", "None"])
    config = command.config
    assert config.rl.algorithm.beta == 0.02 and config.mesh.tensor == 4 and config.rl.max_steps == 7
    assert [reward.weight for reward in config.rl.rewards] == [1.0, 2.0]
    assert config.report_to == ("wandb", "tensorboard") and config.prompt.system is None
    assert command.origins["rl", "algorithm", "beta"] == "--rl.algorithm.beta"


def test_flags_of_truth_values(write):
    command = load([write(), "--sft.no-packing"])
    assert command.config.sft.packing is False and command.origins["sft", "packing"] == "--sft.no_packing"
    assert load([write(), "--model.no_scan_layers", "--sft.packing"]).config.model.scan_layers is False


def test_a_flag_may_give_what_the_file_lacks(write):
    text = PIPELINE.replace("path: train.jsonl", "part: {name: z}")
    config = load([write(text), "--rl.source.path", "5", "--sft.source.path", "x.jsonl"]).config
    assert config.rl.source.path == "5" and config.rl.source.part.name == "z"
    assert "a.yaml:5: sft.source.path is missing" in refused("a.yaml", "--rl.source.path", "x")


def test_a_kind_by_flag(write):
    text = PIPELINE.replace(", beta: 1e-2", "")
    config = load([write(text), "--rl.algorithm.kind", "user_kinds.method", "--rl.algorithm.epsilon", "0.1"]).config
    assert config.rl.algorithm.kind == "user_kinds.method" and config.rl.algorithm.epsilon == 0.1
    config = load(["a.yaml", "--rl.rewards.1.kind=user_kinds.short", "--rl.rewards.1.most=3"]).config
    assert config.rl.rewards[1].most == 3


def test_another_kind_drops_nothing_silently(write):
    message = refused(write(), "--rl.algorithm.kind", "user_kinds.method")
    assert "a.yaml:11: rl.algorithm.beta: no such setting of kind user_kinds.method" in message
    assert "--rl.algorithm.kind chose; delete it" in message
    over = write("rl: {algorithm: {kind: user_kinds.method}}\n", "b.yaml")
    assert "which b.yaml:1 chose; delete it" in refused("a.yaml", over)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--rl.algorithm.betta 1", ["--rl.algorithm.betta: no such", "did you mean --rl.algorithm.beta?"]),
        ("--rl.beta 1", ["did you mean --rl.algorithm.beta?"]),
        ("--algoritm.beta 1", ["did you mean --rl.algorithm.beta?"]),
        ("--rl.max_stepz 1", ["did you mean --rl.max_steps?"]),
        ("--onyl rl", ["did you mean --only?"]),
        ("--rl.algorithm grpo", ["--rl.algorithm is a section", "--rl.algorithm.kind"]),
        ("--rl.rewards.2.weight 1", ["rl.rewards has 2 entries in a.yaml"]),
        ("--evaluation.num_samples 3", ["no section evaluation in a.yaml", "write one there"]),
        ("--evaluation.source.kind arithmetic", ["no section evaluation in a.yaml"]),
        ("--rl.algorithm.kind grop", ["--rl.algorithm.kind: no 'grop' in grpo_jax/algorithms"]),
        ("--rl.max_steps three", ["--rl.max_steps", "'three'"]),
        ("--rl.max_steps 3.5", ["--rl.max_steps", "'3.5'"]),
        ("--rl.max_steps 0", ["--rl.max_steps is 0; it should be greater than 0"]),
        ("--rl.max_steps", ["--rl.max_steps", "Missing value"]),
        ("--rl.sampling.top_p 1.5", ["--rl.sampling.top_p is 1.5", "less than or equal to 1"]),
        ("--rl.algorithm.beta nan", ["--rl.algorithm.beta is NaN", "finite"]),
        ("--model.dtype bf16", ["bf16", "--model.dtype", "'bfloat16'"]),
        ("--seed 1 stray", ["stray"]),
        ("--only rl,evaluation", ["--only rl,evaluation: no section 'evaluation'; there are sft, rl"]),
        ("--sft nul", ["--sft is a section", "or leave it out with --sft null"]),
        ("--rl.source null", ["--rl.source is a section; set what is in it: --rl.source."]),
        ("--sft null --sft.max_steps 3", ["--sft.max_steps: no section sft in a.yaml"]),
        ("--sft null --only sft", ["--only sft: no section 'sft'; there are rl"]),
        ("--label.decode_rows null", ["--label.decode_rows: no section label"]),
        ("--reward_model.labels null", ["--reward_model.labels: no section reward_model"]),
        ("--seed null", ["--seed is 'null'; it should be an integer"]),
    ],
)
def test_a_bad_flag_is_refused(write, flags, expected):
    message = refused(write(), *flags.split())
    assert all(part in message for part in expected), message
    assert "─" not in message and "│" not in message


def test_a_flag_leaves_a_section_out(write):
    """As YAML does with null: sections, kinds, lists of kinds, wherever they may be absent."""
    assert load([write()]).config.sft is not None
    for flags in (["--sft", "null"], ["--sft=null"], ["--rl.max_steps", "3", "--sft", "null", "--debug"]):
        command = load([write(), *flags])
        assert command.config.sft is None and command.config.rl is not None and command.origins["sft",] == "--sft"
        assert command.config.rl.max_steps == 3 or "3" not in flags
    over = write("rl: {tools: {kind: python}}\nmodel: {lora: {rank: 4}, model_name_or_path: x}\n", "b.yaml")
    assert load(["a.yaml", over]).config.model.lora.rank == 4
    config = load(["a.yaml", over, "--rl.tools", "null", "--model.lora", "null", "--model.architecture", "null"]).config
    assert config.rl.tools is None and config.model.lora is None and config.model.model_name_or_path == "x"


@pytest.mark.parametrize("flags", ["--only rl,sft", "--only sft rl", "--only=rl,sft"])
def test_only(write, flags):
    assert load([write(), *flags.split()]).only == ("sft", "rl")


def test_what_is_no_setting(write):
    flags = "--debug --print-config --coordinator host:1 --num_processes 2 --process_id 1"
    command = load([write(), *flags.split()])
    assert command.debug and command.print_config
    assert (command.coordinator, command.num_processes, command.process_id) == ("host:1", 2, 1)
    assert not Path("run").exists()  # --print-config writes nothing


# --- kinds ---


def test_find():
    assert find("algorithms", "grpo").__name__ == "grpo_jax.algorithms.grpo"
    assert find("algorithms", "os.path") is os.path
    assert "grpo" in names("algorithms") and "objectives" not in names("algorithms")
    for bad in ("grpo/../x", "", "..grpo", "no.such.module", "Grpo"):
        with pytest.raises(ConfigError):
            find("algorithms", bad)


def test_kinds_pickle_and_compare(write):
    config = load([write()]).config
    again = pickle.loads(pickle.dumps(config))
    assert again == config and type(again.rl.algorithm) is type(config.rl.algorithm)
    assert kind_class("algorithms", "grpo") is type(config.rl.algorithm)
    assert dataclasses.replace(config.rl.algorithm, beta=1.0).kind == "grpo"


# --- checks between settings ---


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--model.architecture.num_key_value_heads 3", ["num_attention_heads 4", "num_key_value_heads 3"]),
        ("--model.architecture.head_dim 15", ["head_dim is 15", "even"]),
        ("--model.model_name_or_path ./no/such", ["model.model_name_or_path: './no/such' does not exist"]),
        ("--model.model_name_or_path a/b/c", ["'a/b/c' does not exist"]),
        ("--model.model_name_or_path here/b", ["'here/b' does not exist"]),
        ("--model.model_name_or_path b/", ["'b/' does not exist"]),
        ("--model.model_name_or_path ./a.txt", ["'./a.txt' is not a directory"]),
        (
            "--model.tokenizer_name_or_path /no/such",
            ["model.tokenizer_name_or_path: '/no/such' does not exist"],
        ),
        ("--evaluation.num_samples 4", ["evaluation.k: 8", "num_samples 4"]),
        ("--sft.microbatches 3", ["batch_size 256", "3 equal microbatches"]),
        ("--rl.microbatches 3", ["4 prompts of 8 completions", "3 equal microbatches"]),
        ("--mesh.data 0", ["mesh.data is 0"]),
        ("--rl.sampling.temperature 0", ["rl.sampling.temperature is 0"]),
        ("--rl.importance_cap 0.5", ["rl.importance_cap", "greater than or equal to 1"]),
        ("--rl.rollout_weights int8", ["rl.rollout_weights: int8", "rl.importance_cap", "is null", "2.0"]),
        (
            "--rl.importance_cap 2 --rl.sampling.top_k 5 --rl.sampling.min_p 0.1",
            ["rl.importance_cap is 2.0", "rl.sampling.top_k 5 and min_p 0.1", "leave one of the two out"],
        ),
        (
            "--rl.steps_off_policy 1",
            ["rl.steps_off_policy is 1 and rl.importance_cap is absent", "give a cap, for example 2.0"],
        ),
        ("--rl.steps_off_policy 2 --rl.importance_cap 2", ["rl.steps_off_policy", "0", "1"]),
        (
            "--rl.sync_ref_model",
            ["rl.sync_ref_model, every 512 updates,", "as there are ", "lower rl.ref_model_sync_steps"],
        ),
        ("--rl.sample_parts 3", ["4 prompts cannot be cut into 3 equal sample_parts", "a divisor of 4"]),
        (
            "--rl.tools.kind python --rl.fused_steps 2",
            ["rl.tools runs programs", "rl.fused_steps 2 leaves the host none", "leave rl.tools out"],
        ),
        (
            "--rl.tools.kind python --rl.steps_off_policy 1 --rl.importance_cap 2",
            ["rl.tools runs programs", "rl.steps_off_policy 1"],
        ),
        (
            "--rl.tools.kind python --rl.sampling.stop Q:",
            ["rl.tools", "rl.sampling.stop is ['Q:']", "leave one of the two out"],
        ),
        (
            "--evaluation.tools.kind python --evaluation.sampling.stop Q:",
            ["evaluation.tools", "evaluation.sampling.stop is ['Q:']"],
        ),
        ("--rl.tools.kind abacus", ["no 'abacus' in grpo_jax/tools", "there are python"]),
        ("--rl.tools.kind python --rl.tools.max_rounds 0", ["rl.tools.max_rounds", "greater than 0"]),
        ("--num_processes 2", ["need --coordinator"]),
        ("--coordinator h:1 --num_processes 2", ["--process_id", "2 and None"]),
        ("--coordinator h:1 --num_processes 2 --process_id 2", ["2 and 2"]),
        ("--prompt.template x", ["prompt.template: 'x'", "{question}"]),
        ("--report_to wandb wandb", ["report_to", "twice"]),
        ("--model.model_name_or_path m --model.architecture.head_dim 8", ["has no effect", "'m'"]),
    ],
)
def test_contradictions_are_refused(write, flags, expected):
    Path("a.txt").touch()
    Path("here").mkdir()
    message = refused(write(PIPELINE + EVALUATION), *flags.split())
    assert all(part in message for part in expected), message


@pytest.mark.parametrize("microbatches", [1, 2, 4, 8, 32])
def test_microbatches_that_fit(write, microbatches):
    load([write(), "--rl.microbatches", str(microbatches)])


def test_neither_weights_nor_architecture(write):
    text = PIPELINE.replace("model: {dtype: bfloat16}", "model: {architecture: null}")
    assert "neither model_name_or_path nor architecture" in refused(write(text))


def test_weights_take_the_place_of_the_architecture(write, tmp_path):
    assert load([write(), "--model.model_name_or_path", "owner/name"]).config.model.architecture is None
    model = load(["a.yaml", "--model.model_name_or_path", str(tmp_path)]).config.model
    assert (model.model_name_or_path, model.architecture) == (str(tmp_path), None)


def test_no_rewards(write):
    text = PIPELINE.split("  rewards:")[0] + "  rewards: []\n"
    assert "rl.rewards is empty" in refused(write(text))


def test_output_dir_is_made_and_tried(write):
    load([write(), "--output_dir", "x/y"])
    assert Path("x/y").is_dir() and not list(Path("x/y").iterdir())
    Path("file").touch()
    message = refused("a.yaml", "--output_dir", "file/run")
    assert "output_dir 'file/run' cannot be written: Not a directory" in message and "--output_dir" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(write, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "output_dir 'locked/run' cannot be written: Permission denied" in refused(
        write(), "--output_dir", "locked/run"
    )


# --- YAML out, and resuming ---


@pytest.mark.parametrize(
    "suffix",
    ["", "no", "1e-6", "null", "a: b # c", "\nstep by step \\boxed{}.", "x" * 200, "解 🙂 \u2028", " a\t"],
)
def test_dump_round_trips(write, suffix):
    config = load([write(PIPELINE + EVALUATION)]).config
    prompt = dataclasses.replace(config.prompt, suffix=suffix)
    sampling = dataclasses.replace(config.rl.sampling, stop=("\n\n", "no", "# x"))
    config = dataclasses.replace(config, prompt=prompt, rl=dataclasses.replace(config.rl, sampling=sampling))
    text = dump(config)
    assert load([write(text, "b.yaml")]).config == config
    assert yaml.safe_load(text) == tree_of(config)  # other readers of YAML agree


def test_dump_says_where_values_come_from(write):
    command = load([write(), "--seed", "4"])
    lines = dump(command.config, command.origins).splitlines()
    assert "output_dir: run  # a.yaml:1" in lines and "seed: 4  # --seed" in lines
    assert "    - kind: user_kinds.right  # a.yaml:13" in lines
    write("\n".join(lines), "b.yaml")
    assert load(["b.yaml"]).config == command.config


def test_difference():
    old = {"a": 1, "b": {"c": 2, "d": [{"k": 1}]}, "e": 0}
    new = {"a": 1, "b": {"c": 3, "d": [{"k": 2}]}, "f": "x"}
    assert difference(old, new) == ["b.c: 2 -> 3", "b.d.0.k: 1 -> 2", "e: 0 -> absent", "f: absent -> 'x'"]
    assert difference(old, old) == []


def test_of_long_texts_the_part_that_differs_is_shown():
    (line,) = difference({"a": "x" * 500 + "y" * 500}, {"a": "x" * 500 + "z"})
    assert line.startswith("a: ...xxx") and "xyyy" in line and line.endswith("xz'") and len(line) < 200


def test_a_run_of_an_older_program_goes_on(write, tmp_path):
    """A key that it did not have stands for its default; set to something else it is a difference."""
    config = load([write()]).config
    saved = tmp_path / "config.yaml"
    lines = dump(config).splitlines()
    older = [line for line in lines if "sync_ref_model" not in line and "ref_model_sync_steps" not in line]
    assert len(older) == len(lines) - 2
    saved.write_text("\n".join(older))
    assert check_resume(saved, config) == []
    with pytest.raises(ConfigError, match=r"rl\.ref_model_sync_steps: 512 -> 3"):
        check_resume(saved, load(["a.yaml", "--rl.ref_model_sync_steps", "3"]).config)


def test_check_resume(write, tmp_path):
    config = load([write()]).config
    saved = tmp_path / "config.yaml"
    assert check_resume(saved, config) == []
    saved.write_text(dump(config))
    assert check_resume(saved, config) == []
    free = [
        "--rl.logging_steps",
        "9",
        "--mesh.tensor",
        "2",
        "--report_to",
        "wandb",
        "--sft.microbatches",
        "2",
    ]
    changes = check_resume(saved, load(["a.yaml", *free]).config)
    assert len(changes) == 4 and "rl.logging_steps: 1 -> 9" in changes and "mesh.tensor: 1 -> 2" in changes
    tool = ["--rl.tools.kind", "python"]
    saved.write_text(dump(load(["a.yaml", *tool]).config))
    moved = load(["a.yaml", *tool, "--rl.tools.workers", "4", "--rl.tools.sandbox", "namespaces"]).config
    assert len(check_resume(saved, moved)) == 2
    with pytest.raises(ConfigError, match=r"rl\.tools\.max_rounds: 4 -> 1"):
        check_resume(saved, load(["a.yaml", *tool, "--rl.tools.max_rounds", "1"]).config)
    saved.write_text(dump(config))
    other = load(["a.yaml", "--rl.algorithm.beta", "0.5", "--rl.max_steps", "600", "--seed", "9"]).config
    with pytest.raises(ConfigError, match=r"rl\.algorithm\.beta: 0\.01 -> 0\.5") as error:
        check_resume(saved, other)
    for part in (str(saved), "seed: 3 -> 9", "rl.max_steps: 500 -> 600", "--output_dir"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match="seed") as error:
        check_resume(saved, other, started=["sft"])  # rl has computed nothing yet
    assert "rl." not in str(error.value)


# --- the command ---


def run(*argv, cwd=None):
    command = [sys.executable, str(ROOT / "launch" / "train.py"), *argv]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_help_is_quick_and_without_jax(write, tmp_path):
    program = (
        "import sys, time; start = time.perf_counter()\n"
        "from grpo_jax.configure import load\n"
        "try: load(['a.yaml', '--help'])\n"
        "except SystemExit: print('seconds', time.perf_counter() - start)\n"
        "heavy = {'jax', 'flax', 'numpy', 'transformers', 'torch'} & set(sys.modules)\n"
        "print('heavy', heavy)\n"
    )
    write(PIPELINE.replace("path: train.jsonl", "part: {name: z}"))  # what is missing is shown as required
    env = os.environ | {"PYTHONPATH": sys.path[0], "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert "heavy set()" in done.stdout, done.stdout[-2000:] + done.stderr
    seconds = float(done.stdout.split("seconds ")[1].split()[0])
    print(f"--help: {seconds:.2f} s")
    assert seconds < 10  # about 0.3 on an idle machine
    for part in (
        "--rl.rewards.1.most INT",
        "--rl.source.path STR",
        "(required)",
        "--rl.algorithm.beta FLOAT",
        "The file.",
        "(default: 7)",
        "--rl.algorithm.kind {grpo}",
        "evaluation",
    ):
        assert part in done.stdout, part
    assert "--evaluation" not in done.stdout


def test_train_prints_errors_without_traceback(write, tmp_path):
    done = run("--rl.max_stepz", "3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --rl.max_stepz: no such setting; did you mean --rl.max_steps?\n"
    done = run("--rl.max_stepz", "3", "--debug", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" in done.stderr


def test_train_prints_the_config(tmp_path):
    done = run("--print-config", "--seed", "7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seed: 7  # --seed" in done.stdout
    assert yaml.safe_load(done.stdout)["output_dir"] == "runs/tiny"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        ("ConfigError('a\\nb')", 2, "error: a\nb\n"),
        ("FileNotFoundError(2, 'No such file', 'x')", 2, "error: [Errno 2] No such file: 'x'\n"),
        ("type('Unwell', (ValueError,), {'exit_code': 4})('sick')", 4, "error: sick\n"),
        ("type('Ended', (Exception,), {'exit_code': 143})('saved')", 143, "stopped: saved\n"),
        ("KeyboardInterrupt()", 130, "interrupted\n"),
        ("KeyError('x')", 1, "Traceback"),
        ("ConfigError('\\n'.join(map(str, range(99))))", 2, "... (--debug shows all)\n"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, shown):
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    import train

    def fail(argv):
        raise eval(error)

    monkeypatch.setattr(train, "load", fail)
    assert train.main([]) == code
    printed = capsys.readouterr().err
    assert shown in printed and (len(printed.splitlines()) <= 20 or code == 1)


# --- the files that are shipped ---


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = load([str(path)])
    assert command.config.output_dir == f"runs/{path.stem}"
    Path("again.yaml").write_text(dump(command.config))
    assert load(["again.yaml"]).config == command.config


def test_the_default_file():
    assert default_file().resolve() == ROOT / "configs" / "tiny.yaml"


def test_the_papers_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load([str(ROOT / "configs" / "deepseekmath_7b.yaml")]).config
    rl, sft = config.rl, config.sft
    assert rl.prompts_per_step * rl.num_generations == 1024 and rl.num_generations == 64
    assert (rl.algorithm.kind, rl.algorithm.beta, rl.optimizer.learning_rate) == ("grpo", 0.04, 1e-6)
    assert (rl.num_iterations, rl.sampling.max_completion_length) == (1, 1024)
    assert (sft.max_steps, sft.batch_size, sft.max_length) == (500, 256, 4096)
    assert (sft.optimizer.learning_rate, sft.optimizer.lr_scheduler_type) == (5e-5, "constant")


def test_nobody_reads_what_is_printed():
    """`launch/train.py --help | head` is no bad input, and nothing is said of it."""
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "launch/train.py", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    )
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), said) == (141, b"")
