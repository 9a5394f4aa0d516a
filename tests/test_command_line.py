"""The script as people use it: copied, typed, mistyped; what it shows, and how it ends."""

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

import ppo
from conftest import ROOT
from ppo import Args, train


def run(*args, folder=".", script=ROOT / "ppo.py"):
    """The command's exit code, standard output and standard error."""
    done = subprocess.run([sys.executable, script, *args], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def script_requirements():
    block = re.search(r"^# /// script$(.*?)^# ///$", (ROOT / "ppo.py").read_text(), re.MULTILINE | re.DOTALL)[1]
    return tomllib.loads("\n".join(line[2:] for line in block.splitlines()))


def test_the_script_and_the_requirements_agree():
    wanted = (ROOT / "requirements.txt").read_text().split("\n")
    metadata = script_requirements()
    assert metadata["requires-python"] == ">=3.11"
    assert len(metadata["dependencies"]) >= 5
    for requirement in metadata["dependencies"]:
        assert requirement in wanted


def test_the_script_names_all_that_it_imports():
    """The header for `uv run` has what each run needs; what some need (wandb) is in requirements.txt."""

    def imports(nodes):
        modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        return {module.split(".")[0] for module in modules} - sys.stdlib_module_names

    def names(requirements):
        return {re.split(r"\W", requirement)[0] for requirement in requirements}

    script = ast.parse((ROOT / "ppo.py").read_text())
    always = imports(script.body)
    assert always == names(script_requirements()["dependencies"])
    assert imports(list(ast.walk(script))) - always == {"wandb"}
    assert "wandb" in names((ROOT / "requirements.txt").read_text().split("\n"))


def test_the_lone_file_trains(tmp_path):
    """Copied into an empty folder, in a log file: plain lines, the result, where things are, what to type next.

    The commands that it names work as they are.
    """
    shutil.copy(ROOT / "ppo.py", tmp_path)
    code, out, err = run("--total-timesteps", "2048", script="ppo.py", folder=tmp_path)
    assert (code, err) == (0, "")
    assert "\r" not in out and "\x1b" not in out
    assert "2,048/2,048 steps | return" in out
    (folder,) = (tmp_path / "runs").iterdir()
    assert "Done: 2,048 steps, mean return of the last episodes " in out
    assert f"Everything is in runs/{folder.name}" in out
    assert re.fullmatch(r"CartPole-v1__ppo__1__\d{10}", folder.name)
    assert sorted(path.name.split(".")[0] for path in folder.iterdir()) == ["args", "checkpoint", "events"]
    commands = dict(re.findall(r"^  (\w[\w ]*\w)   +(\S.*)$", out.split("Everything is in")[1], re.MULTILINE))
    assert commands["watch the curves"] == "tensorboard --logdir runs"
    assert commands["evaluate"] == f"python ppo.py --evaluate runs/{folder.name}"
    assert commands["film"] == f"python ppo.py --evaluate runs/{folder.name} --capture-video"
    assert commands["go on"] == f"python ppo.py --resume runs/{folder.name} --total-timesteps 4096"
    for name in ("evaluate", "film", "go on"):
        code, out, err = run(*commands[name].split()[2:], script="ppo.py", folder=tmp_path)
        assert (code, err) == (0, "")
    assert "4,096/4,096 steps" in out


def test_help_explains_every_argument():
    code, out, _ = run("--help")
    assert code == 0
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    for field in dataclasses.fields(Args):
        assert f"--{field.name.replace('_', '-')}" in words
    source = (ROOT / "ppo.py").read_text()
    fields = source[source.index("class Args") : source.index("def fail")]
    docstrings = re.findall(r'^    """(.*?)"""', fields, re.MULTILINE | re.DOTALL)
    assert len(docstrings) == 1 + len(dataclasses.fields(Args))
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
    "no such module": ({"env_id": "nowhere:CartPole-v1"}, "No module named 'nowhere'"),
    "continuous": ({"env_id": "Pendulum-v1"}, "ppo_continuous.py"),
    "other reset mode": ({"env_id": "worlds:SameStep"}, "NEXT_STEP"),
    "no own vector version": ({"env_id": "Acrobot-v1", "vectorization": "vector_entry_point"}, "vector entry point"),
    "uneven": ({"num_minibatches": 3}, "--num-minibatches 3 must divide num_envs * num_steps, which is 512"),
    "too short": ({"total_timesteps": 511}, "must be at least num_envs * num_steps, which is 512"),
    "no environments": ({"num_envs": 0}, "--num-envs must be from 1 to 100000"),
    "gamma": ({"gamma": 1.1}, "--gamma must be from 0.0 to 1.0"),
    "not a number": ({"learning_rate": float("nan")}, "--learning-rate must be from 0.0 to 1.0, not nan"),
    "infinite": ({"ent_coef": float("inf")}, "--ent-coef must be from 0.0"),
    "negative": ({"target_kl": -1.0}, "--target-kl must be from 0.0"),
    "seed": ({"seed": -1}, "--seed must be from 0 to 4294967295, not -1"),
    "large seed": ({"seed": 2**32}, "--seed must be from 0 to 4294967295"),
    "no gradient": ({"max_grad_norm": 0.0}, "--max-grad-norm must be from 1e-06"),
    "lonely samples": ({"num_minibatches": 512}, "or --no-norm-adv"),
    "no such device": ({"device": "cuda:77"}, "--device cuda:77 can't be used here, try --device cpu"),
    "no device at all": ({"device": "toaster"}, "--device toaster must be auto, cpu, cuda, cuda:N or mps"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_nothing(name, capsys, tmp_path):
    changes, message = MISTAKES[name]
    with pytest.raises(SystemExit) as stopped:
        train(Args(**changes))
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ppo.py: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_on_the_command_line(tmp_path):
    code, out, err = run("--env-id", "CartPol-v1", folder=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("ppo.py: error: --env-id CartPol-v1: ") and "Traceback" not in err


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
