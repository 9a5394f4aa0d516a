"""What a second process brings on one machine: steps per second of `ppo.py` alone and with torchrun, on CartPole-v1.

    python benchmarks/parallel.py

The same command for both, so the same total number of environments: two processes have half of them each, and each
learns from half of every minibatch. Few environments show what it costs to add up gradients after each minibatch, many
what is left of the gain. Each figure is the median over `--rounds` runs, in turns; speed is the steady state (see
`speed.py`). Results: `benchmarks/results/parallel.json`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium
import numpy
import torch
from speed import HERE, steady_speed

NUM_ENVS = [8, 256]
LAUNCHERS = {
    1: [sys.executable],
    2: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
}


def run(processes: int, num_envs: int, iterations: int) -> float:
    """Steady steps per second, over all processes."""
    steps = max(iterations, 200_000 // (128 * num_envs)) * 128 * num_envs
    flags = ["--num-envs", str(num_envs), "--num-steps", "128", "--total-timesteps", str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        command = [*LAUNCHERS[processes], str(HERE.parent / "ppo.py"), *flags]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return steady_speed(next(Path(folder).glob("runs/*")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=30, help="iterations of a run, at least")
    args = parser.parse_args()
    speeds = {n: {processes: [] for processes in LAUNCHERS} for n in NUM_ENVS}
    for _ in range(args.rounds):
        for n in NUM_ENVS:
            for processes in LAUNCHERS:
                speeds[n][processes].append(run(processes, n, args.iterations))
                print(f"{n} environments, {processes} processes: {speeds[n][processes][-1]:,.0f}", flush=True)
    print("| environments × steps | steps per second, 1 process | 2 processes | ratio | (range over rounds) |")
    print("| --- | --- | --- | --- | --- |")
    for n in NUM_ENVS:
        one, two = (statistics.median(speeds[n][processes]) for processes in LAUNCHERS)
        ratios = [b / a for a, b in zip(*speeds[n].values(), strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {n} × 128 | {one:,.0f} | {two:,.0f} | {statistics.median(ratios):.2f} | {spread} |")
    versions = {module.__name__: module.__version__ for module in (gymnasium, numpy, torch)}
    record = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version()}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "parallel.json").write_text(json.dumps(record | versions | {"steady_sps": speeds}) + "\n")


if __name__ == "__main__":
    main()
