"""Losses of reward models against golden numbers, and one gradient however solutions are packed, cut and laid out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.data.labelled import Scored
from grpo_jax.data.scored_rows import scored_rows
from grpo_jax.models.scores import sequence_scores
from grpo_jax.sharding import host_to_global, named
from grpo_jax.training.scoring import ScoreBatch, bradley_terry, cross_entropy, scoring_step
from grpo_jax.training.state import abstract_state, create_state, state_shardings
from grpo_jax.training.step import MicrobatchError
from grpo_jax.types import Sequences
from tests import tiny

MODEL = {"num_layers": 1, "head": "scalar"}


def at_once(targets):
    targets = np.asarray(targets, np.float32)[None]
    zeros = np.zeros(targets.shape, np.int32)
    return ScoreBatch(Sequences(zeros, zeros, zeros), np.ones(targets.shape, bool), targets, zeros)


def test_golden(vectors):
    known = vectors["prm_loss"]
    probability = np.array(known["inputs"]["prob"])
    scores = jnp.log(probability / (1 - probability))[None]
    for name in ("HE", "SE"):
        losses, right = cross_entropy(scores, at_once(known["inputs"][name]))
        np.testing.assert_allclose(losses[0], known["expected"][f"per_step_{name}"], rtol=1e-5)
        assert float(losses.sum()) == pytest.approx(known["expected"][f"loss_{name}"], rel=1e-5)
        on_one_side = (probability > 0.5) == (np.array(known["inputs"][name]) > 0.5)
        np.testing.assert_array_equal(right[0], on_one_side)


def test_bradley_terry_by_hand():
    batch = at_once([0.0] * 4).replace(partner=np.array([[0, 0, 0, 2]], np.int32))
    losses, right = bradley_terry(jnp.array([[0.5, -0.25, 3.0, 4.0]]), batch)
    assert float(losses[0, 1]) == pytest.approx(-np.log(1 / (1 + np.exp(-0.75))), rel=1e-6)
    assert float(losses[0, 3]) == pytest.approx(-np.log(1 / (1 + np.exp(1.0))), rel=1e-6)
    assert right[0, 1] and not right[0, 3]


def solutions(pairs=False):
    rng, made = np.random.default_rng(0), []
    for number in range(8):
        T = int(rng.integers(4, 9))
        mask = rng.random(T) < 0.4
        mask[-1], second = True, 0
        targets = np.where(mask, rng.random(T), 0).astype(np.float32)
        if pairs:
            second, mask = 2, np.zeros(T, bool)
            mask[[1, -1]], targets = True, np.zeros(T, np.float32)
        made.append(
            Scored(rng.integers(2, tiny.V, T).astype(np.int32), targets, mask, second, str(number), str(number))
        )
    return made


LAYOUTS = {
    "alone": [[i] for i in range(8)],
    "packed": [[0, 1], [2, 3], [4], [5, 6, 7]],
    "otherwise": [[7], [6, 0, 5], [3, 1], [2, 4]],
}


def update(examples, layout, *, pairs=False, mesh=None, microbatches=1, changes=MODEL, candidates=None):
    """(gradient, metrics) of one step."""
    mesh, model = mesh or tiny.mesh_of(), tiny.decoder(**changes)
    optimizer = optax.trace(decay=0.0)  # its state is the gradient
    batch = ScoreBatch(*scored_rows(examples, LAYOUTS[layout], max_length=26, pad=0))
    with jax.set_mesh(mesh):
        params = tiny.on_mesh(tiny.host_params(**changes), model, mesh)
        state = create_state(params, optimizer, 0, mesh)
        objective = bradley_terry if pairs else cross_entropy
        step = partial(
            scoring_step,
            model=model,
            objective=objective,
            optimizer=optimizer,
            candidates=candidates,
            microbatches=microbatches,
        )
        shardings = state_shardings(abstract_state(params, optimizer, mesh))
        new, metrics = jax.jit(step, out_shardings=(shardings, None))(
            state, host_to_global(batch, named(mesh, "batch"))
        )
    return jax.device_get(new.opt_state.trace), {name: float(value) for name, value in metrics.items()}


def expected(examples, pairs):
    """The mean over all labels, or pairs, of solutions each in a row of its own that nothing else is in."""
    model, params = tiny.decoder(**MODEL), tiny.host_params(**MODEL)
    texts = [part for e in examples for part in np.split(e.tokens, [e.second] if pairs else [])]
    real = np.array([np.arange(9) < len(text) for text in texts]).astype(np.int32)
    rows = Sequences(
        np.array([np.pad(text, (0, 9 - len(text))) for text in texts]), np.arange(9, dtype=np.int32) * real, real
    )

    def loss(params):
        scores = sequence_scores(model, params, rows)
        if pairs:
            ends = scores[np.arange(len(texts)), [len(text) - 1 for text in texts]]
            return -jnp.log(jax.nn.sigmoid(ends[::2] - ends[1::2])).mean()
        r = jnp.concatenate(
            [jax.nn.sigmoid(row[: len(e.mask)][e.mask]) for row, e in zip(scores, examples, strict=True)]
        )
        y = np.concatenate([e.targets[e.mask] for e in examples])
        return -(y * jnp.log(r) + (1 - y) * jnp.log(1 - r)).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("pairs", [False, True])
def test_packed_as_alone(pairs):
    examples = solutions(pairs)
    value, gradient = expected(examples, pairs)
    ways = [("alone", (1, 1, 1), 1), ("packed", (1, 1, 1), 2), ("otherwise", (2, 1, 2), 1)]
    for layout, mesh, microbatches in ways:
        got, metrics = update(examples, layout, pairs=pairs, mesh=tiny.mesh_of(*mesh), microbatches=microbatches)
        assert metrics["loss"] == pytest.approx(float(value), rel=2e-5)
        assert metrics["num_labels"] == (8 if pairs else sum(int(e.mask.sum()) for e in examples))
        for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(gradient), strict=True):
            size = max(float(np.abs(b).max()), 1e-3)
            np.testing.assert_allclose(a / size, b / size, atol=5e-5, err_msg=f"{layout} {mesh} {path}")


def test_only_labelled_places_are_learnt():
    """The gradient with respect to the scores is zero at every other token, whatever its target says."""
    examples = solutions()
    batch = ScoreBatch(*scored_rows(examples, LAYOUTS["packed"], max_length=26, pad=0))
    scores = jnp.asarray(np.random.default_rng(1).normal(size=batch.mask.shape), jnp.float32)

    def loss(scores, batch):
        return jnp.sum(jnp.where(batch.mask, cross_entropy(scores, batch)[0], 0.0))

    gradient = np.asarray(jax.grad(loss)(scores, batch))
    assert (gradient[batch.mask] != 0).all() and not gradient[~batch.mask].any()
    changed = [e._replace(targets=np.where(e.mask, e.targets, 0.5).astype(np.float32)) for e in examples]
    a, b = update(examples, "packed"), update(changed, "packed")
    assert all(map(np.array_equal, jax.tree.leaves(a[0]), jax.tree.leaves(b[0]))) and a[1] == b[1]


def test_two_tokens_leave_other_rows_of_an_untied_head_alone():
    gradient, metrics = update(solutions(), "packed", changes={"num_layers": 1}, candidates=(3, 7))
    touched = np.flatnonzero(np.abs(gradient["head"]).max(0))
    assert touched.tolist() == [3, 7] and np.isfinite(metrics["loss"])
    np.testing.assert_allclose(gradient["head"][:, 3], -gradient["head"][:, 7], rtol=1e-5)


def test_microbatches_that_do_not_divide():
    with pytest.raises(MicrobatchError, match="4 rows cannot be cut into 3 equal parts"):
        update(solutions(), "packed", microbatches=3)
