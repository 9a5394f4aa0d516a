"""The examples do what they are about: another reward makes another behaviour."""

import contextlib

import numpy as np
import pytest
import torch

from ppo import Args, make_envs, train


def behaviour(agent, env_id, index, steps=500):
    """Mean size of one entry of the observation while the agent acts in 32 environments."""
    envs, sizes = make_envs(Args(env_id=env_id), 32), []
    torch.manual_seed(0)
    obs, _ = envs.reset(seed=0)
    for _ in range(steps):
        obs, *_ = envs.step(agent.act(obs))
        sizes.append(np.abs(obs[:, index]))
    return np.mean(sizes[50:])


QUICK = {"num_envs": 32, "num_steps": 64, "learning_rate": 3e-3, "total_timesteps": 120_000, "ent_coef": 0.0}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An agent trained on CartPole as it is."""
    with contextlib.chdir(tmp_path_factory.mktemp("plain")):
        return train(Args(env_id="CartPole-v1", **QUICK))["agent"]


def test_centred(plain):
    """The cart stays much nearer to the middle of the track."""
    env_id = "examples.cartpole_rewards:CartPoleCentred-v0"
    shaped = train(Args(env_id=env_id, **QUICK))["agent"]
    assert behaviour(shaped, env_id, 0) < 0.5 * behaviour(plain, "CartPole-v1", 0)


def test_spinning(plain):
    """The pole turns at more than half a revolution a second, where it hardly moved."""
    env_id = "examples.cartpole_rewards:CartPoleSpinning-v0"
    shaped = train(Args(env_id=env_id, **QUICK))["agent"]
    assert behaviour(shaped, env_id, 3) > np.pi > 5 * behaviour(plain, "CartPole-v1", 3)
