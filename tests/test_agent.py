"""The policy and its pieces: initialisation, distributions, masks, sampling, action spaces, running statistics."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete
from torch import nn
from torch.distributions import Categorical

import ppo
import worlds
from conftest import make_agent
from ppo import Args, RunningMeanStd, train

EXISTS = np.array([[True, True, False], [True, True, True]])  # components with 2 and 3 choices


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
    masks = torch.rand(size, 2, 3, generator=generator) >= 0.4
    masks[:, :, 1] = True
    masks &= torch.from_numpy(EXISTS)
    return obs, masks


def test_distribution_is_that_of_the_allowed_choices():
    """Log-probabilities and entropies of independent categoricals over what is allowed, summed (details 37 and d)."""
    torch.manual_seed(0)
    agent = make_agent(ppo, 4, MultiDiscrete([3, 3]))
    nn.init.orthogonal_(agent.actor[-1].weight)  # far from uniform
    obs, masks = random_inputs()
    logits = agent.actor(obs).view(-1, 2, 3)
    actions = (masks * torch.rand(masks.shape)).argmax(-1)
    logprob, entropy, value = agent({"obs": obs, "masks": masks, "actions": actions})
    torch.testing.assert_close(value, agent.critic(obs).squeeze(-1))
    for i in range(len(obs)):
        expected_logprob = expected_entropy = 0
        for c in range(2):
            allowed = masks[i, c].nonzero().flatten()
            categorical = Categorical(logits=logits[i, c, allowed])
            expected_logprob += categorical.log_prob((allowed == actions[i, c]).nonzero()[0, 0])
            expected_entropy += categorical.entropy()
        torch.testing.assert_close(logprob[i], expected_logprob, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(entropy[i], expected_entropy, atol=1e-4, rtol=1e-4)


def test_forbidden_choices_get_no_gradient():
    torch.manual_seed(0)
    agent = make_agent(ppo, 4, MultiDiscrete([3, 3]))
    masks = torch.ones(10, 2, 3, dtype=torch.bool)
    masks[:, 1, 2] = False
    batch = {"obs": torch.randn(10, 4), "masks": masks, "actions": torch.ones(10, 2, dtype=torch.int64)}
    logprob, entropy, _ = agent(batch)
    (gradient,) = torch.autograd.grad((logprob + entropy).sum(), agent.actor[-1].bias)
    assert gradient.isfinite().all()
    assert gradient[5] == 0
    assert gradient[:5].ne(0).all()


def test_sampling_frequencies():
    """200,000 samples: each choice as often as its probability says, components independent, forbidden ones never."""
    agent = make_agent(ppo, 4, MultiDiscrete([2, 3]))
    size, logits = 200_000, np.array([1.0, -1.0, 0.0, 0.0, 2.0, -0.5], np.float32)
    agent.policy = lambda obs: np.broadcast_to(logits, (len(obs), 6))
    torch.manual_seed(0)
    samples = agent.act(np.zeros((size, 4)))
    first = np.exp(logits[:2]) / np.exp(logits[:2]).sum()
    second = np.exp(logits[3:]) / np.exp(logits[3:]).sum()
    for a, b in itertools.product(range(2), range(3)):
        p = float(first[a] * second[b])
        assert ((samples == [a, b]).all(1)).mean() == pytest.approx(p, abs=4 * (p * (1 - p) / size) ** 0.5)
    assert samples[:, 0].max() == 1
    assert (agent.act(np.zeros((5, 4)), greedy=True) == [0, 1]).all()
    masks = np.broadcast_to([[False, True, False], [True, False, True]], (size, 2, 3))
    samples = agent.act(np.zeros((size, 4)), masks)
    assert (samples[:, 0] == 1).all() and {*samples[:, 1]} == {0, 2}


@pytest.mark.parametrize(
    ("space", "exists", "start"),
    [
        (Discrete(3), [[1, 1, 1]], [0]),
        (Discrete(2, start=-4), [[1, 1]], [-4]),
        (MultiDiscrete([2, 3], start=[0, 7]), [[1, 1, 0], [1, 1, 1]], [0, 7]),
        (MultiDiscrete([[1], [2]]), [[1, 0], [1, 1]], [0, 0]),
        (MultiBinary(2), [[1, 1], [1, 1]], [0, 0]),
        (MultiBinary((2, 1)), [[1, 1], [1, 1]], [0, 0]),
    ],
)
def test_action_spaces(space, exists, start, monkeypatch):
    """Which of C * K choices exist; and what the environments are told, whatever the space counts from."""
    monkeypatch.setattr(worlds.Told, "action_space", space)
    envs = ppo.make_envs(Args(env_id="worlds:Told"), 2)
    agent = ppo.Agent(envs, Args())
    assert agent.exists.dtype == bool and agent.exists.tolist() == np.array(exists, bool).tolist()
    last = agent.exists.sum(1) - 1
    envs.reset()
    envs.step(np.array([last, 0 * last]))  # the world itself fails if it is told what is not in its space
    told = [np.ravel(env.unwrapped.told) for env in envs.unwrapped.envs]
    np.testing.assert_array_equal(told, [np.array(start) + last, start])


def masks(mask, ended, space=None, who=None):
    agent = make_agent(ppo, 3, space or MultiDiscrete([2, 3]))
    info = {} if mask is None else {"action_mask": mask} | ({} if who is None else {"_action_mask": np.array(who)})
    return agent.masks(info, np.array(ended))


def test_masks_from_info():
    """Of those who sent one this time and whose episode goes on; nobody else's choices are limited."""
    assert np.array_equal(masks(None, [False] * 3), [EXISTS] * 3)
    mask = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]], np.int8)
    first, second = [[0, 1, 0], [1, 0, 1]], [[1, 1, 0], [1, 1, 0]]
    assert np.array_equal(masks(mask, [False, False, True]), [first, second, EXISTS])
    assert np.array_equal(masks(mask, [False] * 3, who=[True, False, False]), [first, EXISTS, EXISTS])
    pairs = np.empty(2, object)
    pairs[:] = [(np.array([1, 0]), np.array([1, 0, 1])), (np.array([1, 1]), np.array([0, 1, 0]))]
    assert np.array_equal(masks(pairs, [False] * 2), [[[1, 0, 0], [1, 0, 1]], [[1, 1, 0], [0, 1, 0]]])
    square = np.array([[[[1, 0], [1, 1]], [[0, 1], [1, 0]]]])
    expected = [[[True, False], [True, True], [False, True], [True, False]]]
    assert masks(square, [False], MultiBinary((2, 2))).tolist() == expected


@pytest.mark.parametrize("mask", [[1, 1, 1], [1] * 6, [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0] * 5])
def test_impossible_masks(mask):
    """Of a wrong size, or without a choice where the episode goes on: an error, not a forbidden action."""
    with pytest.raises((ValueError, AssertionError)):
        masks(np.array([mask]), [False])


def test_masks_of_a_real_environment(minibatches):
    """Taxi's masks arrive in the data, and what they forbid is never done."""
    train(Args(env_id="Taxi-v4", total_timesteps=2048))
    for batch, _ in minibatches:
        masks, valid = batch["masks"], batch["valid"]
        assert masks[valid].float().mean() < 0.9
        assert masks[valid].gather(-1, batch["actions"][valid].unsqueeze(-1)).all()


def test_running_statistics_are_those_of_all_data():
    """However it is cut, also far from 0."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(1000, 10, size=(n, 2)) for n in (1, 5, 1, 40, 0, 7)]
    stats = RunningMeanStd((2,))
    for batch in batches:
        stats.update(batch)
    everything = np.concatenate(batches)
    np.testing.assert_allclose(stats.mean, everything.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats.var, everything.var(0), rtol=1e-4)
    assert stats.count.tolist() == [len(everything)] * 2


def test_observations_are_normalised_in_the_network():
    agent = make_agent(ppo, 2, Discrete(3), norm_obs=True)
    data = np.random.default_rng(0).normal(3, [0.1, 10], (50, 2))
    agent.obs_stats.update(data)
    x = np.array([[3.0, 1e9], [2.9, 5.0]], np.float32)
    expected = np.clip((x - data.mean(0)) / np.sqrt(data.var(0) + 1e-8), -10, 10)
    outputs, values = agent.network(torch.from_numpy(x))
    normalised = torch.from_numpy(expected.astype(np.float32))
    torch.testing.assert_close(outputs, agent.actor(normalised), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values, agent.critic(normalised).squeeze(-1), atol=1e-5, rtol=1e-4)


class Scaled(ppo.Agent):
    """Divides what it sees by ten."""

    def network(self, obs):
        return super().network(obs / 10)


class Custom(nn.Module):
    """A policy that is no sequence of layers: a residual one, whose hidden layers look like those that it replaces."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.second = nn.Linear(inputs, inputs), nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.second(x + self.first(x).relu())


def fork(change):
    """The script's agent, with something else in it."""

    class Fork(ppo.Agent):
        def __init__(self, envs, args):
            super().__init__(envs, args)
            change(self)

    return Fork


def no_bias(agent):
    agent.actor[0] = nn.Linear(4, 64, bias=False)


def frozen(agent):
    for layer in (agent.actor[0], agent.critic[0]):
        layer.requires_grad_(False)


FORKS = {
    "none": (ppo.Agent, True),
    "scaled inputs": (Scaled, False),
    "another module": (fork(lambda agent: setattr(agent, "actor", Custom(4, 2))), False),
    "LayerNorm": (fork(lambda agent: agent.actor.insert(1, nn.LayerNorm(64))), False),
    "ReLU": (fork(lambda agent: agent.actor.__setitem__(1, nn.ReLU())), False),
    "no bias": (fork(no_bias), False),
    "a frozen part": (fork(frozen), True),
    "a part that is not used yet": (fork(lambda agent: setattr(agent, "head", nn.Linear(4, 1))), True),
    "a counter": (fork(lambda agent: setattr(agent, "counter", nn.Buffer(torch.zeros(())))), True),
}


@pytest.mark.parametrize("name", FORKS)
def test_what_a_fork_writes_is_what_acts(name, monkeypatch):
    """Also where it looks like the script's own network; the same in learning: the first ratios of an update are 1."""
    (agent_class, in_numpy), kls, compute_gradient = FORKS[name], [], ppo.compute_gradient

    def record(agent, params, batch, *args):
        with torch.no_grad():
            acted = torch.from_numpy(agent.policy(batch["obs"].numpy())).view(len(batch["obs"]), -1)
            torch.testing.assert_close(acted, agent.network(batch["obs"])[0].view(len(acted), -1), atol=1e-4, rtol=1e-4)
        gradient, diagnostics = compute_gradient(agent, params, batch, *args)
        kls.append((abs(diagnostics["old_approx_kl"].item()), diagnostics["clipfrac"].item()))
        return gradient, diagnostics

    monkeypatch.setattr(ppo, "Agent", agent_class)
    monkeypatch.setattr(ppo, "compute_gradient", record)
    settings = {"num_steps": 16, "total_timesteps": 192, "norm_obs": name == "none", "learning_rate": 0.01}
    result = train(Args(**settings))
    agent = result["agent"]
    assert (agent.policy == agent.numpy_policy) == in_numpy
    assert all(kl < 1e-5 and clipfrac == 0 for kl, clipfrac in kls[::16])
    assert len(kls) == 48 and max(kls)[0] > 1e-4
    if name == "a counter":  # what the network needs is saved and comes back
        agent.counter += 7
        state = torch.load(result["run_dir"] / "checkpoint.pt", weights_only=True)
        torch.save(state | {"agent": agent.state_dict()}, result["run_dir"] / "checkpoint.pt")
        again = train(Args(resume=str(result["run_dir"]), total_timesteps=256))["agent"]
        assert again.counter == 7
