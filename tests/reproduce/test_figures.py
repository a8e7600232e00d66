"""Invented records of finished runs in, words and files out: each claim both ways."""

import json

import pytest

from grpo_jax.configure import dump, find, kind_class
from grpo_jax.evaluation.estimators import Interval
from grpo_jax.reporting.ledger import COUNTED
from grpo_jax.reproduce import figure5, figure6, figure7
from grpo_jax.reproduce.experiments import ARMS, BEST, ITERATIONS, ITERATIVE, SCALES, STEM
from grpo_jax.reproduce.figure7 import Compared
from grpo_jax.reproduce.records import RecordError, curve_of, reward_curve, risen_since, samples_of
from grpo_jax.reproduce.results import write

SCALE = SCALES["tiny"]
PROBLEMS = 60


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def put_samples(run, name, shares, n=8, *, question="47+8=", wrong="45"):
    """Samples of which so large a share is right on each problem; a wrong answer is `wrong`."""
    rows = []
    for i, share in enumerate(shares):
        right = [g < round(share * n) for g in range(n)]
        samples = [
            {"right": ok, "answer": answer, "text": answer} for ok in right for answer in ["55" if ok else wrong]
        ]
        rows.append({"id": f"test-{i}", "question": question, "samples": samples})
    put(run / "evaluation" / f"{name}.samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def put_run(run, curve, rewards=(0.3, 0.9), refreshed=None, parts=None, beta=0.2, wrong_after="45"):
    """A run of `rl` with 10 steps a point of its curve; what it generates is 100 tokens a step."""
    first, *later = curve
    put(run / "evaluation" / "before.json", json.dumps({"metrics": metrics("", first, boxed=True)}))
    lines, total = [], 10 * len(later)
    for step in range(1, total + 1):
        reward = rewards[0] + (rewards[1] - rewards[0]) * step / total
        told = {"reward": reward, "kl": 0.1, "frac_reward_zero_std": 0.5, "total/generated_tokens": 100 * step}
        lines.append({"step": step, **told, **(refreshed or {}).get(step, {})})
        if step % 10 == 0:
            lines.append({"step": step, **metrics("eval/", later[step // 10 - 1])})
    put(run / "rl" / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    counts = counted(optimizer_steps=total, completions=8 * total, generated_tokens=100 * total)
    put(run / "ledger.json", json.dumps({"stages": {"rl": {"counts": counts}}} | ({"parts": parts} if parts else {})))
    put(run / "config.yaml", dump({"rl": {"algorithm": {"beta": beta}}}))
    put_samples(run, "before", [first] * PROBLEMS)
    put_samples(run, "after", [curve[-1]] * PROBLEMS, wrong=wrong_after)


def counted(**numbers):
    return dict.fromkeys(COUNTED, 0) | numbers


def metrics(prefix, value, boxed=False):
    named = {f"{prefix}{name}": value for name in ("mean@8", "greedy")}
    return {name: {"value": number} for name, number in named.items()} if boxed else named


SOURCE = {"kind": "arithmetic", "same_digits": True, "size": 20}


def put_stem(out):
    """Two labelled solutions: a right one of whose two steps one is called bad, and a wrong one that is called bad."""
    problems = find("data.sources", "arithmetic").build(
        kind_class("data.sources", "arithmetic")(same_digits=True, size=20), 0
    )
    right = problems[7].solution.split("\n")
    written = [(right, (1.0, 0.0)), (["1", right[1]], (0.0, 0.0))]
    rows = [
        {"id": f"train-7#{n}", "steps": [{"text": t, "hard": h} for t, h in zip(steps, hard, strict=True)]}
        for n, (steps, hard) in enumerate(written)
    ]
    put(out / STEM / "label" / "labels.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    put(out / STEM / "config.yaml", dump({"seed": 0, "label": {"source": SOURCE}}))
    put(out / STEM / "label" / "summary.json", json.dumps(dict.fromkeys(LABELS, 10)))
    put(out / STEM / "reward_model" / "held_out.json", json.dumps(dict.fromkeys(MEASURES, 0.97)))


LABELS = ("solutions", "right_solutions", "steps", "hard", "completions")
MEASURES = ("auc", "accuracy", "first_error", "first_error/flawed")


def put_figure5(out, ends, of_each=None, **options):
    """Runs that end there; `of_each` is given to `put_run` for each arm, `options` are an arm's earlier points."""
    put_stem(out)
    for name, by_seed in ends.items():
        for seed, end in zip(SCALE.seeds, by_seed, strict=True):
            put_run(
                out / "figure5" / name / f"seed{seed}",
                [0.25, *options.get(name, []), end],
                **(of_each or {}).get(name, {}),
            )


AS_IN_THE_PAPER = {
    "rft": (0.125, 0.125, 0.125),
    "online_rft": (0.25, 0.25, 0.25),
    "grpo_os": (0.5, 0.625, 0.5),
    "grpo_ps": (0.875, 0.875, 1.0),
    "grpo_os_rule": (0.75, 0.75, 0.75),
    "grpo_ps_rule": (0.75, 0.75, 0.75),
}


def test_figure5_when_all_orderings_hold(tmp_path):
    put_figure5(tmp_path, AS_IN_THE_PAPER)
    found = figure5.findings(SCALE, tmp_path)
    assert found.verdicts[0].startswith("RFT < Online RFT < GRPO+OS < GRPO+PS") and found.verdicts[0].endswith(
        ": held."
    )
    assert found.verdicts[1] == "RFT < Online RFT: held (+12.5 [+12.5, +12.5] points)."
    assert "RFT (12.5 %) < Online RFT (25.0 %) < GRPO+OS (54.2 %) < GRPO+PS (91.7 %)" in found.verdicts[-1]
    rows = {row[0]: row for row in found.tables[0].rows}
    assert (
        rows["RFT"][1] == "0.2"
        and rows["RFT"][2] == "25.0 %"
        and rows["RFT"][3] == "12.5 % [12.5, 12.5]"
        and rows["RFT"][-1] == "1,000"
    )
    assert found.remarks[0].startswith("Budget of each run: 10 updates, 80 completions, 1,000 generated tokens.")
    assert any("first error found in 97.0%" in line for line in found.remarks)
    said = "call good: 33.3% of the really good steps, 0.0% of the really bad steps."
    assert any(line.endswith(said) for line in found.remarks)


@pytest.mark.parametrize(
    ("solution", "steps", "said"),
    [(0, 2, "call good: 50.0% of the really good steps."), (1, 1, "call good: 0.0% of the really bad steps.")],
)
def test_figure5_of_labels_that_are_all_good_or_all_bad(tmp_path, solution, steps, said):
    put_figure5(tmp_path, AS_IN_THE_PAPER)
    labels = tmp_path / STEM / "label" / "labels.jsonl"
    row = json.loads(labels.read_text().splitlines()[solution])
    labels.write_text(json.dumps(row | {"steps": row["steps"][:steps]}) + "\n")
    assert any(line.endswith(said) for line in figure5.findings(SCALE, tmp_path).remarks)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (("auc",), ": no AUC, as these are all good or all bad, accuracy 97.0%, first error found in 97.0% of the "),
        (("first_error/flawed",), "AUC 0.9700, accuracy 97.0%, first error found in 97.0% of the solutions (none has "),
        (MEASURES, ": not measured, as none are held out."),
    ],
)
def test_figure5_of_a_reward_model_of_which_little_was_measured(tmp_path, missing, said):
    put_figure5(tmp_path, AS_IN_THE_PAPER)
    measured = dict.fromkeys(set(MEASURES) - set(missing), 0.97)
    put(tmp_path / STEM / "reward_model" / "held_out.json", json.dumps(measured))
    found = figure5.findings(SCALE, tmp_path)
    assert any(said in line for line in found.remarks), found.remarks
    write(found, tmp_path)


def test_figure5_of_rewards_that_judged_nothing(tmp_path):
    """A reward that is null in the metrics, as where no completion of a step could be judged."""
    put_figure5(tmp_path, AS_IN_THE_PAPER, grpo_ps=[0.25], grpo_os=[1.0])
    for name in ("rft", "grpo_os"):
        for path in tmp_path.glob(f"figure5/{name}/*/rl/metrics.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            unjudged = {"reward": None, "frac_reward_zero_std": None}
            lines = [line | unjudged if "reward" in line and line["step"] > 5 else line for line in lines]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = figure5.findings(SCALE, tmp_path)
    rows = {row[0]: row for row in found.tables[0].rows}
    assert rows["RFT"][6] == "-" and rows["GRPO+PS"][6] == "0.885"
    assert "last tenth of the steps: RFT -, Online RFT 50%, GRPO+OS -" in found.remarks[-1]
    write(found, tmp_path)


def test_figure5_says_what_did_not_hold_and_what_cannot_be_told(tmp_path):
    ends = AS_IN_THE_PAPER | {"online_rft": (0.0, 0.0, 0.0), "grpo_os": (0.125, 0.5, 0.5)}
    put_figure5(tmp_path, ends)
    found = figure5.findings(SCALE, tmp_path)
    assert found.verdicts[0].endswith(": did not hold.")
    assert found.verdicts[1].startswith("RFT < Online RFT: did not hold (-12.5")
    assert found.verdicts[2].startswith("Online RFT < GRPO+OS: cannot be told (+37.5 [-16.3, +91.3]")


def test_figure5_does_not_order_greedy_by_a_problem_or_two(tmp_path):
    """Seeds agree to the last digit, as shares of few problems may, on less than the problems' error."""
    put_figure5(tmp_path, AS_IN_THE_PAPER | {"online_rft": (0.145, 0.145, 0.145)})
    assert "RFT < Online RFT: cannot be told (+2.0 [" in figure5.findings(SCALE, tmp_path).verdicts[-2]


def test_figure5_tells_beta_and_the_order_by_greedy(tmp_path):
    ends = AS_IN_THE_PAPER | {"online_rft": AS_IN_THE_PAPER["rft"]}
    put_figure5(tmp_path, ends, {"rft": {"beta": 0.0}, "grpo_os": {"beta": 0.04}})
    found = figure5.findings(SCALE, tmp_path)
    assert [row[1] for row in found.tables[0].rows] == ["0", "0.2", "0.04", "0.2", "0.2", "0.2"]
    assert "RFT (12.5 %) = Online RFT (12.5 %) < GRPO+OS (54.2 %)" in found.verdicts[-1]
    assert found.verdicts[-2].startswith(
        "By greedy accuracy, paired by seed: RFT < Online RFT: cannot be told (+0.0 [-6.8, +6.8] points). "
        "Online RFT < GRPO+OS: held (+41.7 [+23.7, +59.6] points)."
    )


@pytest.mark.parametrize(
    ("of_best", "said"),
    [
        ({"wrong_after": "99"}, "100% begin with a mistake that no student makes, of the SFT policy's 0%, +100.0 "),
        (
            {},
            "0% begin with a mistake that no student makes, of the SFT policy's 0%, +0.0 [+0.0, +0.0] points, which is",
        ),
        ({"rewards": (0.9, 0.3)}, "score of its completions has not clearly risen from there on (-0.240 "),
    ],
)
def test_figure5_names_an_exploited_reward_model(tmp_path, of_best, said):
    """Some arms get worse while their rewards rise; a rule is never wrong. New mistakes are one cause."""
    put_figure5(
        tmp_path,
        AS_IN_THE_PAPER | {"grpo_ps": (0.75, 0.75, 0.875)},
        {"grpo_ps": of_best},
        grpo_ps=[1.0],
        rft=[0.75],
        online_rft=[0.5],
        grpo_os=[0.5],
        grpo_os_rule=[1.0],
        grpo_ps_rule=[0.75],
    )
    (line,) = [line for line in figure5.findings(SCALE, tmp_path).remarks if "learnt the model's mistakes" in line]
    assert line.startswith("GRPO+PS fell from 100.0 % at step 10 to 79.2 %") and said in line
    assert ("had hardly met" in line) == ("wrong_after" in of_best)
    assert ("has learnt the model's mistakes." in line) == ("rewards" not in of_best)


@pytest.mark.parametrize(("step", "rise"), [(0, 0.54), (10, 0.24), (17, 0.06), (19, 0.0), (20, 0.0)])
def test_a_rise_is_measured_from_a_step_on(tmp_path, step, rise):
    """Rewards rise by 0.03 a step for 20 steps: a tenth is 2 of them."""
    put_run(tmp_path, [0.25, 0.5, 0.75])
    assert risen_since(tmp_path, step) == pytest.approx(rise)


def test_a_score_that_rose_before_the_best_step_alone_is_no_cause(tmp_path):
    put_figure5(tmp_path, AS_IN_THE_PAPER, grpo_ps=[1.0, 1.0])
    for seed in SCALE.seeds:
        path = tmp_path / "figure5" / "grpo_ps" / f"seed{seed}" / "rl" / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(peaked(line)) + "\n" for line in lines))
    (line,) = [line for line in figure5.findings(SCALE, tmp_path).remarks if line.startswith("GRPO+PS fell")]
    assert "has not clearly risen from there on (-0.085 [" in line


def peaked(line):
    """A reward that rises to step 10, and then falls by less."""
    return line if "reward" not in line else line | {"reward": min(line["step"], 15 - 0.5 * line["step"]) / 100}


def test_figure5_compares_the_same_problems_only(tmp_path):
    """Sources of other seeds give other questions the same ids."""
    put_figure5(tmp_path, AS_IN_THE_PAPER)
    put_samples(tmp_path / "figure5" / "rft" / "seed1", "after", [0.5] * PROBLEMS, question="47+9=")
    with pytest.raises(RecordError, match="figure5/rft/seed1 and figure5/online_rft/seed1"):
        figure5.findings(SCALE, tmp_path)


def put_figure6(out, iterative, once):
    for name, curves in zip(ITERATIVE, (iterative, once), strict=True):
        for seed in SCALE.seeds:
            points = [value + 0.002 * seed for value in curves for _ in range(SCALE.iteration_steps // 10)]
            line_12 = counted(optimizer_steps=200, completions=1000, generated_tokens=6000 + seed)
            parts = {f"rl/iteration_{i}": line_12 for i in (1, 2)} if name == "iterative" else None
            learnt = {60: {"reward_model/auc_before": 0.8 + 0.1 * seed, "reward_model/auc_after": 0.95}}
            put_run(out / "figure6" / name / f"seed{seed}", [0.25, *points], refreshed=learnt, parts=parts)


@pytest.mark.parametrize(
    ("iterative", "once", "words"),
    [
        ((0.375, 0.75, 0.875), (0.375, 0.5, 0.5), ("held", "held", "did not hold", "held", "held", "held", "held")),
        (
            (0.625, 0.625, 0.5),
            (0.625, 0.75, 0.75),
            ("held", None, "held", "held", None, "did not hold", "did not hold"),
        ),
        ((0.25, 0.75, 0.875), (0.25, 0.75, 0.75), ("held", "did not hold", None, None, "held", "held", "held")),
        (
            (0.5, 0.5, 0.75),
            (0.5, 0.5, 0.75),
            ("did not hold", "cannot be told", "held", "held", None, "held", "cannot be told"),
        ),
    ],
)
def test_figure6_says_what_came_out(tmp_path, iterative, once, words):
    put_figure6(tmp_path, iterative, once)
    found = figure6.findings(SCALE, tmp_path)
    assert len(found.verdicts) == 4 + ITERATIONS
    for said, word in zip(found.verdicts, words, strict=True):
        assert word is None or f": {word} (" in said
    assert found.remarks[-1].startswith("After Iteration-0 the reward model's AUC")
    assert "was 0.900; after learning from others 0.950" in found.remarks[-1]
    assert [row[0] for row in found.tables[0].rows] == ["SFT policy", "Iteration-0", "Iteration-1", "Iteration-2"]


def test_figure6_tells_which_refreshes_are_missing(tmp_path):
    """An AUC that could not be measured is said; runs with more refreshes than others are not compared."""
    put_figure6(tmp_path, (0.375, 0.75, 0.875), (0.375, 0.5, 0.5))
    for seed, more in (
        (1, '{"step": 60, "reward_model/loss_before": 0.1, "reward_model/auc_before": null}\n'),
        (2, ""),
    ):
        path = tmp_path / "figure6" / "iterative" / f"seed{seed}" / "rl" / "metrics.jsonl"
        lines = [line for line in path.read_text().splitlines(keepends=True) if "reward_model" not in line]
        path.write_text("".join(lines) + more)
        if more:
            said = figure6.findings(SCALE, tmp_path).remarks[-1]
            assert "was 0.900; after learning from others 0.950. Measured for 2 of 3 seeds." in said
    with pytest.raises(RecordError, match="measured 1, 1, 0 refreshes"):
        figure6.findings(SCALE, tmp_path)


def test_figure6_counts_what_the_reward_model_took(tmp_path):
    """It is in the ledger's parts, not in the counts of the rl stage; mean over the seeds 0, 1, 2."""
    put_figure6(tmp_path, (0.375, 0.75, 0.875), (0.375, 0.5, 0.5))
    found = figure6.findings(SCALE, tmp_path)
    (said,) = [line for line in found.remarks if line.startswith("Taken")]
    iterative, once = said.split(ITERATIVE["once"])
    assert "180 updates of the policy, 1,440 completions, 18,000 generated tokens" in iterative
    assert "for the reward model 2,000 more completions, 12,002 tokens, 400 of its updates" in iterative
    assert "for the reward model 0 more completions, 0 tokens, 0 of its updates" in once
    assert found.verdicts[-1].startswith(
        "At equal steps of the policy, with 12,002 more tokens for the reward model, iterating is better"
    )


def test_figure6_needs_a_measure_at_the_end_of_each_iteration(tmp_path):
    curve = curve_of(made_run(tmp_path))
    with pytest.raises(RecordError, match=r"step 15; rl\.eval_steps must divide"):
        figure6.at_steps(curve, "mean@8", [0, 10, 15])


def made_run(folder):
    put_run(folder / "run", [0.25, 0.5, 0.75], rewards=(0.0, 1.0))
    return folder / "run"


def test_a_curve_counts_tokens_and_begins_before_training(tmp_path):
    curve = curve_of(made_run(tmp_path))
    assert curve.steps == (0, 10, 20) and curve.tokens == (0, 1000, 2000)
    assert curve.values["mean@8"] == (0.25, 0.5, 0.75)
    assert reward_curve(tmp_path / "run") == [(10, pytest.approx(0.275)), (20, pytest.approx(0.775))]


def put_figure7(out, before, after):
    for who, shares in (("sft", before), (BEST, after)):
        for seed in SCALE.seeds:
            put_samples(out / "figure7" / who / f"seed{seed}", "policy", shares, SCALE.ks[-1])


def test_figure7_when_votes_rise_and_pass_does_not(tmp_path):
    """Before, every problem is solved now and then; after, nearly always, but for a few that are lost."""
    put_figure7(tmp_path, [0.25] * PROBLEMS, [0.875] * (PROBLEMS - 3) + [0.0] * 3)
    found = figure7.findings(SCALE, tmp_path)
    assert found.verdicts[0] == "RL raises Maj@K and not Pass@K: held."
    assert found.verdicts[2].startswith("Pass@64 rises by no more than 1 point: held (-5.0")
    assert found.verdicts[3].startswith("From K = 16 on, the SFT policy")
    assert found.tables[0].rows[0][0] == "Maj@1" and len(found.tables[0].rows) == 2 * len(SCALE.ks)


def test_figure7_at_the_ceiling_cannot_tell_whether_pass_would_rise(tmp_path):
    put_figure7(tmp_path, [0.25] * PROBLEMS, [0.875] * PROBLEMS)
    found = figure7.findings(SCALE, tmp_path)
    assert found.verdicts[0] == "RL raises Maj@K and not Pass@K: cannot be told."
    assert found.verdicts[2] == (
        "Pass@64 rises by no more than 1 point: cannot be told, as the SFT policy has 100.0 % and less room than that "
        "(+0.0 [+0.0, +0.0] points)."
    )


@pytest.mark.parametrize(
    ("passes", "said"),
    [((-1, 2, -1, -2), ["From K = 16 on"]), ((-2, 2, -1, 0.5), []), ((0, -1, -2, -1), ["From K = 1 on"])],
)
def test_figure7_crosses_where_the_sft_policy_stays_ahead(passes, said):
    """Points of difference for K = 1, 4, 16, 64: an earlier K with less counts for nothing."""
    nothing = Interval(0.5, 0.4, 0.6)
    compared = [
        Compared(family, k, nothing, nothing, Interval(by / 100, by / 100 - 0.1, by / 100 + 0.1))
        for family in ("maj", "pass")
        for k, by in zip((1, 4, 16, 64), passes, strict=True)
    ]
    assert [line[: line.index(" on") + 3] for line in figure7.verdicts(compared, 64)[3:]] == said


def test_figure7_when_pass_rises_too(tmp_path):
    put_figure7(tmp_path, [0.25] * 30 + [0.0] * 30, [0.75] * PROBLEMS)
    found = figure7.findings(SCALE, tmp_path)
    assert found.verdicts[0] == "RL raises Maj@K and not Pass@K: did not hold."
    assert ": held (" in found.verdicts[1] and ": did not hold (+50.0" in found.verdicts[2]


def test_figure7_when_votes_fall(tmp_path):
    put_figure7(tmp_path, [0.75] * PROBLEMS, [0.25] * PROBLEMS)
    assert ": did not hold (" in figure7.findings(SCALE, tmp_path).verdicts[1]


def test_four_files_are_written(tmp_path):
    put_figure5(tmp_path, AS_IN_THE_PAPER)
    paths = write(figure5.findings(SCALE, tmp_path), tmp_path)
    assert [path.name for path in paths] == ["figure5.svg", "figure5.md", "figure5.html", "figure5.json"]
    numbers = json.loads(paths[3].read_text())
    assert numbers["arms"]["grpo_ps"]["final mean@8 by seed"] == [0.875, 0.875, 1.0]
    svg, markdown, page = (path.read_text() for path in paths[:3])
    assert svg.count("<polyline") == 3 * len(ARMS) and "GRPO+PS" in svg and svg in page
    assert "| RFT | 0.2 | 25.0 % |" in markdown and "<td>RFT</td><td>0.2</td><td>25.0 %</td>" in page


def test_votes_of_wrong_answers_count_together(tmp_path):
    put_samples(tmp_path, "policy", [0.25, 0.75], 4)
    samples = samples_of(tmp_path, "policy")
    assert samples.right.sum(1).tolist() == [1, 3]
    assert len(set(samples.votes[0])) == 2 and samples.votes[0].count(samples.votes[0][-1]) == 3
