"""Where steps end, on tokens: by hand, on the host and on the devices, and with newlines inside merged tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.data.steps import newline_tokens, step_ends
from grpo_jax.data.tokenizer import character_tokenizer
from tests.make_random_model import make_tokenizer

# 0 padding, 1 end of sequence, 2 newline, 3 a token that ends with one; all else is content
NEWLINE = np.isin(np.arange(10), (2, 3))
CASES = {
    "one line": ([5, 6, 1], [2]),
    "two lines": ([5, 2, 6, 1], [1, 3]),
    "a merged newline": ([5, 3, 6, 1], [1, 3]),
    "several newlines": ([5, 2, 2, 6, 2, 3, 7, 1], [2, 5, 7]),
    "in front": ([2, 2, 5, 2, 6, 1], [3, 5]),
    "behind": ([5, 2, 6, 2, 2, 1], [1, 5]),
    "cut in a line": ([5, 2, 6, 7], [1, 3]),
    "cut behind a newline": ([5, 6, 2], [2]),
    "nothing but the end": ([1], [0]),
    "nothing but newlines": ([2, 2, 1], [2]),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    row, places = CASES[name]
    mask = np.arange(9) < len(row)
    tokens = np.array([row + [5] * (9 - len(row))])  # what stands behind is not looked at
    found = step_ends(tokens, mask[None], NEWLINE, (1,))
    assert np.flatnonzero(found[0]).tolist() == places
    on_device = step_ends(jnp.asarray(tokens), jnp.asarray(mask[None]), NEWLINE, (1,))
    np.testing.assert_array_equal(on_device, found)


def test_newlines_of_tokenizers():
    characters = character_tokenizer("0123456789+-=\n")
    newline = newline_tokens(characters, 40)
    assert [characters.decode([i]) for i in np.flatnonzero(newline)] == ["\n"] and newline.shape == (40,)
    merged = make_tokenizer(320)
    texts = {merged.decode([i]) for i in np.flatnonzero(newline_tokens(merged, len(merged)))}
    assert "\n" in texts and all("\n" in text for text in texts)
