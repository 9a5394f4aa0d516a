"""Tasks that need memory, as what decides can't be seen when it matters.

    python ppo_lstm.py --env-id examples.memory:CartPoleHidden-v0     # from the repository's folder
    python ppo_lstm.py --env-id examples.memory:Corridor30-v0

CartPoleHidden is CartPole-v1 without its velocities: the policy sees where cart and pole are, not where they go.

Corridor has a cue, -1 or 1, that is seen at the first step only. At the end of the corridor, `length` steps later,
there is a door on each side: reward 1 for the one that the cue told (action 1 for cue 1), -1 for the other. Without
memory, no policy has a mean return above 0. Registered with lengths of 3, 10, 30 and 100; others in your own file:

    gymnasium.register("Corridor50-v0", "examples.memory:Corridor", kwargs={"length": 50})
"""

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import TransformObservation
from gymnasium.wrappers.vector import TransformObservation as TransformObservations

PLACES = [0, 2]  # of cart and pole, in CartPole's observations; between them are the velocities


def cart_pole_hidden(**kwargs) -> gym.Env:
    env = CartPoleEnv(**kwargs)
    bounds = Box(*(bound[PLACES] for bound in (env.observation_space.low, env.observation_space.high)))
    return TransformObservation(env, lambda obs: obs[PLACES], bounds)


def cart_poles_hidden(**kwargs) -> gym.vector.VectorEnv:
    """Many at once, in one step of NumPy."""
    envs, single = CartPoleVectorEnv(**kwargs), cart_pole_hidden().observation_space
    bounds = gym.vector.utils.batch_space(single, envs.num_envs)
    return TransformObservations(envs, lambda obs: obs[:, PLACES], bounds, single)


class Corridor(gym.Env):
    """Observes the cue (0 but for the first step), and whether this is the end."""

    observation_space = Box(-1, 1, (2,))
    action_space = Discrete(2)

    def __init__(self, length: int = 10):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.cue = 0, int(self.np_random.integers(2))
        return np.array([2 * self.cue - 1, 0], np.float32), {}

    def step(self, action):
        opens = self.place == self.length  # the walk goes on by itself
        reward = (1.0 if action == self.cue else -1.0) if opens else 0.0
        self.place += 1
        return np.array([0, self.place == self.length], np.float32), reward, opens, False, {}


gym.register("CartPoleHidden-v0", cart_pole_hidden, vector_entry_point=cart_poles_hidden, max_episode_steps=500)
for length in (3, 10, 30, 100):
    gym.register(f"Corridor{length}-v0", Corridor, kwargs={"length": length})
