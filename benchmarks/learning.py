"""Does it learn? Returns over seeds, at the defaults and with recipes.

    python benchmarks/learning.py CartPole-v1 Acrobot-v1      # or any other name of RUNS; all if none is given
    python benchmarks/learning.py Hopper-v5 --seeds 3 7       # these seeds only, beside those already there
    python benchmarks/learning.py Pong --seeds 1 2 --processes 1                # one after the other, on all cores
    python benchmarks/learning.py --plot                      # draw results/learning*.png from what is there

The return of a run is the mean of its last 100 training episodes (actions sampled, not the best ones), the interval is
the 95% interval of the mean over seeds (Student's t). Results, seed by seed: `benchmarks/results/learning_*.json`.
"""

import argparse
import importlib
import json
import math
import multiprocessing
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

# name: (script and arguments, mean return to reach)
RUNS = {
    "CartPole-v1": ("ppo.py --env-id CartPole-v1", 490),
    "Acrobot-v1": ("ppo.py --env-id Acrobot-v1", -86),
    "LunarLander-v3": (
        "ppo.py --env-id LunarLander-v3 --total-timesteps 1000000 --num-envs 32 --num-steps 256 --num-minibatches 16"
        " --update-epochs 10 --learning-rate 1e-3 --gamma 0.999 --gae-lambda 0.98 --norm-reward",
        240,
    ),
    "MountainCar-v0": (
        "ppo.py --env-id MountainCar-v0 --total-timesteps 1000000 --num-envs 16 --num-steps 16 --learning-rate 3e-4"
        " --gae-lambda 0.98 --ent-coef 0 --norm-obs --norm-reward",
        -130,
    ),
}
# name: (environment, steps, mean return to reach); --compile changes nothing but rounding and the time that it takes
for env_id, steps, target in (
    ("HalfCheetah-v5", 1_000_000, 1450),
    ("Hopper-v5", 1_000_000, 2380),
    ("Walker2d-v5", 1_000_000, 2300),
    ("InvertedPendulum-v5", 1_000_000, 965),
    ("Pendulum-v1", 500_000, -250),
):
    RUNS[env_id] = (f"ppo_continuous.py --env-id {env_id} --total-timesteps {steps} --compile", target)
    RUNS[f"{env_id}-fast"] = (
        f"ppo_continuous.py --env-id {env_id} --total-timesteps {steps} --compile --vectorization envpool"
        " --num-envs 16 --num-steps 128 --num-minibatches 8 --learning-rate 1e-3",
        target,
    )
RUNS["Breakout"] = ("ppo_atari.py --total-timesteps 1000000", None)  # a tenth of the runs that papers publish
RUNS["Pong"] = (
    "ppo_atari.py --env-id PongNoFrameskip-v4 --total-timesteps 3000000 --num-envs 16 --num-minibatches 8"
    " --update-epochs 3 --learning-rate 1e-3 --clip-coef 0.2 --stop-return 18",
    18,
)
T_95 = [math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26]  # by degrees of freedom; beyond, 2.26


def train_seed(job: tuple[str, int, int]) -> tuple[str, dict]:
    """One run in a process of its own: its name, and its return, seconds, and learning curve in 50 bins."""
    name, seed, threads = job
    import torch
    import tyro
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    script, *arguments = shlex.split(RUNS[name][0])
    ppo = importlib.import_module(Path(script).stem)
    torch.set_num_threads(threads)
    log = Path(tempfile.gettempdir(), f"learning_{name}_{seed}.log")  # its progress
    with tempfile.TemporaryDirectory() as folder, open(log, "w") as sys.stdout:
        os.chdir(folder)
        start = time.time()
        result = ppo.train(tyro.cli(ppo.Args, args=[*arguments, "--seed", str(seed)]))
        seconds = time.time() - start
        events = EventAccumulator(str(result["run_dir"]), {"scalars": 0}).Reload().Scalars("charts/episodic_return")
        os.chdir("/")
    curve = []
    for i in range(50):
        low, high = result["global_step"] * i / 50, result["global_step"] * (i + 1) / 50
        inside = [event.value for event in events if low < event.step <= high]
        curve.append([round(high), round(statistics.mean(inside), 2) if inside else None])
    returns = [episode[0] for episode in result["episodes"]]
    run = {"seed": seed, "return": round(statistics.mean(returns), 2), "seconds": round(seconds, 1), "curve": curve}
    return name, run | {"steps": result["global_step"], "threads": threads}


def summary(results: list[dict]) -> tuple[float, float]:
    """Mean over seeds and half the width of its 95% interval."""
    returns = [result["return"] for result in results]
    if len(returns) == 1:
        return returns[0], math.nan
    return statistics.mean(returns), T_95[min(len(returns), 10) - 1] * statistics.stdev(returns) / math.sqrt(
        len(returns)
    )


def curves(axes, name: str, color: str, label: str) -> None:
    """The seeds of one row of RUNS, thin, and their mean where all ran for as many steps."""
    results = json.loads((HERE / "results" / f"learning_{name}.json").read_text())["runs"]
    columns = list(zip(*[result["curve"] for result in results], strict=True))
    values = [sorted(value for _, value in column if value is not None) for column in columns]
    together = len({column[0] for column in columns[-1]}) == 1
    for result in results:
        width = {"alpha": 0.25, "linewidth": 0.8} if together else {"label": f"seed {result['seed']}"}
        axes.plot(*zip(*result["curve"], strict=True), color=color if together else None, **width)
    if not together:
        return
    means = [statistics.mean(column) if column else math.nan for column in values]
    axes.plot([column[0][0] for column in columns], means, color=color, linewidth=2, label=f"{label} ({len(results)})")


def plot() -> None:
    import matplotlib.pyplot as plt

    discrete = [name for name, (command, _) in RUNS.items() if command.startswith("ppo.py")]
    continuous = [name for name in RUNS if f"{name}-fast" in RUNS]
    for file, names, shape in (
        ("learning", discrete, (2, 2)),
        ("learning_continuous", continuous, (2, 3)),
        ("learning_atari", ["Pong", "Breakout"], (1, 2)),
    ):
        figure, all_axes = plt.subplots(*shape, figsize=(5 * shape[1], 3.25 * shape[0]), layout="constrained")
        for axes in all_axes.flat[len(names) :]:
            axes.axis("off")
        for axes, name in zip(all_axes.flat, names, strict=False):
            curves(axes, name, "C0", "defaults" if names is continuous else "mean of the seeds")
            if f"{name}-fast" in RUNS:
                curves(axes, f"{name}-fast", "C1", "fast recipe")
            target = RUNS[name][1]
            if target is not None:
                axes.axhline(target, color="0.4", linestyle=":", label=f"target {target}")
            axes.set(title=name, xlabel="environment steps", ylabel="episodic return")
            axes.legend(loc="lower right")
            axes.grid(alpha=0.2)
        figure.savefig(HERE / "results" / f"{file}.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*RUNS, []])
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(1, 11)])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    if args.plot:
        return plot()
    (HERE / "results").mkdir(exist_ok=True)
    threads = max(1, os.cpu_count() // args.processes)
    jobs = [(name, seed, threads) for seed in args.seeds for name in args.names or RUNS]
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        for name, result in pool.imap_unordered(train_seed, jobs):
            command, target = RUNS[name]
            file = HERE / "results" / f"learning_{name}.json"
            runs = json.loads(file.read_text())["runs"] if file.exists() else []
            runs = sorted(
                [run for run in runs if run["seed"] != result["seed"]] + [result], key=lambda run: run["seed"]
            )
            mean, half = summary(runs)
            print(f"{name} seed {result['seed']}: {result['return']} in {result['seconds']} s", flush=True)
            print(f"  {len(runs)} seeds: {mean:.1f} ± {half:.1f} (target {target})", flush=True)
            record = {"command": f"python {command}", "mean": mean, "interval_95": half, "runs": runs}
            file.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
