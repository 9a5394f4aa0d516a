"""`--vectorization envpool`: EnvPool's environments are the same tasks as gymnasium's, with its interface."""

import importlib.util
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

import ppo
import ppo_continuous
from conftest import ROOT
from test_train import parameters

PENDULUM = {"env_id": "Pendulum-v1", "num_steps": 16, "num_minibatches": 4, "vectorization": "envpool"}


def pool_of(env_id, num_envs=1, script=ppo_continuous):
    return script.make_envs(script.Args(env_id=env_id, num_envs=num_envs, vectorization="envpool"))


def place(env, obs):
    """Put gymnasium's environment into the state that a first observation shows, at any place of the track."""
    if env.spec.id == "Pendulum-v1":
        env.unwrapped.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]], np.float64)
    elif env.spec.id in ("CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0"):
        env.unwrapped.state = np.array(obs, np.float64)
    else:
        model = env.unwrapped.model
        state = np.concatenate([np.zeros(model.nq + model.nv - len(obs)), obs])
        env.unwrapped.set_state(state[: model.nq], state[model.nq :])


# environment: steps for which chaos leaves the two within the tolerance, and that tolerance
TASKS = {
    "HalfCheetah-v5": (50, 1e-6),
    "Hopper-v5": (1000, 1e-6),
    "Walker2d-v5": (1000, 1e-6),
    "InvertedPendulum-v5": (1000, 1e-6),
    "Swimmer-v5": (200, 1e-6),
    "Pendulum-v1": (60, 1e-2),
    "MountainCarContinuous-v0": (200, 1e-4),
    "CartPole-v1": (500, 1e-4),
    "MountainCar-v0": (100, 1e-4),
}


@pytest.mark.parametrize("env_id", TASKS)
def test_step_by_step(env_id):
    """From the same state, under the same actions: the same observations, rewards and ends, in ten episodes."""
    limit, tolerance = TASKS[env_id]
    script = ppo if env_id in ("CartPole-v1", "MountainCar-v0") else ppo_continuous
    envs, env, rng = pool_of(env_id, script=script), gym.make(env_id), np.random.default_rng(0)
    assert envs.single_action_space.shape == env.action_space.shape
    assert envs.single_observation_space.shape == env.observation_space.shape
    if isinstance(env.action_space, gym.spaces.Box):
        np.testing.assert_array_equal(envs.single_action_space.low, env.action_space.low)
        np.testing.assert_array_equal(envs.single_action_space.high, env.action_space.high)
    lengths = []
    for episode in range(10):
        obs, _ = envs.reset(seed=episode)
        env.reset(seed=0)
        place(env, obs[0])
        for step in range(limit):
            if isinstance(env.action_space, gym.spaces.Box):
                action = rng.uniform(env.action_space.low, env.action_space.high).astype(env.action_space.dtype)
            else:
                action = rng.integers(env.action_space.n)
            obs, reward, terminated, truncated, _ = envs.step(np.array([action], envs.action_space.dtype))
            expected = env.step(action)
            np.testing.assert_allclose(obs[0], expected[0], atol=tolerance, rtol=tolerance, err_msg=f"step {step}")
            np.testing.assert_allclose(reward[0], expected[1], atol=tolerance, rtol=tolerance, err_msg=f"step {step}")
            assert (bool(terminated[0]), bool(truncated[0])) == expected[2:4]
            if terminated or truncated:
                break
        lengths.append(step + 1)
    assert max(lengths) >= min(limit, 5)


@pytest.mark.parametrize(
    ("env_id", "limit"), [("HalfCheetah-v5", 1000), ("Pendulum-v1", 200), ("Swimmer-v5", 1000), ("MountainCar-v0", 200)]
)
def test_time_limits_and_resets(env_id, limit):
    """The limit truncates and does not terminate; the next step returns a first observation, and reward 0."""
    assert gym.spec(env_id).max_episode_steps == limit
    envs = pool_of(env_id, num_envs=3, script=ppo if env_id == "MountainCar-v0" else ppo_continuous)
    assert envs.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP
    start, _ = envs.reset(seed=0)
    nothing = np.zeros(envs.action_space.shape, envs.action_space.dtype)
    for step in range(1, 2 * limit + 2):
        obs, reward, terminated, truncated, _ = envs.step(nothing)
        assert not terminated.any()
        assert truncated.tolist() == [step in (limit, 2 * limit + 1)] * 3
        if step == limit + 1:
            assert reward.tolist() == [0, 0, 0]
            if env_id == "HalfCheetah-v5":  # which starts near 0
                np.testing.assert_allclose(obs, 0 * start, atol=0.6)


def test_an_end_is_not_a_limit():
    """A Hopper that falls terminates; then it resets."""
    envs = pool_of("Hopper-v5", num_envs=8)
    start, _ = envs.reset(seed=0)
    rng, was_ended, ends = np.random.default_rng(0), np.zeros(8, bool), 0
    for _ in range(200):
        obs, reward, terminated, truncated, _ = envs.step(rng.uniform(-1, 1, (8, 3)))
        assert not truncated.any()
        assert not reward[was_ended].any()
        np.testing.assert_allclose(obs[was_ended], start[was_ended], atol=0.02)  # where episodes begin
        assert not terminated[was_ended].any()
        was_ended, ends = terminated, ends + terminated.sum()
    assert ends > 20


def test_the_walker_on_rough_ground():
    """BipedalWalker, whose ground can't be made equal: the same distributions under random actions of the same kind."""

    def first_steps(step, obs, count):
        rng, total, seen = np.random.default_rng(7), 0, []
        for _ in range(30):
            obs, reward, *_ = step(rng.uniform(-1, 1, (count, 4)).astype(np.float32))
            total, seen = total + np.asarray(reward), [*seen, np.asarray(obs, np.float64)]
        return np.concatenate([total[:, None], np.mean(seen, 0), seen[-1]], axis=1)

    count = 150
    envs = pool_of("BipedalWalker-v3", num_envs=count)
    ours = first_steps(envs.step, envs.reset(seed=0)[0], count)
    others = gym.make_vec("BipedalWalker-v3", count)
    theirs = first_steps(others.step, others.reset(seed=0)[0], count)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / count)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * error + 1e-3).all()
    assert ours.shape == (count, 49)
    assert ours[:, 0].std() == pytest.approx(theirs[:, 0].std(), rel=0.3)


def test_seeds():
    """The same seed, the same episodes; environments differ; a reset without a seed starts others."""
    envs = pool_of("Hopper-v5", num_envs=4)
    first, second, other = (envs.reset(seed=seed)[0] for seed in (3, 3, 40))
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(np.concatenate([first, other]), axis=0)) == 8
    assert envs.reset(seed=2**32 - 1)[0].shape == (4, 11)  # the largest that --seed takes
    envs.reset(seed=40)
    again, _ = envs.reset()
    assert not (envs.reset()[0] == again).any(1).any()
    assert not (again == other).any(1).any()


@pytest.mark.parametrize("num_envs", [1, 4])
def test_training(num_envs):
    """Runs, saves, evaluates and goes on; the same seed gives the same run."""
    settings = {**PENDULUM, "num_envs": num_envs, "num_minibatches": 2, "total_timesteps": 16 * num_envs * 20}
    runs = [ppo_continuous.train(ppo_continuous.Args(**settings)) for _ in range(2)]
    assert torch.equal(*(parameters(run) for run in runs))
    run_dir = str(runs[0]["run_dir"])
    results = ppo_continuous.evaluate(ppo_continuous.parse_args(["--evaluate", run_dir, "--eval-episodes", "3"]))
    assert [length for _, length in results] == [200] * 3
    assert len({episode_return for episode_return, _ in results}) == 3
    played = ["--evaluate", run_dir, "--eval-episodes", "3", "--vectorization", "sync"]  # where EnvPool is missing
    assert [length for _, length in ppo_continuous.evaluate(ppo_continuous.parse_args(played))] == [200] * 3
    more = ["--resume", run_dir, "--total-timesteps", str(16 * num_envs * 25), "--vectorization", "sync"]
    assert ppo_continuous.train(ppo_continuous.parse_args(more))["global_step"] == 16 * num_envs * 25


def test_discrete_actions_too():
    args = {"num_envs": 8, "num_steps": 32, "update_epochs": 4, "learning_rate": 2e-3, "total_timesteps": 30_000}
    result = ppo.train(ppo.Args(env_id="CartPole-v1", vectorization="envpool", **args))
    assert np.mean(result["episodes"], axis=0)[0] > 60


def test_observations_in_a_dict():
    """dm_control's, of which EnvPool has its own version."""
    settings = {"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "total_timesteps": 32, "vectorization": "envpool"}
    result = ppo_continuous.train(ppo_continuous.Args(env_id="HopperHop-v1", **settings))
    assert result["agent"].actor[0].weight.shape == (64, 15)


def test_without_envpool(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for script in (ppo, ppo_continuous):
        with pytest.raises(SystemExit) as stopped:
            script.train(script.Args(vectorization="envpool"))
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "--vectorization envpool needs EnvPool: pip install envpool" in error
    assert list(tmp_path.iterdir()) == []


def test_it_is_imported_where_it_is_asked_for(tmp_path):
    """Without a word about itself; and everything else works where it is not installed."""
    command = [sys.executable, ROOT / "ppo_continuous.py", "--env-id", "Pendulum-v1", "--total-timesteps", "2048"]
    done = subprocess.run([*command, "--vectorization", "envpool"], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    code = (
        "import sys; sys.modules['envpool'] = None; import ppo_continuous as p; p.train(p.Args(env_id='Pendulum-v1', "
    )
    code += "total_timesteps=2048))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
