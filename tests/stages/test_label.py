"""The label stage: what its numbers mean, that it goes on after a kill, and what it prints before it costs anything."""

import json
import re
import shutil
from unittest import mock

import pytest
from small_runs import assert_equal_leaves, assert_well_said, launched, ledger, metrics, run, write_settings

from grpo_jax.data.labels.steps import Config, build
from grpo_jax.models.fingerprint import model_fingerprint
from grpo_jax.rewards.equivalent import RIGHT, grade
from grpo_jax.rewards.extract import extract_answer
from grpo_jax.stages import label
from grpo_jax.stages.journal import Journal, JournalError

SOURCE = {"kind": "arithmetic", "first_digits": 1, "steps": 2}
SFT = {"source": {**SOURCE, "slip_rate": 0.5}, "max_steps": 200, "batch_size": 32, "max_length": 16}
LABEL = {
    "source": {**SOURCE, "size": 21},
    "reward": {"kind": "accuracy"},
    "num_solutions": 3,
    "num_completions": 4,
    "batch_prompts": 4,
    "sampling": {"max_completion_length": 6, "temperature": 0.7},
}
MODEL = {
    "max_steps": 2,
    "logging_steps": 1,
    "batch_size": 8,
    "max_length": 24,
    "held_out": 0.2,
    "optimizer": {"learning_rate": 1e-2},
}
LEARNED = {"rewards": [{"kind": "learned", "whole": "min"}], "source": SOURCE, "max_steps": 1}
PROMPT = {"format": "text", "max_prompt_length": 8}
WHOLE = {"sft": SFT, "label": LABEL, "prompt": PROMPT}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, workers):
    folder = tmp_path_factory.mktemp("labelled")
    file = write_settings(folder / "run.yaml", **WHOLE, rl=None)
    run(file, folder / "run", workers)
    return file, folder / "run"


def rows(directory):
    return [json.loads(line) for line in (directory / "label" / "labels.jsonl").read_text().splitlines()]


def test_what_the_labels_say(labelled):
    """The tokens are the text; the last step's estimate is the verdict on the answer, the others' shares of N."""
    _, directory = labelled
    found = rows(directory)
    assert len({(row["question"], str(row["steps"])) for row in found}) == len(found) > 21
    for row in found:
        *before, last = row["steps"]
        text = "\n".join(step["text"] for step in row["steps"])
        assert row["outcome"] == float(grade(extract_answer(text), row["answer"]).grade is RIGHT)
        assert (last["completions"], last["hard"], last["soft"]) == (1, row["outcome"], row["outcome"])
        for step in before:
            assert (
                step["completions"] == 4 and step["soft"] == step["right"] / 4 and step["hard"] == (step["right"] > 0)
            )
    shares = [step["soft"] for row in found for step in row["steps"][:-1]]
    assert len(set(shares)) > 2  # the policy is neither sure nor lost
    summary = json.loads((directory / "label" / "summary.json").read_text())
    assert summary["solutions"] == len(found) and summary["steps"] == sum(len(row["steps"]) for row in found)


def test_equal_beginnings_are_completed_once_and_labelled_alike(labelled):
    _, directory = labelled
    seen: dict = {}
    for row in rows(directory):
        ids: tuple = ()
        for step in row["steps"][:-1]:
            ids += tuple(step["ids"])
            assert seen.setdefault((row["question"], ids), step["right"]) == step["right"]
    lines = (directory / "label" / "prefixes.jsonl").read_text().splitlines()
    assert len(lines) == len(seen) + 1  # the first says what the file is of
    steps = sum(len(row["steps"]) - 1 for row in rows(directory))
    assert len(seen) < steps


def test_it_goes_on_after_a_kill_whatever_the_batch(labelled, workers, tmp_path, capsys):
    """Killed while a line of each file was being written; another batch size; the labels are the same bytes."""
    file, unbroken = labelled
    shutil.copytree(unbroken, directory := tmp_path / "run")
    stage = directory / "label"
    for name in ("done.json", "labels.jsonl", "summary.json"):
        (stage / name).unlink()
    shutil.rmtree(directory / "hf")
    for name, keep in (("solutions.jsonl", 6), ("prefixes.jsonl", 0)):
        lines = (stage / name).read_text().splitlines(keepends=True)
        (stage / name).write_text("".join(lines[:keep]) + lines[keep][:9])
    capsys.readouterr()
    (stage / "prefixes.jsonl").unlink()
    run(file, directory, workers, "--label.batch_prompts", "6")
    said = " ".join(capsys.readouterr().out.split())
    assert "21 problems x 3 solutions = 63 completions first" in said
    counted = re.search(r"(\d+) different beginnings x 4 = (\d+) completions to sample \(without sharing (\d+)\)", said)
    prefixes, cost, without = map(int, counted.groups())
    assert cost == 4 * prefixes < without and said.index(counted[0]) < said.index("label: completions")
    assert (stage / "labels.jsonl").read_bytes() == (unbroken / "label" / "labels.jsonl").read_bytes()
    assert ledger(directory) == ledger(unbroken)


def test_killed_among_the_completions(labelled, workers, tmp_path):
    file, unbroken = labelled
    shutil.copytree(unbroken, directory := tmp_path / "run")
    stage = directory / "label"
    (stage / "done.json").unlink()
    (stage / "labels.jsonl").unlink()
    lines = (stage / "prefixes.jsonl").read_text().splitlines(keepends=True)
    (stage / "prefixes.jsonl").write_text("".join(lines[:3]) + lines[3][:5])
    sampled = mock.Mock(wraps=label.verdicts)
    with mock.patch.object(label, "verdicts", sampled):
        run(file, directory, workers)
    assert sampled.call_count == -(-(len(lines) - 3) // LABEL["batch_prompts"])  # and no solution again
    assert (stage / "labels.jsonl").read_bytes() == (unbroken / "label" / "labels.jsonl").read_bytes()
    assert ledger(directory) == ledger(unbroken)


def test_the_ledger_counts_solutions_and_completions(labelled):
    """What a rollout and the journals say; the weights it starts from are those that sft left."""
    stage = labelled[1] / "label"
    solutions, prefixes = (
        [json.loads(line) for line in (stage / name).read_text().splitlines()[1:]]
        for name in ("solutions.jsonl", "prefixes.jsonl")
    )
    found = ledger(labelled[1])["stages"]
    written = [len(row["ids"]) for line in solutions for row in line["solutions"]]
    counts = found["label"]["counts"]
    assert counts["prompts"] == 21 + len(prefixes) and counts["completions"] == 21 * 3 + 4 * len(prefixes)
    assert counts["generated_tokens"] == sum(written) + sum(line["tokens"] for line in prefixes)
    assert all(4 <= line["tokens"] <= 4 * 6 for line in prefixes)
    assert counts["optimizer_steps"] == 0 and found["label"]["starts_from"]["name"] == "sft, step 200"
    assert found["label"]["starts_from"]["fingerprint"] != found["sft"]["starts_from"]["fingerprint"]


def test_a_reward_model_and_rl_by_it(labelled, workers, tmp_path):
    """The whole chain; the reward model learns the tokens as they were sampled."""
    _, unbroken = labelled
    shutil.copytree(unbroken, directory := tmp_path / "run")
    shutil.rmtree(directory / "hf")
    run(write_settings(tmp_path / "run.yaml", **WHOLE, reward_model=MODEL, rl=LEARNED), directory, workers)
    solutions = build(Config(path=str(directory / "label" / "labels.jsonl")), 0)
    assert all(solution.sampled is not None for solution in solutions)
    assert metrics(directory, "reward_model")[0]["loss"] > 0 and metrics(directory, "rl")
    found = ledger(directory)["stages"]
    assert list(found) == ["sft", "label", "reward_model", "rl"]
    lines, counts = metrics(directory, "reward_model"), found["reward_model"]["counts"]
    lines = [line for line in lines if "num_labels" in line]
    assert counts["labels"] == sum(line["num_labels"] for line in lines) > 0 and counts["optimizer_steps"] == 2
    weights = model_fingerprint(directory / "reward_model" / "model")["weights"]
    assert [model["weights"] for model in found["rl"]["reward_models"]] == [weights]
    assert_equal_leaves(directory, unbroken, "sft")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": LABEL | {"reward": {"kind": "length", "max_length": 9, "buffer": 3}}}, ("label.reward: length",)),
        ({"label": LABEL | {"sampling": {"max_completion_length": 5000}}}, ("label.sampling.max_completion_length",)),
        ({"label": LABEL | {"decode_rows": 5}}, ("decode_rows: 5 rows",)),
        ({"reward_model": MODEL, "label": None}, ("reward_model.labels is absent", "no section label")),
        ({"reward_model": MODEL | {"supervision": "preference"}}, ("the label stage makes no pairs",)),
    ],
)
def test_refused(tmp_path, capsys, changes, words):
    file = write_settings(tmp_path / "run.yaml", **{**WHOLE, "rl": None, **changes})
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and not (tmp_path / "run" / "sft").exists()
    assert_well_said(message, words)


def test_labels_come_before_the_reward_model(tmp_path, capsys):
    file = write_settings(tmp_path / "run.yaml", **WHOLE, rl=None, reward_model=MODEL)
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run"), "--only", "sft,reward_model"], capsys)
    assert code == 2
    assert_well_said(message, ("reward_model learns from what label writes", "add label to --only"))


def test_whole_solutions_alone(labelled, workers, tmp_path, capsys):
    """Without completions nothing is said of steps, the solutions are the same, and a model of outcomes learns them."""
    _, unbroken = labelled
    shutil.copytree(unbroken, directory := tmp_path / "run", ignore=shutil.ignore_patterns("label", "hf"))
    wholes = WHOLE | {"label": LABEL | {"num_completions": 0}}
    file = write_settings(tmp_path / "run.yaml", **wholes, reward_model=MODEL | {"supervision": "outcome"}, rl=None)
    run(file, directory, workers)
    assert "21 problems x 3 solutions = 63 completions\n" in capsys.readouterr().out
    assert not (directory / "label" / "prefixes.jsonl").exists()
    found = rows(directory)
    assert [row["outcome"] for row in found] == [row["outcome"] for row in rows(unbroken)]
    assert {str(step) for row in found for step in row["steps"] if step["soft"] is not None} == set()
    assert metrics(directory, "reward_model")[0]["num_labels"] > 0
    file = write_settings(tmp_path / "steps.yaml", **wholes, reward_model=MODEL, rl=None)
    code, message = launched([str(file), "--output_dir", str(tmp_path / "other")], capsys)
    assert code == 2
    assert_well_said(message, ("supervision is process", "label.num_completions 0", "supervision to outcome"))


def test_a_journal_of_other_work_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path, {"problems": 3}).add([{"a": 1}, {"a": 2}])
    assert Journal(path, {"problems": 3}).lines == [{"a": 1}, {"a": 2}]
    with pytest.raises(JournalError, match=r"is of other work: \{\"problems\":3\} then, \{\"problems\":4\} now"):
        Journal(path, {"problems": 4})
    path.write_text('{"problems":3}\n{"a":\n{"a":2}\n')
    with pytest.raises(JournalError, match="line 2: not a JSON object"):
        Journal(path, {"problems": 3})
    path.write_text('{"probl')  # killed in the first line
    Journal(path, {"problems": 3}).add([{"a": 1}])
    assert path.read_text() == '{"problems":3}\n{"a":1}\n'


def test_completions_of_an_older_program_are_kept():
    """It did not count their tokens; hours of work are not thrown away for that."""
    lines = [{"prefix": 0, "right": 1}, {"prefix": 1, "right": 2, "tokens": 7}]
    assert label.taken((), lines, 4) == {"prompts": 2, "completions": 8, "generated_tokens": 7}
