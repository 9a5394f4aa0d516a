"""Procgen: what both networks learn and how far that holds on levels never seen; how fast it is, and where time goes.

    python benchmarks/procgen.py learn FOLDER --games starpilot --seeds 1 2 --steps 1000000    # again to go on
    python benchmarks/procgen.py collect FOLDER --steps 1000000     # adds returns and gaps to results/procgen.json
    python benchmarks/procgen.py plot                               # results/procgen.png from that
    python benchmarks/procgen.py speed                              # results/procgen_speed.json, medians over rounds

Runs are `ppo_procgen.py --num-envs 64 --num-steps 64` and the script's defaults, two at a time with a thread each, and
stay in FOLDER: one that was stopped goes on with the same command, and `collect` takes what is there. The return is the
mean over training episodes in the last twentieth of the steps asked for; `--evaluate` plays each run's last checkpoint.
Normalised scores are (return - low) / (high - low) with the constants of easy games in Cobbe et al. (2020, appendix C).
"""

import argparse
import itertools
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from speed import HERE, machine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(HERE.parent))
import ppo_procgen as ppo

RESULTS, SCRIPT = HERE / "results", HERE.parent / "ppo_procgen.py"
CONSTANTS = {"bigfish": (1, 40), "starpilot": (2.5, 64), "coinrun": (5, 10), "bossfight": (0.5, 13)}
SETTINGS = ["--num-envs", "64", "--num-steps", "64"]
NETWORKS, BINS = ("impala", "nature"), 40
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def found_runs(folder: Path) -> dict[tuple[str, str, int], Path]:
    """Folders of runs with a checkpoint, by game, network and seed."""
    runs = {}
    for path in sorted(folder.glob("runs/*/checkpoint.pt")):
        game, network, seed, _ = path.parent.name.split("__")
        runs[game, network, int(seed)] = path.parent
    return runs


def learn(folder: Path, games: list[str], seeds: list[int], steps: int) -> None:
    def run(job: tuple[int, str, str]) -> None:
        seed, game, network = job
        arguments = ["--env-id", game, "--network", network, "--exp-name", network, "--seed", str(seed), *SETTINGS]
        done = found_runs(folder).get((game, network, seed))
        if done:
            arguments = ["--resume", str(done.relative_to(folder))]
        with open(folder / f"{game}-{network}-{seed}.log", "a") as log:
            command = [sys.executable, str(SCRIPT), *arguments, "--total-timesteps", str(steps)]
            code = subprocess.run(command, cwd=folder, env=ONE_THREAD, stdout=log, stderr=log).returncode
        print(f"{game} {network} seed {seed}: {f'error {code}' if code else 'done'}, see {log.name}", flush=True)

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, [(seed, game, network) for seed in seeds for game in games for network in NETWORKS]))


def collect(folder: Path, steps: int, episodes: int) -> None:
    record, path = {"command": f"ppo_procgen.py {' '.join(SETTINGS)}", "steps": steps}, RESULTS / "procgen.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    if before and any(before[name] != x for name, x in record.items()):
        sys.exit(
            f"error: {path} has runs of {before['command']}, {before['steps']} steps: move it out of the way first"
        )
    record["runs"] = rows = before.get("runs", [])
    for (game, network, seed), run_dir in found_runs(folder).items():
        if game not in CONSTANTS:
            continue
        events = EventAccumulator(str(run_dir), {"scalars": 0}).Reload()
        returns = [(event.step, event.value) for event in events.Scalars("charts/episodic_return")]
        trained, whole = ppo.load_checkpoint(run_dir)["global_step"], steps // 4096 * 4096
        curve = []
        for i in range(BINS):
            inside = [x for step, x in returns if steps * i / BINS < step <= steps * (i + 1) / BINS]
            curve.append([steps * (i + 1) // BINS, round(statistics.mean(inside), 3) if inside else None])
        same = {"game": game, "network": network, "seed": seed}
        if any(same.items() <= row.items() and row["steps_trained"] > trained for row in rows):
            continue  # one in another folder came further
        last = [x for step, x in returns if 0.95 * steps < step <= steps]
        row = {"game": game, "network": network, "seed": seed, "steps_trained": trained, "curve": curve}
        row |= {"return": round(statistics.mean(last), 3) if trained >= whole else None}  # it has not come so far
        command = [sys.executable, str(SCRIPT), "--evaluate", str(run_dir), "--eval-episodes", str(episodes)]
        output = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=True).stdout
        numbers = [[float(x) for x in re.findall(r"-?\d+\.\d+", line)] for line in output.splitlines()]
        sizes = episodes, episodes, 1  # deviations of episodes, and the gap's standard error, as 95% intervals
        numbers = [[mean, round(1.96 * x / n**0.5, 2)] for (mean, x), n in zip(numbers, sizes, strict=True)]
        row |= {"episodes": episodes, **dict(zip(("training_levels", "all_levels", "gap"), numbers, strict=True))}
        print({name: x for name, x in row.items() if name != "curve"}, flush=True)
        rows = [other for other in rows if {name: other[name] for name in same} != same] + [row]
        record["runs"] = sorted(rows, key=lambda row: ([*CONSTANTS].index(row["game"]), row["network"], row["seed"]))
        path.write_text(json.dumps(record) + "\n")
    report(record)


def report(record: dict) -> None:
    print(f"\n| game | network | seeds | return at {record['steps']:,} steps | score | training levels | all levels |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for game, network in dict.fromkeys((run["game"], run["network"]) for run in record["runs"]):
        runs = [run for run in record["runs"] if (run["game"], run["network"]) == (game, network)]
        runs = [run for run in runs if run["return"] is not None]
        if runs:
            low, high = CONSTANTS[game]
            returns = [run["return"] for run in runs]
            score = (statistics.mean(returns) - low) / (high - low)
            levels = [
                ", ".join(f"{run[key][0]} ± {run[key][1]}" for run in runs) for key in ("training_levels", "all_levels")
            ]
            each = ", ".join(f"{x:.2f}" for x in returns)
            print(f"| {game} | {network} | {len(runs)} | {each} | {score:.3f} | {levels[0]} | {levels[1]} |")


def plot() -> None:
    import matplotlib.pyplot as plt

    record = json.loads((RESULTS / "procgen.json").read_text())
    games = [*dict.fromkeys(run["game"] for run in record["runs"])]
    figure, all_axes = plt.subplots(1, len(games), figsize=(5 * len(games), 3.5), layout="constrained", squeeze=False)
    for axes, game in zip(all_axes.flat, games, strict=True):
        for network, color in zip(NETWORKS, ("C0", "C1"), strict=True):
            runs = [run for run in record["runs"] if (run["game"], run["network"]) == (game, network)]
            for i, run in enumerate(runs):
                label = f"{network} (seeds: {len(runs)})" if i == 0 else None
                axes.plot(*zip(*run["curve"], strict=True), color=color, alpha=0.8, label=label)
        axes.set(title=f"{game}, easy, 200 levels", xlabel="environment steps", ylabel="training return")
        axes.legend(loc="upper left")
        axes.grid(alpha=0.2)
    figure.savefig(RESULTS / "procgen.png", dpi=110)


# Speed


def environments(num_envs: int, seconds: float) -> float:
    """Steps per second of the games alone, with random actions."""
    envs, rng = ppo.make_envs(ppo.Args(), num_envs), np.random.default_rng(0)
    envs.reset()
    actions = rng.integers(15, size=(100, num_envs, 1))
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        envs.step(actions[count % 100])
        count += 1
    return count * num_envs / (time.perf_counter() - start)


def parts(network: str, bf16: bool, keep: bool = True, repeats: int = 2, size: int = 2048) -> dict[str, float]:
    """Seconds per step of a run with 64 environments: acting, a pass over the rollout, three epochs of updates."""
    settings = ExitStack()
    if keep:
        settings.enter_context(ppo.process_settings())  # as in training
    args = ppo.Args(network=network, bf16=bf16)
    envs = ppo.make_envs(args, 1)
    agent = ppo.Agent(envs, args)
    envs.close()
    agent.bf16 = bf16
    params = [*agent.parameters()]
    batch = {"obs": torch.randint(0, 256, (size, 64, 64, 3), dtype=torch.uint8), "valid": torch.ones(size).bool()}
    batch |= {"actions": torch.randint(0, 15, (size, 1)), "masks": torch.ones(size, 1, 15).bool()}
    batch |= {name: torch.randn(size) for name in ("advantages", "returns", "values")} | {"logprobs": -torch.ones(size)}
    frames = batch["obs"][:64].numpy()

    def seconds(function, count: int) -> float:
        function()
        start = time.perf_counter()
        for _ in range(count):
            function()
        return (time.perf_counter() - start) / count

    with torch.no_grad():
        passed = seconds(lambda: agent(batch), repeats) / size
    update = seconds(lambda: ppo.compute_gradient(agent, params, batch, torch.tensor(1.0), args), repeats) / size
    acting = seconds(lambda: agent.act(frames), 5 * repeats) / 64
    settings.close()
    return {"acting": acting, "one pass": passed, "updates": args.update_epochs * update}


def speed(rounds: int) -> None:
    found = {}
    for _ in range(rounds):
        row = {f"games, {number}": environments(number, 1.0) for number in (1, 4, 16, 64, 256)}
        for network, bf16, keep in [*itertools.product(NETWORKS, (True, False), (True,)), ("impala", True, False)]:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # with a heap of its own
                seconds = pool.submit(parts, network, bf16, keep).result() | {"games": 1 / row["games, 64"]}
            name = f"{network}, {'bfloat16' if bf16 else 'float32'}{'' if keep else ', memory given back'}"
            row |= {name: 1 / sum(seconds.values())}
            row |= {f"{name}: {part}": x / sum(seconds.values()) for part, x in seconds.items()}
        row["gain of keeping memory"] = row["impala, bfloat16"] / row["impala, bfloat16, memory given back"]
        for name, x in row.items():
            found.setdefault(name, []).append(x)
        print({name: f"{x:,.3g}" for name, x in row.items()}, flush=True)
    record = {"machine": machine(torch.device("cpu")), "threads": torch.get_num_threads(), "rounds": found}
    (RESULTS / "procgen_speed.json").write_text(json.dumps(record, indent=2) + "\n")
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["learn", "collect", "plot", "speed"])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("procgen_runs"))
    parser.add_argument("--games", nargs="+", default=[*CONSTANTS], choices=[*CONSTANTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--episodes", type=int, default=100, help="to evaluate, on each set of levels")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if args.what == "learn":
        learn(args.folder.resolve(), args.games, args.seeds, args.steps)
    elif args.what == "collect":
        collect(args.folder.resolve(), args.steps, args.episodes)
    elif args.what == "plot":
        plot()
    else:
        speed(args.rounds)


if __name__ == "__main__":
    main()
