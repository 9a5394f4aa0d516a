"""Environments that show a wrong PPO: probes, each learnable only if one thing works, and some that check their input.

Used as `--env-id worlds:NAME`. The probes themselves are in examples/probes.py, where they have a command line too.
"""

import itertools
import math
import multiprocessing
import os
import signal
from typing import ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from examples import probes
from examples.probes import *  # noqa: F403
from examples.probes import Continuous, Probe1, Probe2, Probe3, Probe4, Probe5, Probe6, Probe7, World


class Counting(World):
    """Observes (environment, episode, step); rewards 100 * episode + step; every second episode is cut off.

    Episode k has 2 + (k + environment) % 4 steps, so that ends fall on all places of a rollout.
    """

    observation_space = Box(-np.inf, np.inf, (3,))
    action_space = Discrete(2)
    created = 0

    def __init__(self):
        self.number, self.episode = Counting.created, -1
        Counting.created += 1

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        self.length, self.truncates = 2 + (self.episode + self.number) % 4, self.episode % 2 == 1
        return super().reset(seed=seed)

    def observe(self):
        return np.array([self.number, self.episode, self.t], np.float32)

    def reward(self, action):
        return 100.0 * self.episode + self.t


class Masked(World):
    """Each step allows some of 4 actions, and fails when another is taken; action 2 pays where it is allowed."""

    observation_space = MultiBinary(4)
    action_space = Discrete(4)
    length = 3

    def observe(self):
        allowed = self.np_random.integers(0, 2, 4).astype(np.int8)
        allowed[self.np_random.integers(4)] = 1
        return allowed if self.t < self.length else np.zeros(4, np.int8)  # nothing may be done after the end

    def info(self):
        return {"action_mask": self.obs}

    def reward(self, action):
        assert self.obs[action] == 1, f"action {action} is forbidden by {self.obs}"
        return float(action == 2)


class MaskedPairs(World):
    """Two components, 2 and 3 choices, with the mask of both in one array, sent at odd steps only."""

    action_space = MultiDiscrete([2, 3])
    length = 4

    def info(self):
        return {"action_mask": np.array([0, 1, 1, 0, 1], np.int8)} if self.t % 2 else {}

    def reward(self, action):
        assert self.t % 2 == 0 or (action[0] == 1 and action[1] != 1), f"action {action} is forbidden"
        return 0.0


class Shifted(World):
    """Actions 5 and 6; 6 pays."""

    action_space = Discrete(2, start=5)

    def reward(self, action):
        return float(action == 6)


class Pairs(World):
    """MultiDiscrete with components of 2 and 3 choices, counted from 1 and 10: pays for (2, 11)."""

    action_space = MultiDiscrete([2, 3], start=[1, 10])

    def reward(self, action):
        return float(action[0] == 2) + float(action[1] == 11)


class Told(World):
    """Keeps the action that it was told; a test gives it a space."""

    def reward(self, action):
        self.told = action
        return 0.0


class Switches(World):
    """MultiBinary: pays for the pattern 1, 0, 1."""

    action_space = MultiBinary(3)

    def reward(self, action):
        return float((action == [1, 0, 1]).mean())


class Grid(World):
    """MultiBinary and uint8 observations with two axes each."""

    observation_space = Box(0, 255, (2, 3), np.uint8)
    action_space = MultiBinary((2, 2))

    def observe(self):
        return np.arange(6, dtype=np.uint8).reshape(2, 3)


class Nested(World):
    """Dict, Tuple, Discrete (from 3 on), MultiBinary and an image in one observation: 1 + 3 + 2 + 4 numbers."""

    observation_space = Dict(
        a=Box(-1, 1, (1,)), b=Tuple((Discrete(3, start=3), MultiBinary(2))), c=Box(0, 255, (2, 2), np.uint8)
    )
    action_space = Discrete(2)

    def observe(self):
        return {
            "a": np.array([0.5], np.float32),
            "b": (4, np.array([1, 0], np.int8)),
            "c": np.full((2, 2), 7, np.uint8),
        }


class Exploding(World):
    """Pays infinitely at its seventh step."""

    length = 10

    def reward(self, action):
        return float("inf") if self.t == 6 else 0.0


class NanReward(Exploding):
    """Pays what is not a number at its seventh step."""

    def reward(self, action):
        return float("nan") if self.t == 6 else 0.0


class NanObservation(World):
    """Observes what is not a number after its seventh step."""

    length = 10

    def observe(self):
        return np.full(1, float("nan") if self.t == 7 else 0.0, np.float32)


class InfiniteObservation(NanObservation):
    """Sees no obstacle after its ninth step."""

    length = 20

    def observe(self):
        return np.full(1, math.inf if self.t == 9 else 0.0, np.float32)


class Raising(World):
    """Breaks at its seventh step."""

    length = 10

    def reward(self, action):
        if self.t == 6:
            raise ValueError("the seventh step is broken")
        return 0.0


class Dying(World):
    """One of two neighbours ends its process at the seventh step, as a crash does: that with an odd seed."""

    length = 10

    def reset(self, *, seed=None, options=None):
        self.dies = seed % 2 if seed is not None else False
        return super().reset(seed=seed, options=options)

    def reward(self, action):
        if self.t == 6 and self.dies:
            os._exit(3)
        return 0.0


class RaisingPercent(World):
    """Says how much is broken, in a way that gymnasium can't pass on."""

    def reward(self, action):
        raise ValueError("100 % broken")


class Unmakeable(World):
    """The second of some."""

    def __init__(self):
        if multiprocessing.current_process().name.endswith("-1"):
            raise OSError("its port is taken")


class Asserting(World):
    """Misses a file."""

    def __init__(self):
        raise AssertionError("there is no arm.xml")


class Simulator(World):
    """Says how often it was closed, and that nothing is a number."""

    def observe(self):
        return np.full(1, np.nan, np.float32)

    def close(self):
        with open("closed", "a") as file:
            file.write("closed\n")


class Impatient(World):
    """Is asked to stop again and again while it takes a step that never ends."""

    heard = 0

    def reward(self, action):
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            Impatient.heard += 1


class RaisingAtReset(World):
    """Breaks at the start."""

    def observe(self):
        raise ValueError("no start")


class Images(World):
    """Pixels."""

    observation_space = Box(0, 255, (84, 84, 3), np.uint8)


class Pixel1(World):
    """Probe 1 in pixels: what the probe observes is the brightness of a square, from black (-1) to white (1)."""

    probe: ClassVar = Probe1
    observation_space = Box(0, 255, (84, 84, 1), np.uint8)

    def __init__(self):
        self.world = self.probe()
        self.action_space = self.world.action_space

    def reset(self, *, seed=None, options=None):
        obs, info = self.world.reset(seed=seed)
        return square(obs[0]), info

    def step(self, action):
        obs, *rest = self.world.step(action)
        return square(obs[0]), *rest


def square(x):
    """A frame (84, 84, 1)."""
    frame = np.full((84, 84, 1), 127, np.uint8)
    frame[20:64, 20:64] = round(127.5 + 127.5 * float(x))
    return frame


class Pixel2(Pixel1):
    probe = Probe2


class Pixel3(Pixel1):
    probe = Probe3


class Pixel4(Pixel1):
    probe = Probe4


class Pixel5(Pixel1):
    probe = Probe5


class Pixel6(Pixel1):
    probe = Probe6


class Pixel7(Pixel1):
    probe = Probe7


class Lives(World):
    """Games of 7 steps: lives are lost in steps 2 and 4, the last one at the end. Frames say which step it is."""

    observation_space = Box(0, 255, (3, 20, 30), np.uint8)
    action_space = Discrete(3)
    length = 7
    rewards: ClassVar = [7.0, -3.0, 0.5, 0.0, -0.25, 2.0, 100.0]

    def observe(self):
        return np.full((3, 20, 30), self.t, np.uint8)

    def info(self):
        return {"lives": np.int64(3 - (self.t >= 2) - (self.t >= 4) - (self.t >= 7))}

    def reward(self, action):
        return self.rewards[self.t]


class SomeLives(Lives):
    """Every second environment tells its lives in even steps, the others in odd ones."""

    numbers: ClassVar = itertools.count()

    def __init__(self):
        self.number = next(self.numbers)

    def info(self):
        return super().info() if (self.number + self.t) % 2 == 0 else {}


class ChannelsLast(Lives):
    observation_space = Box(0, 255, (12, 10, 4), np.uint8)

    def observe(self):
        return np.full((12, 10, 4), self.t, np.uint8)


class EndlessReward(Lives):
    rewards: ClassVar = [1.0, 1.0, math.inf, 1.0, 1.0, 1.0, 1.0]


class Board(World):
    """More kinds of pieces than squares in a row."""

    observation_space = Box(0, 1, (8, 8, 12), np.uint8)


class FloatPixels(World):
    """Frames from 0 to 1."""

    observation_space = Box(0, 1, (84, 84, 3))


class Sequences(World):
    """Observes any number of things."""

    observation_space = gym.spaces.Sequence(Box(-1, 1, (1,)))


class TupleActions(World):
    """Actions in a Tuple."""

    action_space = Tuple((Discrete(2), Discrete(3)))


class Endless(World):
    """Never ends; a grey picture."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 50}
    length = None

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        return np.full((32, 32, 3), 128, np.uint8)


class CountingContinuous(Counting):
    """With an action of two components, of which bounds leave only a little."""

    action_space = Box(np.array([-0.1, -np.inf], np.float32), np.array([0.1, 0.2], np.float32))


class Matrix(Continuous):
    """Actions (2, 3) as 64-bit numbers, each component with bounds of its own or none: pays for their sum."""

    action_space = Box(
        np.array([[-1, -np.inf, 0], [-np.inf, -0.5, 3]]),
        np.array([[1, np.inf, np.inf], [-2, 0.5, 4]]),
        dtype=np.float64,
    )

    def reward(self, action):
        assert action.shape == (2, 3) and action.dtype == np.float64
        return float(action.clip(-5, 5).sum())


class Scalar(Continuous):
    """An action without axes."""

    action_space = Box(-2, 2, ())

    def reward(self, action):
        assert np.shape(action) == ()
        return -float((action - 1) ** 2)


class WholeNumbers(World):
    """A Box of whole numbers."""

    action_space = Box(0, 5, (2,), np.int64)


class Control(Continuous):
    """Observations in a Dict of vectors, matrices and scalars, as dm_control's."""

    observation_space = Dict(
        position=Box(-np.inf, np.inf, (2,), np.float64),
        inertia=Box(-np.inf, np.inf, (2, 2), np.float64),
        height=Box(-np.inf, np.inf, (), np.float64),
    )

    def observe(self):
        inertia = np.array([[3.0, 4.0], [5.0, 6.0]])
        return {"position": np.array([1.0, 2.0]), "inertia": inertia, "height": np.array(7.0)}


class Anything(World):
    """Random observations, rewards, masks and lengths; ends of both kinds. Two components, of 2 and 3 choices."""

    observation_space = Box(-np.inf, np.inf, (3,))
    action_space = MultiDiscrete([2, 3])

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.length, self.truncates = self.np_random.integers(1, 7), self.np_random.random() < 0.5
        return super().reset()

    def observe(self):
        return self.np_random.normal(1, [0.1, 1, 3], 3).astype(np.float32)

    def info(self):
        mask = self.np_random.integers(0, 2, 5).astype(np.int8)
        mask[[self.np_random.integers(2), 2 + self.np_random.integers(3)]] = 1
        return {"action_mask": mask}

    def reward(self, action):
        return self.np_random.normal(1, 2)


class AnythingContinuous(Anything):
    """Actions, of which the bounds leave a part."""

    action_space = Box(np.array([-0.5, -np.inf], np.float32), np.array([0.5, 1], np.float32))

    def info(self):
        return {}


class Arcade(Anything):
    """Random frames, points and lives."""

    observation_space = Box(0, 255, (4, 84, 84), np.uint8)
    action_space = Discrete(3)

    def observe(self):
        self.lives = max(0, (self.lives if self.t else 5) - (self.np_random.random() < 0.3))
        return self.np_random.integers(0, 256, (4, 84, 84)).astype(np.uint8)

    def info(self):
        return {"lives": self.lives}

    def reward(self, action):
        return round(self.np_random.normal(0, 2))


class Fuzz(Anything):
    """Spaces of all kinds, which a test puts here."""

    def observe(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def info(self):
        return {}


def same_step(num_envs, **kwargs):
    """A vector environment that resets in the step that ends the episode."""
    return gym.vector.SyncVectorEnv([Probe1] * num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


class NoActionSpace(gym.vector.VectorEnv):
    """A vector environment without the space of all actions."""

    metadata: ClassVar = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}
    single_observation_space, single_action_space = World.observation_space, Discrete(2)

    def __init__(self, num_envs, **kwargs):
        self.num_envs = num_envs

    def reset(self, **kwargs):
        return np.zeros((self.num_envs, 1), np.float32), {}


for spec in gym.registry.values():  # gymnasium would take Probe1 for the latest version of Probe1-v0, with a warning
    spec.name = "" if spec.entry_point in probes.DISCRETE else spec.name
for world in {x for x in globals().values() if isinstance(x, type) and issubclass(x, World)}:
    gym.register(world.__name__, world)
gym.register("mine/Pong-v0", Lives)
gym.register("SameStep", vector_entry_point=same_step)
gym.register("NoActionSpace", vector_entry_point=NoActionSpace)
