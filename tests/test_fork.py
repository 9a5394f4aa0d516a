"""What every script must do, and every fork of one: `python -m pytest tests --script my_ppo.py` (see forks.py).

Worlds that say where an observation belongs, a loss worked out by hand, probes, and a second implementation. Networks
are only called: a fork may have any. Arguments are plain ones, whatever a fork's defaults are.
"""

import contextlib
import copy
import itertools
import math
import os
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py import ALEInterface, roms
from gymnasium.spaces import Box, MultiDiscrete
from torch import nn
from torch.distributions import Categorical, Independent, Normal

import worlds
from conftest import two_processes
from forks import DETAILS, chosen, documented
from reference import Categoricals, Gaussians, Learner, Step, advantage_by_definition
from test_gae import ends_at_random
from test_train import scalars

ALL, VECTORS, CHOICES = "discrete continuous pixels images", "discrete continuous", "discrete pixels images"
GAMMA = 0.9
PLAIN = {"num_envs": 3, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2, "total_timesteps": 120}
PLAIN |= {"gamma": 0.99, "gae_lambda": 0.95, "learning_rate": 0.0, "anneal_lr": True, "anneal_clip": False}
PLAIN |= {"norm_adv": True, "clip_coef": 0.2, "clip_vloss": True, "ent_coef": 0.01, "vf_coef": 0.5, "target_kl": None}
PLAIN |= {"max_grad_norm": 0.5, "norm_obs": False, "norm_reward": False, "bf16": False, "vectorization": "sync"}


def proves(*details, kinds=ALL):
    return pytest.mark.proves(*details, kinds=kinds)


class CountingPixels(worlds.Counting):
    """What `Counting` observes, in the first three pixels."""

    observation_space = Box(0, 255, (84, 84, 1), np.uint8)

    def observe(self):
        return np.pad(np.array([[[self.number], [self.episode], [self.t]]], np.uint8), ((0, 83), (0, 81), (0, 0)))


class Cycle(worlds.Probe4):
    """Two steps, which the observation counts, and a reset: every 15 steps all is as at the start."""

    length = 2

    def observe(self):
        return np.array([self.t / 2], np.float32)


class CycleContinuous(Cycle):
    action_space = Box(-1, 1, (1,))

    def reward(self, action):
        return float(action[0])


class CyclePixels(worlds.Pixel4):
    probe = Cycle


class PairsPixels(worlds.Arcade):
    """Two components, of 2 and 3 choices, in pixels; everything is allowed."""

    action_space = MultiDiscrete([2, 3])


for world in (CountingPixels, Cycle, CycleContinuous, CyclePixels, PairsPixels):
    gym.register(world.__name__, world)

WORLDS = {
    "counting": ("worlds:Counting", "worlds:CountingContinuous", "CountingPixels"),
    "cycle": ("Cycle", "CycleContinuous", "CyclePixels"),
    "anything": ("worlds:Anything", "worlds:AnythingContinuous", "worlds:Arcade"),
    "pairs": ("worlds:Anything", "worlds:AnythingContinuous", "PairsPixels"),
    "games": (None, None, "worlds:Lives"),
} | {
    f"probe {i}": (f"worlds:Probe{i}", f"worlds:Continuous{i if i > 1 else ''}", f"worlds:Pixel{i}")
    for i in range(1, 8)
}


@pytest.fixture
def arguments(fork, kind, request):
    """Makes `Args`: plain ones, as far as the fork has them, and those of a test, which it must have. Where there are
    several networks, a fork is tested with its default, ours with the fast one, unless a test asks for another."""
    known = {field.name for field in fields(fork.Args)}
    plain = PLAIN if request.config.getoption("--script") else PLAIN | {"network": "nature"}

    def make(world, **changes):
        env_id = WORLDS[world][ALL.split().index(kind)]
        return fork.Args(env_id=env_id, **{name: x for name, x in plain.items() if name in known} | changes)

    return make


class Seen(SimpleNamespace):
    """What a run showed: the result, and what the fork's functions were given, as far as it has them."""

    def __getattr__(self, name):
        pytest.skip(f"looked for {'compute_gae' if name == 'rollouts' else 'compute_gradient'}")


@pytest.fixture
def watch(fork, arguments, monkeypatch):
    """Trains, and returns what was seen."""

    def run(world, **changes):
        monkeypatch.setattr(worlds.Counting, "created", 0)
        seen, step = Seen(rates=[], start=None), torch.optim.Adam.step
        gae, gradient = (getattr(fork, name, None) for name in ("compute_gae", "compute_gradient"))

        def record_gae(*args):
            seen.rollouts.append([np.array(x) for x in args])
            return gae(*args)

        def record_gradient(agent, params, batch, left, *others):
            seen.start = parameters(agent) if seen.start is None else seen.start
            seen.batches.append({name: x.clone() for name, x in batch.items()})
            seen.left.append(float(left))
            seen.params = params
            seen.gradients.append(gradient(agent, params, batch, left, *others))
            return seen.gradients[-1]

        def record_step(adam, *args):
            seen.rates.append(adam.param_groups[0]["lr"])
            return step(adam, *args)

        with monkeypatch.context() as patch:
            if gae:
                seen.rollouts = []
                patch.setattr(fork, "compute_gae", record_gae)
            if gradient:
                seen.batches, seen.left, seen.gradients = [], [], []
                patch.setattr(fork, "compute_gradient", record_gradient)
            patch.setattr(torch.optim.Adam, "step", record_step)
            seen.result = fork.train(arguments(world, **changes))
        seen.agent = seen.result["agent"]
        return seen

    return run


def parameters(agent):
    return {name: x.detach().clone() for name, x in agent.named_parameters() if x.requires_grad}


def numbers(obs):
    """What `Counting` observed, (M, 3)."""
    return np.asarray(obs).reshape(len(obs), -1)[:, :3].astype(float)


def network(agent, obs):
    """Outputs of the policy and values, for observations in an array."""
    with torch.no_grad():
        outputs, values = agent.network(torch.from_numpy(np.asarray(obs)))
    return outputs.float().numpy(), values.float().numpy()


# The rollout


@proves("1", "resets")
def test_each_transition_is_learned_from_once_and_no_reset(watch):
    seen = watch("counting", update_epochs=1, num_minibatches=1)
    obs = np.concatenate([numbers(batch["obs"]) for batch in seen.batches])
    valid = np.concatenate([batch["valid"].numpy() for batch in seen.batches])
    samples = sorted((*row, bool(is_valid)) for row, is_valid in zip(obs.tolist(), valid, strict=True))
    for env in range(3):
        expected = []
        for episode in range(20):
            length = 2 + (episode + env) % 4
            expected += [(float(env), float(episode), float(step), step < length) for step in range(length + 1)]
        assert [sample for sample in samples if sample[0] == env] == expected[:40]


@proves("1", "time limits")
def test_ends_belong_to_their_transition(watch):
    rows = counting_rows()
    for _, _, terminated, truncated, *_ in watch("counting").rollouts:
        for t in range(8):
            _, episodes, ends = next(rows)
            assert terminated[t].tolist() == (ends & (episodes % 2 == 0)).tolist()
            assert truncated[t].tolist() == (ends & (episodes % 2 == 1)).tolist()


@proves("rewards")
def test_rewards_belong_to_their_transition(watch, games):
    rows = counting_rows()
    for rewards, *_ in watch("counting").rollouts:
        for t in range(8):
            expected, _, _ = next(rows)
            assert rewards[t].tolist() == (np.sign(expected) if games else expected).tolist()


def counting_rows():
    """What `Counting` does in three environments, by step: rewards, episodes, and whether these end."""
    steps, episodes = np.zeros(3, int), np.zeros(3, int)
    while True:
        lengths = 2 + (episodes + np.arange(3)) % 4
        resets = steps == lengths
        yield np.where(resets, 0, 100.0 * episodes + steps), episodes, steps == lengths - 1
        steps, episodes = np.where(resets, 0, steps + 1), episodes + resets


@proves("19", "rewards", kinds="pixels")
def test_rewards_are_clipped_to_their_sign(watch):
    seen = watch("games")
    assert {*np.ravel([rewards for rewards, *_ in seen.rollouts]).tolist()} == {-1.0, 0.0, 1.0}


@proves("returns")
def test_returns_and_lengths_of_episodes(watch):
    episodes = watch("counting").result["episodes"]
    for episode_return, length in episodes:
        episode = (episode_return - length * (length - 1) / 2) / (100 * length)
        assert episode == int(episode)
        assert length in {2 + (int(episode) + env) % 4 for env in range(3)}
    ends = [1 for env in range(3) for e in range(20) if sum(3 + (k + env) % 4 for k in range(e + 1)) <= 41]
    assert len(episodes) == len(ends)


@proves("5", "resets")
def test_values_and_probabilities_are_those_of_the_observations(watch):
    """Also at the ends of rollouts; the target is the λ-return, the same in all epochs."""
    seen = watch("counting", num_minibatches=1, norm_adv=False)
    for batch in seen.batches:
        with torch.no_grad():
            logprob, _, value = seen.agent(batch)
        torch.testing.assert_close(value, batch["values"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logprob, batch["logprobs"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(batch["returns"], batch["advantages"] + batch["values"])
        assert not any(x.requires_grad for x in batch.values())
    for before, after in itertools.pairwise(seen.rollouts):
        np.testing.assert_allclose(before[1][-1], after[1][0], atol=1e-4, rtol=1e-4)


@proves("sampling")
def test_actions_are_samples(watch, kind, monkeypatch):
    """Not shared by environments, steps or iterations, where all see the same: one in two of two choices."""
    monkeypatch.setattr(torch, "randperm", torch.arange)  # batches in the order of collecting
    seen = watch("probe 4", num_envs=8, num_steps=32, total_timesteps=1024, num_minibatches=1, update_epochs=1)
    actions = np.stack([batch["actions"].numpy().reshape(32, 8) for batch in seen.batches])
    if kind == "continuous":
        assert len(np.unique(actions)) > 0.99 * actions.size
        assert actions.std() == pytest.approx(1, abs=0.1)
        return
    assert actions.mean() == pytest.approx(0.5, abs=0.1)
    for axis in range(3):  # as likely the same as not, from one iteration, step or environment to the next
        assert (np.diff(actions, axis=axis) == 0).mean() == pytest.approx(0.5, abs=0.1)


@proves("sampling")
def test_samples_are_those_of_the_network(watch, kind):
    """Thousands of them, after learning: frequencies of choices; or means, deviations and correlations."""
    agent = watch("anything", learning_rate=0.01).agent
    size, tolerance = (1000, 0.06) if kind == "pixels" else (10_000, 0.025)
    obs = np.repeat(random_observations(kind, 1), size, axis=0)
    torch.manual_seed(0)
    samples, outputs = agent.act(obs), network(agent, obs[:1])[0]
    if kind == "continuous":
        std = agent.log_std.detach().exp().numpy()
        np.testing.assert_allclose(samples.mean(0), outputs[0], atol=0.05)
        np.testing.assert_allclose(np.cov(samples.T), np.diag(std**2), atol=0.06)
        assert (np.abs(samples - outputs) < 1.96 * std).mean() == pytest.approx(0.95, abs=0.01)
        np.testing.assert_allclose(agent.act(obs[:1], greedy=True), outputs, atol=1e-4)
        return
    logits = torch.from_numpy(outputs.reshape(agent.exists.shape))
    probabilities = torch.where(torch.from_numpy(agent.exists), logits, -torch.inf).softmax(-1).numpy()
    for column, expected in zip(samples.T, probabilities, strict=True):
        found = np.bincount(column, minlength=len(expected)) / len(column)
        np.testing.assert_allclose(found, expected, atol=tolerance)
    assert agent.act(obs[:1], greedy=True).tolist() == [probabilities.argmax(-1).tolist()]


# Advantages


@proves("5")
def test_gae_is_the_sum_of_its_definition(fork):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        T, N, gamma, gae_lambda = rng.integers(1, 30), rng.integers(1, 6), rng.random(), rng.random()
        terminated, truncated, valid = ends_at_random(rng, T, N, rng.random())
        history = rng.normal(size=(T, N)) * valid, rng.normal(size=(T + 1, N)), terminated, truncated, gamma, gae_lambda
        advantages = fork.compute_gae(*history)
        for t, n in np.argwhere(valid):
            assert advantages[t, n] == pytest.approx(advantage_by_definition(*history, t, n), abs=1e-9)


@proves("5", "time limits")
def test_a_time_limit_bootstraps_and_an_end_does_not(fork):
    rewards, values = np.ones((1, 3)), np.array([[0.0] * 3, [10.0] * 3])
    terminated, truncated = np.array([[True, False, True]]), np.array([[False, True, True]])
    assert fork.compute_gae(rewards, values, terminated, truncated, 0.5, 1.0).tolist() == [[1.0, 6.0, 1.0]]


@proves("5")
def test_gamma_and_lambda_arrive(watch):
    assert all(rollout[4:] == [0.7, 0.3] for rollout in watch("counting", gamma=0.7, gae_lambda=0.3).rollouts)


# The update


@proves("6")
def test_every_sample_once_an_epoch_in_a_new_order(watch):
    seen = watch("counting", update_epochs=3, num_minibatches=4)
    assert len(seen.batches) == 5 * 3 * 4
    orders = []
    for start in range(0, 60, 4):
        rows = [row for batch in seen.batches[start : start + 4] for row in numbers(batch["obs"]).tolist()]
        assert all(len(batch["obs"]) == 6 for batch in seen.batches[start : start + 4])
        orders.append(rows)
    for a, b, c in zip(orders[::3], orders[1::3], orders[2::3], strict=True):
        assert sorted(a) == sorted(b) == sorted(c) and len({*map(tuple, a)}) == 24
        assert a != b != c != a
        # The first epochs' orders mix environments and steps
        assert len({row[0] for row in a[:6]}) > 1 and a != sorted(a)


@proves("6")
def test_a_sample_keeps_its_data(watch):
    """Shuffling moves all parts of a sample together, and nothing is computed anew within an update."""
    seen = watch("counting", update_epochs=3, learning_rate=0.01, norm_adv=False)
    names = {*seen.batches[0]} - {"obs"}
    for iteration in range(5):
        known = {}
        for batch in seen.batches[iteration * 6 : iteration * 6 + 6]:
            for i, obs in enumerate(numbers(batch["obs"]).tolist()):
                sample = {name: batch[name][i].tolist() for name in names}
                assert known.setdefault(tuple(obs), sample) == sample


@proves("4")
def test_the_learning_rate_falls_to_zero(watch):
    """Linearly, by iterations: from the full value down to one iteration short of zero."""
    for anneal, left in ((True, [1.0, 0.8, 0.6, 0.4, 0.2]), (False, [1.0] * 5)):
        seen = watch("counting", learning_rate=0.01, anneal_lr=anneal)
        assert seen.rates == pytest.approx(np.repeat(left, 4) * 0.01)
        assert list(scalars(seen.result)["charts/learning_rate"].values()) == pytest.approx(np.multiply(left, 0.01))


@proves("a")
def test_the_clip_range_falls_to_zero(watch, by_hand):
    """By what is left of the run, which the loss is told."""
    for left in (1.0, 0.5, 0.0):
        fallen, steady = by_hand(left=left, anneal_clip=True), by_hand(clip_coef=0.3 * left, anneal_clip=False)
        assert fallen.policy_loss == pytest.approx(steady.policy_loss, rel=1e-6)
        assert fallen.value_loss == pytest.approx(steady.value_loss, rel=1e-6)
        assert by_hand(left=left, anneal_clip=False).policy_loss == by_hand().policy_loss
    assert watch("counting").left == pytest.approx(np.repeat([1.0, 0.8, 0.6, 0.4, 0.2], 4))


@proves("3")
def test_adam_has_the_right_epsilon(fork, arguments, monkeypatch):
    """A first step is rate * g / (|g| + ε): half the rate for a gradient as small as 1e-5."""
    start, compute_gradient = {}, fork.compute_gradient

    def tiny(agent, *args):
        start.update(parameters(agent))
        gradient, diagnostics = compute_gradient(agent, *args)
        return torch.full_like(gradient, 1e-5), diagnostics

    monkeypatch.setattr(fork, "compute_gradient", tiny)
    one = {"num_minibatches": 1, "update_epochs": 1, "total_timesteps": 24}
    agent = fork.train(arguments("counting", learning_rate=0.1, **one))["agent"]
    for name, x in parameters(agent).items():
        torch.testing.assert_close(x - start[name], torch.full_like(x, -0.05), atol=1e-4, rtol=0)


@proves("c")
def test_epochs_end_at_a_target_kl(watch):
    settings = {"update_epochs": 4, "learning_rate": 1e-3, "total_timesteps": 24}
    assert len(watch("counting", target_kl=1e-12, **settings).batches) == 2  # one epoch
    assert len(watch("counting", target_kl=1e9, **settings).batches) == 8


# The loss


@pytest.fixture
def by_hand(fork, watch, arguments):
    """Computes the loss of three valid samples and a reset step, whose numbers would spoil everything they touch.

    What else a fork's loss needs is as in training.
    """

    seen = watch("counting", total_timesteps=24, num_minibatches=1, update_epochs=1)
    agent, forward = seen.agent, seen.agent.forward

    def compute(logprob=(0.6, 0.2, 0.5, 99.0), batch=None, grad=False, left=1.0, **changes):
        logprob = torch.tensor(logprob).log().requires_grad_(grad)
        outputs = logprob, torch.tensor([0.5, 0.7, 0.6, 99.0]), torch.tensor([1.0, 2.0, 3.0, 1e6])
        agent.forward = lambda batch: (*outputs, *forward(batch)[3:])
        used = {name: x[:4] for name, x in seen.batches[0].items()} | {
            "logprobs": torch.tensor([0.5, 0.4, 0.25, 1e-9]).log(),  # ratios 1.2, 0.5, 2
            "advantages": torch.tensor([1.0, -1.0, 3.0, 1e6]),
            "returns": torch.tensor([2.0, 2.5, 1.0, -1e6]),
            "values": torch.tensor([0.9, 1.0, 2.0, 0.0]),
            "valid": torch.tensor([True, True, True, False]),
        }
        used |= batch or {}
        changes = {"clip_coef": 0.3, "norm_adv": False, "ent_coef": 0.0, "vf_coef": 0.0} | changes
        given = {"left": torch.tensor(left), "args": arguments("counting", **changes)}  # by name: older forks differ
        loss, found = fork.ppo_loss(agent, used, **given)
        return SimpleNamespace(loss=loss, logprob=logprob, **{name: x.item() for name, x in found.items()})

    return compute


@proves("8")
def test_the_policy_loss(by_hand):
    """Inside; clipped below 0.7 as the advantage is negative; clipped above 1.3. Its mean is over valid samples."""
    found = by_hand(grad=True)
    assert found.policy_loss == pytest.approx((-1.2 + 0.7 - 3 * 1.3) / 3, rel=1e-5)
    (gradient,) = torch.autograd.grad(found.loss, found.logprob)  # -ratio * advantage, but nothing where clipped
    assert gradient.tolist() == pytest.approx([-1.2 / 3, 0, 0, 0], abs=1e-5)


@proves("8")
def test_clipping_removes_only_what_there_is_to_gain(by_hand):
    for ratio, advantage, surrogate in [(1.1, 2, 2.2), (1.5, 2, 2.6), (0.5, 2, 1), (1.5, -2, -3), (0.5, -2, -1.4)]:
        batch = {"logprobs": torch.full((4,), math.log(0.5)), "advantages": torch.full((4,), float(advantage))}
        assert by_hand([0.5 * ratio] * 4, batch).policy_loss == pytest.approx(-surrogate, rel=1e-5)


@proves("9")
def test_the_value_loss(by_hand):
    """Squared errors, plain and clipped: 1 and 1 (inside); 0.25 and (1.3 - 2.5)²; 4 and (2.3 - 1)²."""
    assert by_hand().value_loss == pytest.approx(0.5 * (1 + 1.44 + 4) / 3, rel=1e-5)
    assert by_hand(clip_vloss=False).value_loss == pytest.approx(0.5 * (1 + 0.25 + 4) / 3, rel=1e-5)


@proves("10")
def test_the_total_loss(by_hand):
    """Policy loss - ent_coef * entropy + vf_coef * value loss; what a fork adds may come on top."""
    policy, entropy, value = (by_hand(**weights) for weights in ({}, {"ent_coef": 0.1}, {"vf_coef": 0.25}))
    assert entropy.entropy == pytest.approx(0.6, rel=1e-5)
    assert (entropy.loss - policy.loss).item() == pytest.approx(-0.1 * 0.6, rel=1e-4)
    assert (value.loss - policy.loss).item() == pytest.approx(0.25 * value.value_loss, rel=1e-4)
    steeper = by_hand(batch={"advantages": torch.tensor([2.0, -2.0, 6.0, 1e6])})
    assert (steeper.loss - policy.loss).item() == pytest.approx(policy.policy_loss, rel=1e-4)


@proves("10")
def test_the_entropy_bonus_falls_to_zero(by_hand):
    """If asked, by what is left of the run."""
    for left in (1.0, 0.5, 0.0):
        policy, fallen = by_hand(left=left), by_hand(left=left, ent_coef=0.1, anneal_ent=True)
        assert (fallen.loss - policy.loss).item() == pytest.approx(-0.1 * left * 0.6, rel=1e-4, abs=1e-6)


@proves("7")
def test_advantages_are_normalised_over_the_valid_samples(by_hand):
    deviation = math.sqrt(8 / 3)  # of 1, -1, 3 around their mean 1
    expected = -(1.2 * 0 / deviation + 0.5 * -2 / deviation + 2 * 2 / deviation) / 3  # ratios, nothing clipped
    assert by_hand(norm_adv=True, clip_coef=10.0).policy_loss == pytest.approx(expected, rel=1e-5)


@proves("12")
def test_diagnostics_of_the_loss(by_hand):
    found, logs = by_hand(), [math.log(ratio) for ratio in (1.2, 0.5, 2.0)]
    assert found.old_approx_kl == pytest.approx(-sum(logs) / 3, rel=1e-4)
    assert found.approx_kl == pytest.approx((0.2 - 0.5 + 1.0 - sum(logs)) / 3, rel=1e-4)
    assert found.clipfrac == pytest.approx(2 / 3, rel=1e-5)


@proves("12")
def test_logged_statistics(watch):
    """Means over minibatches, of valid samples."""
    seen = watch("anything", learning_rate=1e-3, num_envs=4, num_steps=16, total_timesteps=256)
    logged = {name: [*points.values()] for name, points in scalars(seen.result).items()}
    for name in seen.gradients[0][1]:
        means = [np.mean([found[name].item() for _, found in seen.gradients[i : i + 4]]) for i in range(0, 16, 4)]
        assert logged[f"losses/{name}"] == pytest.approx(means, rel=1e-3, abs=1e-6), name
    for i in range(4):
        batches = seen.batches[4 * i : 4 * i + 2]
        parts = [torch.cat([batch[name][batch["valid"]] for batch in batches]) for name in ("returns", "values")]
        unexplained = ((parts[0] - parts[1]).var(correction=0) / parts[0].var(correction=0)).item()
        assert logged["losses/explained_variance"][i] == pytest.approx(1 - unexplained, abs=1e-3)


@proves("11")
def test_the_global_gradient_norm_is_clipped(fork, watch, arguments):
    """In its direction, and only where it is longer."""
    seen = watch("anything", num_minibatches=1, total_timesteps=24)
    plain, small = (
        fork.compute_gradient(
            seen.agent, seen.params, seen.batches[0], torch.tensor(1.0), arguments("anything", max_grad_norm=norm)
        )
        for norm in (1e6, 0.01)
    )
    norm = plain[0].norm()
    assert norm > 0.02 and small[0].norm().item() == pytest.approx(0.01, rel=1e-3)
    assert plain[1]["grad_norm"].item() == small[1]["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-4)
    torch.testing.assert_close(small[0] / small[0].norm(), plain[0] / norm, atol=1e-5, rtol=1e-3)
    loss, _ = fork.ppo_loss(seen.agent, seen.batches[0], torch.tensor(1.0), arguments("anything"))
    raw = torch.autograd.grad(loss, seen.params, materialize_grads=True)
    torch.testing.assert_close(plain[0], torch.cat([x.flatten() for x in raw]), atol=1e-6, rtol=1e-3)


@proves("resets")
def test_reset_steps_do_not_matter(fork, watch, arguments):
    """Whatever stands there, the gradient is the same."""
    seen = watch("counting", num_minibatches=1)
    batch = seen.batches[-1]
    other = {name: x.clone() for name, x in batch.items()}
    assert 0 < batch["valid"].sum() < 24
    for name in ("logprobs", "values", "advantages", "returns"):
        other[name][~batch["valid"]] = 3.0
    gradients = [
        fork.compute_gradient(seen.agent, seen.params, x, torch.tensor(1.0), arguments("counting"))[0]
        for x in (batch, other)
    ]
    torch.testing.assert_close(*gradients)


# The policy


@proves("2")
def test_initial_weights(fork, watch, kind):
    for size, gain in (((7, 5), 2**0.5), ((5, 7), 0.01), ((64, 64), 1.0)):
        layer = fork.linear(*size, gain)
        weight = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-5, rtol=1e-4)
        assert not layer.bias.any()
    agent = watch("pairs", **{name: fork.Args.network for name in ["network"] if hasattr(fork.Args, name)}).agent
    if kind == "pixels":
        convolutions = [module for module in agent.modules() if isinstance(module, nn.Conv2d)]
        for weight in [module.weight.flatten(1) for module in convolutions]:
            product, square = weight @ weight.T, 2 if len(convolutions) == 3 else 1  # of the gain: residuals add up
            torch.testing.assert_close(product, square * torch.eye(len(weight)), atol=1e-4, rtol=1e-4)
        assert convolutions and not any(module.bias.any() for module in convolutions)
    outputs, values = network(agent, random_observations(kind, 200))
    assert 0 < outputs.std() < 0.05 and np.abs(outputs).max() < 0.2  # actions are about equally likely
    assert values.std() > 2 * outputs.std()


def random_observations(kind, size):
    rng = np.random.default_rng(1)
    if kind == "pixels":
        return rng.integers(0, 256, (size, 4, 84, 84)).astype(np.uint8)
    return rng.normal(size=(size, 3)).astype(np.float32)


@proves("13", "26", kinds=VECTORS)
def test_policy_and_value_share_nothing(watch, kind):
    if shared_parameters(watch("anything").agent, kind):
        pytest.skip("looked for networks of policy and value that share nothing")


@proves("21", kinds="pixels images")
def test_policy_and_value_share_a_network(watch, kind):
    shared = shared_parameters(watch("anything").agent, kind)
    if not shared:
        pytest.skip("looked for a network that policy and value share")
    assert sum(x.dim() == 4 for x in shared) >= 3  # convolutions


def shared_parameters(agent, kind):
    params = [*agent.parameters()]
    outputs, values = agent.network(torch.from_numpy(random_observations(kind, 20)))
    grads = [
        torch.autograd.grad(x.square().sum(), params, retain_graph=True, allow_unused=True) for x in (outputs, values)
    ]
    return [x for x, *both in zip(params, *grads, strict=True) if all(grad is not None for grad in both)]


@proves("37", "d", kinds=CHOICES)
def test_distribution_of_choices(watch):
    """Independent categoricals over what is allowed; log-probabilities and entropies are summed."""
    seen = watch("pairs", learning_rate=0.01, update_epochs=1)
    for batch in seen.batches[-2:]:
        outputs, values = seen.agent.network(batch["obs"])
        logprob, entropy, value = seen.agent(batch)[:3]
        torch.testing.assert_close(value, values)
        for i, masks in enumerate(batch["masks"]):
            logits, expected = outputs[i].view(masks.shape), torch.zeros(2)
            for c, mask in enumerate(masks):
                allowed = mask.nonzero().flatten()
                categorical = Categorical(logits=logits[c, allowed])
                if batch["valid"][i]:  # what was done in a reset step need not be allowed
                    chosen = (allowed == batch["actions"][i, c]).nonzero().squeeze()
                    expected[0] += categorical.log_prob(chosen).detach()
                expected[1] += categorical.entropy().detach()
            assert not batch["valid"][i] or logprob[i].item() == pytest.approx(expected[0].item(), abs=1e-4)
            assert entropy[i].item() == pytest.approx(expected[1].item(), abs=1e-4)


@proves("d", kinds="discrete")
def test_forbidden_actions_are_never_taken(fork, arguments):
    """The world itself fails when they are."""
    args = arguments("anything", num_envs=4, num_steps=16, total_timesteps=1024, learning_rate=0.01)
    for env_id in ("worlds:Masked", "worlds:MaskedPairs"):
        args.env_id = env_id
        fork.train(args)


@proves("23", "24", "25", kinds="continuous")
def test_distribution_of_numbers(watch):
    """Independent Gaussians, whose deviations do not depend on the state; summed."""
    seen = watch("anything", learning_rate=0.01)
    agent = seen.agent
    for batch in seen.batches[-2:]:
        means, values = agent.network(batch["obs"])
        logprob, entropy, value = agent(batch)[:3]
        gaussian = Independent(Normal(means, agent.log_std.exp()), 1)
        torch.testing.assert_close(value, values)
        torch.testing.assert_close(logprob, gaussian.log_prob(batch["actions"]), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(entropy, gaussian.entropy(), atol=1e-4, rtol=1e-4)
    assert agent.log_std.requires_grad and not torch.equal(agent.log_std, seen.start["log_std"])
    assert not seen.start["log_std"].any()


@proves("27", kinds="continuous")
def test_actions_are_clipped_for_the_environment_only(watch, monkeypatch):
    """What is stored, with its log-probability, are samples; the bounds of the world are narrow."""
    executed, step = [], gym.vector.SyncVectorEnv.step
    monkeypatch.setattr(
        gym.vector.SyncVectorEnv, "step", lambda envs, actions: executed.append(actions) or step(envs, actions)
    )
    seen = watch("counting", update_epochs=1, num_minibatches=1)
    space = gym.make("worlds:CountingContinuous").action_space
    stored = torch.cat([batch["actions"] for batch in seen.batches]).numpy()
    assert (np.abs(stored[:, 0]) > 0.1).mean() > 0.8
    clipped = stored.clip(space.low, space.high)
    assert sorted(np.concatenate(executed).tolist()) == sorted(clipped.tolist())


# Normalisation


@proves("28", "29", kinds=VECTORS)
def test_observations_are_normalised(watch):
    """By mean and deviation of the valid ones so far; what is far out is clipped."""
    seen = watch("counting", norm_obs=True, num_minibatches=1, update_epochs=1, total_timesteps=72)
    agent, stats = seen.agent, seen.agent.obs_stats
    rows = [batch["obs"][batch["valid"]].numpy() for batch in seen.batches]
    np.testing.assert_allclose(stats.mean, np.concatenate(rows).mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.var, np.concatenate(rows).var(0), rtol=1e-4)
    obs = np.concatenate([seen.batches[-1]["obs"].numpy(), [[1e6, -1e6, 0]]]).astype(np.float32)
    found, acting = network(agent, obs), agent.policy(obs)
    normalised = ((obs - stats.mean.numpy()) / np.sqrt(stats.var.numpy() + 1e-8)).clip(-10, 10)
    agent.norm_obs = False
    expected = network(agent, normalised.astype(np.float32))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5, rtol=1e-3)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5, rtol=1e-3)
    np.testing.assert_allclose(acting, expected[0], atol=1e-5, rtol=1e-3)
    # Within an iteration the policy stays the same: the values of the third are by the statistics of the first two
    agent.norm_obs = True
    before = np.concatenate(rows[:2])
    stats.mean.copy_(torch.from_numpy(before.mean(0)))
    stats.var.copy_(torch.from_numpy(before.var(0)))
    np.testing.assert_allclose(network(agent, seen.batches[2]["obs"])[1], seen.batches[2]["values"], atol=1e-4)


@proves("30", "31", "rewards")
def test_rewards_are_scaled(watch):
    """By the deviation of the discounted returns so far, with those of this rollout; not centred; reset steps apart."""
    scaled = watch("counting", gamma=0.5, norm_reward=True)
    running, history, was_ended = np.zeros(3), [], np.zeros(3, bool)
    rows = counting_rows()
    for got, _, terminated, truncated, *_ in scaled.rollouts:
        raw = np.stack([next(rows)[0] for _ in range(8)])
        for t in range(8):
            running = running * 0.5 + raw[t]
            history += running[~was_ended].tolist()
            was_ended = (terminated | truncated)[t]
            running[was_ended] = 0
        np.testing.assert_allclose(got, (raw / np.sqrt(np.var(history) + 1e-8)).clip(-10, 10), rtol=1e-4)
    assert max(episode_return for episode_return, _ in scaled.result["episodes"]) > 1000  # reported as they are


@proves("31", "rewards")
def test_rare_rewards_are_clipped(watch, monkeypatch):
    monkeypatch.setattr(
        worlds.Counting, "reward", lambda self, _: 100.0 * ((self.number, self.episode, self.t) == (0, 20, 0))
    )
    seen = watch("counting", gamma=0.5, norm_reward=True, num_steps=64, total_timesteps=768)
    assert max(rewards.max() for rewards, *_ in seen.rollouts) == 10


# Games


@proves("14", "15", "18", "20", kinds="pixels")
@pytest.mark.parametrize("game", ["space_invaders", "breakout"])
def test_frames_are_the_papers(fork, game):
    """The maximum of the last two of four frames, gray, 84 x 84 by area; four of these, the newest last."""
    envs = fork.make_envs(fork.Args(env_id=f"ALE/{game.title().replace('_', '')}-v5"), 1)
    obs, info = envs.reset(seed=5)
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path(game))
    ale.reset_game()
    ale.act(1)  # FIRE, then no-ops
    for _ in range(info["frame_number"][0] - 1):
        ale.act(0)
    first = cv2.resize(ale.getScreenGrayscale(), (84, 84), interpolation=cv2.INTER_AREA)
    stack = [np.zeros_like(first)] * 3 + [first]
    rng, differs = np.random.default_rng(2), 0
    actions = ale.getMinimalActionSet()
    for _ in range(120):
        assert np.array_equal(obs[0], np.stack(stack[-4:]))
        action = rng.integers(len(actions))
        screens = []
        for _ in range(4):
            ale.act(actions[action])
            screens.append(ale.getScreenGrayscale())
        pooled = np.maximum(screens[2], screens[3])
        differs += (pooled != screens[3]).any()
        stack.append(cv2.resize(pooled, (84, 84), interpolation=cv2.INTER_AREA))
        obs, *_ = envs.step(np.array([[action]]))
    assert differs > 20


@proves("14", "17", kinds="pixels")
def test_starts_of_games(fork):
    """1 to 29 frames of FIRE and no-ops, another number each time; without FIRE, no ball would ever be lost."""
    envs = fork.make_envs(fork.Args(), 20)
    _, info = envs.reset(seed=1)
    assert {*info["frame_number"]} <= {*range(1, 30)}
    assert len({*info["frame_number"]}) > 8
    for _ in range(60):
        *_, info = envs.step(np.zeros((20, 1), np.int64))
    assert (info["lives"] < 5).all()


@proves("16", "returns", kinds="pixels")
def test_a_lost_life_is_an_end_for_learning_only(watch):
    """`Lives`: after steps 2 and 4 of 7. The game goes on, is valid, and counts as one, unclipped."""
    seen = watch("games", num_steps=32, num_minibatches=1, total_timesteps=192)
    rewards, terminated, truncated = (np.concatenate([row[i] for row in seen.rollouts]) for i in (0, 2, 3))
    assert terminated.T.tolist() == [[False, True, False, True, False, False, True, False] * 8] * 3  # the last resets
    assert rewards.T.tolist() == [[1, -1, 1, 0, -1, 1, 1, 0] * 8] * 3
    assert not truncated.any()
    batch = seen.batches[0]
    assert torch.equal(batch["obs"].flatten(1)[:, 0] != 7, batch["valid"])
    assert {*map(tuple, seen.result["episodes"])} == {(106.25, 7)}


@proves("22", kinds="pixels images")
def test_pixels_are_divided_by_255(watch):
    agent, seen = watch("anything").agent, []
    first = next((module for module in agent.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        pytest.skip("looked for a convolution")
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].float()))
    network(agent, np.full((2, 4, 84, 84), 255, np.uint8))
    network(agent, np.full((2, 4, 84, 84), 51, np.uint8))
    for x, expected in zip(seen, (1.0, 0.2), strict=True):
        torch.testing.assert_close(x, torch.full_like(x, expected))


# Runs


@proves("seeds")
def test_the_same_seed_gives_the_same_run(watch):
    runs = [watch("anything", seed=seed, learning_rate=1e-3) for seed in (1, 1, 2)]
    assert states_equal(*(run.agent.state_dict() for run in runs[:2]))
    assert runs[0].result["episodes"] == runs[1].result["episodes"] != runs[2].result["episodes"]
    assert not states_equal(*(run.agent.state_dict() for run in runs[1:]))
    for name, points in scalars(runs[0].result).items():
        assert name == "charts/SPS" or points == scalars(runs[1].result)[name], name


def states_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(x, second[name]) for name, x in first.items())


@proves("resuming")
def test_it_goes_on_as_if_it_had_never_stopped(fork, arguments, monkeypatch):
    """Bit for bit, in a world where starting anew changes nothing: so all that matters is in the checkpoint."""
    known, saved, replace = {field.name for field in fields(fork.Args)}, [], os.replace

    def save(old, new):
        replace(old, new)
        if Path(new).name == "checkpoint.pt":
            saved.append(shutil.copy(new, f"{len(saved)}.pt"))

    monkeypatch.setattr(os, "replace", save)
    settings = {"num_envs": 4, "num_steps": 15, "total_timesteps": 360, "save_interval": 0, "learning_rate": 1e-3}
    settings |= {name: True for name in ("norm_obs", "norm_reward", "anneal_clip", "anneal_ent") if name in known}
    whole = fork.train(arguments("cycle", **settings))
    if len(saved) < 6:
        pytest.skip("looked for a checkpoint.pt that takes the place of the one before, after each iteration")
    Path("half").mkdir()
    shutil.copy(saved[2], "half/checkpoint.pt")
    assert fork.load_checkpoint("half")["global_step"] == 180
    resumed = fork.train(fork.Args(resume="half"))
    assert resumed["global_step"] == whole["global_step"] == 360
    assert resumed["episodes"] == whole["episodes"]
    ours, theirs = (fork.load_checkpoint(run["run_dir"]) for run in (whole, resumed))
    assert states_equal(ours["agent"], theirs["agent"])
    assert states_equal(*(part["optimizer"]["state"][0] for part in (ours, theirs)))
    first, second = scalars(whole), scalars(resumed)
    for name in {*first} - {"charts/SPS"}:
        assert second[name] == {step: x for step, x in first[name].items() if step > 180}, name


@proves("evaluating")
def test_evaluation(fork, watch, arguments, monkeypatch):
    """Whole episodes, with the policy that was saved, which stays as it is."""
    run_dir = watch("counting", learning_rate=1e-3).result["run_dir"]
    agent, envs = fork.load(run_dir)
    envs.close()
    before = {name: x.clone() for name, x in agent.state_dict().items()}
    assert states_equal(before, fork.load_checkpoint(run_dir)["agent"])
    monkeypatch.setattr(worlds.Counting, "created", 0)
    results = fork.evaluate(agent, arguments("counting"), 6)
    lengths = [2, 3, 4, 5, 2, 3]
    assert results == [(100 * k * n + n * (n - 1) / 2, n) for k, n in enumerate(lengths)]
    assert states_equal(before, agent.state_dict())


@proves("evaluating")
def test_evaluation_samples_or_takes_the_best(fork, watch, arguments, kind):
    agent = watch("probe 4").agent  # has learned nothing
    sampled = [episode_return for episode_return, _ in fork.evaluate(agent, arguments("probe 4"), 60)]
    greedy = [episode_return for episode_return, _ in fork.evaluate(agent, arguments("probe 4", eval_greedy=True), 20)]
    assert len({*greedy}) == 1
    assert len({*sampled}) > 30 if kind == "continuous" else {*sampled} == {-1.0, 1.0}


PROCESS = """
import os, sys, torch, torch.distributed as dist
from pathlib import Path
from forks import Script
def record(agent, params, batch, left, args):
    loss, _ = fork.ppo_loss(agent, batch, left, args)
    own = torch.cat([x.flatten() for x in torch.autograd.grad(loss, params, materialize_grads=True)])
    shared, diagnostics = compute_gradient(agent, params, batch, left, args)
    gradients.append((own, shared))
    return shared, diagnostics
more = {"max_grad_norm": 1e6, "total_timesteps": 48, "num_envs": 4, "num_steps": 6, "num_minibatches": 2}
_, *paths = sys.argv
if len(paths) > 2:
    dist.init_process_group("gloo")  # which each script does where it has not been done, once in a process
for path, env_id in zip(paths[::2], paths[1::2]):
    fork = Script(Path(path)).module
    gradients, compute_gradient = [], fork.compute_gradient
    fork.compute_gradient = record
    agent = fork.train(fork.Args(env_id=env_id, update_epochs=2, **more))["agent"]
    found = {"gradients": gradients, "state": agent.state_dict()}
    torch.save(found, f"{Path(path).stem}_{os.environ['RANK']}.pt")
"""


@pytest.fixture(scope="module")
def two_learned(request, tmp_path_factory):
    """What each of two processes learned with a script. Ours share the two, which take seconds to start; that a script
    begins their group by itself, test_parallel.py shows."""
    folders = {}

    def of(script):
        scripts = [script] if request.config.getoption("--script") else chosen(request.config)
        if script.path not in folders:
            folder = tmp_path_factory.mktemp("two")
            worlds_of = [WORLDS["anything"][ALL.split().index(x.kind.replace("images", "pixels"))] for x in scripts]
            with contextlib.chdir(folder):
                Path("process.py").write_text(PROCESS)
                folders.update({x.path: folder for x in scripts})  # those before one that fails are not to blame
                two_processes("process.py", *itertools.chain(*zip([x.path for x in scripts], worlds_of, strict=True)))
        return [torch.load(folders[script.path] / f"{script.path.stem}_{rank}.pt") for rank in range(2)]

    return of


@proves("b")
@pytest.mark.xdist_group("two processes")
def test_gradients_are_averaged_over_processes(fork, two_learned, request):
    """Each has samples of its own; what they learn is the same, bit for bit."""
    first, second = two_learned(request.node.callspec.params["fork"])
    assert states_equal(first["state"], second["state"])
    assert len(first["gradients"]) == 2 * 2 * 2
    for (own, shared), (other, same) in zip(first["gradients"], second["gradients"], strict=True):
        assert not torch.allclose(own, other, rtol=1e-2)
        assert torch.equal(shared, same)
        torch.testing.assert_close(shared, (own + other) / 2, atol=1e-5, rtol=1e-3)


# Probes (examples/probes.py says what each one proves)


@pytest.fixture
def learn(fork, arguments, kind, request):
    """Trains on a probe, and returns functions of an observation: value, and how good the policy is; and the return."""

    def run(number, **changes):
        settings = {"total_timesteps": 10_240, "num_envs": 8, "num_steps": 32, "num_minibatches": 4, "gamma": GAMMA}
        settings |= {"learning_rate": 5e-3, "update_epochs": 4}
        if kind == "pixels":
            changes.pop("total_timesteps", None)
            settings |= {"total_timesteps": 768, "num_envs": 4, "num_steps": 16, "learning_rate": 1e-3}
            settings |= {"num_minibatches": 2, "update_epochs": 2}
            if hasattr(fork.Args, "network"):  # one probe of the deep one is enough
                settings["network"] = fork.Args.network if number == 2 else "nature"
        if kind == "continuous":
            settings["ent_coef"] = 0.0
        settings |= changes
        if request.config.getoption("--script"):  # others may learn less quickly
            settings |= {"num_envs": 8, "total_timesteps": 2 * settings["total_timesteps"]}
        result = fork.train(arguments(f"probe {number}", **settings))
        agent = result["agent"]

        def look(x):
            return network(agent, worlds.square(x)[None] if kind == "pixels" else np.array([[x]], np.float32))

        def goodness(x, action):
            """Probability of an action; or how near to half of what is wanted the mean is, 1 at best."""
            if kind == "continuous":
                best = 0.5 if number == 4 else 0.5 * x
                spread = agent.log_std.detach().exp().item()
                return 1 - (look(x)[0].item() - best) ** 2 - max(spread - 0.3, 0)
            return torch.from_numpy(look(x)[0][0]).softmax(-1)[action].item()

        return lambda x: look(x)[1].item(), goodness, np.mean(result["episodes"][-50:], axis=0)[0]

    return run


@proves("probes")
class TestProbes:
    def close(self, kind, expected, tolerance):
        """Networks of forks learn at other speeds; what a bug makes of it is further off than that."""
        return pytest.approx(expected, abs=2 * tolerance if kind == "pixels" else tolerance)

    def test_1_value_of_a_constant(self, learn, kind):
        value, *_ = learn(1)
        assert value(0.0) == self.close(kind, 1, 0.05)

    def test_2_value_of_an_observation(self, learn, kind):
        value, *_ = learn(2)
        assert [value(1.0), value(-1.0)] == self.close(kind, [1, -1], 0.05)

    def test_3_discounting(self, learn, kind):
        value, *_ = learn(3)
        assert [value(0.0), value(1.0)] == self.close(kind, [GAMMA, 1], 0.04)

    @proves("sampling")
    def test_4_action(self, learn, kind):
        """And the newest policy acts."""
        _, goodness, mean_return = learn(4)
        assert goodness(0.0, 1) > 0.95
        assert mean_return > (-0.2 if kind == "continuous" else 0.8)

    def test_5_action_for_an_observation(self, learn, kind):
        value, goodness, _ = learn(5)
        assert goodness(1.0, 1) > 0.95 and goodness(-1.0, 0) > 0.95
        assert value(1.0) == self.close(kind, 1, 0.1)

    def test_6_a_time_limit_is_no_end(self, learn, kind):
        value, *_ = learn(6, clip_vloss=False)
        assert value(1.0) == self.close(kind, 1 / (1 - GAMMA), 0.5)

    def test_7_an_end_is_one(self, learn, kind):
        value, *_ = learn(7, clip_vloss=False, total_timesteps=16_384)
        expected = [sum(GAMMA**k for k in range(5 - step)) for step in range(5)]
        assert [value(step / 5) for step in range(5)] == self.close(kind, expected, 0.3)


# The second implementation


class AnyNetwork(Learner):
    """The second implementation with a network that is only called; all but its own derivatives is by hand."""

    def take(self, agent):
        self.agent = copy.deepcopy(agent)
        vars(self.agent).pop("policy", None)
        return self

    def normalise(self, obs):
        """The network does that itself, vectors by the statistics of earlier iterations."""
        if hasattr(self.agent, "obs_stats") and getattr(self.args, "norm_obs", False):
            seen = np.array(self.all_obs, np.float64)
            mean, variance = (
                (seen.mean(0), seen.var(0)) if len(seen) else (np.zeros(obs.shape[1]), np.ones(obs.shape[1]))
            )
            self.agent.obs_stats.mean.copy_(torch.from_numpy(mean))
            self.agent.obs_stats.var.copy_(torch.from_numpy(variance))
        return obs

    def outputs(self, obs):
        with torch.no_grad():
            for name, x in self.agent.named_parameters():
                if name in self.params:
                    x.copy_(torch.from_numpy(self.params[name]))
        obs = torch.from_numpy(obs[None])
        outputs, value = self.agent.network(obs if obs.dtype == torch.uint8 else obs.to(self.precision))
        self.last = outputs, value
        return outputs[0].detach().numpy().astype(float), value.item()

    @property
    def precision(self):
        return next(self.agent.parameters()).dtype

    def backward(self, to_outputs, to_value, grads):
        outputs, value = self.last
        given = torch.from_numpy(to_outputs)[None].to(outputs.dtype), torch.tensor([to_value]).to(value.dtype)
        params = {name: x for name, x in self.agent.named_parameters() if name in self.params}
        found = torch.autograd.grad(
            [outputs, value], [*params.values()], given, materialize_grads=True, allow_unused=True
        )
        for name, grad in zip(params, found, strict=True):
            grads[name] += grad.numpy()


def in_float64(agent, obs):
    """The agent in double precision, if its network can be computed so."""
    try:
        double = copy.deepcopy(agent).double()
        double.network(torch.from_numpy(obs[:1] if obs.dtype == np.uint8 else obs[:1].astype(np.float64)))
    except RuntimeError:
        return agent
    return double


CHANGES = {
    "plain": {"norm_obs": False, "norm_reward": False},
    "normalised": {"norm_obs": True, "norm_reward": True, "anneal_clip": True, "anneal_ent": True, "ent_coef": 0.1},
    "other": {"clip_vloss": False, "norm_adv": False, "anneal_lr": False, "ent_coef": 0.1},
    "target": {"target_kl": 1e-4, "update_epochs": 6, "max_grad_norm": 5.0},
}


@proves("reference", "rewards")
@pytest.mark.parametrize("changes", CHANGES)
def test_the_second_implementation_agrees(fork, arguments, kind, games, changes, monkeypatch):
    """From the same steps and orders of minibatches, the same parameters; see test_reference.py for our networks."""
    known = {field.name for field in fields(fork.Args)}
    settings = {"num_envs": 4, "num_steps": 8, "total_timesteps": 192, "learning_rate": 1e-3, "clip_coef": 0.02}
    if kind == "pixels":
        settings |= {"num_steps": 4, "total_timesteps": 64, "learning_rate": 2.5e-4}
    if "network" in known:  # the shallow one, in which rounding stays small; test_procgen.py has the other
        settings["network"] = "nature"
    args = arguments("anything", **settings | {name: x for name, x in CHANGES[changes].items() if name in known})
    orders, params, steps, before, parts = [], [], [], {}, []
    randperm, compute_gradient = torch.randperm, fork.compute_gradient

    class Watched(gym.vector.VectorWrapper):
        def reset(self, **given):
            before["obs"], before["info"] = super().reset(**given)
            before["obs"] = before["obs"].copy()
            return before["obs"].copy(), before["info"]

        def step(self, actions):
            chosen = actions.copy()
            obs, reward, terminated, truncated, info = super().step(actions)
            forbidden = None if kind == "continuous" else forbidden_choices(before["info"])
            ends = reward.copy(), terminated.copy(), truncated.copy(), info.get("lives") if games else None
            steps.append(Step(before["obs"], forbidden, chosen, *ends, obs.copy()))
            before.update(obs=obs.copy(), info=info)
            return obs, reward, terminated, truncated, info

    def record_order(*given, **options):
        orders.append(randperm(*given, **options))
        return orders[-1]

    def record_gradient(agent, its_params, batch, left, its_args):
        params.append({name: x.numpy() for name, x in parameters(agent).items()})
        if not parts:
            loss, found = fork.ppo_loss(agent, batch, left, its_args)
            own = found["policy_loss"] - its_args.ent_coef * found["entropy"] + its_args.vf_coef * found["value_loss"]
            parts.append((loss - own).item())
        return compute_gradient(agent, its_params, batch, left, its_args)

    make_envs = fork.make_envs
    with monkeypatch.context() as patch:
        patch.setattr(fork, "make_envs", lambda *given, **options: Watched(make_envs(*given, **options)))
        patch.setattr(torch, "randperm", record_order)
        patch.setattr(fork, "compute_gradient", record_gradient)
        result = fork.train(args)
    if not orders:
        pytest.skip("looked for torch.randperm")
    if abs(parts[0]) > 1e-4:
        pytest.skip(f"looked for a loss of policy, entropy and value alone, not {parts[0]:.2g} more")
    policy = Gaussians() if kind == "continuous" else Categoricals()
    learner = AnyNetwork(params[0], args, policy, pixels=games).take(in_float64(result["agent"], steps[0].obs))
    epochs, T = iter([order.tolist() for order in orders]), args.num_steps
    for i in range(0, len(steps), T):
        learner.learn(steps[i : i + T], epochs, len(steps) // T)
    assert next(epochs, None) is None
    found = {name: x.numpy() for name, x in parameters(result["agent"]).items()}
    moved, missed = (
        np.concatenate([(x - other[name]).ravel() for name, x in found.items()])
        for other in (params[0], learner.params)
    )
    assert np.abs(moved).max() > 1e-3
    if kind == "pixels" and not games and "network" not in known:  # whose rounding a deep network may make large
        assert np.linalg.norm(missed) < 0.3 * np.linalg.norm(moved)
    else:
        assert np.abs(missed).max() < 3e-5


def forbidden_choices(info):
    """Of `Anything`'s components with 2 and 3 choices; `Arcade` has 3 and forbids nothing."""
    if "action_mask" not in info:
        return np.zeros((4, 1, 3), bool)
    masks = np.stack(info["action_mask"])
    return np.stack([np.insert(masks[:, :2], 2, 0, axis=1), masks[:, 2:]], 1) == 0


# This file


def test_all_details_are_proven():
    """Whatever the table of a fork may name; but for recurrent policies, that is all of them."""
    assert documented() == {*DETAILS}
    assert {*map(str, range(1, 38)), *"abcd"} - {*DETAILS} == {*map(str, range(32, 37))}
