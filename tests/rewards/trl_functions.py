"""Reward functions as users of TRL and Tunix write them, good and bad."""

import asyncio
import re
import sys

import numpy as np

# From TRL's documentation and common practice, unchanged.


def format_reward_func(completions, **kwargs):
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]


def correctness_reward_func(prompts, completions, answer, **kwargs) -> list[float]:
    responses = [completion[0]["content"] for completion in completions]
    questions = [prompt[-1]["content"] for prompt in prompts]
    print("-" * 20, f"Question:\n{questions[0]}", f"\nAnswer:\n{answer[0]}", f"\nResponse:\n{responses[0]}")
    return [2.0 if response == a else 0.0 for response, a in zip(responses, answer, strict=True)]


def check_numbers(prompts, completions, answer, **kargs):
    found = [re.search(r"answer: ([0-9]+)", completion) for completion in completions]
    return [None if match is None else float(match[1] == a) for match, a in zip(found, answer, strict=True)]


def by_length(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def only_what_it_names(completions, level):
    return [float(number) for number in level]


def curriculum(completions, trainer_state, log_extra=None, log_metric=None, **kwargs):
    log_extra("length", [len(completion) for completion in completions])
    log_metric("mean", 0.5)
    return [trainer_state.global_step] * len(completions)


async def asynchronous(completions, **kwargs):
    await asyncio.sleep(0)
    return [0.5] * len(completions)


class Judge:
    def __call__(self, completions, **kwargs):
        return np.arange(len(completions), dtype=np.float32)


judge = Judge()


# Types that are numbers, and what is none.


def mixed_types(completions, **kwargs):
    numbers = [True, 1, np.float16(0.5), np.int64(2), np.bool_(False), None, float("nan"), float("inf")]
    return (numbers * len(completions))[: len(completions)]


def too_short(completions, **kwargs):
    return [1.0] * (len(completions) - 1)


def only_one(completions, **kwargs):
    return [1.0]


def scalar(completions, **kwargs):
    return 1.0


def generator(completions, **kwargs):
    return (1.0 for _ in completions)


def strings(completions, **kwargs):
    return ["1.0"] * len(completions)


def nothing(completions, **kwargs):
    return None


# Failures on single items.


def raises_on_boom(completions, **kwargs):
    if "boom" in completions:
        raise ValueError("cannot read boom")
    return [1.0] * len(completions)


def hangs_on_boom(completions, **kwargs):
    while "boom" in completions:
        pass
    return [1.0] * len(completions)


def exits_on_boom(completions, **kwargs):
    if "boom" in completions:
        sys.exit(1)
    return [1.0] * len(completions)


def always_raises(completions, **kwargs):
    raise KeyError("no such column")


def always_hangs(completions, **kwargs):
    while True:
        pass
