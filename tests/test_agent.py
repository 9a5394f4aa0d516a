"""The policy and its pieces: initialisation, distributions, masks, sampling, action spaces, running statistics."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector.utils import batch_space
from torch import nn
from torch.distributions import Categorical

import ppo
from conftest import make_agent
from ppo import RunningMeanStd, forbidden_choices, numpy_policy, sample_actions, to_env

MISSING = np.array([[False, False, True], [False, False, False]])  # components with 2 and 3 choices


def test_initialisation():
    """Orthogonal weights with the gains of detail 2, zero biases, networks of their own (detail 13)."""
    agent = make_agent(ppo, 7, Discrete(5))
    for network, gains in ((agent.actor, (2**0.5, 2**0.5, 0.01)), (agent.critic, (2**0.5, 2**0.5, 1.0))):
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        for layer, gain in zip(layers, gains, strict=True):
            weight = layer.weight if layer.weight.shape[0] < layer.weight.shape[1] else layer.weight.T
            torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-5, rtol=1e-4)
            assert not layer.bias.any()
    shapes = [tuple(param.shape) for param in agent.actor.parameters()]
    assert shapes == [(64, 7), (64,), (64, 64), (64,), (5, 64), (5,)]
    assert not {id(p) for p in agent.actor.parameters()} & {id(p) for p in agent.critic.parameters()}


def random_inputs(size=200):
    generator = torch.Generator().manual_seed(3)
    obs = torch.randn(size, 4, generator=generator)
    forbidden = torch.rand(size, 2, 3, generator=generator) < 0.4
    forbidden[:, :, 1] = False
    forbidden |= torch.from_numpy(MISSING)
    return obs, forbidden


def test_distribution_is_that_of_the_allowed_choices():
    """Log-probabilities and entropies of independent categoricals over what is allowed, summed (details 37 and d)."""
    torch.manual_seed(0)
    agent = make_agent(ppo, 4, MultiDiscrete([3, 3]))
    nn.init.orthogonal_(agent.actor[-1].weight)  # far from uniform
    obs, forbidden = random_inputs()
    logits = agent.actor(obs).view(-1, 2, 3)
    actions = (~forbidden * torch.rand(forbidden.shape)).argmax(-1)
    logprob, entropy, value = agent.evaluate({"obs": obs, "forbidden": forbidden, "actions": actions})
    torch.testing.assert_close(value, agent.critic(obs).squeeze(-1))
    for i in range(len(obs)):
        expected_logprob = expected_entropy = 0
        for c in range(2):
            allowed = (~forbidden[i, c]).nonzero().flatten()
            categorical = Categorical(logits=logits[i, c, allowed])
            expected_logprob += categorical.log_prob((allowed == actions[i, c]).nonzero()[0, 0])
            expected_entropy += categorical.entropy()
        torch.testing.assert_close(logprob[i], expected_logprob, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(entropy[i], expected_entropy, atol=1e-4, rtol=1e-4)


def test_forbidden_choices_get_no_gradient():
    torch.manual_seed(0)
    agent = make_agent(ppo, 4, MultiDiscrete([3, 3]))
    forbidden = torch.zeros(10, 2, 3, dtype=torch.bool)
    forbidden[:, 1, 2] = True
    batch = {"obs": torch.randn(10, 4), "forbidden": forbidden, "actions": torch.ones(10, 2, dtype=torch.int64)}
    logprob, entropy, _ = agent.evaluate(batch)
    (gradient,) = torch.autograd.grad((logprob + entropy).sum(), agent.actor[-1].bias)
    assert gradient.isfinite().all()
    assert gradient[5] == 0
    assert gradient[:5].ne(0).all()


def test_sampling_frequencies():
    """200,000 samples: each choice as often as its probability says, components independent, forbidden ones never."""
    agent = make_agent(ppo, 4, MultiDiscrete([2, 3]))
    size, logits = 200_000, np.array([1.0, -1.0, 0.3, 0.0, 2.0, -0.5], np.float32)
    forbidden = np.broadcast_to(MISSING, (size, 2, 3))
    samples = sample_actions(np.broadcast_to(logits, (size, 6)), forbidden, agent.noise(np.random.default_rng(0), size))
    first = np.exp(logits[:2]) / np.exp(logits[:2]).sum()
    second = np.exp(logits[3:]) / np.exp(logits[3:]).sum()
    for a, b in itertools.product(range(2), range(3)):
        p = float(first[a] * second[b])
        assert ((samples == [a, b]).all(1)).mean() == pytest.approx(p, abs=4 * (p * (1 - p) / size) ** 0.5)
    assert samples[:, 0].max() == 1


@pytest.mark.parametrize("shared", [[], [nn.Linear(9, 9), nn.Tanh()], [nn.Linear(9, 9), nn.LayerNorm(9), nn.ReLU()]])
def test_numpy_policy_is_the_policy(shared):
    """Also with layers that policy and value share, and of types that NumPy is not told of."""
    torch.manual_seed(0)
    agent = make_agent(ppo, 9, Discrete(6))
    agent.trunk.extend(shared)
    obs = torch.randn(32, 9)
    with torch.no_grad():
        features = agent.trunk(obs)
        expected = agent.actor(features).numpy()
    np.testing.assert_allclose(numpy_policy(agent)(obs.numpy()), expected, atol=1e-4, rtol=1e-4)
    batch = {"obs": obs, "actions": torch.zeros(32, 1, dtype=torch.int64), "forbidden": torch.zeros(32, 1, 6) > 0}
    torch.testing.assert_close(agent.evaluate(batch)[2], agent.critic(features).squeeze(-1))


@pytest.mark.parametrize(
    ("space", "missing", "start"),
    [
        (Discrete(3), [[0, 0, 0]], [0]),
        (Discrete(2, start=-4), [[0, 0]], [-4]),
        (MultiDiscrete([2, 3], start=[0, 7]), [[0, 0, 1], [0, 0, 0]], [0, 7]),
        (MultiDiscrete([[1], [2]]), [[0, 1], [0, 0]], [0, 0]),
        (MultiBinary(2), [[0, 0], [0, 0]], [0, 0]),
        (MultiBinary((2, 1)), [[0, 0], [0, 0]], [0, 0]),
    ],
)
def test_action_spaces(space, missing, start):
    """Which of C * K choices don't exist; and what the environments are told, whatever the space counts from."""
    got = make_agent(ppo, 3, space).missing
    assert got.dtype == bool
    assert got.tolist() == np.array(missing, bool).tolist()
    last = got.shape[1] - 1 - got.sum(1)
    batched = batch_space(space, 2)
    told = to_env(np.array([last, 0 * last]), batched)
    assert told.dtype == batched.dtype and batched.contains(told)
    np.testing.assert_array_equal(told.reshape(2, -1), [np.array(start) + last, start])
    assert not batched.contains(to_env(np.array([last + 1, 0 * last]), batched))


ALIVE, OVER = np.array([False] * 3), np.array([False, False, True])


def test_masks_from_info():
    assert np.array_equal(forbidden_choices({}, MISSING, ALIVE), [MISSING] * 3)
    mask = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]], np.int8)
    expected = np.array([[[1, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]], MISSING], bool)
    assert np.array_equal(forbidden_choices({"action_mask": mask}, MISSING, OVER), expected)
    some = {"action_mask": mask, "_action_mask": np.array([True, False, False])}
    expected = np.array([expected[0], MISSING, MISSING])
    assert np.array_equal(forbidden_choices(some, MISSING, ALIVE), expected)


def test_masks_as_tuples_and_with_axes():
    pairs = np.empty(2, object)
    pairs[:] = [(np.array([1, 0]), np.array([1, 0, 1])), (np.array([1, 1]), np.array([0, 1, 0]))]
    expected = [[[0, 1, 1], [0, 1, 0]], [[0, 0, 1], [1, 0, 1]]]
    got = forbidden_choices({"action_mask": pairs}, MISSING, ALIVE[:2])
    assert np.array_equal(got, np.array(expected, bool))
    missing = make_agent(ppo, 3, MultiBinary((2, 2))).missing
    mask = np.array([[[[1, 0], [1, 1]], [[0, 1], [1, 0]]]])
    assert forbidden_choices({"action_mask": mask}, missing, ALIVE[:1]).tolist() == [
        [[False, True], [False, False], [True, False], [False, True]]
    ]


@pytest.mark.parametrize(
    "mask", [[1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1]]
)
def test_impossible_masks(mask, capsys):
    """Of a wrong size, or without a choice where the episode goes on: an error, not a forbidden action."""
    with pytest.raises(SystemExit):
        forbidden_choices({"action_mask": np.array([mask])}, MISSING, ALIVE[:1])
    assert "needs 5 values, and a choice until the episode ends" in capsys.readouterr().err


def test_masks_of_a_real_environment(minibatches):
    """Taxi's masks arrive in the data, and what they forbid is never done."""
    ppo.train(ppo.Args(env_id="Taxi-v4", total_timesteps=2048))
    for batch, _ in minibatches:
        forbidden, valid = batch["forbidden"], batch["valid"]
        assert forbidden[valid].float().mean() > 0.1
        assert not forbidden[valid].gather(-1, batch["actions"][valid].unsqueeze(-1)).any()


def test_running_statistics_are_those_of_all_data():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3, 10, size=(n, 2)) for n in (1, 5, 1, 40, 0, 7)]
    stats = RunningMeanStd((2,))
    for batch in batches:
        stats.update(batch)
    everything = np.concatenate(batches)
    np.testing.assert_allclose(stats.mean, everything.mean(0))
    np.testing.assert_allclose(stats.var, everything.var(0))
    assert stats.count == len(everything)
    x = np.array([[3.0, 1e9]])
    expected = np.minimum((x - everything.mean(0)) / everything.std(0), 10)
    np.testing.assert_allclose(stats.normalize(x), expected, rtol=1e-6)
    np.testing.assert_allclose(stats.normalize(x, center=False)[0, 0], 3 / everything.std(0)[0], rtol=1e-6)
