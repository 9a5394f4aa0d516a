"""benchmarks/compare.py: what it would run, and what it makes of runs."""

import functools
import importlib.util
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from matplotlib.figure import Figure

import ppo
import ppo_atari
import ppo_continuous
import ppo_lstm
from conftest import ROOT
from examples.plot import Run, interquartile_mean


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare = load("compare")
SCRIPTS = {f"{script.__name__}.py": script for script in (ppo, ppo_atari, ppo_continuous, ppo_lstm)}
COMMANDS = [(row, name, command) for row, names in compare.ROWS.items() for name, command in names.items()]


@pytest.mark.parametrize(("row", "contender", "command"), [x for x in COMMANDS if compare.PEER not in x[1]])
def test_each_command_is_one_of_its_script(row, contender, command, monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)  # any compiler
    script, *arguments = shlex.split(command)
    args = tyro.cli(SCRIPTS[script].Args, args=arguments)
    SCRIPTS[script].check_args(args, "cpu")
    assert row.split("-")[0] in args.env_id and args.seed == 1  # which `measure` gives


@pytest.fixture
def peer(monkeypatch):
    """sb3.py, without Stable-Baselines3."""
    for name, names in {
        "stable_baselines3": ["PPO"],
        "stable_baselines3.common.callbacks": ["BaseCallback"],
        "stable_baselines3.common.env_util": ["make_atari_env", "make_vec_env"],
        "stable_baselines3.common.torch_layers": ["BaseFeaturesExtractor"],
        "stable_baselines3.common.vec_env": ["VecFrameStack", "VecNormalize"],
    }.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**dict.fromkeys(names, object)))
    return load("sb3")


@pytest.mark.parametrize("row", [row for row, names in compare.ROWS.items() if compare.PEER in names])
def test_both_have_the_same_settings(row, peer):
    """After defaults, and all that both know."""
    for own, other in compare.BESIDE.items():
        if other in compare.ROWS[row]:
            script, *arguments = shlex.split(compare.ROWS[row][own])
            ours = vars(tyro.cli(SCRIPTS[script].Args, args=arguments))
            theirs = vars(peer.parse(shlex.split(compare.ROWS[row][other])[1:]))
            theirs["stop_return"] = None if theirs["stop_return"] == math.inf else theirs["stop_return"]
            shared = {name: theirs[name] for name in theirs if name in ours}
            if script == "ppo_atari.py":  # SB3's wrappers scale frames and take the sign of rewards
                assert not (shared.pop("norm_reward") or theirs["norm_obs"] or ours["norm_reward"])
            assert {name: ours[name] for name in shared} == shared and len(shared) >= 14
            assert ours["max_grad_norm"] == 0.5 and ours["anneal_lr"] and ours["norm_adv"] and not ours["target_kl"]
            assert theirs["lstm"] == (script == "ppo_lstm.py") and theirs["atari"] == (script == "ppo_atari.py")


def a_run(steps, seconds, returns, **settings):
    return Run("task", 1, settings, np.array(steps), np.array(seconds, float), np.array(returns, float))


def test_when_a_return_is_reached():
    """When the mean over the window first reached it: not at a single peak, not before there is a whole window."""
    run = a_run([100, 200, 300, 400, 500], [1, 2, 3, 5, 8], [9, 0, 4, 6, 8])
    curve = compare.smooth(run, 200)
    assert curve.T.tolist() == [[200, 2, 4.5], [300, 3, 2], [400, 5, 5], [500, 8, 7]]
    assert compare.reached(curve, 5) == (400, 5)
    assert compare.reached(curve, 5.1) == (500, 8)
    assert compare.reached(curve, 7.5) == (math.inf, math.inf)
    assert compare.reached(compare.smooth(run, 100), 5) == (100, 1)  # the first alone
    assert compare.reached(compare.smooth(None, 100), -1e9) == (math.inf, math.inf)  # it failed


def test_which_runs_count():
    """Those of the present command, in the order of their seeds; one that failed is told from one that is not there."""
    row, (contender, command) = "CartPole-v1", next(iter(compare.ROWS["CartPole-v1"].items()))
    good = {"command": command, "curve": [[100, 5.0, 1.0], [200, 6.0, 2.0]]}
    old, failed = good | {"command": f"{command} --gamma 0.9"}, {"command": command, "failed": "RuntimeError"}
    runs = {"10": good | {"number": 10}, "2": good | {"number": 2}, "3": old, "4": failed}
    found = compare.runs_of({"rows": {row: {contender: runs}}}, row)
    assert [run and run.settings["number"] for run in found[contender]] == [2, None, 10] and [*found] == [contender]
    assert found[contender][0].steps.tolist() == [100, 200] and found[contender][0].seconds.tolist() == [1, 2]


def a_straight_line(seconds, last):
    """Ten values from 0 to 90% of `last` or nearly so, a second for every hundred steps times `seconds`."""
    times = np.arange(1, 11)
    return a_run(100 * times, seconds * times, last * (times - 1) / 10, **{"return": last})


class TestRatios:
    """Of the medians of steps and of seconds until 95% of the way to the peers' return."""

    def test_are_of_medians(self):
        peers, ours = [a_straight_line(2, 100)] * 5, [a_straight_line(second, 120) for second in (1, 1, 1, 4, 9)]
        assert compare.target_of(peers) == 95
        never = [a_straight_line(1, 10)] * 5
        assert compare.ratios(peers, peers, peers, 100)[0][0] != 1  # inf / inf: 95 is more than the last value, 90
        peers = [a_straight_line(2, 100) for _ in range(5)]
        for run in peers:
            run.settings["return"] = 80.0  # so the target is 76: the ninth value of theirs, the eighth of ours
        (steps, *_), (seconds, low, high) = compare.ratios(ours, peers, peers, 100)
        assert steps == 8 / 9 and seconds == 8 / 18 and low == seconds and high in (32 / 18, 72 / 18)
        assert [x[0] for x in compare.ratios(never, peers, peers, 100)] == [math.inf, math.inf]
        assert compare.ratios(peers, peers, peers, 100) == [(1, 1, 1), (1, 1, 1)]

    def test_each_draw_has_its_own_return(self):
        """Two of five peers ended low: with them alone, it is sooner. With one return for all, no draw would differ."""
        peers, ours = [a_straight_line(1, 100) for _ in range(5)], [a_straight_line(1, 100) for _ in range(5)]
        for run, last in zip(peers, (20, 20, 80, 80, 80), strict=True):
            run.settings["return"] = float(last)
        others = [a_straight_line(1, 200) for _ in range(5)]
        assert compare.ratios(ours, others, peers, 100)[0][1] < compare.ratios(ours, others, peers, 100)[0][2]

    def test_draws_where_neither_was_there_say_nothing(self):
        """They are not left out: that would be an interval of those alone that say something."""
        ours, peers = ([a_straight_line(1, 100) for _ in range(5)] for _ in range(2))
        for run, last in zip(peers, (50, 50, 50, 50, 1000), strict=True):
            run.settings["return"] = float(last)
        assert compare.ratios(ours, peers, peers, 100) == [(1, 0, math.inf)] * 2  # a quarter of them has the last twice

    def test_it_is_that_of_the_seeds_that_were_drawn(self, monkeypatch):
        """Of the peers' themselves, where these are what is divided by."""
        (ours, peers), draws = ([a_straight_line(1, 100) for _ in range(5)] for _ in range(2)), []
        monkeypatch.setattr(compare, "smooth", lambda run, window: run)
        monkeypatch.setattr(compare, "target_of", lambda runs: draws.append([*map(id, runs)]) or 0.0)
        monkeypatch.setattr(compare, "reached", lambda run, target: draws[-1].append(id(run)) or (1.0, 1.0))
        compare.ratios(ours, peers, peers, 100, draws=20)
        assert all(draw[:5] == draw[10:] and not {*draw[5:10]} & {*draw[10:]} for draw in draws)
        assert len({tuple(draw) for draw in draws}) > 15

    def test_one_that_failed_was_never_there(self):
        peers = [a_straight_line(1, 100) for _ in range(5)]
        for run in peers:
            run.settings["return"] = 80.0
        (steps, _, high), _ = compare.ratios([*peers[:3], None, None], peers, peers, 100)
        assert steps == 1 and high == math.inf
        assert compare.ratios([*peers[:2], None, None, None], peers, peers, 100)[0][0] == math.inf
        broken = [*peers[:4], None]
        assert compare.ratios(peers, broken, broken, 100)[0][0] == 1  # nor does it set the return


@pytest.fixture
def rliable(monkeypatch):
    """Their estimates, as they are defined; intervals from the least to the greatest score."""

    def estimate(scores, function, reps):
        (scores,) = scores.values()
        parts = scores if isinstance(scores, tuple) else (scores,)
        return {"": function(*parts)}, {"": np.array([[parts[0].min()], [parts[0].max()]])}

    library = types.SimpleNamespace(get_interval_estimates=estimate)
    metrics = types.SimpleNamespace(
        aggregate_iqm=lambda scores: interquartile_mean(scores.ravel()),
        probability_of_improvement=lambda x, y: np.mean((x > y.T) + 0.5 * (x == y.T)),
    )
    monkeypatch.setitem(sys.modules, "rliable", types.SimpleNamespace(library=library, metrics=metrics))


@pytest.fixture
def said(rliable, monkeypatch, tmp_path, capsys):
    """A function: the words of a report on some runs, {row: {contender: returns at the end, None for one that failed}},
    its cells by what is in the first ones, and its figures. A run reaches its return evenly, in 20 steps of 100 steps
    and a second; those of Stable-Baselines3 take two."""

    ratios = compare.ratios

    def report(quiet=range(99), **rows):
        record = {}
        for row, contenders in rows.items():
            row = row.replace("_", "-")
            for contender, ends in contenders.items():
                command, seconds = compare.ROWS[row][contender], 2 if compare.PEER in contender else 1
                runs = record.setdefault(row, {}).setdefault(contender, {})
                for seed, end in enumerate(ends, 1):
                    found = {"command": command, "failed": "RuntimeError: no"}
                    if end is not None:
                        curve = [[100 * i, end * (i - 1) / 19, seconds * i] for i in range(1, 21)]
                        found = {"command": command, "return": end, "curve": curve, "steps": 2000, "cores": 1}
                        found |= {"seconds": 100, "cpu_seconds": 95 if seed in quiet else 85, "steady_sps": 1000 * seed}
                        found |= {"memory_mib": 300 + seed, "commit": "abc", "machine": "a chip"}
                    runs[str(seed)] = found
        monkeypatch.setattr(compare, "RESULTS", tmp_path / "compare.json")
        monkeypatch.setattr(compare, "ratios", functools.partial(ratios, draws=50))
        compare.RESULTS.write_text(compare.json.dumps({"rows": record}))
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
        compare.report()
        text = capsys.readouterr().out
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
        results = {tuple(cells[:2]): cells[2:] for cells in lines if len(cells) == 8}
        times = {(cells[0], cells[2]): [cells[1], *cells[3:]] for cells in lines if len(cells) == 10}
        return text, results, times, figures

    return report


class TestReport:
    SAME = "same settings"

    def test_returns(self, said):
        """Interquartile means; who failed is counted; what has fewer than five seeds has no interval and no odds."""
        peers, ours = [25.0] * 5, [-1000.0, 20.0, 30.0, 40.0, 5000.0, None]
        text, results, *_ = said(
            CartPole_v1={compare.PEER: peers, self.SAME: ours, "recipe": [40.0] * 4},
            Acrobot_v1={compare.PEER: peers, self.SAME: [30.0] * 5, "recipe": [None]},
            MountainCar_v0={"recipe": [1.0] * 5},
        )
        assert results["CartPole-v1", self.SAME] == [
            *("5, 1 failed", "30.0", "-1,000.0 to 5,000.0", "0.60 (-1000.00 to 5000.00)"),
            *("3,000 (1,000 to 5,000)", "303"),
        ]
        assert results["CartPole-v1", "recipe"] == ["4", "40.0", "", "", "2,500 (1,000 to 4,000)", "302"]
        assert results["CartPole-v1", compare.PEER][:4] == ["5", "25.0", "25.0 to 25.0", ""]
        assert results["Acrobot-v1", self.SAME][3] == "1.00 (30.00 to 30.00)"
        assert results["Acrobot-v1", "recipe"] == ["0, 1 failed", *[""] * 5]
        assert results["MountainCar-v0", "recipe"][:4] == ["5", "1.0", "1.0 to 1.0", ""]  # beside nobody
        assert f"{self.SAME}, mean over 2 tasks: " in text and "\n0.80 (" in text
        assert "recipe, mean" not in text
        commands = compare.ROWS["CartPole-v1"][self.SAME], compare.ROWS["Acrobot-v1"]["recipe"]
        assert [line for line in text.splitlines() if line.startswith("Failed")] == [
            f"Failed: {command}: RuntimeError: no" for command in commands
        ]

    def test_odds_without_what_makes_the_difference(self, said):
        """Where values are clipped on one row, and on another they were not, the mean is told with either."""
        clipped = {compare.PEER: [1.0] * 5, self.SAME: [2.0] * 5}
        tied = {compare.BESIDE[compare.UNCLIPPED]: [3.0] * 5, compare.UNCLIPPED: [3.0] * 5}
        text, *_ = said(CartPole_v1=clipped | tied, Acrobot_v1=clipped)
        with_both = text.split(f"{self.SAME}, mean over 2 tasks: ")[1].split(f"{self.SAME}, {compare.UNCLIPPED} ")
        assert [part.split("\n")[1].split(" ")[0] for part in with_both] == ["1.00", "0.75"]

    def test_no_odds_where_runs_stop_at_a_return(self, said):
        """But where and when each of them ended."""
        pong = {compare.PEER: [1.0] * 5, self.SAME: [*[2.0] * 5, None]}
        text, results, *_ = said(Pong=pong, Ant_v5={"recipe": [2.0]})
        assert results["Pong", self.SAME][:4] == ["5, 1 failed", "2.0", "2.0 to 2.0", ""]
        ends = [line for line in text.splitlines() if line.endswith("| 2,000 | 100 |")]
        sides = ((compare.PEER, "1.0"), (self.SAME, "2.0"))
        assert ends == [f"| Pong | {side} | {seed} | {x} | 2,000 | 100 |" for side, x in sides for seed in range(1, 6)]

    def test_times(self, said):
        """Until 95% of the way of the peers; one that failed was never there; shared cores are told."""
        ours, twice, unclipped = [200.0] * 4 + [50.0, None], [200.0] * 5, compare.UNCLIPPED
        contenders = {compare.PEER: [100.0] * 5, self.SAME: ours, compare.BESIDE[unclipped]: twice, unclipped: twice}
        text, _, times, _ = said(CartPole_v1=contenders | {"recipe": twice[:4]})
        assert times["CartPole-v1", compare.PEER] == ["95.0", "5 of 5", "2,000", "", "40", "", "", ""]
        target, reached, steps, of_steps, seconds, of_seconds, *of_same = times["CartPole-v1", self.SAME]
        assert (target, reached, steps, seconds, of_same) == ("95.0", "4 of 6", "1,100", "11", ["", ""])
        assert of_steps.startswith("0.55 (0.55 to ") and of_seconds.startswith("0.28 (0.28 to ")
        beside = ["0.55 (0.55 to 0.55)", "11", "0.28 (0.28 to 0.28)", "1.00 (1.00 to 1.00)", "0.50 (0.50 to 0.50)"]
        assert times["CartPole-v1", unclipped] == ["95.0", "5 of 5", "1,100", *beside]
        assert times["CartPole-v1", "recipe"] == ["95.0", "4 of 4", "1,100", "", "11", "", "", ""]
        assert "CartPole-v1: 24 runs, abc on a chip; 0 had less than nine tenths" in text
        *_, times, _ = said(CartPole_v1={compare.PEER: [100.0] * 4, self.SAME: [100.0] * 5})
        assert "CartPole-v1" not in {row for row, _ in times}  # of too few

    def test_seconds_of_shared_cores_are_left_out(self, said):
        """But not the returns."""
        rows = {"CartPole_v1": {compare.PEER: [100.0] * 6, self.SAME: [500.0] * 2 + [50.0] * 4, "recipe": [1.0]}}
        text, results, times, figures = said(quiet=range(2, 99), **rows)
        assert results["CartPole-v1", self.SAME] == [
            *("6", "162.5", "50.0 to 500.0", "0.33 (50.00 to 500.00)", "4,000 (2,000 to 6,000)", "304")
        ]
        assert results["CartPole-v1", "recipe"][4:] == ["", "301"]
        assert "CartPole-v1: 13 runs, abc on a chip; 3 had less than nine tenths" in text
        assert times["CartPole-v1", compare.PEER][1] == "5 of 5" and times["CartPole-v1", self.SAME][1] == "1 of 5"
        labels = [[line.get_label() for line in figure.axes[0].lines] for figure in figures]
        assert labels[0] == [f"{compare.PEER} (5)", f"ours, {self.SAME} (5)"]
        assert labels[1] == [f"{compare.PEER} (6)", f"ours, {self.SAME} (6)", "ours, recipe (1)"]
        *_, times, _ = said(quiet=range(3, 99), **rows)
        assert "CartPole-v1" not in {row for row, _ in times}

    def test_nothing_but_failures(self, said):
        _, results, _, figures = said(Ant_v5={"recipe": [None]})
        assert results["Ant-v5", "recipe"][0] == "0, 1 failed" and not any(a.lines for x in figures for a in x.axes)

    def test_figure(self, said):
        """Interquartile means over seconds, with bands where five seeds or more are there; each with their number."""
        row, hidden, returns = "CartPoleHidden-v0", "CartPoleHidden_v0", [10.0, 100.0, 100.0, 130.0, 900.0]
        rows = {"CartPole_v1": {self.SAME: returns, "recipe": returns[:4]}, hidden: {compare.PEER: returns}}
        *_, (figure, over_steps) = said(**rows, Swimmer_v5={"defaults": [*returns, None]}, Ant_v5={"recipe": [None]})
        first, second, third = figure.axes
        assert [axes.get_title() for axes in figure.axes] == [*compare.FIGURE]
        assert [line.get_label() for line in first.lines] == ["ours, same settings (5)", "ours, recipe (4)"]
        assert len(first.collections) == 1 and not second.lines
        assert [line.get_label() for line in third.lines] == ["RecurrentPPO (5)"]
        x, y = first.lines[0].get_data()
        assert x[-1] == pytest.approx(20, rel=0.1) and y[-1] == pytest.approx(110, rel=0.1)
        assert third.lines[0].get_data()[0][-1] == pytest.approx(40, rel=0.1)
        assert [axes.get_title() for axes in over_steps.axes if axes.lines] == ["CartPole-v1", row, "Swimmer-v5"]
        (line,) = over_steps.axes[2].lines
        assert line.get_label() == "ours, defaults (5)" and line.get_data()[0][-1] == pytest.approx(0.002)
        assert line.get_data()[1][-1] == pytest.approx(110, rel=0.1) and len(over_steps.axes[2].collections) == 1


def test_two_processes_add_to_the_results(tmp_path, monkeypatch):
    """What another has added since the beginning stays."""

    def measure(folder, command, seed, cores):
        compare.add("Acrobot-v1", "recipe", seed, {"of": "another"})
        return {"command": command, "return": 1.0, "seconds": 1.0}

    monkeypatch.setattr(compare, "RESULTS", tmp_path / "compare.json")
    monkeypatch.setattr(compare, "interpreter", lambda folder, side: sys.executable)
    monkeypatch.setattr(compare, "measure", measure)
    compare.run_all(tmp_path, ["MountainCar-v0"], [3])
    rows = compare.json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert rows["Acrobot-v1"] == {"recipe": {"3": {"of": "another"}}}
    assert rows["MountainCar-v0"]["recipe"]["3"]["return"] == 1.0
    compare.run_all(tmp_path, ["MountainCar-v0"], [3])  # is there, and not run again
    assert compare.json.loads((tmp_path / "compare.json").read_text())["rows"] == rows


@pytest.mark.skipif(sys.platform != "linux", reason="bound to a core, and measured, as Linux does it")
def test_a_command_is_measured(tmp_path, monkeypatch):
    """A whole command in a folder of its own: its curve is what the script logged, by the clock of the command."""
    monkeypatch.setattr(compare, "interpreter", lambda folder, side: sys.executable)
    command = "ppo.py --total-timesteps 4096"
    found = compare.measure(tmp_path, command, 3, {*list(compare.os.sched_getaffinity(0))[:1]})
    assert found["steps"] == 4096 and found["command"] == command and found["cores"] == 1
    steps, returns, seconds = np.array(found["curve"]).T
    assert steps.tolist() == [512, 1024, 1536, 2048, 2560, 3072, 3584, 4096] and (returns > 9).all()
    assert (np.diff(seconds) > 0).all() and seconds[-1] < found["seconds"]
    assert seconds[0] > seconds[-1] - seconds[0]  # the start counts, and takes longer than seven iterations
    assert found["steady_sps"] == pytest.approx((steps[-1] - steps[2]) / (seconds[-1] - seconds[2]), rel=0.2)
    assert found["return"] == pytest.approx(returns[-1]) and 100 < found["memory_mib"] < 2000
    monkeypatch.setattr(compare, "interpreter", lambda folder, side: "/bin/false")
    with pytest.raises(RuntimeError, match="--gamma 2 failed"):
        compare.measure(tmp_path, "ppo.py --gamma 2", 3, {*list(compare.os.sched_getaffinity(0))[:1]})


def measured(folder, command, seed, cores):
    return {"command": command, "return": 1.0, "seconds": 1.0}


class TestRunAll:
    """One run of `run_all`, of a recipe that has no peer, with `measure` as given."""

    def run(self, folder, monkeypatch, measure, commits=("abc",) * 99, rows=("MountainCar-v0",)):
        folder.mkdir(exist_ok=True)
        speed = types.SimpleNamespace(code=iter(commits).__next__, machine=lambda: {"cpu": "of tests"})
        monkeypatch.setitem(sys.modules, "speed", speed)
        monkeypatch.setattr(compare, "RESULTS", folder / "compare.json")
        monkeypatch.setattr(compare, "interpreter", lambda folder, side: sys.executable)
        monkeypatch.setattr(compare, "measure", measure)
        monkeypatch.setattr(compare.signal, "signal", lambda *_: None)
        with suppress(SystemExit):
            compare.run_all(folder, [*rows], [3])
        return compare.json.loads((folder / "compare.json").read_text())["rows"]["MountainCar-v0"]["recipe"]["3"]

    def test_of_which_commit(self, tmp_path, monkeypatch):
        """Of that at its start, and whether the scripts were changed until its end."""
        found = self.run(tmp_path / "1", monkeypatch, measured)
        assert (found["commit"], found["machine"]) == ("abc", "of tests")
        assert self.run(tmp_path / "2", monkeypatch, measured, ["abc", "def"])["commit"] == "abc, changed"

    def test_one_that_failed_is_noted_and_tried_again(self, tmp_path, monkeypatch):
        def fails(folder, command, seed, cores):
            raise RuntimeError("no room")

        assert self.run(tmp_path, monkeypatch, fails)["failed"] == "RuntimeError: no room"
        assert self.run(tmp_path, monkeypatch, measured)["return"] == 1

    def test_another_command_is_run_anew(self, tmp_path, monkeypatch):
        first = self.run(tmp_path, monkeypatch, measured)
        again = lambda *job: measured(*job) | {"return": 2.0}  # noqa: E731
        assert self.run(tmp_path, monkeypatch, again) == first
        monkeypatch.setitem(compare.ROWS["MountainCar-v0"], "recipe", "ppo.py --env-id MountainCar-v0")
        assert self.run(tmp_path, monkeypatch, again)["return"] == 2

    @pytest.mark.parametrize("is_there", [True, False])
    def test_bfloat16_is_what_it_says(self, is_there, tmp_path, monkeypatch, capsys):
        """Where a processor has none, the script would take float32."""
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_there)
        both = compare.ONE_CORE, compare.CENTRED
        for contender in both:
            monkeypatch.setitem(compare.ROWS["MountainCar-v0"], contender, "ppo_atari.py")
        self.run(tmp_path, monkeypatch, measured)
        rows = compare.json.loads((tmp_path / "compare.json").read_text())["rows"]["MountainCar-v0"]
        said = capsys.readouterr().out
        assert [contender in rows for contender in both] == [is_there] * 2
        assert [f"{contender}, seed 3: not run" in said for contender in both] == [not is_there] * 2

    def test_how_many_cores(self, tmp_path, monkeypatch):
        """One for each run; all for Pong, but where one is said."""
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        monkeypatch.setattr(compare.os, "sched_getaffinity", lambda _: {0, 1, 2})
        recipe, pixels = compare.ROWS["MountainCar-v0"]["recipe"], {compare.PEER: "sb3.py", compare.ONE_CORE: "ppo.py"}
        pixels[compare.CENTRED] = "ppo.py"
        games = {"Pong": pixels, "Breakout": {"defaults": "ppo.py"}}
        monkeypatch.setattr(compare, "ROWS", {"MountainCar-v0": {"recipe": recipe}} | games)
        found = lambda *job: measured(*job) | {"return": len(job[3])}  # noqa: E731
        assert self.run(tmp_path, monkeypatch, found, rows=compare.ROWS)["return"] == 1
        rows = compare.json.loads((tmp_path / "compare.json").read_text())["rows"]
        cores = {name: runs["3"]["return"] for name, runs in (rows["Pong"] | rows["Breakout"]).items()}
        assert cores == {compare.PEER: 3, compare.ONE_CORE: 1, compare.CENTRED: 3, "defaults": 1}

    def test_what_another_process_has_done(self, tmp_path, monkeypatch):
        """Between the beginning and the turn of a run, it is not run again."""
        done = iter([False, True])
        monkeypatch.setattr(compare, "is_done", lambda *job: next(done))
        compare_file = tmp_path / "compare.json"
        compare_file.write_text('{"rows": {"MountainCar-v0": {"recipe": {"3": "of another"}}}}')
        assert self.run(tmp_path, monkeypatch, None) == "of another"


@pytest.mark.skipif(sys.platform != "linux", reason="bound to a core, as Linux does it")
def test_ctrl_c_takes_the_runs_along(tmp_path):
    """None goes on, and none is noted as failed."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import compare
from pathlib import Path
compare.RESULTS = Path("compare.json")
compare.interpreter = lambda folder, side: sys.executable
compare.run_all(Path.cwd(), ["MountainCar-v0"], [1])"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    while not list(tmp_path.glob("runs/*/runs/*/args.json")):
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    for _ in range(100):  # a killed process is still there for a moment
        places = []
        for path in Path("/proc").glob("[0-9]*/cwd"):
            with suppress(OSError):  # of another user, or gone
                places.append(os.readlink(path))
        left = [place for place in places if place.startswith(str(tmp_path / "runs"))]
        if not left:
            break
        time.sleep(0.1)
    assert not left
    assert not (tmp_path / "compare.json").exists()
