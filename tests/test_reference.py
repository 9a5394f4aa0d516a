"""Each script against the slow and obvious implementation in `reference.py`: the same parameters, but for rounding."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import ppo
import ppo_atari
import ppo_continuous
from reference import Categoricals, Dense, Gaussians, Learner, Step, nature_cnn
from test_train import scalars

SMALL = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2, "total_timesteps": 192}


@pytest.fixture
def transcript(monkeypatch):
    """Runs a script, and keeps what happened: its arguments, steps, orders of samples, parameters before and after."""

    def run(script, **changes):
        args = script.Args(**SMALL | {"learning_rate": 1e-3, "clip_coef": 0.02} | changes)
        seen = {"obs": [], "info": [], "steps": [], "actions": [], "orders": [], "params": []}

        class Watched(gym.vector.VectorWrapper):
            def reset(self, **kwargs):
                obs, info = super().reset(**kwargs)
                seen["obs"].append(obs.copy())
                seen["info"].append(info)
                return obs, info

            def step(self, actions):
                seen["actions"].append(actions.copy())
                obs, reward, terminated, truncated, info = super().step(actions)
                seen["obs"].append(obs.copy())
                seen["info"].append(info)
                seen["steps"].append((reward.copy(), terminated.copy(), truncated.copy()))
                return obs, reward, terminated, truncated, info

        def listen(module, name, key, keep):
            function = getattr(module, name)

            def call(*args):
                result = function(*args)
                seen[key].append(keep(result, *args))
                return result

            monkeypatch.setattr(module, name, call)

        make_envs = script.make_envs
        monkeypatch.setattr(script, "make_envs", lambda *args, **kwargs: Watched(make_envs(*args, **kwargs)))
        listen(torch, "randperm", "orders", lambda order, *_: order.tolist())
        listen(script, "compute_gradient", "params", lambda _, agent, *others: parameters(agent))
        result = script.train(args)
        steps = []
        for t, (ends, actions) in enumerate(zip(seen["steps"], seen["actions"], strict=True)):
            mask, lives, forbidden = seen["info"][t].get("action_mask"), seen["info"][t + 1].get("lives"), None
            if mask is not None:  # of components with 2 and 3 choices
                forbidden = np.stack([np.insert(mask[:, :2], 2, 0, axis=1), mask[:, 2:]], 1) == 0
            elif script is not ppo_continuous:
                forbidden = np.zeros((4, 1, 3), bool)
            steps.append(Step(seen["obs"][t], forbidden, actions, *ends, lives, seen["obs"][t + 1]))
        return args, steps, iter(seen["orders"]), seen["params"][0], result

    return run


def parameters(agent):
    return {name: x.detach().numpy().copy() for name, x in agent.named_parameters()}


def replay(learner, steps, orders, start, result):
    """Learn from the transcript, and compare parameters and what was logged."""
    T, N, logged, clipped = learner.args.num_steps, learner.args.num_envs, scalars(result), 0
    num_iterations = len(steps) // T
    for i in range(num_iterations):
        diagnostics = learner.learn(steps[i * T : i * T + T], orders, num_iterations)
        for name in diagnostics[0]:
            mean = np.mean([diagnosis[name] for diagnosis in diagnostics])
            assert logged[f"losses/{name}"][(i + 1) * T * N] == pytest.approx(mean, rel=2e-3, abs=1e-5), name
            clipped += mean if name == "clipfrac" else 0
    assert clipped > 0
    last_steps = steps[T - 1 : -1 : T]  # of rollouts: some episodes end there, in either way
    assert any(step.terminated.any() for step in last_steps) and any(step.truncated.any() for step in last_steps)
    assert next(orders, None) is None  # as many epochs
    for name, x in parameters(result["agent"]).items():
        assert not np.array_equal(x, start[name]), name
        np.testing.assert_allclose(x, learner.params[name], atol=2e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_obs": True, "norm_reward": True, "anneal_clip": True, "anneal_ent": True, "ent_coef": 0.1},
        {"clip_vloss": False, "norm_adv": False, "anneal_lr": False, "ent_coef": 0.1},
        {"target_kl": 1e-4, "update_epochs": 6, "max_grad_norm": 5.0},
    ],
)
def test_discrete(changes, transcript):
    args, *run = transcript(ppo, env_id="worlds:Anything", **changes)
    replay(Learner(run[2], args, Categoricals()), *run)


@pytest.mark.parametrize("changes", [{}, {"norm_obs": False, "norm_reward": False, "ent_coef": 0.01}])
def test_continuous(changes, transcript):
    args, *run = transcript(ppo_continuous, env_id="worlds:AnythingContinuous", **changes)
    replay(Learner(run[2], args, Gaussians()), *run)


@pytest.mark.parametrize("changes", [{}, {"norm_reward": True}, {"norm_obs": True}])
def test_atari(changes, transcript):
    small = {"num_steps": 4, "total_timesteps": 64, "learning_rate": 2.5e-4}
    args, *run = transcript(ppo_atari, env_id="worlds:Arcade", bf16=False, **small, **changes)
    networks = {"trunk": nature_cnn(), "actor": [Dense("actor")], "critic": [Dense("critic")]}
    replay(Learner(run[2], args, Categoricals(), pixels=True, **networks), *run)
