"""Learning curves of several runs, over steps and over seconds, and a table of what they reached.

    pip install matplotlib scipy
    python examples/plot.py runs/CartPole* runs/Acrobot*            # draws curves.png
    python examples/plot.py runs/CartPole* --out cartpole.pdf

Runs that differ in their seed alone are a group, with a color of its own. A line is the interquartile mean over the
seeds of a group, a band its 95% interval by bootstrap over seeds (Agarwal et al., 2021, arXiv:2108.13264). The return
of a run is the mean of its curve in the last twentieth of its steps. The last column of the table is how probable it is
that a run of this group returns more than one of the first group in the same environment (Mann and Whitney's U), with
an interval that has no width where all of one are above all of the other. With few seeds, intervals are too narrow:
those of normal returns hold the true mean in 50% of the cases with two seeds, 75% with three, 90% with five, 94% with
ten.

Seconds are those of training: what passed between stopping and resuming a run is left out. Runs may be of any script
whose curves have the names of docs/metrics.md: groups are told apart by args.json, or, where a run has none, by the
name of its folder without seed and time, `environment__name__seed__time`. One that has no return yet is left out, with
a line that says so; exit code 2 if none is left.
"""

import argparse
import json
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RETURN = "charts/episodic_return"
POINTS = 100  # of a drawn curve
FEW = 5  # seeds: with fewer, a note says that the interval is too narrow
NO_SETTINGS = {"resume", "evaluate", "eval_episodes", "eval_greedy"}  # change no curve
NO_SETTINGS |= {"save_interval", "capture_video", "track", "wandb_project_name", "wandb_entity"}


@dataclass
class Run:
    """What was logged, value by value: steps, seconds of training until then, and returns."""

    env_id: str
    seed: object
    settings: dict  # all others that change a curve
    steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray
    end: tuple[float, float] | None = None  # steps and seconds of the whole run, if it ran on after its last return

    @property
    def result(self) -> float:
        return float(self.returns[self.steps > 0.95 * self.steps[-1]].mean())


def read_run(folder: Path) -> Run:
    """Reads a run's folder; FileNotFoundError says what is missing there."""
    files = [EventAccumulator(str(x), {"scalars": 0}).Reload() for x in folder.glob("events.out.tfevents.*")]
    files, points, ticks, rates, begins = [x for x in files if x.Tags()["scalars"]], [], [(0.0, 0.0)], [], 0
    for events in sorted(files, key=EventAccumulator.FirstEventTimestamp):  # of the start, and each time it went on
        curves = {
            tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if tag.startswith(("charts/", "losses/"))
        }
        if not curves:  # those of an evaluation, whose steps may be others
            continue
        first, began = min(curve[0].step for curve in curves.values()), events.FirstEventTimestamp()
        if first < begins:
            note = f"by the clock, what begins at step {first:,} came after what begins at {begins:,}"
            print(f"note: {folder}: {note}: if that is wrong, so are its curves", file=sys.stderr)
        begins = first  # what came after the checkpoint was done again
        points, ticks, rates = ([x for x in part if x[0] < first] for part in (points, ticks, rates))
        before = max([seconds for _, seconds in ticks], default=0.0)
        points += [(event.step, before + event.wall_time - began, event.value) for event in curves.get(RETURN, [])]
        ticks += [(event.step, before + event.wall_time - began) for curve in curves.values() for event in curve]
        news = [(event.step, event.value) for event in curves.get("charts/learning_rate", [])]
        if rates and news and news[0][1] > 1.001 * rates[-1][1]:
            note = "resumed with a higher learning rate (to run on?): it differs in more than its seed"
            print(f"note: {folder}: {note}", file=sys.stderr)
        rates += news
    if broken := [step for step, _, value in points if not np.isfinite(value)]:
        print(f"note: {folder}: {len(broken)} returns are no numbers, the first at step {broken[0]}", file=sys.stderr)
        points = [point for point in points if np.isfinite(point[2])]
    if not points:
        raise FileNotFoundError(f"it has no curve named {RETURN} (give folders of runs, as in runs/NAME)")
    env_id, *names = folder.resolve().name.split("__")
    name, seed = ("__".join(names[:-2]), names[-2]) if names[2:] else [*names, "", ""][:2]
    settings = {"exp_name": name}
    if (folder / "args.json").exists():
        settings = json.loads((folder / "args.json").read_text())
        env_id, seed = str(settings.pop("env_id", env_id)), settings.pop("seed", seed)
        settings = {"exp_name": name} | {key: x for key, x in settings.items() if key not in NO_SETTINGS}
    return Run(env_id, seed, settings, *np.array(points, dtype=float).T, end=max(ticks))


def group_runs(runs: list[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs by environment and by what sets a group apart from others of that environment and experiment."""
    groups = {}
    for run in runs:
        experiment = run.env_id, run.settings["exp_name"]
        alike = [x.settings for x in runs if (x.env_id, x.settings["exp_name"]) == experiment]
        known = [settings for settings in alike if len(settings) > 1]  # from an args.json
        names = [] if run.settings in known or not known else ["without args.json"]
        for key, value in run.settings.items() if run.settings in known else ():
            value, *others = [float(x) if type(x) is int else x for x in (value, *(other.get(key) for other in known))]
            differ = len({json.dumps(x) for x in others}) > 1
            names += [f"{key}={f'{value:.12g}' if type(value) is float else value}"] if differ else []
        groups.setdefault((run.env_id, " ".join([str(run.settings["exp_name"]), *names])), []).append(run)
    return groups


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    from scipy import stats

    return stats.trim_mean(values, 0.25, axis=axis)


def improvement(values: np.ndarray, baseline: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probability that one of the values is larger than one of the baseline; equal ones count half."""
    assert axis == -1, "the seeds are the last axis"
    return ((1 + np.sign(values[..., :, None] - baseline[..., None, :])) / 2).mean((-2, -1))


def interval(*values: np.ndarray, of=interquartile_mean) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of a statistic over the last axis, the seeds; with one seed, there is none."""
    from scipy import stats

    if min(x.shape[-1] for x in values) == 1:
        return of(*values), of(*values)
    options = {"method": "percentile", "n_resamples": 2000, "rng": np.random.default_rng(0)}
    found = stats.bootstrap(values, of, axis=-1, **options).confidence_interval
    return found.low, found.high


def curves(runs: list[Run], axis: str) -> tuple[np.ndarray, np.ndarray]:
    """POINTS values of steps or seconds, and the returns there, smoothed over a twentieth: shape (POINTS, runs)."""
    end = min(getattr(run, axis)[-1] for run in runs)
    x, columns = np.linspace(0, end, POINTS + 1)[1:], []
    for run in runs:
        places, sums = getattr(run, axis), np.concatenate([[0], run.returns.cumsum()])
        last = np.searchsorted(places, x, side="right")
        first = np.minimum(np.searchsorted(places, x - end / 20, side="right"), np.maximum(last - 1, 0))
        with np.errstate(invalid="ignore"):  # before the first episode has ended there is nothing to draw
            columns.append((sums[last] - sums[first]) / (last - first))
    return x, np.stack(columns, axis=-1)


def draw(groups: dict[tuple[str, str], list[Run]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    env_ids, colors = [*dict.fromkeys(env_id for env_id, _ in groups)], plt.cm.tab10.colors
    labels = {key: textwrap.wrap(f"{key[1]} ({len(runs)})", 60) for key, runs in groups.items()}
    most = max(sum(len(label) for key, label in labels.items() if key[0] == env_id) for env_id in env_ids)
    shape = {"figsize": (5.5 * len(env_ids), 7 + most / 5), "squeeze": False, "layout": "constrained"}  # inches
    figure, all_axes = plt.subplots(2, len(env_ids), **shape)
    for column, env_id in enumerate(env_ids):
        here = [(name, runs) for (other, name), runs in groups.items() if other == env_id]
        for axes, axis in zip(all_axes[:, column], ("steps", "seconds"), strict=True):
            axes.set_prop_cycle(color=plt.cm.turbo(np.linspace(0.1, 0.9, len(here))) if len(here) > 10 else colors)
            for name, runs in here:
                x, returns = curves(runs, axis)
                drawn = np.isfinite(returns).all(axis=-1)
                x, returns = x[drawn], returns[drawn]
                label = "\n  ".join(labels[env_id, name]).replace("$", r"\$")
                if not len(x):
                    said = f"note: {env_id} {name}: no curve over {axis}: a run ended before another's first return"
                    print(said, file=sys.stderr)
                (line,) = axes.plot(x, interquartile_mean(returns), label=label)
                if len(runs) > 1 and len(x):
                    axes.fill_between(x, *interval(returns), color=line.get_color(), alpha=0.2, linewidth=0)
            axes.set(title=env_id, xlabel=axis, ylabel="return", xlim=(0, None))
            axes.grid(alpha=0.2)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15))  # under both
    figure.savefig(path, dpi=110)


def table(groups: dict[tuple[str, str], list[Run]]) -> str:
    lines = ["| environment | runs | seeds | steps | return | 95% interval | seconds | steps per second | better |"]
    lines.append("| --- " * 9 + "|")
    baselines = {}
    for (env_id, name), runs in groups.items():
        results = np.array([run.result for run in runs])
        baseline = baselines.setdefault(env_id, results)
        low, high = interval(results)
        steps, seconds = np.median([run.end or (run.steps[-1], run.seconds[-1]) for run in runs], axis=0)
        better = "" if baseline is results else f"{improvement(results, baseline):.2f}"
        if better and min(len(results), len(baseline)) > 1:
            better += " ({:.2f} to {:.2f})".format(*interval(results, baseline, of=improvement))
        spread = f"{low:.4g} to {high:.4g}" if len(runs) > 1 else ""
        shortest, note = min(runs, key=lambda run: run.steps[-1]), f"note: {env_id} {name}:"
        if shortest.steps[-1] < 0.95 * max(run.steps[-1] for run in runs):
            few = f"{shortest.steps[-1]:,.0f} steps"
            print(f"{note} seed {shortest.seed} has {few} only (unfinished?): curves end there", file=sys.stderr)
        if len({str(run.seed) for run in runs}) < len(runs):
            print(f"{note} some have the same seed: intervals are too narrow", file=sys.stderr)
        if 1 < len(runs) < FEW:
            print(f"{note} fewer than five seeds: the interval is too narrow", file=sys.stderr)
        row = [env_id, name, len(runs), f"{steps:,.0f}", f"{interquartile_mean(results):.4g}", spread]
        row += [f"{seconds:,.0f}", f"{steps / max(seconds, 1e-9):,.0f}", better]
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--out", type=Path, default=Path("curves.png"), help="file to draw to; its ending is its format"
    )
    args, runs = parser.parse_args(), []
    if not args.out.suffix:
        parser.error(f"--out {args.out}: its ending must be a format, as .png")
    for folder in {path.resolve(): path for path in args.runs}.values():
        try:
            runs.append(read_run(folder))
        except Exception as error:  # it has just begun, is damaged, or is none
            print(f"left out: {folder}: {error}", file=sys.stderr)
    if not runs:
        print("error: there is no run to draw", file=sys.stderr)
        return 2
    groups = group_runs(runs)
    try:
        print(table(groups))
        draw(groups, args.out)
    except ImportError as error:
        print(f"error: {error} (pip install matplotlib scipy)", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:  # an ending that is none, a folder that is not there
        print(f"error: --out {args.out}: {error}", file=sys.stderr)
        return 2
    print(f"\nCurves: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
