"""The peer of `speed.py`: Stable-Baselines3's PPO on the CPU, by default with the hyperparameters of `ppo.py`.

    python benchmarks/sb3.py --total-timesteps 500000 [--threads 1]
    python benchmarks/sb3.py --env-id Hopper-v5 --num-envs 1 --num-steps 2048 --num-minibatches 32 --update-epochs 10 \
        --learning-rate 3e-4 --ent-coef 0 --normalize
    python benchmarks/sb3.py --env-id BreakoutNoFrameskip-v4 --num-envs 8 --clip-coef 0.1 --atari

The arguments are those of our scripts. Prints one JSON line: steps, and the steps per second from the first third of
the run on (steady state).
"""

import argparse
import json
import time

import ale_py  # noqa: F401 (registers its games)
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize


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
parser.add_argument("--num-envs", type=int, default=4)
parser.add_argument("--num-steps", type=int, default=128)
parser.add_argument("--num-minibatches", type=int, default=4)
parser.add_argument("--update-epochs", type=int, default=4)
parser.add_argument("--learning-rate", type=float, default=2.5e-4)
parser.add_argument("--ent-coef", type=float, default=0.01)
parser.add_argument("--clip-coef", type=float, default=0.2)
parser.add_argument("--normalize", action="store_true", help="observations and rewards")
parser.add_argument("--atari", action="store_true", help="its wrappers, four frames, and its CNN")
parser.add_argument("--threads", type=int, help="PyTorch's threads; its own choice if not given")
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)
if args.atari:
    envs = VecFrameStack(make_atari_env(args.env_id, n_envs=args.num_envs, seed=1), n_stack=4)
else:
    envs = make_vec_env(args.env_id, n_envs=args.num_envs, seed=1)
model = PPO(
    "CnnPolicy" if args.atari else "MlpPolicy",  # the Nature CNN; two networks of 64 x 64 tanh units: as in our scripts
    VecNormalize(envs, gamma=0.99) if args.normalize else envs,
    n_steps=args.num_steps,
    batch_size=args.num_envs * args.num_steps // args.num_minibatches,
    n_epochs=args.update_epochs,
    learning_rate=lambda remaining: args.learning_rate * remaining,
    gamma=0.99,
    gae_lambda=0.95,
    clip_range=args.clip_coef,
    clip_range_vf=args.clip_coef,
    ent_coef=args.ent_coef,
    vf_coef=0.5,
    max_grad_norm=0.5,
    seed=1,
    device="cpu",
)
clock = Clock()
model.learn(args.total_timesteps, callback=clock)
(first_step, first_time), (last_step, last_time) = clock.times[len(clock.times) // 3], clock.times[-1]
print(json.dumps({"steps": last_step, "steady_sps": (last_step - first_step) / (last_time - first_time)}))
