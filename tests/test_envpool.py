"""`--vectorization envpool`: EnvPool's environments are the same tasks as gymnasium's, with its interface."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

import ppo_continuous as ppo
from conftest import ROOT
from test_train import parameters

PENDULUM = {"env_id": "Pendulum-v1", "num_steps": 16, "num_minibatches": 4, "vectorization": "envpool"}


def pool_of(env_id, num_envs=1, seed=0):
    return ppo.make_envs(ppo.Args(env_id=env_id, seed=seed, vectorization="envpool"), num_envs)


def place(env, obs):
    """Put gymnasium's environment into the state that a first observation shows, at any place of the track."""
    if env.spec.id == "Pendulum-v1":
        env.unwrapped.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]], np.float64)
    elif env.spec.id == "MountainCarContinuous-v0":
        env.unwrapped.state = np.array(obs, np.float64)
    else:
        model = env.unwrapped.model
        state = np.concatenate([np.zeros(model.nq + model.nv - len(obs)), obs])
        env.unwrapped.set_state(state[: model.nq], state[model.nq :])


def test_seeds_of_a_run(monkeypatch):
    """Another process, part of a resumed run, or seed has other episodes; saved is the seed that was given."""
    made, original = [], ppo.make_envs
    monkeypatch.setattr(ppo, "make_envs", lambda args, *rest: made.append(args.seed) or original(args, *rest))
    run_dir = ppo.train(ppo.Args(**PENDULUM, total_timesteps=16))["run_dir"]
    ppo.train(ppo.Args(resume=str(run_dir), total_timesteps=32))
    monkeypatch.setattr(ppo, "RANK", 1)
    ppo.train(ppo.Args(**PENDULUM, total_timesteps=16))
    ppo.train(ppo.Args(**PENDULUM, total_timesteps=16, seed=2))
    assert len({*made}) == 4 and ppo.load_checkpoint(run_dir)["args"].seed == 1


# environment: steps for which chaos leaves the two within the tolerance, and that tolerance
TASKS = {
    "HalfCheetah-v5": (30, 1e-6),
    "Hopper-v5": (1000, 1e-6),
    "Walker2d-v5": (1000, 1e-6),
    "InvertedPendulum-v5": (1000, 1e-6),
    "Swimmer-v5": (200, 1e-6),
    "Pendulum-v1": (20, 1e-2),
    "MountainCarContinuous-v0": (200, 1e-4),
}


@pytest.mark.parametrize("env_id", TASKS)
def test_step_by_step(env_id):
    """From the same state, under the same actions: the same observations, rewards and ends, in ten episodes."""
    limit, tolerance = TASKS[env_id]
    env, rng = gym.make(env_id), np.random.default_rng(0)
    envs = pool_of(env_id)
    assert envs.single_action_space.shape == env.action_space.shape
    assert envs.single_observation_space.shape == env.observation_space.shape
    np.testing.assert_array_equal(envs.single_action_space.low, env.action_space.low)
    np.testing.assert_array_equal(envs.single_action_space.high, env.action_space.high)
    lengths = []
    for _ in range(10):
        obs, _ = envs.reset()
        env.reset(seed=0)
        place(env, obs[0])
        for step in range(limit):
            action = rng.uniform(env.action_space.low, env.action_space.high).astype(env.action_space.dtype)
            obs, reward, terminated, truncated, _ = envs.step(action[None])
            expected = env.step(action)
            np.testing.assert_allclose(obs[0], expected[0], atol=tolerance, rtol=tolerance, err_msg=f"step {step}")
            np.testing.assert_allclose(reward[0], expected[1], atol=tolerance, rtol=tolerance, err_msg=f"step {step}")
            assert (bool(terminated[0]), bool(truncated[0])) == expected[2:4]
            if terminated or truncated:
                break
        lengths.append(step + 1)
    assert max(lengths) >= min(limit, 5)


@pytest.mark.parametrize(("env_id", "limit"), [("HalfCheetah-v5", 1000), ("Pendulum-v1", 200), ("Swimmer-v5", 1000)])
def test_time_limits_and_resets(env_id, limit):
    """The limit truncates and does not terminate; the next step returns a first observation, and reward 0."""
    assert gym.spec(env_id).max_episode_steps == limit
    envs = pool_of(env_id, num_envs=3)
    assert envs.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP
    start, _ = envs.reset(seed=0)
    nothing = np.zeros((3, *envs.single_action_space.shape), np.float32)
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
    """They are taken when environments are made: the same one, the same episodes; another one, others."""
    first, second, other = (pool_of("Hopper-v5", 4, seed).reset()[0] for seed in (3, 3, 40))
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(np.concatenate([first, other]), axis=0)) == 8
    envs = pool_of("Hopper-v5", 4, 2**32 - 1)
    assert not (envs.reset()[0] == envs.reset()[0]).any(1).any()  # a reset starts other episodes


@pytest.mark.parametrize("env_id", ["CartpoleBalance-v1", "HalfCheetah-v5"])
def test_observations_of_any_form(env_id):
    """A dict of arrays is flattened."""
    envs = ppo.make_envs(ppo.Args(env_id=env_id, vectorization="envpool"), 2)
    shape = (2, *envs.single_observation_space.shape)
    assert len(shape) == 2 and envs.reset(seed=3)[0].shape == shape
    assert envs.step(np.zeros((2, *envs.single_action_space.shape)))[0].shape == shape


@pytest.mark.parametrize("num_envs", [1, 4])
def test_training(num_envs):
    """Runs, saves, evaluates and goes on, also where EnvPool is missing; the same seed gives the same run."""
    settings = {**PENDULUM, "num_envs": num_envs, "num_minibatches": 2, "total_timesteps": 16 * num_envs * 20}
    runs = [ppo.train(ppo.Args(**settings)) for _ in range(2)]
    assert torch.equal(*(parameters(run) for run in runs))
    assert not torch.equal(parameters(runs[0]), parameters(ppo.train(ppo.Args(**settings, seed=2))))
    for vectorization in ("envpool", "sync"):
        args = ppo.Args(env_id="Pendulum-v1", vectorization=vectorization)
        results = ppo.evaluate(ppo.load(runs[0]["run_dir"], args)[0], args, 3)
        assert [length for _, length in results] == [200] * 3
        assert len({episode_return for episode_return, _ in results}) == 3
    more = {"total_timesteps": 16 * num_envs * 25, "vectorization": "sync"}
    assert ppo.train(ppo.Args(resume=runs[0]["run_dir"], **more))["global_step"] == 16 * num_envs * 25


def test_it_is_imported_where_it_is_asked_for(tmp_path):
    """Without a word about itself; and everything else works where it is not installed."""
    short = ("--num-steps", "64", "--total-timesteps", "64")
    command = [sys.executable, ROOT / "ppo_continuous.py", "--env-id", "Pendulum-v1", *short]
    done = subprocess.run([*command, "--vectorization", "envpool"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "WARN" not in done.stderr, done.stderr
    code = (
        "import sys; sys.modules['envpool'] = None; import ppo_continuous as p; p.train(p.Args(env_id='Pendulum-v1', "
    )
    code += "num_steps=64, total_timesteps=64)); p.train(p.Args(env_id='Pendulum-v1', vectorization='envpool'))"
    command, environment = [sys.executable, "-c", code], {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --env-id Pendulum-v1: import of envpool halted")
    assert "Done: 64 steps" in done.stdout
