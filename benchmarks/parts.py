"""Where the microseconds of a step go: the parts of real runs, and the environments with nothing else to do.

    python benchmarks/parts.py                  # CartPole and Hopper, three rounds: 5 minutes
    python benchmarks/parts.py --rounds 1

Each run is the script's own `train`, in a process of its own, on one core, with a clock around the environments'
`step`, around acting, the gradient, and Adam; *the rest* is everything else: the rollout's noise, bookkeeping, the pass
over the rollout, advantages, minibatches, diagnostics, logs. Microseconds for each step of one environment, from the
first third of a run on; medians over rounds, in turns. *Alone* are new environments that get the actions of the run's
last rollout again and again, for two seconds: not where the policy would be, so that more episodes end, but as busy.
Results: `benchmarks/results/parts.json`.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor

from speed import HERE, RECIPE, machine

HOPPER = "ppo_continuous.py --env-id Hopper-v5"
RUNS = {  # command: steps
    "ppo.py": 150_000,
    "ppo.py --compile": 150_000,
    f"{HOPPER}": 40_960,
    f"{HOPPER} --compile": 40_960,
    f"{HOPPER} {RECIPE} --vectorization envpool --compile": 204_800,
}
PARTS = ("environments", "acting", "gradient", "Adam", "the rest", "whole", "environments alone")


def parts(command: str, steps: int) -> dict[str, float]:
    """Microseconds per step of each part, of the whole, and of the environments alone."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch
    import tyro

    name, *arguments = shlex.split(command)
    sys.path.insert(0, str(HERE.parent))
    script = importlib.import_module(name.removesuffix(".py"))
    os.chdir(tempfile.mkdtemp())
    args = tyro.cli(script.Args, args=[*arguments, "--total-timesteps", str(steps), "--save-interval", "1e9"])
    total, marks, last_actions = Counter(), [], deque(maxlen=args.num_steps)

    def timed(part, function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            total[part] += time.perf_counter() - start
            return result

        return call

    class Adam(torch.optim.Adam):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.step = timed("Adam", self.step)  # with what PyTorch wraps around it

    def make_envs(*arguments, make=script.make_envs):
        envs = make(*arguments)
        step = timed("environments", envs.step)
        envs.step = lambda actions: last_actions.append(actions.copy()) or step(actions)
        return envs

    def compute_gae(*arguments, compute=script.compute_gae):  # once an iteration
        marks.append({**total, "whole": time.perf_counter()})
        return compute(*arguments)

    script.make_envs, script.compute_gae, torch.optim.Adam = make_envs, compute_gae, Adam
    script.Agent.act = timed("acting", script.Agent.act)
    if args.compile:
        compile_ = torch.compile
        torch.compile = lambda *args, **kwargs: timed("gradient", compile_(*args, **kwargs))
    else:
        script.compute_gradient = timed("gradient", script.compute_gradient)
    with contextlib.redirect_stdout(None):  # what it says at its end
        script.train(args)
    first, last = marks[len(marks) // 3], marks[-1]
    done = (len(marks) - 1 - len(marks) // 3) * args.num_envs * args.num_steps
    found = {part: 1e6 * (last[part] - first[part]) / done for part in last}
    found["the rest"] = 2 * found["whole"] - sum(found.values())
    actions, envs = [*last_actions], script.make_envs(args, args.num_envs)
    envs.reset(seed=1)
    total["environments"] = count = 0
    while total["environments"] < 2:
        envs.step(actions[count % len(actions)])
        count += 1
    return found | {"environments alone": 1e6 * total["environments"] / count / args.num_envs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds, found = parser.parse_args().rounds, {command: [] for command in RUNS}
    for _ in range(rounds):
        for command, steps in RUNS.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found[command].append(pool.submit(parts, command, steps).result())
            record = {"machine": machine(), "rounds": found}
            (HERE / "results" / "parts.json").write_text(json.dumps(record, indent=2) + "\n")
            print(command, {part: round(x, 1) for part, x in found[command][-1].items()}, flush=True)
    print(f"\n| | {' | '.join(PARTS)} | whole / alone |\n|{' --- |' * (len(PARTS) + 2)}")
    for command, runs in found.items():
        medians = {part: statistics.median(run[part] for run in runs) for part in PARTS}
        ratio = statistics.median(run["whole"] / run["environments alone"] for run in runs)
        print(f"| `{command}` | {' | '.join(f'{x:.1f}' for x in medians.values())} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
