"""Three real bugs, each found by another step of docs/debugging.md: what one sees, and the curves.

    python benchmarks/debugging.py            # probes, runs and health reports of three seeds, and the figure
    python benchmarks/debugging.py --plot     # the figure again, from what is there

Each fork is ppo_continuous.py with one piece of text changed, and is trained on Pendulum-v1 with `ARGUMENTS`. Results:
`benchmarks/results/debugging.json`, with what the probes and the health report printed, and `debugging.png`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).resolve().parent
EXAMPLES, RESULTS = HERE.parent / "examples", HERE / "results" / "debugging"
ARGUMENTS = "--env-id Pendulum-v1 --total-timesteps 200000 --num-envs 16 --num-steps 128 --num-minibatches 8"
ARGUMENTS += " --learning-rate 1e-3"
RIGHT = "the right script"
FORKS = {  # what to find, and what takes its place
    RIGHT: ("", ""),
    "bug 1: a time limit counts as an end": ("values[1:] * ~terminated", "values[1:] * ~(terminated | truncated)"),
    "bug 2: the ratio is not clipped": (
        "-advantages * ratio.clamp(1 - clip_coef, 1 + clip_coef)",
        "-advantages * ratio",
    ),
    "bug 3: rewards by their own deviation": (
        "agent.return_stats.update(discounted_returns[valid])",
        "agent.return_stats.update(rewards[valid])",
    ),
}
CURVES = {
    "charts/episodic_return": "episodic return",
    "losses/approx_kl": "approx_kl",
    "losses/explained_variance": "explained variance",
}


def call(*words: str | Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment).stdout


def examine(name: str, seeds: range) -> dict:
    """What the probes print on a fork, what the health report prints on its runs, and their curves."""
    find, replace = FORKS[name]
    text = (HERE.parent / "ppo_continuous.py").read_text()
    if find:
        assert text.count(find) == 1, find
        text = text.replace(find, replace)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("my_ppo.py").write_text(text)
        seen = {"probes": call(EXAMPLES / "probes.py", "my_ppo.py").splitlines(), "health": [], "curves": []}
        for seed in seeds:
            call("my_ppo.py", *ARGUMENTS.split(), "--seed", str(seed))
            (run,) = Path("runs").glob(f"*__{seed}__*")
            seen["health"].append(
                [line.replace(str(run), f"seed {seed}") for line in call(EXAMPLES / "health.py", run).splitlines()]
            )
            events = EventAccumulator(str(run), {"scalars": 0}).Reload()
            values = {tag: [(x.step, round(x.value, 5)) for x in events.Scalars(tag)] for tag in CURVES}
            seen["curves"].append(values)
        os.chdir("/")
    last = [np.mean([x for _, x in values["charts/episodic_return"][-10:]]) for values in seen["curves"]]
    seen["returns"] = [round(float(x), 1) for x in last]  # of the last 10 iterations with an end
    print(
        name,
        seen["returns"],
        *seen["probes"],
        *[line for lines in seen["health"] for line in lines],
        sep="\n  ",
        flush=True,
    )
    return seen


def plot(results: dict) -> None:
    import matplotlib.pyplot as plt

    figure, all_axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    for axes, (tag, label) in zip(all_axes, CURVES.items(), strict=True):
        for (name, seen), color in zip(results.items(), ("0.2", "C0", "C1", "C3"), strict=True):
            points = np.concatenate([np.array(values[tag]) for values in seen["curves"]])
            edges = np.linspace(0, points[:, 0].max() / 1000, 17)
            x = (edges[1:] + edges[:-1]) / 2
            rows = []  # medians, as an explained variance means nothing in rollouts whose returns are all equal
            for values in seen["curves"]:
                steps, y = np.array(values[tag]).T
                inside = np.digitize(steps / 1000, edges[1:-1], right=True)
                rows.append([np.median(y[inside == i]) if (inside == i).any() else np.nan for i in range(16)])
            axes.plot(
                x, np.nanmean(rows, 0), color=color, label=name, linestyle="-" if name != RIGHT else "--", linewidth=2
            )
            axes.fill_between(x, np.nanmin(rows, 0), np.nanmax(rows, 0), color=color, alpha=0.15, linewidth=0)
        axes.set(xlabel="thousand environment steps", title=label)
        axes.grid(alpha=0.2)
    all_axes[1].set_yscale("log")
    all_axes[1].axhline(0.05, color="0.4", linestyle=":")
    all_axes[1].annotate("healthy below", (0, 0.05), fontsize=8, va="bottom", color="0.4")
    all_axes[2].set_ylim(-0.5, 1.05)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(RESULTS.with_suffix(".png"), dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", action="store_true")
    args, file = parser.parse_args(), RESULTS.with_suffix(".json")
    if not args.plot:
        results = {}
        for name in FORKS:
            results[name] = examine(name, range(1, args.seeds + 1))
            file.write_text(json.dumps(results) + "\n")
    plot(json.loads(file.read_text()))


if __name__ == "__main__":
    main()
