"""What makes Pendulum-v1 learn? `ppo_continuous.py` at its defaults, with one line changed to do what others do.

    python benchmarks/ablation.py                 # three seeds of three variants, 500k steps each

A variant is a copy of the script in which one piece of text is another. The return is the mean of the last 100 training
episodes. Results: `benchmarks/results/ablation.json`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
STEP = "obs[t + 1], reward, terminated[t], truncated[t], info = envs.step(actions[t])\n"
LIMIT_ENDS = (STEP, f"{STEP}            terminated[t] |= truncated[t]\n")
RESET_LEARNS = ("valid[t] = reward, ~ended  #", "valid[t] = reward, True  #")
VARIANTS = {
    "a time limit counts as an end": [LIMIT_ENDS],
    "reset steps are trained on": [RESET_LEARNS],
    "both": [LIMIT_ENDS, RESET_LEARNS],
}


def run(job: tuple[str, int]) -> float:
    """The return of one variant and seed."""
    name, seed = job
    source = (HERE.parent / "ppo_continuous.py").read_text()
    for old, new in VARIANTS[name]:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "variant.py").write_text(source)
        options = ["--env-id", "Pendulum-v1", "--total-timesteps", "500000", "--compile", "--seed", str(seed)]
        command = [sys.executable, "variant.py", *options]
        out = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    result = float(re.search(r"mean return (-?[\d.]+)\.", out)[1])
    print(f"{name}, seed {seed}: {result}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(1, parser.parse_args().seeds + 1)
    jobs = [(name, seed) for name in VARIANTS for seed in seeds]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        returns = [*pool.map(run, jobs)]
    results = {
        name: [result for (variant, _), result in zip(jobs, returns, strict=True) if variant == name]
        for name in VARIANTS
    }
    (HERE / "results" / "ablation.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
