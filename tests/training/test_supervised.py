"""Packed rows give the loss and the gradient of the examples alone, however they are cut, laid out and padded."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from grpo_jax.config import PromptConfig
from grpo_jax.data.demonstrations import demonstrations
from grpo_jax.data.packing import PackingPlan, packed_batch
from grpo_jax.data.rows import RowConfig, problems_from_rows
from grpo_jax.sharding import host_to_global, named
from grpo_jax.training.state import abstract_state, create_state, state_shardings
from grpo_jax.training.step import MicrobatchError
from grpo_jax.training.supervised import supervised_loss, supervised_step
from tests import tiny
from tests.make_random_model import make_tokenizer

VOCABULARY = 320
MODEL = {"vocab_size": VOCABULARY, "num_layers": 1}
CHAT = PromptConfig(format="chat", system="Sum.", suffix=" Think.")

ROWS = [
    {"prompt": "1+2=", "completion": "3"},
    {"question": "How many clips?", "answer": "4", "solution": "Natalia sold 48/2 = 24 clips."},
    {"messages": [{"role": "user", "content": "What is 5?"}, {"role": "assistant", "content": "A number."}]},
    {
        "messages": [
            {"role": "system", "content": "Short."},
            {"role": "user", "content": "6"},
            {"role": "assistant", "content": "even"},
            {"role": "user", "content": "7"},
            {"role": "assistant", "content": "odd"},
        ]
    },
    {"prompt": [{"role": "user", "content": "8"}], "completion": [{"role": "assistant", "content": "eight"}]},
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def examples(tokenizer):
    problems = problems_from_rows(((str(i), row) for i, row in enumerate(ROWS)), RowConfig(), "rows")
    return demonstrations(problems, CHAT, tokenizer, (tokenizer.eos_token_id,))


def batch_of(examples, *, packing, rows):
    """All examples once, in `rows` rows: those that no example fills are padding."""
    lengths = [len(example.tokens) for example in examples]
    longest = max(lengths) + (2 * min(lengths) if packing else 3)
    plan = PackingPlan(lengths, max_length=longest, batch_size=1, seed=0, packing=packing)
    seen, parts = 0, []
    while seen < len(examples):
        seen += len(plan.rows(len(parts))[0])
        parts.append(packed_batch(examples, plan, len(parts), pad=9))
    batch = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return jax.tree.map(lambda x: np.pad(x, ((0, rows - len(x)), (0, 0))), batch)


def update(batch, *, mesh=None, microbatches=1, chunk=16):
    """(gradient, metrics) of one step under a mesh; the gradient is what the optimizer is given."""
    mesh, model = mesh or tiny.mesh_of(), tiny.decoder(**MODEL)
    optimizer = optax.trace(decay=0.0)  # its state is the gradient
    with jax.set_mesh(mesh):
        params = tiny.on_mesh(tiny.host_params(**MODEL), model, mesh)
        state = create_state(params, optimizer, 0, mesh)
        step = partial(supervised_step, model=model, optimizer=optimizer, chunk=chunk, microbatches=microbatches)
        shardings = state_shardings(abstract_state(params, optimizer, mesh))
        new, metrics = jax.jit(step, out_shardings=(shardings, None))(
            state, *host_to_global(batch, named(mesh, "batch"))
        )
    return jax.device_get(new.opt_state.trace), {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def expected(examples):
    """Each example in a call of its own: the mean over all tokens that are learnt."""
    params = tiny.host_params(**MODEL)
    alone, mask = batch_of(examples, packing=False, rows=len(examples))
    weights = (mask / mask.sum()).astype(np.float32)
    loss = partial(supervised_loss, model=tiny.decoder(**MODEL), chunk=16)
    call = jax.jit(jax.value_and_grad(loss, has_aux=True))
    calls = [call(params, *jax.tree.map(lambda x, i=i: x[i : i + 1], (alone, weights))) for i in range(len(examples))]
    gradient = jax.tree.map(lambda *parts: sum(map(np.asarray, parts)), *(gradient for _, gradient in calls))
    return gradient, sum(float(value) for (value, _), _ in calls), int(mask.sum())


def assert_same(got, expected):
    gradient, metrics = got
    for (path, a), b in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(expected[0]), strict=True):
        size = max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a / size, b / size, atol=3e-5, err_msg=str(path))
    np.testing.assert_allclose(metrics["loss"], expected[1], rtol=1e-5)
    assert metrics["num_tokens"] == expected[2] and metrics["skipped_updates"] == 0


def test_what_is_learnt(examples, tokenizer):
    """The assistant's words and the end of each turn, in every form of data, and nothing else."""
    learnt = [tokenizer.decode(example.tokens[example.loss_mask]) for example in examples]
    end = "<|im_end|>"
    answer = "Natalia sold 48/2 = 24 clips."
    assert learnt == [f"3{end}", f"{answer}{end}", f"A number.{end}", f"even{end}odd{end}", f"eight{end}"]
    texts = [tokenizer.decode(example.tokens) for example in examples]
    assert texts[0].startswith(f"<|im_start|>system\nSum.{end}\n<|im_start|>user\n1+2= Think.{end}\n")
    assert texts[3].startswith(f"<|im_start|>system\nShort.{end}\n<|im_start|>user\n6{end}\n")


def test_packing_packs(examples):
    packed, alone = batch_of(examples, packing=True, rows=4), batch_of(examples, packing=False, rows=8)
    assert packed[0].segments.max() >= 2 and (packed[0].segments.max(1) > 0).sum() < len(examples)
    assert packed[1].sum() == alone[1].sum() and not packed[1][packed[0].segments == 0].any()


@pytest.mark.parametrize(
    ("packing", "mesh", "microbatches", "chunk"),
    [
        (False, (1, 1, 1), 1, 16),
        (True, (1, 1, 1), 1, 16),
        (True, (1, 1, 1), 4, 5),
        (True, (1, 2, 2), 1, 7),
        (True, (2, 2, 1), 1, 200),
        (True, (1, 1, 4), 2, 16),
    ],
)
def test_packed_as_alone(examples, expected, packing, mesh, microbatches, chunk):
    batch = batch_of(examples, packing=packing, rows=4 if packing else 8)
    assert_same(update(batch, mesh=tiny.mesh_of(*mesh), microbatches=microbatches, chunk=chunk), expected)


def test_the_examples_of_a_row_do_not_see_one_another(examples, expected):
    """With one segment id for all, the gradient is another: the property above is not empty."""
    sequences, mask = batch_of(examples, packing=True, rows=4)
    gradient, _ = update((sequences.replace(segments=np.minimum(sequences.segments, 1)), mask))
    with pytest.raises(AssertionError):
        assert_same((gradient, {"loss": expected[1], "num_tokens": expected[2], "skipped_updates": 0}), expected)


def test_microbatches_that_do_not_divide(examples):
    with pytest.raises(MicrobatchError, match="4 rows cannot be cut into 3 equal parts"):
        update(batch_of(examples, packing=True, rows=4), microbatches=3)
