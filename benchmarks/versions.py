"""What did a change cost? Steady steps per second of each script against an earlier commit's, in turns, on the CPU.

    python benchmarks/versions.py 2742995                                   # any commit
    python benchmarks/versions.py 2742995 --rows ppo.py "ppo.py --compile" --rounds 5

A run's speed is that of the faster half of its iterations, by the clock of its TensorBoard events: that leaves out much
of what else the machine does. A row has the medians over rounds. Results: `benchmarks/results/versions.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from speed import machine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).resolve().parent
FAST = "--num-envs 16 --num-steps 128 --num-minibatches 8 --learning-rate 1e-3 --vectorization envpool"
ROWS = {
    "ppo.py": "ppo.py --total-timesteps 150000",
    "ppo.py --compile": "ppo.py --compile --total-timesteps 150000",
    "ppo_continuous.py": "ppo_continuous.py --env-id Hopper-v5 --total-timesteps 53248",
    "ppo_continuous.py --compile": "ppo_continuous.py --env-id Hopper-v5 --compile --total-timesteps 53248",
    "ppo_continuous.py, fast recipe": f"ppo_continuous.py --env-id Hopper-v5 {FAST} --compile --total-timesteps 143360",
    "ppo_atari.py": "ppo_atari.py --total-timesteps 15360",
    "ppo_atari.py --compile": "ppo_atari.py --compile --total-timesteps 15360",
}


def fast_half(run_dir: Path) -> float:
    """Steps per second of the faster half of the iterations, but for the first fifth."""
    events = EventAccumulator(str(run_dir), {"scalars": 0}).Reload().Scalars("charts/SPS")
    events = events[len(events) // 5 :]
    seconds = sorted(b.wall_time - a.wall_time for a, b in pairwise(events))
    half = seconds[: len(seconds) // 2]
    return (events[1].step - events[0].step) * len(half) / sum(half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS])
    args = parser.parse_args()
    speeds = {row: {"before": [], "now": []} for row in args.rows}
    for _ in range(args.rounds):
        for row, versions in speeds.items():
            name, *options = ROWS[row].split()
            for version, values in versions.items():
                with tempfile.TemporaryDirectory() as folder:
                    script, source = Path(folder, name), ["git", "show", f"{args.commit}:{name}"]
                    before = subprocess.run(source, cwd=HERE, check=True, capture_output=True).stdout
                    script.write_bytes(before if version == "before" else (HERE.parent / name).read_bytes())
                    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
                    command = [sys.executable, script, *options]
                    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
                    values.append(fast_half(next(Path(folder).glob("runs/*"))))
                print(f"{row}, {version}: {values[-1]:,.0f}", flush=True)
    print("| | before | now | times before (range over rounds) |\n| --- | --- | --- | --- |")
    for row, versions in speeds.items():
        ratios = [now / before for before, now in zip(versions["before"], versions["now"], strict=True)]
        before, now = (statistics.median(values) for values in versions.values())
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {row} | {before:,.0f} | {now:,.0f} | {ratio} |")
    file = HERE / "results" / "versions.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    rows = record.get("rows", {}) if record.get("before") == args.commit else {}
    commands = {row: f"python {ROWS[row]}" for row in ROWS}
    record = {"before": args.commit, "machine": machine(), "commands": commands, "rows": rows | speeds}
    file.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
