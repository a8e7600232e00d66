"""Reward functions in TRL's form, good and bad: on sums that begin with 7, which step 1 of the small run has once."""

import time


def is_seven(question):
    return question[0] == "7"


def digits(prompts, completions, completion_ids, answer, **kwargs):
    """The share of digits, and a point for the answer; checks that it gets what TRL gives."""
    assert len(prompts) == len(completions) == len(completion_ids) == len(answer)
    assert kwargs["trainer_state"].global_step >= 1 and all(isinstance(text, str) for text in completions)
    shares = [sum(c.isdigit() for c in text) / 4 for text in completions]
    return [share + float(text == right) for share, text, right in zip(shares, completions, answer, strict=True)]


def raises_on_seven(completions, question, **kwargs):
    if any(map(is_seven, question)):
        raise ValueError(f"cannot judge {question[0]}")
    return [1.0] * len(completions)


def nothing_on_seven(completions, question, **kwargs):
    return [None if is_seven(q) else float(len(text)) for q, text in zip(question, completions, strict=True)]


def never_judges(completions, **kwargs):
    return [None] * len(completions)


def hangs_on_seven(completions, question, **kwargs):
    while any(map(is_seven, question)):
        time.sleep(0.1)
    return [0.5] * len(completions)


def raises_later(completions, trainer_state, **kwargs):
    if trainer_state.global_step > 1:
        raise RuntimeError("the judge is gone")
    return [float(len(text)) for text in completions]


def always_raises(completions, **kwargs):
    raise KeyError("no such column")


def sleeps(completions, **kwargs):
    time.sleep(0.1)
    return [text.count("1") / 4 for text in completions]


def sleeps_long(completions, **kwargs):
    time.sleep(0.4)
    return [text.count("1") / 4 for text in completions]
