"""The ledger without runs: every setting has its place beside the paper, counts survive stops, runs are compared."""

import dataclasses
import json
import sys
import typing
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import yaml
from synthetic_run import make_run

from grpo_jax.algorithms.advantages import group_normalized
from grpo_jax.config import Config, Kind
from grpo_jax.configure import MAY_CHANGE, find, load, names
from grpo_jax.reporting import paper
from grpo_jax.reporting.choices import choices, method, rewards
from grpo_jax.reporting.ledger import COUNTED, Ledger, read_ledger
from grpo_jax.reporting.report import write_report
from launch.compare import main

PACKAGES = ("algorithms", "rewards", "data.sources", "data.labels", "evaluation.benchmarks", "tools")
TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml"
DATA = {"problems": 3, "fingerprint": "0123456789abcdef"}


def parts(hint):
    yield hint
    yield from getattr(hint, "__metadata__", ())
    for argument in typing.get_args(hint):
        yield from parts(argument)


def keys(cls, prefix=""):
    """Every setting that a section may have: its fields, and those of the sections in it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        found, here = list(parts(hints[field.name])), f"{prefix}{field.name}"
        section = next((part for part in found if isinstance(part, type) and dataclasses.is_dataclass(part)), None)
        kind = any(isinstance(part, Kind) for part in found)
        if not (kind or section) or (type(None) in found and prefix):
            yield here
        if section:
            yield from keys(section, f"{here}.")


def every_key() -> list[str]:
    kinds = (keys(find(package, kind).Config, f"{package}.{kind}.") for package in PACKAGES for kind in names(package))
    return [*keys(Config), *(key for of_kind in kinds for key in of_kind)]


def config():
    return load([str(TINY)]).config


def write(folder, rl: dict):
    tree = yaml.safe_load(TINY.read_text("utf-8"))
    tree["rl"] |= rl
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return load([str(folder / "run.yaml")]).config


def test_every_setting_has_its_place_beside_the_paper():
    every = every_key()
    assert len(every) > 400 and {"rl.sampling.temperature", "algorithms.ppo.value_optimizer.weight_decay"} <= {*every}
    assert not [key for key in every if paper.says(key) is None], "give them a place in grpo_jax/reporting/paper.py"
    assert not paper.EXACT.keys() - set(every), "of settings that are no more"
    assert not [p for p, _ in paper.PATTERNS if not any(fnmatchcase(key, p) for key in every)]


@pytest.mark.parametrize("package", ["rewards", "data", "my_rewards"])
def test_a_module_of_the_users_own_may_have_any_name(package, tmp_path, monkeypatch):
    """That of one of our packages too: its settings are not taken for ours, and stop no run."""
    folder = tmp_path / f"{package}_{tmp_path.name.strip('_')}" if package == "my_rewards" else tmp_path / package
    folder.mkdir()
    lines = ["from grpo_jax.config import config", "", "@config", "class Config:", "    sharpness: float = 2.0", ""]
    (folder / "sharp.py").write_text("\n".join([*lines, "def build(c):", "    raise NotImplementedError", ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in (folder.name, f"{folder.name}.sharp"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    c = write(tmp_path, {"rewards": [{"kind": f"{folder.name}.sharp"}], "fused_steps": 0})
    found = {one.name: one for one in choices(c, "rl")}
    assert found["rl.rewards.0.sharpness"][1:] == (2.0, "beyond", "a module of the user's own")


def test_who_does_not_write_reads_nothing(tmp_path, monkeypatch):
    """A process that is faster than the first one finds no file, or an old one, and goes on."""
    monkeypatch.setattr("grpo_jax.reporting.ledger.is_primary", lambda: False)
    (tmp_path / "ledger.json").write_text("{ half")
    ledger = Ledger(tmp_path, config(), 1)
    ledger.begin("rl", DATA)
    ledger.tell("rl", starts_from={"name": "sft"})
    assert ledger.kept("rl", 1)["starts_from"] == {"name": "sft"}
    assert (tmp_path / "ledger.json").read_text() == "{ half"


def test_a_new_setting_is_noticed():
    """In the sections and kinds of the paper no pattern catches what nobody has thought of."""
    for place in ("rl", "sft", "reward_model", "rl.sampling", "rl.optimizer", "algorithms.grpo", "algorithms.ppo",
                  "algorithms.new_method", "rewards.accuracy", "rewards.learned", "prompt", "model"):  # fmt: skip
        assert paper.says(f"{place}.something_new") is None, place


def test_what_does_not_touch_the_result_is_what_may_change_when_a_run_goes_on():
    apart = [key for key in every_key() if paper.says(key).relation == "apart"]
    assert not [key for key in apart if not {*key.split(".")} & MAY_CHANGE]
    others = [key for key in every_key() if paper.says(key).relation != "apart"]
    assert not [key for key in others if {*key.split(".")} & MAY_CHANGE]


def test_the_choices_that_the_paper_leaves_open():
    """Those that paper.md lists, by value."""
    found = {one.name: one for stage in ("", "sft", "rl") for one in choices(config(), stage)}
    left_open = {name: one.value for name, one in found.items() if one.relation == "open"}
    expected = {
        "rl.algorithm.epsilon": 0.2,
        "rl.sampling.temperature": 1.0,
        "rl.sampling.top_p": 1.0,
        "rl.optimizer.warmup_steps": 10,
        "rl.optimizer.weight_decay": 0.0,
        "rl.mask_truncated_completions": False,
        "rl.max_steps": 300,
        "prompt.max_prompt_length": 8,
        "rl: optimizer": "AdamW",
        "rl: |o|": "counts the end of sequence, and no token of a tool",
        "rl: groups of equal rewards": "count in the means",
        "rl: added to the deviation": 0.0,
        "rl: standard deviation": "the population's: over n, not n - 1",
        "sft: examples of a row": "do not see one another",
    }
    assert expected.items() <= left_open.items()
    assert found["rl.num_generations"].relation == found["rl.algorithm.beta"].relation == "stated"
    assert not [name for name in found if "microbatches" in name or "save_steps" in name]
    advantages = np.asarray(group_normalized(np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])))
    assert advantages.tolist() == [[-1.0, 1.0, -1.0, 1.0], [0.0] * 4], "what is said of the deviation"


METHODS = {
    "grpo": ("outcome", "arXiv:2402.03300, eq. 3 and 4", "count in the means"),
    "rft": ("outcome", "arXiv:2402.03300, eq. 8 to 10", "count in the means"),
    "online_rft": ("outcome", "arXiv:2402.03300, eq. 10 and 11", "count in the means"),
    "dpo": ("outcome", "arXiv:2402.03300, eq. 12 to 14; arXiv:2305.18290, eq. 7", "count in the means"),
    "ppo": ("outcome", "arXiv:2402.03300, eq. 1 and 2; arXiv:1707.06347, eq. 7", "count in the means"),
    "dapo": ("outcome", "arXiv:2503.14476, eq. 8 to 12", "are left out of the means"),
}


@pytest.mark.parametrize("kind", METHODS)
def test_methods(kind, tmp_path):
    """Each with its paper and equations; what section 4.2 states is of GRPO alone."""
    c = write(tmp_path, {"algorithm": {"kind": kind}})
    found = method(c, "rl")
    chosen = {one.name: one for one in choices(c, "rl")}
    dead = chosen["rl: groups of equal rewards"].value
    assert (found["kind"], (found["supervision"], found["source"], dead)) == (kind, METHODS[kind])
    assert found["settings"].keys() == {f.name for f in dataclasses.fields(find("algorithms", kind).Config)}
    assert chosen["rl.num_generations"].relation == ("stated" if kind == "grpo" else "open")
    assert ("rl: standard deviation" in chosen) == (kind in ("grpo", "dapo"))


def test_every_method_names_its_source(tmp_path):
    for kind in names("algorithms"):
        assert (method(write(tmp_path, {"algorithm": {"kind": kind}}), "rl")["source"] or "").startswith("arXiv:"), kind


def test_process_supervision_and_the_users_own(tmp_path):
    own = {"kind": "tests.stages.rewards_for_tests"}
    steps = {"kind": "step_match", "split": "tokens"}
    c = write(tmp_path, {"rewards": [steps, own], "fused_steps": 0})
    assert method(c, "rl")["supervision"] == "process"
    assert [reward["kind"] for reward in rewards(c, "rl")] == ["step_match", own["kind"]]
    found = {one.name: one for one in choices(c, "rl")}
    assert "rl: end of the last step" in found and found["rl.rewards.0.split"].relation == "open"
    assert found["rl.rewards.1.weight"].paper == "a module of the user's own"


# --- counts ---


def test_what_was_not_saved_does_not_count(tmp_path):
    """Killed after a save, the ledger of the process that goes on is that of one that was not killed."""
    first, second, unbroken = (Ledger(tmp_path / "run", config(), 4) for _ in range(3))
    first.begin("rl", DATA)
    first.tell("rl", starts_from={"name": "sft, step 4", "fingerprint": "f"})
    first.count("rl", generated_tokens=10, optimizer_steps=1)
    kept = json.loads(json.dumps(first.kept("rl", 1)))  # as a checkpoint keeps it
    first.count("rl", generated_tokens=99, optimizer_steps=1)
    assert read_ledger(tmp_path / "run")["stages"]["rl"]["counts"]["generated_tokens"] == 0, "not on the disk yet"
    first.saved("rl", 1)
    assert read_ledger(tmp_path / "run")["stages"]["rl"]["counts"]["generated_tokens"] == 10
    # killed here
    second.begin("rl", DATA, kept, step=1)
    assert second.totals("rl")["total/generated_tokens"] == 10
    second.count("rl", generated_tokens=7, optimizer_steps=1)
    second.finish("rl", 2)
    found = read_ledger(tmp_path / "run")["stages"]["rl"]
    assert (found["state"], found["step"]) == ("finished", 2)
    assert found["counts"]["generated_tokens"] == 17 and found["counts"]["optimizer_steps"] == 2
    assert found["starts_from"]["name"] == "sft, step 4" and found["began"] == kept["began"]
    assert found["counts"]["device_seconds"] == pytest.approx(4 * found["counts"]["seconds"], abs=0.01)
    unbroken.begin("sft", DATA)
    unbroken.count("sft", trained_tokens=5)
    unbroken.finish("sft", 1)
    totals = read_ledger(tmp_path / "run")["totals"]
    assert totals["trained_tokens"] == 5 and totals["generated_tokens"] == 17 and totals.keys() == set(COUNTED)


def test_what_is_done_within_a_stage_counts_in_the_run(tmp_path):
    """As iterative GRPO labels and trains its reward model between iterations, in directories of their own."""
    part, whole = Ledger(tmp_path / "rl" / "iteration_1", config(), 1), Ledger(tmp_path, config(), 1)
    part.begin("sft", DATA)
    part.count("sft", generated_tokens=30)
    part.finish("sft", 1)
    whole.begin("rl", DATA)
    whole.count("rl", generated_tokens=12)
    whole.finish("rl", 1)
    found = read_ledger(tmp_path)
    assert found["parts"]["rl/iteration_1"]["generated_tokens"] == 30
    assert found["totals"]["generated_tokens"] == 42 and found["stages"]["rl"]["counts"]["generated_tokens"] == 12


def test_time_goes_on_where_it_was(tmp_path):
    ledger = Ledger(tmp_path, config(), 2)
    ledger.begin("rl", DATA, {"counts": {"seconds": 100.0, "device_seconds": 800.0}, "began": "then"}, step=3)
    counts = ledger.kept("rl", 4)["counts"]
    assert 100.0 <= counts["seconds"] < 101.0 and 800.0 <= counts["device_seconds"] < 802.0


def test_time_that_is_counted_elsewhere(tmp_path, monkeypatch):
    now = [10.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    ledger = Ledger(tmp_path, config(), 2)
    ledger.begin("rl", DATA, {"counts": {"seconds": 100.0, "device_seconds": 200.0}})
    now[0] += 1
    with ledger.paused("rl"):
        now[0] += 50
        assert ledger.kept("rl", 1)["counts"]["seconds"] == 101.0
    now[0] += 2
    counts = ledger.kept("rl", 2)["counts"]
    assert (counts["seconds"], counts["device_seconds"]) == (103.0, 206.0)


def test_another_run_in_a_directory_below_is_no_part(tmp_path):
    for folder in (tmp_path / "study" / "first", tmp_path):
        ledger = Ledger(folder, config(), 1)
        ledger.begin("rl", DATA)
        ledger.count("rl", generated_tokens=30)
        ledger.finish("rl", 1)
    found = read_ledger(tmp_path)
    assert "parts" not in found and found["totals"]["generated_tokens"] == 30


def test_a_checkpoint_of_an_older_program(tmp_path):
    ledger = Ledger(tmp_path, config(), 1)
    ledger.begin("rl", DATA, None, step=30)
    ledger.finish("rl", 40)
    assert read_ledger(tmp_path)["stages"]["rl"]["counted_from_step"] == 30


def test_a_count_that_there_is_not(tmp_path):
    ledger = Ledger(tmp_path, config(), 1)
    ledger.begin("rl", DATA)
    with pytest.raises(KeyError, match="tokens_generated"):
        ledger.count("rl", tokens_generated=3)


def test_a_broken_ledger_is_named(tmp_path):
    (tmp_path / "ledger.json").write_text('{"stages": ')
    with pytest.raises(ValueError, match=r"ledger.json: not a JSON object; delete it"):
        read_ledger(tmp_path)


# --- beside one another ---


def a_run(folder, tokens: int, **rl):
    """A run of three steps, each of so many tokens."""
    folder.mkdir(parents=True)
    ledger = Ledger(folder, write(folder, rl), 1)
    ledger.begin("rl", DATA)
    ledger.tell("rl", starts_from={"name": "sft, step 4", "fingerprint": "f"})
    (folder / "rl").mkdir()
    with open(folder / "rl" / "metrics.jsonl", "w") as file:
        for step in (1, 2, 3):
            ledger.count("rl", generated_tokens=tokens, optimizer_steps=1)
            file.write(json.dumps({"step": step, "reward": 0.1 * step, **ledger.totals("rl")}) + "\n")
    ledger.finish("rl", 3)
    return folder


def test_compare(tmp_path, capsys):
    """What is printed is what differs and no more; a line of the picture ends where the run's tokens end."""
    one = a_run(tmp_path / "grpo", 100)
    other = a_run(tmp_path / "rft", 400, algorithm={"kind": "rft"}, microbatches=8)
    out = tmp_path / "compare.svg"
    assert main([str(one), str(other), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split() for line in said.splitlines() if line}
    assert "rl: method" in lines and "grpo" in said and "rft with outcome supervision" in said
    assert lines["rl.algorithm.beta"][1:] == ["0.01", "0.0"] and lines["rl.algorithm.threshold"][1:] == ["-", "0.5"]
    assert lines["rl: generated tokens"][-2:] == ["300", "1,200"]
    for same in ("seed", "rl.sampling.temperature", "rl: starts from", "microbatches"):
        assert not any(name.startswith(same) or name.endswith(same) for name in lines), same
    picture = out.read_text()
    paths = [line.split('"')[0] for line in picture.split('points="')[1:]]
    ends = [float(path.split()[-1].split(",")[0]) for path in paths]
    assert len(ends) == 2 and ends[0] - 64 == pytest.approx((ends[1] - 64) / 4, abs=0.1)
    assert "reward" in picture and "tokens generated in rl" in picture and ">1,200<" in picture


def test_a_stage_that_generates_nothing_is_compared_by_what_it_learnt(tmp_path, capsys):
    for folder, tokens in ((tmp_path / "short", 50), (tmp_path / "long", 100)):
        folder.mkdir()
        ledger = Ledger(folder, config(), 1)
        ledger.begin("sft", DATA)
        (folder / "sft").mkdir()
        with open(folder / "sft" / "metrics.jsonl", "w") as file:
            for step in (1, 2):
                ledger.count("sft", trained_tokens=tokens)
                file.write(json.dumps({"step": step, "loss": 1.0 / step, **ledger.totals("sft")}) + "\n")
    out = tmp_path / "x.svg"
    assert main([str(tmp_path / "short"), str(tmp_path / "long"), "--stage", "sft", "--out", str(out)]) == 0
    assert "loss over the tokens trained in sft" in capsys.readouterr().out
    picture = out.read_text()
    assert "tokens trained in sft" in picture and ">200<" in picture
    ends = [float(line.split('"')[0].split()[-1].split(",")[0]) for line in picture.split('points="')[1:]]
    assert ends[0] - 64 == pytest.approx((ends[1] - 64) / 2, abs=0.1)


def test_a_stage_that_not_all_have_is_one_line(tmp_path, capsys):
    runs = [a_run(tmp_path / name, 100) for name in ("with", "without")]
    ledger = Ledger(runs[0], config(), 1)
    ledger.begin("sft", DATA)
    ledger.count("sft", trained_tokens=12)
    ledger.finish("sft", 3)
    assert main([*map(str, runs), "--out", str(tmp_path / "x.svg")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("sft")]
    lines = [line for line in lines if "seconds" not in line]
    assert lines == [["sft:", "method", "sft", "-"], ["sft:", "trained", "tokens", "12", "-"]]


def test_settings_that_change_no_result_are_told_apart(tmp_path, capsys):
    runs = [a_run(tmp_path / name, 100) for name in ("one", "two")]
    for run, rows in zip(runs, (0, 32), strict=True):
        (run / "config.yaml").write_text(f"output_dir: {run}\nrl: {{decode_rows: {rows}, max_steps: 3}}\n")
    assert main([*map(str, runs), "--out", str(tmp_path / "x.svg")]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["rl.decode_rows", "0", "32"] in said and not any("output_dir" in line for line in said)


def test_runs_that_cannot_be_compared(tmp_path, capsys):
    one = a_run(tmp_path / "a" / "run", 100)
    other = a_run(tmp_path / "b" / "run", 100)
    (tmp_path / "empty").mkdir()
    for argv, words in (
        ([one, tmp_path / "empty"], ("empty: holds no ledger.json",)),
        ([one, one], ("the same run twice",)),
        ([one, other, "--metric", "eval/greedy"], ("a/run: no line of rl/metrics.jsonl has eval/greedy",)),
        ([one, other, "--stage", "sft"], ("a/run: has no sft/metrics.jsonl",)),
    ):
        assert main([*map(str, argv), "--out", str(tmp_path / "x.svg")]) == 2
        error = capsys.readouterr().err
        assert all(word in error for word in words), error
    assert not (tmp_path / "x.svg").exists()
    assert main([str(one), str(other), "--out", str(tmp_path / "x.svg")]) == 0
    assert "What differs:\n  nothing" in (said := capsys.readouterr().out) and "a/run" in said


def test_the_report_has_a_section(tmp_path):
    run = make_run(tmp_path / "run", steps=3, rollout_files=1, groups=1)
    assert 'id="ledger"' not in write_report(run).read_text("utf-8")
    ledger = Ledger(run, write(tmp_path, {"rewards": [{"kind": "exact", "form": "<b>{answer}"}]}), 1)
    ledger.begin("rl", DATA)
    ledger.count("rl", generated_tokens=12345)
    ledger.finish("rl", 3)
    page = write_report(run).read_text("utf-8")
    section = page[page.index('<section id="ledger"') : page.index('<section id="config"')]
    for words in (
        "12,345",
        "grpo with outcome supervision",
        "leaves open: in eq. 3 without a value",
        "arXiv:2402.03300, eq. 3 and 4",
        "finished, step 3",
        "&lt;b&gt;{answer}",
        "prompt.template",
    ):
        assert words in section, words
