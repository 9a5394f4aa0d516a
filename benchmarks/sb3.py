"""The peer of `speed.py` and `compare.py`: Stable-Baselines3's PPO on the CPU, by default as `ppo.py` is.

    python benchmarks/sb3.py --total-timesteps 500000 [--threads 1]
    python benchmarks/sb3.py --env-id Hopper-v5 --num-envs 1 --num-steps 2048 --num-minibatches 32 --update-epochs 10 \
        --learning-rate 3e-4 --ent-coef 0 --norm-obs --norm-reward
    python benchmarks/sb3.py --env-id BreakoutNoFrameskip-v4 --num-envs 8 --clip-coef 0.1 --atari
    python benchmarks/sb3.py --env-id examples.memory:CartPoleHidden-v0 --num-envs 16 --learning-rate 2.5e-3 --lstm \
        --norm-obs --norm-reward     # sb3-contrib's RecurrentPPO

The arguments are those of our scripts, and mean the same: SB3's value loss is not halved, so its coefficient is; its
learning rate falls as ours does, to the end of the last whole iteration. What stays different: with `--clip-vloss`, its
value loss is that of the clipped values, ours the larger one (SB3's own default is not to clip them). RecurrentPPO has
an LSTM each for policy and value (if they share one, it does not learn from values), as wide as ours and on the same
layer, with PyTorch's initial weights, where ours are orthogonal. `VecNormalize` brings its statistics up to date at
each step, and what is learned from was normalised then; ours do both once an iteration. SB3 resets within a step, where
ours take a step for it, which counts as one. SB3 steps single environments, one after the other; ours take gymnasium's
vector version where there is one (CartPole), or EnvPool with `--vectorization envpool`. With `--stop-return`, SB3 stops
in the middle of a rollout, ours after the update.

Prints one JSON line: steps, and the steps per second from the first third of the run on (steady state). With
`--log FOLDER`, curves are written there under our names, once an iteration.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize


class Clock(BaseCallback):
    """Notes the time at the start of every rollout, logs, and stops at a mean return of the last 100 episodes."""

    def __init__(self, folder: str | None, stop_return: float):
        super().__init__()
        self.times, self.finished, self.stop_return = [], [], stop_return
        self.writer = folder and importlib.import_module("torch.utils.tensorboard").SummaryWriter(folder)

    def _on_rollout_start(self) -> None:
        self.times.append((self.num_timesteps, time.time()))
        if self.writer and self.num_timesteps:
            self.writer.add_scalar(
                "charts/SPS", self.num_timesteps / (time.time() - self.times[0][1]), self.num_timesteps
            )
            if self.finished:
                self.writer.add_scalar("charts/episodic_return", np.mean(self.finished), self.num_timesteps)
        self.finished = []

    _on_training_end = _on_rollout_start

    def _on_step(self) -> bool:
        self.finished += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        last = [episode["r"] for episode in self.model.ep_info_buffer] if self.stop_return < np.inf else []
        return len(last) < 100 or np.mean(last) < self.stop_return


class Encoder(BaseFeaturesExtractor):
    """The layer below the LSTM of `ppo_lstm.py`."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 64)
        self.layers = torch.nn.Sequential(torch.nn.Linear(observation_space.shape[0], 64), torch.nn.Tanh())

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.layers(obs)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=500_000)
    parser.add_argument("--stop-return", type=float, default=np.inf)
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--num-minibatches", type=int, default=4)
    parser.add_argument("--update-epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2.5e-4)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--ent-coef", type=float, default=0.01)
    parser.add_argument("--vf-coef", type=float, default=0.5)
    parser.add_argument("--clip-vloss", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--clip-coef", type=float, default=0.2)
    parser.add_argument("--norm-obs", action="store_true")
    parser.add_argument("--norm-reward", action="store_true")
    parser.add_argument("--init-std", type=float, default=1.0)
    parser.add_argument("--atari", action="store_true", help="its wrappers, four frames, and its CNN")
    parser.add_argument("--lstm", action="store_true", help="RecurrentPPO: LSTMs of 128 units for policy and value")
    parser.add_argument("--threads", type=int, help="PyTorch's threads; its own choice if not given")
    parser.add_argument("--log", metavar="FOLDER", help="write curves there")
    return parser.parse_args(arguments)


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.atari:
        importlib.import_module("ale_py")  # registers its games
        envs = VecFrameStack(make_atari_env(args.env_id, n_envs=args.num_envs, seed=args.seed), n_stack=4)
    else:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for examples.memory
        envs = make_vec_env(args.env_id, n_envs=args.num_envs, seed=args.seed)
    if args.norm_obs or args.norm_reward:
        envs = VecNormalize(envs, norm_obs=args.norm_obs, norm_reward=args.norm_reward, gamma=args.gamma)
    policy, algorithm, kwargs = "CnnPolicy" if args.atari else "MlpPolicy", PPO, {}  # their networks are as ours
    if args.lstm:
        policy, algorithm = "MlpLstmPolicy", importlib.import_module("sb3_contrib").RecurrentPPO
        kwargs = {"lstm_hidden_size": 128, "net_arch": [], "features_extractor_class": Encoder}
    batch = args.num_envs * args.num_steps
    total = args.total_timesteps // batch * batch
    model = algorithm(
        policy,
        envs,
        n_steps=args.num_steps,
        batch_size=batch // args.num_minibatches,
        n_epochs=args.update_epochs,
        learning_rate=lambda remaining: args.learning_rate * (remaining + batch / total),  # asked after the rollout
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
        clip_range=args.clip_coef,
        clip_range_vf=args.clip_coef if args.clip_vloss else None,
        ent_coef=args.ent_coef,
        vf_coef=args.vf_coef / 2,
        max_grad_norm=0.5,
        seed=args.seed,
        device="cpu",
        policy_kwargs=kwargs | {"log_std_init": float(np.log(args.init_std))},
    )
    clock = Clock(args.log, args.stop_return)
    model.learn(total, callback=clock)
    if clock.writer:
        clock.writer.close()
    (first_step, first_time), (last_step, last_time) = clock.times[len(clock.times) // 3], clock.times[-1]
    print(json.dumps({"steps": last_step, "steady_sps": (last_step - first_step) / (last_time - first_time)}))


if __name__ == "__main__":
    main()
