"""What it learns and how fast, next to what people would use instead: the same task, settings and seeds for both.

    python benchmarks/compare.py run FOLDER                         # everything; again to go on after a stop
    python benchmarks/compare.py run FOLDER --rows CartPole-v1 --seeds 1 2 3
    python benchmarks/compare.py report                             # tables, and results/compare*.png, from the results

`run` makes virtual environments of both sides in FOLDER, from pinned versions, and trains, one core and one thread for
each run, a run on each core: ours and Stable-Baselines3 take turns, seed by seed. Pong has all cores, one run at a time
and after all others, unless it says *one core*. Each finished run is added to `results/compare.json`; what is there is
not run again, unless its command has changed. A run that was stopped begins anew. One that failed is noted, counted,
and tried again.

*Same settings* are ours for both, not the defaults of Stable-Baselines3, on MuJoCo ours with `--compile`; `sb3.py` says
what stays different. *Values not clipped* is the same without that, as is the default of Stable-Baselines3. *Recipe* is
another set of ours, beside which Stable-Baselines3 has the same where it can. A return is the mean of the training
curve (one value an iteration, with sampled actions) in the last twentieth of a run's steps. Seconds count from the
start of the interpreter; memory is the largest resident size of the process itself, without those of a compiler.
`report` takes interquartile means over seeds, with 95% intervals by stratified bootstrap, and the probability of
improvement over Stable-Baselines3 with the same settings (Agarwal et al., 2021, arXiv:2108.13264), all by their package
rliable; where no seed of one side is above any of the other, that interval has no width. Rows that stop at a return
have no such probability. Fewer than five seeds have no interval and no part in anything that needs one. Speeds are
medians over seeds, with their range. All that is made of seconds leaves out runs that had less than nine tenths of
their core.

*SB3's return* is 95% of the way from where SB3 began to where it ended, with the same settings. It is reached when the
mean over a twentieth of SB3's steps first is that high, whether or not it stays so; medians over seeds, where one that
never was, or failed, counts as never, and their ratios, with 95% intervals by bootstrap over seeds, of which each draw
has its own *SB3's return*.
"""

import argparse
import fcntl
import itertools
import json
import math
import os
import queue
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT, RESULTS = HERE.parent, HERE / "results" / "compare.json"
PEER = "Stable-Baselines3"
UNCLIPPED = "values not clipped"
ONE_CORE, CENTRED = "bfloat16, one core", "recipe, bfloat16"
QUIETER = "recipe, first deviation 0.4"  # where that is better
BESIDE = {"same settings": PEER}  # who has the settings of ours
BESIDE |= {contender: f"{PEER}, {contender}" for contender in (UNCLIPPED, "recipe", QUIETER)}
VENVS = {  # what is installed for each side
    "ours": ["-r", str(ROOT / "requirements.txt")],
    "peer": [
        *("torch==2.13.0", "stable-baselines3==2.9.2", "sb3-contrib==2.9.2", "tensorboard==2.21.0", "mujoco==3.6.0"),
        *("gymnasium[box2d,classic-control,mujoco]==1.4.0", "ale-py==0.12.1", "opencv-python-headless==5.0.0.93"),
    ],
}
CARTPOLE = (
    "--num-envs 32 --num-steps 32 --update-epochs 2 --learning-rate 5e-3 --ent-coef 0 --vf-coef 0.25 --no-clip-vloss"
)
LUNAR = "--num-envs 32 --num-steps 256 --num-minibatches 16 --update-epochs 10 --learning-rate 1e-3"
LUNAR += " --gamma 0.999 --gae-lambda 0.98 --norm-reward"
DEFAULTS = "--num-envs 1 --num-steps 2048 --num-minibatches 32 --update-epochs 10 --learning-rate 3e-4 --ent-coef 0"
RECIPE = "--num-envs 16 --num-steps 128 --num-minibatches 8 --learning-rate 1e-3"
SLOWER, FARTHER = "recipe, learning rate 3e-4", "recipe, gamma 0.9999, lambda 0.98"  # where the recipe fails
PATIENT = FARTHER.replace("recipe", "defaults")
PONG = "--num-envs 16 --num-minibatches 8 --update-epochs 3 --learning-rate 1e-3 --clip-coef 0.2 --stop-return 18"
HIDDEN = "--env-id examples.memory:CartPoleHidden-v0 --total-timesteps 500000"
# row: {contender: command}
ROWS = {
    "CartPole-v1": {
        PEER: "sb3.py --env-id CartPole-v1 --total-timesteps 500000",
        "same settings": "ppo.py --env-id CartPole-v1 --total-timesteps 500000",
        BESIDE[UNCLIPPED]: "sb3.py --env-id CartPole-v1 --total-timesteps 500000 --no-clip-vloss",
        UNCLIPPED: "ppo.py --env-id CartPole-v1 --total-timesteps 500000 --no-clip-vloss",
        f"{PEER}, recipe": f"sb3.py --env-id CartPole-v1 --total-timesteps 200000 {CARTPOLE}",
        "recipe": f"ppo.py --env-id CartPole-v1 --total-timesteps 200000 {CARTPOLE}",
    },
    "Acrobot-v1": {
        PEER: "sb3.py --env-id Acrobot-v1 --total-timesteps 500000",
        "same settings": "ppo.py --env-id Acrobot-v1 --total-timesteps 500000",
        f"{PEER}, recipe": f"sb3.py --env-id Acrobot-v1 --total-timesteps 200000 {CARTPOLE}",
        "recipe": f"ppo.py --env-id Acrobot-v1 --total-timesteps 200000 {CARTPOLE}",
    },
    "LunarLander-v3": {
        PEER: f"sb3.py --env-id LunarLander-v3 --total-timesteps 1000000 {LUNAR}",
        "same settings": f"ppo.py --env-id LunarLander-v3 --total-timesteps 1000000 {LUNAR}",
    },
    "CartPoleHidden-v0": {
        PEER: f"sb3.py {HIDDEN} --lstm --num-envs 16 --learning-rate 2.5e-3 --norm-obs --norm-reward",
        "same settings": f"ppo_lstm.py {HIDDEN}",
    },
    "MountainCar-v0": {
        "recipe": "ppo.py --env-id MountainCar-v0 --total-timesteps 1000000 --num-envs 16 --num-steps 16"
        " --learning-rate 3e-4 --gae-lambda 0.98 --ent-coef 0 --norm-obs --norm-reward"
    },
    "Pong": {
        PEER: f"sb3.py --env-id PongNoFrameskip-v4 --atari --total-timesteps 3000000 {PONG}",
        "same settings": f"ppo_atari.py --env-id PongNoFrameskip-v4 --total-timesteps 3000000 {PONG} --no-bf16",
        ONE_CORE: f"ppo_atari.py --env-id PongNoFrameskip-v4 --total-timesteps 3000000 {PONG}",
        CENTRED: f"ppo_atari.py --env-id PongNoFrameskip-v4 --total-timesteps 800000 {PONG} --gamma 0.98 --norm-obs",
    },
    "Breakout": {"defaults": "ppo_atari.py --env-id BreakoutNoFrameskip-v4 --total-timesteps 1000000"},
    "BeamRider": {"defaults": "ppo_atari.py --env-id BeamRiderNoFrameskip-v4 --total-timesteps 1000000"},
}
for task in (
    "Hopper-v5",
    "HalfCheetah-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Swimmer-v5",
    "InvertedPendulum-v5",
    "Pendulum-v1",
):
    same = f"--env-id {task} --total-timesteps {500_000 if task == 'Pendulum-v1' else 1_000_000}"
    both = task in ("Hopper-v5", "HalfCheetah-v5")
    ROWS[task] = {PEER: f"sb3.py {same} {DEFAULTS} --norm-obs --norm-reward"} if both else {}
    ROWS[task]["same settings" if both else "defaults"] = f"ppo_continuous.py {same} --compile"
    if both:
        ROWS[task][f"{PEER}, recipe"] = (
            f"sb3.py {same} --update-epochs 10 --ent-coef 0 {RECIPE} --norm-obs --norm-reward"
        )
    ROWS[task]["recipe"] = f"ppo_continuous.py {same} {RECIPE} --vectorization envpool --compile"
    if task in ("HalfCheetah-v5", "Walker2d-v5"):
        for name, former in ((BESIDE[QUIETER], BESIDE["recipe"]), (QUIETER, "recipe")):
            if former in ROWS[task]:
                ROWS[task][name] = f"{ROWS[task][former]} --init-std 0.4"
    if task == "Ant-v5":
        ROWS[task][SLOWER] = ROWS[task]["recipe"].replace("1e-3", "3e-4")
    if task == "Swimmer-v5":  # γ: Franceschetti et al., 2022, "Making Reinforcement Learning Work on Swimmer"
        ROWS[task][FARTHER] = f"{ROWS[task]['recipe']} --gamma 0.9999 --gae-lambda 0.98"
        ROWS[task][PATIENT] = f"{ROWS[task]['defaults']} --gamma 0.9999 --gae-lambda 0.98"
PIXELS = ("Pong", "Breakout", "BeamRider")
FEW = 5  # fewer seeds have no interval
FIGURE = ("CartPole-v1", "Acrobot-v1", "CartPoleHidden-v0")  # over seconds
LINES = {PEER: "C7-", "same settings": "C0-", "defaults": "C0-", BESIDE["recipe"]: "C7:", "recipe": "C1-"}  # drawn
LINES |= {SLOWER: "C2-", FARTHER: "C2-", PATIENT: "C3-", BESIDE[QUIETER]: "C2:", QUIETER: "C2-"}


def number_of_seeds(row: str, contender: str) -> int:
    if row in PIXELS:
        return {PEER: 1, "same settings": 3, ONE_CORE: 3, CENTRED: 3}.get(contender, 2)
    five = contender in ("defaults", SLOWER, FARTHER, PATIENT, QUIETER) or row in ("Hopper-v5", "HalfCheetah-v5")
    return 5 if five else 10


def takes_all(job: tuple[str, str, str, int]) -> bool:
    """Whether a run has all cores."""
    return job[0] == "Pong" and job[1] != ONE_CORE


def interpreter(folder: Path, side: str) -> str:
    """That of a virtual environment, which is made if it is not there."""
    path = folder / f"{side}-venv"
    if not (path / "complete").exists():
        print(f"Installing {side} in {path}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)], check=True)
        subprocess.run([str(path / "bin" / "pip"), "install", "--quiet", *VENVS[side]], check=True)
        (path / "complete").touch()
    return str(path / "bin" / "python")


running: set[int] = set()  # processes that train


def stop(number: int, _) -> None:
    """What was asked to stop takes its runs with it, and notes none of them as failed."""
    for pid in running:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os._exit(128 + number)


def measure(folder: Path, command: str, seed: int, cores: set[int]) -> dict:
    """Runs a command on some cores: its curve, seconds, seconds of processors, and memory."""
    sys.path.insert(0, str(ROOT))
    from examples.plot import read_run

    script, *arguments = shlex.split(command)
    arguments += ["--seed", str(seed)]
    place = folder / "runs" / f"{time.time_ns()}"  # never that of another
    place.mkdir(parents=True)
    if script == "sb3.py":
        call = [interpreter(folder, "peer"), str(HERE / script), *arguments, "--log", str(place / "runs" / "peer")]
    else:
        call = [interpreter(folder, "ours"), str(ROOT / script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(len(cores)), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(place / "cache")  # compilation counts
    with open(place / "log", "w") as log:
        began = time.time()
        options = {"cwd": place, "env": environment, "stdout": log, "stderr": log}
        process = subprocess.Popen(call, **options, start_new_session=True)  # Ctrl-C is for this program
        running.add(process.pid)
        os.sched_setaffinity(process.pid, cores)  # threads that it starts later inherit this
        ended, memory = 0, 0
        while not ended:
            with suppress(OSError, TypeError):  # it has just ended
                text = Path(f"/proc/{process.pid}/status").read_text()
                memory = int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) / 1024
            time.sleep(0.1)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.time() - began
        running.discard(process.pid)
    if status:
        raise RuntimeError(f"{command} failed: see {place / 'log'}")
    (run_dir,) = (place / "runs").iterdir()
    run = read_run(run_dir)
    times = run.seconds + run_dir_start(run_dir) - began
    size, rows = max(1, math.ceil(len(run.steps) / 200)), []
    for i in range(0, len(run.steps), size):
        part = slice(i, i + size)
        rows.append([int(run.steps[part][-1]), round(float(run.returns[part].mean()), 3), round(times[part][-1], 2)])
    third = len(times) // 3
    found = {
        "command": command,
        "return": round(run.result, 3),
        "steps": int(run.steps[-1]),
        "seconds": round(seconds, 1),
    }
    found |= {"steady_sps": round((run.steps[-1] - run.steps[third]) / (times[-1] - times[third]), 1)}
    found |= {"cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "memory_mib": round(memory)}
    return found | {"cores": len(cores), "curve": rows}


def run_dir_start(run_dir: Path) -> float:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run_dir)).Reload().FirstEventTimestamp()


def add(row: str, contender: str, seed: int, found: dict) -> None:
    """Adds a run to the results, to which another process may be adding too."""
    lock = os.open(RESULTS.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
        record["rows"].setdefault(row, {}).setdefault(contender, {})[str(seed)] = found
        RESULTS.with_suffix(".tmp").write_text(json.dumps(record))
        os.replace(RESULTS.with_suffix(".tmp"), RESULTS)
    finally:
        os.close(lock)


def is_done(row: str, contender: str, command: str, seed: int) -> bool:
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    found = record["rows"].get(row, {}).get(contender, {}).get(str(seed), {"failed": True})
    return "failed" not in found and found["command"] == command


def run_all(folder: Path, rows: list[str], seeds: list[int] | None) -> None:
    sys.path.insert(0, str(HERE))
    import torch
    from speed import code, machine

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for side in VENVS:
        interpreter(folder, side)

    jobs, all_cores = [], os.sched_getaffinity(0)
    for seed, row in itertools.product(seeds or range(1, 11), rows):
        for contender, command in ROWS[row].items():
            job = row, contender, command, seed
            if (seeds or seed <= number_of_seeds(row, contender)) and not is_done(*job):
                if "bfloat16" not in contender or torch.cpu._is_avx512_bf16_supported():
                    jobs.append(job)
                else:
                    print(f"{row}, {contender}, seed {seed}: not run, this processor would take float32", flush=True)
    free, failed = queue.SimpleQueue(), []
    for core in all_cores:
        free.put({core})

    def work(job: tuple[str, str, str, int]) -> None:
        row, contender, command, seed = job
        cores, commit = all_cores if takes_all(job) else free.get(), code()
        try:
            if is_done(*job):  # by another process, in the meantime
                return
            found = measure(folder, command, seed, cores) | {"machine": machine()["cpu"]}
            found["commit"] = commit if code() == commit else f"{commit}, changed"  # while it ran
        except Exception as error:  # the others go on
            found = {"command": command, "failed": f"{type(error).__name__}: {error}"}
            failed.append(found)
        finally:
            if not takes_all(job):
                free.put(cores)
        add(row, contender, seed, found)
        said = found.get("failed") or f"{found['return']} in {found['seconds']} s"
        print(f"{row}, {contender}, seed {seed}: {said}", flush=True)

    for all_of_them, workers in ((False, len(all_cores)), (True, 1)):
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, [job for job in jobs if takes_all(job) == all_of_them]))
    if failed:
        sys.exit(f"error: {len(failed)} of {len(jobs)} runs failed; they are tried again with the same command")


# From the results


def runs_of(record: dict, row: str) -> dict:
    """The runs of each contender as `examples/plot.py` has them; None for one that failed."""
    import numpy as np

    sys.path.insert(0, str(ROOT))
    from examples.plot import Run

    found = {}
    for contender, command in ROWS[row].items():
        for seed, run in sorted(record["rows"].get(row, {}).get(contender, {}).items(), key=lambda pair: int(pair[0])):
            if run["command"] == command:  # else of an earlier version of this table
                columns = None if "failed" in run else np.array(run["curve"], float).T
                run = None if columns is None else Run(row, seed, run, columns[0], columns[2], columns[1])
                found.setdefault(contender, []).append(run)
    return found


def finished(runs: list) -> list:
    return [run for run in runs if run is not None]


def alone(runs: list) -> list:
    """Without runs that had less than nine tenths of their core: their seconds say little."""
    settings = [None if run is None else run.settings for run in runs]
    kept = [x is None or x["cores"] > 1 or x["cpu_seconds"] >= 0.9 * x["seconds"] for x in settings]
    return [*itertools.compress(runs, kept)]


def smooth(run, window: float):
    """Rows of steps, seconds, and mean returns over a window of steps before, from the first whole window on."""
    import numpy as np

    if run is None:
        return np.empty((3, 0))
    parts = [run.returns[(run.steps > step - window) & (run.steps <= step)] for step in run.steps]
    return np.array([run.steps, run.seconds, [part.mean() for part in parts]])[:, run.steps >= window]


def reached(curve, target: float) -> tuple[float, float]:
    """The step and second at which a smooth curve first was that high; infinite if never."""
    high = curve[2] >= target
    return tuple(curve[:2, high.argmax()].tolist()) if high.any() else (math.inf, math.inf)


def target_of(peers: list) -> float:
    """*SB3's return*."""
    import numpy as np

    from examples.plot import interquartile_mean

    ends = np.array([[run.returns[0], run.settings["return"]] for run in finished(peers)])
    first, last = interquartile_mean(ends, axis=0).tolist()
    return first + 0.95 * (last - first)


def estimates(*scores, function) -> tuple[float, float, float]:
    """A statistic of scores (seeds, tasks), and its 95% interval."""
    import numpy as np
    from rliable import library

    np.random.seed(0)  # noqa: NPY002 (which is what rliable draws from)
    scores = scores if len(scores) > 1 else scores[0]
    found = library.get_interval_estimates({"": scores}, lambda *x: np.array([function(*x)]), reps=2000)
    points, intervals = (x[""] for x in found)
    return points.item(), *intervals.ravel().tolist()


def ratios(ours: list, theirs: list, peers: list, window: float, draws: int = 1000) -> list[tuple]:
    """Of the medians of two sets of runs, of steps and of seconds until the return of the peers, and 95% intervals by
    bootstrap of all three: a draw where neither was there counts as 0 for one end, as ∞ for the other. `theirs` may be
    these peers."""
    import numpy as np

    curves = [[(run, smooth(run, window)) for run in runs] for runs in (ours, theirs, peers)]

    def divide(ours: list, theirs: list, peers: list) -> np.ndarray:
        target = target_of([run for run, _ in peers])
        times = [np.median([reached(curve, target) for _, curve in part], axis=0) for part in (ours, theirs)]
        with np.errstate(invalid="ignore"):  # of two that never were
            return times[0] / times[1]

    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        drawn = [[runs[i] for i in rng.integers(len(runs), size=len(runs))] for runs in curves]
        if theirs is peers:
            drawn[2] = drawn[1]
        if finished([run for run, _ in drawn[2]]):
            found.append(divide(*drawn))
    limits = ((0.025, 0.0), (0.975, np.inf))
    interval = [np.quantile(np.nan_to_num(found, nan=x, posinf=np.inf), q, 0, method="nearest") for q, x in limits]
    return [*zip(divide(*curves).tolist(), *(x.tolist() for x in interval), strict=True)]


def report() -> None:
    import numpy as np
    from rliable import metrics

    record = json.loads(RESULTS.read_text())
    columns = ["task", "", "seeds", "return", "95% interval", "better than SB3", "steps per second", "MiB"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    pairs, clocks, stops = {}, [], []
    for row in ROWS:
        contenders = runs_of(record, row)
        for contender, all_runs in contenders.items():
            runs, beside, spread, better = finished(all_runs), contenders.get(BESIDE.get(contender), []), "", ""
            failed = f", {len(all_runs) - len(runs)} failed" if len(all_runs) > len(runs) else ""
            if not runs:
                print(f"| {row} | {contender} | 0{failed} |{' |' * 5}")
                continue
            scores, theirs = (np.array([[run.settings["return"]] for run in part]) for part in (runs, finished(beside)))
            point, low, high = estimates(scores, function=metrics.aggregate_iqm)
            if len(runs) >= FEW:
                spread = f"{low:,.1f} to {high:,.1f}"
            if min(len(scores), len(theirs)) >= FEW and "--stop-return" not in ROWS[row][contender]:
                chance = estimates(scores, theirs, function=metrics.probability_of_improvement)
                better = "{:.2f} ({:.2f} to {:.2f})".format(*chance)
                pairs.setdefault(contender, {})[row] = scores, theirs
            if "--stop-return" in ROWS[row][contender]:
                ends = [(run.seed, *(run.settings[x] for x in ("return", "steps", "seconds"))) for run in runs]
                stops += [f"| {row} | {contender} | {n} | {r:.1f} | {x:,} | {s:,.0f} |" for n, r, x, s in ends]
            speeds = [run.settings["steady_sps"] for run in alone(runs)]
            speed = f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})" if speeds else ""
            cells = [row, contender, f"{len(runs)}{failed}", f"{point:,.1f}", spread, better, speed]
            print(f"| {' | '.join(cells)} | {statistics.median(run.settings['memory_mib'] for run in runs):,.0f} |")
        contenders = {contender: kept for contender, runs in contenders.items() if (kept := alone(runs))}
        peers = contenders.get(PEER, [])
        if len(finished(peers)) < FEW:
            continue
        window, target = max(run.steps[-1] for run in finished(peers)) / 20, target_of(peers)
        for contender, runs in contenders.items():
            times = np.array([reached(smooth(run, window), target) for run in runs])
            steps, seconds = (f"{x:,.0f}" if np.isfinite(x) else "never" for x in np.median(times, axis=0))
            of_peers, of_same = ["", ""], ["", ""]
            if contender != PEER and len(runs) >= FEW:
                of_peers = ["{:.2f} ({:.2f} to {:.2f})".format(*x) for x in ratios(runs, peers, peers, window)]
            same = contenders.get(BESIDE.get(contender), [])
            if same is not peers and min(len(runs), len(same)) >= FEW:
                of_same = ["{:.2f} ({:.2f} to {:.2f})".format(*x) for x in ratios(runs, same, peers, window)]
            cells = [row, f"{target:,.1f}", contender, f"{np.isfinite(times[:, 0]).sum()} of {len(times)}"]
            clocks.append(f"| {' | '.join([*cells, steps, of_peers[0], seconds, of_peers[1], *of_same])} |")
    columns = ["task", "SB3's return", "", "seeds that reach it", "steps until then", "/ SB3's", "seconds", "/ SB3's"]
    columns += ["steps / SB3's with this row's settings", "seconds / SB3's with this row's settings"]
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", *clocks, sep="\n")
    columns = ["task, to a return", "", "seed", "return", "steps", "seconds"]
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", *stops, sep="\n")
    if UNCLIPPED in pairs:
        pairs[f"same settings, {UNCLIPPED} where that was run too"] = pairs["same settings"] | pairs[UNCLIPPED]
    for contender, scores in pairs.items():
        if len(scores) == 1:  # said above
            continue

        def mean_probability(*scores) -> float:
            tasks = zip(scores[::2], scores[1::2], strict=True)
            return statistics.mean(metrics.probability_of_improvement(*task) for task in tasks)

        chance = estimates(*itertools.chain(*scores.values()), function=mean_probability)
        print(f"\n{contender}, mean over {len(scores)} tasks: better than SB3 with the same settings with probability")
        print("{:.2f} ({:.2f} to {:.2f})".format(*chance))
    print()
    for row, names in record["rows"].items():
        runs = [run for seeds in names.values() for run in seeds.values() if "failed" not in run]
        places = "; ".join(sorted({f"{run['commit']} on {run['machine']}" for run in runs}))
        few = sum(run["cores"] == 1 and run["cpu_seconds"] < 0.9 * run["seconds"] for run in runs)
        print(
            f"{row}: {len(runs)} runs, {places}; {few} had less than nine tenths of a core: their seconds are left out"
        )
    failed = [run for row in record["rows"].values() for x in row.values() for run in x.values() if "failed" in run]
    for run in failed:
        print(f"Failed: {run['command']}: {run['failed']}")
    draw(record)


def draw(record: dict) -> None:
    """Three tasks over seconds, and all over steps, where runs that shared their core count as well."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    from examples.plot import curves, interquartile_mean, interval

    trained = [row for row in ROWS if any(map(finished, runs_of(record, row).values()))]
    for axis, rows, columns in (("seconds", FIGURE, 3), ("steps", trained, 4)):
        lines, size = max(1, math.ceil(len(rows) / columns)), (5, 3.5) if axis == "seconds" else (4, 3)
        shape = {"figsize": (size[0] * columns, size[1] * lines), "squeeze": False, "layout": "constrained"}
        figure, all_axes = plt.subplots(lines, columns, **shape)
        for axes in all_axes.flat[len(rows) :]:
            axes.axis("off")
        for axes, row in zip(all_axes.flat, rows, strict=False):
            for contender, line in LINES.items():
                runs = runs_of(record, row).get(contender, [])
                runs = finished(alone(runs) if axis == "seconds" else runs)
                if not runs:
                    continue
                x, returns = curves(runs, axis)
                drawn = np.isfinite(returns).all(axis=-1)
                name = contender if PEER in contender else f"ours, {contender}"
                name = name.replace(PEER, "RecurrentPPO") if row == "CartPoleHidden-v0" else name
                x, returns = x[drawn] / (1 if axis == "seconds" else 1e6), returns[drawn]
                axes.plot(x, interquartile_mean(returns), line, label=f"{name} ({len(runs)})")
                if len(runs) >= FEW:
                    axes.fill_between(x, *interval(returns), color=line[:2], alpha=0.2, linewidth=0)
            label = "seconds, from the start of the command" if axis == "seconds" else "million steps"
            axes.set(title=row, xlabel=label, ylabel="return", xlim=(0, None))
            axes.grid(alpha=0.2)
            if max((len(x.get_label()) for x in axes.lines), default=0) > 30:  # room for a wide legend above all curves
                low, high = axes.get_ylim()
                axes.set_ylim(top=high + 0.15 * len(axes.lines) * (high - low))
            if axes.lines:
                axes.legend(**({"loc": "lower right"} if axis == "seconds" else {"loc": "best", "fontsize": "small"}))
        suffix = "" if axis == "seconds" else "_steps"
        figure.savefig(RESULTS.with_name(f"{RESULTS.stem}{suffix}.png"), dpi=110 if axis == "seconds" else 80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("compare_runs"), help="for environments and runs")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--seeds", type=int, nargs="+", help="these only; else as many as each row is for")
    args = parser.parse_args()
    if args.what == "report":
        return report()
    args.folder.mkdir(parents=True, exist_ok=True)
    run_all(args.folder.resolve(), args.rows, args.seeds)


if __name__ == "__main__":
    main()
