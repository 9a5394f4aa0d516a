"""ppo_continuous.py: what continuous actions and normalisation need. What it shares with ppo.py is tested there."""

import ctypes.util
import math
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector.utils import batch_space
from moviepy import VideoFileClip
from torch import nn
from torch.distributions import Normal

import ppo_continuous as ppo
import worlds
from conftest import ROOT, make_agent
from ppo_continuous import Args, RunningMeanStd, evaluate, load_checkpoint, parse_args, sample_actions, to_env
from ppo_continuous import train as train_args
from test_loss import weighed
from test_parallel import launch, listen, returned
from test_train import parameters, scalars

GAMMA = 0.9


def train(**changes):
    """A short run in four environments; every argument that is not given is the script's default."""
    settings = {"num_envs": 4, "num_steps": 16, "num_minibatches": 4, "total_timesteps": 640}
    return train_args(Args(**settings | changes))


@pytest.fixture
def minibatches(monkeypatch):
    """What each gradient was computed from, in order."""
    seen, compute_gradient = [], ppo.compute_gradient

    def record(agent, params, batch, *args):
        seen.append({name: tensor.clone() for name, tensor in batch.items()})
        return compute_gradient(agent, params, batch, *args)

    monkeypatch.setattr(ppo, "compute_gradient", record)
    return seen


@pytest.fixture
def rollouts(monkeypatch):
    """Rewards, values, terminated, truncated of each rollout, as advantages are computed from them."""
    seen, compute_gae = [], ppo.compute_gae

    def record(*args):
        seen.append([np.array(x) for x in args])
        return compute_gae(*args)

    monkeypatch.setattr(ppo, "compute_gae", record)
    return seen


def test_defaults():
    """Those that the field knows."""
    args = Args()
    known = {"env_id": "HalfCheetah-v5", "total_timesteps": 10**6, "learning_rate": 3e-4, "num_envs": 1}
    known |= {"num_steps": 2048, "num_minibatches": 32, "update_epochs": 10, "ent_coef": 0.0, "clip_coef": 0.2}
    known |= {"norm_obs": True, "norm_reward": True, "gamma": 0.99, "gae_lambda": 0.95, "max_grad_norm": 0.5}
    known |= {"vf_coef": 0.5, "clip_vloss": True, "norm_adv": True, "anneal_lr": True, "target_kl": None}
    assert {name: getattr(args, name) for name in known} == known


class TestPolicy:
    def agent(self, obs_size=5, actions=3):
        torch.manual_seed(0)
        agent = make_agent(ppo, obs_size, Box(-1, 1, (actions,)))
        nn.init.orthogonal_(agent.actor[-1].weight)  # means far from 0
        with torch.no_grad():
            agent.log_std.copy_(torch.tensor([-1.0, 0.3, 0.5])[:actions])
        return agent

    def test_initialisation(self):
        """Gain 0.01 in the policy's last layer (detail 2), a log standard deviation of 0 for each component (24)."""
        agent = make_agent(ppo, 7, Box(-1, 1, (2, 3)))
        for network, gain in ((agent.actor, 0.01), (agent.critic, 1.0)):
            weight = network[-1].weight
            torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-8, rtol=1e-4)
        assert isinstance(agent.log_std, nn.Parameter)
        assert agent.log_std.tolist() == [0.0] * 6
        shapes = [tuple(layer.weight.shape) for layer in (*agent.actor[::2], *agent.critic[::2])]
        assert shapes == [(64, 7), (64, 64), (6, 64), (64, 7), (64, 64), (1, 64)]
        assert not {id(p) for p in agent.actor.parameters()} & {id(p) for p in agent.critic.parameters()}

    def test_logprob_and_entropy_are_those_of_a_gaussian(self):
        """Of independent components, summed (details 23 and 25); also far outside of what is likely."""
        agent = self.agent()
        generator = torch.Generator().manual_seed(1)
        obs, actions = torch.randn(200, 5, generator=generator), 4 * torch.randn(200, 3, generator=generator)
        logprob, entropy, _ = agent.evaluate({"obs": obs, "actions": actions})
        gaussian = Normal(agent.actor(obs), agent.log_std.exp())
        assert logprob.shape == entropy.shape == (200,)
        torch.testing.assert_close(logprob, gaussian.log_prob(actions).sum(-1), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(entropy, gaussian.entropy().sum(-1), atol=1e-5, rtol=1e-5)

    def test_the_deviation_is_learned_and_the_same_everywhere(self):
        agent = self.agent()
        logprob, entropy, _ = agent.evaluate({"obs": torch.randn(10, 5), "actions": torch.randn(10, 3)})
        assert len(entropy.unique()) == 1
        (gradient,) = torch.autograd.grad(entropy.mean(), agent.log_std, retain_graph=True)
        torch.testing.assert_close(gradient, torch.ones(3))
        (gradient,) = torch.autograd.grad(logprob.mean(), agent.log_std)
        assert gradient.ne(0).all()

    def test_samples(self):
        """Means, deviations, and correlations of 100,000 samples; and what the loss thinks of them."""
        agent = self.agent()
        obs = torch.randn(5, generator=torch.Generator().manual_seed(2)).expand(100_000, 5)
        with torch.no_grad():
            means, std = agent.actor(obs).numpy(), agent.log_std.exp().numpy()
            samples = sample_actions(means, std, agent.noise(np.random.default_rng(3), 100_000))
            logprob, entropy, _ = agent.evaluate({"obs": obs, "actions": torch.from_numpy(samples)})
        assert samples.dtype == np.float32
        np.testing.assert_allclose(samples.mean(0), means[0], atol=0.03)
        np.testing.assert_allclose(np.cov(samples.T), np.diag(std**2), atol=0.05)
        noise = (samples - means) / std
        assert (np.abs(noise) < 1.96).mean() == pytest.approx(
            0.95, abs=0.005
        )  # a Gaussian, not anything of its variance
        assert -logprob.mean().item() == pytest.approx(entropy[0].item(), abs=0.02)

    @pytest.mark.parametrize(
        ("space", "action", "expected"),
        [
            (Box(-1, 1, (2,)), [[-3.0, 0.5], [1.5, -1.0]], [[-1.0, 0.5], [1.0, -1.0]]),
            (Box(-0.4, 0.4, ()), [[0.3], [7.0]], [0.3, 0.4]),
            (Box(-np.inf, np.inf, (1,)), [[-1e9], [3.0]], [[-1e9], [3.0]]),
            (Box(0, np.inf, (1,)), [[-1.0], [1e9]], [[0.0], [1e9]]),
            (Box(-np.inf, -2, (1,)), [[-1.0], [-3.0]], [[-2.0], [-3.0]]),
            (Box(-1, np.array([[1.0], [2.0]]), (2, 1), np.float64), [[3.0, 3.0], [-3, 0]], [[[1], [2]], [[-1], [0]]]),
        ],
    )
    def test_the_environment_gets_them_clipped(self, space, action, expected):
        """To each component's own bounds, in the space's shape and type (detail 27)."""
        action = np.array(action, np.float32)
        before, batched = action.copy(), batch_space(space, 2)
        got = to_env(action, batched)
        assert got.dtype == space.dtype and batched.contains(got)
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        np.testing.assert_array_equal(action, before)

    def test_gradient_by_finite_differences(self):
        """Of the whole loss, by all parameters, the deviations too."""
        torch.set_default_dtype(torch.float64)
        try:
            agent, generator = self.agent(), torch.Generator().manual_seed(4)
            noise = torch.randn(6, 24, generator=generator)
            batch = {"obs": torch.randn(24, 5, generator=generator), "actions": torch.randn(24, 3, generator=generator)}
            with torch.no_grad():
                logprob, _, value = agent.evaluate(batch)
            batch |= {"logprobs": logprob + 0.3 * noise[0], "values": value + 0.3 * noise[1], "advantages": noise[2]}
            batch = weighed(batch | {"returns": value + noise[3], "valid": noise[4] < 1})
            params = list(agent.parameters())
            loss, _ = ppo.ppo_loss(agent, batch, 0.2, Args(ent_coef=0.1))
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])
            flat = nn.utils.parameters_to_vector(params).detach()
            nn.utils.vector_to_parameters(flat, params)
            for direction in torch.eye(flat.numel())[[0, 1, 2, *range(3, flat.numel(), flat.numel() // 50)]]:
                losses = []
                for step in (1e-6, -2e-6):
                    with torch.no_grad():
                        flat += step * direction
                        losses.append(ppo.ppo_loss(agent, batch, 0.2, Args(ent_coef=0.1))[0].item())
                flat += 1e-6 * direction
                assert (losses[0] - losses[1]) / 2e-6 == pytest.approx((gradient @ direction).item(), abs=1e-6)
        finally:
            torch.set_default_dtype(torch.float32)
        assert any(param is agent.log_std for param in params)


class TestActions:
    def test_stored_are_the_sampled_ones(self, monkeypatch, minibatches):
        """With their own log-probabilities; what the environment got lies within its bounds, which are narrower."""
        executed, step = [], gym.vector.SyncVectorEnv.step
        monkeypatch.setattr(
            gym.vector.SyncVectorEnv, "step", lambda envs, actions: executed.append(actions) or step(envs, actions)
        )
        result = train(env_id="worlds:CountingContinuous", learning_rate=0.0, num_minibatches=1, update_epochs=1)
        space = gym.make("worlds:CountingContinuous").action_space
        stored = torch.cat([batch["actions"] for batch in minibatches])
        assert stored.shape == (640, 2)
        assert (stored[:, 0].abs() > 0.1).float().mean() > 0.8  # of a Gaussian with deviation 1
        assert stored.std(0).tolist() == pytest.approx([1, 1], abs=0.1)
        for batch in minibatches:
            expected = Normal(result["agent"].actor(batch["obs"]), 1.0).log_prob(batch["actions"]).sum(-1)
            torch.testing.assert_close(batch["logprobs"], expected.detach(), atol=1e-4, rtol=1e-4)
        executed = np.concatenate(executed)
        clipped = stored.numpy().clip(space.low, space.high)
        assert sorted(executed.tolist()) == sorted(clipped.tolist())

    @pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")
    @pytest.mark.parametrize(("env_id", "best"), [("Matrix", 6.0), ("Scalar", -0.1)])
    def test_spaces(self, env_id, best):
        """Any shape and bounds: the environments fail for actions that are not in their space."""
        settings = {"num_steps": 32, "total_timesteps": 16_384, "learning_rate": 3e-3, "update_epochs": 4}
        result = train(env_id=f"worlds:{env_id}", **settings)
        assert np.mean(result["episodes"], axis=0)[0] > best
        results = evaluate(parse_args(["--evaluate", str(result["run_dir"]), "--eval-episodes", "50"]))
        assert np.mean(results, axis=0)[0] > best

    def test_observations_in_a_dict(self, minibatches):
        """As dm_control has them: flattened in the order of the space."""
        train(env_id="worlds:Control", norm_obs=False, total_timesteps=64)
        assert minibatches[0]["obs"].tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]] * 16

    def test_the_deviation_is_logged(self):
        result = train(env_id="worlds:Continuous4", learning_rate=0.01)
        logged = scalars(result)["losses/policy_std"]
        assert len(logged) == 10
        assert logged[640] == pytest.approx(result["agent"].log_std.exp().mean().item(), rel=1e-5)
        assert logged[640] != pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("seed", [1, 2])
class TestProbes:
    """As in test_probes.py; with normalisation off, so that observations, rewards and values are the plain ones."""

    def learn(self, env_id, seed, **changes):
        settings = {"total_timesteps": 16_384, "num_envs": 8, "num_steps": 32, "learning_rate": 5e-3, "gamma": GAMMA}
        settings |= {"update_epochs": 4, "norm_obs": False, "norm_reward": False, "seed": seed}
        return train(env_id=f"worlds:{env_id}", **settings | changes)["agent"]

    def value(self, agent, obs):
        with torch.no_grad():
            return agent.critic(torch.tensor([obs])).item()

    def policy(self, agent, obs):
        """Mean and standard deviation."""
        with torch.no_grad():
            return agent.actor(torch.tensor([obs])).item(), agent.log_std.exp().item()

    def test_1_value_of_a_constant(self, seed):
        assert self.value(self.learn("Continuous", seed), 0.0) == pytest.approx(1, abs=0.02)

    def test_2_value_of_an_observation(self, seed):
        agent = self.learn("Continuous2", seed)
        assert self.value(agent, 1.0) == pytest.approx(1, abs=0.05)
        assert self.value(agent, -1.0) == pytest.approx(-1, abs=0.05)

    def test_3_discounting(self, seed):
        agent = self.learn("Continuous3", seed)
        assert self.value(agent, 0.0) == pytest.approx(GAMMA, abs=0.03)
        assert self.value(agent, 1.0) == pytest.approx(1, abs=0.03)

    def test_4_action(self, seed):
        """Takes the best one, ever more surely."""
        mean, std = self.policy(self.learn("Continuous4", seed), 0.0)
        assert mean == pytest.approx(0.5, abs=0.1)
        assert std < 0.3

    def test_5_action_for_an_observation(self, seed):
        agent = self.learn("Continuous5", seed)
        for obs in (1.0, -1.0):
            mean, std = self.policy(agent, obs)
            assert mean == pytest.approx(0.5 * obs, abs=0.1)
            assert std < 0.3
            assert self.value(agent, obs) == pytest.approx(1, abs=0.1)

    def test_6_a_time_limit_is_no_end(self, seed):
        agent = self.learn("Continuous6", seed, clip_vloss=False)
        assert self.value(agent, 0.0) == pytest.approx(1 / (1 - GAMMA), abs=0.3)

    def test_7_an_end_is_one(self, seed):
        agent = self.learn("Continuous7", seed, clip_vloss=False, total_timesteps=32_768)
        for step in range(5):
            expected = sum(GAMMA**k for k in range(5 - step))
            assert self.value(agent, step / 5) == pytest.approx(expected, abs=0.15), step


class TestNormalising:
    """By default; `CountingContinuous` observes and rewards the same whatever is done, so that all is known before."""

    def history(self, monkeypatch, steps):
        """Observations (steps + 1, 4, 3), rewards and ends (steps, 4) of 4 environments."""
        monkeypatch.setattr(worlds.Counting, "created", 0)
        envs = ppo.make_envs(Args(env_id="worlds:CountingContinuous", num_envs=4))
        observations, rewards, ends = [envs.reset()[0]], [], []
        for _ in range(steps):
            obs, reward, terminated, truncated, _ = envs.step(np.zeros((4, 2), np.float32))
            observations.append(obs)
            rewards.append(reward)
            ends.append(terminated | truncated)
        monkeypatch.setattr(worlds.Counting, "created", 0)
        return np.array(observations, np.float64), np.array(rewards), np.array(ends)

    def run(self, **changes):
        return train(env_id="worlds:CountingContinuous", num_minibatches=1, update_epochs=1, gamma=0.5, **changes)

    def test_observations(self, monkeypatch, minibatches):
        """By mean and variance of everything seen so far (detail 28), clipped (29)."""
        observations, *_ = self.history(monkeypatch, 160)
        self.run()
        assert len(minibatches) == 10
        for i, batch in enumerate(minibatches):
            expected = []
            for t in range(16 * i, 16 * (i + 1)):
                everything = observations[: t + 1].reshape(-1, 3)
                scaled = (observations[t] - everything.mean(0)) / np.sqrt(everything.var(0) + 1e-8)
                expected += scaled.clip(-10, 10).tolist()
            distances = torch.cdist(batch["obs"], torch.tensor(expected), p=float("inf"))  # minibatches are shuffled
            assert distances.shape == (64, 64)
            assert distances.min(0).values.max() < 1e-4 > distances.min(1).values.max()

    def test_rewards(self, monkeypatch, rollouts):
        """By the deviation of the discounted return of the running episode, not centred (detail 30), clipped (31).

        Reset steps don't count; and what is reported is the environment's own.
        """
        _, rewards, ends = self.history(monkeypatch, 160)
        result = self.run()
        running, returns, was_ended, expected = np.zeros(4), [], np.zeros(4, bool), []
        for reward, ended in zip(rewards, ends, strict=True):
            running = 0.5 * running + reward
            returns += running[~was_ended].tolist()
            expected.append((reward / np.sqrt(np.var(returns) + 1e-8)).clip(-10, 10))
            running, was_ended = running * ~ended, ended
        got = np.concatenate([rewards for rewards, *_ in rollouts])
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        assert got.max() < 10 < rewards.max()
        for episode_return, length in result["episodes"]:
            assert (episode_return - length * (length - 1) / 2) % (100 * length) == 0

    def test_extremes_are_clipped(self):
        stats = RunningMeanStd()
        stats.update(np.arange(100.0))
        assert stats.normalize(np.array([1e9, -1e9])).tolist() == [10, -10]
        assert stats.normalize(np.array([1e9, -1e9]), center=False).tolist() == [10, -10]

    def test_switched_off(self, monkeypatch, minibatches, rollouts):
        observations, rewards, _ = self.history(monkeypatch, 160)
        self.run(norm_obs=False, norm_reward=False)
        got = np.concatenate([batch["obs"].numpy() for batch in minibatches])
        assert sorted(got.tolist()) == sorted(observations[:160].reshape(-1, 3).tolist())
        np.testing.assert_array_equal(np.concatenate([rewards for rewards, *_ in rollouts]), rewards)

    def test_in_checkpoints_evaluation_and_on_resuming(self, monkeypatch):
        """Saved are the statistics of everything; evaluation uses them and leaves them; a resumed run adds to them."""
        observations, *_ = self.history(monkeypatch, 160)
        run_dir = self.run()["run_dir"]
        saved = load_checkpoint(str(run_dir))
        everything = observations.reshape(-1, 3)
        assert saved["stats"]["obs"]["count"] == len(everything)
        np.testing.assert_allclose(saved["stats"]["obs"]["mean"], everything.mean(0))
        np.testing.assert_allclose(saved["stats"]["obs"]["var"], everything.var(0))
        assert saved["agent"]["log_std"].shape == (2,)

        seen, numpy_policy = [], ppo.numpy_policy

        def record(agent):
            policy = numpy_policy(agent)
            return lambda obs: seen.append(obs) or policy(obs)

        with monkeypatch.context() as patch:
            patch.setattr(ppo, "numpy_policy", record)
            patch.setattr(worlds.Counting, "created", 0)
            evaluate(parse_args(["--evaluate", str(run_dir), "--eval-episodes", "2"]))
        raw = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 1, 2]])
        expected = (raw - everything.mean(0)) / np.sqrt(everything.var(0) + 1e-8)
        np.testing.assert_allclose(np.concatenate(seen), expected.clip(-10, 10), rtol=1e-5)
        assert (run_dir / "checkpoint.pt").exists()

        counts = []
        monkeypatch.setattr(
            RunningMeanStd,
            "update",
            lambda stats, batch: (counts.append((len(batch), int(stats.count))), stats.merge(0.0, 1.0, len(batch))),
        )
        train_args(parse_args(["--resume", str(run_dir), "--total-timesteps", "704"]))
        assert counts[0] == (4, len(everything))
        assert counts[2][1] == saved["stats"]["return"]["count"]

    def test_evaluation_plays_the_deviation_that_was_learned(self):
        """Continuous4 pays less the further the action is from 0.5."""
        run_dir = train(env_id="worlds:Continuous4", total_timesteps=64)["run_dir"]
        saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)
        spread = {}
        for log_std in (-5.0, -1.0):
            saved["agent"]["log_std"] = torch.tensor([log_std])
            torch.save(saved, "changed.pt")
            results = evaluate(parse_args(["--evaluate", "changed.pt", "--eval-episodes", "400"]))
            spread[log_std] = np.std([episode_return for episode_return, _ in results])
        # Of (0.5 - x)² with a Gaussian x near 0: about the deviation of x
        assert spread[-5.0] == pytest.approx(math.exp(-5), rel=0.2)
        assert spread[-1.0] == pytest.approx(math.sqrt(math.exp(-2) + 2 * math.exp(-4)), rel=0.25)


class TestSaving:
    def test_a_resumed_run_goes_on(self):
        """With all that was learned, and the numbers of a second resume the same."""
        settings = {"env_id": "worlds:Continuous5", "learning_rate": 0.01}
        run_dir = train(**settings)["run_dir"]
        before = load_checkpoint(str(run_dir))
        untouched = (run_dir / "checkpoint.pt").read_bytes()
        seen = []
        for _ in range(2):
            (run_dir / "checkpoint.pt").write_bytes(untouched)
            with pytest.MonkeyPatch.context() as patch:
                adam = ppo.adam
                starts = []
                patch.setattr(
                    ppo,
                    "adam",
                    lambda p, *x, adam=adam, starts=starts, **y: starts.append(p[0].clone()) or adam(p, *x, **y),
                )
                result = train_args(parse_args(["--resume", str(run_dir), "--total-timesteps", "1280"]))
            assert torch.equal(starts[0], nn.utils.parameters_to_vector(before["agent"].values()))
            seen.append(parameters(result))
        assert torch.equal(*seen)

    def test_same_seed_same_run_and_compiled_the_same(self):
        """The compiled run agrees to rounding."""
        runs = [parameters(train(env_id="Pendulum-v1", compile=compiled)) for compiled in (False, False, True)]
        assert torch.equal(runs[0], runs[1])
        torch.testing.assert_close(runs[2], runs[0], atol=2e-4, rtol=1e-3)


# What two processes do


def watch():
    """A run of ppo_continuous.py in two processes, watched from inside."""
    steps = listen(ppo, "adam", lambda params, gradients, *_: gradients[0].clone())
    sums = listen(ppo, "all_sum", torch.clone)
    updates = listen(RunningMeanStd, "update", lambda stats, batch: batch.copy())
    result = train(env_id="Pendulum-v1", learning_rate=3e-3)
    size = steps[0].numel()
    return {
        "parameters": parameters(result),
        "log_std": result["agent"].log_std.detach(),
        "steps": steps,
        "parts": [x for x in sums if x.numel() == size],
        "updates": updates,
        "run_dir": str(result["run_dir"]),
        "stats": vars(result["stats"]["obs"]),
    }


def test_two_processes(tmp_path):
    """Learn the same deviation and means, from both's samples, and merge both normalisations exactly."""
    code, printed = launch(tmp_path, __file__, "watch")
    assert code == 0, printed
    first, second = returned(tmp_path)
    assert torch.equal(first["parameters"], second["parameters"])
    assert first["log_std"].abs().min() > 1e-4
    assert len(first["steps"]) == len(second["steps"]) > 0
    raw = first["parts"][0] + second["parts"][0]
    torch.testing.assert_close(first["steps"][0], raw * min(1, 0.5 / raw.norm().item()), rtol=1e-4, atol=1e-7)
    saved = load_checkpoint(str(tmp_path / first["run_dir"]))["stats"]
    for part, ndim in (("obs", 2), ("return", 1)):
        everything = np.concatenate([x for seen in (first, second) for x in seen["updates"] if x.ndim == ndim])
        everything = everything.astype(np.float64)
        assert saved[part]["count"] == len(everything)
        np.testing.assert_allclose(saved[part]["mean"], everything.mean(0), rtol=1e-9)
        np.testing.assert_allclose(saved[part]["var"], everything.var(0), rtol=1e-9)
    for name in ("mean", "var", "count"):
        assert np.array_equal(first["stats"][name], second["stats"][name])


@pytest.mark.skipif(not ctypes.util.find_library("EGL"), reason="MuJoCo draws with EGL where there is no display")
def test_mujoco_is_filmed_without_a_display(tmp_path):
    """In training and in evaluation; and the picture shows something."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MUJOCO_GL")}
    args = ["--env-id", "Hopper-v5", "--num-steps", "128", "--num-minibatches", "4", "--total-timesteps", "128"]
    command = [sys.executable, ROOT / "ppo_continuous.py", *args, "--capture-video"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    files = sorted(tmp_path.glob("runs/*/videos/*/*.mp4"))
    assert [file.parent.name for file in files] == ["step-000000000", "step-000000128"]
    with VideoFileClip(str(files[0])) as clip:
        assert clip.get_frame(0).std() > 10


@pytest.mark.skipif(not ctypes.util.find_library("EGL"), reason="MuJoCo draws with EGL where there is no display")
@pytest.mark.parametrize(("env_id", "place"), [("Walker2d-v5", 0.0), ("Walker2d-v5", 30.0), ("HalfCheetah-v5", 30.0)])
def test_the_camera_follows(env_id, place, tmp_path):
    """Body and limbs are red or purple, floor and sky are not."""
    code = f"""
import ppo_continuous as p
envs = p.make_film_envs(p.Args(env_id={env_id!r}), {str(tmp_path)!r})
envs.reset(seed=0)
env = envs.envs[0].unwrapped
env.data.qpos[0] = {place}
env.set_state(env.data.qpos, env.data.qvel)
picture = env.render().astype(int)
print("seen", (picture[..., 0] - picture[..., 1] > 40).sum())
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MUJOCO_GL")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert int(done.stdout.split("seen")[1]) > 300, done.stderr


MISTAKES = {
    "discrete": ({"env_id": "CartPole-v1"}, "actions in Discrete(2): use ppo.py"),
    "several discrete": ({"env_id": "worlds:Pairs"}, "use ppo.py"),
    "switches": ({"env_id": "worlds:Switches"}, "use ppo.py"),
    "actions in a tuple": ({"env_id": "worlds:TupleActions"}, "needed are vectors or uint8 images, and choices"),
    "whole numbers": ({"env_id": "worlds:WholeNumbers"}, "or a Box of floats"),
    "misspelt": ({"env_id": "HalfCheeta-v5"}, "Did you mean: `HalfCheetah`?"),
    "images": ({"env_id": "CarRacing-v3"}, "needed are vectors or uint8 images"),
    "filmed by gymnasium": (
        {"env_id": "HopperHop-v1", "vectorization": "envpool", "capture_video": True},
        "--env-id HopperHop-v1, as gymnasium films it: ",
    ),
    "old version": ({"env_id": "Hopper-v1"}, "--env-id Hopper-v1"),
    "minibatches": ({"num_minibatches": 33}, "--num-minibatches 33 must divide num_envs * num_steps, which is 2048"),
    "not in EnvPool": (
        {"env_id": "worlds:Continuous", "vectorization": "envpool"},
        "EnvPool has no such environment: check its name, or give --vectorization auto",
    ),
    "discrete in EnvPool": ({"env_id": "CartPole-v1", "vectorization": "envpool"}, "Discrete(2): use ppo.py"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line(name, capsys, tmp_path):
    changes, message = MISTAKES[name]
    with pytest.raises(SystemExit) as stopped:
        train_args(Args(**{"total_timesteps": 2048} | changes))  # a mistake that goes unnoticed ends soon, too
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ppo_continuous.py: error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_the_other_script(capsys):
    """Is refused: its actions are others, or, if someone changed that, its network."""
    import ppo as discrete

    run_dir = discrete.train(discrete.Args(num_steps=16, total_timesteps=64))["run_dir"]
    saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    saved["args"]["env_id"] = "Pendulum-v1"
    torch.save(saved, "changed.pt")
    for source, message in ((run_dir, "use ppo.py"), ("changed.pt", "of another environment or network")):
        with pytest.raises(SystemExit) as stopped:
            evaluate(parse_args(["--evaluate", str(source)]))
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_health_of_the_deviation():
    healthy = {"clipfrac": 0.1, "approx_kl": 0.005, "policy_std": 0.5, "explained_variance": 0.8, "advantage_mean": 0.1}
    healthy = {f"losses/{name}": value for name, value in {**healthy, "advantage_std": 1.0}.items()}

    def verdict(std):
        (line,) = [
            x for x in ppo.health_report([healthy | {"losses/policy_std": std}]).splitlines() if "policy_std" in x
        ]
        return line[44:]

    assert verdict(0.5) == verdict(1.001) == "healthy"  # it begins at 1
    assert "--ent-coef" in verdict(0.01) and "--ent-coef" in verdict(2.0)


if __name__ == "__main__":
    torch.save(globals()[sys.argv[1]](*sys.argv[2:]), f"process{os.environ['RANK']}.pt")
