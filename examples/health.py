"""Is a run healthy? A line on each thing in its TensorBoard curves that is not as it should be, and what to change.

    python examples/health.py runs/NAME [runs/NAME ...]

The runs may be finished or still running, ours or another script's, as long as the curves have the names of
docs/metrics.md. Good runs leave a healthy range for a while: late updates are tiny where the learning rate falls to
zero, values explain nothing before they are learned. So each rule looks at the whole run in ten parts, and takes the
best, the median or the last of them. Exit code: 0 if all runs are healthy, 1 if one is not, 2 if one can't be read.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ENOUGH = 40  # values of a curve: with fewer, nothing is said
RETURN, VARIANCE = "charts/episodic_return", "losses/explained_variance"
MORE = "raise --learning-rate or --update-epochs"
LESS = "updates are too large: lower --learning-rate or --update-epochs, or set --target-kl 0.015"
SETTLED = "it settled before it had learned: raise --ent-coef, lower --learning-rate"


def read_curves(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The steps and values of each curve in a run's folder."""
    if not run.is_dir():
        raise FileNotFoundError("there is no such folder")
    events = EventAccumulator(str(run), {"scalars": 0}).Reload()
    curves = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    if not any(tag.startswith("losses/") for tag in curves):
        raise FileNotFoundError("it has no curves named losses/… (give the folder of one run, as in runs/NAME)")
    return {tag: (np.array([x.step for x in xs]), np.array([x.value for x in xs])) for tag, xs in curves.items()}


def iterations_of(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> int:
    return max((len(values) for name, (_, values) in curves.items() if name.startswith("losses/")), default=0)


def find(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """A line for each finding: what, its value, the healthy range, what to change."""
    found = []
    for name, (steps, values) in curves.items():
        broken = values[~np.isfinite(values)]
        if len(broken) and name != VARIANCE:  # which some scripts log as NaN where returns are equal
            found.append(f"{name} is {broken[0]} (healthy: a number): lower --learning-rate, look at the rewards")
        curves = curves | {name: (steps[np.isfinite(values)], values[np.isfinite(values)])}
    steps, returns = curves.get(RETURN, (np.zeros(0), np.zeros(0)))
    if len(returns) and VARIANCE in curves:  # where all returns are equal, there is nothing to explain
        losses_steps, values = curves[VARIANCE]
        varied = np.interp(losses_steps, steps, returns) < returns.max() - 0.01 * abs(returns.max())
        curves = curves | {VARIANCE: (losses_steps[varied], values[varied].clip(-1))}

    def check(name: str, part: Callable, low: float, high: float, if_low: str, if_high: str) -> None:
        """Hold one of ten parts of a curve, the median one for example, against a range."""
        values = curves.get(name, (np.zeros(0), np.zeros(0)))[1]
        if len(values) >= ENOUGH:
            value = part([x.mean() for x in np.array_split(values, 10)])
            if not low <= value <= high:
                healthy = f"{low:.4g} or more" if high == np.inf else f"{low} to {high}"
                digits = range(4 if name == RETURN else 2, 18)  # as many as show that it is outside
                shown = next(x for x in (f"{value:.{n}g}" for n in digits) if not low <= float(x) <= high)
                found.append(f"{name} is {shown} (healthy: {healthy}): {if_low if value < low else if_high}")

    if iterations_of(curves) < ENOUGH:  # some scripts log many returns in each
        return found
    parts, learned = np.array_split(returns, 10), True
    if len(returns) >= ENOUGH:  # is the best part above the first, by three standard errors of the difference?
        best, noise = max(parts, key=np.mean), np.diff(returns).std() / 2**0.5  # of one value, without the trend
        learned = best.mean() - parts[0].mean() > 3 * noise * (1 / len(parts[0]) + 1 / len(best)) ** 0.5
    check("losses/approx_kl", max, 1e-5, np.inf, f"the policy hardly moves: {MORE}", "")
    if not learned:  # a policy that has learned may be sure of itself
        check("losses/relative_entropy", min, 0.05, 0.95, SETTLED, f"it still acts at random: {MORE}")
        check("losses/policy_std", min, 0.05, np.inf, SETTLED, "")
    check("losses/approx_kl", lambda parts: max(np.median(parts), 0), 0, 0.05, "", LESS)  # rounding can go below
    check("losses/clipfrac", np.median, 0, 0.4, "", LESS)
    check("losses/policy_std", lambda parts: parts[-1], 0, 2, "", "actions are ever more random: lower --ent-coef")
    dead = "" if learned else "; or no unit of the network answers any more: lower --learning-rate (Atari: --norm-obs)"
    change = "values explain nothing: --no-clip-vloss, --norm-reward, a larger --vf-coef"
    check(VARIANCE, max, 0.1, 1, change + dead, "")
    if not learned:
        falls = parts[0].mean() - parts[-1].mean() > 3 * noise * (1 / len(parts[0]) + 1 / len(parts[-1])) ** 0.5
        change = "no clear rise since the start: see the other lines; if there are none, rewards may be too rare"
        change = f"it falls: {LESS}; if that changes nothing, is the sign of rewards right?" if falls else change
        found.append(f"{RETURN} is {parts[-1].mean():.4g} (healthy: well above {parts[0].mean():.4g}): {change}")
    elif len(returns) >= ENOUGH:
        low, fallen = (3 * parts[0].mean() + best.mean()) / 4, f"it has fallen from {best.mean():.4g}: {LESS}"
        check(RETURN, lambda parts: parts[-1], low, np.inf, fallen, "")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    exit_code = 0
    for run in parser.parse_args().runs:
        try:
            curves = read_curves(run)
        except OSError as error:
            print(f"error: {run}: {error}", file=sys.stderr)
            exit_code = 2
            continue
        iterations, found = iterations_of(curves), find(curves)
        verdict = f"{len(found)} to look at" if found else "healthy" if iterations >= ENOUGH else "too early to say"
        if verdict == "healthy" and len(curves.get(RETURN, ((), ()))[1]) < ENOUGH:
            verdict += ", but for too few returns to judge them"
        print(f"{run}: {verdict} ({iterations:,} iterations)")
        for line in found:
            print(f"  {line}")
        exit_code = max(exit_code, bool(found))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
