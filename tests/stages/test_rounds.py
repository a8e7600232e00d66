"""The loop of rounds with a scripted policy: what it draws is written here, what it hears comes from the tool."""

import functools
import threading
import time
from concurrent.futures import Future
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.algorithms.advantages import group_normalized
from grpo_jax.algorithms.algorithm import Algorithm, make_experience, maximize, of_outcome
from grpo_jax.algorithms.objectives import clipped
from grpo_jax.algorithms.weights import sequence_mean
from grpo_jax.data.tokenizer import character_tokenizer
from grpo_jax.models.logprobs import completion_logprobs
from grpo_jax.sampler import pauses
from grpo_jax.sharding import host_to_global, named
from grpo_jax.stages import rounds
from grpo_jax.stages.rounds import RoundSampler, Tool, output_ids
from grpo_jax.tools.results import Limits, ToolResult
from grpo_jax.types import Rewards
from tests import tiny
from tests.sandboxes import entered

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 `+-*/=()<>|_.,:'\"\n\\"
TOKENIZER = character_tokenizer(ALPHABET)
EOS = "<eos>"
MODEL = tiny.decoder(vocab_size=len(TOKENIZER))
LENGTH, MOST = 160, 64
P, G = 4, 2


def block(program):
    return f"```python\n{program}\n```"


def heard(text):
    return f"\n```output\n{text}\n```\n"


def scripted(rows):
    """What each row writes and hears, as tokens by time: [B, Tc]."""
    table = np.zeros((len(rows), LENGTH), np.int32)
    for row, pieces in zip(table, rows, strict=True):
        ids = TOKENIZER("".join(pieces), add_special_tokens=False)["input_ids"][:LENGTH]
        row[: len(ids)] = ids
    return table


class Tools:
    """Answers by a function of all blocks, in threads of no haste; keeps what it was asked."""

    def __init__(self, answer, delays=()):
        self.answer, self.asked, self.delays = answer, [], list(delays)

    def ask(self, program, earlier):
        self.asked.append([*earlier, program])
        future = Future()

        def resolve():
            future.set_result(self.answer([*earlier, program]))

        delay = self.delays.pop(0) if self.delays else 0
        if delay:
            threading.Timer(delay, resolve).start()
        else:
            resolve()
        return future


def echo(blocks):
    return ToolResult("ok", f"{len(blocks)}")


@functools.cache
def params():
    return tiny.host_params(vocab_size=len(TOKENIZER))


SCRIPT = []  # of the rows that are being played


def keys(key, index, num_generations):
    """A row's number, in the place of its key."""
    return (index[:, None] * num_generations + jnp.arange(num_generations)).reshape(-1)


def draw(logits, row, t, distribution):
    """The token that the script has at a time, whatever the model says."""
    shape = jax.ShapeDtypeStruct(t.shape, jnp.int32)
    return jax.pure_callback(lambda row, t: SCRIPT[0][row, t], shape, row, jnp.minimum(t, LENGTH - 1)), jnp.full(
        t.shape, -0.5
    )


@functools.cache
def sampler(decode_rows):
    """Compiled once for all scripts."""
    settings = tiny.sampling(G=G, Tc=LENGTH)._replace(
        decode_rows=decode_rows, eos_ids=(TOKENIZER.eos_token_id,), pad_id=TOKENIZER.pad_token_id
    )
    return RoundSampler(MODEL, settings, Tool(None, 4, MOST), TOKENIZER)


def play(rows, tool=None, *, decode_rows=0, max_rounds=4):
    """The rollout of rows, each of which writes its script; where the tool speaks it stands for what is heard."""
    tool = tool or Tools(echo)
    SCRIPT[:] = [scripted([*rows, *[[EOS]] * (P * G - len(rows))])]
    host, batch, mesh = params(), tiny.prompts(P).replace(index=np.arange(P, dtype=np.int32)), tiny.mesh_of()
    with (
        mock.patch.object(pauses, "row_keys", keys),
        mock.patch.object(pauses, "draw", draw),
        jax.set_mesh(mesh),
    ):
        of_rounds = sampler(decode_rows)
        of_rounds.tool = Tool(tool.ask, max_rounds, MOST)
        placed = host_to_global(batch, named(mesh, "batch"))
        rollout = jax.device_get(of_rounds(tiny.on_mesh(host, MODEL, mesh), placed, jax.random.key(0), 0))
    return rollout, of_rounds.use, tool


def text_of(rollout, row, chosen=None):
    """The text of a row, of all that was written, or what the policy chose of it."""
    keep = rollout.completions.segments[row] > 0
    if chosen is not None:
        keep &= rollout.completion_mask[row] == chosen
    return TOKENIZER.decode(rollout.completions.tokens[row][keep])


def check(rollout, row, *pieces):
    """A row consists of these pieces, said and heard by turns."""
    wanted = [(character, i % 2 == 0) for i, piece in enumerate(pieces) for character in _tokens(piece)]
    there = rollout.completions.segments[row] > 0
    got = zip(rollout.completions.tokens[row][there].tolist(), rollout.completion_mask[row][there], strict=True)
    assert [(TOKENIZER.convert_ids_to_tokens(i), bool(own)) for i, own in got] == wanted


def _tokens(text):
    return TOKENIZER.convert_ids_to_tokens(TOKENIZER(text, add_special_tokens=False)["input_ids"])


ONE = ["so ", block("1+1"), heard("1"), "it is 2", EOS]


def test_a_round():
    rollout, use, tool = play([ONE, ["plain", EOS]])
    check(rollout, 0, "so " + block("1+1"), heard("1"), "it is 2" + EOS)
    check(rollout, 1, "plain" + EOS)
    assert tool.asked == [["1+1"]]
    assert rollout.finished.all()
    assert np.all(np.diff(rollout.completions.positions) == 1)
    written = rollout.completions.segments > 0
    assert np.all(rollout.logprobs == np.where(rollout.completion_mask, np.float32(-0.5), 0))
    assert np.all(rollout.completions.tokens[~written] == TOKENIZER.pad_token_id)
    assert use.metrics() | {"tools/call_seconds": 0, "tools/wait_seconds": 0} == {
        "tools/calls": 1 / 8,
        "tools/failed": 0.0,
        "tools/output_tokens": len(_tokens(heard("1"))) / 8,
        "tools/cut": 0.0,
        "tools/call_seconds": 0,
        "tools/wait_seconds": 0,
    }


def test_rounds_have_a_state():
    """Each program comes with those before it, and what the policy says between them is its own."""
    rows = [block("a"), heard("1"), "then\n", block("b"), heard("2"), block("c"), heard("3"), "end", EOS]
    rollout, use, tool = play([rows])
    check(rollout, 0, rows[0], rows[1], rows[2] + rows[3], rows[4], rows[5], rows[6], rows[7] + EOS)
    assert tool.asked == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert use.calls == 3


def test_the_limit_of_rounds():
    rows = [block("a"), heard("1"), block("b"), "never said", EOS]
    rollout, use, tool = play([rows, ONE], max_rounds=1)
    check(rollout, 0, rows[0], rows[1], rows[2])
    assert not rollout.finished[0] and rollout.finished[1]
    assert tool.asked == [["a"], ["1+1"]] and use.cut == 1


def test_errors_are_read_as_they_are():
    def fails(blocks):
        return ToolResult("error", "ZeroDivisionError: division by zero")

    rows = [block("1/0"), heard("ZeroDivisionError: division by zero"), "oh", EOS]
    rollout, use, _ = play([rows], Tools(fails))
    check(rollout, 0, rows[0], rows[1], "oh" + EOS)
    assert use.metrics()["tools/failed"] == 1.0


@pytest.mark.parametrize("left", [-5, 0, len(heard("1"))])
def test_the_budget(left):
    """It may end inside a block, with its fence, and with the output, which is then not written."""
    start = ["z" * (LENGTH - left - len("".join(ONE[:2]))) + ONE[0], *ONE[1:]]
    rollout, use, tool = play([start])
    check(rollout, 0, "".join(start[:2])[:LENGTH])
    assert not rollout.finished[0]
    assert use.cut == len(tool.asked) == (left > 0)
    rollout, use, _ = play([[start[0][len(heard("1")) + 1 - left :], *start[1:]]])
    check(rollout, 0, (start[0] + start[1])[len(heard("1")) + 1 - left :], start[2], "i")
    assert use.cut == 0 and not rollout.finished[0]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("x" * 100, "x" * 30 + "..." + "x" * 31),
        ("<eos><pad>", "< eos>< pad>"),
        ("```\n```python\n1", "` ``\n` ``python\n1"),
        ("答案 ok é\x1b[2J", " ok 2J"),
        ("", ""),
        ("a\n\nb", "a\n\nb"),
    ],
    ids=["long", "special", "fences", "unknown", "empty", "lines"],
)
def test_outputs(text, written):
    rows = [block("x"), heard(written), "so", EOS]
    rollout, _, tool = play([rows], Tools(lambda blocks: ToolResult("ok", text)))
    check(rollout, 0, rows[0], rows[1], "so" + EOS)
    assert len(tool.asked) == 1, "what a tool writes is no program"
    assert rollout.finished[0]


def test_what_is_no_program():
    """Other blocks, text behind a fence, fences within a line: the policy goes on as if nothing had been."""
    for text in ["```latex\nx\n```\nok", "```a``` and ```b```", "a```\nb```\n", "``` ``` ```", "```python\nx``` y\n"]:
        rollout, use, tool = play([[text, EOS]])
        check(rollout, 0, text + EOS)
        assert not tool.asked and use.calls == 0


def test_fences_that_hold():
    for text, program in [
        ("```latex\nx\n```\n" + block("1"), "1"),
        ("  ```python\n  if 1:\n    2\n  ```", "if 1:\n  2"),
        ("```latex\nx\n```\ny\n```py\n3\n```", "3"),
        ("so: ```python\n4\n```", "4"),
        ("```python\n\n```", ""),
    ]:
        rollout, _, tool = play([[text, heard("1"), EOS]])
        check(rollout, 0, text, heard("1"), EOS)
        assert tool.asked == [[program]]


MANY = [
    ONE,
    ["none", EOS],
    [block("a"), heard("1"), block("b"), heard("2"), "x", EOS],
    ["```a``` and ```b", EOS],
    [block("c") + "", heard("1"), EOS],
    ["long " * 20, block("d"), heard("1"), "y", EOS],
    [EOS],
    ["z" * LENGTH],
]


@pytest.mark.parametrize(("decode_rows", "delays"), [(2, ()), (0, (0.3, 0.0, 0.1)), (4, (0.2, 0.1))])
def test_nothing_depends_on_who_waits(decode_rows, delays):
    """Any number of rows at once, any haste of the tool: the same rollout."""
    wanted, _, _ = play(MANY)
    got, use, _ = play(MANY, Tools(echo, delays), decode_rows=decode_rows)
    assert use.calls == 5
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rows_that_wait_do_not_stop_the_others():
    """The slow program of row 0 is answered when all else is over: by row 1's being written, which takes 20 looks."""
    written = threading.Event()
    slow = Future()

    class Slow(Tools):
        def ask(self, program, earlier):
            if program == "slow":
                self.asked.append([program])
                return slow
            written.set()
            slow.set_result(ToolResult("ok", "late"))
            return super().ask(program, earlier)

    rows = [[block("slow"), heard("late"), EOS], ["long " * 16, block("last"), heard("1"), EOS]]
    rollout, _, tool = play(rows, Slow(echo))
    assert written.is_set() and [asked[-1] for asked in tool.asked] == ["slow", "last"]
    check(rollout, 0, rows[0][0], rows[0][1], EOS)
    check(rollout, 1, rows[1][0] + rows[1][1], rows[1][2], EOS)


def test_in_the_sandbox():
    """Real programs: state between blocks, an error that keeps it, a time limit, a worker that dies."""
    rows = [
        [block("x = 20"), heard(""), block("x + 22"), heard("42"), "42", EOS],
        [block("y = 1\n1/0"), heard("ZeroDivisionError: division by zero"), block("y"), heard("1"), EOS],
        [block("while True: pass"), heard("Timeout: no result within 2 s"), EOS],
        [block("import os\nos.abort()"), heard("Killed: SIGABRT"), EOS],
    ]
    with entered("auto", 2) as sandbox:
        tool = Tools(None)
        tool.ask = lambda program, earlier: sandbox.submit(program, Limits(wall=2.0), earlier=earlier)
        rollout, use, _ = play(rows, tool)
    check(rollout, 0, rows[0][0], rows[0][1], rows[0][2], rows[0][3], "42" + EOS)
    check(rollout, 1, rows[1][0], rows[1][1], rows[1][2], rows[1][3], EOS)
    check(rollout, 2, rows[2][0], rows[2][1], EOS)
    said = text_of(rollout, 3, chosen=False)
    assert said.startswith("\n```output\nKilled: SIG")
    assert use.calls == 6 and use.failed == 3


@pytest.mark.parametrize("status", ["timeout", "memory", "killed", "refused"])
def test_a_program_that_was_stopped_is_not_run_again(status):
    """It counts as a round, and what comes after goes on from those before it."""

    def stopped(blocks):
        return ToolResult(status, "no") if blocks[-1] == "bad" else echo(blocks)

    rows = [block("a"), heard("1"), block("bad"), heard("no"), block("b"), heard("2"), block("c"), "no more", EOS]
    rollout, use, tool = play([rows], Tools(stopped), max_rounds=3)
    check(rollout, 0, rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6])
    assert tool.asked == [["a"], ["a", "bad"], ["a", "b"]]
    assert use.cut == 1 and use.failed == 1


def test_a_round_after_one_that_was_stopped():
    """In the sandbox: after a time limit, a signal, an exit of the process."""
    bad = ["while 1: 1", "import os\nos.abort()", "import os\nos._exit(3)", "import os\nos._exit(0)"]
    limits = Limits(wall=2.0)
    with entered("auto", 2) as sandbox:
        tool = Tools(lambda blocks: sandbox.submit(blocks[-1], limits, earlier=blocks[:-1]).result())
        said = [result.text for result in sandbox.map(bad, limits)]
        rows = [[block(b), heard(s), block("6*7"), heard("42"), EOS] for b, s in zip(bad, said, strict=True)]
        rollout, use, _ = play(rows, tool)
    for row, pieces in enumerate(rows):
        check(rollout, row, *pieces[:4], EOS)
    assert use.calls == 8 and use.failed == 4


def test_a_tool_that_fails_stops_the_run():
    def breaks(blocks):
        raise AssertionError

    class Broken(Tools):
        def ask(self, program, earlier):
            future = Future()
            future.set_exception(RuntimeError("the sandbox is closed"))
            return future

    with pytest.raises(RuntimeError, match="the sandbox is closed"):
        play([ONE], Broken(breaks))


def test_a_rollout_that_is_to_stop_does_not_wait_for_its_programs():
    """Whether none decodes or one goes on: it is asked between rounds, and what it raises comes out."""

    class Never(Tools):
        def ask(self, program, earlier):
            self.asked.append([*earlier, program])
            return Future()

    class Enough(Exception):
        pass

    def look_up():
        looked.append(time.monotonic())
        if len(looked) == 3:
            raise Enough

    for rows in ([ONE], [ONE, ["z" * LENGTH]]):
        looked = []
        with (
            mock.patch.object(rounds, "PATIENCE", 0.05),
            mock.patch.object(sampler(0), "look_up", look_up),
            pytest.raises(Enough),
        ):
            play(rows, Never(echo))
        assert len(looked) == 3


def test_tool_tokens_are_never_trained():
    """Not in |o|, not in a ratio, not in the penalty: the gradient by the log-probabilities is exactly 0 there."""
    rollout, _, _ = play([ONE, ["plain", EOS], MANY[2], ["z" * LENGTH]])
    mask, written = rollout.completion_mask, rollout.completions.segments > 0
    tool = written & ~mask
    assert tool.sum() == 3 * len(_tokens(heard("1")))
    outcome = jnp.array([[1.0, 0.0]] * P)
    objective = functools.partial(clipped, beta=0.1)
    algorithm = Algorithm(of_outcome(group_normalized), sequence_mean, maximize(objective), reference=True)
    logprobs, _ = completion_logprobs(MODEL, params(), rollout.prompts, rollout.completions, chunk=32)
    assert bool((logprobs[tool] < 0).all()), "they are scored as any token, and must not be felt"
    ref = logprobs - 0.3
    experience = make_experience(algorithm, rollout, Rewards(outcome), old_logprobs=logprobs + 0.1, ref_logprobs=ref)
    np.testing.assert_allclose(experience.weights.sum(1), 1 / 8, rtol=1e-6)  # 1 / |o| over the chosen tokens alone
    np.testing.assert_allclose(experience.weights[0].max(), 1 / 8 / mask[0].sum(), rtol=1e-6)
    assert not np.asarray(experience.weights)[~mask].any() and not np.asarray(experience.advantages)[~mask].any()

    def loss(logprobs):
        return algorithm.loss(logprobs, experience)[0]

    gradient = np.asarray(jax.grad(loss)(logprobs))
    assert not gradient[~mask].any() and (gradient[mask] != 0).all()
    poisoned = jnp.where(tool, jnp.inf, logprobs)
    np.testing.assert_array_equal(jax.grad(loss)(poisoned), gradient)


def test_output_ids_by_tokens():
    ids = output_ids(TOKENIZER, "```output\n", "abc" * 9, [], 7)
    assert TOKENIZER.decode(ids) == "```output\nab...ca\n```\n".replace("ab...ca", "ab..abc")
