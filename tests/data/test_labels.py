"""Published forms of labelled solutions, small ones made here and the real ones, and where in the tokens they score."""

import json

import numpy as np
import pytest

from grpo_jax.config import PromptConfig
from grpo_jax.configure import find, names
from grpo_jax.data.json_lines import RowError
from grpo_jax.data.labelled import (
    LabelError,
    Labelled,
    Preference,
    Sampled,
    Writing,
    fitting,
    hold_out,
    scored_examples,
    tokenizer_mark,
)
from grpo_jax.data.labels.arithmetic import true_labels
from grpo_jax.data.tokenizer import character_tokenizer
from grpo_jax.types import Problem
from tests.make_random_model import make_tokenizer

TAG = " ки"
TEXT = PromptConfig(format="text", template="{question}\n")

SHEPHERD = {
    "input": "2+2-1? Step 1: 2+2=4 ки\nStep 2: 4-1=2 The answer is: 2 ки",
    "label": "2+2-1? Step 1: 2+2=4 +\nStep 2: 4-1=2 The answer is: 2 -",
    "task": "GSM8K",
}


def said(text, rating):
    return {"text": text, "rating": rating}


RATED = {
    "question": {"problem": "Q", "ground_truth_answer": "7"},
    "label": {
        "finish_reason": "solution",
        "steps": [
            {"completions": [said("a", 1)], "chosen_completion": 0, "human_completion": None},
            {"completions": [said("x", -1)], "chosen_completion": None, "human_completion": said("b", None)},
            {"completions": [said("c", 0), said("d", 1)], "chosen_completion": 0, "human_completion": None},
        ],
    },
}
TREE = {
    "question": "Q",
    "final_answer": "7",
    "reasoning_steps": [
        {"solution_prefix": prefix, "mc_value": share}
        for prefix, share in [("Q", 0.5), ("Q\n\na", 0.75), ("Q\n\na\n b", 1.0), ("Q\n\na\nc", 0.0), ("Q\n\nd", 0.25)]
    ],
}
SPOILT = {
    "original_question": "Q",
    "modified_question": "Q",
    "original_process": ["a", "b", "c"],
    "modified_process": ["a", "x", "y"],
    "error_steps": [2, 9],
}
PAIR = {"question": "Q", "chosen": "7", "rejected": "8"}


def built(tmp_path, kind, *rows, **options):
    path = tmp_path / f"{kind}.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    module = find("data.labels", kind)
    return module.build(module.Config(path=str(path), **options), seed=0)


def steps_of(solutions):
    return [(s.steps, s.labels, s.outcome) for s in solutions]


def test_math_shepherd(tmp_path):
    (solution,) = built(tmp_path, "math_shepherd", SHEPHERD)
    assert solution.problem.question == "2+2-1?"
    assert steps_of([solution]) == [
        (("Step 1: 2+2=4", "Step 2: 4-1=2 The answer is: 2"), (1.0, 0.0), 0.0),
    ]


def test_prm800k(tmp_path):
    """What was gone on with, a person's step among it, and each alternative as a solution that ends there."""
    assert steps_of(built(tmp_path, "prm800k", RATED)) == [
        (("a", "b", "c"), (1.0, 1.0, 1.0), 1.0),
        (("a", "x"), (None, 0.0), None),
        (("a", "b", "d"), (None, None, 1.0), None),
    ]
    found = built(tmp_path, "prm800k", RATED, neutral="none", alternatives=False)
    assert steps_of(found) == [(("a", "b", "c"), (1.0, 1.0, None), None)]
    unfinished = {**RATED, "label": RATED["label"] | {"finish_reason": "give_up"}}
    assert steps_of(built(tmp_path, "prm800k", unfinished))[0][2] is None


def test_math_aps(tmp_path):
    """Each path from the question to a leaf of the tree, with the share of every prefix on it."""
    assert steps_of(built(tmp_path, "math_aps", TREE)) == [
        (("d",), (0.25,), None),
        (("a", "c"), (0.75, 0.0), None),
        (("a", " b"), (0.75, 1.0), None),
    ]


def test_prmbench(tmp_path):
    whole = (("a", "b", "c"), (1.0, 1.0, 1.0), None)
    assert steps_of(built(tmp_path, "prmbench", SPOILT)) == [(("a", "x", "y"), (1.0, 0.0, 1.0), None), whole]
    assert len(built(tmp_path, "prmbench", SPOILT, original=False)) == 1


def test_preferences_and_limit(tmp_path):
    (pair,) = built(tmp_path, "preferences", PAIR, PAIR, limit=1)
    assert isinstance(pair, Preference) and (pair.problem.question, pair.chosen, pair.rejected) == ("Q", "7", "8")


def test_the_truth_about_sums():
    module = find("data.labels", "arithmetic")
    config = module.Config(size=300, slip_rate=0.6, students=2, form="words")
    solutions = module.build(config, 0)
    assert len(solutions) == 600 and {len(s.steps) for s in solutions} == {2}
    assert all((s.outcome == 1.0) == (s.steps[-1].endswith("=" + s.problem.answer)) for s in solutions)
    bad = [s for s in solutions if s.labels[0] == 0.0]
    assert 60 < len(bad) < 300 and all(not s.problem.columns["slipped"] or 0.0 in s.labels for s in solutions)
    assert true_labels(["55", "47", "1"], "55\n46") == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("math_shepherd", {"input": "no steps", "label": ""}, "no ' Step 1: '"),
        ("math_shepherd", SHEPHERD | {"input": "Q Step 1: a"}, "does not end with the tag"),
        ("math_shepherd", SHEPHERD | {"label": SHEPHERD["label"].replace("-1=2", "-1=3")}, "behind step 2"),
        ("math_shepherd", {"label": ""}, "has no key 'input'"),
        ("prm800k", {"question": "Q", "label": {}}, "is not of this form"),
        ("math_aps", TREE | {"question": "Another"}, "without the question"),
        ("preferences", PAIR | {"chosen": [1]}, "should be texts"),
        ("steps", {"question": "Q", "steps": []}, "without steps"),
        ("prmbench", "{broken", "broken JSON"),
    ],
)
def test_bad_rows_are_named(tmp_path, kind, row, words):
    with pytest.raises(RowError, match=words) as error:
        built(tmp_path, kind, row)
    assert f"{kind}.jsonl:1" in str(error.value)


def test_a_file_without_rows(tmp_path):
    with pytest.raises(RowError, match="has no labelled solutions"):
        built(tmp_path, "prmbench")


# --- where a score is read ---


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(320)


def writing(tokenizer, tag=""):
    from grpo_jax.data.encoding import encode

    return Writing(
        TEXT, tokenizer, tokenizer.eos_token_id, tuple(encode(tokenizer, tag, continues=True)) if tag else ()
    )


def read_up_to_scores(example, tokenizer):
    return [tokenizer.decode(example.tokens[: place + 1]) for place in np.flatnonzero(example.mask)]


SOLUTION = Labelled(Problem("2+2-1?", "3", id="one"), ("2+2=4", "so", "4-1=2"), (1.0, None, 0.25), 0.0)


def test_scores_are_read_at_the_ends_of_labelled_steps(tokenizer):
    (plain,) = scored_examples([SOLUTION], "process", writing(tokenizer))
    end = tokenizer.eos_token
    assert read_up_to_scores(plain, tokenizer) == ["2+2-1?\n2+2=4\n", f"2+2-1?\n2+2=4\nso\n4-1=2{end}"]
    assert plain.targets[plain.mask].tolist() == [1.0, 1.0] and not plain.targets[~plain.mask].any()
    (soft,) = scored_examples([SOLUTION], "process", writing(tokenizer), target="soft")
    assert soft.targets[soft.mask].tolist() == [1.0, 0.25]


def test_with_a_tag_scores_are_read_behind_it(tokenizer):
    (tagged,) = scored_examples([SOLUTION], "process", writing(tokenizer, TAG))
    assert tokenizer.decode(tagged.tokens) == f"2+2-1?\n2+2=4{TAG}\nso{TAG}\n4-1=2{TAG}{tokenizer.eos_token}"
    whole = f"2+2-1?\n2+2=4{TAG}\nso{TAG}\n4-1=2{TAG}"
    assert read_up_to_scores(tagged, tokenizer) == [f"2+2-1?\n2+2=4{TAG}", whole]


def test_outcomes_and_pairs_are_read_at_the_last_token(tokenizer):
    (outcome,) = scored_examples([SOLUTION], "outcome", writing(tokenizer))
    assert np.flatnonzero(outcome.mask).tolist() == [len(outcome.tokens) - 1] and outcome.targets[-1] == 0.0
    assert len(scored_examples([SOLUTION, SOLUTION._replace(outcome=None)], "outcome", writing(tokenizer))) == 1
    (pair,) = scored_examples([Preference(SOLUTION.problem, "3", "no 4")], "preference", writing(tokenizer))
    assert np.flatnonzero(pair.mask).tolist() == [pair.second - 1, len(pair.tokens) - 1]
    assert tokenizer.decode(pair.tokens[pair.second :]) == f"2+2-1?\nno 4{tokenizer.eos_token}"


def test_sampled_tokens_are_never_encoded_again(tokenizer):
    """Ids that no encoding of the text gives, and of another tokenizer refused by its mark."""
    odd = Sampled((5, 6), ((7, 8), (9,), (10, 2)), tokenizer_mark(tokenizer))
    (example,) = scored_examples([SOLUTION._replace(sampled=odd)], "process", writing(tokenizer))
    assert example.tokens.tolist() == [5, 6, 7, 8, 9, 10, 2] and np.flatnonzero(example.mask).tolist() == [3, 6]
    other = writing(character_tokenizer("0123456789+-=\n"))
    with pytest.raises(LabelError, match=f"one: its tokens are of tokenizer {odd.tokenizer}"):
        scored_examples([SOLUTION._replace(sampled=odd)], "process", other)
    assert tokenizer_mark(tokenizer) == tokenizer_mark(make_tokenizer(320))


def test_what_cannot_be_learnt_is_said(tokenizer):
    with pytest.raises(LabelError, match=r"a labelled, and reward_model\.supervision preference"):
        scored_examples([SOLUTION], "preference", writing(tokenizer))
    with pytest.raises(LabelError, match="none of 1 solutions has a label for outcome"):
        scored_examples([SOLUTION._replace(outcome=None)], "outcome", writing(tokenizer))
    examples = scored_examples([SOLUTION, SOLUTION._replace(steps=("9" * 90, "b", "c"))], "process", writing(tokenizer))
    notes = []
    assert fitting(examples, 40, notes.append) == examples[:1] and "1 of 2 solutions" in notes[0]
    with pytest.raises(LabelError, match=r"reward_model.max_length: 4, and the shortest of 2 examples has"):
        fitting(examples, 4, notes.append)


def test_a_question_is_on_one_side_only(tokenizer):
    problems = [Problem(f"{number}?", "", id=str(number)) for number in range(200)]
    solutions = [SOLUTION._replace(problem=problem) for problem in problems * 2]
    learnt, held_out = hold_out(scored_examples(solutions, "process", writing(tokenizer)), 0.25, 0)
    assert 30 < len(held_out) / 2 < 70 and len(learnt) + len(held_out) == 400
    assert not {e.question for e in learnt} & {e.question for e in held_out}


REAL = {
    # kind: file, solutions, labelled steps, of which good
    "math_shepherd": ("math_shepherd_samples", 7, 25, 5),
    "prm800k": ("prm800k_samples", 37, 75, 60),
    "math_aps": ("math_aps_samples", 124, 290, 281),
    "prmbench": ("prmbench_prm800k_test_p2_deception", 526, 5821, 5257),
}


@pytest.mark.parametrize("kind", REAL)
def test_real_files(shared, tokenizer, kind):
    """They parse; every labelled step has one place, at which its text ends, and there is no other."""
    file, *counts = REAL[kind]
    module = find("data.labels", kind)
    solutions = module.build(module.Config(path=str(shared / "data" / "prm" / f"{file}.jsonl")), 0)
    labels = [label for s in solutions for label in s.labels if label is not None]
    assert [len(solutions), len(labels), sum(label > 0 for label in labels)] == counts
    for tag in ("", TAG):
        for solution, example in zip(
            solutions, scored_examples(solutions, "process", writing(tokenizer, tag)), strict=True
        ):
            known = [i for i, label in enumerate(solution.labels) if label is not None]
            read = read_up_to_scores(example, tokenizer)
            assert len(read) == len(known) and example.targets[example.mask].tolist() == [
                float(solution.labels[i] > 0) for i in known
            ]
            for i, text in zip(known, read, strict=True):
                end = tag or ("\n" if i + 1 < len(solution.steps) else tokenizer.eos_token)
                assert text.endswith(f"\n{solution.steps[i]}{end}")


def test_every_kind_is_tested():
    assert set(names("data.labels")) == {*REAL, "arithmetic", "preferences", "steps"}
