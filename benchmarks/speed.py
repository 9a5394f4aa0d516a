"""Speed against Stable-Baselines3: same hyperparameters, same machine, in turns, on the CPU.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py                  # steady steps per second, then whole commands: 20 minutes
    python benchmarks/speed.py --rounds 3 --commands 0
    python benchmarks/speed.py Hopper-v5 --rounds 3
    python benchmarks/speed.py BreakoutNoFrameskip-v4 --rounds 5

Steady state is the speed from the first third of a run on, so imports and compilation don't count. A whole command is
timed from outside, interpreter start, imports and compilation (`--compile`, from an empty cache) included. Each round
runs all contenders one after the other; a row gives the median over rounds and the median of the ratios within rounds
to the first row. Results: `benchmarks/results/speed_*.json`.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).resolve().parent
SB3, CONTINUOUS = "sb3.py --norm-obs --norm-reward --ent-coef 0 --update-epochs 10", "ppo_continuous.py"
RECIPE = "--num-envs 16 --num-steps 128 --num-minibatches 8 --learning-rate 1e-3"  # the fast one of compare.py
FAST = f"{RECIPE} --vectorization envpool --compile"
DEFAULTS = "--num-envs 1 --num-steps 2048 --num-minibatches 32 --learning-rate 3e-4"
# environment: {contender: (script and arguments, steps)}; the first one is what the others are compared with
CONTENDERS = {
    "CartPole-v1": {
        "Stable-Baselines3": ("sb3.py", 150_000),
        "Stable-Baselines3, one thread": ("sb3.py --threads 1", 150_000),
        "ppo.py": ("ppo.py", 150_000),
        "ppo.py --compile": ("ppo.py --compile", 150_000),
    },
    "Hopper-v5": {
        "Stable-Baselines3": (f"{SB3} {DEFAULTS}", 40_960),
        "Stable-Baselines3, one thread": (f"{SB3} {DEFAULTS} --threads 1", 40_960),
        "ppo_continuous.py": (CONTINUOUS, 81_920),
        "ppo_continuous.py --compile": (f"{CONTINUOUS} --compile", 81_920),
        "ppo_continuous.py, fast recipe": (f"{CONTINUOUS} {FAST}", 307_200),
        "Stable-Baselines3, fast recipe's hyperparameters": (f"{SB3} {RECIPE}", 81_920),
    },
    "BreakoutNoFrameskip-v4": {
        "Stable-Baselines3": ("sb3.py --atari --num-envs 8 --clip-coef 0.1", 9_216),
        "ppo_atari.py": ("ppo_atari.py", 27_648),
        "ppo_atari.py --no-bf16": ("ppo_atari.py --no-bf16", 18_432),
    },
}


def machine(device: Any = "cpu") -> dict[str, str]:
    """What a figure was measured on: processor, GPU with its driver, versions."""
    import torch

    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    found = {"cpu": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores"}
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        with suppress(OSError, IndexError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            found["driver"] = f"driver {subprocess.run(query, capture_output=True, text=True).stdout.split()[0]}"
        found["cuda"] = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    found["python"] = f"Python {platform.python_version()}"
    for name in ("torch", "numpy", "gymnasium", "ale-py", "envpool", "mujoco"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = f"{name} {importlib.metadata.version(name)}"
    return found


def code() -> str:
    """The commit of the scripts, and whether they were changed since."""
    call = {"cwd": HERE.parent, "capture_output": True, "text": True}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **call).stdout.strip()
    changes = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no", "--", "*.py"], **call).stdout
    return f"{commit}, changed" if changes else commit


def steady_speed(run_dir: Path) -> float:
    """Steps per second from the first third of a run on, by the clock of its TensorBoard events."""
    events = EventAccumulator(str(run_dir)).Reload().Scalars("charts/SPS")
    first, last = events[len(events) // 3], events[-1]
    return (last.step - first.step) / (last.wall_time - first.wall_time)


def run(env_id: str, contender: str, steps: int) -> tuple[float, float]:
    """Steady steps per second and wall seconds of one contender's command."""
    script, *arguments = contender.split()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, HERE / script if script == "sb3.py" else HERE.parent / script, *arguments]
        command += ["--env-id", env_id, "--total-timesteps", str(steps)]
        start = time.time()
        output = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
        seconds = time.time() - start
        runs = list(Path(folder).glob("runs/*"))
        return (steady_speed(runs[0]) if runs else json.loads(output)["steady_sps"]), seconds


def table(rows: dict[str, list[float]], unit: str, faster_is_more: bool) -> str:
    peer = next(iter(rows))
    lines = [f"| | {unit} | times {peer} | (range over rounds) |", "| --- | --- | --- | --- |"]
    for name, values in rows.items():
        pairs = zip(values, rows[peer], strict=True)
        ratios = [a / b if faster_is_more else b / a for a, b in pairs]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(f"| {name} | {statistics.median(values):,.0f} | {statistics.median(ratios):.2f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_ids", nargs="*", choices=[*CONTENDERS, []])
    parser.add_argument("--rounds", type=int, default=7, help="rounds for the steady state")
    parser.add_argument("--commands", type=int, default=3, help="rounds for CartPole's whole 500k-step command")
    args = parser.parse_args()
    (HERE / "results").mkdir(exist_ok=True)
    for env_id in args.env_ids or ["CartPole-v1"]:
        contenders = CONTENDERS[env_id]
        results = {"machine": machine(), "commit": code(), "commands": contenders}
        for kind, rounds in (("steady_sps", args.rounds), ("command_seconds", args.commands)):
            if kind == "command_seconds" and (env_id != "CartPole-v1" or not rounds):
                continue
            rows = {name: [] for name in contenders if kind == "steady_sps" or "one thread" not in name}
            for _ in range(rounds):
                for name in rows:
                    command, steps = contenders[name]
                    steps = steps if kind == "steady_sps" else 500_000
                    rows[name].append(run(env_id, command, steps)[kind == "command_seconds"])
                    print(f"{env_id} {kind} {name}: {rows[name][-1]:,.1f}", flush=True)
            results[kind] = rows
            unit = "steps per second" if kind == "steady_sps" else "seconds for 500k steps"
            print(table(rows, unit, kind == "steady_sps"), flush=True)
        (HERE / "results" / f"speed_{env_id}.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
