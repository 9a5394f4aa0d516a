"""Does Atari learn? Returns over seeds, for runs so long that they may need a GPU, and several sessions.

    python benchmarks/learning.py Pong --seeds 1 2                       # one after the other, on all cores
    python benchmarks/learning.py Breakout-10M --seeds 1 --device cuda --runs FOLDER --minutes 9     # again to go on
    python benchmarks/learning.py --plot                                 # draw results/learning_*.png

`compare.py` has all other tasks, and these beside Stable-Baselines3 on the CPU. The return of a run is the mean of its
last 100 training episodes (actions sampled, not the best ones). Results, seed by seed:
`benchmarks/results/learning_*.json`, with the device in the name if `--device` was given; the seconds of a curve count
from the start of the process, with imports and compilation. With `--runs`, runs are kept in that folder; those that
`--minutes` stopped go on, with the same command, where they were, and their seconds add up. `--processes` trains
several at once, which share the cores.
"""

import argparse
import importlib
import json
import math
import multiprocessing
import os
import shlex
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

STARTED = time.time()  # of each process: before PyTorch is imported
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
sys.path.insert(0, str(HERE.parent))

# name: (script and arguments, mean return to reach)
PONG = "ppo_atari.py --env-id PongNoFrameskip-v4 --total-timesteps 3000000 --num-envs 16 --num-minibatches 8"
PONG += " --update-epochs 3 --learning-rate 1e-3 --clip-coef 0.2"
RUNS = {
    "Breakout": ("ppo_atari.py --total-timesteps 1000000", None),  # a tenth of the runs that papers publish
    "Pong": (f"{PONG} --stop-return 18", 18),
    # For a GPU: published runs of 10M steps, Pong to the end, and what bfloat16 costs
    "Breakout-10M": ("ppo_atari.py --compile", 400),
    "Pong-20": (f"{PONG} --stop-return 20 --compile", 20),
    "Breakout-float32": ("ppo_atari.py --total-timesteps 1000000 --no-bf16", None),
}


class Job(NamedTuple):
    name: str
    seed: int
    device: str | None
    threads: int
    folder: str | None
    minutes: float


def command_of(name: str, device: str | None) -> str:
    return RUNS[name][0] + (f" --device {device}" if device else "")


def file_of(name: str, device: str | None) -> Path:
    return RESULTS / f"learning_{name}{f'_{device}' if device else ''}.json"


def recorded(name: str, device: str | None) -> list[dict]:
    """Runs that are there, all of the present command."""
    file, command = file_of(name, device), f"python {command_of(name, device)}"
    record = json.loads(file.read_text()) if file.exists() else {"runs": []}
    if any(run.get("command", record["command"]) != command for run in record["runs"]):
        sys.exit(f"error: {file} has runs of another command: move it out of the way first")
    return record["runs"]


def train_seed(job: Job) -> tuple[Job, dict]:
    """One run in a process of its own: its return, seconds, and learning curve in 50 bins."""
    import torch
    import tyro
    from speed import code, machine
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    script, *arguments = shlex.split(command_of(job.name, job.device))
    commit = code()
    ppo = importlib.import_module(Path(script).stem)
    torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = "--no-bf16" not in arguments  # else float32 would have 10 bits of 23
    log = Path(tempfile.gettempdir(), f"learning_{job.name}_{job.seed}.log")  # its progress
    with tempfile.TemporaryDirectory() as temporary, open(log, "w") as sys.stdout:
        folder = Path(job.folder, f"{job.name}_{job.seed}").resolve() if job.folder else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        sessions = Path("sessions.json")  # when each began and ended
        times = json.loads(sessions.read_text()) if sessions.exists() else []
        run_dir = next((path.parent for path in Path().glob("runs/*/checkpoint.pt")), None)
        if run_dir and times:
            times[-1][1] = times[-1][1] or (run_dir / "checkpoint.pt").stat().st_mtime  # it was killed: what is left
            arguments = ["--resume", str(run_dir)]
        else:
            times, arguments = [], [*arguments, "--seed", str(job.seed)]
        signal.signal(signal.SIGALRM, lambda number, frame: ppo.stop_signals.append(number))
        signal.alarm(math.ceil(60 * job.minutes))
        times.append([STARTED, None])
        sessions.write_text(json.dumps(times))
        try:
            args = tyro.cli(ppo.Args, args=arguments, default=ppo.Args())
            result = ppo.train(ppo.Args(resume=args.resume) if args.resume else args)
        except SystemExit as stopped:  # a pool waits for ever for a process that exits
            raise RuntimeError(f"{job.name}, seed {job.seed}: {stopped.code}, see {log}") from None
        signal.alarm(0)
        times[-1][1] = time.time()
        sessions.write_text(json.dumps(times))
        run_dir = result["run_dir"]
        events = EventAccumulator(str(run_dir), {"scalars": 0}).Reload()
        speeds = events.Scalars("charts/SPS")  # one for each iteration
        events = events.Scalars("charts/episodic_return")
        os.chdir("/")

    def elapsed(moment: float) -> float:
        return sum(min(moment, end) - begin for begin, end in times if begin < moment)

    run = {"command": f"python {command_of(job.name, job.device)}", "commit": commit, "seed": job.seed}
    run |= {"seconds": round(elapsed(math.inf), 1), "steps": speeds[-1].step}
    if result["exit_code"]:
        return job, run
    curve = []
    for i in range(50):
        low, high = result["global_step"] * i / 50, result["global_step"] * (i + 1) / 50
        inside = [event.value for event in events if low < event.step <= high]
        clock = elapsed(max((event.wall_time for event in speeds if event.step <= high), default=0))
        curve.append([round(high), round(statistics.mean(inside), 2) if inside else None, round(clock, 1)])
    returns = [episode[0] for episode in result["episodes"]]
    run |= {"return": round(statistics.mean(returns), 2), "curve": curve, "threads": job.threads}
    return job, run | {"machine": machine(next(result["agent"].parameters()).device)}


def plot() -> None:
    import matplotlib.pyplot as plt

    gpu = [name for name in ("Pong-20_cuda", "Breakout-10M_cuda") if (RESULTS / f"learning_{name}.json").exists()]
    for file, names in ("learning_atari", ["Pong", "Breakout"]), ("learning_gpu", gpu):
        if not names:
            continue
        figure, all_axes = plt.subplots(1, len(names), figsize=(10, 3.25), squeeze=False, layout="constrained")
        for axes, name in zip(all_axes[0], names, strict=True):
            for run in json.loads((RESULTS / f"learning_{name}.json").read_text())["runs"]:
                steps, returns, *clock = zip(*run["curve"], strict=True)
                x = [seconds / 60 for seconds in clock[0]] if names is gpu else steps
                axes.plot(x, returns, label=f"seed {run['seed']}")
            name = name.removesuffix("_cuda")
            target = RUNS[name][1]
            if target is not None:
                axes.axhline(target, color="0.4", linestyle=":", label=f"target {target}")
            unit = "minutes of wall clock" if names is gpu else "environment steps"
            axes.set(title=name, xlabel=unit, ylabel="episodic return")
            axes.legend(loc="lower right")
            axes.grid(alpha=0.2)
        figure.savefig(RESULTS / f"{file}.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(RUNS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", help="where to train; else where the script does by itself")
    parser.add_argument("--runs", help="folder to keep runs in, and to go on with those that are there")
    parser.add_argument("--minutes", type=float, default=0, help="stop and save a run after so many; needs --runs")
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    if args.plot:
        return plot()
    if not args.names or {*args.names} - {*RUNS}:
        parser.error(f"name some of {', '.join(RUNS)}")
    if args.minutes and not args.runs:
        parser.error("--minutes needs --runs, where the run is kept")
    RESULTS.mkdir(exist_ok=True)
    threads, folder = max(1, os.cpu_count() // args.processes), args.runs and str(Path(args.runs).resolve())
    rest = (args.device, threads, folder, args.minutes)
    jobs = [Job(name, seed, *rest) for seed in args.seeds for name in args.names]
    for name in {job.name for job in jobs}:
        recorded(name, args.device)  # before hours of training
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        for job, result in pool.imap_unordered(train_seed, jobs):
            if "return" not in result:
                stopped = f"stopped after {result['steps']:,} steps and {result['seconds']} s"
                print(f"{job.name} seed {job.seed}: {stopped}; the same command goes on", flush=True)
                continue
            target = RUNS[job.name][1]
            runs = recorded(job.name, job.device)
            runs = sorted(
                [run for run in runs if run["seed"] != result["seed"]] + [result], key=lambda run: run["seed"]
            )
            mean = statistics.mean(run["return"] for run in runs)
            print(f"{job.name} seed {job.seed}: {result['return']} in {result['seconds']} s", flush=True)
            print(f"  {len(runs)} seeds: {mean:.1f} (target {target})", flush=True)
            record = {"command": result["command"], "mean": mean, "runs": runs}
            file_of(job.name, job.device).write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
