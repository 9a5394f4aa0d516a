"""Generalized advantage estimation, against the sum it is defined by."""

import numpy as np
import pytest

from ppo import compute_gae
from reference import advantage_by_definition


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0), (0.0, 0.7)])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_sum_of_its_definition(gamma, gae_lambda, seed):
    rng = np.random.default_rng(seed)
    T, N = 23, 5
    rewards, values = rng.normal(size=(T, N)), rng.normal(size=(T + 1, N))
    terminated, truncated = rng.random((2, T, N)) < 0.15
    terminated[-1, 0], truncated[-1, 1] = True, True  # ends on the last step of the rollout, too
    ended = terminated | truncated
    valid = np.vstack([np.ones((1, N), bool), ~ended[:-1]])
    for t in range(T):  # a reset step ends nothing and pays nothing
        terminated[t] &= valid[t]
        truncated[t] &= valid[t]
        if t + 1 < T:
            valid[t + 1] = ~(terminated | truncated)[t]
    rewards[~valid] = 0
    advantages = compute_gae(rewards, values, terminated, truncated, gamma, gae_lambda)
    assert 10 < (~valid).sum() < T * N / 2
    for t, n in zip(*np.nonzero(valid), strict=True):
        expected = advantage_by_definition(rewards, values, terminated, truncated, gamma, gae_lambda, t, n)
        assert advantages[t, n] == pytest.approx(expected, abs=1e-10)


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
