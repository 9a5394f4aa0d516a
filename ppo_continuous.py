"""Proximal Policy Optimization for continuous actions and vector observations, complete in this one file.

PPO (Schulman et al., 2017, arXiv:1707.06347) collects a rollout with the current policy, estimates advantages with GAE
(Schulman et al., 2015, arXiv:1506.02438), then takes a few epochs of minibatch steps on a clipped objective that keeps
the new policy near the old one. `# detail 7` is no. 7 of Huang et al. (2022, "The 37 Implementation Details of Proximal
Policy Optimization"), a to d its extras. T steps, N environments, M samples, O observation size, C action components.

    python … --env-id my_envs:MyEnv-v0     # train, here on your own environment, registered in ./my_envs.py
    python … --resume runs/NAME            # go on where a run stopped; --evaluate runs/NAME plays with its policy
    torchrun --standalone --nproc-per-node=2 … --num-envs 16     # one run in two processes
"""

# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["gymnasium[box2d,classic-control,mujoco]==1.4.0", "mujoco==3.6.0",
#     "numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17"]
# ///

import json
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import tyro
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.multiprocessing import active_children
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

RANK, LOCAL_RANK, WORLD_SIZE = (int(os.environ.get(*x)) for x in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
stop_signals: list[int] = []  # what has asked the program to stop
at_end = ExitStack()  # what to do when a run ends, also by an error


@dataclass(kw_only=True)
class Args:
    """Train a PPO agent on a gymnasium environment."""

    exp_name: str = Path(__file__).stem  # part of the name of the run's folder: give each variant its own
    seed: int = 1  # of everything random; on a CPU, the same seed gives the same run, bit for bit
    torch_deterministic: bool = True  # let PyTorch use only algorithms that repeat exactly; on a CPU they do anyway
    cuda: bool = True  # --no-cuda keeps the run on the CPU whatever --device says
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the CPU; but the scripts for pixels take a GPU if they can
    compile: bool = False  # compile loss and gradient (needs a C++ compiler): a slower start, then faster steps
    track: bool = False  # log to Weights & Biases too: curves, arguments, this file, videos
    wandb_project_name: str = "ppo"  # W&B project that --track logs to
    wandb_entity: str | None = None  # W&B team or user that owns the project; None is your default one
    capture_video: bool = False  # film an episode at the start and at each tenth of the run; with --evaluate, all
    save_interval: float = 60.0  # seconds between checkpoints, at most what a crash costs; 0 is after every iteration
    resume: str | None = None  # run to continue, its folder or checkpoint.pt; arguments not given stay as they were
    evaluate: str | None = None  # folder of a run, or a checkpoint, to play episodes with instead of training
    eval_episodes: int = 10  # episodes that --evaluate plays
    eval_greedy: bool = False  # in evaluation and films, take the most probable action instead of a sample
    env_id: str = "HalfCheetah-v5"  # environment; `module:EnvId` imports the module that registers it, also from here
    vectorization: Literal["auto", "sync", "async", "vector_entry_point", "envpool"] = "auto"  # envpool: in C++ threads
    total_timesteps: int = 1_000_000  # steps of the whole run, over all environments; only whole iterations are run
    stop_return: float | None = None  # stop early, once the mean return of the last 100 episodes reaches this
    num_envs: int = 1  # parallel environments, over all processes: more make steps cheaper, but updates rarer
    num_steps: int = 2048  # steps per environment and iteration, which learns from num_envs * num_steps
    learning_rate: float = 3e-4  # Adam's step size at the start
    anneal_lr: bool = True  # lower the learning rate linearly to zero over the run
    gamma: float = 0.99  # discount: rewards up to about 1 / (1 - gamma) steps ahead matter
    gae_lambda: float = 0.95  # GAE's trade-off: 1 is unbiased but noisy, 0 trusts the value network alone
    num_minibatches: int = 32  # minibatches per epoch; must divide num_envs * num_steps
    update_epochs: int = 10  # passes over each iteration's data; more learn more from it, until clipping stops them
    norm_adv: bool = True  # scale the advantages of each minibatch to mean 0 and standard deviation 1
    clip_coef: float = 0.2  # a ratio of new to old probability beyond 1 ± this pays no more; smaller is more careful
    anneal_clip: bool = False  # lower the clip range linearly to zero over the run
    clip_vloss: bool = True  # clip the change of values by clip_coef too; switch it off where returns are large
    ent_coef: float = 0.0  # weight of the entropy bonus: raise it when the policy settles too early, 0 is none
    anneal_ent: bool = False  # lower the entropy bonus linearly to zero over the run: explore first, then settle
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # longer gradients are shortened to this norm
    target_kl: float | None = None  # end an iteration's epochs when the policy has moved this far; 0.015 is usual
    norm_obs: bool = True  # scale uneven or large vectors by running mean and deviation; ppo_atari.py: centre frames
    norm_reward: bool = True  # scale large rewards by the discounted return's deviation; ppo_atari.py: else their sign
    init_std: float = 1.0  # first standard deviation of actions, from 0.001: less explores less; HalfCheetah likes 0.4

    def __new__(cls, **given):  # which arguments were given: when a run is resumed, the others are as they were
        args = super().__new__(cls)
        args.given = given
        return args


def check_args(args: Args, device: str) -> None:
    """Exit with a message of one line for what would fail late, or never be noticed."""
    for name, value in asdict(args).items():  # integers from 1, others from 0, but for those named here: add yours
        low = {"seed": 0, "stop_return": -1e15}.get(name, 1 if type(getattr(Args, name, None)) is int else 0)
        high = 1 if name in ("learning_rate", "gamma", "gae_lambda") else 10**15
        if isinstance(value, np.generic) or (type(value) in (int, float) and not low <= value <= high):
            sys.exit(f"error: --{name.replace('_', '-')} must be a plain number from {low} to {high}, not {value!r}")
    size, rest = divmod(args.num_envs * args.num_steps, args.num_minibatches * WORLD_SIZE)
    if args.num_envs % WORLD_SIZE or rest or not 1 + args.norm_adv <= size <= 10**8:  # one sample has advantage 0
        sys.exit("error: num_minibatches must cut num_envs * num_steps of each process into equal parts of 2 to 10**8")
    if args.env_id.count(":") > 1 or args.env_id.startswith(":"):
        sys.exit(f"error: --env-id {args.env_id}: must be EnvId or module:EnvId")
    no_gpu = args.cuda and "cuda" in args.device + device and torch.cuda.device_count() <= LOCAL_RANK  # asked or auto
    if no_gpu or (args.compile and not shutil.which(os.environ.get("CXX", "c++"))):
        sys.exit("error: " + ("too few GPUs: --device cpu?" if no_gpu else "--compile: no C++ compiler found"))


def make_envs(args: Args, num_envs: int, video_folder: Path | None = None) -> gym.vector.VectorEnv:
    """N environments as one: observations (N, O), actions (N, C). With a folder, each episode becomes a film there."""
    mode = "sync" if video_folder else None if args.vectorization == "auto" else args.vectorization
    record = [lambda env: gym.wrappers.RecordVideo(env, str(video_folder), lambda _: True)] if video_folder else []
    film = {"render_mode": "rgb_array", "wrappers": record} if video_folder else {}
    os.environ |= {"MUJOCO_GL": "egl"} | os.environ if film and sys.platform == "linux" else {}  # without a display
    try:
        if mode == "envpool":
            gym.logger.min_level = gym.logger.ERROR  # not to hear of float32 bounds
            if args.env_id not in __import__("envpool").list_all_envs():
                raise gym.error.NameNotFound("not in envpool.list_all_envs()")
            envs = __import__("envpool").make_gymnasium(args.env_id, num_envs=num_envs, seed=args.seed % 2**31)
            envs.reset = lambda envs=envs, **seed: type(envs).reset(envs)  # EnvPool's takes no seed
        else:
            envs = gym.make_vec(args.env_id, num_envs, mode, **film)
    except (gym.error.Error, ImportError) as error:
        sys.exit(f"error: --env-id {args.env_id}: {error} (your own: module:EnvId; an Atari game: ppo_atari.py)")
    actions, obs = envs.single_action_space, envs.single_observation_space
    fits = isinstance(actions, gym.spaces.Box) and np.issubdtype(actions.dtype, np.floating)
    if not fits or not obs.is_np_flattenable or (obs.dtype == np.uint8 and np.prod(obs.shape) >= 1024):
        sys.exit(f"error: {args.env_id} has {actions}, {obs}: try ppo.py, ppo_continuous.py, ppo_atari.py (3D, uint8)")
    if envs.metadata.get("autoreset_mode") is not gym.vector.AutoresetMode.NEXT_STEP:  # the step after an end resets
        sys.exit(f"error: {args.env_id} must have metadata['autoreset_mode'] = AutoresetMode.NEXT_STEP")
    if not isinstance(obs, gym.spaces.Box) or len(obs.shape) != 1:
        envs = gym.wrappers.vector.FlattenObservation(envs)
    with suppress(AttributeError):  # MuJoCo's films follow the body, where its model has a camera for that
        envs.envs[0].unwrapped.mujoco_renderer.camera_id = 0 if envs.envs[0].unwrapped.model.ncam else -1
    b = gym.vector.utils.batch_space(actions, num_envs)  # actions are clipped to these bounds only here (detail 27)
    return gym.wrappers.vector.TransformAction(envs, lambda x: x.reshape(b.shape).clip(b.low, b.high).astype(b.dtype))


class RunningMeanStd(nn.Module):
    """Mean and variance of all data so far, as buffers: saved with the agent, and changed by `update` alone."""

    def __init__(self, shape: tuple[int, ...] = ()):
        super().__init__()
        self.mean, self.var = nn.Buffer(torch.zeros(shape)), nn.Buffer(torch.ones(shape))
        self.count = nn.Buffer(torch.zeros(shape, dtype=torch.int64))

    def update(self, data: np.ndarray) -> None:
        """Add data (any number, *shape), in a data-parallel run those of all processes."""
        mean, var, count = (x.cpu().double() for x in (self.mean, self.var, self.count))
        x = torch.from_numpy(data).double() - mean
        new, deviations, squares = WORLD_SIZE * all_mean(torch.stack([x**0, x, x**2]).sum(1))  # sums over all processes
        shift = deviations / (count + new)  # how far the mean moves; squares are of distances from the old one
        self.var.copy_(((var * count + squares) / (count + new) - shift**2).clamp(min=0))  # rounding can go below
        self.mean.copy_(mean + shift)
        self.count.copy_(count + new)


def linear(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:  # orthogonal, zero biases (detail 2)
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """The policy, the value function, and the running statistics that they need."""

    def __init__(self, envs: gym.vector.VectorEnv, args: Args):
        super().__init__()
        shape, space = envs.single_observation_space.shape, envs.single_action_space
        self.norm_obs, self.obs_stats, self.return_stats = args.norm_obs, RunningMeanStd(shape), RunningMeanStd()
        outputs = int(np.prod(space.shape))  # policy and value have networks of their own (details 13 and 26)
        self.actor = nn.Sequential(linear(*shape, 64), nn.Tanh(), linear(64, 64), nn.Tanh(), linear(64, outputs, 0.01))
        self.critic = nn.Sequential(linear(*shape, 64), nn.Tanh(), linear(64, 64), nn.Tanh(), linear(64, 1, 1.0))
        self.log_std = nn.Parameter(torch.full((outputs,), args.init_std).clamp(1e-3).log())  # one for all (detail 24)

    def network(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Observations (M, O) → the policy's outputs, and values (M,). Acting and learning share it: change it here."""
        if self.norm_obs:  # details 28 and 29
            obs = ((obs - self.obs_stats.mean) / (self.obs_stats.var + 1e-8).sqrt()).clamp(-10, 10)
        return self.actor(obs), self.critic(obs).squeeze(-1)

    def forward(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probability of actions and entropy, summed over components (details 25, 37), and values: each (M,)."""
        outputs, values = self.network(batch["obs"])
        noise = (batch["actions"] - outputs) / self.log_std.exp()
        logprob = -(0.5 * noise**2 + self.log_std + 0.5 * np.log(2 * np.pi)).sum(-1)
        return logprob, (self.log_std + 0.5 * np.log(2 * np.pi * np.e)).sum().expand_as(logprob), values

    def act(self, obs: np.ndarray, noise=None, greedy: bool = False) -> np.ndarray:
        """Actions (N, C) for observations (N, O): sampled, or with `greedy` the most probable ones."""
        outputs = self.policy(obs)
        if not greedy:
            outputs = outputs + (self.noise(len(obs)) if noise is None else noise)
        return outputs

    @torch.no_grad()
    def policy(self, obs: np.ndarray) -> np.ndarray:
        return self.network(torch.as_tensor(obs, dtype=torch.float32).to(self.obs_stats.mean.device))[0].cpu().numpy()

    def numpy_policy(self, x: np.ndarray) -> np.ndarray:
        """What `policy` gives, in NumPy and faster: `train` sets `layers` and `stats`, and uses it while both agree."""
        x = ((x - self.stats[0]) / self.stats[1]).clip(-10, 10) if self.norm_obs else x
        for layer in self.layers:
            x = x @ layer[0].T + layer[1] if layer else np.tanh(x)
        return x

    def noise(self, *shape: int) -> np.ndarray:
        return (torch.randn(*shape, len(self.log_std)) * self.log_std.exp().cpu()).detach().numpy()  # scaled


def compute_gae(rewards, values, terminated, truncated, gamma: float, gae_lambda: float) -> np.ndarray:
    """Generalized advantage estimation (detail 5), (T, N), from values (T+1, N) and all else (T, N). values[t+1] is of
    the true last observation where an episode ends at t: a time limit bootstraps from it, a termination does not."""
    deltas = rewards + gamma * values[1:] * ~terminated - values[:-1]
    decays = np.where(terminated | truncated, 0, gamma * gae_lambda).astype(values.dtype)
    advantages = np.zeros_like(values)
    for t in reversed(range(len(rewards))):
        advantages[t] = deltas[t] + decays[t] * advantages[t + 1]
    return advantages[:-1]


def all_mean(x: torch.Tensor) -> torch.Tensor:
    """The mean of x, which it overwrites, over the processes of a data-parallel run; with one process, x itself."""
    if WORLD_SIZE > 1:
        dist.all_reduce(x)
    return x if WORLD_SIZE == 1 else x / WORLD_SIZE


def ppo_loss(agent: Agent, batch: dict, left: torch.Tensor, args: Args) -> tuple[torch.Tensor, dict]:
    """Loss (detail 10) and diagnostics (detail 12) of a minibatch; `left`: share of the run to come, for annealing.
    `batch`: what `agent` takes; (M,) each: valid (not a reset), advantages, returns (targets), old logprobs, values."""
    weights = batch["valid"] / batch["valid"].sum().clamp(min=1)  # x @ weights is the mean of x over valid samples
    advantages = batch["advantages"]
    if args.norm_adv:  # detail 7
        advantages = advantages - advantages @ weights
        advantages = advantages / ((advantages**2 @ weights).sqrt() + 1e-8)
    logprob, entropy, value = agent(batch)
    clip_coef = args.clip_coef * (left if args.anneal_clip else 1)  # detail a
    log_ratio = logprob - batch["logprobs"]  # policy: the clipped surrogate objective (detail 8)
    ratio = log_ratio.exp()
    policy_loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip_coef, 1 + clip_coef)) @ weights
    # Value: squared error, of the worse of the plain and the clipped estimate (detail 9)
    squared_error = (value - batch["returns"]) ** 2
    if args.clip_vloss:
        clipped_value = batch["values"] + (value - batch["values"]).clamp(-clip_coef, clip_coef)
        squared_error = torch.max(squared_error, (clipped_value - batch["returns"]) ** 2)
    value_loss = 0.5 * (squared_error @ weights)
    entropy = entropy @ weights
    loss = policy_loss - args.ent_coef * (left if args.anneal_ent else 1) * entropy + args.vf_coef * value_loss
    diagnostics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    # Both estimate KL(old || new) from the samples; the second has less variance (Schulman, 2020)
    diagnostics |= {"old_approx_kl": -log_ratio @ weights, "approx_kl": (ratio - 1 - log_ratio) @ weights}
    diagnostics["clipfrac"] = ((ratio - 1).abs() > clip_coef).type_as(weights) @ weights
    return loss, {name: x.detach() for name, x in diagnostics.items()}


def compute_gradient(agent: Agent, params: list, batch: dict, left: torch.Tensor, args: Args) -> tuple:
    """The gradient of the loss in one vector, averaged over processes, then clipped (detail 11); and diagnostics."""
    loss, diagnostics = ppo_loss(agent, batch, left, args)
    gradient = all_mean(torch.cat([x.flatten() for x in torch.autograd.grad(loss, params, materialize_grads=True)]))
    diagnostics["grad_norm"] = gradient.norm()
    return gradient * (args.max_grad_norm / (diagnostics["grad_norm"] + 1e-6)).clamp(max=1), diagnostics


def load_checkpoint(run: str | Path, **parts) -> dict:
    """What a run saved, from its folder or a file, read as data: no code runs. `parts` load their saved states."""
    path = Path(run, "checkpoint.pt") if Path(run).is_dir() else Path(run)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state | {"args": Args(**state["args"])}
    except Exception as error:
        sys.exit(f"error: {path} is missing, damaged, or of another environment, network or script ({error!r:.99})")


def load(run: str | Path, args: Args | None = None) -> tuple[Agent, gym.vector.VectorEnv]:
    """A trained policy and one of its environments: `agent.act(obs)` is what `envs.step` takes."""
    args = args or load_checkpoint(run)["args"]
    envs = make_envs(args, 1)
    load_checkpoint(run, agent=(agent := Agent(envs, args)))
    return agent, envs


def evaluate(agent: Agent, args: Args, episodes: int, video_folder: Path | None = None, max_length=10**9) -> list:
    """Play (and film) episodes with an agent that stays as it is; a list of (return, length)."""
    envs, results = make_envs(args, 1, video_folder), []
    torch.manual_seed(args.seed)
    while len(results) < episodes and not stop_signals:
        obs, info = envs.reset(seed=None if results else args.seed % 2**31)
        ended, episode_return, length = np.zeros(1, bool), 0.0, 0
        while not (ended or length == max_length or stop_signals):
            actions = agent.act(obs, greedy=args.eval_greedy)
            obs, reward, terminated, truncated, info = envs.step(actions)
            ended, episode_return, length = terminated | truncated, episode_return + reward.item(), length + 1
        results += [] if stop_signals else [(episode_return, length)]
    envs.close()
    return results


@contextmanager
def process_settings():
    """Ctrl-C and SIGTERM finish the iteration, a third ends at once; then all is as it was before, no child is left."""
    with at_end, torch._dynamo.config.patch(trace_autograd_ops=True):  # to compile forward and backward as one
        at_end.callback(torch.set_num_threads, torch.get_num_threads())
        at_end.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        at_end.callback(lambda old: [x.kill() for x in {*active_children()} - old], {*active_children()})  # or it hangs
        at_end.callback(stop_signals.clear)
        for sig in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # outside of the main thread, where signals don't arrive
                old = signal.signal(sig, lambda x, _: sys.exit(128 + x) if stop_signals[1:] else stop_signals.append(x))
                at_end.callback(signal.signal, sig, old)
        torch.set_num_threads(1)  # these networks are too small for several threads: delete this for a larger one
        yield


@process_settings()
def train(args: Args) -> dict:
    """Train, log to `runs/`, save checkpoints, show progress; exits with one line for mistakes. Returns agent, run_dir,
    global_step, episodes (return and length of each of the last 100), and exit_code (0, or 128 + signal)."""
    saved = {"args": args, "global_step": 0, "episodes": []} if args.resume is None else load_checkpoint(args.resume)
    args = replace(saved["args"], **{k: x for k, x in asdict(args).items() if k in args.given or x != vars(Args())[k]})
    device = f"cuda:{LOCAL_RANK}" if args.cuda and args.device == "cuda" else "cpu"
    check_args(args, device)
    T, N, batch_size = args.num_steps, args.num_envs // WORLD_SIZE, args.num_steps * args.num_envs  # N: of each process
    global_step, episodes = saved["global_step"], saved["episodes"]
    total_steps = global_step + (args.total_timesteps - global_step) // batch_size * batch_size
    if global_step >= total_steps:
        sys.exit(f"error: --total-timesteps has no room for {batch_size} steps after the {global_step} that are done")
    if device != "cpu":
        torch.cuda.set_device(device)  # for pinned memory and NCCL, which would else take the first of several
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, matrix products don't repeat exactly
        torch.use_deterministic_algorithms(args.torch_deterministic)
    if WORLD_SIZE > 1 and not dist.is_initialized():
        dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")  # statistics are on the CPU
    torch.manual_seed(args.seed)  # the same in all processes, so that they begin with the same parameters
    env_seed = hash((args.seed, global_step, RANK)) % 2**31  # another one in each process, and after resuming
    envs = make_envs(replace(args, seed=env_seed), N)
    at_end.callback(lambda: "WAITING" in str(getattr(envs.unwrapped, "_state", "")) or envs.close())  # or async hangs
    agent = Agent(envs, args).to(device)
    params = [param for param in agent.parameters() if param.requires_grad]
    flat = nn.utils.parameters_to_vector(params).detach()  # the parameters become views of it: clipping and Adam then
    nn.utils.vector_to_parameters(flat, params)  # handle one tensor, with one gradient; each parameter's .grad is None
    optimizer = torch.optim.Adam([flat], eps=1e-5, fused=True)  # detail 3
    stateful = {"agent": agent, "optimizer": optimizer}  # saved and resumed by their state_dict: add yours here
    if args.resume is not None:
        load_checkpoint(args.resume, **stateful)
    options = {"cpp_wrapper": True, "cpp.vec_isa_ok": True} if device == "cpu" else {"triton.cudagraphs": True}
    gradient = torch.compile(compute_gradient, fullgraph=True, options=options) if args.compile else compute_gradient
    # The rollout is collected in NumPy, whose arrays environments fill row by row, and goes to the device as a whole
    obs = torch.zeros((T + 1, N, *envs.single_observation_space.shape), pin_memory=device != "cpu").numpy()
    actions = np.zeros((T, N, len(agent.log_std)), np.float32)
    rewards, discounted_returns = np.zeros((2, T, N), np.float32)
    terminated, truncated, valid = np.zeros((3, T, N), bool)
    episode, discounted_return = np.zeros((2, N)), np.zeros(N)  # of running episodes; `episode`: returns and lengths
    ended = np.zeros(N, bool)  # by the last step, so that the next one only resets
    obs[T], info = envs.reset(seed=env_seed)
    run_dir, start_time, saved_time, filmed, done = None, time.time(), 0.0, -1, False
    if RANK == 0:  # which alone logs, saves and prints
        name = f"{args.env_id}__{args.exp_name}__{args.seed}__".replace("/", "_").replace(":", "_")
        run_dir = Path(str(args.resume or f"runs/{name}{time.time():.6f}").removesuffix("checkpoint.pt"))
        try:
            run_dir.mkdir(parents=True, exist_ok=args.resume is not None)
            (run_dir / "args.json").write_text(json.dumps(asdict(args), indent=2, default=str))
            if args.track:
                wandb = __import__("wandb")  # not before it is needed: it takes a second
                names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "config": asdict(args)}
                names |= {"name": (name := run_dir.absolute().name), "id": name[-64:], "resume": "allow"}
                wandb.init(**names, sync_tensorboard=True, save_code=True, reinit="finish_previous")
        except Exception as error:  # no place to write; or W&B is not installed, or refuses
            sys.exit(f"error: can't start: {' '.join(f'{error}'.split())} (--track: pip install wandb, `wandb login`)")
        writer = at_end.enter_context(SummaryWriter(run_dir, purge_step=global_step + 1 if args.resume else None))
    progress = {"initial": global_step, "total": total_steps, "mininterval": 0.1 if sys.stderr.isatty() else 10}
    bar = at_end.enter_context(tqdm(**progress, unit=" steps", unit_scale=1, disable=RANK > 0))  # in a file, each 10 s

    while not done:
        left = torch.full((), 1 - global_step / total_steps, device=device)  # a number would be compiled anew
        optimizer.param_groups[0]["lr"] = args.learning_rate * (left.item() if args.anneal_lr else 1)  # detail 4
        torch.default_generator.manual_seed(hash((args.seed, global_step, RANK)))  # the same in a resumed run
        with suppress(Exception):  # act in NumPy if that gives `network`'s outputs, for these and far larger inputs
            agent.layers = [[x.detach().cpu().numpy() for x in layer.parameters()] for layer in agent.actor]
            agent.stats = [x.cpu().numpy() for x in (agent.obs_stats.mean, (agent.obs_stats.var + 1e-8).sqrt())]
            probe = np.concatenate([obs[T % 8 :: 8], 999 * obs[T % 8 :: 8] - 9]).reshape(-1, obs.shape[2])
            if np.allclose(agent.numpy_policy(probe), agent.policy(probe), rtol=1e-3, atol=1e-4):
                agent.policy = agent.numpy_policy

        # Collect T steps from each environment; episodes go on across rollouts (detail 1)
        obs[0] = obs[T]
        noise, finished = agent.noise(T, N), []
        for t in range(T):
            actions[t] = agent.act(obs[t], noise[t])
            obs[t + 1], reward, terminated[t], truncated[t], info = envs.step(actions[t])
            rewards[t], valid[t] = reward, ~ended  # right after an end, a step only resets: nothing is learned from it
            ended = terminated[t] | truncated[t]
            discounted_returns[t] = discounted_return = discounted_return * args.gamma + reward
            episode += reward, valid[t]  # its two rows: return and length
            if ended.any():
                finished += episode.T[ended].tolist()
                episode[:, ended] = discounted_return[ended] = 0
        if args.norm_reward:  # details 30 and 31
            agent.return_stats.update(discounted_returns[valid])
            rewards[:] = (rewards / (agent.return_stats.var.item() + 1e-8) ** 0.5).clip(-10, 10)

        # Estimate, all T steps in one pass: the policy has not changed yet. On a CPU, batch shares the arrays' memory
        batch = {"obs": obs[:T], "actions": actions, "valid": valid}
        batch = {name: torch.from_numpy(x).to(device, non_blocking=True).flatten(0, 1) for name, x in batch.items()}
        with torch.no_grad():
            batch["logprobs"], _, batch["values"] = agent(batch)
            _, last_values = agent.network(torch.from_numpy(obs[T]).to(device))
        values = torch.cat([batch["values"], last_values]).cpu().numpy().reshape(T + 1, N)
        advantages = compute_gae(rewards, values, terminated, truncated, args.gamma, args.gae_lambda)
        returns = advantages + values[:T]
        batch["advantages"], batch["returns"] = torch.from_numpy(np.stack([advantages, returns])).to(device).flatten(1)

        # Update: a few epochs over the batch, in minibatches that are shuffled anew each time (detail 6)
        diagnostics = []
        for _ in range(args.update_epochs):
            for indices in torch.randperm(T * N).to(device).view(args.num_minibatches, -1):
                minibatch = {name: x.index_select(0, indices) for name, x in batch.items()}
                flat.grad, losses = gradient(agent, params, minibatch, left, args)
                optimizer.step()
                diagnostics.append(torch.stack([*losses.values()]))  # a copy: CUDA graphs reuse their memory
            approx_kl = torch.stack(diagnostics[-args.num_minibatches :]).mean(0)[[*losses].index("approx_kl")]
            if args.target_kl is not None and all_mean(approx_kl) > args.target_kl:  # detail c
                break
        agent.obs_stats.update(obs[:T][valid])  # only now: acting and learning must normalise a rollout alike
        vars(agent).pop("policy", None)  # back to PyTorch: the weights that NumPy had are out of date
        global_step += batch_size

        # Log means over minibatches, valid samples and processes: add yours to losses, in all processes, or to metrics
        losses = dict(zip(losses, torch.stack(diagnostics).mean(0).tolist(), strict=True))  # read at once
        if broken := [k for k, x in (losses | agent.state_dict()).items() if not torch.as_tensor(x).isfinite().all()]:
            sys.exit(f"error: before step {global_step}, no longer finite: {broken[:6]}; lower --learning-rate?")
        unexplained = advantages[valid].var() / max(returns[valid].var(), 1e-8)  # advantages are returns - values
        losses |= {"residual_variance": unexplained, "explained_variance": 1 - unexplained}
        losses |= {"advantage_mean": advantages[valid].mean(), "advantage_std": advantages[valid].std()}
        losses["policy_std"] = agent.log_std.exp().mean().item()
        means = all_mean(torch.tensor([*losses.values()], dtype=torch.float64)).tolist()
        metrics = {f"losses/{name}": x for name, x in zip(losses, means, strict=True)}
        metrics["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
        metrics["charts/SPS"] = (global_step - saved["global_step"]) / (time.time() - start_time)
        gathered = [(finished, stop_signals)] * WORLD_SIZE  # of all processes: a signal to one stops all
        if WORLD_SIZE > 1:
            dist.all_gather_object(gathered, gathered[0])
        finished, stops = ([x for part in parts for x in part] for parts in zip(*gathered, strict=True))
        if finished:
            metrics["charts/episodic_return"], metrics["charts/episodic_length"] = np.mean(finished, axis=0)
        episodes = (episodes + finished)[-100:]
        mean_return = np.mean(episodes, axis=0)[0].item() if episodes else float("nan")
        solved = args.stop_return is not None and len(episodes) == 100 and mean_return >= args.stop_return
        done = solved or stops or global_step == total_steps
        if RANK == 0:
            curves = [Summary.Value(tag=name, simple_value=x) for name, x in metrics.items()]  # one event is faster
            writer.file_writer.add_summary(Summary(value=curves), global_step)
            if done or time.time() - saved_time >= args.save_interval:
                writer.flush()  # first, so that the curves are never behind the checkpoint
                state = {"args": asdict(replace(args, resume=None)), "global_step": global_step, "episodes": episodes}
                with open(run_dir / "checkpoint.tmp", "wb") as file:  # a kill at any instant leaves a whole checkpoint
                    torch.save(state | {name: part.state_dict() for name, part in stateful.items()}, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(run_dir / "checkpoint.tmp", run_dir / "checkpoint.pt")
                saved_time = time.time()
            bar.set_postfix_str(f"return {mean_return:.1f}", refresh=False)
            bar.update(batch_size)
            if args.capture_video and global_step * 10 // total_steps > filmed:
                filmed, folder = global_step * 10 // total_steps, run_dir / "videos" / f"step-{global_step:09}"
                evaluate(agent, args, 1, folder, max_length=2000)
                for video in folder.glob("*.mp4") if args.track else ():
                    wandb.log({"videos/episode": wandb.Video(str(video)), "global_step": global_step})

    bar.close()
    if RANK == 0:
        call = f"\n  python {os.path.relpath(__file__)}"
        more = f" --total-timesteps {2 * total_steps}" * (global_step == total_steps) + " --stop-return None" * solved
        print(f"{'Stopped' if stops else 'Done'}: {global_step:,} steps, mean return {mean_return:.2f}. Next:")
        print(f"  tensorboard --logdir runs{call} --evaluate {run_dir}{call} --resume {run_dir}{more}", flush=True)
    result = {"agent": agent, "run_dir": run_dir, "global_step": global_step, "episodes": episodes}
    return result | {"exit_code": 128 + stops[0] if stops and RANK == 0 else 0}  # torchrun ends all at one's error


if __name__ == "__main__":
    sys.path.append(os.getcwd())  # for `module:EnvId`, when this script lies elsewhere
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame films without a display
    args = typed = tyro.cli(Args)
    if args.resume is not None or args.evaluate is not None:  # what is not given is as it was
        args = tyro.cli(Args, default=load_checkpoint(args.evaluate if args.resume is None else args.resume)["args"])
    if args.evaluate is None:
        sys.exit(train(args)["exit_code"])
    with process_settings():
        folder = Path("videos", Path(args.evaluate.removesuffix("checkpoint.pt")).name) if typed.capture_video else None
        results = evaluate(load(args.evaluate, args)[0], args, args.eval_episodes, folder)
    returns = [episode_return for episode_return, _ in results] or sys.exit("error: no episode was played to its end")
    print(f"{len(returns)} episodes: return {np.mean(returns):.2f} ± {np.std(returns):.2f}")
