"""Where the time of `ppo_atari.py` goes: its parts alone, the machine's matrix rate, and the whole.

    python benchmarks/atari.py
    python benchmarks/atari.py --device cuda --compile --num-envs 8 32 64 128    # what share of the emulators' speed

For one iteration of Breakout, in milliseconds: stepping the environments with nothing else to do, acting, one pass
over the rollout, the update, each repeated alone (see `ceilings.py`); what is left of the whole iteration is what they
cost each other, and everything else. Beside them, how long the same arithmetic takes at the rate of a large matrix
product. Each figure is the median over rounds, in turns; the share is the median of the shares within rounds. Results:
`benchmarks/results/atari_DEVICE_N.json`, with N environments.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the script, which sets it before PyTorch is imported
import torch
from ceilings import Learner, emulators, frames_buffer, seconds_per_call
from speed import HERE, machine, steady_speed

sys.path.insert(0, str(HERE.parent))
import ppo_atari as ppo

# Multiplications and additions of the Nature CNN for one observation: forward, by layer
LAYERS = [2 * 20 * 20 * 32 * 4 * 64, 2 * 9 * 9 * 64 * 32 * 16, 2 * 7 * 7 * 64 * 64 * 9, 2 * 3136 * 512]
FORWARD, BACKWARD = sum(LAYERS), 2 * sum(LAYERS) - LAYERS[0]  # frames need no gradient


def parts(args: ppo.Args, device: torch.device) -> dict[str, float]:
    """Milliseconds per iteration of each part alone, after a warm-up, and operations per second of a matrix product."""
    envs = ppo.make_envs(args, args.num_envs)
    learner, obs = Learner(args, envs, device), frames_buffer(args, device)
    envs.close()
    a, b = torch.randn(2, 2048, 2048, device=device).to(torch.bfloat16 if learner.agent.bf16 else torch.float32)
    functions = {
        "environments": emulators(args, 0, False),
        "acting": lambda: [learner.actions(obs, t) for t in range(args.num_steps)],
        "values and log-probabilities": learner.evaluate,
        "update": learner.update,
        "matrix rate": lambda: [a @ b for _ in range(10)],
    }
    for function in functions.values():
        for _ in range(3):
            function()
    times = {name: 1000 * seconds_per_call(function, device, 0.5) for name, function in functions.items()}
    return times | {"matrix rate": 1000 * 10 * 2 * 2048**3 / times["matrix rate"]}


def whole(args: ppo.Args, command: str, iterations: int) -> float:
    """Milliseconds per iteration of the script, in its steady state."""
    batch_size = args.num_envs * args.num_steps
    with tempfile.TemporaryDirectory() as folder:
        full = [sys.executable, HERE.parent / "ppo_atari.py", *shlex.split(command)]
        full += ["--total-timesteps", str(iterations * batch_size), "--save-interval", "1e9"]
        subprocess.run(full, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return 1000 * batch_size / steady_speed(next(Path(folder).glob("runs/*")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[8])
    parser.add_argument("--num-minibatches", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--torch-deterministic", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--iterations", type=int, help="of the script, a third of them warm-up; 24, on a GPU 200k steps"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = vars(parser.parse_args())
    rounds, numbers, iterations = options.pop("rounds"), options.pop("num_envs"), options.pop("iterations")
    device, flags = torch.device(options["device"]), ""
    for name, value in options.items():
        flag = name.replace("_", "-")
        flags += f" --{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f" --{flag} {value}"
    (HERE / "results").mkdir(exist_ok=True)
    for num_envs in numbers:
        args, command, rows = ppo.Args(num_envs=num_envs, **options), f"--num-envs {num_envs}{flags}", {}
        count = iterations or max(24, 200_000 // (num_envs * args.num_steps) * (device.type == "cuda"))
        for _ in range(rounds):
            with ppo.process_settings():
                found = parts(args, device)
            found["the whole iteration"] = whole(args, command, count)
            for name, value in found.items():
                rows.setdefault(name, []).append(value)
            print({name: f"{value:,.4g}" for name, value in found.items()}, flush=True)
        report(args, command, rows)
        record = {"machine": machine(device), "command": f"ppo_atari.py {command}", "rounds": rows}
        (HERE / "results" / f"atari_{device.type}_{num_envs}.json").write_text(json.dumps(record, indent=2) + "\n")


def report(args: ppo.Args, command: str, rows: dict[str, list[float]]) -> None:
    N, T = args.num_envs, args.num_steps
    medians = {name: statistics.median(values) for name, values in rows.items()}
    rate, total = medians.pop("matrix rate"), medians.pop("the whole iteration")
    shares = [alone / whole for alone, whole in zip(rows["environments"], rows["the whole iteration"], strict=True)]
    work = {"acting": N * T * FORWARD, "values and log-probabilities": N * (T + 1) * FORWARD}
    work["update"] = args.update_epochs * N * T * (FORWARD + BACKWARD)
    spread = f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"
    print(f"\nppo_atari.py {command}: {1000 * N * T / total:,.0f} steps per second, {spread} of its emulators' alone;")
    print(f"matrix rate {rate / 1e9:,.0f} GFLOP/s\n")
    print("| part | alone, ms per iteration | share of the iteration | its arithmetic at the matrix rate, ms |")
    print("| --- | --- | --- | --- |")
    medians["the rest"] = total - sum(medians.values())
    for name, value in (medians | {"the whole iteration": total}).items():
        least = sum(work.values()) if name == "the whole iteration" else work.get(name)
        least = "" if least is None else f"{1000 * least / rate:,.3g}"
        print(f"| {name} | {value:,.3g} | {value / total:.0%} | {least} |")


if __name__ == "__main__":
    main()
