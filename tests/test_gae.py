"""Generalized advantage estimation, against the sum it is defined by."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppo import compute_gae
from reference import advantage_by_definition

fractions = st.floats(0, 1)


def ends_at_random(rng, T, N, probability):
    """terminated, truncated and valid, (T, N) each, as next-step resets give them."""
    terminated, truncated = rng.random((2, T, N)) < probability
    valid = np.ones((T, N), bool)
    for t in range(T):
        if t:
            valid[t] = ~(terminated | truncated)[t - 1]
        terminated[t] &= valid[t]
        truncated[t] &= valid[t]
    return terminated, truncated, valid


@given(st.integers(1, 30), st.integers(1, 6), fractions, fractions, fractions, st.integers(0, 2**32 - 1))
def test_is_the_sum_of_its_definition(T, N, gamma, gae_lambda, probability, seed):
    """The sum that defines them, for every valid step; and nothing of the next episode."""
    rng = np.random.default_rng(seed)
    terminated, truncated, valid = ends_at_random(rng, T, N, probability)
    rewards, values = rng.normal(size=(T, N)) * valid, rng.normal(size=(T + 1, N))
    history = rewards, values, terminated, truncated, gamma, gae_lambda
    advantages = compute_gae(*history)
    for t, n in np.argwhere(valid):
        assert advantages[t, n] == pytest.approx(advantage_by_definition(*history, t, n), abs=1e-9)
    for t, n in np.argwhere(~valid):  # of an episode's first observation, only what follows may depend
        other = rewards.copy()
        other[t:, n] += 7
        changed = compute_gae(other, *history[1:]) - advantages
        assert not changed[:t][valid[:t]].any()


def test_a_time_limit_bootstraps_and_an_end_does_not():
    rewards, values = np.ones((1, 3)), np.array([[0.0] * 3, [10.0] * 3])
    terminated, truncated = np.array([[True, False, True]]), np.array([[False, True, True]])
    advantages = compute_gae(rewards, values, terminated, truncated, 0.5, 1.0)
    assert advantages.tolist() == [[1.0, 6.0, 1.0]]  # an episode that ends and runs out of time at once has ended


def test_lambda_1_gives_the_discounted_return():
    rewards, values = np.ones((4, 1)), np.full((5, 1), 7.0)
    none, last = np.zeros((4, 1), bool), np.array([[False]] * 3 + [[True]])
    returns = compute_gae(rewards, values, last, none, 0.5, 1.0) + values[:-1]
    assert returns.flatten().tolist() == [1.875, 1.75, 1.5, 1.0]


def test_float32_stays_float32():
    ones, none = np.ones((2, 1), np.float32), np.zeros((2, 1), bool)
    assert compute_gae(ones, np.ones((3, 1), np.float32), none, none, 0.99, 0.95).dtype == np.float32
