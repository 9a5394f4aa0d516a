"""benchmarks/compare.py: what it would run, and what it makes of runs."""

import importlib.util
import math
import shlex
import sys

import numpy as np
import pytest
import tyro

import ppo
import ppo_atari
import ppo_continuous
import ppo_lstm
from conftest import ROOT
from examples.plot import Run

spec = importlib.util.spec_from_file_location("compare", ROOT / "benchmarks" / "compare.py")
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)
SCRIPTS = {f"{script.__name__}.py": script for script in (ppo, ppo_atari, ppo_continuous, ppo_lstm)}
COMMANDS = [(row, name, command) for row, names in compare.ROWS.items() for name, command in names.items()]


@pytest.mark.parametrize(("row", "contender", "command"), [x for x in COMMANDS if compare.PEER not in x[1]])
def test_each_command_is_one_of_its_script(row, contender, command):
    script, *arguments = shlex.split(command)
    args = tyro.cli(SCRIPTS[script].Args, args=arguments)
    SCRIPTS[script].check_args(args)
    assert row.split("-")[0] in args.env_id and args.seed == 1  # which `measure` gives


@pytest.mark.parametrize("row", [row for row, names in compare.ROWS.items() if compare.PEER in names])
def test_contenders_differ_in_what_is_theirs_alone(row):
    """Settings of both sides are the same words, but for what sb3.py needs to be the script that ours is."""
    shared = {"Hopper-v5": compare.DEFAULTS, "HalfCheetah-v5": compare.DEFAULTS}.get(row, "")
    ours = {"--compile", "--no-bf16", *shared.split()}
    theirs = {"--atari", "--lstm", "--norm-obs", "--norm-reward", *shared.split()}
    theirs |= {"--num-envs", "16", "--learning-rate", "2.5e-3"} if row == "CartPoleHidden-v0" else set()
    for own, peer in compare.BESIDE.items():
        if peer in compare.ROWS[row]:
            _, *a = shlex.split(compare.ROWS[row][own])
            _, *b = shlex.split(compare.ROWS[row][peer])
            recipe = {"--vectorization", "envpool", "--update-epochs", "10", "--ent-coef", "0"} if shared else set()
            assert {*a} ^ {*b} <= ours | theirs | recipe


def a_run(steps, seconds, returns, **settings):
    return Run("task", 1, settings, np.array(steps), np.array(seconds, float), np.array(returns, float))


def test_seconds_to_a_return():
    """When the mean over the window first reached it: not at a single peak, not before there is a whole window."""
    run = a_run([100, 200, 300, 400, 500], [1, 2, 3, 5, 8], [9, 0, 4, 6, 8])
    assert compare.seconds_to(run, 5, 200) == 5  # (4 + 6) / 2
    assert compare.seconds_to(run, 5, 100) == 1  # the first alone
    assert compare.seconds_to(run, 5.1, 200) == 8
    assert compare.seconds_to(run, 7.5, 200) == math.inf


def test_which_runs_count():
    """Those of the present command that did not fail, in the order of their seeds."""
    row, (contender, command) = "CartPole-v1", next(iter(compare.ROWS["CartPole-v1"].items()))
    good = {"command": command, "curve": [[100, 5.0, 1.0], [200, 6.0, 2.0]]}
    old, failed = good | {"command": f"{command} --gamma 0.9"}, {"command": command, "failed": "RuntimeError"}
    runs = {"10": good | {"number": 10}, "2": good | {"number": 2}, "3": old, "4": failed}
    found = compare.runs_of({"rows": {row: {contender: runs}}}, row)
    assert [run.settings["number"] for run in found[contender]] == [2, 10] and [*found] == [contender]
    assert found[contender][0].steps.tolist() == [100, 200] and found[contender][0].seconds.tolist() == [1, 2]


def test_a_command_is_measured(tmp_path, monkeypatch):
    """A whole command in a folder of its own: its curve is what the script logged, by the clock of the command."""
    monkeypatch.setattr(compare, "interpreter", lambda folder, side: sys.executable)
    command = "ppo.py --total-timesteps 4096"
    found = compare.measure(tmp_path, command, 3, {*list(compare.os.sched_getaffinity(0))[:1]})
    assert found["steps"] == 4096 and found["command"] == command and found["cores"] == 1
    steps, returns, seconds = np.array(found["curve"]).T
    assert steps.tolist() == [512, 1024, 1536, 2048, 2560, 3072, 3584, 4096] and (returns > 9).all()
    assert 0 < seconds[0] < seconds[-1] < found["seconds"] and (np.diff(seconds) > 0).all()
    assert found["return"] == pytest.approx(returns[-1]) and 100 < found["memory_mib"] < 2000
    with pytest.raises(RuntimeError, match="--gamma 2 failed"):
        compare.measure(tmp_path, "ppo.py --gamma 2", 3, {*list(compare.os.sched_getaffinity(0))[:1]})
