"""The policy and its pieces: initialisation, distributions, masks, sampling, action spaces, running statistics."""

import importlib
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical

import ppo
import ppo_continuous
import worlds
from conftest import ROOT, make_agent
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


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.floats(-1e3, 1e3),
    st.floats(1e-1, 1e3),
    st.integers(0, 2**32 - 1),
)
def test_running_statistics(sizes, mean, deviation, seed):
    """Those of all data, however it is cut."""
    rng = np.random.default_rng(seed)
    batches = [rng.normal(mean, deviation, (size, 2)) for size in [2, *sizes]]
    everything, stats = np.concatenate(batches), RunningMeanStd((2,))
    for batch in batches:
        stats.update(batch)
    assert stats.count.tolist() == [len(everything)] * 2
    np.testing.assert_allclose(stats.mean, everything.mean(0), rtol=1e-5, atol=1e-5 * (abs(mean) + deviation))
    np.testing.assert_allclose(stats.var, everything.var(0), rtol=1e-4, atol=1e-11 * mean**2)


@given(st.floats(1e3, 1e7), st.integers(2, 3000))
def test_running_statistics_of_a_constant(value, size):
    """Rounding makes no variance negative, whose root is taken."""
    stats = RunningMeanStd((1,))
    for _ in range(2):
        stats.update(np.full((size, 1), value, np.float32))
        assert stats.var >= 0
    assert stats.mean.item() == pytest.approx(value, rel=1e-6)


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


class Gated(ppo.Agent):
    """With a branch that counts for nothing at first."""

    def __init__(self, envs, args):
        super().__init__(envs, args)
        self.gate, self.branch = nn.Parameter(torch.zeros(())), nn.Linear(4, 2)

    def network(self, obs):
        outputs, values = super().network(obs)
        return outputs + self.gate * self.branch(obs), values


class Clamped(ppo.Agent):
    """Sees nothing beyond what episodes begin with."""

    def network(self, obs):
        return super().network(obs.clamp(-0.5, 3))


class Forbidding(ppo.Agent):
    """Knows better than to do something where it hardly ever is."""

    def network(self, obs):
        outputs, values = super().network(obs)
        return outputs - 1e9 * (obs[:, :1].abs() > 2.3) * torch.tensor([1, 0]), values


class Cooling(ppo.Agent):
    """With a state of its own, which learning changes: a policy that becomes more random by the minibatch."""

    def __init__(self, envs, args):
        super().__init__(envs, args)
        self.count = nn.Buffer(torch.zeros(()))

    def forward(self, batch):
        self.count += 1
        return super().forward(batch)

    def network(self, obs):
        outputs, values = super().network(obs)
        return outputs / (1 + self.count / 100), values


FORKS = [
    pytest.param(ppo.Agent, True, set(), id="none"),
    pytest.param(Scaled, False, set(), id="scaled inputs"),
    pytest.param(fork(lambda agent: setattr(agent, "actor", Custom(4, 2))), False, set(), id="another module"),
    pytest.param(fork(lambda agent: agent.actor.insert(1, nn.LayerNorm(64))), False, set(), id="LayerNorm"),
    pytest.param(fork(lambda agent: agent.actor.__setitem__(1, nn.ReLU())), False, set(), id="ReLU"),
    pytest.param(fork(no_bias), False, set(), id="no bias"),
    pytest.param(fork(frozen), True, {"actor.0", "critic.0"}, id="a frozen part"),
    pytest.param(fork(lambda agent: setattr(agent, "head", nn.Linear(4, 1))), True, {"head"}, id="not used yet"),
    pytest.param(Gated, False, set(), id="a gate that opens"),
    pytest.param(Clamped, False, set(), id="clamped inputs"),
    pytest.param(Forbidding, False, set(), id="an exception far away"),
    pytest.param(Cooling, False, set(), id="a state"),
]


@pytest.mark.parametrize(("agent_class", "in_numpy", "resting"), FORKS)
def test_what_a_fork_writes_is_what_acts(agent_class, in_numpy, resting, monkeypatch):
    """In all iterations but one at most, and to learn from: ratios begin at 1; what is used and not frozen moves.

    The ratios alone would not tell: old log-probabilities are the network's, whatever acted.
    """
    start, wrong, acts, kls, compute_gradient = {}, [], [], [], ppo.compute_gradient

    def record(agent, params, batch, *args):
        start.update({} if start else {name: param.detach().clone() for name, param in agent.named_parameters()})
        gradient, diagnostics = compute_gradient(agent, params, batch, *args)
        kls.append((abs(diagnostics["old_approx_kl"].item()), diagnostics["clipfrac"].item()))
        return gradient, diagnostics

    class Watched(agent_class):
        def act(self, obs, *args, **kwargs):
            with torch.no_grad():
                expected = self.network(torch.from_numpy(obs))[0].numpy()
            wrong.append(not np.allclose(self.policy(obs), expected, atol=1e-4, rtol=1e-3))
            acts.append(self.policy == self.numpy_policy)
            return super().act(obs, *args, **kwargs)

    monkeypatch.setattr(ppo, "Agent", Watched)
    monkeypatch.setattr(ppo, "compute_gradient", record)
    agent = train(Args(total_timesteps=4096, norm_obs=agent_class is ppo.Agent, learning_rate=0.01))["agent"]
    assert [i for i in range(8) if any(wrong[i * 128 : i * 128 + 128])][1:] == []
    assert acts[-128:] == [in_numpy] * 128
    # The state of `Cooling` moves between the estimate and the first minibatch: its ratios are its own affair
    assert agent_class is Cooling or all(kl < 1e-5 and clipfrac == 0 for kl, clipfrac in kls[::16])
    assert max(kls)[0] > 1e-4
    rests = {name for name, param in agent.named_parameters() if torch.equal(param, start[name])}
    assert {name.rpartition(".")[0] for name in rests} == resting


class Clock(worlds.World):
    """Shows the step within a rollout of 128; the one after its last is again 0."""

    length, action_space = None, Discrete(2)

    def observe(self):
        return np.array([self.t % 128 / 128], np.float32)


gym.register("Clock", Clock)


class Siesta(ppo.Agent):
    """Does nothing but one thing in the middle of each rollout."""

    def network(self, obs):
        outputs, values = super().network(obs)
        return outputs - 1e9 * ((obs > 0.3) & (obs < 0.6)) * torch.tensor([1, 0]), values


def test_what_a_fork_writes_is_compared_over_the_whole_rollout(monkeypatch, minibatches):
    """Also where neither the first nor the last observation is, nor anything far off."""
    monkeypatch.setattr(ppo, "Agent", Siesta)
    train(Args(env_id="Clock", total_timesteps=1024, learning_rate=1e-6))
    obs, actions = (torch.cat([batch[name] for batch, _ in minibatches[16:]]) for name in ("obs", "actions"))
    assert actions[(obs > 0.3) & (obs < 0.6)].all() and 0.2 < actions.float().mean() < 0.9


@pytest.mark.parametrize(("script", "num_envs"), [(ppo, 1), (ppo, 4), (ppo_continuous, 1), (ppo_continuous, 4)])
def test_the_script_itself_acts_in_numpy(script, num_envs, monkeypatch):
    """From the first step to the last, whatever the number of environments; no step in PyTorch."""
    counts, policy, numpy_policy = [], script.Agent.policy, script.Agent.numpy_policy
    monkeypatch.setattr(script.Agent, "policy", lambda agent, obs: counts.append(0) or policy(agent, obs))
    monkeypatch.setattr(script.Agent, "numpy_policy", lambda agent, obs: counts.append(1) or numpy_policy(agent, obs))
    env_id = "CartPole-v1" if script is ppo else "Pendulum-v1"
    sizes = {"num_envs": num_envs, "num_steps": 128, "num_minibatches": 4, "total_timesteps": 128 * num_envs * 4}
    agent = script.train(script.Args(env_id=env_id, norm_obs=True, learning_rate=0.01, **sizes))["agent"]
    assert counts.count(1) >= 4 * 128 and counts.count(0) <= 4  # to compare
    obs = torch.randn(5, agent.actor[0].in_features)  # and afterwards, in films and evaluation, the newest
    np.testing.assert_allclose(agent.policy(obs.numpy()), agent.network(obs)[0].detach(), rtol=1e-3, atol=1e-4)


def test_what_a_fork_adds_to_the_stateful_is_resumed(tmp_path, monkeypatch):
    """Another optimizer, in the one place for such things, in a copy of the script."""
    here = 'stateful = {"agent": agent, "optimizer": optimizer'
    source = (ROOT / "ppo.py").read_text()
    assert source.count(here) == 1
    (tmp_path / "fork.py").write_text(source.replace(here, f'{here}, "schedule": SCHEDULE'))
    monkeypatch.syspath_prepend(tmp_path)
    fork = importlib.import_module("fork")
    parameter = nn.Parameter(torch.zeros(1))
    fork.SCHEDULE = torch.optim.lr_scheduler.LinearLR(torch.optim.SGD([parameter], lr=1.0), total_iters=100)
    for _ in range(7):
        fork.SCHEDULE.step()
    run_dir = fork.train(fork.Args(total_timesteps=512))["run_dir"]
    fork.SCHEDULE = torch.optim.lr_scheduler.LinearLR(torch.optim.SGD([parameter], lr=1.0), total_iters=100)
    fork.train(fork.Args(resume=run_dir, total_timesteps=1024))
    assert fork.SCHEDULE.last_epoch == 7


def test_a_forks_state_is_saved_and_resumed(monkeypatch):
    monkeypatch.setattr(ppo, "Agent", Cooling)
    first = train(Args(total_timesteps=1024))
    count = first["agent"].count.item()
    assert count >= 2 * 16 and ppo.load_checkpoint(first["run_dir"])["agent"]["count"] == count
    again = train(Args(resume=str(first["run_dir"]), total_timesteps=2048))["agent"]
    assert again.count == 2 * count
