"""Speed of `ppo.py` against Stable-Baselines3: same hyperparameters, same machine, in turns, on the CPU.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py                  # steady steps per second, then whole commands: 20 minutes
    python benchmarks/speed.py --rounds 3 --commands 0

Steady state is the speed from the first third of a run on, so imports and compilation don't count. A whole command is
timed from outside, interpreter start, imports and compilation (`--compile`, from an empty cache) included. Each round
runs all contenders one after the other; a row gives the median over rounds and the median of the ratios within rounds.
Results: `benchmarks/results/speed.json`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).resolve().parent
CONTENDERS = {
    "Stable-Baselines3": [str(HERE / "sb3_cartpole.py")],
    "Stable-Baselines3, one thread": [str(HERE / "sb3_cartpole.py"), "--threads", "1"],
    "ppo.py": [str(HERE.parent / "ppo.py")],
    "ppo.py --compile": [str(HERE.parent / "ppo.py"), "--compile"],
}


def steady_speed(run_dir: Path) -> float:
    """Steps per second from the first third of a run on, by the clock of its TensorBoard events."""
    events = EventAccumulator(str(run_dir)).Reload().Scalars("charts/SPS")
    first, last = events[len(events) // 3], events[-1]
    return (last.step - first.step) / (last.wall_time - first.wall_time)


def run(name: str, steps: int) -> tuple[float, float]:
    """Steady steps per second and wall seconds of one contender's command."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}
        command = [sys.executable, *CONTENDERS[name], "--total-timesteps", str(steps)]
        start = time.time()
        output = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
        seconds = time.time() - start
        runs = list(Path(folder).glob("runs/*"))
        return (steady_speed(runs[0]) if runs else json.loads(output)["steady_sps"]), seconds


def table(rows: dict[str, list[float]], unit: str, peer: str, faster_is_more: bool) -> str:
    lines = [f"| | {unit} | times {peer} | (range over rounds) |", "| --- | --- | --- | --- |"]
    for name, values in rows.items():
        pairs = zip(values, rows[peer], strict=True)
        ratios = [a / b if faster_is_more else b / a for a, b in pairs]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(f"| {name} | {statistics.median(values):,.0f} | {statistics.median(ratios):.2f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds for the steady state")
    parser.add_argument("--steps", type=int, default=150_000, help="steps of a run for the steady state")
    parser.add_argument("--commands", type=int, default=3, help="rounds for the whole 500k-step command")
    args = parser.parse_args()
    results = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "steps": args.steps}
    for kind, rounds, steps in (("steady_sps", args.rounds, args.steps), ("command_seconds", args.commands, 500_000)):
        rows = {name: [] for name in CONTENDERS if kind == "steady_sps" or "one thread" not in name}
        for _ in range(rounds):
            for name in rows:
                rows[name].append(run(name, steps)[kind == "command_seconds"])
                print(f"{kind} {name}: {rows[name][-1]:,.1f}", flush=True)
        results[kind] = rows
        if rounds:
            unit = "steps per second" if kind == "steady_sps" else "seconds for 500k steps"
            print(table(rows, unit, "Stable-Baselines3", kind == "steady_sps"), flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "speed.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
