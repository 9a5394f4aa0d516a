"""The script as people use it: copied, typed, mistyped; what it shows, and how it ends."""

import ast
import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from typing import get_args

import pytest

import ppo
from conftest import ROOT
from ppo import Args, evaluate, train


def run(*args, folder=".", script=ROOT / "ppo.py"):
    """The command's exit code, standard output and standard error."""
    done = subprocess.run([sys.executable, script, *args], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


SCRIPTS = pytest.mark.parametrize("script", ["ppo.py", "ppo_continuous.py", "ppo_atari.py"])


def script_requirements(script):
    block = re.search(r"^# /// script$(.*?)^# ///$", (ROOT / script).read_text(), re.MULTILINE | re.DOTALL)[1]
    return tomllib.loads("\n".join(line[2:] for line in block.splitlines()))


@SCRIPTS
def test_the_script_and_the_requirements_agree(script):
    wanted = (ROOT / "requirements.txt").read_text().split("\n")
    metadata = script_requirements(script)
    assert metadata["requires-python"] == ">=3.11"
    assert len(metadata["dependencies"]) >= 5
    for requirement in metadata["dependencies"]:
        name, version = re.match(r"([\w-]+).*(==.*)", requirement).groups()
        (line,) = [line for line in wanted if re.match(rf"{name}\b", line)]
        assert line.endswith(version)
        extras = [set(re.findall(r"[\w-]+", "".join(re.findall(r"\[.*\]", text)))) for text in (requirement, line)]
        assert extras[0] <= extras[1]


@SCRIPTS
def test_the_script_names_all_that_it_imports(script):
    """The header for `uv run` has what each run needs; what some need (wandb) is in requirements.txt."""

    def imports(nodes):
        modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        return {module.split(".")[0] for module in modules} - sys.stdlib_module_names

    def names(requirements):
        return {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in requirements}

    tree = ast.parse((ROOT / script).read_text())
    always = imports(tree.body)
    through_gymnasium = {"mujoco", "opencv_python_headless"}
    assert always == names(script_requirements(script)["dependencies"]) - through_gymnasium
    assert imports(list(ast.walk(tree))) - always == {"envpool", "wandb"}
    assert {"envpool", "wandb"} <= names((ROOT / "requirements.txt").read_text().split("\n"))


@pytest.mark.parametrize(
    ("script", "env_id"),
    [("ppo.py", "CartPole-v1"), ("ppo_continuous.py", "Pendulum-v1"), ("ppo_atari.py", "ALE/Breakout-v5")],
)
def test_the_lone_file_trains(script, env_id, tmp_path):
    """Copied into an empty folder, in a log file: plain lines, the result, where things are, what to type next.

    The commands that it names work as they are.
    """
    shutil.copy(ROOT / script, tmp_path)
    code, out, err = run("--env-id", env_id, "--total-timesteps", "2048", script=script, folder=tmp_path)
    assert (code, err) == (0, "")
    assert "\r" not in out and "\x1b" not in out
    assert "2,048/2,048 steps | return" in out
    (folder,) = (tmp_path / "runs").iterdir()
    assert "Done: 2,048 steps, mean return of the last episodes " in out
    assert f"Everything is in runs/{folder.name}" in out
    assert re.fullmatch(rf"{env_id.replace('/', '_')}__{script[:-3]}__1__\d{{10}}", folder.name)
    assert sorted(path.name.split(".")[0] for path in folder.iterdir()) == ["args", "checkpoint", "events"]
    commands = dict(re.findall(r"^  (\w[\w ]*\w)   +(\S.*)$", out.split("Everything is in")[1], re.MULTILINE))
    assert commands["watch the curves"] == "tensorboard --logdir runs"
    assert commands["evaluate"] == f"python {script} --evaluate runs/{folder.name}"
    assert commands["film"] == f"python {script} --evaluate runs/{folder.name} --capture-video"
    assert commands["go on"] == f"python {script} --resume runs/{folder.name} --total-timesteps 4096"
    for name in ("evaluate", "film", "go on"):
        code, out, err = run(*commands[name].split()[2:], script=script, folder=tmp_path)
        assert (code, re.sub(r"A\.L\.E: .*\n.*Stella]\n", "", err)) == (0, "")  # which the emulator says when filmed
    assert "4,096/4,096 steps" in out


@SCRIPTS
def test_help_explains_every_argument(script):
    code, out, _ = run("--help", script=ROOT / script)
    assert code == 0
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    arguments = importlib.import_module(script[:-3]).Args
    for field in dataclasses.fields(arguments):
        assert f"--{field.name.replace('_', '-')}" in words
    source = (ROOT / script).read_text()
    fields = source[source.index("class Args") : source.index("def fail")]
    docstrings = re.findall(r'^    """(.*?)"""', fields, re.MULTILINE | re.DOTALL)
    assert len(docstrings) == 1 + len(dataclasses.fields(arguments))
    for docstring in docstrings:
        assert " ".join(docstring.replace("`", "").split())[:40] in words.replace("`", "")


def test_an_environment_from_the_current_folder(tmp_path):
    """The README's: `--env-id module:EnvId`, with the module where the command is typed, and the script elsewhere."""
    code = re.search(r"```python\n(# my_envs.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "my_envs.py").write_text(code)
    for mode in ("sync", "async"):
        args = ("--total-timesteps", "512", "--vectorization", mode)
        code, _, err = run("--env-id", "my_envs:Corridor-v0", *args, folder=tmp_path)
        assert (code, err) == (0, "")
    assert len(list(tmp_path.glob("runs/my_envs_Corridor-v0__ppo__1__*"))) == 2


def test_a_terminal_gets_a_progress_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    train(Args(total_timesteps=2048))
    out = capsys.readouterr().out
    bar = out.split("\r")[-1].split("\n")[0]
    assert bar.startswith("#" * 20 + " 2,048/2,048 steps | return ")
    assert re.search(r"return \d+\.\d \| [\d,]+ steps/s \| 0:00:00 left\x1b\[K$", bar)


def test_progress_line():
    line = ppo.progress_line(25_000, 100_000, 12.34, 2500.0)
    assert line == "#####............... 25,000/100,000 steps | return 12.3 | 2,500 steps/s | 0:00:30 left"
    assert "no episode yet" in ppo.progress_line(25_000, 100_000, None, 2500.0)


MISTAKES = {
    "misspelt": ({"env_id": "CartPol-v1"}, "Did you mean: `CartPole`?"),
    "no such version": ({"env_id": "CartPole-v7"}, "versioned environments"),
    "no such environment": ({"env_id": "Nothing-v0"}, "Environment `Nothing` doesn't exist"),
    "empty name": ({"env_id": ""}, "--env-id "),
    "no such module": ({"env_id": "nowhere:CartPole-v1"}, "No module named 'nowhere'"),
    "no module": ({"env_id": ":CartPole-v1"}, "--env-id :CartPole-v1 can't be made: "),
    "no name": ({"env_id": "worlds:"}, "--env-id worlds:"),
    "two colons": ({"env_id": "worlds:Probe1:2"}, "--env-id worlds:Probe1:2"),
    "broken module": ({"env_id": "broken:Env-v0"}, "broken.py, line 1)"),
    "module without it": ({"env_id": "json:Env-v0"}, "Environment `Env` doesn't exist"),
    "continuous": (
        {"env_id": "Pendulum-v1"},
        "(3,), float32) and actions in Box(-2.0, 2.0, (1,), float32): use ppo_continuous.py",
    ),
    "images": (
        {"env_id": "worlds:Images"},
        "has observations in Box(0, 255, (84, 84, 3), uint8) and actions in Discrete(1): use ppo_atari.py",
    ),
    "pictures of a car": ({"env_id": "CarRacing-v3"}, "needed are vectors or uint8 images"),
    "any number": ({"env_id": "worlds:Sequences"}, ": needed are vectors"),
    "actions in a tuple": (
        {"env_id": "worlds:TupleActions"},
        "and choices or a Box of floats",
    ),
    "raises when made": ({"env_id": "worlds:RaisingWhenMade"}, "can't be made: RuntimeError: no licence ("),
    "raises at reset": ({"env_id": "worlds:RaisingAtReset"}, "can't be reset: ValueError: no start ("),
    "other shape": ({"env_id": "worlds:WrongShape"}, "worlds:WrongShape can't be reset: ValueError: "),
    "other reset mode": ({"env_id": "worlds:SameStep"}, "NEXT_STEP"),
    "no own vector version": ({"env_id": "Acrobot-v1", "vectorization": "vector_entry_point"}, "vector entry point"),
    "uneven": ({"num_minibatches": 3}, "--num-minibatches 3 must divide num_envs * num_steps, which is 512"),
    "too short": ({"total_timesteps": 511}, "must be at least num_envs * num_steps, which is 512"),
    "too large": (
        {"num_envs": 10**5, "num_steps": 10**4, "total_timesteps": 10**10},
        "too much to hold: lower --num-envs",
    ),
    "lonely samples": ({"num_minibatches": 512}, "or --no-norm-adv"),
    "nothing to film": ({"env_id": "worlds:Probe1", "capture_video": True}, "can't be made to be filmed"),
    "no such device": ({"device": "cuda:77"}, "--device cuda:77 can't be used here, try --device cpu"),
    "no cuda": ({"device": "cuda"}, "--device cuda:0 can't be used here, try --device cpu"),
    "no device at all": ({"device": "toaster"}, "--device toaster must be auto, cpu, cuda, cuda:N or mps"),
    "empty device": ({"device": ""}, "must be auto, cpu, cuda, cuda:N or mps"),
    "nothing to resume": ({"resume": "runs/nothing"}, "runs/nothing does not exist"),
    "nothing to evaluate": ({"evaluate": "runs/nothing"}, "runs/nothing does not exist"),
    "both": ({"resume": "a", "evaluate": "b"}, "needs the folder of a run: give one of them"),
    "resume nothing": ({"resume": ""}, "needs the folder of a run"),
    "evaluate nothing": ({"evaluate": ""}, "needs the folder of a run"),
}
WHOLE, FRACTION = (0, -1, 10**20, 2.5), (-0.1, 1.1, float("nan"), float("inf"))
SIZE = (-0.1, float("nan"), float("inf"), 1e30)
NUMBERS = {
    **dict.fromkeys(("total_timesteps", "num_envs", "num_steps", "num_minibatches", "update_epochs"), WHOLE),
    "eval_episodes": WHOLE,
    "seed": (-1, 2**32, 1.5, float("nan")),
    **dict.fromkeys(("learning_rate", "gamma", "gae_lambda"), FRACTION),
    **dict.fromkeys(("clip_coef", "max_grad_norm"), (0.0, *SIZE)),
    **dict.fromkeys(("ent_coef", "vf_coef", "target_kl", "save_interval"), SIZE),
    "stop_return": (float("nan"), float("inf"), float("-inf"), 1e30),
}
MISTAKES |= {
    f"{name} {value}": ({name: value}, f"--{name.replace('_', '-')} must be from ")
    for name, values in NUMBERS.items()
    for value in values
}


def test_every_number_has_a_range():
    numbers = {field.name for field in dataclasses.fields(Args) if {int, float} & {field.type, *get_args(field.type)}}
    assert numbers == set(NUMBERS)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_nothing(name, capsys, monkeypatch, tmp_path):
    changes, message = MISTAKES[name]
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "broken.py").write_text("nothing_defined\n")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    with pytest.raises(SystemExit) as stopped:
        evaluate(Args(**changes)) if "evaluate" in changes else train(Args(**changes))
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ppo.py: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["modules"]


def test_a_mistake_on_the_command_line(tmp_path):
    code, out, err = run("--env-id", "CartPol-v1", folder=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("ppo.py: error: --env-id CartPol-v1: ") and "Traceback" not in err


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Raising", "worlds:Raising failed after step 24: ValueError: the seventh step is broken ("),
        ("OldApi", "worlds:OldApi failed after step 0: ValueError: not enough values to unpack"),
        ("Exploding", "worlds:Exploding gave a reward that is not a finite number, after step 24"),
        ("NanReward", "worlds:NanReward gave a reward that is not a finite number, after step 24"),
        ("NanObservation", "worlds:NanObservation gave an observation that is not a finite number, after step 28"),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"norm_obs": True, "norm_reward": True}, {"vectorization": "async"}])
def test_an_environment_that_breaks_in_the_middle(env_id, message, changes, capsys, tmp_path, recwarn):
    """One line that says what, where and when; and what was saved before stays."""
    with pytest.raises(SystemExit) as stopped:
        train(Args(env_id=f"worlds:{env_id}", num_steps=4, total_timesteps=160, save_interval=0, **changes))
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ppo.py: error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]  # of NumPy's, about the same
    (run_dir,) = (tmp_path / "runs").iterdir()
    saved = ppo.load_checkpoint(str(run_dir))
    assert saved["global_step"] == (0 if env_id == "OldApi" else 16)
    assert all(tensor.isfinite().all() for tensor in saved["agent"].values())


def test_a_vector_environment_without_action_space(capsys):
    with pytest.raises(SystemExit) as stopped:
        train(Args(env_id="worlds:NoActionSpace"))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "worlds:NoActionSpace failed after step 0: AttributeError: " in error and error.count("\n") == 1


def test_async_environments_end_quietly(tmp_path):
    """After a mistake that is found when they run already: one line."""
    args = ("--env-id", "worlds:NanReward", "--num-steps", "4", "--total-timesteps", "160")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, ROOT / "ppo.py", *args, "--vectorization", "async"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("ppo.py: error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--gama", "0.9"), "--gamma"),
        (("--gamma", "high"), "high"),
        (("--num-envs", "4.5"), "4.5"),
        (("--vectorization", "threads"), "vector_entry_point"),
        (("CartPole-v1",), "CartPole-v1"),
        (("--seed",), "--seed"),
    ],
)
def test_what_the_command_line_does_not_know(args, words, tmp_path):
    """The parser says what it expected, and ends with the same code."""
    code, out, err = run(*args, folder=tmp_path)
    assert (code, out) == (2, "")
    assert words in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_nowhere_to_write(capsys, monkeypatch, tmp_path):
    """`runs` is a file, or leads nowhere, or the disk takes nothing."""
    for block in (lambda runs: runs.write_text("in the way"), lambda runs: runs.symlink_to("/nowhere/at/all")):
        block(tmp_path / "runs")
        with pytest.raises(SystemExit) as stopped:
            train(Args(total_timesteps=512))
        assert stopped.value.code == 2
        assert "no run can be written here: " in capsys.readouterr().err
        (tmp_path / "runs").unlink()
    monkeypatch.setattr(
        "pathlib.Path.write_text", lambda *args: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    with pytest.raises(SystemExit) as stopped:
        train(Args(total_timesteps=512))
    assert stopped.value.code == 2
    assert "Read-only file system" in capsys.readouterr().err


def test_compiling_without_a_compiler(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        train(Args(compile=True))
    assert stopped.value.code == 2
    assert "--compile needs a C++ compiler" in capsys.readouterr().err


def test_no_cuda_wins():
    assert ppo.pick_device(Args(device="cuda", cuda=False)).type == "cpu"
    assert ppo.pick_device(Args(device="auto")).type == "cpu"


def test_importing_does_nothing(tmp_path):
    code = "import sys, torch; threads = torch.get_num_threads(); import ppo; assert torch.get_num_threads() == threads"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(tmp_path.iterdir()) == []
