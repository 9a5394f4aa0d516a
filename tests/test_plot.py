"""examples/plot.py reads curves as they were logged, groups them, and its numbers are those worked out by hand."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

import examples.plot as plot
from conftest import ROOT
from ppo import Args, train


def log(folder, points, began, settings=None, tag=plot.RETURN):
    """An event file that begins at a time; points are step, seconds after it, value, and perhaps a tag of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: began)
        writer = EventFileWriter(str(folder))
    for step, seconds, value, *own in points:
        summary = Summary(value=[Summary.Value(tag=[*own, tag][0], simple_value=value)])
        writer.add_event(Event(wall_time=began + seconds, step=step, summary=summary))
    writer.close()
    if settings is not None:
        (folder / "args.json").write_text(json.dumps(settings))
    return folder


def make_run(returns, env_id="A-v0", steps=None, seconds=None, **settings):
    steps = np.arange(1.0, len(returns) + 1) if steps is None else np.array(steps, float)
    return plot.Run(env_id, 1, settings, steps, steps if seconds is None else seconds, np.array(returns, float))


class TestReadRun:
    def test_plain(self, tmp_path):
        run = plot.read_run(log(tmp_path / "A-v0__mine__1__5", [(10, 2, 3.0), (20, 4, 5.0)], 1000))
        assert (run.env_id, run.seed, run.settings) == ("A-v0", "1", {"exp_name": "mine"})
        assert (run.steps.tolist(), run.seconds.tolist(), run.returns.tolist()) == ([10, 20], [2, 4], [3, 5])

    def test_resumed(self, tmp_path):
        """What came after the checkpoint is replaced, and the night between does not count."""
        folder = log(tmp_path / "run", [(10, 2, 1.0), (20, 4, 2.0), (30, 6, 3.0)], 1000)
        log(folder, [(30, 5, 4.0), (40, 7, 5.0)], 90_000)
        run = plot.read_run(folder)
        assert run.steps.tolist() == [10, 20, 30, 40]
        assert run.seconds.tolist() == [2, 4, 4 + 5, 4 + 7] and run.returns.tolist() == [1, 2, 4, 5]

    def test_resumed_within_a_second(self, tmp_path):
        """Files are in the order of their beginnings, whatever their names."""
        folder = log(tmp_path / "run", [(10, 0.1, 1.0), (20, 0.2, 2.0)], 1000.1)
        (old,) = folder.iterdir()
        log(folder, [(20, 0.1, 3.0)], 1000.5)
        old.rename(folder / "events.out.tfevents.9999.z")
        assert plot.read_run(folder).returns.tolist() == [1, 3]

    def test_resumed_without_an_episode(self, tmp_path):
        """The second part has other curves alone, which replace and count as well."""
        folder = log(tmp_path / "run", [(10, 2, 1.0), (20, 4, 2.0)], 1000)
        log(folder, [(20, 5, 4.0)], 90_000, tag="charts/SPS")
        assert plot.read_run(folder).steps.tolist() == [10]

    def test_resumed_after_an_episode(self, tmp_path):
        """Where the last one ended early, the seconds until the checkpoint count too, and the whole run's."""
        for start, began in (0, 1000), (1000, 90_000):
            points = [(start + 10 * i, i, 0.0, *["charts/SPS"] * (i != 10)) for i in range(1, 101)]
            log(tmp_path / "run", points, began)
        run = plot.read_run(tmp_path / "run")
        assert run.steps.tolist() == [100, 1100] and run.seconds.tolist() == pytest.approx([10, 110], abs=0.1)
        assert run.end == pytest.approx((2000, 200), abs=0.1)

    def test_broken_returns(self, tmp_path, capsys):
        points = [(step, step, np.nan if step in (20, 30) else step) for step in (10, 20, 30, 40)]
        assert plot.read_run(log(tmp_path / "run", points, 0)).returns.tolist() == [10, 40]
        assert capsys.readouterr().err.endswith("run: 2 returns are no numbers, the first at step 20\n")

    def test_a_run_that_was_made_longer(self, tmp_path, capsys):
        """Its learning rate fell to 0 on the way, and rose: other seeds that ran as long are not like it."""
        for rates in [(10, 0, 1.0), (20, 1, 0.5)], [(30, 0, 0.4), (40, 1, 0.3)], [(50, 0, 0.6)]:
            assert capsys.readouterr().err == ""
            points = [(*rate, "charts/learning_rate") for rate in rates] + [(rates[-1][0], 1, 1.0)]
            assert plot.read_run(log(tmp_path / "run", points, 100.0 * rates[0][0])).steps[-1] == rates[-1][0]
        assert "resumed with a higher learning rate" in capsys.readouterr().err

    def test_killed_between_checkpoints(self, tmp_path, capsys):
        """What came after the checkpoint, with lower learning rates, was done again: it is a run like others."""
        points = [(10 * i, i, 1 - i / 10, "charts/learning_rate") for i in range(1, 9)] + [(80, 8, 5.0)]
        log(tmp_path / "run", points, 1000)
        log(tmp_path / "run", [(30, 1, 0.7, "charts/learning_rate"), (40, 2, 0.6, "charts/learning_rate")], 2000)
        log(tmp_path / "run", [(50, 1, 0.5, "charts/learning_rate"), (60, 2, 6.0)], 3000)
        run = plot.read_run(tmp_path / "run")
        assert run.steps.tolist() == [60] and capsys.readouterr().err == ""

    def test_a_clock_that_was_set_back(self, tmp_path, capsys):
        """Which of two parts came first can't be known: that is said."""
        log(log(tmp_path / "run", [(10, 1, 1.0), (20, 2, 2.0)], 5000), [(30, 1, 3.0)], 1000)
        plot.read_run(tmp_path / "run")
        assert "what begins at step 10 came after what begins at 30" in capsys.readouterr().err

    def test_an_evaluation_with_steps_of_its_own(self, tmp_path, capsys):
        log(log(tmp_path / "run", [(10, 1, 1.0), (20, 2, 2.0)], 1000), [(0, 1, 3.0)], 5000, tag="eval/episodic_return")
        assert plot.read_run(tmp_path / "run").steps.tolist() == [10, 20] and capsys.readouterr().err == ""

    def test_names_of_folders(self, tmp_path):
        """The last two parts are seed and time, as in other scripts; a name may have underscores of its own."""
        for folder, name, seed in (("A-v0__my__lr1__3__5", "my__lr1", "3"), ("A-v0__x", "x", ""), ("A-v0", "", "")):
            run = plot.read_run(log(tmp_path / folder, [(10, 1, 1.0)], 1000))
            assert (run.env_id, run.settings["exp_name"], run.seed) == ("A-v0", name, seed)

    def test_strange_settings(self, tmp_path):
        """Of other scripts: what has no place here is text, or that of the folder."""
        run = plot.read_run(log(tmp_path / "A-v0__x__1__5", [(1, 0, 0.0)], 0, {"exp_name": None, "seed": [1, 2]}))
        assert run.env_id == "A-v0" and plot.table(plot.group_runs([run, run])).count("| A-v0 | None | 2 |") == 1

    def test_settings(self, tmp_path):
        settings = {"env_id": "B-v1", "seed": 3, "resume": None, "gamma": 0.9, "track": True, "exp_name": "x"}
        run = plot.read_run(log(tmp_path / "run", [(1, 0, 0.0)], 0, settings))
        assert (run.env_id, run.seed, run.settings) == ("B-v1", 3, {"gamma": 0.9, "exp_name": "x"})

    def test_what_a_script_writes(self):
        result = train(Args(total_timesteps=4096))
        run = plot.read_run(result["run_dir"])
        assert run.env_id == "CartPole-v1" and run.steps[-1] == result["global_step"] == 4096
        assert (np.diff(run.seconds) > 0).all() and run.seconds[0] > 0 and run.returns[0] < 100


class TestGroups:
    def test_by_settings(self):
        """Seeds are one group; what differs is in the name, and only that, for each environment."""
        runs = [make_run([1], gamma=gamma, exp_name="x", clip=0.2) for gamma in (0.9, 0.99, 0.9)]
        runs += [make_run([1], env_id="B-v0", exp_name="x", gamma=0.5, clip=0.3)]
        groups = plot.group_runs(runs)
        assert {key: len(value) for key, value in groups.items()} == {
            ("A-v0", "x gamma=0.9"): 2,
            ("A-v0", "x gamma=0.99"): 1,
            ("B-v0", "x"): 1,
        }

    def test_a_setting_that_some_lack(self):
        """Of another version, another script, or one that left no args.json: they are apart, and names stay short."""
        runs = [make_run([1], exp_name="x", old=1, new=0), make_run([1], exp_name="x", old=1)]
        runs += [make_run([1], exp_name="y", rnn="lstm"), make_run([1], exp_name="y"), make_run([1], exp_name="z")]
        names = ["x new=0", "x", "y", "y without args.json", "z"]
        assert [*plot.group_runs(runs)] == [("A-v0", name) for name in names]

    def test_whole_numbers(self):
        """A notebook's 475 is the 475.0 of a command line."""
        runs = [make_run([1], exp_name="x", stop=x) for x in (475, 475.0, None)]
        assert len(plot.group_runs(runs[:2])) == 1
        assert [*plot.group_runs(runs)] == [("A-v0", "x stop=475"), ("A-v0", "x stop=None")]


class TestStatistics:
    def test_result(self):
        """The mean of the last twentieth of the steps."""
        assert make_run(range(1, 101)).result == pytest.approx(np.mean([96, 97, 98, 99, 100]))
        assert make_run([5.0]).result == 5

    def test_interquartile_mean(self):
        """A quarter at each end is left out: the best and the worst seed change nothing."""
        assert plot.interquartile_mean(np.array([-1000.0, 1, 3, 1000])) == 2
        assert plot.interquartile_mean(np.arange(10.0) ** 2) == np.mean([4, 9, 16, 25, 36, 49])

    def test_interval(self):
        """Nine of ten bootstrapped means of normal seeds lie where theory says; each row has its own."""
        values = np.random.default_rng(0).normal(size=(2, 400)) * [[1], [10]]
        low, high = plot.interval(values)
        width = (high - low) / (2 * 1.96 * np.array([1, 10]) * 1.09 / 20)  # IQM: 1.09 times the error of the mean
        assert width == pytest.approx([1, 1], rel=0.08)  # 90% would be 0.86, 98% 1.19
        assert ((low < plot.interquartile_mean(values)) & (plot.interquartile_mean(values) < high)).all()
        again = plot.interval(values)
        assert (again[0] == low).all() and (again[1] == high).all()

    def test_one_seed_has_none(self):
        assert plot.interval(np.array([3.0])) == (3, 3)

    def test_improvement(self):
        assert plot.improvement(np.array([2.0, 3]), np.array([0.0, 1])) == 1
        assert plot.improvement(np.array([0.0, 1]), np.array([2.0, 3])) == 0
        assert plot.improvement(np.array([1.0, 2]), np.array([1.0, 0])) == (0.5 + 1 + 1 + 1) / 4

    def test_interval_of_improvement(self):
        """That of normal returns, half a deviation apart: the width of the U statistic's normal approximation."""
        rng = np.random.default_rng(1)
        ours, theirs = rng.normal(0.5, size=200), rng.normal(size=300)
        low, high = plot.interval(ours, theirs, of=plot.improvement)
        wins = (np.sign(ours[:, None] - theirs) + 1) / 2
        error = np.sqrt(wins.mean(1).var() / 200 + wins.mean(0).var() / 300)
        assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, rel=0.08)  # 90% would be 0.84, one side alone 0.7
        assert low < plot.improvement(ours, theirs) < high
        assert plot.interval(ours[:1], theirs, of=plot.improvement)[0] == wins[0].mean()  # one seed has none

    def test_curves(self):
        """A hundred points up to where the shortest run ends, each the mean over the twentieth before it."""
        runs = [make_run(range(1, 401)), make_run(range(1001, 1201))]
        x, returns = plot.curves(runs, "steps")
        assert x.tolist() == np.arange(2, 201, 2).tolist() and returns.shape == (100, 2)
        assert returns[-1, 0] == np.mean(range(191, 201)) and returns[49, 1] == np.mean(range(1091, 1101))

    def test_curves_with_gaps(self):
        """Where no episode ended, the last value holds; before the first, there is none."""
        x, returns = plot.curves([make_run([7, 9], steps=[50, 100])], "steps")
        assert np.isnan(returns[x < 50]).all() and (returns[(x >= 50) & (x < 100)] == 7).all() and returns[-1] == 9

    def test_curves_over_seconds(self):
        run = make_run([1, 2, 3], steps=[10, 20, 30], seconds=np.array([1.0, 60.0, 100.0]))
        x, returns = plot.curves([run], "seconds")
        assert x[-1] == 100 and returns[[30, 70, -1], 0].tolist() == [1, 2, 3]


def test_any_name_can_be_drawn(tmp_path):
    """Long ones, and those that matplotlib would read as formulas."""
    runs = [make_run([1, 2], exp_name=name) for name in ("a$b_{$", " ".join(["word"] * 40))]
    plot.draw(plot.group_runs(runs), tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 0


def test_a_sweep_can_be_drawn(tmp_path, recwarn):
    """Where names take more room than curves."""
    runs = [make_run([1, 2], exp_name=" ".join([f"setting{i}=0.0001"] * 4)) for i in range(24)]
    plot.draw(plot.group_runs(runs), tmp_path / "drawn.png")
    assert not [x for x in recwarn if "layout" in str(x.message)]


def program(*args):
    command = [sys.executable, ROOT / "examples" / "plot.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


class TestProgram:
    def test_table_and_figure(self, tmp_path):
        for seed, gamma in itertools.product((1, 2, 3, 4, 5), (0.9, 0.99)):
            points = [(10 * i, i, 100 * gamma + (seed if i > 95 else 0)) for i in range(1, 101)]
            settings = {"env_id": "A-v0", "seed": seed, "gamma": gamma, "exp_name": "x"}
            log(tmp_path / f"A-v0__x__{seed}__{gamma}", points, 5000, settings)
        result = program(*sorted(tmp_path.iterdir()), *tmp_path.iterdir(), "--out", "drawn.png")
        assert (result.returncode, result.stderr) == (0, "")
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines()[2:4]]
        assert [row[:5] + row[6:] for row in rows] == [
            ["A-v0", "x gamma=0.9", "5", "1,000", "93", "100", "10", ""],
            ["A-v0", "x gamma=0.99", "5", "1,000", "102", "100", "10", "1.00 (1.00 to 1.00)"],
        ]
        low, high = map(float, rows[0][5].split(" to "))
        assert 91 <= low < 93 < high <= 95
        assert Path("drawn.png").read_bytes().startswith(b"\x89PNG") and "drawn.png" in result.stdout

    def test_notes(self, tmp_path):
        """What is unfinished, be it most of them, or there twice, is said; what can't be read is left out."""
        for name, steps, seed in (("a", 100, 1), ("b", 50, 2), ("c", 50, 2)):
            points = [(step, step, 1.0) for step in range(10, steps + 1, 10)]
            log(tmp_path / name, points, 0, {"env_id": "A-v0", "seed": seed, "exp_name": "x"})
        for name in ("begun", "damaged"):
            log(tmp_path / name, [(1, 0, 0.0)] if name == "damaged" else [], 0)
        (tmp_path / "damaged" / "args.json").write_text("{")
        result = program(*sorted(tmp_path.iterdir()))
        assert result.returncode == 0 and "| x | 3 | 50 |" in result.stdout
        left_out, damaged, unfinished, twice, few = result.stderr.splitlines()
        assert left_out.startswith(f"left out: {tmp_path / 'begun'}: it has no curve named charts/episodic_return")
        assert damaged.startswith(f"left out: {tmp_path / 'damaged'}: ")
        assert "seed 2 has 50 steps only (unfinished?): curves end there" in unfinished
        assert "the same seed" in twice and "fewer than five seeds" in few

    def test_a_curve_that_is_not_there(self, tmp_path):
        """One seed compiled for so long that another was over when its first episode ended."""
        for seed, start in ((1, 0), (2, 60)):
            points = [(step, start + step / 10, 1.0) for step in range(10, 101, 10)]
            log(tmp_path / str(seed), points, 0, {"env_id": "A-v0", "seed": seed, "exp_name": "x"})
        result = program(*sorted(tmp_path.iterdir()))
        assert result.returncode == 0 and "| x | 2 | 100 |" in result.stdout
        assert result.stderr.splitlines() == [
            "note: A-v0 x: fewer than five seeds: the interval is too narrow",
            "note: A-v0 x: no curve over seconds: a run ended before another's first return",
        ]

    @pytest.mark.parametrize("kind", ["absent", "other curves", "ending", "no ending"])
    def test_mistakes(self, kind, tmp_path):
        folder = tmp_path / "run"
        if kind != "absent":
            log(folder, [(1, 0, 0.0), (2, 1, 0.0)], 0, tag="loss" if kind == "other curves" else plot.RETURN)
        result = program(
            folder, *(["--out", "curves" + (".nothing" if kind == "ending" else "")] if "ending" in kind else [])
        )
        lines = result.stderr.splitlines()
        assert result.returncode == 2 and "Traceback" not in result.stderr
        if kind == "no ending":
            assert lines[-1].endswith("error: --out curves: its ending must be a format, as .png")
        elif kind == "ending":
            assert len(lines) == 1 and lines[0].startswith("error: --out curves.nothing: ")
        else:
            assert len(lines) == 2 and lines[1] == "error: there is no run to draw" and result.stdout == ""
