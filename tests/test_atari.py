"""What Atari and pixels need: games, lives, networks, precision; beside what test_fork.py has of details 14 to 22."""

import itertools
import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

import ppo_atari as ppo
import worlds
from ppo_atari import Args, evaluate, load, make_envs
from test_train import parameters

GAMMA = 0.9
SMALL = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2, "total_timesteps": 96}


def train(**arguments):
    return ppo.train(Args(**arguments))


@pytest.fixture
def recorded(monkeypatch):
    """The arguments of each call of compute_gae and compute_gradient, by the functions' names."""
    seen = {"compute_gae": [], "compute_gradient": []}

    def listen(name):
        function = getattr(ppo, name)

        def call(*args):
            seen[name].append(args)
            return function(*args)

        monkeypatch.setattr(ppo, name, call)

    for name in seen:
        listen(name)
    return seen


def make_agent(shape=(4, 84, 84), actions=4, **arguments):
    spaces = SimpleNamespace(
        single_observation_space=Box(0, 255, shape, np.uint8), single_action_space=Discrete(actions)
    )
    torch.manual_seed(0)
    return ppo.Agent(spaces, Args(**arguments))


class TestNames:
    @pytest.mark.parametrize(
        ("game", "names"),
        [
            ("ALE/Breakout-v5", ["BreakoutNoFrameskip-v4", "Breakout-v5", "Breakout-v4", "BreakoutNoFrameskip-v0"]),
            ("ALE/SpaceInvaders-v5", ["SpaceInvadersNoFrameskip-v4"]),
            ("ALE/Pong-v5", ["Pong", "ALE/Pong", "ale_py:ALE/Pong-v5", "PongNoFrameskip"]),
        ],
    )
    def test_all_names_are_the_same_game(self, game, names):
        histories = []
        for name in [game, *names]:
            envs, rng = make_envs(Args(env_id=name), 2), np.random.default_rng(0)
            history = [envs.reset(seed=3)[0]]
            for _ in range(50):
                history += envs.step(rng.integers(envs.single_action_space.n, size=(2, 1)))[:4]
            histories.append(history)
        for history in histories[1:]:
            assert all(np.array_equal(a, b) for a, b in zip(histories[0], history, strict=True))

    def test_every_game_of_the_wheel(self):
        games = [spec.id for spec in gym.registry.values() if spec.id.startswith("ALE/") and spec.id.endswith("-v5")]
        assert len(games) > 90
        for game in games[::12]:
            envs = make_envs(Args(env_id=game), 1)
            assert envs.reset(seed=1)[0].shape == (1, 4, 84, 84)

    @pytest.mark.parametrize("env_id", ["worlds:Lives", "worlds:mine/Pong-v0", "mine/Pong-v0"])
    def test_an_environment_of_ones_own_keeps_its_name(self, env_id):
        """Also where a game has that name, but not in that namespace."""
        envs = make_envs(Args(env_id=env_id), 2)
        assert envs.reset()[0].shape == (2, 3, 20, 30)


class TestPreprocessing:
    """ale-py's C++ environments, gymnasium's wrappers and the papers agree, frame by frame."""

    def pair(self, game, seed=5):
        """One game in each kind, after as many frames."""
        fast = make_envs(Args(env_id=game), 1)
        slow = make_envs(Args(env_id=game, vectorization="sync"), 1)
        first, info = fast.reset(seed=seed)
        frames = info["episode_frame_number"][0]
        single = slow.unwrapped.envs[0]
        fire = "FIRE" in single.unwrapped.get_action_meanings()
        slow.reset(seed=seed)
        single.unwrapped._np_random = SimpleNamespace(integers=lambda *_: frames - fire)
        second, other = slow.reset()
        assert other["episode_frame_number"][0] == frames
        return fast, slow, first, second

    @pytest.mark.parametrize("game", ["Breakout", "Pong", "SpaceInvaders", "Freeway"])
    def test_both_kinds_show_the_same(self, game):
        fast, slow, first, second = self.pair(f"ALE/{game}-v5")
        assert np.array_equal(first, second)
        rng, games = np.random.default_rng(1), 0
        for _ in range(700):
            action = rng.integers(fast.single_action_space.n, size=(1, 1))
            ours, theirs = fast.step(action), slow.step(action)
            assert [x.item() for x in ours[1:4]] == [x.item() for x in theirs[1:4]]  # reward, terminated, truncated
            assert ours[4]["lives"] == theirs[4]["lives"]
            if ours[2]:  # what the last frame is, they see differently; nobody acts on it
                games += 1
                break
            assert np.array_equal(ours[0], theirs[0])
        assert games == (game in ("Breakout", "SpaceInvaders"))

    def test_filmed_starts(self):
        numbers = []
        envs = make_envs(Args(vectorization="sync"), 1)
        for seed in range(20):
            numbers.append(envs.reset(seed=seed)[1]["frame_number"][0])
            assert envs.unwrapped.envs[0].get_wrapper_attr("frame_skip") == 4
        assert {*numbers} <= {*range(2, 32)}
        assert len({*numbers}) > 8
        for _ in range(60):
            *_, info = envs.step(np.zeros((1, 1), np.int64))
        assert info["lives"] < 5

    def test_the_time_limit_is_108000_frames(self):
        """Of the emulator, and a cut, not an end."""
        assert make_envs(Args(), 1).spec.kwargs["max_num_frames_per_episode"] == 108_000
        single = make_envs(Args(vectorization="sync"), 1).unwrapped.envs[0]
        assert single.unwrapped.ale.getInt("max_num_frames_per_episode") == 108_000
        envs = gym.make_vec("ALE/Breakout-v5", 1, max_num_frames_per_episode=41, noop_max=1)
        envs.reset(seed=1)
        ends = [np.ravel(envs.step(np.zeros(1, np.int64))[2:4]).tolist() for _ in range(11)]
        assert ends == [[False, False]] * 10 + [[False, True]]

    @pytest.mark.parametrize("vectorization", ["auto", "sync"])
    def test_repeated_actions(self, vectorization):
        """Only where asked for."""
        endings = {}
        for probability in (0.0, 0.9):
            for run in range(2):
                arguments = Args(vectorization=vectorization, repeat_action_probability=probability)
                envs, rng = make_envs(arguments, 1), np.random.default_rng(0)
                envs.reset(seed=7)
                for _ in range(60):
                    obs, *_ = envs.step(rng.integers(4, size=(1, 1)))
                endings[probability, run] = obs
        assert np.array_equal(endings[0.0, 0], endings[0.0, 1])
        assert not np.array_equal(endings[0.0, 0], endings[0.9, 0])


class TestLearningSignal:
    def test_lives_that_are_not_told_are_not_lost(self, recorded):
        """`SomeLives`: what half of the environments tell says nothing of the others."""
        train(env_id="worlds:SomeLives", **SMALL)
        ends = recorded["compute_gae"][0][2].T.tolist()
        even = [False, True, False, True, False, False, True, False]
        odd = [False, False, True, False, True, False, True, False]
        assert sorted(ends) == sorted([even, odd] * 2)

    def test_rewards_by_their_spread_instead(self, recorded):
        train(env_id="worlds:Lives", norm_reward=True, **SMALL)
        rewards = recorded["compute_gae"][-1][0]
        assert len({*rewards[:, 0].tolist()}) == 7  # six rewards and none
        assert np.sign(rewards[:, 0]).tolist() == [1, -1, 1, 0, -1, 1, 1, 0]

    def test_games(self, recorded):
        """Breakout, at random: an end at each of five lost lives; the score is of whole games."""
        arguments = {"num_envs": 8, "num_steps": 256, "update_epochs": 1, "total_timesteps": 2048, "learning_rate": 0.0}
        result = train(**arguments)
        ((rewards, _, terminated, truncated, *_),) = recorded["compute_gae"]
        games = len(result["episodes"])
        assert games > 4
        assert not truncated.any()
        assert 5 * games <= terminated.sum() < 5 * games + 8 * 5
        assert {*rewards.flatten().tolist()} == {0.0, 1.0}
        assert max(length for _, length in result["episodes"]) > 60
        assert sum(score for score, _ in result["episodes"]) > 1.5 * games / 2

    def test_bytes_until_they_are_in_the_network(self, recorded, monkeypatch):
        """And not divided by anything before. The rollout is there once: minibatches are cut from the array itself."""
        pointers, made = set(), []
        index_select, zeros = torch.Tensor.index_select, torch.zeros

        def remember(self, *args):
            if self.dtype == torch.uint8:
                pointers.add(self.untyped_storage().data_ptr())
            return index_select(self, *args)

        def make(*args, **kwargs):
            made.append(zeros(*args, **kwargs))
            return made[-1]

        monkeypatch.setattr(torch.Tensor, "index_select", remember)
        monkeypatch.setattr(torch, "zeros", make)
        train(**SMALL)
        (frames,) = [x for x in made if x.shape == (9, 4, 4, 84, 84)]
        assert pointers == {frames.untyped_storage().data_ptr()}
        for _, _, batch, *_ in recorded["compute_gradient"]:
            assert batch["obs"].dtype == torch.uint8
            assert batch["obs"].max() > 100 and batch["obs"].shape == (16, 4, 84, 84)
            floats = ("logprobs", "values", "advantages", "returns")
            assert all(batch[name].dtype == torch.float32 for name in floats)


def expected_orthogonal(layer, gain):
    weight = layer.weight.flatten(1)
    weight = weight if weight.shape[0] < weight.shape[1] else weight.T
    torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-5, rtol=1e-4)
    assert not layer.bias.any()


class TestNetworks:
    def test_nature(self):
        agent = make_agent(actions=6)
        shapes = [tuple(layer.weight.shape) for layer in agent.trunk if hasattr(layer, "weight")]
        assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136)]
        assert [layer.stride for layer in agent.trunk if isinstance(layer, nn.Conv2d)] == [(4, 4), (2, 2), (1, 1)]
        assert sum(param.numel() for param in agent.trunk.parameters()) == 8_224 + 32_832 + 36_928 + 1_606_144
        assert sum(param.numel() for param in agent.parameters()) == 1_684_128 + 513 * 7

    def test_initialisation(self):
        """Detail 2, in every layer; and one trunk for policy and value (detail 21)."""
        agent = make_agent(actions=5)
        for layer in agent.trunk.modules():
            if hasattr(layer, "weight"):
                expected_orthogonal(layer, math.sqrt(2))
        expected_orthogonal(agent.actor, 0.01)
        expected_orthogonal(agent.critic, 1.0)
        batch = {"obs": torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)}
        batch |= {"actions": torch.zeros(8, 1, dtype=torch.int64), "masks": torch.ones(8, 1, 5, dtype=torch.bool)}
        first = next(agent.trunk.parameters())
        for output in agent(batch)[::2]:  # log-probability and value
            (gradient,) = torch.autograd.grad(output.sum(), first, retain_graph=True)
            assert gradient.abs().sum() > 0

    def test_nature_by_its_definition(self):
        """And pixels are divided by 255 (detail 22)."""
        agent = make_agent(bf16=False)
        frames = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
        *convs, linear = (layer for layer in agent.trunk if hasattr(layer, "weight"))
        x = frames / 255
        for conv, stride in zip(convs, (4, 2, 1), strict=True):
            x = nn.functional.conv2d(x, conv.weight, conv.bias, stride).relu()
        features = linear(x.flatten(1)).relu()
        outputs, values = agent.network(frames)
        torch.testing.assert_close(outputs, agent.actor(features), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values, agent.critic(features).squeeze(-1), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("shape", [(4, 84, 84), (84, 84, 3), (3, 100, 84)])
    def test_centred_frames(self, shape):
        """With --norm-obs, each frame of a stack by itself: its brightness does not matter, but its contrast does."""
        agent, plain = make_agent(shape, norm_obs=True, bf16=False), make_agent(shape, bf16=False)
        assert {*agent.state_dict()} == {*plain.state_dict()}  # it has nothing to remember
        frames = torch.randint(0, 100, (2, *shape), dtype=torch.uint8)
        frame = frames.movedim(1 + shape.index(min(shape)), 1)[:, 0]  # a view
        values, others = agent.network(frames)[1], plain.network(frames)[1]
        seen = []
        for each in (agent, plain):
            each.trunk[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        frame += 100
        torch.testing.assert_close(agent.network(frames)[1], values, atol=1e-5, rtol=1e-4)
        assert (plain.network(frames)[1] - others).abs().max() > 0.01
        centred, expected = seen
        expected = expected - expected.mean((2, 3), keepdim=True)
        assert centred.mean((2, 3)).abs().max() < 1e-5
        torch.testing.assert_close(centred, expected, atol=0.01, rtol=0.1)
        frame[:] = 0  # as before a game's first frames
        agent.eval()
        assert not agent.trunk[0](frames.movedim(1 + shape.index(min(shape)), 1) / 255)[:, 0].any()

    @pytest.mark.parametrize("shape", [(3, 64, 64), (1, 84, 84), (3, 210, 160), (4, 10, 10), (2, 5, 7), (3, 84, 100)])
    def test_any_size_and_both_orders(self, shape):
        frames = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
        first, last = make_agent(shape, bf16=False), make_agent((*shape[1:], shape[0]), bf16=False)
        values = first.network(frames)[1]
        assert values.shape == (2,) and (values != 0).all()
        torch.testing.assert_close(last.network(frames.movedim(1, -1))[1], values, atol=1e-4, rtol=1e-4)


class TestPrecision:
    """bfloat16 for features only, and no more than a rounding."""

    def batch(self, agent):
        torch.manual_seed(1)
        batch = {"obs": torch.randint(0, 256, (64, 4, 84, 84), dtype=torch.uint8)}
        batch |= {"actions": torch.randint(4, (64, 1)), "masks": torch.ones(64, 1, 4, dtype=torch.bool)}
        with torch.no_grad():
            batch["logprobs"], _, batch["values"] = agent(batch)
        advantages = torch.randn(64)
        batch |= {
            "advantages": advantages,
            "returns": batch["values"] + advantages,
            "valid": torch.ones(64, dtype=torch.bool),
        }
        return batch

    @pytest.mark.parametrize("centred", [False, True])
    def test_gradients_are_those_of_float32_but_for_rounding(self, centred):
        agent = make_agent(norm_obs=centred)
        nn.init.orthogonal_(agent.actor.weight)
        batch, gradients, losses = self.batch(agent), [], []
        for agent.bf16 in (False, [True]):
            gradient, diagnostics = ppo.compute_gradient(agent, [*agent.parameters()], batch, 1.0, Args())
            assert gradient.dtype == torch.float32
            assert all(value.dtype == torch.float32 for value in diagnostics.values())
            gradients.append(gradient)
            losses.append(diagnostics["policy_loss"] + diagnostics["value_loss"])
        assert not torch.equal(*gradients)
        assert torch.cosine_similarity(*gradients, dim=0) > 0.99
        torch.testing.assert_close(*losses, atol=0.01, rtol=0.02)

    def test_outputs_are_float32(self):
        agent = make_agent()
        agent.bf16 = [True]
        assert all(x.dtype == torch.float32 for x in agent(self.batch(agent)))
        assert agent.policy(np.zeros((2, 4, 84, 84), np.uint8)).dtype == np.float32

    def test_switch(self, monkeypatch):
        """On where the device in use can, whatever another could; off elsewhere, and off when told so."""
        for able, other, wanted in itertools.product((True, False), repeat=3):
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated, other=other: emulated or other)
            agent, seen = make_agent(bf16=wanted), []
            agent.trunk.register_forward_hook(lambda _, inputs, features, seen=seen: seen.append(features.dtype))
            agent.network(torch.zeros(1, 4, 84, 84, dtype=torch.uint8))
            assert seen == [torch.bfloat16 if able and wanted else torch.float32]
            assert not wanted or [*agent.bf16] == [able, other]  # by is_cuda

    @pytest.mark.parametrize("bf16", [True, False])
    def test_one_precision_for_all(self, bf16, monkeypatch):
        """Acting, estimating, learning, and playing what was saved: what is compared was computed alike."""
        seen, ratios, compute_gradient = [], [], ppo.compute_gradient

        class Watched(ppo.Agent):
            def __init__(self, *args):
                super().__init__(*args)
                self.trunk.register_forward_hook(lambda _, inputs, features: seen.append((phase, features.dtype)))

        def record(agent, params, batch, *args):
            gradient, diagnostics = compute_gradient(agent, params, batch, *args)
            ratios.append([diagnostics[name].item() for name in ("old_approx_kl", "approx_kl", "clipfrac")])
            with torch.no_grad():
                torch.testing.assert_close(agent(batch)[2], batch["values"], atol=1e-6, rtol=1e-5)
            return gradient, diagnostics

        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        monkeypatch.setattr(ppo, "Agent", Watched)
        monkeypatch.setattr(ppo, "compute_gradient", record)
        phase = "training"
        result = train(env_id="worlds:Arcade", bf16=bf16, **SMALL | {"learning_rate": 0.0, "num_minibatches": 1})
        phase = "evaluating"
        evaluate(load(result["run_dir"])[0], Args(env_id="worlds:Arcade"), 2)
        dtype = torch.bfloat16 if bf16 else torch.float32
        assert {*seen} == {("training", dtype), ("evaluating", dtype)}
        assert len(seen) > 3 * (8 + 2 + 2)
        assert len(ratios) == 3 * 2 and np.abs(ratios).max() < 1e-6


def learn(env_id, **changes):
    settings = {"total_timesteps": 768, "num_envs": 4, "num_steps": 16, "learning_rate": 1e-3, "gamma": GAMMA}
    settings |= {"num_minibatches": 2, "update_epochs": 2, "clip_coef": 0.2}
    return train(env_id=f"worlds:{env_id}", **settings | changes)["agent"]


def outputs(agent, x):
    with torch.no_grad():
        logits, value = agent.network(torch.from_numpy(worlds.square(x))[None])
        return logits[0], value.item()


def value(agent, x):
    return outputs(agent, x)[1]


def probability(agent, x, action):
    return outputs(agent, x)[0].softmax(-1)[action].item()


@pytest.mark.parametrize("bf16", [True, False])
def test_a_probe_in_both_precisions(bf16, monkeypatch):
    """The fifth; all of them are in test_fork.py."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    agent = learn("Pixel5", bf16=bf16)
    assert probability(agent, 1, 1) > 0.95
    assert probability(agent, -1, 0) > 0.95
    assert value(agent, 1) == pytest.approx(1, abs=0.3)  # processors round otherwise


class TestRuns:
    @pytest.mark.parametrize("env_id", ["worlds:Lives", "worlds:ChannelsLast"])
    def test_environments_of_ones_own(self, env_id):
        assert train(env_id=env_id, **SMALL)["global_step"] == 96

    def test_same_seed_same_run(self):
        first, second = (train(**SMALL) for _ in range(2))
        assert torch.equal(parameters(first), parameters(second))
        assert not torch.equal(parameters(first), parameters(train(**SMALL, seed=2)))

    def test_resume_and_evaluate(self):
        result = train(num_envs=2, num_steps=8, num_minibatches=1, total_timesteps=32)
        more = ppo.train(Args(resume=result["run_dir"], total_timesteps=48))
        assert more["global_step"] == 48
        for seed in (1, 2**32 - 1):  # ale-py's are smaller
            assert evaluate(load(result["run_dir"])[0], Args(seed=seed), 1)[0][1] > 60

    def test_film(self, tmp_path):
        """In colour and whole, of what the policy saw in gray and small."""
        from moviepy import VideoFileClip

        result = train(**SMALL)
        ((_, length),) = evaluate(result["agent"], Args(), 1, tmp_path / "videos")
        (video,) = tmp_path.glob("videos/*.mp4")
        with VideoFileClip(str(video)) as clip:
            assert clip.size == [160, 210]
            assert abs(clip.n_frames - length) <= 2
            frame = clip.get_frame(1)
            assert frame.std(axis=-1).max() > 20  # colours

    @torch._dynamo.config.patch(error_on_recompile=True)
    def test_compiled(self):
        """Acting and learning, to rounding; and each is compiled once."""
        settings = {"env_id": "worlds:Pixel2", "bf16": False, **SMALL, "anneal_clip": True, "norm_obs": True}
        torch.compiler.reset()  # what other tests compiled
        start, plain, compiled = (
            parameters(train(**settings | changes)) for changes in ({"learning_rate": 0.0}, {}, {"compile": True})
        )
        assert (plain - start).abs().max() > 5e-4
        torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=0)


MISTAKES = {
    "vectors": ({"env_id": "CartPole-v1"}, "try ppo.py"),
    "continuous actions": ({"env_id": "Pendulum-v1"}, "ppo_continuous.py"),
    "both": ({"env_id": "CarRacing-v3"}, "has Box("),
    "misspelt": ({"env_id": "ALE/Brekout-v5"}, "Did you mean: `Breakout`?"),
    "no such game": ({"env_id": "TetrisForeverNoFrameskip-v4"}, "TetrisForever"),
    "probability": (
        {"repeat_action_probability": 1.5},
        "--repeat-action-probability must be a plain number from 0 to 1",
    ),
    "a reward without end": ({"env_id": "worlds:EndlessReward", "norm_reward": True, **SMALL}, "no longer finite"),
    "no bytes": ({"env_id": "worlds:FloatPixels"}, "float32"),
    "more channels than rows": ({"env_id": "worlds:Board"}, "(8, 8, 12)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line(name):
    changes, message = MISTAKES[name]
    with pytest.raises(SystemExit) as stopped:
        train(**changes)
    assert stopped.value.code.startswith("error: ") and "\n" not in stopped.value.code
    assert message in stopped.value.code
