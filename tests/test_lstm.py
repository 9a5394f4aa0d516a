"""The policy with memory: what it remembers, what it must forget, and that acting and learning remember the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from gymnasium.spaces import Box, Discrete

import ppo_lstm as ppo
import worlds
from conftest import ROOT, make_agent, two_processes
from examples.memory import Corridor
from examples.probes import CHECKS, World, look
from ppo_lstm import Args, evaluate, load, train
from reference import Categoricals, Learner
from test_reference import replay, transcript  # noqa: F401 (a fixture)
from test_train import scalars

BOTH = pytest.mark.parametrize("rnn", ["lstm", "gru"])
SMALL = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2, "total_timesteps": 192, "rnn_size": 6}
SMALL |= {"norm_obs": False, "norm_reward": False}


class Episodes(World):
    """Observes (environment, episode, step), and random numbers. Episodes of 1 to 6 steps end in both ways."""

    observation_space = Box(-np.inf, np.inf, (5,))
    action_space = Discrete(3)
    created = 0

    def __init__(self):
        self.number, self.episode = Episodes.created, -1
        Episodes.created += 1

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.episode += 1
        self.length, self.truncates = 1 + (self.episode + 2 * self.number) % 6, self.episode % 3 == 1
        return super().reset()

    def observe(self):
        return np.array([self.number, self.episode, self.t, *self.np_random.normal(size=2)], np.float32)

    def reward(self, action):
        return self.np_random.normal()


gym.register("Episodes", Episodes)


def step_by_step(p, kind, x, state):
    """One step as its formulas say it: the policy's outputs, value, and memory after it. Tensors without a batch."""
    x = torch.tanh(p["encoder.0.weight"] @ x + p["encoder.0.bias"])
    h, *c = state
    ours = (p["cell.weight_ih_l0"] @ x + p["cell.bias_ih_l0"]).chunk(4 if kind == "lstm" else 3)
    theirs = (p["cell.weight_hh_l0"] @ h + p["cell.bias_hh_l0"]).chunk(4 if kind == "lstm" else 3)
    if kind == "lstm":  # Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000)
        write, keep, new, show = (a + b for a, b in zip(ours, theirs, strict=True))
        cell = torch.sigmoid(keep) * c[0] + torch.sigmoid(write) * torch.tanh(new)
        state = torch.stack([torch.sigmoid(show) * torch.tanh(cell), cell])
    else:  # Cho et al. (2014)
        reset, keep = (torch.sigmoid(a + b) for a, b in zip(ours[:2], theirs[:2], strict=True))
        new = torch.tanh(ours[2] + reset * theirs[2])
        state = (keep * h + (1 - keep) * new).unsqueeze(0)
    return *(p[f"{head}.weight"] @ state[0] + p[f"{head}.bias"] for head in ("actor", "critic")), state


def double(agent):
    return {name: x.detach().double() for name, x in agent.named_parameters()}


def zero(agent):
    """The memory at the start of an episode."""
    return torch.zeros(agent.start.shape[0], agent.start.shape[2], dtype=torch.float64)


@pytest.fixture
def watch(monkeypatch):
    """Trains on `Episodes`, and records what acting computed, and each minibatch with what the loss found for it."""

    def run(**changes):
        monkeypatch.setattr(Episodes, "created", 0)
        acted, learned, act, gradient = [], [], ppo.Agent.policy, ppo.compute_gradient

        def record_act(agent, obs):
            outputs = act(agent, obs)
            acted.append((obs.copy(), torch.from_numpy(outputs).log_softmax(-1)))
            return outputs

        def record_gradient(agent, params, batch, *others):
            with torch.no_grad():
                found = agent(batch)
            learned.append(({name: x.clone() for name, x in batch.items()}, found))
            return gradient(agent, params, batch, *others)

        monkeypatch.setattr(ppo.Agent, "policy", record_act)
        monkeypatch.setattr(ppo, "compute_gradient", record_gradient)
        result = train(Args(env_id="Episodes", **SMALL | changes))
        return result, acted, learned

    return run


@BOTH
def test_an_episode_is_remembered_from_its_first_step_on(watch, rnn):
    """And nothing else: acting and learning compute what a loop over that episode does, which begins with zeros. The
    step that only resets is neither learned from nor remembered by the new episode. Rollouts begin at all places."""
    result, acted, learned = watch(rnn=rnn, learning_rate=0.0, update_epochs=1)
    agent, episodes, expected = result["agent"], {}, {}
    for obs, _ in acted:
        for x in obs:
            episodes.setdefault(tuple(x[:2]), []).append(x)
    for (number, episode), history in episodes.items():
        state = zero(agent)
        for step, x in enumerate(history):
            assert x[2] == step  # the last one is the observation that the reset step acted on
            outputs, value, state = step_by_step(double(agent), rnn, torch.from_numpy(x).double(), state)
            expected[number, episode, step] = outputs.log_softmax(-1), value.item()
    for obs, logprobs in acted:
        for x, found in zip(obs, logprobs, strict=True):
            torch.testing.assert_close(found.double(), expected[tuple(x[:3])][0], atol=1e-5, rtol=0)
    seen = []
    for batch, (logprob, _, value) in learned:
        assert torch.equal(batch["logprobs"], logprob) or (batch["logprobs"] - logprob).abs().max() < 1e-5
        for x, action, valid, ours, guess in zip(
            batch["obs"], batch["actions"], batch["valid"], logprob, value, strict=True
        ):
            key = tuple(x[:3].tolist())
            assert ours.item() == pytest.approx(expected[key][0][action].item(), abs=1e-5)
            assert guess.item() == pytest.approx(expected[key][1], abs=1e-5)
            assert valid == (key[2] < 1 + (key[1] + 2 * key[0]) % 6)
            seen.append(key)
    assert len(seen) == len({*seen}) == 192
    places = {len(history) for history in episodes.values()}
    assert places >= {2, 3, 4, 5, 6, 7}
    lengths = [expected[0, 3, step][0] for step in range(4)], [expected[0, 5, step][0] for step in range(4)]
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(*lengths, strict=True))  # it's not that all is the same


@BOTH
def test_the_first_ratio_is_1(watch, rnn):
    """Also after the policy has changed: in training, memory begins with what acting had then (detail 36)."""
    result, acted, learned = watch(rnn=rnn, learning_rate=3e-2, norm_obs=True)
    for i, (batch, (logprob, *_)) in enumerate(learned):
        if i % 4 == 0:  # the first minibatch of each iteration
            torch.testing.assert_close(logprob, batch["logprobs"], atol=1e-5, rtol=0)
        iteration = [{tuple(x[:3]): y for x, y in zip(*pair, strict=True)} for pair in acted[i // 4 * 8 :][:8]]
        when_acting = {key: y for step in iteration for key, y in step.items()}
        for x, action, ours in zip(batch["obs"].numpy(), batch["actions"], batch["logprobs"], strict=True):
            assert ours.item() == pytest.approx(when_acting[tuple(x[:3])][action].item(), abs=1e-5)
    assert max(scalars(result)["losses/approx_kl"].values()) > 1e-3


def test_minibatches_are_of_whole_environments_in_order(watch):
    """Each environment once an epoch, in another order each time (details 6 and 35)."""
    _, acted, learned = watch(learning_rate=0.0, total_timesteps=8 * 32)
    orders = []
    for i, (batch, _) in enumerate(learned):
        rows = torch.from_numpy(np.stack([obs for obs, _ in acted[i // 4 * 8 :][:8]]))
        numbers = batch["obs"].view(8, 2, -1)[0, :, 0].long()
        torch.testing.assert_close(batch["obs"].view(8, 2, -1), rows[:, numbers])
        orders.append(numbers.tolist())
    epochs = [tuple(first + second) for first, second in zip(orders[::2], orders[1::2], strict=True)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({*epochs}) > 8  # of 24, in 16 epochs


@BOTH
@pytest.mark.parametrize("seed", range(4))
def test_stretches_are_a_loop_over_steps(rnn, seed):
    """Outputs, memory and gradients of whole sequences, wherever episodes end: nowhere, somewhere, or all the time."""
    torch.manual_seed(seed)
    T, N = 7, 3
    agent = make_agent(ppo, 4, Discrete(3), rnn=rnn, rnn_size=5, norm_obs=False).double()
    torch.nn.init.normal_(agent.actor.weight)
    with torch.no_grad():
        for param in agent.parameters():
            param += 0.1 * torch.randn_like(param)
    obs, memory = torch.randn(T * N, 4).double(), torch.randn(len(agent.start), N, 5).double()
    valid, to_outputs, to_values = torch.rand(T, N) >= seed / 3, torch.randn(T * N, 3), torch.randn(T * N)
    outputs, values, after = agent.network(obs, memory, valid.flatten())
    ((outputs * to_outputs).sum() + (values * to_values).sum() + (after**2).sum()).backward()
    params = {name: x.detach().clone().requires_grad_() for name, x in agent.named_parameters()}
    total = 0
    for n in range(N):
        state = memory[:, n]
        for t in range(T):
            output, value, state = step_by_step(params, rnn, obs[t * N + n], state)
            state = state if valid[t, n] else torch.zeros_like(state)
            torch.testing.assert_close(outputs[t * N + n], output)
            torch.testing.assert_close(values[t * N + n], value[0])
            total = total + (output * to_outputs[t * N + n]).sum() + value[0] * to_values[t * N + n]
        torch.testing.assert_close(after[:, n], state)
        total = total + (state**2).sum()
    total.backward()
    for name, x in agent.named_parameters():
        torch.testing.assert_close(x.grad, params[name].grad, msg=name)


@BOTH
def test_a_cue_does_not_outlive_its_episode(rnn):
    """It is remembered up to the reset step, and not by the next episode."""
    torch.manual_seed(0)
    agent = make_agent(ppo, 1, Discrete(2), rnn=rnn)
    torch.nn.init.normal_(agent.actor.weight)
    valid, runs = torch.tensor([True, True, True, False, True, True]), []
    for cue, last in ((1, 0), (-1, 0), (1, 5)):
        obs = torch.tensor([cue, 0, 0, last, 0.3, 0.3])[:, None]
        outputs, values, memory = agent.network(obs, agent.start, valid)
        runs.append((torch.cat([outputs, values[:, None]], 1), memory))
    for other, memory in runs[1:]:
        assert torch.equal(runs[0][0][4:], other[4:]) and torch.equal(runs[0][1], memory)
    assert (runs[0][0] - runs[1][0])[1:4].abs().amin() > 0  # each of the outputs, at each step
    assert (runs[0][0] - runs[2][0])[3].abs().amin() > 0
    obs = torch.tensor([1, 0, 0, 0.0, 0.3, 0.3])[:, None].requires_grad_()
    outputs, values, _ = agent.network(obs, agent.start, valid)
    (gradient,) = torch.autograd.grad(outputs[4:].sum() + values[4:].sum(), obs)
    assert not gradient[:4].any() and gradient[4:].all()


class Remembering(Learner):
    """The second implementation, with networks that remember. Their derivatives are PyTorch's, all else by hand."""

    begins = None

    def learn(self, steps, orders, num_iterations):
        N = len(steps[0].reward)
        before = np.zeros(N, bool) if self.ended is None else self.ended
        self.only_resets = np.stack([before] + [step.terminated | step.truncated for step in steps])  # after ends
        self.calls, self.N = 0, N
        if self.begins is None:
            sizes = (1 + (self.args.rnn == "lstm"), self.args.rnn_size)
            self.memories = [torch.zeros(sizes, dtype=torch.float64)] * N
        self.begins, self.chosen = [*self.memories], []
        return super().learn(steps, self.samples(orders, len(steps)), num_iterations)

    def samples(self, orders, T):
        """From orders of environments to those of samples: whole environments, step by step (detail 35)."""
        for order in orders:
            size, epoch = self.N // self.args.num_minibatches, []
            for start in range(0, self.N, size):
                self.chosen.append(order[start : start + size])
                epoch += [t * self.N + n for t in range(T) for n in self.chosen[-1]]
            yield epoch

    def forget(self, memory, t, n):
        """After a step that only resets, a new episode begins."""
        return torch.zeros_like(memory) if self.only_resets[t, n] else memory

    def outputs(self, obs):
        if self.calls is None:  # within `gradient`
            return next(self.found)
        t, n = divmod(self.calls, self.N)
        self.calls += 1
        outputs, value, memory = step_by_step(self.tensors(), self.args.rnn, torch.from_numpy(obs), self.memories[n])
        if t < len(self.only_resets) - 1:  # the last observation is seen again, by the next rollout
            self.memories[n] = self.forget(memory, t, n)
        return outputs.numpy(), value.item()

    def tensors(self):
        return {name: torch.from_numpy(x) for name, x in self.params.items()}

    def gradient(self, minibatch, clip_coef):
        self.calls, chosen = None, self.chosen.pop(0)
        leaves = {name: x.requires_grad_() for name, x in self.tensors().items()}
        memories, pairs = {n: self.begins[n] for n in chosen}, []
        for i, sample in enumerate(minibatch):
            t, n = i // len(chosen), chosen[i % len(chosen)]
            *pair, memory = step_by_step(leaves, self.args.rnn, torch.from_numpy(sample.obs), memories[n])
            memories[n] = self.forget(memory, t, n)
            pairs += [pair] if sample.valid else []
        self.found = ((outputs.detach().numpy(), value.item()) for outputs, value in pairs)
        self.total, self.left, self.pairs, self.leaves = 0, len(pairs), iter(pairs), leaves
        return super().gradient(minibatch, clip_coef)

    def backward(self, to_outputs, to_value, grads):
        outputs, value = next(self.pairs)
        self.total, self.left = self.total + outputs @ torch.from_numpy(to_outputs) + value[0] * to_value, self.left - 1
        if not self.left:
            for name, grad in zip(grads, torch.autograd.grad(self.total, [*self.leaves.values()]), strict=True):
                grads[name] += grad.numpy()


@BOTH
@pytest.mark.parametrize("changes", [{}, {"norm_obs": True, "norm_reward": True, "clip_vloss": False}])
def test_against_the_second_implementation(rnn, changes, transcript):  # noqa: F811
    """The same parameters after six iterations in a world of random lengths, masks and rewards, but for rounding."""
    args, *run = transcript(ppo, env_id="worlds:Anything", **SMALL | {"rnn": rnn, "learning_rate": 1e-2} | changes)
    replay(Remembering(run[2], args, Categoricals()), *run)


@BOTH
def test_initialisation(rnn):
    """Each gate of the cell is orthogonal, all biases are zero (detail 32); the layers around it as in ppo.py (2)."""
    agent = make_agent(ppo, 7, Discrete(5), rnn=rnn, rnn_size=32)
    for name, param in agent.named_parameters():
        if "bias" in name:
            assert not param.any(), name
            continue
        gain = {"encoder": 2**0.5, "cell": 1.0, "actor": 0.01, "critic": 1.0}[name.split(".")[0]]
        for part in param.split(32) if "cell" in name else [param]:
            part = part if part.shape[0] < part.shape[1] else part.T
            torch.testing.assert_close(part @ part.T, gain**2 * torch.eye(len(part)), atol=1e-5, rtol=1e-4)
    shapes = {name: tuple(x.shape) for name, x in agent.named_parameters()}
    gates = 4 if rnn == "lstm" else 3
    assert shapes["cell.weight_ih_l0"] == (32 * gates, 64) and shapes["cell.weight_hh_l0"] == (32 * gates, 32)
    assert shapes["encoder.0.weight"] == (64, 7) and shapes["actor.weight"] == (5, 32)


def test_acting_in_your_own_code():
    """Memory goes on from call to call, begins where it is set to None, or with another number of environments; it
    is not part of a checkpoint."""
    torch.manual_seed(0)
    agent, obs = make_agent(ppo, 3, Discrete(4)), np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    torch.nn.init.normal_(agent.actor.weight)
    first = [agent.policy(x) for x in obs]
    goes_on = agent.policy(obs[0])
    assert abs(goes_on - first[0]).max() > 1e-3
    assert "memory" not in agent.state_dict() and "start" not in agent.state_dict()
    agent.memory = None
    assert all(np.array_equal(agent.policy(x), y) for x, y in zip(obs, first, strict=True))
    alone = [agent.policy(x[:1]) for x in obs]
    np.testing.assert_allclose(np.concatenate(alone), np.stack(first)[:, 0], atol=1e-6)
    agent.memory = None
    together = agent.network(torch.from_numpy(obs).flatten(0, 1), agent.start.repeat(1, 2, 1), torch.ones(10) > 0)
    np.testing.assert_allclose(together[0].detach().view(5, 2, 4), np.stack(first), atol=1e-5)


def test_evaluation_begins_each_episode_with_nothing(watch, monkeypatch):
    """So greedy episodes of a world that repeats itself are the same; and films leave the training as it is."""
    result, *_ = watch()
    run_dir = result["run_dir"]
    agent, envs = load(run_dir)
    assert envs.num_envs == 1
    states, network = [], agent.network
    monkeypatch.setattr(agent, "network", lambda obs, memory: (states.append((obs, memory)), network(obs, memory))[1])
    for _ in range(2):
        evaluate(agent, Args(env_id="Episodes", seed=3), 4)
    assert len(states) > 8
    for obs, memory in states:
        assert (memory is None) == (obs[0, 2] == 0)

    monkeypatch.setattr(Episodes, "render_mode", "rgb_array", raising=False)
    runs, filmed = [], []
    monkeypatch.setattr(
        ppo, "evaluate", lambda agent, args, n, folder, max_length: filmed.append(evaluate(agent, args, n))
    )
    for film in (False, True):
        agent = watch(learning_rate=3e-2, num_steps=4, total_timesteps=96, capture_video=film)[0]["agent"]
        runs.append(torch.cat([param.flatten() for param in agent.parameters()]))
    assert len(filmed) == 6  # iterations
    assert torch.equal(*runs)


class Cycle(worlds.Probe4):
    """Two steps, which the observation counts, and a reset: every 15 steps all is as at the start."""

    length = 2

    def observe(self):
        return np.array([self.t / 2], np.float32)


gym.register("MemoryCycle", Cycle)


def test_resuming_goes_on_where_the_run_was(monkeypatch):
    """Bit for bit, where all environments begin an episode then: memory is zero there, with or without a checkpoint."""
    saved, replace = [], os.replace

    def save(old, new):
        replace(old, new)
        saved.append(shutil.copy(new, f"{len(saved)}.pt"))

    monkeypatch.setattr(os, "replace", save)
    settings = SMALL | {"num_steps": 15, "total_timesteps": 240, "save_interval": 0, "norm_obs": True}
    whole = train(Args(env_id="MemoryCycle", **settings | {"learning_rate": 1e-2}))
    Path("half").mkdir()
    shutil.copy(saved[1], "half/checkpoint.pt")
    resumed = train(Args(resume="half"))
    ours, theirs = (torch.load(Path(run["run_dir"], "checkpoint.pt"))["agent"] for run in (whole, resumed))
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    assert resumed["episodes"] == whole["episodes"]


def complaint(**changes):
    with pytest.raises(SystemExit) as error:
        train(Args(env_id="worlds:Probe1", **changes))
    assert not Path("runs").exists()
    return str(error.value)


def test_mistakes_get_one_line(monkeypatch):
    message = "error: num_minibatches * processes must divide num_envs, with 2 to 10**8 samples in a minibatch"
    assert complaint(num_envs=6, num_minibatches=4) == message
    assert complaint(num_envs=2, num_minibatches=4) == message
    assert complaint(num_envs=4, num_minibatches=4, num_steps=1) == message
    assert complaint(rnn_size=0) == f"error: --rnn-size must be a plain number from 1 to {10**15}, not 0"
    monkeypatch.setattr(ppo, "WORLD_SIZE", 2)
    assert complaint(num_envs=12, num_minibatches=4) == message
    monkeypatch.undo()
    train(Args(env_id="worlds:Probe1", num_envs=2, num_minibatches=2, num_steps=2, total_timesteps=4))  # just allowed


def test_the_command_line():
    """A run can be evaluated; one of another cell can't be resumed; a cell that there is not is refused."""
    train(Args(env_id="examples.memory:Corridor3-v0", **SMALL))
    (run_dir,) = Path("runs").iterdir()
    command, environment = (
        [sys.executable, ROOT / "ppo_lstm.py", "--evaluate", run_dir],
        os.environ | {"PYTHONPATH": str(ROOT)},
    )
    done = subprocess.run(
        [*command, "--eval-episodes", "3"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith("3 episodes: return"), done.stderr
    with pytest.raises(SystemExit, match="2"):
        tyro.cli(Args, args=["--rnn", "elman"])
    with pytest.raises(SystemExit, match="of another environment, network or script"):
        train(Args(resume=str(run_dir), rnn="gru", total_timesteps=384))


PROCESS = """
import os, sys, torch
import ppo_lstm, test_lstm
gradients, compute_gradient = [], ppo_lstm.compute_gradient
def record(agent, params, batch, left, args):
    loss, _ = ppo_lstm.ppo_loss(agent, batch, left, args)
    own = torch.cat([x.flatten() for x in torch.autograd.grad(loss, params)])
    shared, diagnostics = compute_gradient(agent, params, batch, left, args)
    gradients.append((own, shared, batch["memory"].shape[1]))
    return shared, diagnostics
ppo_lstm.compute_gradient = record
changes = {"num_envs": 8, "max_grad_norm": 1e6, "total_timesteps": 192}
agent = ppo_lstm.train(ppo_lstm.Args(env_id="Episodes", **test_lstm.SMALL | changes))["agent"]
torch.save({"gradients": gradients, "state": agent.state_dict()}, f"process{os.environ['RANK']}.pt")
"""


def test_two_processes():
    """Each has whole environments of its own; what they learn is the same, bit for bit."""
    Path("process.py").write_text(PROCESS)
    two_processes("process.py")
    first, second = (torch.load(f"process{rank}.pt") for rank in range(2))
    assert all(torch.equal(x, second["state"][name]) for name, x in first["state"].items())
    assert len(first["gradients"]) == 3 * 2 * 2
    for (own, shared, envs), (other, same, _) in zip(first["gradients"], second["gradients"], strict=True):
        assert envs == 2 and not torch.allclose(own, other, rtol=1e-2) and torch.equal(shared, same)
        torch.testing.assert_close(shared, (own + other) / 2, atol=1e-5, rtol=1e-3)


PROBED = {"num_envs": 16, "num_steps": 16, "num_minibatches": 2, "rnn_size": 16, "learning_rate": 1e-2, "gamma": 0.9}
PROBED |= {"norm_obs": False, "norm_reward": False, "total_timesteps": 4096}


@pytest.mark.parametrize("number", [3, 5, 6])
def test_probes(number):
    """Those that need discounts, resets and time limits, and matching actions; memory does not get in the way."""
    changes = {6: {"clip_vloss": False, "total_timesteps": 6144}}.get(number, {})
    agent = train(Args(env_id=f"worlds:Probe{number}", **PROBED | changes))["agent"]
    for what, obs, expected, near in CHECKS[number]:
        if number != 3 or obs == 0:  # what comes second is never seen first
            assert look(agent, what, obs) == pytest.approx(expected, abs=2 * near), (what, obs)


def test_what_needs_memory_is_learned():
    """A cue is seen four steps before it decides: without memory, no policy has a return above 0."""
    result = train(Args(env_id="examples.memory:Corridor3-v0", **PROBED | {"total_timesteps": 8192}))
    assert np.mean(result["episodes"], axis=0)[0] > 0.9


def test_tasks():
    """The examples hide what they say they do, with one environment as with many."""
    for mode in ("sync", "vector_entry_point"):
        envs = ppo.make_envs(Args(env_id="examples.memory:CartPoleHidden-v0", vectorization=mode), 2)
        obs, _ = envs.reset(seed=0)
        assert envs.single_observation_space.shape == (2,) and obs.shape == (2, 2)
        state = [env.unwrapped.state for env in envs.unwrapped.envs] if mode == "sync" else envs.unwrapped.state.T
        np.testing.assert_allclose(obs, np.array(state)[:, [0, 2]], rtol=1e-6)
    env = Corridor(length=4)
    for seed in range(4):
        obs, _ = env.reset(seed=seed)
        cue, seen = obs[0], [obs[1]]
        for _ in range(4):
            obs, reward, terminated, *_ = env.step(0)
            assert obs[0] == 0 and reward == 0 and not terminated
            seen.append(obs[1])
        assert cue in (-1, 1) and seen == [0, 0, 0, 0, 1]
        *_, reward, terminated, _, _ = env.step(int(cue > 0) if seed % 2 else int(cue < 0))
        assert terminated and reward == (1 if seed % 2 else -1)
    assert gym.make("examples.memory:Corridor30-v0").unwrapped.length == 30
