"""The script as people use it: copied, typed, mistyped; what it shows, and how it ends."""

import ast
import dataclasses
import importlib
import multiprocessing
import os
import pty
import re
import shutil
import subprocess
import sys
import time
import tomllib
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
import tyro

import ppo
import ppo_continuous
from conftest import ROOT
from ppo import Args, train
from test_checkpoint import command, digest, fails
from test_train import scalars


def run(*args, folder=".", script=ROOT / "ppo.py"):
    """The command's exit code, standard output and standard error."""
    done = subprocess.run([sys.executable, script, *args], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


OURS = ["ppo.py", "ppo_continuous.py", "ppo_atari.py", "ppo_procgen.py", "ppo_lstm.py"]
SCRIPTS = pytest.mark.parametrize("script", OURS)


def script_requirements(script):
    block = re.search(r"^# /// script$(.*?)^# ///$", (ROOT / script).read_text(), re.MULTILINE | re.DOTALL)[1]
    return tomllib.loads("\n".join(line[2:] for line in block.splitlines()))


def test_commands_in_texts():
    """Whatever README, docs and docstrings say to type is what the scripts take; `…` stands for a script's name."""
    paths = [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]
    texts = [path.read_text() for path in paths]
    texts += [(ROOT / name).read_text().replace("… --", f"{name} --") for name in OURS]
    count = 0
    for text in texts:
        for script, words in re.findall(r"(?:python|torchrun [^\n]*?) (ppo\w*\.py)( --[^`\n]*)?", text):
            words = words.replace("SEED", "1").replace(" --help", "")
            arguments = re.sub(r" +#.*| && .*|[,;.:)*]+$", "", words).split()
            module = importlib.import_module(script[:-3])
            module.check_args(tyro.cli(module.Args, args=[x for x in arguments if x != "["]), "cpu")
            count += 1
    assert count > 30


@SCRIPTS
def test_the_script_and_the_requirements_agree(script):
    wanted = (ROOT / "requirements.txt").read_text().split("\n")
    metadata = script_requirements(script)
    assert metadata["requires-python"] == ">=3.11,<3.14"  # MuJoCo 3.6.0 and Box2D have no wheels for 3.14
    assert len(metadata["dependencies"]) >= 6
    for requirement in metadata["dependencies"]:
        name, version = re.match(r"([\w-]+).*(==.*)", requirement).groups()
        (line,) = [line for line in wanted if re.match(rf"{name}\b", line)]
        assert line.endswith(version)
        extras = [set(re.findall(r"[\w-]+", "".join(re.findall(r"\[.*\]", text)))) for text in (requirement, line)]
        assert extras[0] <= extras[1]


VECTORS = {"box2d", "classic-control"}
INDIRECTLY = {  # packages and gymnasium's extras without which its environments or their films are not made
    "ppo.py": (set(), VECTORS),
    "ppo_continuous.py": ({"mujoco"}, VECTORS | {"mujoco"}),
    "ppo_atari.py": ({"opencv_python_headless"}, set()),
    "ppo_procgen.py": ({"envpool", "pyqt5_qt5"}, set()),
    "ppo_lstm.py": (set(), VECTORS),
}


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
    indirectly = {"mujoco", "opencv_python_headless"}  # by gymnasium
    indirectly |= {"envpool", "pyqt5_qt5"} if script == "ppo_procgen.py" else set()  # when environments are made
    needed = script_requirements(script)["dependencies"]
    assert imports(list(ast.walk(tree))) == always == names(needed) - indirectly
    extras = {*re.findall(r"[\w-]+", re.search(r"gymnasium(?:\[(.*?)\])?==", " ".join(needed))[1] or "")}
    assert (names(needed) & indirectly, extras) == INDIRECTLY[script]
    optional = {*re.findall(r'__import__\("(\w+)"\)', (ROOT / script).read_text())} - sys.stdlib_module_names
    assert optional - {"wandb"} == ({"envpool"} if script in ("ppo_continuous.py", "ppo_procgen.py") else set())
    assert optional <= names((ROOT / "requirements.txt").read_text().split("\n"))


@pytest.mark.parametrize(
    ("script", "env_id", "steps"),
    [
        ("ppo.py", "CartPole-v1", 2048),
        ("ppo_continuous.py", "Pendulum-v1", 2048),
        ("ppo_atari.py", "ALE/Breakout-v5", 1024),
    ],
)
def test_the_lone_file_trains(script, env_id, steps, tmp_path, monkeypatch):
    """Copied into an empty folder: progress, the result, where things are, what to type next; that works as it is."""
    shutil.copy(ROOT / script, tmp_path)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)  # which tests set by importing ppo_atari.py
    given = ("--total-timesteps", str(steps), "--update-epochs", "1")
    code, out, err = run("--env-id", env_id, *given, script=script, folder=tmp_path)
    assert code == 0 and "Traceback" not in err
    if sys.platform == "linux":  # where PyTorch's threads are GNU's: idle ones leave the cores to the games
        assert ("GOMP_SPINCOUNT = '0'" in err) == (script == "ppo_atari.py")
    assert f"{steps / 1000:.3g}k/{steps / 1000:.3g}k [" in err and "steps/s, return " in err
    (folder,) = (tmp_path / "runs").iterdir()
    assert out.startswith(f"Done: {steps:,} steps, mean return ")
    assert re.fullmatch(rf"{env_id.replace('/', '_')}__{script[:-3]}__1__\d{{10}}\.\d{{6}}", folder.name)
    assert sorted(path.name.split(".")[0] for path in folder.iterdir()) == ["args", "checkpoint", "events"]
    board, play, go_on = [line.strip() for line in out.splitlines()[1:]]
    assert board == "tensorboard --logdir runs"
    assert play == f"python {script} --evaluate runs/{folder.name}"
    assert go_on == f"python {script} --resume runs/{folder.name} --total-timesteps {2 * steps}"
    code, out, err = command(*play.split()[2:], "--eval-episodes", 2, script=tmp_path / script)
    assert (code, err) == (0, "") and re.fullmatch(r"2 episodes: return -?[\d.]+ ± [\d.]+\n", out)
    code, out, _ = command(*go_on.split()[2:], script=tmp_path / script)
    assert code == 0 and f"Done: {2 * steps:,} steps" in out


@SCRIPTS
def test_help_explains_every_argument(script):
    """With the comment on its line."""
    code, out, _ = command("--help", script=ROOT / script)
    assert code == 0
    words = re.sub(r"[│╭╮╰╯─\s]", "", out)
    source = (ROOT / script).read_text()
    for field in dataclasses.fields(importlib.import_module(script[:-3]).Args):
        assert f"--{field.name.replace('_', '-')}" in words
        comment = re.search(rf"^    {field.name}: .*  # (.*)$", source, re.MULTILINE)[1]
        assert re.sub(r"[`\s]", "", comment) in words.replace("`", ""), field.name


def test_an_environment_from_the_current_folder(tmp_path):
    """The README's: `--env-id module:EnvId`, with the module where the command is typed, and the script elsewhere."""
    code = re.search(r"```python\n(import gymnasium as gym\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "my_envs.py").write_text(code)
    args = ("--total-timesteps", "512", "--vectorization", "async")
    code, out, err = run("--env-id", "my_envs:Corridor-v0", *args, folder=tmp_path)
    assert code == 0, err
    assert f"python {os.path.relpath(ROOT / 'ppo.py', tmp_path)} --evaluate runs/" in out
    assert len(list(tmp_path.glob("runs/my_envs_Corridor-v0__ppo__1__*"))) == 1


def test_what_is_printed_after_an_early_stop():
    """Goes on to the end of the run, as typed: what stopped it has been reached, and would stop it again."""
    code, out, err = command("--stop-return", 0, "--total-timesteps", 10240)
    assert code == 0 and "10,240" not in out, err
    words = next(line for line in out.splitlines() if "--resume" in line).split()
    code, out, err = command(*words[2:])
    assert code == 0 and out.startswith("Done: 10,240 steps"), err
    assert out.splitlines()[-1].endswith(" --total-timesteps 20480")


def test_what_is_printed_after_a_stop_at_the_end():
    """With the last iteration, the return is reached as well: more steps, and no return to stop at."""
    _, out, _ = command("--stop-return", 0)
    steps = int(out.split()[1].replace(",", ""))
    code, out, err = command("--stop-return", 0, "--total-timesteps", steps)
    assert code == 0 and out.startswith(f"Done: {steps:,} steps"), err
    code, out, err = command(*out.splitlines()[-1].split()[2:])
    assert code == 0 and out.startswith(f"Done: {2 * steps:,} steps"), err


def test_a_terminal_of_80_columns_gets_one_line(tmp_path):
    """That is drawn anew, and never wider."""
    parent, child = pty.openpty()
    subprocess.run(["stty", "cols", "80", "rows", "24"], stdin=child, check=True)
    words = [sys.executable, ROOT / "ppo.py", "--total-timesteps", "10240"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=child)
    os.close(child)
    shown = b""
    try:
        while chunk := os.read(parent, 10_000):
            shown += chunk
    except OSError:  # the terminal is gone
        pass
    os.close(parent)
    assert process.wait() == 0
    bars = shown.decode().split("\r")
    assert len(bars) > 3 and max(map(len, bars)) <= 80
    assert shown.count(b"\n") <= 2
    assert "10.2k/10.2k" in bars[-2] + bars[-1] and "return " in bars[-2] + bars[-1]


def test_a_log_file_gets_a_line_every_ten_seconds(monkeypatch, capsys):
    """By a clock, for iterations of three seconds; and the last one."""
    compute_gae, now = ppo.compute_gae, [time.time()]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(ppo, "compute_gae", lambda *args: now.append(now.pop() + 3) or compute_gae(*args))
    train(Args(num_steps=16, total_timesteps=64 * 20))
    lines = capsys.readouterr().err.split("\r")[1:]
    times = [re.search(r"\[(\d\d):(\d\d)<", line) for line in lines]
    shown = [60 * int(time[1]) + int(time[2]) for time in times]
    assert shown[0] == 0 and shown[-1] == 60 and 4 <= len(shown) <= 8
    assert all(b - a >= 10 for a, b in pairwise(shown[:-1]))


MISTAKES = {
    "misspelt": ({"env_id": "CartPol-v1"}, "Did you mean: `CartPole`?"),
    "no such version": ({"env_id": "CartPole-v7"}, "versioned environments"),
    "not registered": ({"env_id": "Qwertz-v0"}, " (your own: module:EnvId; an Atari game: ppo_atari.py)"),
    "empty name": ({"env_id": ""}, "--env-id "),
    "no such module": ({"env_id": "nowhere:CartPole-v1"}, "No module named 'nowhere'"),
    "no name": ({"env_id": "worlds:"}, "--env-id worlds:"),
    "module without it": ({"env_id": "json:Env-v0"}, "Environment `Env` doesn't exist"),
    "continuous": ({"env_id": "Pendulum-v1"}, "(1,), float32), Box("),
    "images": ({"env_id": "worlds:Images"}, "ppo_atari.py (3D, uint8)"),
    "pictures of a car": ({"env_id": "CarRacing-v3"}, "try ppo.py, ppo_continuous.py, ppo_atari.py (3D, uint8)"),
    "any number": ({"env_id": "worlds:Sequences"}, "has Discrete(1), Sequence("),
    "actions in a tuple": ({"env_id": "worlds:TupleActions"}, "has Tuple("),
    "other reset mode": ({"env_id": "worlds:SameStep"}, "NEXT_STEP"),
    "no own vector version": ({"env_id": "Acrobot-v1", "vectorization": "vector_entry_point"}, "vector entry point"),
    "uneven": ({"num_minibatches": 3}, "num_minibatches must cut num_envs * num_steps"),
    "too short": ({"total_timesteps": 511}, "--total-timesteps has no room for 512 steps after the 0 that are done"),
    "too large": ({"num_envs": 10**5, "num_steps": 10**4, "num_minibatches": 1}, "into equal parts of 2 to 10**8"),
    "lonely samples": ({"num_minibatches": 512}, "into equal parts of 2 to 10**8"),
    "no cuda": ({"device": "cuda"}, "error: too few GPUs: --device cpu?"),
    "nothing to resume": ({"resume": "runs/nothing"}, "error: runs/nothing is missing, damaged, or of another"),
    "resume nothing": ({"resume": ""}, "error: checkpoint.pt is missing"),
}
MISTAKES |= {  # a checkpoint with one of these could not be read again
    "a number of NumPy's": (
        {"gamma": np.float64(0.9), "total_timesteps": 512},
        "--gamma must be a plain number from 0 to 1, not np.float64(0.9)",
    ),
    "a truth of NumPy's": ({"anneal_lr": np.True_, "total_timesteps": 512}, "--anneal-lr must be a plain number from "),
}
WHOLE, FRACTION = (0, -1, 10**20), (-0.1, 1.1, float("nan"), float("inf"))
SIZE = (-0.1, float("nan"), float("inf"), 1e30)
NUMBERS = {
    **dict.fromkeys(("total_timesteps", "num_envs", "num_steps", "num_minibatches", "update_epochs"), WHOLE),
    "eval_episodes": WHOLE,
    "seed": (-1, 10**16),
    **dict.fromkeys(("learning_rate", "gamma", "gae_lambda"), FRACTION),
    **dict.fromkeys(("clip_coef", "max_grad_norm", "ent_coef", "vf_coef", "target_kl", "save_interval"), SIZE),
    "stop_return": (float("nan"), float("inf"), float("-inf"), 1e30),
}
MISTAKES |= {
    f"{name} {value}": ({name: value}, f"--{name.replace('_', '-')} must be a plain number from ")
    for name, values in NUMBERS.items()
    for value in values
}


DEFAULTS = {
    "seed": 1,
    "torch_deterministic": True,
    "cuda": True,
    "device": "auto",
    "compile": False,
    "track": False,
    "wandb_project_name": "ppo",
    "wandb_entity": None,
    "capture_video": False,
    "save_interval": 60.0,
    "resume": None,
    "evaluate": None,
    "eval_episodes": 10,
    "eval_greedy": False,
    "env_id": "CartPole-v1",
    "vectorization": "auto",
    "total_timesteps": 500_000,
    "stop_return": None,
    "num_envs": 4,
    "num_steps": 128,
    "learning_rate": 2.5e-4,
    "anneal_lr": True,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "num_minibatches": 4,
    "update_epochs": 4,
    "norm_adv": True,
    "clip_coef": 0.2,
    "anneal_clip": False,
    "clip_vloss": True,
    "ent_coef": 0.01,
    "anneal_ent": False,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "target_kl": None,
    "norm_obs": False,
    "norm_reward": False,
}
CONTINUOUS = {"env_id": "HalfCheetah-v5", "total_timesteps": 1_000_000, "num_envs": 1, "num_steps": 2048}
CONTINUOUS |= {"learning_rate": 3e-4, "num_minibatches": 32, "update_epochs": 10, "ent_coef": 0.0}
CONTINUOUS |= {"norm_obs": True, "norm_reward": True, "init_std": 1.0}
ATARI = {"env_id": "ALE/Breakout-v5", "total_timesteps": 10_000_000, "num_envs": 8, "clip_coef": 0.1}
ATARI |= {"repeat_action_probability": 0.0, "bf16": True}
# Those of Cobbe et al. (2020, arXiv:1912.01588), section 2 and appendix; 25 million steps are for easy games
PROCGEN = {"env_id": "BigfishEasy-v0", "total_timesteps": 25_000_000, "num_envs": 64, "num_steps": 256, "bf16": True}
PROCGEN |= {"gamma": 0.999, "gae_lambda": 0.95, "num_minibatches": 8, "update_epochs": 3, "learning_rate": 5e-4}
PROCGEN |= {"anneal_lr": False, "ent_coef": 0.01, "clip_coef": 0.2, "norm_reward": True}
PROCGEN |= {"num_levels": 200, "start_level": 0, "network": "impala"}
LSTM = {"num_envs": 16, "learning_rate": 2.5e-3, "norm_obs": True, "norm_reward": True, "rnn": "lstm", "rnn_size": 128}
OTHER_DEFAULTS = {"ppo": {}, "ppo_continuous": CONTINUOUS, "ppo_atari": ATARI}
OTHER_DEFAULTS |= {"ppo_procgen": PROCGEN, "ppo_lstm": LSTM}


@pytest.mark.parametrize("script", OTHER_DEFAULTS)
def test_defaults(script):
    """All of them: those that the field knows, with which results are compared."""
    expected = DEFAULTS | {"exp_name": script} | OTHER_DEFAULTS[script]
    if script == "ppo_procgen":
        del expected["norm_obs"]
    if script == "ppo_lstm":
        del expected["compile"]
    assert dataclasses.asdict(importlib.import_module(script).Args()) == expected


@pytest.mark.parametrize("script", ["ppo", "ppo_continuous", "ppo_atari", "ppo_procgen", "ppo_lstm"])
def test_the_environment_of_a_notebook_stays(script, monkeypatch):
    """What would hide its windows, or want libraries that only films need, is not set without a film."""
    for name in ("SDL_VIDEODRIVER", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    module = importlib.import_module(script)
    module.make_envs(module.Args(), 1).close()
    assert not {"SDL_VIDEODRIVER", "MUJOCO_GL"} & {*os.environ}


@pytest.mark.parametrize(("num_envs", "num_steps"), [(3, 128), (4, 2), (2, 4)])
def test_each_process_needs_minibatches_of_its_own(num_envs, num_steps, monkeypatch):
    """Of two samples at least: an environment for each process alone is not enough."""
    monkeypatch.setattr(ppo, "WORLD_SIZE", 2)
    with pytest.raises(SystemExit, match="into equal parts of 2"):
        ppo.check_args(Args(num_envs=num_envs, num_steps=num_steps), "cpu")
    ppo.check_args(Args(num_envs=4, num_steps=4), "cpu")
    ppo.check_args(Args(num_envs=2, num_steps=4, norm_adv=False), "cpu")


def test_every_number_has_a_range():
    numbers = {field.name for field in dataclasses.fields(Args) if {int, float} & {field.type, *get_args(field.type)}}
    assert numbers == set(NUMBERS)


LIMITS = {
    "fractions of 1": {"learning_rate": 1.0, "gamma": 1.0, "gae_lambda": 1.0},
    "fractions of 0": dict.fromkeys(("learning_rate", "gamma", "gae_lambda", "clip_coef", "max_grad_norm"), 0.0),
    "weights of 0": dict.fromkeys(("ent_coef", "vf_coef", "target_kl", "save_interval"), 0.0),
    "large numbers": {"stop_return": 1e15, "seed": 10**15, "total_timesteps": 10**15, "clip_coef": 1e15},
    "a low return": {"stop_return": -1e15, "seed": 0},
    "two samples": {"num_envs": 1, "num_steps": 2, "num_minibatches": 1},
    "one sample": {"num_envs": 1, "num_steps": 2, "num_minibatches": 2, "norm_adv": False},
    "many samples": {"num_envs": 10**4, "num_steps": 10**4, "num_minibatches": 1},
}


@pytest.mark.parametrize("name", LIMITS)
def test_what_is_just_allowed(name):
    ppo.check_args(Args(**LIMITS[name]), "cpu")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_nothing(name, capsys, tmp_path):
    changes, message = MISTAKES[name]
    with pytest.raises(SystemExit) as stopped:
        train(Args(**changes))
    assert stopped.value.code.startswith("error: ") and "\n" not in stopped.value.code
    assert message in stopped.value.code
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("env_id", [":CartPole-v1", "worlds:Probe1:2"])
def test_ids_that_are_none(env_id):
    assert f"--env-id {env_id}: " in fails("--env-id", env_id)


@pytest.mark.parametrize("words", [("--eval-episodes", 0), ("--resume", "")])
def test_evaluating_nothing(words, tmp_path):
    run_dir = train(Args(total_timesteps=512))["run_dir"]
    fails(*(("--evaluate", run_dir) if "--resume" not in words else ()), *words)


def test_a_mistake_on_the_command_line(tmp_path):
    """Here, a game where nothing registers it."""
    code, out, err = run("--env-id", "ALE/Breakout-v5", folder=tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("error: --env-id ALE/Breakout-v5: ") and err.count("\n") == 1
    assert "an Atari game: ppo_atari.py" in err


@pytest.mark.parametrize("env_id", ["Exploding", "NanReward", "NanObservation"])
@pytest.mark.parametrize("changes", [{}, {"norm_obs": True, "norm_reward": True}, {"vectorization": "async"}])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_that_are_not_finite(env_id, changes, tmp_path):
    """One line that says when; and what was saved before stays."""
    with pytest.raises(SystemExit) as stopped:
        train(Args(env_id=f"worlds:{env_id}", num_steps=4, total_timesteps=160, save_interval=0, **changes))
    assert re.match(r"error: before step (32|48), no longer finite: .*value_loss", stopped.value.code)
    assert multiprocessing.active_children() == []
    (run_dir,) = (tmp_path / "runs").iterdir()
    saved = ppo.load_checkpoint(run_dir)
    assert saved["global_step"] in (16, 32)
    assert all(tensor.isfinite().all() for tensor in saved["agent"].values())


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_an_environment_raises_is_not_caught(vectorization, tmp_path):
    """Its author needs the traceback; what was saved stays, and nothing else, be it a process."""
    with pytest.raises(ValueError, match="the seventh step is broken"):
        train(Args(env_id="worlds:Raising", num_steps=2, total_timesteps=160, vectorization=vectorization))
    assert multiprocessing.active_children() == []
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert ppo.load_checkpoint(run_dir)["global_step"] == 8
    assert list(scalars({"run_dir": run_dir})["charts/SPS"]) == [8, 16, 24]


def test_a_list_among_the_arguments_of_a_fork(monkeypatch):
    """Which a dataclass does not keep as an attribute of its own; when resumed, it is as it was."""

    @dataclasses.dataclass
    class Mine(Args):
        widths: list[int] = dataclasses.field(default_factory=lambda: [64, 64])

    monkeypatch.setattr(ppo, "Args", Mine)
    run_dir = train(Mine(total_timesteps=512, widths=[8]))["run_dir"]
    assert train(Mine(resume=run_dir, total_timesteps=1024))["global_step"] == 1024
    assert ppo.load_checkpoint(run_dir)["args"].widths == [8]


def test_async_environments_end_quietly(tmp_path):
    """After a mistake that is found when they run already: one line."""
    args = ("--env-id", "worlds:NanReward", "--num-steps", "4", "--total-timesteps", "160")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    words = [sys.executable, ROOT / "ppo.py", *args, "--vectorization", "async"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.split("\n")[-2].startswith("error: before step ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--gama", "0.9"), "--gamma"),
        (("--gamma", "high"), "high"),
        *((("--" + name, "4.5"), "4.5") for name in ("num-envs", "num-steps", "total-timesteps", "seed")),
        (("--vectorization", "threads"), "vector_entry_point"),
        (("--device", "cuda:77"), "cuda"),
        (("--device", ""), "cuda"),
        (("CartPole-v1",), "CartPole-v1"),
        (("--seed",), "--seed"),
    ],
)
def test_what_the_command_line_does_not_know(args, words, tmp_path):
    """The parser says what it expected, and ends with the same code."""
    code, out, err = command(*args)
    assert (code, out) == (2, "")
    assert words in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_nowhere_to_write(monkeypatch, tmp_path):
    """`runs` is a file, or leads nowhere, or the disk takes nothing."""
    for block in (lambda runs: runs.write_text("in the way"), lambda runs: runs.symlink_to("/nowhere/at/all")):
        block(tmp_path / "runs")
        with pytest.raises(SystemExit, match="error: can't start: "):
            train(Args(total_timesteps=512))
        (tmp_path / "runs").unlink()
    full = OSError(30, "Read-only file system")
    monkeypatch.setattr("pathlib.Path.write_text", lambda *args: (_ for _ in ()).throw(full))
    with pytest.raises(SystemExit, match="Read-only file system"):
        train(Args(total_timesteps=512))


def test_compiling_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"--compile: no C\+\+ compiler found"):
        train(Args(compile=True))


class Chosen(Exception):
    """What a run computes on."""


@pytest.mark.parametrize("name", [script[:-3] for script in OURS])
def test_devices(name, monkeypatch):
    """The CPU for vectors, and for pixels a GPU where there is one; each process has its own."""

    def choose(device):
        raise Chosen(device)

    script, gpus = importlib.import_module(name), [2]
    monkeypatch.setattr(script, "LOCAL_RANK", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus[0] > 0)
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    monkeypatch.setattr(script, "make_envs", lambda *_: choose("cpu"))  # what comes next

    def chosen(**given):
        with pytest.raises(Chosen) as found:
            script.train(script.Args(**given))
        return str(found.value)

    pixels = name in ("ppo_atari", "ppo_procgen")
    assert chosen() == ("cuda:1" if pixels else "cpu")
    assert chosen(device="cuda") == "cuda:1"
    assert chosen(device="cpu") == chosen(cuda=False) == chosen(device="cuda", cuda=False) == "cpu"
    for gpus[0], devices in (1, ["cuda", "auto"][: 1 + pixels]), (0, ["cuda"]):  # the second process has none
        for device in devices:
            with pytest.raises(SystemExit, match=r"^error: too few GPUs: --device cpu\?$"):
                script.train(script.Args(device=device))
        assert chosen(device="cpu") == "cpu"
    assert chosen() == "cpu"


def test_no_cuda_wins():
    assert command("--device", "cuda", "--no-cuda", "--total-timesteps", 512)[0] == 0


@pytest.mark.parametrize("script", [ppo, ppo_continuous])
def test_a_trained_policy_in_ones_own_code(script):
    """The README's five lines: the actions are what the environment takes, and the run stays as it is."""
    env_id = {ppo: "worlds:Shifted", ppo_continuous: "Pendulum-v1"}[script]
    settings = {"total_timesteps": 2048, "num_envs": 4, "num_steps": 16, "num_minibatches": 4, "learning_rate": 0.02}
    run_dir = script.train(script.Args(env_id=env_id, ent_coef=0.0, **settings))["run_dir"]
    before = digest(run_dir)

    code = re.search(r"```python\n(from ppo import load\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    for old, new in {"ppo": script.__name__, "runs/NAME": str(run_dir), "range(1000)": "range(100)"}.items():
        assert old in code
        code = code.replace(old, new)
    exec(code, names := {})
    agent, envs, obs = names["agent"], names["envs"], names["obs"]
    actions = agent.act(obs, greedy=True)
    assert np.array_equal(actions, agent.act(obs, greedy=True))
    if script is ppo:  # the second of two actions pays, where the last step did not end the episode
        rewards = [envs.step(actions)[1].item() for _ in range(10)]
        assert rewards == [0.0, 1.0] * 5 or rewards == [1.0, 0.0] * 5
    else:
        np.testing.assert_allclose(actions, agent.network(torch.tensor(obs))[0].detach())
    assert digest(run_dir) == before
