"""Masks that come and go: some environments send one at some steps, and each holds for one action."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import ppo
import ppo_atari
import worlds

SIZES = {"num_envs": 4, "num_steps": 5, "num_minibatches": 1, "update_epochs": 1, "total_timesteps": 4 * 5 * 9}


class Sometimes(worlds.World):
    """Observes (time, environment), and fails when a forbidden action is taken.

    Environment 0 sends a mask at every time, 1 never, 2 at even ones, 3 by chance; and at each fourth one, nobody does.
    """

    observation_space, action_space = Box(-np.inf, np.inf, (2,)), Discrete(4)
    length = 7
    created = 0
    allowed: ClassVar = {}  # what holds, by (time, environment)
    taken: ClassVar = []  # (time, environment, action), of steps that are none of resets alone

    def __init__(self):
        self.number, self.time = Sometimes.created, -1
        Sometimes.created += 1

    def observe(self):
        self.time += 1
        return np.array([self.time, self.number], np.float32)

    def info(self):
        rng = np.random.default_rng([self.time, self.number])
        mask, sends = rng.permutation([1, rng.integers(2), 0, 0]), rng.random() < 0.5
        sends = [True, False, self.time % 2 == 0, sends][self.number] and self.time % 4 != 3
        limits = sends and self.t < self.length  # after an end, nothing is forbidden
        self.allowed[self.time, self.number] = mask.astype(bool).tolist() if limits else [True] * 4
        return {"action_mask": mask.astype(np.int8)} if sends else {}

    def reward(self, action):
        assert self.allowed[self.time, self.number][action], f"action {action} is forbidden at {self.time}"
        self.taken.append((self.time, self.number, int(action)))
        return 1.0


class SometimesPixels(Sometimes):
    observation_space = Box(0, 255, (1, 84, 84), np.uint8)

    def observe(self):
        return np.full((1, 84, 84), [*map(int, super().observe())] * 42, np.uint8)


WORLDS = {ppo: Sometimes, ppo_atari: SometimesPixels}
for world in WORLDS.values():
    gym.register(world.__name__, world)


@pytest.fixture(params=WORLDS, ids=lambda script: script.__name__)
def script(request, monkeypatch):
    for name, value in {"created": 0, "allowed": {}, "taken": []}.items():
        monkeypatch.setattr(Sometimes, name, value)
    return request.param


def args(script, **changes):
    return script.Args(env_id=f"test_masks:{WORLDS[script].__name__}", **SIZES | changes)


def free_after_limited(taken):
    """Actions that were free, and whether the last mask before them would have allowed them."""
    found = []
    for time, number, action in taken:
        before = [Sometimes.allowed[t, number] for t in range(time + 1)]
        limits = [mask for mask in before if not all(mask)]
        if all(before[-1]) and limits:
            found.append(limits[-1][action])
    return found


def test_training(script, monkeypatch):
    """Each decision has the mask of its time and environment, also at borders of rollouts; and so has learning."""
    batches, compute_gradient = [], script.compute_gradient

    def record(agent, params, batch, *others):
        batches.append({name: x.clone() for name, x in batch.items()})
        return compute_gradient(agent, params, batch, *others)

    monkeypatch.setattr(script, "compute_gradient", record)
    result = script.train(args(script, learning_rate=0.0))
    seen, limited = set(), set()
    for batch in batches:
        for obs, mask, action in zip(batch["obs"], batch["masks"], batch["actions"], strict=True):
            place = tuple(obs.flatten()[:2].int().tolist())
            assert mask.tolist() == [Sometimes.allowed[place]], place
            assert mask[0, action.item()]
            seen.add(place)
            limited |= {place} if not mask.all() else set()
        with torch.no_grad():
            torch.testing.assert_close(result["agent"](batch)[0], batch["logprobs"], atol=0.02, rtol=0.02)
    assert seen == {(time, number) for time in range(5 * 9) for number in range(4)}
    first = [time for time, number in limited if number in (0, 2) and time % 5 == 0]  # of rollouts
    last = [time for time, number in limited if number in (0, 2) and time % 5 == 4]
    assert 0 in first and len(first) > 5 and len(last) > 5 and 35 < len(limited) < 90
    kept = free_after_limited(Sometimes.taken)
    assert len(kept) > 30 and 0.2 < np.mean(kept) < 0.6  # masks leave a choice or two of four


@pytest.mark.parametrize("number", [0, 2, 3])
def test_evaluation(script, number):
    """The masks of the step hold, and only they."""
    agent = script.train(args(script, learning_rate=0.0, total_timesteps=20))["agent"]
    Sometimes.created = number
    Sometimes.allowed.clear(), Sometimes.taken.clear()
    script.evaluate(agent, args(script), 30)
    limited = [place for place, mask in Sometimes.allowed.items() if not all(mask)]
    kept = free_after_limited(Sometimes.taken)
    assert len(Sometimes.taken) == 7 * 30 and len(limited) > 50
    assert len(kept) > 20 and 0.2 < np.mean(kept) < 0.6
