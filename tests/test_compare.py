"""benchmarks/compare.py: what it would run, and what it makes of runs."""

import importlib.util
import math
import shlex
import sys
import types

import numpy as np
import pytest
import tyro

import ppo
import ppo_atari
import ppo_continuous
import ppo_lstm
from conftest import ROOT
from examples.plot import Run


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
    SCRIPTS[script].check_args(args)
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
    assert compare.reached(run, 5, 200) == (400, 5)  # (4 + 6) / 2
    assert compare.reached(run, 5, 100) == (100, 1)  # the first alone
    assert compare.reached(run, 5.1, 200) == (500, 8)
    assert compare.reached(run, 7.5, 200) == (math.inf, math.inf)


def test_which_runs_count():
    """Those of the present command that did not fail, in the order of their seeds."""
    row, (contender, command) = "CartPole-v1", next(iter(compare.ROWS["CartPole-v1"].items()))
    good = {"command": command, "curve": [[100, 5.0, 1.0], [200, 6.0, 2.0]]}
    old, failed = good | {"command": f"{command} --gamma 0.9"}, {"command": command, "failed": "RuntimeError"}
    runs = {"10": good | {"number": 10}, "2": good | {"number": 2}, "3": old, "4": failed}
    found = compare.runs_of({"rows": {row: {contender: runs}}}, row)
    assert [run.settings["number"] for run in found[contender]] == [2, 10] and [*found] == [contender]
    assert found[contender][0].steps.tolist() == [100, 200] and found[contender][0].seconds.tolist() == [1, 2]


def test_ratios_of_medians():
    ours, theirs = np.array([1.0, 2, 3, 4, 5]), np.full(5, 2.0)
    point, low, high = compare.ratio(ours, theirs)
    assert point == 1.5 and low == 0.5 and high in (2.0, 2.5)  # the median of five is seldom the least or greatest
    assert compare.ratio(theirs, theirs) == (1, 1, 1)
    point, low, high = compare.ratio(np.array([1, math.inf, math.inf]), np.full(3, 2.0))
    assert point == high == math.inf and low == 0.5  # of three, two that never were are drawn most times


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
    assert found["return"] == pytest.approx(returns[-1]) and 100 < found["memory_mib"] < 2000
    with pytest.raises(RuntimeError, match="--gamma 2 failed"):
        compare.measure(tmp_path, "ppo.py --gamma 2", 3, {*list(compare.os.sched_getaffinity(0))[:1]})
