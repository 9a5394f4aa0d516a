"""What chance decides in each script, actions, episodes, orders: over steps, environments, sessions and processes."""

import itertools
import shutil
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, MultiBinary

import ppo
import ppo_atari
import ppo_continuous
import worlds


class Patterns(worlds.World):
    """Goes on for ever and always looks the same. Actions have 40 bits: two are hardly ever the same by chance."""

    action_space, length = MultiBinary(40), None
    told: ClassVar = []  # all actions, of all environments
    seeds: ClassVar = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return super().reset(seed=seed)

    def reward(self, action):
        self.told.append(tuple(action.tolist()))
        return 0.0


class PatternsContinuous(Patterns):
    action_space = Box(-np.inf, np.inf, (3,))


class PatternsPixels(Patterns):
    observation_space = Box(0, 255, (1, 84, 84), np.uint8)

    def observe(self):
        return np.zeros((1, 84, 84), np.uint8)


WORLDS = {ppo: Patterns, ppo_continuous: PatternsContinuous, ppo_atari: PatternsPixels}
for world in WORLDS.values():
    gym.register(world.__name__, world)
BATCH = 4 * 8


@pytest.fixture(params=WORLDS, ids=lambda script: script.__name__)
def script(request, monkeypatch):
    monkeypatch.setattr(Patterns, "told", [])
    monkeypatch.setattr(Patterns, "seeds", [])
    return request.param


@pytest.fixture
def run(script, monkeypatch):
    """Trains, as one of several processes if told so, without learning: actions, environments' seeds, epochs' orders.

    An order is that in which samples are learned from, by their place in the rollout: step * 4 + environment.
    """
    parts, compute_gradient = [], script.compute_gradient

    def record(agent, params, batch, *args):
        parts.append([tuple(x) for x in batch["actions"].tolist()])
        return compute_gradient(agent, params, batch, *args)

    monkeypatch.setattr(script, "compute_gradient", record)

    def train(rank=0, **changes):
        for seen in (Patterns.told, Patterns.seeds, parts):
            seen.clear()
        settings = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2, "learning_rate": 0.0}
        settings |= {"env_id": f"test_chance:{WORLDS[script].__name__}", "total_timesteps": 2 * BATCH}
        monkeypatch.setattr(script, "RANK", rank)
        result = script.train(script.Args(**(settings if "resume" not in changes else {}) | changes))
        told, orders = [*Patterns.told], []
        for i in range(0, len(parts), 2):
            rollout = told[i // 4 * BATCH :][:BATCH]
            orders.append(tuple(rollout.index(action) for action in parts[i] + parts[i + 1]))
        return told, [*Patterns.seeds], orders, result

    return train


def test_nothing_happens_twice(run):
    """With three seeds, and when the first run is resumed after one iteration or two, in processes 0 and 1.

    But a resumed run draws what it would have drawn, had it never stopped; in environments with seeds of their own.
    """
    sessions = [run(seed=seed) for seed in (1, 2, 3)]
    for steps in (BATCH, 2 * BATCH):
        run_dir = run(total_timesteps=steps)[-1]["run_dir"]
        for rank in range(2):
            copy = shutil.copytree(run_dir, Path(f"copy-{steps}-{rank}"))
            sessions.append(run(rank, resume=copy, total_timesteps=steps + BATCH))
    sessions.append(run(1, total_timesteps=BATCH))
    resumed = sessions.pop(3)
    assert resumed[0] == sessions[0][0][BATCH:] and resumed[2] == sessions[0][2][2:]
    assert not {*resumed[1]} & {*sessions[0][1]}
    told, seeds, orders = ([*itertools.chain(*part)] for part in [*zip(*sessions, strict=True)][:3])
    assert len(told) == 10 * BATCH and len(seeds) == 7 * 4 and len(orders) == 10 * 2
    for things in (told, seeds + resumed[1], orders):
        assert len({*things}) == len(things)
    orders = np.array(orders)  # each sample once, those of one step or environment hardly ever one after another
    assert (np.sort(orders) == np.arange(BATCH)).all()
    following = orders[:, 1:], orders[:, :-1]
    assert 0.05 < np.equal(*(x // 4 for x in following)).mean() < 0.15  # by chance, 3 of 31
    assert 0.17 < np.equal(*(x % 4 for x in following)).mean() < 0.29  # by chance, 7 of 31


def test_evaluation_explores(script, run):
    """At each step and in each episode, otherwise than training and with another seed; the same with the same."""
    trained, _, _, result = run()
    played = []
    for seed in (1, 1, 2):
        Patterns.told.clear(), Patterns.seeds.clear()
        args = script.Args(env_id=f"test_chance:{WORLDS[script].__name__}", seed=seed)
        assert script.evaluate(result["agent"], args, 3, max_length=6) == [(0.0, 6)] * 3
        assert Patterns.seeds == [seed, None, None]
        played.append([*Patterns.told])
    assert played[0] == played[1]
    assert len({*trained, *played[0], *played[2]}) == len(trained) + 2 * 18
