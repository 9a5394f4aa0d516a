"""How the scripts scale with the number of environments: steps per second and memory, on the CPU.

    python benchmarks/scaling.py                  # ppo.py on CartPole-v1
    python benchmarks/scaling.py Hopper-v5        # ppo_continuous.py, with gymnasium's environments and EnvPool's
    python benchmarks/scaling.py BreakoutNoFrameskip-v4     # ppo_atari.py

Rollouts of 128 steps, in 4 minibatches (Hopper: 8), so minibatches grow with the number of environments.
Each figure is the median over `--rounds` runs, in turns; speed is the steady state (see `speed.py`), memory the largest
resident set of the process. Results: `benchmarks/results/scaling_*.json`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from speed import HERE, steady_speed

HOPPER = "ppo_continuous.py --num-steps 128 --num-minibatches 8 --compile"
# environment: numbers of environments, least number of steps and iterations, and columns: {name: script and arguments}
TABLES = {
    "CartPole-v1": (
        [1, 4, 16, 64, 256, 1024],
        (30_000, 9),
        {"ppo.py": "ppo.py", "ppo.py --compile": "ppo.py --compile"},
    ),
    "Hopper-v5": (
        [1, 4, 16, 64, 256],
        (20_000, 9),
        {"gymnasium": HOPPER, "EnvPool": f"{HOPPER} --vectorization envpool"},
    ),
    "BreakoutNoFrameskip-v4": (
        [1, 8, 32, 128],
        (9_216, 4),
        {"ppo_atari.py": "ppo_atari.py", "ppo_atari.py --no-bf16": "ppo_atari.py --no-bf16"},
    ),
}


def run(env_id: str, command: str, num_envs: int, steps: int) -> tuple[float, float]:
    """Steady steps per second, and MiB."""
    script, *args = command.split()
    with tempfile.TemporaryDirectory() as folder:
        args += ["--env-id", env_id, "--num-envs", str(num_envs), "--total-timesteps", str(steps)]
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.execv(sys.executable, [sys.executable, str(HERE.parent / script), *args])
        _, status, usage = os.wait4(child, 0)
        assert status == 0, args
        return steady_speed(next(Path(folder).glob("runs/*"))), usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_id", nargs="?", default="CartPole-v1", choices=TABLES)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    numbers, (least_steps, iterations), columns = TABLES[args.env_id]
    results = {name: {n: [] for n in numbers} for name in columns}
    for _ in range(args.rounds):
        for n in numbers:
            for name, command in columns.items():
                results[name][n].append(run(args.env_id, command, n, max(least_steps, 128 * n * iterations)))
                print(name, n, results[name][n][-1], flush=True)
    first, second = columns
    print(f"| environments | {first}, steps per second | {second} | memory, MiB | {second} |")
    print("| --- | --- | --- | --- | --- |")
    for n in numbers:
        medians = [[statistics.median(column) for column in zip(*results[name][n], strict=True)] for name in columns]
        (speed, memory), (other_speed, other_memory) = medians
        print(f"| {n} | {speed:,.0f} | {other_speed:,.0f} | {memory:,.0f} | {other_memory:,.0f} |")
    record = {"commands": columns, "runs": results}
    (HERE / "results" / f"scaling_{args.env_id}.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
