"""How `ppo.py` scales with the number of environments: steps per second and memory on CartPole-v1, on the CPU.

    python benchmarks/scaling.py

Rollouts of 128 steps and 4 minibatches, as at the defaults, so minibatches grow with the number of environments. Each
figure is the median over `--rounds` runs, in turns; speed is the steady state (see `speed.py`), memory the largest
resident set of the process. Results: `benchmarks/results/scaling.json`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from speed import HERE, steady_speed

NUM_ENVS = [1, 4, 16, 64, 256, 1024]


def run(num_envs: int, *flags: str) -> tuple[float, float]:
    """Steady steps per second, and MiB."""
    steps = max(30_000, 128 * num_envs * 12)
    with tempfile.TemporaryDirectory() as folder:
        args = ["--num-envs", str(num_envs), "--total-timesteps", str(steps), *flags]
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.execv(sys.executable, [sys.executable, str(HERE.parent / "ppo.py"), *args])
        _, status, usage = os.wait4(child, 0)
        assert status == 0, args
        return steady_speed(next(Path(folder).glob("runs/*"))), usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    flags = {"ppo.py": (), "ppo.py --compile": ("--compile",)}
    results = {name: {n: [] for n in NUM_ENVS} for name in flags}
    for _ in range(rounds):
        for n in NUM_ENVS:
            for name in flags:
                results[name][n].append(run(n, *flags[name]))
                print(name, n, results[name][n][-1], flush=True)
    print("| environments | steps per second | with `--compile` | memory, MiB | with `--compile` |")
    print("| --- | --- | --- | --- | --- |")
    for n in NUM_ENVS:
        (eager, memory), (compiled, compiled_memory) = (
            [statistics.median(column) for column in zip(*results[name][n], strict=True)] for name in flags
        )
        print(f"| {n} | {eager:,.0f} | {compiled:,.0f} | {memory:,.0f} | {compiled_memory:,.0f} |")
    (HERE / "results" / "scaling.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
