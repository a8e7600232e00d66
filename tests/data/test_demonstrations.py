"""Demonstrations: what is context, what is learnt, and that prompts are those of reinforcement."""

import copy

import numpy as np
import pytest

from grpo_jax.config import PromptConfig
from grpo_jax.data.demonstrations import DemonstrationError, demonstration, demonstrations, fit
from grpo_jax.data.encoding import TokenizerError
from grpo_jax.data.prompts import prompt_ids
from grpo_jax.data.sources.arithmetic import Config, alphabet, build
from grpo_jax.data.tokenizer import character_tokenizer, eos_ids
from grpo_jax.types import Problem

TEXT, CHAT = PromptConfig(format="text"), PromptConfig(format="chat")
SOLVED = Problem("7+8=", "15", id="d.jsonl:3", solution="15 <think>so</think><|im_end|>")


def learnt(example, tokenizer):
    return tokenizer.decode(example.tokens[example.loss_mask])


def conversation(*turns):
    roles = ("user", "assistant")
    return tuple({"role": roles[i % 2], "content": content} for i, content in enumerate(turns))


def test_arithmetic_is_learnt_from_the_solution_on():
    problems = build(Config(size=50, slip_rate=0.5), 0)
    tokenizer = character_tokenizer(alphabet(problems.config))
    for problem, example in zip(problems, demonstrations(problems, TEXT, tokenizer, (1,)), strict=True):
        n = len(problem.question)
        np.testing.assert_array_equal(example.loss_mask, np.arange(len(example.tokens)) >= n)
        assert learnt(example, tokenizer) == problem.solution + "<eos>"
        assert tokenizer.decode(example.tokens[:n]) == problem.question


@pytest.mark.parametrize("config", [TEXT, CHAT])
@pytest.mark.parametrize("name", ["chatml", "bos_tokenizer"])
def test_the_prompt_is_that_of_reinforcement_and_the_end_token_is_learnt(request, name, config):
    tokenizer = request.getfixturevalue(name)
    example = demonstration(SOLVED, config, tokenizer, eos_ids(tokenizer))
    prompt = prompt_ids(SOLVED, config, tokenizer)
    assert example.tokens[: len(prompt)].tolist() == prompt
    np.testing.assert_array_equal(example.loss_mask, np.arange(len(example.tokens)) >= len(prompt))
    assert example.tokens[-1] == tokenizer.eos_token_id
    assert (example.tokens[len(prompt) : -1] != tokenizer.eos_token_id).all()  # that in the text is text
    space = " " if name == "bos_tokenizer" and config is CHAT else ""
    assert learnt(example, tokenizer) == space + SOLVED.solution + tokenizer.eos_token


def test_thinking_marks_of_a_demonstration_are_learnt_as_tokens(chatml):
    example = demonstration(SOLVED, CHAT, chatml, eos_ids(chatml))
    for mark in ("<think>", "</think>"):
        assert (example.tokens == chatml.convert_tokens_to_ids(mark)).sum() == 1


def test_pad_equal_to_eos_does_not_hide_the_end(spaced):
    assert spaced.pad_token_id == spaced.eos_token_id
    example = demonstration(SOLVED, TEXT, spaced, eos_ids(spaced))
    assert example.tokens[-1] == spaced.eos_token_id and example.loss_mask[-1]
    assert spaced.decode(example.tokens) == SOLVED.question + SOLVED.solution + "</s>"  # no invented space


def test_every_assistant_turn_is_learnt(chatml):
    problem = Problem("", "", messages=conversation("1+1=", "2", "2+2=", "4"), id="m")
    example = demonstration(problem, CHAT, chatml, eos_ids(chatml))
    assert learnt(example, chatml) == "2<|im_end|>4<|im_end|>"
    context = chatml.decode(example.tokens[~example.loss_mask])
    assert context.endswith("assistant\n\n<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n")
    assert example.tokens[-1] == chatml.eos_token_id


def test_a_question_in_messages_with_a_solution_of_its_own(chatml):
    problem = Problem("1", "2", solution="2", messages=conversation("1"))
    assert learnt(demonstration(problem, CHAT, chatml, eos_ids(chatml)), chatml) == "2<|im_end|>"
    assert learnt(demonstration(problem, TEXT, chatml, eos_ids(chatml)), chatml) == "2<|im_end|>"


def test_a_template_without_an_end_token_gets_one(chatml):
    others = (chatml.convert_tokens_to_ids("<|endoftext|>"),)
    example = demonstration(Problem("1", "2", solution="2"), CHAT, chatml, others)
    assert learnt(example, chatml) == "2<|im_end|>\n<|endoftext|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(chatml):
    forgetful = copy.copy(chatml)
    forgetful.chat_template = "{{ messages | length }}" + chatml.chat_template
    problem = Problem("", "", messages=conversation("1", "2", "3", "4"), id="m.jsonl:9")
    with pytest.raises(TokenizerError, match=r"writes earlier turns differently.*m.jsonl:9"):
        demonstration(problem, CHAT, forgetful, eos_ids(chatml))


def test_nothing_to_learn_is_named(chatml):
    for problem in (
        Problem("1", "2", id="x.jsonl:4"),
        Problem("", "", messages=conversation("1"), id="x.jsonl:4"),
    ):
        with pytest.raises(DemonstrationError, match=r"x.jsonl:4: nothing to learn"):
            demonstration(problem, CHAT, chatml, eos_ids(chatml))


def examples(*lengths):
    problems = [Problem("1", "1", id=f"n{length}", solution="1" * (length - 2)) for length in lengths]
    return demonstrations(problems, TEXT, character_tokenizer("1"), (1,))


def test_over_long_examples():
    notes = []
    with pytest.raises(DemonstrationError, match=r"n9: 9 tokens, the limit sft.max_length is 6 \(2 of 3"):
        fit(examples(5, 9, 7), 6, "error")
    assert [e.name for e in fit(examples(5, 9, 7), 6, "drop", notes.append)] == ["n5"]
    cut = fit(examples(5, 9, 7), 6, "truncate", notes.append)
    assert [len(e.tokens) for e in cut] == [5, 6, 6] and all(len(e.tokens) == len(e.loss_mask) for e in cut)
    assert notes == [
        "demonstrations: of 3, 0 were cut to 6 tokens and 2 left out",
        "demonstrations: of 3, 2 were cut to 6 tokens and 0 left out",
    ]
    with pytest.raises(DemonstrationError, match="none of 3 examples is left"):
        fit(examples(5, 9, 7), 4, "drop", notes.append)
    assert len(fit(examples(5, 4), 5, "error", notes.append)) == 2 and len(notes) == 3


def test_truncation_that_leaves_only_context_drops_the_example():
    notes = []
    long_prompt = Problem("1" * 9, "1", solution="1")
    short = Problem("1", "1", solution="1")
    both = demonstrations([long_prompt, short], TEXT, character_tokenizer("1"), (1,))
    assert len(fit(both, 6, "truncate", notes.append)) == 1
    assert "0 were cut to 6 tokens and 1 left out" in notes[0]


PROGRAM = "So\n```python\n6*7\n```\n```output\n42\n```\n42 it is"


@pytest.mark.parametrize("config", [TEXT, CHAT])
@pytest.mark.parametrize("name", ["chatml", "bos_tokenizer"])
def test_what_a_tool_wrote_is_context(request, name, config):
    """Only outputs behind a program; they are encoded as the policy hears them, and nothing else is taken out."""
    tokenizer = request.getfixturevalue(name)
    problem = Problem("6*7=", "42", solution=PROGRAM)
    example = demonstration(problem, config, tokenizer, eos_ids(tokenizer))
    said = learnt(example, tokenizer)
    assert said.replace(tokenizer.eos_token, "").strip() == "So\n```python\n6*7\n```42 it is"
    context = example.tokens[len(prompt_ids(problem, config, tokenizer)) :][
        ~example.loss_mask[len(prompt_ids(problem, config, tokenizer)) :]
    ]
    assert tokenizer.decode(context) == "\n```output\n42\n```\n"
    for text in ("```output\n42\n```\n", "a\n```python\n1\n```\nso", "```python\n1\n```\n```output\nnever closed"):
        plain = demonstration(Problem("q", "1", solution=text), TEXT, tokenizer, eos_ids(tokenizer))
        assert plain.loss_mask[len(prompt_ids(Problem("q", "1"), TEXT, tokenizer)) :].all()


def test_two_programs_of_a_demonstration():
    tokenizer = character_tokenizer("`pythonutqSX 0123456789*+-\n")
    text = "```python\n1\n```\n```output\n\n```\n```python\n2\n```\n```output\n2\n2\n```\n2"
    example = demonstration(Problem("1", "2", solution=text), TEXT, tokenizer, (1,))
    assert learnt(example, tokenizer) == "```python\n1\n``````python\n2\n```2<eos>"
    assert tokenizer.decode(example.tokens[:-1]) == "1" + text
