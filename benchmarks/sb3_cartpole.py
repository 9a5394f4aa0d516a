"""The peer of `speed.py`: Stable-Baselines3's PPO with the hyperparameters of `ppo.py`'s defaults, on the CPU.

    python benchmarks/sb3_cartpole.py --total-timesteps 500000 [--threads 1]

Prints one JSON line: steps, and the steps per second from the first third of the run on (steady state).
"""

import argparse
import json
import time

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


class Clock(BaseCallback):
    """Notes the time at the start of every rollout."""

    def __init__(self):
        super().__init__()
        self.times = []

    def _on_rollout_start(self) -> None:
        self.times.append((self.num_timesteps, time.time()))

    def _on_step(self) -> bool:
        return True


parser = argparse.ArgumentParser()
parser.add_argument("--env-id", default="CartPole-v1")
parser.add_argument("--total-timesteps", type=int, default=500_000)
parser.add_argument("--threads", type=int, help="PyTorch's threads; its own choice if not given")
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)
model = PPO(
    "MlpPolicy",  # two separate networks of 64 x 64 tanh units, as in ppo.py
    make_vec_env(args.env_id, n_envs=4, seed=1),
    n_steps=128,
    batch_size=128,
    n_epochs=4,
    learning_rate=lambda remaining: 2.5e-4 * remaining,
    gamma=0.99,
    gae_lambda=0.95,
    clip_range=0.2,
    clip_range_vf=0.2,
    ent_coef=0.01,
    vf_coef=0.5,
    max_grad_norm=0.5,
    seed=1,
    device="cpu",
)
clock = Clock()
model.learn(args.total_timesteps, callback=clock)
(first_step, first_time), (last_step, last_time) = clock.times[len(clock.times) // 3], clock.times[-1]
print(json.dumps({"steps": last_step, "steady_sps": (last_step - first_step) / (last_time - first_time)}))
