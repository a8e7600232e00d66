"""PPO with its values and GRPO on one small problem, in tables: both improve, and end at the same, known optimum.

Two prompts, completions of two tokens out of three. With a KL penalty of weight beta in the reward, the best policy is
`ref(o) exp(r(o) / beta)` over its sum; PPO comes there by values and token rewards, GRPO by its group's mean.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.algorithms import grpo, ppo
from grpo_jax.algorithms.algorithm import make_experience
from grpo_jax.algorithms.values import clipped_value_loss
from grpo_jax.types import Prompts, Rewards, Rollout, Sequences

P, G, V, STEPS = 2, 256, 3, 400
RNG = np.random.default_rng(3)
REWARD = RNG.uniform(0, 1, (P, V, V)).round(1)  # of both tokens
REFERENCE = jax.nn.log_softmax(jnp.asarray(RNG.normal(0, 0.5, (P, V + 1, V)), jnp.float32))
METHODS = {
    "ppo": partial(ppo.Config, lam=0.95, value_clip=None),
    "grpo": partial(grpo.Config, kl="k1", kl_in="reward", scale_rewards="none"),
}


def sample(key, logits):
    """Groups of completions [P * G, 2]: the second token's distribution is that behind the first one."""
    first = jax.random.categorical(key, logits[:, 0], axis=-1, shape=(G, P)).T  # [P, G]
    rows = jnp.take_along_axis(logits[:, 1:], first[..., None], axis=1)  # [P, G, V]
    second = jax.random.categorical(jax.random.fold_in(key, 1), rows)
    return jnp.stack([first, second], -1).reshape(P * G, 2)


def states(tokens):
    """Prompt and row of the tables of each token: [B, 2] each."""
    prompt = jnp.repeat(jnp.arange(P), G)[:, None] * jnp.ones((1, 2), jnp.int32)
    return prompt, jnp.stack([jnp.zeros(P * G, jnp.int32), tokens[:, 0] + 1], -1)


def score(logits, tokens):
    logprobs = jax.nn.log_softmax(logits)[states(tokens)]  # [B, 2, V]
    return jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]


def rollout_of(tokens, logprobs) -> Rollout:
    prompts, there = jnp.zeros((P, 1), jnp.int32), jnp.ones(tokens.shape, bool)
    return Rollout(
        prompts=Prompts(Sequences(prompts, prompts, prompts + 1), jnp.arange(P)),
        completions=Sequences(tokens, jnp.zeros_like(tokens), there.astype(jnp.int32)),
        completion_mask=there,
        logprobs=logprobs,
        finished=jnp.ones(len(tokens), bool),
    )


def learn(algorithm):
    """The policy as probabilities of both tokens [P, V, V], and the mean reward of each step."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, STEPS, 0.01))
    tables = {"policy": REFERENCE, "values": jnp.zeros((P, V + 1))}

    def step(carry, number):
        tables, moments = carry
        tokens = sample(jax.random.fold_in(jax.random.key(0), number), tables["policy"])
        logprobs, values = score(tables["policy"], tokens), tables["values"][states(tokens)]
        reward = jnp.asarray(REWARD, jnp.float32)[states(tokens)[0][:, 0], tokens[:, 0], tokens[:, 1]]
        experience = make_experience(
            algorithm,
            rollout_of(tokens, logprobs),
            Rewards(reward.reshape(P, G)),
            None,
            score(REFERENCE, tokens),
            values if algorithm.critic else None,
        )

        def loss(tables):
            total, _ = algorithm.loss(score(tables["policy"], tokens), experience)
            if algorithm.critic:
                total += clipped_value_loss(tables["values"][states(tokens)], experience, clip=None)[0]
            return total

        updates, moments = optimizer.update(jax.grad(loss)(tables), moments)
        return (optax.apply_updates(tables, updates), moments), reward.mean()

    (tables, _), rewards = jax.jit(partial(jax.lax.scan, step))((tables, optimizer.init(tables)), jnp.arange(STEPS))
    return probabilities(tables["policy"]), np.asarray(rewards), np.asarray(tables["values"])


def probabilities(logits):
    first, second = jnp.exp(jax.nn.log_softmax(logits[:, 0])), jnp.exp(jax.nn.log_softmax(logits[:, 1:]))
    return np.asarray(first[:, :, None] * second)


def optimum(beta):
    """Of the mean reward less beta times the divergence from the reference."""
    weights = probabilities(REFERENCE) * np.exp(REWARD / beta)
    return weights / weights.sum((1, 2), keepdims=True)


def value_of(policy, beta):
    return (policy * (REWARD - beta * np.log(policy / probabilities(REFERENCE)))).sum((1, 2))


@pytest.mark.parametrize("beta", [0.3, pytest.param(0.0, marks=pytest.mark.slow)])
def test_ppo_and_grpo_end_at_the_same_optimum(beta):
    ends = {}
    for name, config in METHODS.items():
        module = {"ppo": ppo, "grpo": grpo}[name]
        ends[name], rewards, values = learn(module.build(config(beta=beta)))
        assert rewards[-50:].mean() > rewards[:5].mean() + 0.05, name
        if name == "ppo":
            np.testing.assert_allclose(values[:, 0], value_of(np.maximum(ends[name], 1e-9), beta), atol=0.03)
    if beta:
        for name, policy in ends.items():
            np.testing.assert_allclose(policy, optimum(beta), atol=0.03, err_msg=name)
    else:
        best = REWARD.reshape(P, -1).argmax(-1)
        for name, policy in ends.items():
            assert (policy.reshape(P, -1)[np.arange(P), best] > 0.95).all(), name
    np.testing.assert_allclose(ends["ppo"], ends["grpo"], atol=0.04)
