"""What Procgen needs: its games by pip alone, levels, both networks, evaluation on levels never seen, films, memory."""

import ctypes
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import ppo_atari
import ppo_procgen as ppo
from conftest import ROOT
from ppo_procgen import Args, evaluate, load, make_envs
from test_atari import expected_orthogonal

TINY = {"env_id": "coinrun", "network": "nature", "num_envs": 2, "num_steps": 32, "num_minibatches": 2}
TINY |= {"update_epochs": 1, "total_timesteps": 64}


def make_agent(shape=(64, 64, 3), actions=15, script=ppo, **arguments):
    spaces = SimpleNamespace(
        single_observation_space=Box(0, 255, shape, np.uint8), single_action_space=Discrete(actions)
    )
    torch.manual_seed(0)
    return script.Agent(spaces, script.Args(**{"bf16": False} | arguments))


def play(steps=100, num_envs=2, **arguments):
    """What random actions show: observations, rewards, both kinds of ends, and seeds of levels, by step."""
    envs, rng = make_envs(Args(**arguments), num_envs), np.random.default_rng(0)
    obs, info = envs.reset()
    history = [(obs.copy(), np.zeros(num_envs), np.zeros(num_envs, bool), np.zeros(num_envs, bool), info["level_seed"])]
    for _ in range(steps):
        obs, *rest, info = envs.step(rng.integers(15, size=(num_envs, 1)))
        history.append((obs.copy(), *rest, info["level_seed"]))
    envs.close()
    return [np.array(x) for x in zip(*history, strict=True)]


def same(first, second):
    return all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))


class TestGames:
    def test_names(self):
        """Three for one game; easy and hard ones are others."""
        first = play(env_id="bigfish")
        assert same(first, play(env_id="BigfishEasy-v0")) and same(first, play(env_id="procgen:procgen-bigfish-v0"))
        assert not same(first, play(env_id="BigfishHard-v0")) and not same(first, play(env_id="coinrun"))
        assert first[0].shape == (101, 2, 64, 64, 3) and first[0].dtype == np.uint8

    def test_every_game_is_there(self):
        games = "bigfish bossfight caveflyer chaser climber coinrun dodgeball fruitbot heist jumper leaper maze miner"
        for game in [*games.split(), "ninja", "plunder", "starpilot"]:
            assert make_envs(Args(env_id=game), 1).single_action_space == Discrete(15)

    def test_resets_are_steps_of_their_own(self):
        """What an episode's last step shows is its own last frame; the next step shows another level."""
        obs, rewards, terminated, truncated, levels = play(2000, num_envs=1, env_id="bigfish")
        ends = np.flatnonzero(terminated)
        assert len(ends) > 5 and not truncated.any()
        for t in ends[ends < 2000]:
            assert levels[t] == levels[t - 1] != levels[t + 1] and rewards[t + 1] == 0
            changes = np.abs(np.diff(obs[t - 1 : t + 2].astype(float), axis=0)).mean((1, 2, 3, 4))
            assert changes[0] < 15 < changes[1]

    def test_a_time_limit_is_no_end(self):
        envs = make_envs(Args(env_id="maze"), 1)
        envs.reset()
        steps = [envs.step(np.full((1, 1), 4))[2:4] for _ in range(501)]  # action 4 is to stay
        assert [t for t, (terminated, _) in enumerate(steps) if terminated] == []
        assert [t for t, (_, truncated) in enumerate(steps) if truncated] == [499]


class TestLevels:
    def test_training_sees_those_it_is_given(self):
        assert {*play(1500, env_id="bigfish", num_levels=3, start_level=40)[-1].ravel()} == {40, 41, 42}
        assert Args().num_levels == 200
        assert play(50, num_envs=50, env_id="bigfish")[-1].max() < 200

    def test_zero_is_all(self):
        levels = {*play(50, num_envs=50, env_id="bigfish", num_levels=0)[-1].ravel()}
        assert len(levels) >= 50 and min(levels) > 200

    def test_seeds(self):
        """The same shows the same; another seed, environment, process or part of a resumed run shows other levels."""
        first = play(env_id="bigfish", num_envs=8)
        assert same(first, play(env_id="bigfish", num_envs=8))
        assert not np.array_equal(first[-1], play(env_id="bigfish", num_envs=8, seed=2)[-1])
        assert len({*first[-1][0]}) > 4

    def test_seeds_of_a_run(self, monkeypatch):
        made, original = [], ppo.make_envs
        monkeypatch.setattr(ppo, "make_envs", lambda args, *rest: made.append(args.seed) or original(args, *rest))
        run_dir = ppo.train(Args(**TINY))["run_dir"]
        ppo.train(Args(resume=str(run_dir), total_timesteps=128))
        monkeypatch.setattr(ppo, "RANK", 1)
        ppo.train(Args(**TINY))
        ppo.train(Args(**TINY, seed=2))
        assert len({*made}) == 4
        assert ppo.load_checkpoint(run_dir)["args"].seed == 1  # saved is the one that was given


# The networks, once more: in float64, by sums over windows


def convolve(x, weight, bias, stride=1, padding=0):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", windows, weight) + bias[:, None, None]


def relu(x):
    return np.maximum(x, 0)


def impala(x, params):
    for stage in (1, 2, 3):
        w = [(params[f"trunk.{stage}.convs.{i}.weight"], params[f"trunk.{stage}.convs.{i}.bias"]) for i in range(5)]
        x = np.pad(convolve(x, *w[0], padding=1), ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-1, -2))
        for i in (1, 3):
            x = x + convolve(relu(convolve(relu(x), *w[i], padding=1)), *w[i + 1], padding=1)
    return x.ravel(), "trunk.6"


def nature(x, params):
    for layer, stride in ((1, 4), (3, 2), (5, 1)):
        x = relu(convolve(x, params[f"trunk.{layer}.weight"], params[f"trunk.{layer}.bias"], stride))
    return x.ravel(), "trunk.8"


def by_hand(network, frame, params):
    x, name = network(frame.transpose(2, 0, 1) / 255, params)
    x = relu(params[f"{name}.weight"] @ relu(x) + params[f"{name}.bias"])
    return params["actor.weight"] @ x + params["actor.bias"], params["critic.weight"] @ x + params["critic.bias"]


@pytest.mark.parametrize("network", [impala, nature])
class TestNetworks:
    def test_outputs(self, network):
        """Those of the papers: Espeholt et al. (2018), figure 3, and Mnih et al. (2015)."""
        agent = make_agent(network=network.__name__)
        with torch.no_grad():
            for param in agent.parameters():  # biases too
                param += 0.02 * torch.randn_like(param)
        frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
        outputs, values = agent.network(torch.from_numpy(frames))
        params = {name: x.detach().double().numpy() for name, x in agent.named_parameters()}
        for frame, output, value in zip(frames, outputs, values, strict=True):
            expected, expected_value = by_hand(network, frame, params)
            np.testing.assert_allclose(output.detach(), expected, atol=2e-5 * np.abs(expected).max())
            np.testing.assert_allclose(value.detach(), expected_value[0], rtol=1e-4)

    def test_initialisation(self, network):
        """Detail 2, in every layer; with gain 1 within IMPALA, whose residual sums grow: with √2, features began at 15
        and values at 7, where returns are scaled to about 1."""
        agent = make_agent(network=network.__name__)
        for layer in agent.trunk.modules():
            if hasattr(layer, "weight"):
                expected_orthogonal(layer, 1 if network is impala and layer.weight.ndim == 4 else 2**0.5)
        expected_orthogonal(agent.actor, 0.01)
        expected_orthogonal(agent.critic, 1.0)
        envs = make_envs(Args(env_id="bigfish"), 16)
        outputs, values = agent.network(torch.from_numpy(envs.reset()[0]))
        assert outputs.std() < 0.05 and values.abs().max() < 2

    def test_gradients(self, network):
        """Those of finite differences of the second implementation, in directions made at random."""
        agent = make_agent(network=network.__name__)
        frame = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
        outputs, values = agent.network(torch.from_numpy(frame))
        named = dict(agent.named_parameters())
        grads = torch.autograd.grad(outputs[0, 3] + values[0], [*named.values()])
        params = {name: x.detach().double().numpy() for name, x in named.items()}
        for (name, x), grad in [*zip(params.items(), (grad.numpy() for grad in grads), strict=True)][::3]:
            direction = np.random.default_rng(2).normal(size=x.shape) / x.size**0.5
            ends = []
            for step in (1e-4, -1e-4):
                moved, value = by_hand(network, frame[0], params | {name: x + step * direction})
                ends.append(moved[3] + value[0])
            expected = (ends[0] - ends[1]) / 2e-4
            assert (grad * direction).sum() == pytest.approx(expected, rel=0.02, abs=2e-3 * float(np.abs(grad).max()))

    def test_channels_first_and_other_sizes(self, network):
        for shape in ((3, 64, 64), (20, 30, 3), (1, 84, 84)):
            agent = make_agent(shape, network=network.__name__)
            frames = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8)
            assert agent.act(frames).shape == (2, 1)
        agent = make_agent((3, 64, 64), network=network.__name__)
        other = make_agent((64, 64, 3), network=network.__name__)
        frames = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        outputs = [agent.network(frames)[0], other.network(frames.movedim(1, -1).contiguous())[0]]
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)

    def test_precision(self, network):
        """In bfloat16 features, not heads: nearly the same."""
        frames = torch.randint(0, 256, (64, 64, 64, 3), dtype=torch.uint8)
        exact, rough = (make_agent(network=network.__name__, bf16=bf16) for bf16 in (False, True))
        rough.bf16 = [True]
        (outputs, values), (near, near_values) = exact.network(frames), rough.network(frames)
        assert near.dtype == near_values.dtype == torch.float32
        assert 0 < (near - outputs).abs().max() < 0.05 * outputs.abs().max()
        assert (near_values - values).abs().max() < 0.05 * values.abs().max()


def test_the_number_of_parameters():
    """IMPALA's is what is usually given for Procgen's 15 actions: 0.6 million."""
    count = sum(x.numel() for x in make_agent().parameters())
    convolutions = sum(9 * a * b + b for a, b in [(3, 16), (16, 32), (32, 32)])
    convolutions += sum(4 * (9 * size * size + size) for size in (16, 32, 32))
    assert count == convolutions + (2048 + 1) * 256 + (256 + 1) * 16 == 626_256


@pytest.mark.parametrize(
    "agent", [make_agent(network="nature"), make_agent(script=ppo_atari)], ids=["procgen", "atari"]
)
def test_parts_of_rollouts(agent):
    """The activations of a large one would need gigabytes."""
    sizes = []
    frames = torch.randint(0, 256, (2100, 64, 64, 3), dtype=torch.uint8)
    agent.trunk.register_forward_hook(lambda module, inputs, outputs: sizes.append(len(inputs[0])))
    with torch.no_grad():
        outputs, values = agent.network(frames)
        assert max(sizes) <= 2048 and sum(sizes) == 2100
        parts = [agent.network(part) for part in frames.split(700)]
    torch.testing.assert_close(outputs, torch.cat([x for x, _ in parts]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values, torch.cat([x for _, x in parts]), atol=1e-5, rtol=1e-4)


# Training and evaluating


def test_rewards_are_not_clipped(monkeypatch):
    """Beyond their scaling: leaper pays 10, and returns are those of the game."""
    seen, original = [], ppo.compute_gae
    monkeypatch.setattr(ppo, "compute_gae", lambda rewards, *rest: seen.append(rewards) or original(rewards, *rest))
    arguments = TINY | {"env_id": "leaper", "num_envs": 32, "num_steps": 100, "total_timesteps": 3200}
    result = ppo.train(Args(**arguments, norm_reward=False))
    assert {*np.ravel(seen)} == {0.0, 10.0}
    assert {episode_return for episode_return, _ in result["episodes"]} == {0.0, 10.0}
    scaled = ppo.train(Args(**arguments | {"env_id": "starpilot"}))  # which pays 1, and often
    (low, high), scale = np.unique(seen[-1]), scaled["agent"].return_stats.var.item() ** 0.5
    assert low == 0 and high == pytest.approx(1 / scale, rel=1e-4) and abs(high - 1) > 0.05 and high < 10


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        return ppo.train(Args(**TINY | {"env_id": "starpilot"}))["run_dir"].resolve()


def test_evaluation(run_dir, monkeypatch):
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)  # which the import has set
    command = [sys.executable, str(ROOT / "ppo_procgen.py"), "--evaluate", str(run_dir), "--eval-episodes", "6"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "GOMP_SPINCOUNT = '0'" in done.stderr  # idle threads leave the cores to the games
    found = [[float(x) for x in re.findall(r"-?\d+\.\d+", line)] for line in done.stdout.splitlines()]
    args = ppo.load_checkpoint(run_dir)["args"]
    agent, _ = load(run_dir)
    means, deviations = [], []
    for number in (200, 0):
        returns = np.array(evaluate(agent, replace(args, num_levels=number), 6))[:, 0]
        means.append(returns.mean())
        deviations.append(returns.std())
    expected = [*zip(means, deviations, strict=True), (means[0] - means[1], np.hypot(*deviations) / 5**0.5)]
    np.testing.assert_allclose(found, expected, atol=0.006)
    assert means[0] != means[1] and min(deviations) > 0.2
    assert "episodes: return" in done.stdout and "on all levels: return" in done.stdout
    assert "gap, levels 0 to 199:" in done.stdout


def test_evaluation_where_no_other_levels_are(run_dir, monkeypatch, capsys):
    """One trained on all, and a game of one's own."""

    def said(run_dir, *words):
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(sys, "argv", ["ppo_procgen.py", "--evaluate", str(run_dir), *words])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "ppo_procgen.py"), run_name="__main__")
        return capsys.readouterr().out

    assert re.fullmatch(r"2 episodes: return \S+ ± \S+\n", said(run_dir, "--eval-episodes", "2", "--num-levels", "0"))
    assert re.search(
        r"gap, levels 0 to 199: \S+ ± nan ", said(run_dir, "--eval-episodes", "1")
    )  # of one, none is known
    own = ppo.train(Args(**TINY | {"env_id": "worlds:Pixel1"}))["run_dir"]
    assert "envpool" in sys.modules  # which does not make it a game of Procgen
    assert re.fullmatch(r"10 episodes: return \S+ ± \S+\n", said(own))


def test_evaluation_shows_other_levels(monkeypatch):
    seen, original = [], ppo.make_envs

    def watched(args, *rest):
        envs = original(args, *rest)
        step = envs.step

        def watched_step(actions):
            result = step(actions)
            seen.append((args.num_levels, int(result[4]["level_seed"][0])))
            return result

        envs.step = watched_step
        return envs

    monkeypatch.setattr(ppo, "make_envs", watched)
    for number in (2, 0):
        evaluate(make_agent(network="nature"), Args(env_id="bigfish", num_levels=number), 4)
    assert {level for number, level in seen if number == 2} <= {0, 1}
    assert len({level for number, level in seen if number == 0} - {*range(200)}) == 4


def test_films(tmp_path):
    """In full size, from the first step to the last."""
    results = evaluate(make_agent(network="nature"), Args(env_id="bigfish"), 2, tmp_path / "films", max_length=30)
    films = sorted((tmp_path / "films").glob("*.mp4"))
    assert len(films) == len(results) == 2
    for film, (_, length) in zip(films, results, strict=True):
        video, frames = cv2.VideoCapture(str(film)), []
        while (frame := video.read())[0]:
            frames.append(frame[1].astype(float))
        assert len(frames) in (length, length + 1) and frames[0].shape == (512, 512, 3)  # some readers skip the last
        assert np.abs(frames[-1] - frames[0]).mean() > 0.5


def test_films_of_all_episodes(tmp_path):
    evaluate(make_agent(network="nature"), Args(env_id="bigfish"), 4, tmp_path, max_length=3)
    assert len([*tmp_path.glob("*.mp4")]) == 4


# What may be missing


def fail(**arguments):
    with pytest.raises(SystemExit) as stopped:
        make_envs(Args(**arguments), 1)
    (line,) = stopped.value.code.splitlines()
    return line


class TestMistakes:
    def test_no_such_game(self):
        for name in ("bigfsh", "ALE/Breakout-v5x", "CartPole", "", "BigfishExtreme-v0"):
            assert fail(env_id=name).startswith(f"error: --env-id {name}: ")
        assert "BigfshEasy-v0 is not supported" in fail(env_id="bigfsh")

    def test_not_pixels(self):
        assert "try ppo.py" in fail(env_id="CartPole-v1")
        assert "(8, 8, 12)" in fail(env_id="worlds:Board")

    @pytest.mark.parametrize("module", ["envpool", "PyQt5"])
    def test_a_package_is_missing(self, module, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        assert re.match(rf"error: --env-id bigfish: .*{module}.*pip install envpool pyqt5-qt5", fail(env_id="bigfish"))

    def test_a_library_of_the_system_is_missing(self, monkeypatch):
        def load_library(*args):
            raise OSError("libGL.so.1: cannot open shared object file: No such file or directory")

        monkeypatch.setattr(ctypes, "CDLL", load_library)
        assert re.match(
            r"error: .*libGL.so.1: cannot open .*apt-get install libgl1 libglib2.0-0", fail(env_id="bigfish")
        )

    def test_another_system(self, monkeypatch):
        """Windows has no such flags, for all that EnvPool and Qt can be installed."""
        monkeypatch.delattr(os, "RTLD_GLOBAL")
        assert re.match(r"error: --env-id bigfish: .*RTLD_GLOBAL.*on Linux, pip install", fail(env_id="bigfish"))

    def test_envpool_was_there_before_qt(self):
        """As after another script, in a notebook."""
        code = "import envpool, ppo_procgen as p; print(p.make_envs(p.Args(), 2).reset()[0].shape)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == "(2, 64, 64, 3)", done.stderr

    def test_levels_below_zero(self):
        for name in ("num_levels", "start_level"):
            with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} must be a plain number from 0"):
                ppo.check_args(Args(**{name: -1}), "cpu")
        ppo.check_args(Args(num_levels=0, start_level=0), "cpu")

    def test_more_levels_than_envpool_can_count(self):
        """Of 2**31 and more, it would play others without a word."""
        ppo.check_args(Args(num_levels=10**9, start_level=10**9), "cpu")
        for name in ("num_levels", "start_level"):
            with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} must be a plain number from 0"):
                ppo.check_args(Args(**{name: 2**31 - 10**9}), "cpu")

    def test_what_an_own_environment_raises(self, monkeypatch):
        """Keeps its traceback."""

        def make_vec(*args, **kwargs):
            raise error("theirs")

        monkeypatch.setattr(ppo.gym, "make_vec", make_vec)
        for error in (AssertionError, OSError):
            with pytest.raises(error, match="theirs"):
                make_envs(Args(env_id="worlds:Pixel1"), 1)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("script", [ppo, ppo_atari])
def test_memory_is_kept(script, monkeypatch):
    """And given back as usual after it."""
    calls = []

    def mallopt(option, value):
        calls.append((option, value))
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    with script.process_settings():
        assert dict(calls) == {-1: -1, -4: 0}  # M_TRIM_THRESHOLD: never; M_MMAP_MAX: none
    assert dict(calls) == {-1: 128 * 1024, -4: 65536}  # glibc's defaults
