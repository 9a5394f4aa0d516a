"""What memory is worth: `ppo_lstm.py`, and `ppo.py` with the same settings, on the tasks of examples/memory.py.

    python benchmarks/memory.py                  # runs what is not in results/memory.json yet, one after the other
    python benchmarks/memory.py --plot           # draws results/memory.png
    python benchmarks/memory.py --compare PYTHON # steps per second and returns beside sb3-contrib's RecurrentPPO

`ppo_lstm.py` runs at its defaults; `ppo.py` gets the same settings, and twice the steps on CartPoleHidden. Curves show
the mean return of training episodes; their last point is that of the last 100. PYTHON is the interpreter of an
environment that has sb3-contrib; each library runs three times, in turns, on one thread, with the same settings.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "memory.json"
SAME = "--num-envs 16 --learning-rate 2.5e-3 --norm-obs --norm-reward"
# Steps with memory, and without
TASKS = {"CartPoleHidden-v0": (500_000, 1_000_000), "Corridor30-v0": (200_000, 200_000)}
SETTINGS = {}  # in the order in which they run
for task, (ours, theirs) in TASKS.items():
    SETTINGS["ppo_lstm.py", task] = f"ppo_lstm.py --env-id examples.memory:{task} --total-timesteps {ours}"
    SETTINGS["ppo.py", task] = f"ppo.py --env-id examples.memory:{task} --total-timesteps {theirs} {SAME}"

PEER = """
import sys, time, json
sys.path.insert(0, ROOT)
import gymnasium, numpy, torch, examples.memory
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
class Clock(BaseCallback):
    times = []
    def _on_rollout_start(self): self.times.append((self.num_timesteps, time.time()))
    def _on_step(self): return True
torch.set_num_threads(1)
envs = VecNormalize(make_vec_env(TASK, n_envs=16, seed=SEED), gamma=0.99)
kwargs = dict(lstm_hidden_size=128, shared_lstm=True, enable_critic_lstm=False, net_arch=[])
model = RecurrentPPO("MlpLstmPolicy", envs, n_steps=128, batch_size=512, n_epochs=4, gamma=0.99, gae_lambda=0.95,
    learning_rate=lambda left: 2.5e-3 * left, clip_range=0.2, clip_range_vf=0.2, ent_coef=0.01, vf_coef=0.5,
    max_grad_norm=0.5, seed=SEED, device="cpu", policy_kwargs=kwargs)
clock = Clock()
model.learn(STEPS, callback=clock)
first, last = clock.times[len(clock.times) // 3], clock.times[-1]
returns = [episode["r"] for episode in model.ep_info_buffer]
print(json.dumps({"sps": (last[0] - first[0]) / (last[1] - first[1]), "return": float(numpy.mean(returns))}))
"""
OURS = """
import sys, time, json
sys.path.insert(0, ROOT)
import numpy, ppo_lstm
times, evaluate = [], ppo_lstm.compute_gae
def note(*args):
    times.append(time.time())
    return evaluate(*args)
ppo_lstm.compute_gae = note
result = ppo_lstm.train(ppo_lstm.Args(env_id=f"examples.memory:{TASK}", seed=SEED, total_timesteps=STEPS))
first = len(times) // 3
sps = 16 * 128 * (len(times) - 1 - first) / (times[-1] - times[first])
print(json.dumps({"sps": sps, "return": float(numpy.mean(result["episodes"], axis=0)[0])}))
"""


def curve(arguments: str, seed: int) -> list:
    """[step, mean return of the last 100 episodes] in 100 points, from a run in a folder that is thrown away."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    script, *rest = arguments.split()
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE.parent / script), *rest, "--seed", str(seed)]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        (run_dir,) = Path(folder, "runs").iterdir()
        events = EventAccumulator(str(run_dir), {"scalars": 0}).Reload()
        points = [(event.step, event.value) for event in events.Scalars("charts/episodic_return")]
        saved = __import__("torch").load(run_dir / "checkpoint.pt", weights_only=True)["episodes"]
    size = max(1, len(points) // 100)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    rows = [[part[-1][0], round(statistics.mean(y for _, y in part), 2)] for part in parts]
    return [*rows[:-1], [rows[-1][0], round(statistics.mean(y for y, _ in saved), 2)]]


def train(found: dict, seeds: list[int]) -> None:
    for seed, ((script, task), arguments) in itertools.product(seeds, SETTINGS.items()):
        runs = found.setdefault("curves", {}).setdefault(f"{script} {task}", {"command": arguments, "seeds": {}})
        if str(seed) not in runs["seeds"]:
            runs["seeds"][str(seed)] = curve(arguments, seed)
            print(script, task, seed, runs["seeds"][str(seed)][-1], flush=True)
            RESULTS.write_text(json.dumps(found))


def compare(found: dict, peer: str) -> None:
    for task, steps in (("CartPoleHidden-v0", 49_152), ("Corridor30-v0", 40_960)):
        rows = {"ppo_lstm.py": [], "RecurrentPPO": []}
        for seed in (1, 2, 3):
            names = f"ROOT, TASK, STEPS, SEED = {str(HERE.parent)!r}, {task!r}, {steps}, {seed}\n"
            for name, python, code in (("ppo_lstm.py", sys.executable, OURS), ("RecurrentPPO", peer, PEER)):
                with tempfile.TemporaryDirectory() as folder:
                    environment = os.environ | {"OMP_NUM_THREADS": "1"}
                    command = [python, "-W", "ignore", "-c", names + code]
                    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
                rows[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(task, name, seed, rows[name][-1], flush=True)
        ours, theirs = (statistics.median(row["sps"] for row in part) for part in rows.values())
        print(f"{task}: {ours / theirs:.2f} times the steps per second", flush=True)
        found.setdefault("compared", {})[task] = {"steps": steps, **rows}
        RESULTS.write_text(json.dumps(found))


def plot(found: dict) -> None:
    import matplotlib.pyplot as plt

    colours, targets = {"ppo_lstm.py": "C0", "ppo.py": "C3"}, {"CartPoleHidden-v0": 475, "Corridor30-v0": 1}
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, task in zip(axes, TASKS, strict=True):
        for script, colour in colours.items():
            for i, points in enumerate(found["curves"][f"{script} {task}"]["seeds"].values()):
                steps, returns = zip(*points, strict=True)
                steps = [step / 1000 for step in steps]
                axis.plot(steps, returns, color=colour, alpha=0.6, lw=1, label=None if i else script)
        axis.axhline(targets[task], color="grey", lw=0.8, ls=":")
        axis.set(title=task, xlabel="thousands of steps", ylabel="return", xlim=(0, None))
    axes[0].legend(loc="center right")
    figure.tight_layout()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--compare", metavar="PYTHON", type=lambda x: os.path.abspath(x) if os.sep in x else x)
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    from speed import machine

    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": machine()}
    if args.compare:
        compare(found, args.compare)
    elif not args.plot:
        train(found, args.seeds)
    if not args.compare:
        plot(found)


if __name__ == "__main__":
    main()
