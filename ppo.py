"""Proximal Policy Optimization for discrete actions and vector observations, complete in this one file.

PPO (Schulman et al., 2017, arXiv:1707.06347) collects a rollout with the current policy, estimates advantages with GAE
(Schulman et al., 2015, arXiv:1506.02438), then takes a few epochs of minibatch steps on a clipped objective that keeps
the new policy near the one that collected the data. `# detail 7` in a comment is number 7 of the implementation details
of Huang et al. (2022, "The 37 Implementation Details of Proximal Policy Optimization").

    python …                               # train: a progress bar, then where everything is
    python … --env-id my_envs:MyEnv-v0     # your own environment, registered in ./my_envs.py
    python … --resume runs/NAME            # go on where a run stopped
    torchrun --standalone --nproc-per-node=2 … --num-envs 16     # one run in two processes

Shapes in comments: T = num_steps, N = num_envs, M = samples in a minibatch, O = size of the flattened observation, C =
components of an action.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "gymnasium[box2d,classic-control]==1.4.0",
#     "numpy==2.4.6",
#     "tensorboard==2.21.0",
#     "torch==2.13.0",
#     "tyro==1.0.17",
# ]
# ///

import atexit
import copy
import importlib.util
import io
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import tyro
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.optim.adam import adam
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Args:
    """Train a PPO agent on a gymnasium environment."""

    exp_name: str = Path(__file__).stem
    """name of the experiment; part of the run folder's name, so give variants names of their own"""
    seed: int = 1
    """seed of everything random; on a CPU the same seed, with as many threads, gives the same run, bit for bit"""
    torch_deterministic: bool = True
    """let PyTorch use only algorithms that repeat exactly; on a CPU they do anyway"""
    cuda: bool = True
    """`--no-cuda` keeps the run on the CPU even where `--device` names a CUDA device"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is CUDA for pixels, where there is one, and else the CPU"""
    compile: bool = False
    """compile loss, gradient, and acting on pixels (needs a C++ compiler), on CUDA into graphs: a slower start, then
    faster steps for small networks"""
    track: bool = False
    """log to Weights & Biases too: curves, arguments, this file, videos (WANDB_MODE=offline does it without network)"""
    wandb_project_name: str = "ppo"
    """W&B project that `--track` logs to"""
    wandb_entity: str | None = None
    """W&B team or user that owns the project; your default one if not given"""
    capture_video: bool = False
    """film an episode at the start, after every tenth of training, and at the end, in a process of its own;
    with `--evaluate`, film every episode"""
    save_interval: float = 60.0
    """seconds between checkpoints, at most what a crash can cost; 0 saves after every iteration"""
    resume: str | None = None
    """run folder to go on with; its arguments hold, but for length, device, vectorization, tracking, video, saving"""
    evaluate: str | None = None
    """run folder or checkpoint file to play episodes with, instead of training"""
    eval_episodes: int = 10
    """episodes that `--evaluate` plays, with actions sampled as in training"""

    env_id: str = "CartPole-v1"
    """environment to train on; `module:EnvId` imports `module` (also from the current folder), which registers it"""
    vectorization: Literal["auto", "sync", "async", "vector_entry_point", "envpool"] = "auto"
    """sync steps one environment after the other, async in a process each (for slow environments),
    vector_entry_point in the environment's own vector version, envpool in C++ threads (needs EnvPool, which has
    classic control, Box2D, MuJoCo and Atari); auto is the environment's own version where it exists, else sync"""
    total_timesteps: int = 500_000
    """environment steps of the whole run, over all environments; rounded down to whole iterations"""
    stop_return: float | None = None
    """stop early, once the mean return of the last 100 training episodes reaches this"""
    num_envs: int = 4
    """parallel environments, over all processes; more make steps cheaper and data more diverse, but updates rarer"""
    num_steps: int = 128
    """steps per environment and iteration; one iteration learns from num_envs * num_steps steps"""

    learning_rate: float = 2.5e-4
    """Adam's step size at the start"""
    anneal_lr: bool = True
    """lower the learning rate linearly to zero over the run"""
    gamma: float = 0.99
    """discount; rewards about 1 / (1 - gamma) steps ahead matter"""
    gae_lambda: float = 0.95
    """GAE's trade-off: 1 is unbiased but noisy, 0 trusts the value network alone"""
    num_minibatches: int = 4
    """minibatches per epoch; must divide num_envs * num_steps"""
    update_epochs: int = 4
    """passes over each iteration's data; more squeeze it harder, until the clip range stops them"""
    norm_adv: bool = True
    """scale the advantages of each minibatch to mean 0 and standard deviation 1"""
    clip_coef: float = 0.2
    """how far from 1 the ratio of new to old probability may move before the objective goes flat"""
    anneal_clip: bool = False
    """lower the clip range linearly to zero over the run"""
    clip_vloss: bool = True
    """clip the change of the value estimates too, by the same clip_coef; switch off where values are large"""
    ent_coef: float = 0.01
    """weight of the entropy bonus; raise it when the policy settles too early, 0 to exploit only"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """longer gradients are shortened to this norm"""
    target_kl: float | None = None
    """end an iteration's epochs early when the policy moved further than this KL divergence; 0.015 is usual"""
    norm_obs: bool = False
    """normalise observations by their running mean and standard deviation, then clip them to [-10, 10]"""
    norm_reward: bool = False
    """divide rewards by the running standard deviation of the discounted return, then clip them to [-10, 10];
    reported returns stay those of the environment"""


def fail(message: str) -> NoReturn:
    """End the program for a mistake of its user: one line on stderr and exit code 2 (a bug keeps its traceback)."""
    print(f"{Path(__file__).name}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def describe(error: Exception) -> str:
    """An exception of the environment's code in a few words: type, message, and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"


def check_args(args: Args) -> None:
    """Refuse what can't be trained, before anything is made. Raises SystemExit(2)."""
    ranges = {
        (1, 10**15): ("total_timesteps",),
        (1, 10**5): ("num_envs", "eval_episodes"),
        (1, 10**7): ("num_steps", "num_minibatches", "update_epochs"),
        (0.0, 1.0): ("learning_rate", "gamma", "gae_lambda"),
        (1e-6, 1e9): ("clip_coef", "max_grad_norm"),
        (0.0, 1e9): ("ent_coef", "vf_coef", "target_kl", "save_interval"),
        (-1e15, 1e15): ("stop_return",),
        (0, 2**32 - 1): ("seed",),
    }
    for (low, high), names in ranges.items():
        for name in names:
            value = getattr(args, name)
            if value is not None and not (isinstance(value, type(low) | int) and low <= value <= high):
                fail(f"--{name.replace('_', '-')} must be from {low} to {high}, not {value}")
    if (args.resume and args.evaluate) or "" in (args.resume, args.evaluate):
        fail("--resume (to train) or --evaluate (to play) needs the folder of a run: give one of them")
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if args.num_envs % world_size:
        fail(f"--num-envs {args.num_envs} must be a multiple of the {world_size} processes")
    batch_size = args.num_envs * args.num_steps
    if batch_size % (args.num_minibatches * world_size):
        share = f" in {world_size} processes" if world_size > 1 else ""
        fail(f"--num-minibatches {args.num_minibatches} must divide num_envs * num_steps, which is {batch_size}{share}")
    if args.norm_adv and args.num_minibatches == batch_size:
        fail(f"--num-minibatches {batch_size} leaves one sample each, with advantage 0: fewer, or --no-norm-adv")
    if args.total_timesteps < batch_size:
        fail(f"--total-timesteps {args.total_timesteps} must be at least num_envs * num_steps, which is {batch_size}")
    if batch_size > 10**8:
        fail(f"num_envs * num_steps is {batch_size}, too much to hold: lower --num-envs or --num-steps")
    if args.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        fail("--compile needs a C++ compiler, and none is on the PATH: install g++ or clang++, or leave it out")
    if args.track and not importlib.util.find_spec("wandb"):
        fail("--track needs Weights & Biases: pip install wandb")
    if args.vectorization == "envpool" and not importlib.util.find_spec("envpool"):
        fail("--vectorization envpool needs EnvPool: pip install envpool, or give --vectorization auto")


def pick_device(args: Args) -> torch.device:
    """The device that `--device` and `--no-cuda` ask for. Raises SystemExit(2) where it does not exist."""
    name = "cpu" if args.device == "auto" or (args.device.startswith("cuda") and not args.cuda) else args.device
    if name == "cuda":  # each process of a data-parallel run has its own
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", name):
        fail(f"--device {name} must be auto, cpu, cuda, cuda:N or mps")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name} can't be used here, try --device cpu ({str(error).splitlines()[0]})")


class EnvPool(gym.vector.VectorEnv):
    """EnvPool's C++ environments as gymnasium's: they take their seed when they are made, instead of in reset."""

    metadata: ClassVar = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, env_id: str, num_envs: int, **kwargs: Any):
        import envpool  # an optional install

        env_id = env_id.removeprefix("ALE/")  # as it calls games
        if env_id not in envpool.list_all_envs():
            raise gym.error.NameNotFound(
                "EnvPool has no such environment: check its name, or give --vectorization auto"
            )
        self.make, self.pool = partial(envpool.make_gymnasium, env_id, num_envs=num_envs, **kwargs), None
        warnings.filterwarnings("ignore", ".*precision lowered by casting")  # of bounds, which are gymnasium's own
        self.num_envs, spec = num_envs, envpool.make_spec(env_id)
        self.single_observation_space, self.single_action_space = spec.observation_space, spec.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        if seed is not None or not self.pool:
            self.pool = self.make(seed=(seed or 0) % 2**31)
        return self.pool.reset()

    def step(self, actions: np.ndarray) -> tuple:
        return self.pool.step(actions)


def make_envs(args: Args, **kwargs: Any) -> gym.vector.VectorEnv:
    """The N environments as one vector environment, whose observations are arrays (N, ...).

    `kwargs` go to gymnasium. Raises SystemExit(2) if it can't be made, or is not one that this script can train on.
    """
    if os.getcwd() not in sys.path:  # for `--env-id module:EnvId`, when this script lies elsewhere
        sys.path.append(os.getcwd())
    mode = None if args.vectorization == "auto" else args.vectorization  # None: gymnasium chooses as our `auto` does
    film = "render_mode" in kwargs
    try:
        if mode == "envpool":
            envs = EnvPool(args.env_id, args.num_envs, **kwargs)
        else:
            envs = gym.make_vec(args.env_id, args.num_envs, vectorization_mode=mode, **kwargs)
    except (gym.error.Error, ImportError) as error:
        fail(f"--env-id {args.env_id}{', as gymnasium films it' if film else ''}: {error}")
    except Exception as error:
        fail(f"--env-id {args.env_id} can't be made{' to be filmed' if film else ''}: {describe(error)}")

    actions, observations = envs.single_action_space, envs.single_observation_space
    if envs.metadata.get("autoreset_mode") is not gym.vector.AutoresetMode.NEXT_STEP:
        fail(f"{args.env_id} resets in another way: metadata['autoreset_mode'] must be AutoresetMode.NEXT_STEP")
    discrete = isinstance(actions, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary)
    continuous = isinstance(actions, gym.spaces.Box) and np.issubdtype(actions.dtype, np.floating)
    pixels = observations.dtype == np.uint8 and len(observations.shape) in (2, 3)
    vector = observations.is_np_flattenable and not (pixels and math.prod(observations.shape) >= 1024)
    scripts = {"ppo.py": discrete and vector, "ppo_atari.py": discrete and pixels}
    scripts["ppo_continuous.py"] = continuous and vector
    if not scripts["ppo.py"]:
        advice = " or ".join(f"use {script}" for script, fits in scripts.items() if fits)
        fail(
            f"{args.env_id} has observations in {observations} and actions in {actions}: "
            f"{advice or 'needed are vectors or uint8 images, and choices or a Box of floats'}"
        )
    return envs if isinstance(observations, gym.spaces.Box) else gym.wrappers.vector.FlattenObservation(envs)


def forbidden_choices(info: dict, missing: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """The choices that don't exist, and those that `action_mask` in `info` forbids (detail d).

    (N, C, K) bool, where K is the number of choices of the component that has most. The mask is 1 for what may be done,
    all components one after the other, or a tuple of arrays. It counts unless the next action only resets.
    """
    forbidden = missing[None].repeat(len(ended), axis=0)
    for n in np.flatnonzero(info.get("_action_mask", "action_mask" in info) & ~ended):  # who sent one this time
        mask = np.concatenate([np.ravel(part) for part in info["action_mask"][n]])
        np.place(forbidden[n], ~missing, mask == 0)
        if mask.size != (~missing).sum() or forbidden[n].all(-1).any():
            fail(f"the action_mask {mask} needs {(~missing).sum()} values, and a choice until the episode ends")
    return forbidden


class RunningMeanStd:
    """Mean and variance of everything seen so far, merged batch by batch (Chan et al., 1979)."""

    def __init__(self, shape: tuple[int, ...] = ()):
        self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), 0

    def update(self, batch: np.ndarray) -> None:
        """Take in a batch of values, (any number, *shape)."""
        if len(batch):
            batch = batch.astype(np.float64)
            self.merge(batch.mean(0), batch.var(0), len(batch))

    def merge(self, mean: np.ndarray, var: np.ndarray, count: int) -> None:
        """Take in values of which these are the statistics; with a negative count, take them out again."""
        if count:
            delta, total = mean - self.mean, self.count + count
            squares = self.var * self.count + var * count + delta**2 * self.count * count / total
            self.mean, self.var, self.count = self.mean + delta * count / total, squares / total, total

    def normalize(self, x: np.ndarray, center: bool = True) -> np.ndarray:
        """In units of the standard deviation, clipped to ±10 (details 28 to 31); `center` subtracts the mean first."""
        return np.clip((x - self.mean * center) / np.sqrt(self.var + 1e-8), -10, 10)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a saved state. Raises ValueError if it is of another shape."""
        vars(self).update({name: state[name].numpy().reshape(np.shape(x)) for name, x in vars(self).items()})

    def share(self, before: "RunningMeanStd") -> None:
        """Take in what the other processes have seen since `before`, the state that all had in common."""
        parts = all_gather([self])
        vars(self).update(vars(before))
        for part in parts:  # in the same order everywhere, for the same bits
            self.merge(part.mean, part.var, part.count)
            self.merge(before.mean, before.var, -before.count)


def layer_init(layer: nn.Module, gain: float = math.sqrt(2)) -> nn.Module:
    """Orthogonal weights and zero biases (detail 2), where the layer has any."""
    if hasattr(layer, "weight"):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return layer


def mlp(*sizes: int, gain: float) -> nn.Sequential:
    """Layers with tanh between them; `gain` scales the weights of the last one."""
    layers = []
    for inputs, outputs in itertools.pairwise(sizes[:-1]):
        layers += [layer_init(nn.Linear(inputs, outputs)), nn.Tanh()]
    return nn.Sequential(*layers, layer_init(nn.Linear(*sizes[-2:]), gain))


class Agent(nn.Module):
    """Policy and value. What they share is in `trunk`; the rest are networks of their own.

    The policy is a categorical for each component of an action (detail 37), less its forbidden choices (detail d).
    """

    def __init__(self, envs: gym.vector.VectorEnv, args: Args):
        super().__init__()
        space = envs.single_action_space
        self.trunk, sizes = nn.Sequential(), (gym.spaces.flatdim(envs.single_observation_space), 64, 64)
        choices = np.ravel(getattr(space, "nvec", np.full(space.shape, 2 if space.shape else space.n)))
        self.missing = np.arange(choices.max()) >= choices[:, None]  # (C, K): of components with less than K choices
        self.actor = mlp(*sizes, self.missing.size, gain=0.01)  # nearly uniform at the start
        self.critic = mlp(*sizes, 1, gain=1.0)

    def noise(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """What `sample_actions` needs for this shape of actions."""
        return rng.gumbel(size=(*shape, *self.missing.shape))

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        """What `sample_actions` chooses from, for observations (M, O)."""
        return self.actor(self.trunk(obs))

    def evaluate(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probability of the actions and entropy of the policy, summed over components, and V(obs): each (M,)."""
        features = self.trunk(batch["obs"])
        logits = self.actor(features).view(batch["forbidden"].shape)
        logprobs = logits.masked_fill(batch["forbidden"], -1e38).log_softmax(-1)  # not -inf: 0 * log(0) must be 0
        logprob = logprobs.gather(-1, batch["actions"].unsqueeze(-1)).sum((-2, -1))
        entropy = -(logprobs.exp() * logprobs).sum((-2, -1))
        return logprob, entropy, self.critic(features).squeeze(-1)


def numpy_policy(agent: Agent) -> Callable[[np.ndarray], np.ndarray]:
    """What the policy's network makes of observations, with its present weights, from array to array.

    Acting is a tiny forward pass at every step, where the calls cost more than the arithmetic, and NumPy's cost a
    quarter of PyTorch's. A network with layers of other types stays in PyTorch.
    """
    network = nn.Sequential(*agent.trunk, *agent.actor)
    if any(type(layer) not in (nn.Linear, nn.Tanh) for layer in network):
        device = next(network.parameters()).device
        act = torch.no_grad()(agent.act)
        return lambda x: act(torch.from_numpy(x).to(device, non_blocking=True)).cpu().numpy()
    layers = [[param.detach().cpu().numpy().T.copy("K") for param in layer.parameters()] for layer in network]

    def forward(x: np.ndarray) -> np.ndarray:
        for params in layers:
            x = x @ params[0] + params[1] if params else np.tanh(x)
        return x

    return forward


def sample_actions(logits: np.ndarray, forbidden: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Actions (N, C) from logits (N, C * K): the arg-max of logits plus Gumbel noise is a sample from their softmax."""
    scores = logits.reshape(forbidden.shape) + noise
    return np.where(forbidden, -np.inf, scores).argmax(-1)


def to_env(actions: np.ndarray, space: gym.Space) -> np.ndarray:
    """Actions (N, C) in the form and range of the vector environment's action space."""
    return (actions.reshape(space.shape) + getattr(space, "start", getattr(space, "low", None))).astype(space.dtype)


def compute_gae(rewards, values, terminated, truncated, gamma: float, gae_lambda: float) -> np.ndarray:
    """Generalized advantage estimation (detail 5) on arrays: values (T+1, N), all else (T, N) → advantages (T, N).

    values[t+1] is the value of the true last observation where an episode ends at step t. So a time limit bootstraps
    from it, a termination does not, and neither looks into the next episode. Reset steps yield numbers without meaning.
    """
    deltas = rewards + gamma * values[1:] * ~terminated - values[:-1]
    decays = np.where(terminated | truncated, 0, gamma * gae_lambda).astype(values.dtype)
    advantages = np.zeros_like(values)
    for t in reversed(range(len(rewards))):
        advantages[t] = deltas[t] + decays[t] * advantages[t + 1]
    return advantages[:-1]


def all_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of x over the processes of a data-parallel run, in place; of one process, x itself."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def all_gather(items: list) -> list:
    """The items of all processes of a data-parallel run."""
    parts = [items]
    if dist.is_initialized():
        parts *= dist.get_world_size()
        dist.all_gather_object(parts, items)
    return [*itertools.chain(*parts)]


def weigh_minibatches(valid: torch.Tensor, advantages: torch.Tensor, norm_adv: bool) -> dict[str, torch.Tensor]:
    """`weights` that make sums over minibatches means of their valid samples, and `advantages` normalised (detail 7).

    All are (num_minibatches, M). A minibatch has a part in each process, and statistics are those of the whole.
    """
    weights = valid / all_sum(valid.sum(1, keepdim=True)).clamp(min=1)
    if norm_adv:
        advantages = advantages - all_sum((advantages * weights).sum(1, keepdim=True))
        advantages = advantages / (all_sum((advantages**2 * weights).sum(1, keepdim=True)).sqrt() + 1e-8)
    return {"weights": weights, "advantages": advantages}


def ppo_loss(agent: Agent, batch: dict, clip_coef: torch.Tensor, args: Args) -> tuple[torch.Tensor, dict]:
    """The loss of one minibatch of M samples (detail 10), to be minimised, and its diagnostics (detail 12).

    `batch`: obs (M, O), actions (M, C), and of (M,) each logprobs and values as they were when the data was collected,
    advantages, returns (the value targets), and weights: x @ weights is the mean of the valid x, or this process's part
    of it. What else the policy needs for its log-probabilities is there too.
    """
    weights, advantages = batch["weights"], batch["advantages"]
    logprob, entropy, value = agent.evaluate(batch)

    # Policy: the clipped surrogate objective (detail 8)
    log_ratio = logprob - batch["logprobs"]
    ratio = log_ratio.exp()
    policy_loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip_coef, 1 + clip_coef)) @ weights

    # Value: squared error, of the worse of the plain and the clipped estimate (detail 9)
    squared_error = (value - batch["returns"]) ** 2
    if args.clip_vloss:
        clipped_value = batch["values"] + (value - batch["values"]).clamp(-clip_coef, clip_coef)
        squared_error = torch.max(squared_error, (clipped_value - batch["returns"]) ** 2)
    value_loss = 0.5 * (squared_error @ weights)

    entropy = entropy @ weights
    loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss

    with torch.no_grad():
        diagnostics = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            # Both estimate KL(old || new) from the samples; the second has less variance (Schulman, 2020)
            "old_approx_kl": -log_ratio @ weights,
            "approx_kl": (ratio - 1 - log_ratio) @ weights,
            "clipfrac": ((ratio - 1).abs() > clip_coef).type_as(weights) @ weights,
        }
    return loss, diagnostics


def compute_gradient(agent: Agent, params: list, batch: dict, clip_coef: torch.Tensor, args: Args) -> tuple:
    """The gradient of the loss over all processes, in one vector and clipped (detail 11), and the diagnostics."""
    loss, diagnostics = ppo_loss(agent, batch, clip_coef, args)
    gradient = all_sum(torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, params)]))
    diagnostics["grad_norm"] = gradient.norm()
    return gradient * (args.max_grad_norm / (diagnostics["grad_norm"] + 1e-6)).clamp(max=1), diagnostics


def make_run_dir(args: Args) -> Path:
    """A new folder for this run, which no other run has or gets. Raises OSError."""
    name = re.sub(r"[^\w.+-]", "_", f"{args.env_id}__{args.exp_name}__{args.seed}")
    Path("runs").mkdir(exist_ok=True)
    for timestamp in itertools.count(int(time.time())):
        run_dir = Path("runs", f"{name}__{timestamp}")
        try:
            run_dir.mkdir()
            return run_dir
        except FileExistsError:
            pass  # another run of this name began in the same second


def open_curves(run_dir: Path, purge_step: int | None = None) -> SummaryWriter:
    """A writer of curves that go on in a new file, those in the folder's other files up to `purge_step`."""
    # TensorBoard reads files in the order of their names, which within one second is that of process numbers
    while any(run_dir.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.01)
    return SummaryWriter(run_dir, purge_step=purge_step)


def save_checkpoint(checkpoint: bytes, run_dir: Path) -> None:
    """Replace the run's checkpoint so that a kill at any instant leaves a whole one, old or new. Raises OSError."""
    new = run_dir / "checkpoint.pt.new"
    try:
        with open(new, "wb") as file:
            file.write(checkpoint)
            file.flush()
            os.fsync(file.fileno())
        new.replace(run_dir / "checkpoint.pt")
    finally:
        new.unlink(missing_ok=True)  # a part of it would fill a full disk


@contextmanager
def reading(source: str | io.BytesIO) -> Iterator[None]:
    """Inside, anything that a damaged or foreign checkpoint can lead to ends the program with SystemExit(2)."""
    try:
        yield
    except Exception as error:
        reason = "of another environment or network" if "size mismatch" in str(error) else "damaged"
        fail(f"{source} is {reason}, or not a checkpoint of {Path(__file__).name} ({type(error).__name__})")


def load_checkpoint(source: str | io.BytesIO) -> dict[str, Any]:
    """What a run saved, from its folder, a file, or memory, with `args` as Args.

    A checkpoint is data, and can't run code. Raises SystemExit(2) if it is missing, damaged, or something else.
    """
    if isinstance(source, str):
        source = os.path.join(source, "checkpoint.pt") if os.path.isdir(source) else source
        if not os.path.isfile(source):
            fail(f"{source} does not exist: give the folder of a run in runs/, or its checkpoint.pt")
    with reading(source):
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
        if zipfile.ZipFile(source).testzip():  # torch.load does not look at checksums
            raise ValueError
        return checkpoint | {"args": Args(**checkpoint["args"])}


def parse_args(argv: list[str] | None = None) -> Args:
    """The arguments of the command line; with `--resume` or `--evaluate`, those of the run where it says nothing.

    Raises SystemExit(2) if it contradicts the run.
    """
    args = tyro.cli(Args, args=argv)
    if not (args.resume or args.evaluate):
        return args
    saved = load_checkpoint(args.resume or args.evaluate)["args"]
    may_change = "resume|total_.*|stop_.*|save_.*|track|wandb_.*|capture_.*|vectoriz.*|compile|cuda|device|torch_.*"
    if args.evaluate:
        saved = replace(saved, capture_video=False, track=False, compile=False)
        may_change = "resume|evaluate|eval_.*|capture_.*|vectoriz.*|seed"
    args = tyro.cli(Args, args=argv, default=saved)
    for name, value in asdict(args).items():
        if value != getattr(saved, name) and not re.fullmatch(may_change, name):
            fail(f"--{name.replace('_', '-')} {value} can't be: the run was started with {getattr(saved, name)}")
    return args


def follow_body(env: gym.Env) -> gym.Env:
    """Let the camera move with a MuJoCo model that has one: gymnasium's own view stays where the episode begins."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer and renderer.camera_id == -1 and renderer.model.ncam:
        renderer.camera_id = 0
    return env


def make_film_envs(args: Args, folder: str) -> gym.vector.VectorEnv:
    """One environment, whose episodes become videos in a new folder. Raises SystemExit(2) if it can't be filmed."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws without a display too
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # and so does MuJoCo
    options = {"video_folder": folder, "name_prefix": Path(folder).name, "episode_trigger": lambda episode: True}
    record = partial(gym.wrappers.RecordVideo, **options)
    with warnings.catch_warnings(action="ignore"):  # of what the error says too
        return make_envs(
            replace(args, num_envs=1, vectorization="sync"), render_mode="rgb_array", wrappers=[follow_body, record]
        )


def play(source: str | io.BytesIO, args: Args, episodes: int, film: str = "", max_steps: float = math.inf) -> list:
    """Play episodes with the policy of a checkpoint: actions sampled as in training, normalisation left as it is.

    Makes the folder `film` for a video of each. Returns (return, length) of those not cut off by Ctrl-C or `max_steps`.
    """
    envs = make_film_envs(args, film) if film else make_envs(replace(args, num_envs=1))
    obs_size = gym.spaces.flatdim(envs.single_observation_space)
    agent, obs_stats = Agent(envs, args), RunningMeanStd((obs_size,))
    rng = np.random.default_rng(args.seed)
    checkpoint = load_checkpoint(source)
    with reading(source):
        agent.load_state_dict(checkpoint["agent"])
        obs_stats.load(checkpoint["stats"]["obs"])
    policy = numpy_policy(agent)

    results = []
    for episode in range(episodes):
        episode_return, length, ended = 0.0, 0, np.array([False])
        while not (ended or stop_signals or length >= max_steps):
            try:
                if length == 0:
                    obs, info = envs.reset(seed=args.seed % 2**31 if episode == 0 else None)
                obs = obs_stats.normalize(obs.reshape(1, -1)) if args.norm_obs else obs.reshape(1, -1)
                outputs = policy(obs.astype(np.float32))
                actions = sample_actions(outputs, forbidden_choices(info, agent.missing, ended), agent.noise(rng, 1))
                obs, reward, terminated, truncated, info = envs.step(to_env(actions, envs.action_space))
            except Exception as error:
                fail(f"{args.env_id} failed in step {length} of episode {episode}: {describe(error)}")
            episode_return, length, ended = episode_return + reward.item(), length + 1, terminated | truncated
        if ended:
            results.append((episode_return, length))
    envs.close()
    return results


def evaluate(args: Args) -> list[tuple[float, int]]:
    """Play `eval_episodes` episodes with a saved policy, and print mean and spread of the return.

    Returns return and length of each. Raises SystemExit(2) for a mistake in the arguments.
    """
    check_args(args)
    run = Path(args.evaluate).resolve()
    step = load_checkpoint(args.evaluate)["global_step"]
    folder = f"videos/{run.parent.name if run.is_file() else run.name}-step-{step}" if args.capture_video else ""
    results = play(args.evaluate, args, args.eval_episodes, folder)
    if results:
        returns, lengths = np.transpose(results)
        print(
            f"{len(results)} episodes of {args.env_id} with the policy of step {step:,}: length {lengths.mean():.1f}, "
            f"return {returns.mean():.2f} ± {returns.std():.2f} ({returns.min():.2f} to {returns.max():.2f})"
        )
    if folder and any(Path(folder).glob("*.mp4")):
        print(f"Filmed in {folder}")
    if stop_signals:
        raise SystemExit(128 + stop_signals[0])
    return results


def follow_parent() -> None:
    """In the process that films: leave Ctrl-C and the cores to the one that trains, and end when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # with one for each core, as in training, both would wait for each other
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def start_wandb(args: Args, run_dir: Path) -> Any:
    """A W&B run, the same one when resumed, with the arguments and this file. Raises SystemExit(2) if W&B refuses."""
    import wandb  # not before it is needed: it takes a second

    try:
        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_dir.name}
        names |= {"id": run_dir.name[-64:], "resume": "allow", "dir": run_dir}
        run = wandb.init(**names, config=asdict(args), allow_val_change=True)
    except Exception as error:  # whatever it is, W&B did not want this run
        if not args.resume:
            shutil.rmtree(run_dir, ignore_errors=True)
        fail(f"--track: {error} (log in with `wandb login`, or go without network: WANDB_MODE=offline)")
    shutil.copy(__file__, run.dir)
    run.save(os.path.join(run.dir, Path(__file__).name), base_path=run.dir)
    return run


def health_report(history: list[dict[str, float]]) -> str:
    """A line on each diagnostic, from the metrics of iterations: its mean, and what to change if that is unhealthy."""
    names = [name for name in history[0] if name.startswith("losses/")]
    mean = {name.removeprefix("losses/"): np.mean([metrics[name] for metrics in history]) for name in names}
    mean["advantage_mean / std"] = mean["advantage_mean"] / max(mean["advantage_std"], 1e-8)
    more, less = "raise --learning-rate or --update-epochs", "lower --learning-rate or --update-epochs"
    values = "--no-clip-vloss, --norm-reward or a larger --vf-coef may help"
    lines = [f"Health: means over the last {len(history)} iterations [healthy range]"]
    for name, low, high, if_low, if_high in (
        ("clipfrac", 0.01, 0.2, f"timid updates: {more}", f"wild updates: {less}"),
        ("approx_kl", 0, 0.02, "", f"wild updates: {less}"),
        ("relative_entropy", 0.05, 0.95, "has decided; if too soon, raise --ent-coef", f"still acts at random: {more}"),
        ("explained_variance", 0, 1, f"values explain nothing; unless returns hardly vary, {values}", ""),
        ("advantage_mean / std", -0.5, 0.5, f"values too high: {values}", f"values too low: {values}"),
    ):
        verdict = (mean[name] < low and if_low) or (mean[name] > high and if_high) or "healthy"
        lines.append(f"  {name:20} {mean[name]:7.3f} {f'[{low}, {high}]':12} {verdict}")
    return "\n".join(lines)


def progress_line(step: int, total: int, mean_return: float | None, speed: float) -> str:
    """What to show while training: steps, mean return of the last 100 episodes, steps per second, time left."""
    bar = ("#" * (20 * step // total)).ljust(20, ".")
    recent = "no episode yet" if mean_return is None else f"return {mean_return:.1f}"
    left = timedelta(seconds=round((total - step) / speed))
    return f"{bar} {step:,}/{total:,} steps | {recent} | {speed:,.0f} steps/s | {left} left"


stop_signals: list[int] = []  # what has asked the program to stop


def request_stop(signum: int, frame: Any) -> None:
    """Signal handler: training ends after the iteration in hand; the same signal again ends the program at once."""
    stop_signals.append(signum)
    signal.signal(
        signum, signal.SIG_IGN if dist.is_initialized() else signal.SIG_DFL
    )  # torchrun passes signals on again


def train(args: Args) -> dict[str, Any]:
    """Train, log to `runs/`, save checkpoints, and show progress.

    Returns `agent`, `run_dir`, `global_step`, `episodes` (return and length of each of the last 100 training episodes),
    and `stats`, of which "obs" is what the agent's observations must be normalised by if `norm_obs` is on.
    Raises SystemExit(2) for a mistake in the arguments, or when training becomes non-finite, and with 128 + the signal
    after Ctrl-C or SIGTERM.
    """
    check_args(args)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA has no deterministic matmul without it
    device = pick_device(args)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for pinned memory and NCCL, which would else take the first of several
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():  # started by torchrun: one run in several processes
        dist.init_process_group()  # gloo between CPUs, nccl between GPUs
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    T, N = args.num_steps, args.num_envs // world_size
    local_size, batch_size = T * N, T * args.num_envs
    num_iterations = args.total_timesteps // batch_size
    checkpoint = load_checkpoint(args.resume) if args.resume else {"iteration": 0, "global_step": 0}
    iteration, global_step = checkpoint["iteration"], checkpoint["global_step"]  # what is done
    if iteration >= num_iterations:
        fail(f"{args.resume} has done all its {global_step} steps: raise --total-timesteps to go on")

    if args.capture_video:  # can it be filmed? Asked before anything is made
        with tempfile.TemporaryDirectory() as folder:
            make_film_envs(args, f"{folder}/test").close()

    # Processes and resumed runs have seeds of their own, by a hash, as vector environments use seed, seed + 1, …
    seeds = [args.seed, iteration, rank]
    env_seed = int(np.random.SeedSequence(seeds).generate_state(1)[0] // 2)
    random.seed(env_seed)
    np.random.seed(env_seed)  # noqa: NPY002 (for environments that use it)
    rng = np.random.default_rng(seeds)
    torch.manual_seed(args.seed)  # the same in all processes, so that they begin with the same parameters
    if device.type != "cpu":  # whose algorithms repeat exactly anyway
        torch.use_deterministic_algorithms(args.torch_deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # which nothing reads: a seventh more operations
    torch.set_num_threads(1)  # these networks are too small to be shared out
    np.seterr(over="ignore", invalid="ignore")  # what is not finite ends the run, with one line

    envs = make_envs(replace(args, num_envs=N))
    atexit.register(envs.close)  # also after an error, so that the processes of async environments end quietly
    obs_size = gym.spaces.flatdim(envs.single_observation_space)
    agent = Agent(envs, args).to(device)
    params = list(agent.parameters())
    flat = nn.utils.parameters_to_vector(params).detach()  # one tensor, of which the parameters become views: clipping
    nn.utils.vector_to_parameters(flat, params)  # and Adam then touch one instead of twelve, a tenth off an update
    # Adam's function instead of its class, whose first use imports the compiler for a second (detail 3: eps 1e-5)
    adam_mean, adam_square, adam_step = torch.zeros_like(flat), torch.zeros_like(flat), torch.zeros((), device=device)
    adam_options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-5, "weight_decay": 0, "amsgrad": False, "maximize": False}
    gradient = compute_gradient
    if args.compile:
        warnings.filterwarnings("ignore", r"TensorFloat32|\s*Online softmax")  # hints, across the progress bar
        torch._dynamo.config.trace_autograd_ops = True  # the backward pass in the same graph: 0.3 instead of 0.6 ms
        # C++ calls take a tenth less time. Not to probe what vector instructions the compiler knows halves the first
        # compilation; one so old that it does not know the machine's fails
        options = {"cpp_wrapper": True, "cpp.vec_isa_ok": True} if device.type == "cpu" else {"triton.cudagraphs": True}
        gradient = torch.compile(compute_gradient, fullgraph=True, options=options)
        agent.act = torch.compile(agent.act, fullgraph=True, options=options)

    # The rollout is collected in NumPy arrays, which environments fill row by row, and goes to the device as a whole
    obs_dtype = torch.float32
    obs = torch.zeros((T + 1, N, obs_size), dtype=obs_dtype, pin_memory=device.type == "cuda").numpy()
    forbidden = np.zeros((T + 1, N, *agent.missing.shape), bool)
    actions = np.zeros((T + 1, N, math.prod(envs.single_action_space.shape)), np.int64)
    rewards = np.zeros((T, N), np.float32)
    terminated, truncated, valid = np.zeros((3, T, N), bool)

    stats = {"obs": RunningMeanStd((obs_size,)), "return": RunningMeanStd()}
    discounted_return, episode_return, episode_length = np.zeros((3, N))
    last_episodes = deque(maxlen=100)
    ended = np.zeros(N, bool)  # did the last step end the episode, so that the next one only resets?

    if args.resume:
        with reading(args.resume):
            agent.load_state_dict(checkpoint["agent"])
            for state, saved in zip((adam_mean, adam_square, adam_step), checkpoint["adam"], strict=True):
                state.copy_(saved)
            for name, part in stats.items():
                part.load(checkpoint["stats"][name])
            last_episodes.extend(checkpoint["episodes"])
            torch.set_rng_state(checkpoint["torch_rng"])
            if rank == 0:
                rng.bit_generator.state = checkpoint["numpy_rng"]

    def save() -> None:
        """Put curves and checkpoint on disk. Where that fails, say so, and go on."""
        nonlocal writer, saved_time
        saved_time = time.time()
        failed = False
        try:
            try:
                writer.flush()  # first, so that the curves are never behind the checkpoint
            except OSError:  # which a writer does not survive
                failed = True
            save_checkpoint(pack(), run_dir)
            writer = open_curves(run_dir) if failed else writer
        except OSError as error:
            print(f"\nWARNING: training goes on, but can't be saved at step {global_step}: {error}", file=sys.stderr)

    def pack() -> bytes:
        """All that training needs to go on from here."""
        moments = {name: {k: torch.as_tensor(x) for k, x in vars(part).items()} for name, part in stats.items()}
        state = {"args": asdict(replace(args, resume=None)), "iteration": iteration, "global_step": global_step}
        state |= {"agent": agent.state_dict(), "adam": [adam_mean, adam_square, adam_step], "stats": moments}
        state |= {"torch_rng": torch.get_rng_state(), "numpy_rng": rng.bit_generator.state}
        state["episodes"] = list(last_episodes)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    def film() -> None:
        """Have an episode of the present policy filmed, beside the training."""
        folder = run_dir / "videos" / f"step-{global_step:09}"

        def filmed(job: Future) -> None:
            video = next(folder.glob("*.mp4"), None)
            if not video and not job.cancelled():
                print(f"\nWARNING: nothing in {folder}: {job.exception()!r}", file=sys.stderr)
            elif video and tracker:
                tracker.log({"videos/episode": sys.modules["wandb"].Video(str(video), caption=folder.name)})

        try:
            recorder.submit(play, io.BytesIO(pack()), args, 1, str(folder), 2000).add_done_callback(filmed)
        except BrokenExecutor as error:
            print(f"\nWARNING: nothing in {folder}: {error}", file=sys.stderr)

    def observe(t: int, next_obs: np.ndarray, info: dict) -> None:
        """Keep what the policy gets to see at step t."""
        next_obs = next_obs.reshape(N, -1)
        if args.norm_obs:
            stats["obs"].update(next_obs)
            next_obs = stats["obs"].normalize(next_obs)
        obs[t] = next_obs
        forbidden[t] = forbidden_choices(info, agent.missing, ended) if "action_mask" in info else agent.missing

    shared_stats = copy.deepcopy(stats)  # as all processes have them
    try:
        observe(T, *envs.reset(seed=env_seed))
    except Exception as error:
        fail(f"{args.env_id} can't be reset: {describe(error)}")

    # Process 0 alone logs, saves and prints
    run_dir = writer = tracker = recorder = None
    if rank == 0:
        try:
            run_dir = Path(args.resume.removesuffix("checkpoint.pt")) if args.resume else make_run_dir(args)
            tracker = start_wandb(args, run_dir) if args.track else None
            (run_dir / "args.json").write_text(json.dumps(asdict(args), indent=2) + "\n")
            writer = open_curves(run_dir, global_step + 1 if args.resume else None)
        except OSError as error:
            fail(f"no run can be written here: {error}")
        if not args.resume:
            save()
        table = "\n".join(f"| {name} | {value} |" for name, value in asdict(args).items())
        writer.add_text("args", f"| argument | value |\n| --- | --- |\n{table}", global_step)
        if args.capture_video:
            recorder = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=follow_parent)
    terminal = sys.stdout.isatty()
    history, last, first_step, start_time = deque(maxlen=1000), False, global_step, time.time()
    shown_time = saved_time = start_time

    while not last:
        iteration += 1
        progress = (iteration - 1) / num_iterations  # of the run: 0 in the first iteration
        learning_rate = args.learning_rate * (1 - progress if args.anneal_lr else 1)  # detail 4
        clip_coef = args.clip_coef * (1 - progress if args.anneal_clip else 1)  # detail a
        clip_coef = torch.full((), clip_coef, device=device)  # compiled code would be made anew for another number
        if recorder and (iteration - 1) * 10 // num_iterations > (iteration - 2) * 10 // num_iterations:
            film()

        # Collect T steps from each environment; episodes go on across rollouts (detail 1)
        obs[0] = obs[T]
        forbidden[0] = forbidden[T]
        policy = numpy_policy(agent)
        noise = agent.noise(rng, T, N)
        finished = []
        for t in range(T):
            actions[t] = sample_actions(policy(obs[t]), forbidden[t], noise[t])
            try:
                env_action = to_env(actions[t], envs.action_space)
                next_obs, reward, terminated[t], truncated[t], info = envs.step(env_action)
                valid[t] = ~ended  # else this step only reset, and ignored its action
                ended = terminated[t] | truncated[t]
                observe(t + 1, next_obs, info)
            except Exception as error:
                fail(f"{args.env_id} failed after step {global_step + t * args.num_envs}: {describe(error)}")
            rewards[t] = reward
            if args.norm_reward:  # by the spread of the discounted return, which starts anew with each episode
                discounted_return = discounted_return * args.gamma + reward
                stats["return"].update(discounted_return[valid[t]])
                rewards[t] = stats["return"].normalize(reward, center=False)

            episode_return += reward
            episode_length += valid[t]
            if ended.any():
                finished += zip(episode_return[ended].tolist(), episode_length[ended].tolist(), strict=True)
                episode_return[ended] = episode_length[ended] = discounted_return[ended] = 0
        for name, array in (("an observation", obs), ("a reward", rewards)):
            if not np.isfinite(array).all():
                step = global_step + np.argwhere(~np.isfinite(array))[0, 0] * args.num_envs
                fail(f"{args.env_id} gave {name} that is not a finite number, after step {step}")
        if world_size > 1:
            finished = all_gather(finished)
            for name, part in stats.items():
                part.share(shared_stats[name])
            shared_stats = copy.deepcopy(stats)
        global_step = iteration * batch_size

        # Estimate. Values and old log-probabilities are those of the policy that collected the data: it has not changed
        # since, and one pass over the whole rollout costs a fraction of one at every step
        with torch.no_grad():
            batch = {"obs": obs, "actions": actions, "forbidden": forbidden}
            batch = {name: torch.from_numpy(x).to(device, non_blocking=True).flatten(0, 1) for name, x in batch.items()}
            batch["logprobs"], _, batch["values"] = agent.evaluate(batch)
            values = batch["values"].cpu().numpy().reshape(T + 1, N)
            advantages = compute_gae(rewards, values, terminated, truncated, args.gamma, args.gae_lambda)
            batch = {name: x[:local_size] for name, x in batch.items()}  # those after the last step have no action
            for name, x in (("valid", valid), ("advantages", advantages), ("returns", advantages + values[:T])):
                batch[name] = torch.from_numpy(x).to(device).flatten()

        # Update: a few epochs over the batch, in minibatches that are shuffled anew each time (detail 6)
        diagnostics = []
        for _ in range(args.update_epochs):
            order = torch.randperm(local_size).to(device).view(args.num_minibatches, -1)
            epoch = {name: x[order] for name, x in batch.items() if name != "obs"}  # which may be large
            epoch |= weigh_minibatches(epoch["valid"], epoch["advantages"], args.norm_adv)
            for i in range(args.num_minibatches):
                minibatch = {name: x[i] for name, x in epoch.items()}
                minibatch["obs"] = batch["obs"].index_select(0, order[i])
                grad, diagnosis = gradient(agent, params, minibatch, clip_coef, args)
                diagnostics.append(torch.stack([*diagnosis.values()]))
                state = [flat], [grad], [adam_mean], [adam_square], [], [adam_step]
                adam(*state, lr=learning_rate, fused=True, **adam_options)
            if args.target_kl is not None:  # detail c
                latest = all_sum(torch.stack(diagnostics[-args.num_minibatches :]).mean(0))
                if latest[[*diagnosis].index("approx_kl")] > args.target_kl:
                    break

        # Log: means over the minibatches, and statistics of the batch's valid samples
        losses = dict(zip(diagnosis, all_sum(torch.stack(diagnostics).mean(0)), strict=True))
        losses["grad_norm"] /= world_size  # of which each process has the whole, not a part
        weights = batch["valid"] / all_sum(batch["valid"].sum()).clamp(min=1)
        samples = torch.stack([batch["advantages"], batch["returns"], batch["returns"] - batch["values"]])
        means = all_sum(samples @ weights)
        advantage_var, return_var, error_var = all_sum((samples - means.unsqueeze(1)) ** 2 @ weights)
        uniform_entropy = all_sum((~batch["forbidden"]).sum(-1).log().sum(-1) @ weights)
        losses["relative_entropy"] = losses["entropy"] / uniform_entropy.clamp(1e-8)
        losses["residual_variance"] = error_var / return_var.clamp(1e-8)
        losses["explained_variance"] = 1 - losses["residual_variance"]
        losses["advantage_mean"], losses["advantage_std"] = means[0], advantage_var.sqrt()
        numbers = torch.stack([*losses.values()]).tolist()  # at once, as each reading waits for the device
        metrics = {f"losses/{name}": number for name, number in zip(losses, numbers, strict=True)}
        if broken := [name for name, value in metrics.items() if not math.isfinite(value)]:
            fail(f"before step {global_step}, no longer finite: {', '.join(broken)}; lower --learning-rate?")
        elapsed = time.time() - start_time
        metrics |= {"charts/learning_rate": learning_rate, "charts/SPS": (global_step - first_step) / elapsed}
        if finished:
            metrics["charts/episodic_return"], metrics["charts/episodic_length"] = np.mean(finished, axis=0)
        history.append(metrics)
        last_episodes.extend(finished)
        mean_return = np.mean(last_episodes, axis=0)[0] if last_episodes else None
        stops = all_gather(stop_signals)
        solved = args.stop_return is not None and len(last_episodes) == 100 and mean_return >= args.stop_return
        last = stops or solved or iteration == num_iterations
        if rank == 0:
            with suppress(OSError):  # which the next save tells of
                # As one event: with one for each, TensorBoard's thread would hold the interpreter for 1 ms longer
                scalars = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
                writer.file_writer.add_summary(Summary(value=scalars), global_step)
            if tracker:
                tracker.log(metrics, step=global_step)
            if last or time.time() - saved_time >= args.save_interval:
                save()
            # Progress, often in a terminal, and every 10 seconds in a log file
            if last or time.time() - shown_time > (0.1 if terminal else 10):
                shown_time = time.time()
                line = progress_line(global_step, num_iterations * batch_size, mean_return, metrics["charts/SPS"])
                print(f"\r{line}\x1b[K" if terminal else f"{line}\n", end="", flush=True)

    envs.close()
    if rank == 0:
        if recorder:
            if not stops:
                film()
                print("\nFilming the last episode", end="", flush=True)
            recorder.shutdown(cancel_futures=bool(stops))
        with suppress(OSError):
            writer.close()
        if tracker:
            tracker.finish()
        result = "no episode ended" if mean_return is None else f"mean return of the last episodes {mean_return:.2f}"
        command = f"python {os.path.relpath(__file__)}"
        print(f"\n{'Stopped' if stops else 'Done'}: {global_step:,} steps, {result}")
        print(health_report([*history][len(history) // 2 :]))
        print(f"Everything is in {run_dir}. What to type next:")
        print("  watch the curves   tensorboard --logdir runs")
        print(f"  evaluate           {command} --evaluate {run_dir}")
        print(f"  film               {command} --evaluate {run_dir} --capture-video")
        more = "" if stops else " --stop-return None" if solved else f" --total-timesteps {2 * args.total_timesteps}"
        print(f"  go on              {command} --resume {run_dir}{more}")
    if dist.is_initialized():
        all_gather([])  # torchrun ends all processes when one has ended with an error code: not before all is saved
        dist.destroy_process_group()
    if stops:
        raise SystemExit(128 + stops[0])
    outcome = {"agent": agent, "run_dir": run_dir, "global_step": global_step}
    return outcome | {"episodes": list(last_episodes), "stats": stats}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, request_stop)
    signal.signal(signal.SIGTERM, request_stop)
    args = parse_args()
    if args.evaluate:
        evaluate(args)
    else:
        train(args)
