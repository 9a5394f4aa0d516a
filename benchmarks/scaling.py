"""How the scripts scale with the number of environments: steps per second and memory.

    python benchmarks/scaling.py                  # ppo.py on CartPole-v1
    python benchmarks/scaling.py Hopper-v5        # ppo_continuous.py, with gymnasium's environments and EnvPool's
    python benchmarks/scaling.py BreakoutNoFrameskip-v4     # ppo_atari.py
    python benchmarks/scaling.py CartPole-v1-devices Hopper-v5-devices      # from which number on a GPU wins

Rollouts of 128 steps, in 4 minibatches (Hopper: 8), so minibatches grow with the number of environments. All run on the
CPU, but for the tables of devices, which have columns for the GPU where there is one.
Each figure is the median over `--rounds` runs, in turns; speed is the steady state (see `speed.py`), memory the largest
resident set of the process. Results: `benchmarks/results/scaling_*.json`.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from speed import HERE, machine, steady_speed

HOPPER = "ppo_continuous.py --num-steps 128 --num-minibatches 8"
ENVPOOL = " --vectorization envpool" if importlib.util.find_spec("envpool") else ""
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
# table: numbers of environments, least number of steps and iterations, and columns: {name: script and arguments}
TABLES = {
    "CartPole-v1": (
        [1, 4, 16, 64, 256, 1024],
        (30_000, 9),
        {"ppo.py": "ppo.py", "ppo.py --compile": "ppo.py --compile"},
    ),
    "Hopper-v5": (
        [1, 4, 16, 64, 256],
        (20_000, 9),
        {"gymnasium": f"{HOPPER} --compile", "EnvPool": f"{HOPPER} --compile --vectorization envpool"},
    ),
    "BreakoutNoFrameskip-v4": (
        [1, 8, 32, 128],
        (9_216, 4),
        {
            "ppo_atari.py": "ppo_atari.py --device cpu",
            "ppo_atari.py --no-bf16": "ppo_atari.py --device cpu --no-bf16",
        },
    ),
}
for table, numbers, least, command in (
    ("CartPole-v1-devices", [4, 64, 1024, 4096], (30_000, 9), "ppo.py"),
    ("Hopper-v5-devices", [1, 16, 256, 1024], (20_000, 9), f"{HOPPER}{ENVPOOL}"),
):
    columns = {device: f"{command} --device {device}" for device in DEVICES}
    columns |= {f"{device}, compiled": f"{command} --compile --device {device}" for device in DEVICES}
    TABLES[table] = (numbers, least, columns)


def run(env_id: str, command: str, num_envs: int, steps: int) -> tuple[float, float]:
    """Steady steps per second, and MiB."""
    script, *args = command.split()
    with tempfile.TemporaryDirectory() as folder:
        args += ["--env-id", env_id, "--num-envs", str(num_envs), "--total-timesteps", str(steps)]
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            os.execv(sys.executable, [sys.executable, str(HERE.parent / script), *args])
        _, status, usage = os.wait4(child, 0)
        assert status == 0, args
        return steady_speed(next(Path(folder).glob("runs/*"))), usage.ru_maxrss / 1024


def measure(table: str, rounds: int) -> None:
    numbers, (least_steps, iterations), columns = TABLES[table]
    env_id, results = table.removesuffix("-devices"), {name: {n: [] for n in numbers} for name in columns}
    for _ in range(rounds):
        for n in numbers:
            for name, command in columns.items():
                results[name][n].append(run(env_id, command, n, max(least_steps, 128 * n * iterations)))
                print(name, n, results[name][n][-1], flush=True)
    print("| environments | " + " | ".join(f"{name}, steps per second" for name in columns), end="")
    print(" | " + " | ".join(f"{name}, MiB" for name in columns) + " |\n|" + " --- |" * (1 + 2 * len(columns)))
    for n in numbers:
        medians = [[statistics.median(column) for column in zip(*rows[n], strict=True)] for rows in results.values()]
        cells = [f"{value:,.0f}" for column in zip(*medians, strict=True) for value in column]
        print(f"| {n} | " + " | ".join(cells) + " |")
    record = {"machine": machine(DEVICES[-1]), "commands": columns, "runs": results}
    (HERE / "results" / f"scaling_{table}.json").write_text(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for table in args.tables or ["CartPole-v1"]:
        measure(table, args.rounds)


if __name__ == "__main__":
    main()
