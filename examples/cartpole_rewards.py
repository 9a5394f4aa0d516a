"""Reward shaping in a few lines: CartPole, rewarded for something else than staying up.

    python ppo.py --env-id examples.cartpole_rewards:CartPoleCentred-v0
    python ppo.py --env-id examples.cartpole_rewards:CartPoleSpinning-v0

The observation is (cart position, cart velocity, pole angle, pole angular velocity). Copy a wrapper, change the reward,
register it under a name of your own, and train.
"""

import math

import gymnasium as gym


class Centred(gym.Wrapper):
    """1 a step in the middle of the track, half of it a quarter of a metre away."""

    def step(self, action):
        obs, _, terminated, truncated, info = self.env.step(action)
        return obs, math.exp(-3 * abs(float(obs[0]))), terminated, truncated, info


class Spinning(gym.Wrapper):
    """Up to 1 a step for a fast-turning pole, which may hang down: only leaving the track ends the episode."""

    def __init__(self, env):
        super().__init__(env)
        self.unwrapped.theta_threshold_radians = float("inf")

    def step(self, action):
        obs, _, terminated, truncated, info = self.env.step(action)
        return obs, min(abs(float(obs[3])) / 10, 1), terminated, truncated, info


def make_centred(**kwargs):
    return Centred(gym.make("CartPole-v1", **kwargs))


def make_spinning(**kwargs):
    return Spinning(gym.make("CartPole-v1", **kwargs))


gym.register("CartPoleCentred-v0", make_centred)
gym.register("CartPoleSpinning-v0", make_spinning)
