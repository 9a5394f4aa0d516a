"""Worlds that are learned if masks and spaces are right; the probes themselves are in test_fork.py."""

import pytest
import torch

from ppo import Args, train

GAMMA = 0.9


def learn(env_id, seed, **changes):
    settings = {"total_timesteps": 4096, "num_envs": 8, "num_steps": 32, "learning_rate": 5e-3, "gamma": GAMMA}
    return train(Args(env_id=f"worlds:{env_id}", seed=seed, **settings | changes))["agent"]


def value(agent, *obs):
    with torch.no_grad():
        return agent.critic(torch.tensor(obs)).item()


def probability(agent, obs, action):
    with torch.no_grad():
        return agent.actor(torch.tensor(obs)).softmax(-1)[action].item()


def test_masked_actions_are_never_taken():
    """The environment itself fails when they are; and what pays is learned where it is allowed."""
    agent = learn("Masked", 1, total_timesteps=8192)
    allowed = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 4)
    batch = {"obs": allowed, "masks": allowed[:, None] == 1, "actions": torch.arange(4)[:, None]}
    with torch.no_grad():
        probabilities = agent(batch)[0].exp().tolist()
    assert probabilities == pytest.approx([0, 0, 1, 0], abs=0.1)
    assert probabilities[3] == 0


def test_multi_discrete_masks():
    learn("MaskedPairs", 1, total_timesteps=2048)


@pytest.mark.parametrize(("env_id", "best"), [("Shifted", [1]), ("Pairs", [1, 1]), ("Switches", [1, 0, 1])])
def test_action_spaces(env_id, best):
    """The right action of each component is found, whatever number the space gives it."""
    agent = learn(env_id, 1)
    with torch.no_grad():
        logits = agent.actor(torch.zeros(1)).view(len(best), -1)
    for component, action in zip(logits, best, strict=True):
        assert component[: 2 if env_id != "Pairs" else 3].argmax() == action


@pytest.mark.parametrize("env_id", ["Grid", "Nested"])
def test_other_spaces(env_id, minibatches):
    """Observations are flattened in gymnasium's order."""
    learn(env_id, 1, total_timesteps=256)
    expected = {"Grid": [0, 1, 2, 3, 4, 5], "Nested": [0.5, 0, 1, 0, 1, 0, 7, 7, 7, 7]}[env_id]
    for batch, _ in minibatches:
        assert batch["obs"].tolist() == [expected] * 64
