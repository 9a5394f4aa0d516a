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
from torch import nn
from torch.distributions import Normal

import ppo_continuous as ppo
import worlds
from conftest import ROOT, make_agent
from ppo_continuous import Args, evaluate, load
from ppo_continuous import train as train_args
from test_train import parameters, scalars


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
        for init_std, first in ((0.25, 0.25), (2, 2.0), (0.0, 0.001)):
            agent = make_agent(ppo, 7, Box(-1, 1, (2, 3)), init_std=init_std)
            assert agent.log_std.exp().tolist() == pytest.approx([first] * 6)
        shapes = [tuple(layer.weight.shape) for layer in (*agent.actor[::2], *agent.critic[::2])]
        assert shapes == [(64, 7), (64, 64), (6, 64), (64, 7), (64, 64), (1, 64)]
        assert not {id(p) for p in agent.actor.parameters()} & {id(p) for p in agent.critic.parameters()}

    def test_logprob_and_entropy_are_those_of_a_gaussian(self):
        """Of independent components, summed (details 23 and 25); also far outside of what is likely."""
        agent = self.agent()
        generator = torch.Generator().manual_seed(1)
        obs, actions = torch.randn(200, 5, generator=generator), 4 * torch.randn(200, 3, generator=generator)
        logprob, entropy, _ = agent({"obs": obs, "actions": actions})
        gaussian = Normal(agent.actor(obs), agent.log_std.exp())
        assert logprob.shape == entropy.shape == (200,)
        torch.testing.assert_close(logprob, gaussian.log_prob(actions).sum(-1), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(entropy, gaussian.entropy().sum(-1), atol=1e-5, rtol=1e-5)

    def test_the_deviation_is_learned_and_the_same_everywhere(self):
        agent = self.agent()
        logprob, entropy, _ = agent({"obs": torch.randn(10, 5), "actions": torch.randn(10, 3)})
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
            torch.manual_seed(3)
            samples = agent.act(obs.numpy())
            logprob, entropy, _ = agent({"obs": obs, "actions": torch.from_numpy(samples)})
        assert samples.dtype == np.float32
        np.testing.assert_allclose(agent.act(obs[:2].numpy(), greedy=True), means[:2], rtol=1e-5)
        np.testing.assert_allclose(samples.mean(0), means[0], atol=0.03)
        np.testing.assert_allclose(np.cov(samples.T), np.diag(std**2), atol=0.05)
        noise = (samples - means) / std
        within = (np.abs(noise) < 1.96).mean()
        assert within == pytest.approx(0.95, abs=0.005)  # of a Gaussian, not of anything with its variance
        assert -logprob.mean().item() == pytest.approx(entropy[0].item(), abs=0.02)

    @pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")
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
    def test_the_environment_gets_them_clipped(self, space, action, expected, monkeypatch):
        """To each component's own bounds, in the space's shape and type (detail 27); those given stay as they are."""
        monkeypatch.setattr(worlds.Told, "action_space", space)
        envs, action = ppo.make_envs(Args(env_id="worlds:Told"), 2), np.array(action, np.float32)
        before = action.copy()
        envs.reset()
        envs.step(action)  # the world itself fails if it is told what is not in its space
        told = [env.unwrapped.told for env in envs.unwrapped.envs]
        assert all(x.dtype == space.dtype and x.shape == space.shape for x in told)
        np.testing.assert_allclose(told, expected, rtol=1e-6)
        np.testing.assert_array_equal(action, before)

    def test_gradient_by_finite_differences(self):
        """Of the whole loss, by all parameters, the deviations too."""
        torch.set_default_dtype(torch.float64)
        try:
            agent, generator = self.agent(), torch.Generator().manual_seed(4)
            noise = torch.randn(6, 24, generator=generator)
            batch = {"obs": torch.randn(24, 5, generator=generator), "actions": torch.randn(24, 3, generator=generator)}
            with torch.no_grad():
                logprob, _, value = agent(batch)
            batch |= {"logprobs": logprob + 0.3 * noise[0], "values": value + 0.3 * noise[1], "advantages": noise[2]}
            batch |= {"returns": value + noise[3], "valid": noise[4] < 1}
            params = list(agent.parameters())
            loss, _ = ppo.ppo_loss(agent, batch, 1.0, Args(ent_coef=0.1))
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])
            flat = nn.utils.parameters_to_vector(params).detach()
            nn.utils.vector_to_parameters(flat, params)
            for direction in torch.eye(flat.numel())[[0, 1, 2, *range(3, flat.numel(), flat.numel() // 50)]]:
                losses = []
                for step in (1e-6, -2e-6):
                    with torch.no_grad():
                        flat += step * direction
                        losses.append(ppo.ppo_loss(agent, batch, 1.0, Args(ent_coef=0.1))[0].item())
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
        result = train(
            env_id="worlds:CountingContinuous", learning_rate=0.0, num_minibatches=1, update_epochs=1, norm_obs=False
        )
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

    def test_each_is_a_sample_of_its_own(self, minibatches):
        """Not shared by environments, steps or iterations: here, where all see the same."""
        train(env_id="worlds:Continuous4", learning_rate=0.0, num_minibatches=1, update_epochs=1)
        assert len(torch.cat([batch["actions"] for batch in minibatches]).unique()) > 635

    @pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")
    @pytest.mark.parametrize(("env_id", "best"), [("Matrix", 6.0), ("Scalar", -0.1)])
    def test_spaces(self, env_id, best):
        """Any shape and bounds: the environments fail for actions that are not in their space."""
        settings = {"num_steps": 32, "total_timesteps": 8192, "learning_rate": 5e-3, "update_epochs": 4}
        result = train(env_id=f"worlds:{env_id}", **settings)
        assert np.mean(result["episodes"], axis=0)[0] > best
        results = evaluate(load(result["run_dir"])[0], Args(env_id=f"worlds:{env_id}"), 50)
        assert np.mean(results, axis=0)[0] > best

    def test_observations_in_a_dict(self, minibatches):
        """As dm_control has them: flattened in the order of the space."""
        train(env_id="worlds:Control", norm_obs=False, total_timesteps=64)
        assert minibatches[0]["obs"].tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]] * 16

    def test_the_mean_deviation_is_logged(self, monkeypatch):
        """Of all components."""

        class Wide(ppo.Agent):
            def __init__(self, *args):
                super().__init__(*args)
                self.log_std.data = torch.tensor([1.0, -2.0])

        monkeypatch.setattr(ppo, "Agent", Wide)
        logged = scalars(train(env_id="worlds:AnythingContinuous", learning_rate=0.0))["losses/policy_std"]
        assert [*logged.values()] == pytest.approx([(math.exp(1) + math.exp(-2)) / 2] * 10)

    def test_the_deviation_is_logged(self):
        result = train(env_id="worlds:Continuous4", learning_rate=0.01)
        logged = scalars(result)["losses/policy_std"]
        assert len(logged) == 10
        assert logged[640] == pytest.approx(result["agent"].log_std.exp().mean().item(), rel=1e-5)
        assert logged[640] != pytest.approx(1, abs=0.01)


class TestNormalising:
    """Details 28 to 31: on by default, and switched off when told so. How it is done, test_train.py tests."""

    def run(self, monkeypatch, **changes):
        monkeypatch.setattr(worlds.Counting, "created", 0)
        return train(env_id="worlds:CountingContinuous", gamma=0.5, learning_rate=0.0, **changes)

    def test_by_default(self, monkeypatch, minibatches, rollouts):
        """What is far out of the usual is clipped: a place, and the only reward in hundreds of steps."""
        monkeypatch.setattr(
            worlds.Counting, "reward", lambda self, _: 100.0 * ((self.number, self.episode, self.t) == (0, 20, 0))
        )
        result = self.run(monkeypatch)
        agent, stats = result["agent"], result["agent"].obs_stats
        assert stats.count.min() == agent.return_stats.count == 500  # valid steps
        obs = torch.cat([minibatches[-1]["obs"], torch.tensor([[1e6, -1e6, 0]])])
        normalised = ((obs - stats.mean) / (stats.var + 1e-8).sqrt()).clip(-10, 10)
        assert normalised[:-1].abs().max() < 5 and normalised[-1, :2].tolist() == [10, -10]
        for outputs in (agent.network(obs)[0], torch.from_numpy(agent.policy(obs.numpy()))):
            torch.testing.assert_close(outputs, agent.actor(normalised), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(agent.network(obs)[1], agent.critic(normalised).squeeze(-1), atol=1e-5, rtol=1e-4)
        got = np.concatenate([rewards for rewards, *_ in rollouts])
        assert {*got.ravel().tolist()} == {0, 10}
        assert {episode_return for episode_return, _ in result["episodes"]} == {0, 100}  # reported as it is

    def test_switched_off(self, monkeypatch, minibatches, rollouts):
        agent = self.run(monkeypatch, norm_obs=False, norm_reward=False)["agent"]
        obs = minibatches[-1]["obs"]
        torch.testing.assert_close(agent.actor(obs), agent.network(obs)[0])
        assert max(rewards.max() for rewards, *_ in rollouts) > 1000

    def test_evaluation_leaves_them(self, monkeypatch):
        """And a saved run has them."""

        def contents(agent):
            return {name: x.tolist() for name, x in (*agent.named_parameters(), *agent.named_buffers())}

        result = self.run(monkeypatch)
        before = contents(result["agent"])
        evaluate(result["agent"], Args(env_id="worlds:CountingContinuous"), 3)
        assert contents(result["agent"]) == contents(load(result["run_dir"])[0]) == before


def test_evaluation_plays_the_deviation_that_was_learned():
    """Continuous4 pays less the further the action is from 0.5."""
    agent, _ = load(train(env_id="worlds:Continuous4", total_timesteps=64)["run_dir"])
    spread = {}
    for log_std in (-5.0, -1.0):
        agent.log_std.data[:] = log_std
        spread[log_std] = np.std([r for r, _ in evaluate(agent, Args(env_id="worlds:Continuous4"), 400)])
    # Of (0.5 - x)² with a Gaussian x near 0: about the deviation of x
    assert spread[-5.0] == pytest.approx(math.exp(-5), rel=0.2)
    assert spread[-1.0] == pytest.approx(math.sqrt(math.exp(-2) + 2 * math.exp(-4)), rel=0.25)
    greedy = evaluate(agent, Args(env_id="worlds:Continuous4", eval_greedy=True), 5)
    assert len({*greedy}) == 1


def test_same_seed_same_run_resumed_and_compiled_the_same():
    """The compiled run agrees to rounding."""
    runs = [train(env_id="Pendulum-v1", compile=compiled) for compiled in (False, False, True)]
    assert torch.equal(parameters(runs[0]), parameters(runs[1]))
    torch.testing.assert_close(parameters(runs[2]), parameters(runs[0]), atol=2e-4, rtol=1e-3)
    more = [train_args(Args(resume=run["run_dir"], total_timesteps=1280)) for run in runs[:2]]
    assert torch.equal(*map(parameters, more))
    assert more[0]["global_step"] == 1280 and not torch.equal(parameters(more[0]), parameters(runs[0]))


def test_the_camera_of_films(tmp_path, monkeypatch):
    """The model's own, which follows; where it has none, the free one."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    for env_id, camera in {"HalfCheetah-v5": 0, "InvertedPendulum-v5": -1}.items():
        envs = ppo.make_envs(Args(env_id=env_id), 1, tmp_path).unwrapped
        assert envs.envs[0].unwrapped.mujoco_renderer.camera_id == camera


@pytest.mark.skipif(not ctypes.util.find_library("EGL"), reason="MuJoCo draws with EGL where there is no display")
def test_mujoco_is_drawn_without_a_display(tmp_path):
    """And the camera follows: body and limbs are red or purple, floor and sky are not."""
    code = f"""
import ppo_continuous as p
envs = p.make_envs(p.Args(env_id="HalfCheetah-v5"), 1, {str(tmp_path)!r})
envs.reset(seed=0)
env = envs.unwrapped.envs[0].unwrapped
env.data.qpos[0] = 30
env.set_state(env.data.qpos, env.data.qvel)
picture = env.render().astype(int)
print("seen", (picture[..., 0] - picture[..., 1] > 40).sum())
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MUJOCO_GL")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert int(done.stdout.split("seen")[1]) > 300, done.stderr


def test_what_an_environment_of_ones_own_asserts_is_not_caught():
    """EnvPool asserts where others have errors of their own, but its author needs the traceback."""
    with pytest.raises(AssertionError, match="there is no arm"):
        ppo.make_envs(Args(env_id="worlds:Asserting"), 1)


MISTAKES = {
    "discrete": ({"env_id": "CartPole-v1"}, "has Discrete(2), Box("),
    "several discrete": ({"env_id": "worlds:Pairs"}, "try ppo.py"),
    "actions in a tuple": ({"env_id": "worlds:TupleActions"}, "has Tuple("),
    "whole numbers": ({"env_id": "worlds:WholeNumbers"}, "has Box(0, 5, (2,), int64)"),
    "misspelt": ({"env_id": "HalfCheeta-v5"}, "Did you mean: `HalfCheetah`?"),
    "images": ({"env_id": "CarRacing-v3"}, "ppo_atari.py (3D, uint8)"),
    "old version": ({"env_id": "Hopper-v1"}, "--env-id Hopper-v1"),
    "minibatches": ({"num_minibatches": 33}, "num_minibatches must cut num_envs"),
    "not in EnvPool": ({"env_id": "worlds:Continuous", "vectorization": "envpool"}, "not in envpool.list"),
    "discrete in EnvPool": ({"env_id": "CartPole-v1", "vectorization": "envpool"}, "has Discrete(2)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line(name, tmp_path):
    changes, message = MISTAKES[name]
    with pytest.raises(SystemExit) as stopped:
        train_args(Args(**{"total_timesteps": 2048} | changes))  # a mistake that goes unnoticed ends soon, too
    assert stopped.value.code.startswith("error: ") and "\n" not in stopped.value.code
    assert message in stopped.value.code
    assert list(tmp_path.iterdir()) == []
