"""Where the time of `ppo_atari.py` goes: its parts alone, the machine's matrix rate, and the whole.

    python benchmarks/atari.py
    python benchmarks/atari.py --num-envs 64 --num-minibatches 16 --device cuda

For one iteration of Breakout, in milliseconds: stepping the environments with nothing else to do, acting, one pass
over the rollout, all gradients, each repeated alone; what is left of the whole iteration is what they cost each other,
and everything else. Beside them, how long the same arithmetic takes at the rate of a large matrix product. Each figure
is the median over rounds, in turns. Results: `benchmarks/results/atari_N.json`, with N environments.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from speed import HERE, steady_speed

sys.path.insert(0, str(HERE.parent))
import ppo_atari as ppo

# Multiplications and additions of the Nature CNN for one observation: forward, by layer
LAYERS = [2 * 20 * 20 * 32 * 4 * 64, 2 * 9 * 9 * 64 * 32 * 16, 2 * 7 * 7 * 64 * 64 * 9, 2 * 3136 * 512]
FORWARD, BACKWARD = sum(LAYERS), 2 * sum(LAYERS) - LAYERS[0]  # frames need no gradient


def clock(function, repeats: int, device: torch.device) -> float:
    """Milliseconds of `repeats` calls, after one that does not count."""
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def parts(args: ppo.Args, device: torch.device) -> dict[str, float]:
    """Milliseconds per iteration of each part alone."""
    N, T = args.num_envs, args.num_steps
    envs = ppo.make_envs(args)
    frames, _ = envs.reset(seed=1)
    rng = np.random.default_rng(1)
    agent = ppo.Agent(envs, args).to(device)
    agent.trunk.dtype = torch.bfloat16 if args.bf16 else torch.float32
    params = [*agent.parameters()]
    policy, frames = ppo.numpy_policy(agent), frames.reshape(N, -1)
    rollout = torch.from_numpy(frames).to(device).repeat(T + 1, 1)
    batch = {"obs": rollout, "actions": torch.zeros((T + 1) * N, 1, dtype=torch.int64, device=device)}
    batch["forbidden"] = torch.zeros((T + 1) * N, *agent.missing.shape, dtype=torch.bool, device=device)
    size = N * T // args.num_minibatches
    order = torch.randperm(N * T, device=device)[:size]
    with torch.no_grad():
        batch["logprobs"], _, batch["values"] = agent.evaluate(batch)
    numbers = {name: torch.randn(size, device=device) for name in ("advantages", "returns")}
    numbers["weights"] = torch.full((size,), 1 / size, device=device)

    def gradient() -> None:
        minibatch = {name: x.index_select(0, order) for name, x in batch.items()}
        ppo.compute_gradient(agent, params, minibatch | numbers, args.clip_coef, args)

    actions = rng.integers(envs.single_action_space.n, size=(T, N))
    times = {
        "environments": clock(lambda: [envs.step(actions[t]) for t in range(T)], 1, device),
        "acting": clock(lambda: policy(frames), T, device),
        "values and log-probabilities": clock(torch.no_grad()(lambda: agent.evaluate(batch)), 1, device),
        "gradients": clock(gradient, args.num_minibatches * args.update_epochs, device),
    }
    envs.close()
    return times


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a product of 2048 x 2048 matrices."""
    a, b = torch.randn(2, 2048, 2048, device=device).to(dtype)
    return 1000 * 10 * 2 * 2048**3 / clock(lambda: a @ b, 10, device)


def whole(args: ppo.Args) -> float:
    """Milliseconds per iteration of the script, in its steady state."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            HERE.parent / "ppo_atari.py",
            "--device",
            args.device,
            "--num-envs",
            str(args.num_envs),
        ]
        command += ["--num-minibatches", str(args.num_minibatches), "--bf16" if args.bf16 else "--no-bf16"]
        command += ["--total-timesteps", str(24 * args.num_envs * args.num_steps)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return 1000 * args.num_envs * args.num_steps / steady_speed(next(Path(folder).glob("runs/*")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--num-minibatches", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = vars(parser.parse_args())
    rounds = options.pop("rounds")
    args, device = ppo.Args(**options), torch.device(options["device"])
    N, T = args.num_envs, args.num_steps
    rows = {}
    for _ in range(rounds):
        found = parts(args, device) | {"the whole iteration": whole(args)}
        found["matrix rate"] = matrix_rate(torch.bfloat16 if args.bf16 else torch.float32, device)
        for name, value in found.items():
            rows.setdefault(name, []).append(value)
        print({name: f"{value:,.4g}" for name, value in found.items()}, flush=True)
    medians = {name: statistics.median(values) for name, values in rows.items()}
    rate, total = medians.pop("matrix rate"), medians.pop("the whole iteration")
    work = {"acting": N * T * FORWARD, "values and log-probabilities": N * (T + 1) * FORWARD}
    work["gradients"] = args.update_epochs * N * T * (FORWARD + BACKWARD)
    print(f"matrix rate {rate / 1e9:,.0f} GFLOP/s; the whole: {1000 * N * T / total:,.0f} steps per second")
    print("| part | alone, ms per iteration | share of the iteration | its arithmetic at the matrix rate, ms |")
    print("| --- | --- | --- | --- |")
    medians["the rest"] = total - sum(medians.values())
    for name, value in (medians | {"the whole iteration": total}).items():
        least = sum(work.values()) if name == "the whole iteration" else work.get(name)
        least = "" if least is None else f"{1000 * least / rate:,.0f}"
        print(f"| {name} | {value:,.0f} | {value / total:.0%} | {least} |")
    record = {"cores": os.cpu_count(), "arguments": options, "rounds": rows}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"atari_{N}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
