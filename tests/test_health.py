"""The health report: silent on good runs, right on bad ones, one line for what can't be read."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

import ppo
from conftest import ROOT
from examples import health

ITERATIONS = 100
PROGRESS = np.linspace(0, 1, ITERATIONS)
# A CartPole at the defaults: solved at 60% of the run, its learning rate falls to zero, its values then explain nothing
GOOD = {
    "charts/episodic_return": np.minimum(20 + 800 * PROGRESS, 500),
    "charts/learning_rate": 2.5e-4 * (1 - PROGRESS),
    "losses/approx_kl": 3e-4 * (1 - PROGRESS) ** 4,
    "losses/clipfrac": 1e-3 * (1 - PROGRESS) ** 4,
    "losses/relative_entropy": 1 - 0.4 * PROGRESS,
    "losses/explained_variance": np.where(PROGRESS < 0.58, 0.8 * PROGRESS, -1.2),
}
NOISE = np.random.default_rng(0).normal(size=ITERATIONS)
FLAT = {"charts/episodic_return": 22 + NOISE}


def write(run, curves, every=512):
    writer = SummaryWriter(run)
    for name, values in curves.items():
        for i, value in enumerate(values):
            writer.add_scalar(name, value, every * (i + 1))
    writer.close()


def report(monkeypatch, capsys, *runs):
    """Exit code, lines of the report, and lines of errors."""
    monkeypatch.setattr(sys, "argv", ["health.py", *map(str, runs)])
    exit_code = health.main()
    output = capsys.readouterr()
    return exit_code, output.out.splitlines(), output.err.splitlines()


@pytest.fixture
def look(monkeypatch, capsys):
    def look_at(curves):
        write("run", curves)
        return report(monkeypatch, capsys, "run")

    return look_at


def test_solved(look):
    """Late updates are tiny and values explain nothing where the return stands at its maximum: nothing to change."""
    assert look(GOOD) == (0, ["run: healthy (100 iterations)"], [])


@pytest.mark.parametrize(
    "change",
    (
        {"losses/relative_entropy": 0.3 * (1 - PROGRESS)},  # sure of itself, as MountainCar's, but it has learned
        {"losses/approx_kl": 0.03 + 0.01 * NOISE, "losses/clipfrac": 0.32 + 0.1 * NOISE},  # as Walker2d's, fast recipe
        {"losses/approx_kl": np.where(PROGRESS == 0.0, 9.0, 3e-4)},  # a spike in one iteration
        {"losses/policy_std": 1 - 0.9 * PROGRESS},
        {"losses/policy_std": 1 + 2.5 * np.sin(np.pi * PROGRESS)},  # it explored more for a while
        {"losses/approx_kl": np.where(PROGRESS < 0.3, 3e-4, 1e-9)},  # it moved, and has come to rest
        {  # solved at once, but for a slip now and then: hardly any returns vary
            "charts/episodic_return": np.where(PROGRESS < 0.03, 20, 500 - 4 * (NOISE > 1)),
            "losses/explained_variance": np.full(ITERATIONS, -1.2),
        },
        {"losses/explained_variance": np.where(PROGRESS < 0.58, 0.8 * PROGRESS, np.nan)},  # as CleanRL logs it
        {"charts/episodic_return": np.repeat(GOOD["charts/episodic_return"], 5)},  # many points, one an episode
        {"charts/episodic_return": GOOD["charts/episodic_return"] - 1000},
        {"charts/episodic_return": np.minimum(20 + 800 * PROGRESS, 500) - 150 * (PROGRESS > 0.9)},  # a dip
    ),
    ids=lambda change: " ".join(change),
)
def test_good(look, change):
    assert look(GOOD | change) == (0, ["run: healthy (100 iterations)"], [])


@pytest.mark.parametrize(
    ("change", "name", "value", "healthy", "advice"),
    (
        ({"losses/approx_kl": 0.08 + 0 * NOISE}, "losses/approx_kl", "0.08", "0 to 0.05", "lower --learning-rate"),
        ({"losses/clipfrac": 0.5 + 0 * NOISE}, "losses/clipfrac", "0.5", "0 to 0.4", "lower --learning-rate"),
        ({"losses/approx_kl": -1e-8 + 0 * NOISE}, "losses/approx_kl", "-1e-08", "1e-05 or", "raise --learning-rate"),
        ({"losses/approx_kl": 1e-8 + 0 * NOISE}, "losses/approx_kl", "1e-08", "1e-05 or", "raise --learning-rate"),
        (
            {"losses/explained_variance": 0.01 * NOISE.clip(-1, 1) - 0.1},
            "losses/explained_variance",
            "-0.09",
            "0.1 to 1",
            "larger --vf-coef\n",
        ),
        (
            FLAT | {"losses/explained_variance": 0.001 + 0 * NOISE},
            "losses/explained_variance",
            "0.001",
            "0.1 to 1",
            "or no unit of the network answers any more: lower --learning-rate (Atari: --norm-obs)\n",
        ),
        (
            {"losses/approx_kl": np.where(PROGRESS > 0.95, np.nan, GOOD["losses/approx_kl"])},
            "losses/approx_kl",
            "nan",
            "a number",
            "lower --learning-rate",
        ),
        ({"losses/policy_std": 1 + 3 * PROGRESS}, "losses/policy_std", "3.9", "0 to 2", "lower --ent-coef"),
        ({"losses/value_loss": np.where(PROGRESS > 0.9, np.nan, 1)}, "losses/value_loss", "nan", "a number", "lower"),
        (
            {"charts/episodic_return": np.where(PROGRESS < 0.5, GOOD["charts/episodic_return"], 50)},
            "charts/episodic_return",
            "50",
            "137.2 or more",
            "fallen from 379.6: updates are too large",
        ),
        (FLAT, "charts/episodic_return", "21.82", "well above 22.08", "no clear rise"),
        (
            {"charts/episodic_return": 22 - 90 * PROGRESS + NOISE},
            "charts/episodic_return",
            "-6",
            "well above",
            "it falls",
        ),
        (
            FLAT | {"losses/relative_entropy": 0.999 + 0 * NOISE},
            "losses/relative_entropy",
            "1",
            "0.05 to 0.95",
            "raise",
        ),
        (
            FLAT | {"losses/relative_entropy": (1 - 4 * PROGRESS).clip(1e-6)},
            "losses/relative_entropy",
            "1e-06",
            "0.05 to 0.95",
            "raise --ent-coef",
        ),
        (
            FLAT | {"losses/policy_std": (1 - 4 * PROGRESS).clip(1e-3)},
            "losses/policy_std",
            "0.001",
            "0.05 or more",
            "raise --ent-coef",
        ),
    ),
    ids=lambda part: part if isinstance(part, str) and "/" in part else "",
)
def test_bad(look, change, name, value, healthy, advice):
    """Each fault is found by its curve, with its value, the healthy range, and what to change; and nothing else is."""
    exit_code, (verdict, *found), errors = look(GOOD | change)
    flat = "charts/episodic_return" in change and name != "charts/episodic_return"  # which is a finding of its own
    assert (exit_code, errors, len(found)) == (1, [], 1 + flat)
    assert verdict == f"run: {1 + flat} to look at (100 iterations)"
    assert found[0].startswith(f"  {name} is {value}") and f"(healthy: {healthy}" in found[0]
    assert advice in f"{found[0]}\n"


def test_no_returns(look):
    """Where no episode ends, or a few do, the losses still say something; that returns are not judged is said."""
    curves = {name: values for name, values in GOOD.items() if name.startswith("losses/")}
    few = {"charts/episodic_return": np.arange(39.0, 0, -1)}
    for more in ({}, few):
        shutil.rmtree("run", ignore_errors=True)
        verdict = "run: healthy, but for too few returns to judge them (100 iterations)"
        assert look(curves | more) == (0, [verdict], [])


def test_equal_returns(look):
    """Where all returns are equal there is nothing to explain, but it is not learning either."""
    exit_code, (_, *found), _ = look(GOOD | {"charts/episodic_return": -200 + 0 * PROGRESS})
    assert exit_code == 1 and len(found) == 1 and "no clear rise" in found[0]


def test_early(look):
    """With a few iterations nothing is said, whatever they are."""
    assert look({"losses/approx_kl": [1.0] * 39, "charts/episodic_return": [5.0] * 39}) == (
        0,
        ["run: too early to say (39 iterations)"],
        [],
    )
    shutil.rmtree("run")  # another script's, with a return for each episode
    few = {"losses/approx_kl": [1e-3] * 3, "charts/episodic_return": 22 + NOISE}
    assert look(few) == (0, ["run: too early to say (3 iterations)"], [])


def test_close_to_a_limit(look):
    """A value that is outside is shown so."""
    _, (_, found), _ = look(GOOD | {"losses/approx_kl": 0.05001 + 0 * NOISE})
    assert "is 0.05001 (healthy: 0 to 0.05)" in found
    shutil.rmtree("run")
    returns = np.where(PROGRESS < 0.8, np.minimum(20 + 1000 * PROGRESS, 820), 196)
    _, (_, found), _ = look(GOOD | {"charts/episodic_return": returns})
    assert "is 196 (healthy: " in found


def test_unreadable(monkeypatch, capsys):
    """One line each, exit code 2, and the other runs are still looked at."""
    write("good", GOOD)
    write("other", {"loss": [1.0]})
    Path("empty").mkdir()
    Path("file").touch()
    exit_code, lines, errors = report(monkeypatch, capsys, "none", "good", "file", "empty", "other")
    assert exit_code == 2 and lines == ["good: healthy (100 iterations)"]
    assert [line.split(":")[:2] for line in errors] == [["error", f" {x}"] for x in ("none", "file", "empty", "other")]


def test_several(monkeypatch, capsys):
    """One unhealthy run of several is enough for exit code 1, and one that can't be read for 2."""
    write("good", GOOD)
    write("bad", GOOD | {"losses/approx_kl": 0.1 + 0 * PROGRESS})
    exit_code, lines, _ = report(monkeypatch, capsys, "bad", "good")
    assert exit_code == 1 and [line[:8] for line in lines] == ["bad: 1 t", "  losses", "good: he"]
    assert report(monkeypatch, capsys, "none", "bad")[0] == 2


def test_cut_short(monkeypatch, capsys):
    """A run that is being written, or was killed: what is there is read."""
    write("run", GOOD)
    file = next(Path("run").iterdir())
    file.write_bytes(file.read_bytes()[:-20])
    exit_code, lines, errors = report(monkeypatch, capsys, "run")
    assert exit_code == 0 and lines == ["run: healthy (100 iterations)"] and errors == []


def test_command():
    """As it is typed, in another folder: exit codes, and nothing on stderr but the error."""
    write("bad", GOOD | {"losses/approx_kl": 0.1 + 0 * PROGRESS})
    command = [sys.executable, ROOT / "examples" / "health.py"]
    for run, code, lines in (("bad", 1, 2), ("none", 2, 1)):
        result = subprocess.run([*command, run], capture_output=True, text=True)
        output, nothing = (result.stdout, result.stderr) if code == 1 else (result.stderr, result.stdout)
        assert (result.returncode, len(output.splitlines()), nothing) == (code, lines, "")


QUICK = {"num_envs": 32, "num_steps": 16, "update_epochs": 2, "vf_coef": 0.25, "clip_vloss": False}
QUICK |= {"total_timesteps": 45 * 512, "num_minibatches": 2}


def test_real_runs(monkeypatch, capsys):
    """The README's quick recipe is healthy; too small a learning rate, too large a one and no entropy are not."""
    good = {"learning_rate": 5e-3, "ent_coef": 0.0, "num_steps": 32, "num_minibatches": 4, "total_timesteps": 45 * 1024}
    runs = (good, {"learning_rate": 1e-7}, {"learning_rate": 0.5, "ent_coef": 0.0, "max_grad_norm": 100.0})
    found = []
    for arguments in runs:
        result = ppo.train(ppo.Args(**QUICK | arguments))
        capsys.readouterr()
        exit_code, lines, errors = report(monkeypatch, capsys, result["run_dir"])
        assert (exit_code, errors) == (int(arguments is not good), [])
        found.append("\n".join(lines[1:]))
    assert "hardly moves" in found[1] and "acts at random" in found[1]
    assert "settled before" in found[2] and "well above" in found[2]
