"""What limits `ppo_atari.py` on a machine: each of its parts alone, by number of environments.

    python benchmarks/ceilings.py                                     # on the GPU where there is one, else on the CPU
    python benchmarks/ceilings.py --device cpu --num-envs 8 --rounds 1
    python benchmarks/ceilings.py --num-envs 8 128 --variants         # and what else the update could do

Milliseconds of an iteration of Breakout at the script's defaults, but for the number of environments:

* the emulators, which get random actions and have nothing to wait for, with one thread per core or half of that, free
  or each bound to a core;
* acting, from frames in memory to actions, eager and compiled;
* both in turn, as the script does, and in halves, where one half of the environments steps while the policy looks at
  the other;
* one pass over the rollout for values and log-probabilities;
* the update, which is all of an iteration's gradients and Adam, eager and compiled; `--compile` makes CUDA graphs, as
  `torch.cuda.make_graphed_callables` does by hand, with less work for the host;
* the copies: the rollout to the device, from pinned and from ordinary memory, and as many single steps' frames there
  and outputs back.

The best row of the emulators is the most that any script could reach on this machine. Everything is timed after a
warm-up, for at least `--seconds`, the parts in turns; a figure is the median over rounds. Results:
`benchmarks/results/ceilings_DEVICE.json`.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the script, which sets it before PyTorch is imported
import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from speed import HERE, machine

sys.path.insert(0, str(HERE.parent))
import ppo_atari as ppo

VARIANTS = {  # of the update: what is not a flag of the script is what the script could do
    "--no-bf16": {"bf16": False},
    "compiled, --no-bf16": {"bf16": False, "compile": True},
    "--no-torch-deterministic": {"torch_deterministic": False},
    "compiled, --no-torch-deterministic": {"torch_deterministic": False, "compile": True},
    "compiled, channels last": {"channels_last": True, "compile": True},
}


class Learner:
    """An agent with a rollout, on a device: what `train` makes, and the steps that it takes."""

    def __init__(self, args: ppo.Args, envs: VectorEnv, device: torch.device, **variant: bool):
        self.args, self.device = args, device
        if device.type == "cuda":  # before anything is computed there, as in the script
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(args.torch_deterministic)
        channels_last, by_hand = variant.get("channels_last"), variant.get("by_hand")
        T, N = args.num_steps, args.num_envs
        self.agent = ppo.Agent(envs, args).to(device)
        if channels_last:
            self.agent.trunk.to(memory_format=torch.channels_last)
        self.params = [*self.agent.parameters()]
        if not channels_last:  # whose weights are no views of one vector
            self.flat = torch.nn.utils.parameters_to_vector(self.params).detach()
            torch.nn.utils.vector_to_parameters(self.flat, self.params)
        else:
            self.flat = torch.zeros(sum(param.numel() for param in self.params), device=device)
        self.optimizer = torch.optim.Adam([self.flat], lr=0.0, eps=1e-5, fused=True)  # all rounds do the same
        self.gradient, self.left = ppo.compute_gradient, torch.ones((), device=device)
        if args.compile:
            torch._dynamo.config.trace_autograd_ops = True
            options = (
                {"cpp_wrapper": True, "cpp.vec_isa_ok": True} if device.type == "cpu" else {"triton.cudagraphs": True}
            )
            options = {} if by_hand else options
            self.gradient = torch.compile(ppo.compute_gradient, fullgraph=True, dynamic=False, options=options)
            self.agent.acting = torch.compile(self.agent.network, fullgraph=True, dynamic=False, options=options)
        self.act = self.agent.policy
        if by_hand:
            graphed, compute, act = torch.cuda.make_graphed_callables, self.gradient, torch.no_grad()(self.agent.acting)
            sizes, shape = {N, N // 2} - {0}, self.agent.shape
            frames = {n: torch.zeros((n, *shape), dtype=torch.uint8, device=device) for n in sizes}
            acts = {n: graphed(act, (x,)) for n, x in frames.items()}
            self.act = lambda x: acts[len(x)](torch.from_numpy(x).to(device, non_blocking=True))[0].cpu().numpy()
            graphs = []

            def gradient(agent: ppo.Agent, params: list, minibatch: dict, left: torch.Tensor, args: ppo.Args) -> tuple:
                if not graphs:
                    sample = {name: x.clone() for name, x in minibatch.items()}
                    graphs.append(graphed(lambda batch: compute(agent, params, batch, left, args), (sample,)))
                return graphs[0](minibatch)

            self.gradient = gradient
            self.agent.policy = self.act
        noise = self.agent.noise(T, N)
        self.noise = [noise[t] for t in range(T)]
        rng = torch.Generator(device).manual_seed(1)
        obs = torch.randint(0, 256, (T * N, *self.agent.shape), dtype=torch.uint8, device=device, generator=rng)
        self.batch = {"obs": obs, "actions": torch.zeros(T * N, 1, dtype=torch.int64, device=device)}
        self.batch["masks"] = torch.ones(T * N, *self.agent.exists.shape, dtype=torch.bool, device=device)
        self.evaluate()
        for name in ("advantages", "returns"):
            self.batch[name] = torch.randn(T * N, device=device, generator=rng)
        self.batch["valid"] = torch.ones(T * N, dtype=torch.bool, device=device)

    def actions(self, obs: np.ndarray, t: int = 0, part: slice = slice(None)) -> np.ndarray:
        return self.agent.act(obs, noise=self.noise[t][part])

    @torch.no_grad()
    def evaluate(self) -> None:
        self.batch["logprobs"], _, self.batch["values"] = self.agent(self.batch)

    def update(self) -> None:
        args = self.args
        if self.device.type == "cuda":  # learners take turns
            torch.use_deterministic_algorithms(args.torch_deterministic)
        for _ in range(args.update_epochs):
            order = torch.randperm(args.num_envs * args.num_steps).to(self.device).view(args.num_minibatches, -1)
            for indices in order:
                minibatch = {name: x.index_select(0, indices) for name, x in self.batch.items()}
                self.flat.grad, diagnosis = self.gradient(self.agent, self.params, minibatch, self.left, args)
                self.optimizer.step()
                torch.stack([*diagnosis.values()])


def emulators(args: ppo.Args, threads: int, bound: bool) -> Callable[[], None]:
    """Steps an iteration with random actions."""
    options = {"num_threads": threads, "thread_affinity_offset": 0 if bound else -1, "reward_clipping": False}
    envs = gym.make_vec(args.env_id, args.num_envs, repeat_action_probability=0.0, **options)
    envs.reset(seed=1)
    actions = np.random.default_rng(1).integers(envs.single_action_space.n, size=(args.num_steps, args.num_envs))
    return lambda: [envs.step(actions[t]) for t in range(args.num_steps)]


def frames_buffer(args: ppo.Args, device: torch.device) -> np.ndarray:
    """Where observations go to be copied to the device, as in the script."""
    return torch.zeros((args.num_envs, 4, 84, 84), dtype=torch.uint8, pin_memory=device.type == "cuda").numpy()


def in_turn(args: ppo.Args, learner: Learner, halves: int) -> Callable[[], None]:
    """Collects an iteration, with the environments in one group, or in two of which one steps while the other waits."""
    N = args.num_envs // halves
    groups = [ppo.make_envs(args, N) for _ in range(halves)]
    parts = [slice(i * N, (i + 1) * N) for i in range(halves)]
    obs = frames_buffer(args, learner.device)
    for part, envs in zip(parts, groups, strict=True):
        obs[part] = envs.reset(seed=part.start)[0]
        if halves > 1:
            envs.unwrapped.send(learner.actions(obs[part], 0, part)[:, 0])

    def collect() -> None:
        for t in range(args.num_steps):
            for part, envs in zip(parts, groups, strict=True):
                if halves > 1:
                    obs[part] = envs.unwrapped.recv()[0]
                    envs.unwrapped.send(learner.actions(obs[part], t, part)[:, 0])
                else:
                    obs[part] = envs.step(learner.actions(obs[part], t, part))[0]

    return collect


def copies(args: ppo.Args, learner: Learner) -> dict[str, Callable[[], None]]:
    """Of an iteration's frames to the device, and of the policy's outputs back."""
    T, N, device = args.num_steps, args.num_envs, learner.device
    rollout = torch.zeros(T + 1, N, 4, 84, 84, dtype=torch.uint8)
    pinned = torch.zeros(rollout.shape, dtype=torch.uint8, pin_memory=device.type == "cuda").numpy()
    outputs = torch.zeros(N, learner.agent.exists.size, device=device)
    return {
        "copy of the rollout, pinned": lambda: torch.from_numpy(pinned).to(device, non_blocking=True, copy=True),
        "copy of the rollout, not pinned": lambda: rollout.to(device, copy=True),
        "copies of each step's frames": lambda: [
            torch.from_numpy(pinned[t]).to(device, non_blocking=True, copy=True) for t in range(T)
        ],
        "copies of each step's outputs": lambda: [outputs.to("cpu", copy=True).numpy() for t in range(T)],
    }


def seconds_per_call(function: Callable[[], None], device: torch.device, seconds: float) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < seconds:
        function()
        wait()
        calls += 1
    return (time.perf_counter() - start) / calls


def parts(args: ppo.Args, device: torch.device, variants: bool) -> dict[str, Callable[[], None]]:
    """What to time, by name: each does what an iteration needs."""
    torch.compiler.reset()  # what was compiled for other sizes
    envs = ppo.make_envs(args, args.num_envs)
    found, cores = {}, os.cpu_count()
    for threads in dict.fromkeys(min(args.num_envs, n) for n in (cores, max(1, cores // 2))):
        for bound in (False, True):
            name = f"emulators, {threads} threads{', bound' if bound else ''}"
            found[name] = emulators(args, threads, bound)
    obs = frames_buffer(args, device)
    for compiled, by_hand in [(False, False), (True, False), *[(False, True), (True, True)] * (device.type == "cuda")]:
        learner = Learner(ppo.replace(args, compile=compiled), envs, device, by_hand=by_hand)
        suffix = ", compiled" * compiled + ", graphs by hand" * by_hand
        found[f"acting{suffix}"] = lambda learner=learner: [learner.actions(obs, t) for t in range(args.num_steps)]
        found[f"acting and stepping in turn{suffix}"] = in_turn(args, learner, 1)
        if args.num_envs > 1:
            found[f"acting and stepping in halves{suffix}"] = in_turn(args, learner, 2)
        found[f"update{suffix}"] = learner.update
        if not suffix:
            found["values and log-probabilities"] = learner.evaluate
            found |= copies(args, learner)
    for name, changes in VARIANTS.items() if variants else ():
        flags = {name: value for name, value in changes.items() if hasattr(args, name)}
        others = {name: value for name, value in changes.items() if name not in flags}
        found[f"update, {name}"] = Learner(ppo.replace(args, **flags), envs, device, **others).update
    envs.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[8, 32, 64, 128])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--variants", action="store_true", help="of the update, too, for the first number of environments"
    )
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms; does not repeat")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement, at least")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device, times = torch.device(options.device), {}
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    record = {"machine": machine(device), "milliseconds": times}
    (HERE / "results").mkdir(exist_ok=True)
    for num_envs in options.num_envs:
        args, rows = ppo.Args(num_envs=num_envs), times.setdefault(num_envs, {})
        functions = parts(args, device, options.variants and num_envs == options.num_envs[0])
        for name, function in functions.items():  # also compiles
            for _ in range(3):  # a CUDA graph is recorded in the second call, and replayed from the third on
                function()
            print(f"{num_envs} environments, warm: {name}", file=sys.stderr, flush=True)
        for _ in range(options.rounds):
            for name, function in functions.items():
                rows.setdefault(name, []).append(1000 * seconds_per_call(function, device, options.seconds))
                print(f"{num_envs} environments, {name}: {rows[name][-1]:,.3g} ms", file=sys.stderr, flush=True)
        (HERE / "results" / f"ceilings_{device.type}.json").write_text(json.dumps(record) + "\n")
        del functions, function
        gc.collect()
    medians = {n: {name: statistics.median(row) for name, row in rows.items()} for n, rows in times.items()}
    print(", ".join(str(value) for value in record["machine"].values()))
    print("| ms per iteration of 128 steps | " + " | ".join(f"{n} environments" for n in medians) + " |")
    print("| --- |" + " --- |" * len(medians))
    for name in dict.fromkeys(name for rows in medians.values() for name in rows):
        cells = [f"{rows[name]:,.3g}" if name in rows else "" for rows in medians.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("| **steps per second of the emulators alone** | ", end="")
    fastest = {n: min(v for name, v in rows.items() if name.startswith("emulators")) for n, rows in medians.items()}
    print(" | ".join(f"{1000 * n * args.num_steps / fastest[n]:,.0f}" for n in medians) + " |")
    for name in dict.fromkeys(name for rows in medians.values() for name in rows if "stepping in" in name):
        shares = [f"{fastest[n] / rows[name]:.0%}" if name in rows else "" for n, rows in medians.items()]
        print(f"| share of that: {name} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
