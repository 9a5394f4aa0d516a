"""What did a change cost? Steady steps per second of `ppo.py` against an earlier commit's, in turns, on CartPole-v1.

    python benchmarks/versions.py afa8766         # any commit

Also with options that cost something when they are used. A run's speed is that of the faster half of its iterations, by
the clock of its TensorBoard events, which leaves out most of what else the machine does. A row has the medians over
rounds. Results: `benchmarks/results/versions.json`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).resolve().parent
ROWS = {  # options: the row of the earlier commit to compare with
    "before": None,
    "now": "before",
    "now --save-interval 0": "before",
    "now --capture-video": "before",
    "before --compile": None,
    "now --compile": "before --compile",
}


def fast_half(run_dir: Path) -> float:
    """Steps per second of the faster half of the iterations, but for the first 20."""
    events = EventAccumulator(str(run_dir), {"scalars": 0}).Reload().Scalars("charts/SPS")[20:]
    seconds = sorted(b.wall_time - a.wall_time for a, b in pairwise(events))
    half = seconds[: len(seconds) // 2]
    return (events[1].step - events[0].step) * len(half) / sum(half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150_000)
    args = parser.parse_args()
    before = subprocess.run(["git", "show", f"{args.commit}:ppo.py"], cwd=HERE, check=True, capture_output=True).stdout
    speeds = {row: [] for row in ROWS}
    for _ in range(args.rounds):
        for row, values in speeds.items():
            version, *options = row.split()
            with tempfile.TemporaryDirectory() as folder:
                script = Path(folder, "ppo.py")
                script.write_bytes(before if version == "before" else (HERE.parent / "ppo.py").read_bytes())
                command = [sys.executable, script, *options, "--total-timesteps", str(args.steps)]
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                values.append(fast_half(next(Path(folder).glob("runs/*"))))
            print(f"{row}: {values[-1]:,.0f}", flush=True)
    print("| | steps per second | times before | (range over rounds) |\n| --- | --- | --- | --- |")
    for row, peer in ROWS.items():
        ratios = [a / b for a, b in zip(speeds[row], speeds[peer or row], strict=True)]
        median, spread = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {row} | {statistics.median(speeds[row]):,.0f} | {median:.2f} | {spread} |")
    record = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "before": args.commit,
        "fast_half_sps": speeds,
    }
    (HERE / "results" / "versions.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
