"""Probe environments: each is learned in seconds, or exactly one thing is wrong (see worlds.py)."""

import pytest
import torch

from ppo import Args, train

GAMMA = 0.9


def learn(env_id, seed, **changes):
    settings = {"total_timesteps": 16_384, "num_envs": 8, "num_steps": 32, "learning_rate": 5e-3, "gamma": GAMMA}
    return train(Args(env_id=f"worlds:{env_id}", seed=seed, **settings | changes))["agent"]


def value(agent, *obs):
    with torch.no_grad():
        return agent.critic(torch.tensor(obs)).item()


def probability(agent, obs, action):
    with torch.no_grad():
        return agent.actor(torch.tensor(obs)).softmax(-1)[action].item()


@pytest.mark.parametrize("seed", [1, 2])
class TestProbes:
    def test_1_value_of_a_constant(self, seed):
        assert value(learn("Probe1", seed), 0.0) == pytest.approx(1, abs=0.02)

    def test_2_value_of_an_observation(self, seed):
        agent = learn("Probe2", seed)
        assert value(agent, 1.0) == pytest.approx(1, abs=0.05)
        assert value(agent, -1.0) == pytest.approx(-1, abs=0.05)

    def test_3_discounting(self, seed):
        agent = learn("Probe3", seed)
        assert value(agent, 0.0) == pytest.approx(GAMMA, abs=0.03)
        assert value(agent, 1.0) == pytest.approx(1, abs=0.03)

    def test_4_action(self, seed):
        agent = learn("Probe4", seed)
        assert probability(agent, [0.0], 1) > 0.97

    def test_5_action_for_an_observation(self, seed):
        agent = learn("Probe5", seed)
        assert probability(agent, [1.0], 1) > 0.95
        assert probability(agent, [-1.0], 0) > 0.95
        assert value(agent, 1.0) == pytest.approx(1, abs=0.1)

    def test_6_a_time_limit_is_no_end(self, seed):
        agent = learn("Probe6", seed, clip_vloss=False)
        assert value(agent, 1.0) == pytest.approx(1 / (1 - GAMMA), abs=0.3)

    def test_7_an_end_is_one(self, seed):
        agent = learn("Probe7", seed, clip_vloss=False, total_timesteps=32_768)
        for step in range(5):
            expected = sum(GAMMA**k for k in range(5 - step))
            assert value(agent, step / 5) == pytest.approx(expected, abs=0.15), step


def test_masked_actions_are_never_taken():
    """The environment itself fails when they are; and what pays is learned where it is allowed."""
    agent = learn("Masked", 1)
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
