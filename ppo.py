"""Proximal Policy Optimization for discrete actions and vector observations, complete in this one file.

    python ppo.py --env-id CartPole-v1                   # train: a progress bar, then where everything is
    python ppo.py --env-id my_envs:MyEnv-v0 --seed 2     # your own environment, registered in ./my_envs.py
    tensorboard --logdir runs                            # watch the curves of all runs

PPO (Schulman et al., 2017, arXiv:1707.06347) collects a rollout with the current policy, estimates advantages with GAE
(Schulman et al., 2015, arXiv:1506.02438), then takes a few epochs of minibatch steps on a clipped objective that keeps
the new policy near the one that collected the data. `# detail 7` in a comment is number 7 of the implementation details
of Huang et al. (2022, "The 37 Implementation Details of Proximal Policy Optimization").

Shapes in comments: T = num_steps, N = num_envs, O = size of the flattened observation, C = components of an action (1
for Discrete), K = choices of the component that has most.
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

import itertools
import json
import math
import os
import random
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn

import gymnasium as gym
import numpy as np
import torch
import tyro
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.optim.adam import adam
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Args:
    """Train a PPO agent on a gymnasium environment with discrete actions."""

    exp_name: str = Path(__file__).stem
    """name of the experiment; part of the run folder's name, so give variants names of their own"""
    seed: int = 1
    """seed of everything random; on a CPU the same seed gives the same run, bit for bit"""
    torch_deterministic: bool = True
    """let PyTorch use only algorithms that repeat exactly; on a CPU they do anyway"""
    cuda: bool = True
    """`--no-cuda` keeps the run on the CPU even where `--device` names a CUDA device"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is the CPU, as these networks are small"""
    compile: bool = False
    """compile loss and gradient (needs a C++ compiler): about 9 s more at the first start, then faster steps"""

    env_id: str = "CartPole-v1"
    """environment to train on; `module:EnvId` imports `module` (also from the current folder), which registers it"""
    vectorization: Literal["auto", "sync", "async", "vector_entry_point"] = "auto"
    """sync steps one environment after the other, async in a process each (for slow environments),
    vector_entry_point in the environment's own vector version; auto is that version where it exists, else sync"""
    total_timesteps: int = 500_000
    """environment steps of the whole run, over all environments; rounded down to whole iterations"""
    stop_return: float | None = None
    """stop early, once the mean return of the last 100 training episodes reaches this"""
    num_envs: int = 4
    """parallel environments; more make each step cheaper and the data more diverse, but updates rarer"""
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


def check_args(args: Args) -> None:
    """Refuse what can't be trained, before anything is made. Raises SystemExit(2)."""
    ranges = {
        (1, math.inf): ("total_timesteps", "num_envs", "num_steps", "num_minibatches", "update_epochs"),
        (0, math.inf): ("learning_rate", "clip_coef", "ent_coef", "vf_coef", "target_kl"),
        (1e-6, math.inf): ("max_grad_norm",),
        (0, 1): ("gamma", "gae_lambda"),
        (0, 2**32 - 1): ("seed",),
    }
    for (low, high), names in ranges.items():
        for name in names:
            value = getattr(args, name)
            if value is not None and not (low <= value <= high and value < math.inf):
                wanted = f"{low} or more" if high == math.inf else f"from {low} to {high}"
                fail(f"--{name.replace('_', '-')} must be {wanted}, not {value}")
    batch_size = args.num_envs * args.num_steps
    if batch_size % args.num_minibatches:
        fail(f"--num-minibatches {args.num_minibatches} must divide num_envs * num_steps, which is {batch_size}")
    if args.norm_adv and args.num_minibatches == batch_size:
        fail(f"--num-minibatches {batch_size} leaves one sample each, with advantage 0: fewer, or --no-norm-adv")
    if args.total_timesteps < batch_size:
        fail(f"--total-timesteps {args.total_timesteps} must be at least num_envs * num_steps, which is {batch_size}")
    if args.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        fail("--compile needs a C++ compiler, and none is on the PATH: install g++ or clang++, or leave it out")


def pick_device(args: Args) -> torch.device:
    """The device that `--device` and `--no-cuda` ask for. Raises SystemExit(2) where it does not exist."""
    name = "cpu" if args.device == "auto" or (args.device.startswith("cuda") and not args.cuda) else args.device
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", name):
        fail(f"--device {name} must be auto, cpu, cuda, cuda:N or mps")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name} can't be used here, try --device cpu ({str(error).splitlines()[0]})")


def make_envs(args: Args) -> gym.vector.VectorEnv:
    """The N environments as one vector environment, whose observations are arrays (N, ...).

    Raises SystemExit(2) if the environment does not exist, or is not one that this script can train on.
    """
    if os.getcwd() not in sys.path:  # for `--env-id module:EnvId`, when this script lies elsewhere
        sys.path.append(os.getcwd())
    mode = None if args.vectorization == "auto" else args.vectorization  # None: gymnasium chooses as our `auto` does
    try:
        envs = gym.make_vec(args.env_id, args.num_envs, vectorization_mode=mode)
    except (gym.error.Error, ModuleNotFoundError) as error:
        fail(f"--env-id {args.env_id}: {error}")

    actions, observations = envs.single_action_space, envs.single_observation_space
    if envs.metadata.get("autoreset_mode") is not gym.vector.AutoresetMode.NEXT_STEP:
        fail(f"{args.env_id} resets in another way: metadata['autoreset_mode'] must be AutoresetMode.NEXT_STEP")
    if isinstance(actions, gym.spaces.Box):
        fail(f"{args.env_id} has continuous actions: use ppo_continuous.py")
    if not isinstance(actions, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        fail(f"{args.env_id} has the action space {actions}: this script needs Discrete, MultiDiscrete or MultiBinary")
    if not observations.is_np_flattenable:
        fail(f"{args.env_id} has the observation space {observations}, which can't be flattened to a vector")
    return envs if isinstance(observations, gym.spaces.Box) else gym.wrappers.vector.FlattenObservation(envs)


def action_choices(space: gym.Space) -> tuple[np.ndarray, np.ndarray]:
    """A discrete action space as C components of up to K choices.

    Returns `missing`, (C, K) bool: which of the C * K choices don't exist; and `start`, (C,) int64: the number of the
    first choice of each component.
    """
    if isinstance(space, gym.spaces.MultiBinary):
        sizes, start = np.full(math.prod(space.shape), 2), 0
    else:  # Discrete or MultiDiscrete
        sizes, start = np.ravel(getattr(space, "nvec", getattr(space, "n", None))), np.ravel(space.start)
    return np.arange(sizes.max()) >= sizes[:, None], np.broadcast_to(start, sizes.shape).astype(np.int64)


def forbidden_choices(info: dict, missing: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """What the environments forbid now, by the `action_mask` in `info` (detail d): (N, C, K) bool, else `missing`.

    An action_mask is True for what may be done. It has the choices of all components one after the other (n values for
    Discrete(n), sum(nvec) for MultiDiscrete(nvec)), or is a tuple with an array for each. After the end of an episode
    it may forbid everything: the next action is ignored, and all choices count as allowed.
    """
    if "action_mask" not in info:
        return missing
    forbidden = np.repeat(missing[None], len(ended), axis=0)
    for n in np.flatnonzero(info.get("_action_mask", np.ones(len(ended)))):  # environments that sent a mask this time
        mask = np.concatenate([np.ravel(part) for part in info["action_mask"][n]])
        if mask.size != (~missing).sum():
            fail(f"an action_mask has {mask.size} values, but the action space has {(~missing).sum()} choices")
        forbidden[n, ~missing] = ~mask.astype(bool)
    forbidden[ended] = missing
    if forbidden.all(-1).any():
        fail("an action_mask leaves no choice, although the episode goes on")
    return forbidden


class RunningMeanStd:
    """Mean and variance of everything seen so far, merged batch by batch (Chan et al., 1979)."""

    def __init__(self, shape: tuple[int, ...] = ()):
        self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), 0

    def update(self, batch: np.ndarray) -> None:
        """Take in a batch of values, (any number, *shape)."""
        if len(batch) == 0:
            return
        batch = batch.astype(np.float64)
        delta, total = batch.mean(0) - self.mean, self.count + len(batch)
        squares = self.var * self.count + batch.var(0) * len(batch) + delta**2 * self.count * len(batch) / total
        self.mean, self.var, self.count = self.mean + delta * len(batch) / total, squares / total, total

    def normalize(self, x: np.ndarray, center: bool = True) -> np.ndarray:
        """In units of the standard deviation, clipped to ±10; `center` subtracts the mean first."""
        return np.clip((x - self.mean * center) / np.sqrt(self.var + 1e-8), -10, 10)


def layer_init(layer: nn.Linear, gain: float = math.sqrt(2)) -> nn.Linear:
    """Orthogonal weights and zero biases (detail 2)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers of 64 tanh units; `gain` scales the weights of the last layer."""
    return nn.Sequential(
        layer_init(nn.Linear(inputs, 64)),
        nn.Tanh(),
        layer_init(nn.Linear(64, 64)),
        nn.Tanh(),
        layer_init(nn.Linear(64, outputs), gain),
    )


class Agent(nn.Module):
    """Policy and value, in networks of their own (detail 13).

    A policy over C components with up to K choices each: independent categoricals (detail 37), as logits (..., C, K).
    What is forbidden has probability 0 everywhere: in sampling, log-probabilities, and entropy (detail d).
    """

    def __init__(self, obs_size: int, num_logits: int):
        super().__init__()
        self.actor = mlp(obs_size, num_logits, gain=0.01)  # nearly uniform at the start
        self.critic = mlp(obs_size, 1, gain=1.0)

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """V(obs): (..., O) → (...)."""
        return self.critic(obs).squeeze(-1)

    def logits(self, obs: torch.Tensor, forbidden: torch.Tensor) -> torch.Tensor:
        """Unnormalised log-probabilities: (..., O), (..., C, K) → (..., C, K)."""
        logits = self.actor(obs).view(forbidden.shape)
        return logits.masked_fill(forbidden, torch.finfo(torch.float32).min)  # not -inf: 0 * log(0) must be 0, not NaN

    def evaluate(self, obs: torch.Tensor, forbidden: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Log-probability of the actions and entropy of the policy, both summed over components: (...), (...)."""
        logprobs = self.logits(obs, forbidden).log_softmax(-1)
        logprob = logprobs.gather(-1, actions.unsqueeze(-1)).sum((-2, -1))
        entropy = -(logprobs.exp() * logprobs).sum((-2, -1))
        return logprob, entropy


def numpy_network(network: nn.Sequential) -> Callable[[np.ndarray], np.ndarray]:
    """The network with its present weights, as a function from arrays to arrays.

    Acting is a tiny forward pass at every step, where the calls cost more than the arithmetic, and NumPy's cost a
    quarter of PyTorch's. A network with layers of other types stays in PyTorch.
    """
    if any(type(layer) not in (nn.Linear, nn.Tanh) for layer in network):
        device = next(network.parameters()).device
        return lambda x: network(torch.from_numpy(x).to(device)).detach().cpu().numpy()
    layers = [[param.detach().cpu().numpy().T.copy("K") for param in layer.parameters()] for layer in network]

    def forward(x: np.ndarray) -> np.ndarray:
        for params in layers:
            x = x @ params[0] + params[1] if params else np.tanh(x)
        return x

    return forward


def sample_actions(logits: np.ndarray, forbidden: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Actions (N, C) from logits (N, C * K): the arg-max of logits plus Gumbel noise is a sample from their softmax."""
    scores = logits.reshape(forbidden.shape) + noise
    scores[forbidden] = -np.inf
    return scores.argmax(-1)


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


def ppo_loss(agent: Agent, batch: dict, clip_coef: float, args: Args) -> tuple[torch.Tensor, dict]:
    """The loss of one minibatch of M samples (detail 10), to be minimised, and its diagnostics (detail 12).

    `batch`: obs (M, O), forbidden (M, C, K), actions (M, C), and of (M,) each logprobs and values as they were when the
    data was collected, advantages, returns (the value targets), and valid, which is False where a step only reset.
    """
    weights = batch["valid"] / batch["valid"].sum().clamp(min=1)  # so x @ weights is the mean of the valid samples
    logprob, entropy = agent.evaluate(batch["obs"], batch["forbidden"], batch["actions"])
    value = agent.value(batch["obs"])

    # Policy: the clipped surrogate objective (detail 8)
    advantages = batch["advantages"]
    if args.norm_adv:  # detail 7
        advantages = advantages - advantages @ weights
        advantages = advantages / ((advantages**2 @ weights).sqrt() + 1e-8)
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


def flatten_parameters(params: list[nn.Parameter]) -> torch.Tensor:
    """Move the parameters into one tensor, of which they become views.

    Clipping and Adam then touch one tensor instead of twelve, which takes a tenth off an eager update.
    """
    flat = nn.utils.parameters_to_vector(params).detach()
    nn.utils.vector_to_parameters(flat, params)
    return flat


def compute_gradient(agent: Agent, params: list, batch: dict, clip_coef: float, args: Args) -> tuple:
    """The gradient of the loss in one vector, its norm clipped to `max_grad_norm` (detail 11), and the diagnostics."""
    loss, diagnostics = ppo_loss(agent, batch, clip_coef, args)
    gradient = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, params)])
    diagnostics["grad_norm"] = gradient.norm()
    return gradient * (args.max_grad_norm / (diagnostics["grad_norm"] + 1e-6)).clamp(max=1), diagnostics


def make_run_dir(args: Args) -> Path:
    """A new folder for this run, which no other run has or gets."""
    name = re.sub(r"[^\w.+-]", "_", f"{args.env_id}__{args.exp_name}__{args.seed}")
    for timestamp in itertools.count(int(time.time())):
        run_dir = Path("runs", f"{name}__{timestamp}")
        try:
            run_dir.mkdir(parents=True)
            return run_dir
        except FileExistsError:
            pass  # another run of this name began in the same second


def progress_line(step: int, total: int, mean_return: float | None, elapsed: float) -> str:
    """What to show while training: steps, mean return of the last 100 episodes, steps per second, time left."""
    bar = ("#" * (20 * step // total)).ljust(20, ".")
    recent = "no episode yet" if mean_return is None else f"return {mean_return:.1f}"
    left = timedelta(seconds=round(elapsed * (total - step) / step))
    return f"{bar} {step:,}/{total:,} steps | {recent} | {step / elapsed:,.0f} steps/s | {left} left"


def train(args: Args) -> dict[str, Any]:
    """Train, log to `runs/`, and show progress.

    Returns `agent`, `run_dir`, `global_step`, `episodes` (return and length of each of the last 100 training episodes),
    and `obs_stats`, by which the agent's observations must be normalised if `norm_obs` is on.
    Raises SystemExit(2) for a mistake in the arguments, or when training becomes non-finite.
    """
    check_args(args)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA has no deterministic matmul without it
    device = pick_device(args)
    random.seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 (for environments that use it)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    if device.type != "cpu":  # whose algorithms repeat exactly anyway
        torch.use_deterministic_algorithms(args.torch_deterministic)
    torch.set_num_threads(1)  # these networks are too small to be shared out

    envs = make_envs(args)
    T, N, obs_size = args.num_steps, args.num_envs, gym.spaces.flatdim(envs.single_observation_space)
    env_actions, (missing, first_choice) = envs.action_space, action_choices(envs.single_action_space)
    batch_size, minibatch_size = T * N, T * N // args.num_minibatches
    num_iterations = args.total_timesteps // batch_size

    agent = Agent(obs_size, missing.size).to(device)
    params = list(agent.parameters())
    flat = flatten_parameters(params)
    # Adam's function instead of its class, whose first use imports the compiler for a second (detail 3: eps 1e-5)
    adam_mean, adam_square, adam_step = torch.zeros_like(flat), torch.zeros_like(flat), torch.zeros((), device=device)
    adam_options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-5, "weight_decay": 0, "amsgrad": False, "maximize": False}
    gradient = compute_gradient
    if args.compile:
        torch._dynamo.config.trace_autograd_ops = True  # the backward pass in the same graph: 0.3 instead of 0.6 ms
        # C++ calls take a tenth less time. Not to probe what vector instructions the compiler knows halves the first
        # compilation; one so old that it does not know the machine's fails
        options = {"cpp_wrapper": True, "cpp.vec_isa_ok": True} if device.type == "cpu" else {}
        gradient = torch.compile(compute_gradient, fullgraph=True, options=options)

    run_dir = make_run_dir(args)
    (run_dir / "args.json").write_text(json.dumps(asdict(args), indent=2) + "\n")
    writer = SummaryWriter(str(run_dir))
    table = "\n".join(f"| {name} | {value} |" for name, value in asdict(args).items())
    writer.add_text("args", f"| argument | value |\n| --- | --- |\n{table}")

    # The rollout is collected in NumPy arrays, which environments fill row by row, and goes to the device as a whole
    obs = np.zeros((T + 1, N, obs_size), np.float32)
    forbidden = np.zeros((T + 1, N, *missing.shape), bool)
    actions = np.zeros((T, N, len(missing)), np.int64)
    rewards = np.zeros((T, N), np.float32)
    terminated, truncated, valid = np.zeros((3, T, N), bool)

    obs_stats, return_stats = RunningMeanStd((obs_size,)), RunningMeanStd()
    discounted_return, episode_return, episode_length = np.zeros((3, N))
    last_episodes = deque(maxlen=100)
    ended = np.zeros(N, bool)  # did the last step end the episode, so that the next one only resets?

    def observe(t: int, next_obs: np.ndarray, info: dict) -> None:
        """Keep what the policy sees, and may do, at step t."""
        next_obs = next_obs.reshape(N, -1)
        if args.norm_obs:
            obs_stats.update(next_obs)
            next_obs = obs_stats.normalize(next_obs)
        obs[t], forbidden[t] = next_obs, forbidden_choices(info, missing, ended)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    # Vector environments use seed, seed + 1, …: a hash keeps the environments of --seed 1 apart from those of --seed 2
    observe(T, *envs.reset(seed=int(np.random.SeedSequence(args.seed).generate_state(1)[0] // 2)))
    terminal = sys.stdout.isatty()
    start_time = shown_time = time.time()

    for iteration in range(1, num_iterations + 1):
        remaining = 1 - (iteration - 1) / num_iterations  # of the run: 1 in the first iteration
        learning_rate = args.learning_rate * (remaining if args.anneal_lr else 1)  # detail 4
        clip_coef = args.clip_coef * (remaining if args.anneal_clip else 1)  # detail a

        # Collect T steps from each environment; episodes go on across rollouts (detail 1)
        obs[0], forbidden[0] = obs[T], forbidden[T]
        policy = numpy_network(agent.actor)
        noise = rng.gumbel(size=(T, N, *missing.shape))
        finished = []
        for t in range(T):
            actions[t] = sample_actions(policy(obs[t]), forbidden[t], noise[t])
            env_action = (actions[t] + first_choice).reshape(env_actions.shape).astype(env_actions.dtype)
            next_obs, reward, terminated[t], truncated[t], info = envs.step(env_action)
            valid[t] = ~ended  # else this step only reset, and ignored its action
            ended = terminated[t] | truncated[t]
            observe(t + 1, next_obs, info)
            rewards[t] = reward
            if args.norm_reward:  # by the spread of the discounted return, which starts anew with each episode
                discounted_return = discounted_return * args.gamma + reward
                return_stats.update(discounted_return[valid[t]])
                rewards[t] = return_stats.normalize(reward, center=False)

            episode_return += reward
            episode_length += valid[t]
            if ended.any():
                finished += zip(episode_return[ended], episode_length[ended], strict=True)
                episode_return[ended] = episode_length[ended] = discounted_return[ended] = 0
        global_step = iteration * batch_size

        # Estimate. Values and old log-probabilities are those of the policy that collected the data: it has not changed
        # since, and one pass over the whole rollout costs a fraction of one at every step
        with torch.no_grad():
            values = agent.value(tensor(obs)).cpu().numpy()
            advantages = compute_gae(rewards, values, terminated, truncated, args.gamma, args.gae_lambda)
            batch = {"obs": obs[:T], "forbidden": forbidden[:T], "actions": actions, "valid": valid}
            batch |= {"values": values[:T], "advantages": advantages, "returns": advantages + values[:T]}
            batch = {name: tensor(array).flatten(0, 1) for name, array in batch.items()}
            batch["logprobs"], _ = agent.evaluate(batch["obs"], batch["forbidden"], batch["actions"])

        # Update: a few epochs over the batch, in minibatches that are shuffled anew each time (detail 6)
        history = []
        for _ in range(args.update_epochs):
            order = torch.randperm(batch_size, device=device)
            shuffled = {name: x[order] for name, x in batch.items()}
            for start in range(0, batch_size, minibatch_size):
                minibatch = {name: x[start : start + minibatch_size] for name, x in shuffled.items()}
                grad, diagnostics = gradient(agent, params, minibatch, clip_coef, args)
                state = [flat], [grad], [adam_mean], [adam_square], [], [adam_step]
                adam(*state, lr=learning_rate, fused=True, **adam_options)
                history.append(diagnostics)
            if args.target_kl is not None:  # detail c
                epoch_kl = torch.stack([past["approx_kl"] for past in history[-args.num_minibatches :]]).mean()
                if epoch_kl > args.target_kl:
                    break

        # Log: means over the minibatches, and statistics of the batch's valid samples
        losses = {name: torch.stack([past[name] for past in history]).mean() for name in history[0]}
        weights = batch["valid"] / batch["valid"].sum().clamp(min=1)
        spread = {name: (batch[name] - batch[name] @ weights) ** 2 @ weights for name in ("advantages", "returns")}
        errors = batch["returns"] - batch["values"]
        max_entropy = (~batch["forbidden"]).sum(-1).log().sum(-1) @ weights
        losses["relative_entropy"] = losses["entropy"] / max_entropy.clamp(1e-8)
        losses["residual_variance"] = (errors - errors @ weights) ** 2 @ weights / spread["returns"].clamp(1e-8)
        losses["explained_variance"] = 1 - losses["residual_variance"]
        losses["advantage_mean"], losses["advantage_std"] = batch["advantages"] @ weights, spread["advantages"].sqrt()
        metrics = {f"losses/{name}": value.item() for name, value in losses.items()}
        if broken := [name for name, value in metrics.items() if not math.isfinite(value)]:
            healthy = np.isfinite(rewards).all() and np.isfinite(obs).all()
            cause = "lower --learning-rate?" if healthy else "the environment's rewards or observations are not"
            fail(f"before step {global_step}, no longer finite: {', '.join(broken)}; {cause}")
        elapsed = time.time() - start_time
        metrics |= {"charts/learning_rate": learning_rate, "charts/SPS": global_step / elapsed}
        if finished:
            metrics["charts/episodic_return"], metrics["charts/episodic_length"] = np.mean(finished, axis=0)
        # As one event: with one for each, TensorBoard's writer thread would hold the interpreter for 1 ms longer
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        writer.file_writer.add_summary(Summary(value=scalars), global_step)

        # Show progress, often in a terminal, and every 10 seconds in a log file
        last_episodes.extend(finished)
        mean_return = np.mean(last_episodes, axis=0)[0] if last_episodes else None
        solved = args.stop_return is not None and len(last_episodes) == 100 and mean_return >= args.stop_return
        if solved or iteration == num_iterations or time.time() - shown_time > (0.1 if terminal else 10):
            shown_time = time.time()
            line = progress_line(global_step, num_iterations * batch_size, mean_return, elapsed)
            print(f"\r{line}\x1b[K" if terminal else f"{line}\n", end="", flush=True)
        if solved:
            break

    envs.close()
    writer.close()
    result = "no episode ended" if mean_return is None else f"mean return of the last episodes {mean_return:.2f}"
    print(f"\nDone: {global_step:,} steps, {result}\nLogged in {run_dir}\nWatch the curves: tensorboard --logdir runs")
    outcome = {"agent": agent, "run_dir": run_dir, "global_step": global_step}
    return outcome | {"episodes": list(last_episodes), "obs_stats": obs_stats}


if __name__ == "__main__":
    train(tyro.cli(Args))
