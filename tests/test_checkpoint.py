"""Saving, resuming, evaluating: nothing is lost, nothing is counted twice, and a checkpoint is only data."""

import hashlib
import json
import os
import pickle
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo
import ppo_continuous
import worlds
from conftest import ROOT
from ppo import Args, evaluate, load, load_checkpoint, train
from test_train import counting, parameters, scalars

SHORT = {"num_steps": 16, "total_timesteps": 640}  # 10 iterations of 64 steps


class Steps(worlds.Probe4):
    """Two steps, which the observation counts, and a reset: every 15 steps all is as at the start."""

    length = 2

    def observe(self):
        return np.array([self.t], np.float32)


class StepsContinuous(Steps):
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reward(self, action):
        return float(action[0])


gym.register("Steps", Steps)
gym.register("StepsContinuous", StepsContinuous)


def resume(run_dir, **given):
    return train(Args(resume=str(run_dir), **given))


def command(*args, script=ROOT / "ppo.py"):
    """The command without the seconds of a new process: exit code, standard output, standard error."""
    code, out, err = 0, StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [str(script), *map(str, args)])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):  # as Python does
                code = print(code, file=sys.stderr) or 1
    return code, out.getvalue(), err.getvalue()


def fails(*args, script=ROOT / "ppo.py"):
    """The one line that the command says on its way out."""
    code, out, err = command(*args, script=script)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def start(*args, code=None):
    """The command, or a driver around it, as a process of its own, in a group of its own."""
    words = [sys.executable, *(["-c", code] if code else [str(ROOT / "ppo.py")]), *map(str, args)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "PYTHONUNBUFFERED": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    started.append(subprocess.Popen(words, env=env, **pipes))
    return started[-1]


started = []  # processes, which no test leaves behind


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """However a test ends: nor what its processes have started."""
    yield
    while started:
        process = started.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition, process=None):
    """Until it holds; ten minutes are no more than the guard against a hang, however busy the machine is."""
    deadline = time.time() + 600
    while not (result := condition()):
        if process and process.poll() is not None and not (result := condition()):
            pytest.fail(f"in vain, process ended: {process.communicate()}")
        if time.time() > deadline:
            pytest.fail(f"in vain: {condition}")
        time.sleep(0.01)
    return result


def run_folder(process=None):
    """Where the only run is, as soon as it has saved."""
    return wait_for(lambda: next(iter(Path("runs").glob("*/checkpoint.pt")), None), process).parent


def logged_steps(run_dir):
    """All steps at which a run logged, in order and with what is there twice, as TensorBoard shows them."""
    events = EventAccumulator(str(run_dir), {"scalars": 0}).Reload()
    return [event.step for event in events.Scalars("charts/SPS")]


def digest(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def snapshots(monkeypatch, tmp_path):
    """Keeps a copy of each checkpoint that training saves."""
    copies, rename = [], os.replace

    def save(old, new):
        rename(old, new)
        copies.append(tmp_path / "snapshots" / f"{len(copies)}.pt")
        copies[-1].parent.mkdir(exist_ok=True)
        shutil.copy(new, copies[-1])

    monkeypatch.setattr(os, "replace", save)
    return copies


@pytest.fixture
def iterations_of_ten_seconds(monkeypatch):
    """By the clock of Python."""
    compute_gae, now = ppo.compute_gae, [1e9]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr(ppo, "compute_gae", lambda *args: now.append(now.pop() + 10) or compute_gae(*args))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of CartPole, for tests that leave it as it is or work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / train(Args(**SHORT))["run_dir"]


class TestResuming:
    @pytest.mark.parametrize("normalised", [False, True])
    @pytest.mark.parametrize("script", [ppo, ppo_continuous])
    def test_it_goes_on_as_if_it_had_never_stopped(self, script, normalised, snapshots):
        """Bit for bit, in a world where starting anew changes nothing: so all that matters is in the checkpoint."""
        env_id = "test_checkpoint:Steps" + "Continuous" * (script is ppo_continuous)
        settings = {"num_envs": 4, "num_steps": 15, "total_timesteps": 600, "num_minibatches": 4}
        settings |= {"anneal_clip": True, "anneal_ent": True, "ent_coef": 0.1}
        settings |= {"norm_obs": normalised, "norm_reward": normalised, "learning_rate": 0.01, "save_interval": 0}
        whole = script.train(script.Args(env_id=env_id, **settings))
        copy = Path("copy")
        copy.mkdir()
        shutil.copy(snapshots[5], copy / "checkpoint.pt")
        assert script.load_checkpoint(copy)["global_step"] == 360
        resumed = script.train(script.Args(resume=copy / "checkpoint.pt" if normalised else str(copy)))
        assert resumed["run_dir"] == copy
        assert resumed["global_step"] == whole["global_step"] == 600
        assert resumed["episodes"] == whole["episodes"]
        ours, theirs = (script.load_checkpoint(run["run_dir"]) for run in (whole, resumed))
        assert ours["agent"]["obs_stats.count"].item() == 400
        assert all(torch.equal(x, theirs["agent"][name]) for name, x in ours["agent"].items())
        for name, x in ours["optimizer"]["state"][0].items():
            assert torch.equal(x, theirs["optimizer"]["state"][0][name])
        first, second = scalars(whole), scalars(resumed)
        for name in set(first) - {"charts/SPS"}:
            assert second[name] == {step: value for step, value in first[name].items() if step > 360}

    def test_a_checkpoint_is_the_state_at_the_end(self, monkeypatch):
        result = counting(monkeypatch, norm_obs=True, norm_reward=True, learning_rate=0.01)
        saved = load_checkpoint(result["run_dir"])
        assert (saved["global_step"], saved["episodes"]) == (120, result["episodes"])
        assert saved["args"].env_id == "worlds:Counting" and saved["args"].norm_obs and saved["args"].gamma == 0.99
        for name, x in result["agent"].state_dict().items():
            assert torch.equal(saved["agent"][name], x)
        state = saved["optimizer"]["state"][0]
        assert state["step"] == 5 * 4 * 2
        assert state["exp_avg"].numel() == state["exp_avg_sq"].numel() == parameters(result).numel()
        assert state["exp_avg"].abs().max() > 0 and state["exp_avg_sq"].max() > 0

    def test_episodes_start_anew_from_seeds_of_their_own(self, finished, minibatches):
        """Not those of the beginning; and resuming twice from one checkpoint gives the same numbers."""
        train(Args(num_steps=16, total_timesteps=64))
        starts = {tuple(obs) for batch, _ in minibatches for obs in batch["obs"].tolist()}
        minibatches.clear()
        copies = [shutil.copytree(finished, f"copy{i}") for i in range(2)]
        runs = [resume(copy, total_timesteps=960) for copy in copies]
        assert torch.equal(parameters(runs[0]), parameters(runs[1]))
        assert runs[0]["episodes"] == runs[1]["episodes"]
        again = {tuple(obs) for batch, _ in minibatches[:16] for obs in batch["obs"].tolist()}
        assert len(again) > 40 and not again & starts

    def test_counters_curves_and_schedules_go_on(self):
        first = train(Args(**SHORT, learning_rate=0.01))
        before = scalars(first)
        second = resume(first["run_dir"], total_timesteps=1280)
        assert second["run_dir"] == first["run_dir"]
        assert len(list(Path("runs").iterdir())) == 1
        logged = scalars(second)
        assert logged_steps(second["run_dir"]) == list(range(64, 1281, 64))  # no gap, no point twice
        rates = [0.01 * (1 - i / 10) for i in range(10)] + [0.01 * (1 - i / 20) for i in range(10, 20)]
        assert list(logged["charts/learning_rate"].values()) == pytest.approx(rates)
        for step, value in before["losses/value_loss"].items():
            assert logged["losses/value_loss"][step] == value
        assert json.loads((first["run_dir"] / "args.json").read_text())["total_timesteps"] == 1280
        assert len(second["episodes"]) > len(first["episodes"])
        assert second["episodes"][: len(first["episodes"])] == first["episodes"]

    def test_points_after_the_checkpoint_are_replaced(self, snapshots):
        """A killed run has logged more than it saved: that part of its curves is run, and drawn, again."""
        run_dir = train(Args(**SHORT, save_interval=0))["run_dir"]
        shutil.copy(snapshots[3], run_dir / "checkpoint.pt")
        before = scalars({"run_dir": run_dir})["losses/policy_loss"]
        after = scalars(resume(run_dir))["losses/policy_loss"]
        assert logged_steps(run_dir) == list(range(64, 641, 64))
        assert [step for step in after if after[step] != before[step]] == list(range(320, 641, 64))

    def test_speed_is_that_of_the_session(self, finished, iterations_of_ten_seconds):
        """Steps of all environments, over the time since it began."""
        speeds = scalars(train(Args(**SHORT)))["charts/SPS"]
        assert speeds == pytest.approx(dict.fromkeys(range(64, 641, 64), 6.4))
        copy = shutil.copytree(finished, "copy")
        speeds = scalars(resume(copy, total_timesteps=832))["charts/SPS"]
        assert [speeds[step] for step in (704, 768, 832)] == pytest.approx([6.4] * 3)

    def test_progress_is_that_of_the_run(self, finished, capsys):
        capsys.readouterr()
        resume(shutil.copytree(finished, "copy"), total_timesteps=960)
        bars = capsys.readouterr().err.split("\r")
        assert "640/960 [" in bars[1] and "960/960 [" in bars[-1]

    @pytest.mark.parametrize("how", ["command line", "notebook", "notebook, Path"])
    def test_what_is_given_holds_and_the_rest_is_as_saved(self, how):
        """Also what is given back its default."""
        settings = {"num_steps": 16, "gamma": 0.9, "anneal_lr": False, "learning_rate": 0.01, "norm_obs": True}
        run_dir = train(Args(total_timesteps=64, capture_video=True, seed=3, **settings))["run_dir"]
        before = load_checkpoint(run_dir)["args"]
        given = {"num_envs": 8, "total_timesteps": 320, "learning_rate": 2.5e-4, "capture_video": False, "seed": 1}
        if how == "command line":
            words = "--num-envs 8 --total-timesteps 320 --learning-rate 2.5e-4 --no-capture-video --seed 1"
            assert command("--resume", run_dir, *words.split())[0] == 0
        else:
            train(Args(resume=run_dir if "Path" in how else str(run_dir), **given))
        assert load_checkpoint(run_dir)["args"] == replace(before, **given)
        assert scalars({"run_dir": run_dir})["charts/learning_rate"] == pytest.approx(
            {64: 0.01, 192: 2.5e-4, 320: 2.5e-4}
        )
        assert len(list(run_dir.glob("videos/*"))) == 1

    def test_a_complete_run(self, finished):
        before = digest(finished)
        assert "--total-timesteps has no room for 64 steps after the 640 that are done" in fails("--resume", finished)
        assert digest(finished) == before

    @pytest.mark.parametrize(
        ("interval", "saves"),
        [(0.0, range(64, 641, 64)), (25.0, (64, 256, 448, 640)), (30.0, (64, 256, 448, 640)), (1000.0, (64, 640))],
    )
    def test_how_often_to_save(self, interval, saves, snapshots, iterations_of_ten_seconds, monkeypatch):
        """After the first iteration, so many seconds after the last save, and at the end.

        The curves are on disk first, so that a kill between the two leaves no gap.
        """
        flushed, flush = [], ppo.SummaryWriter.flush
        monkeypatch.setattr(ppo.SummaryWriter, "flush", lambda x: flushed.append(len(snapshots)) or flush(x))
        train(Args(**SHORT, save_interval=interval))
        assert [load_checkpoint(path)["global_step"] for path in snapshots] == list(saves)
        assert flushed[: len(snapshots)] == list(range(len(snapshots)))


class TestKilling:
    def test_at_any_moment(self):
        """SIGKILL again and again: always a whole checkpoint, and in the end one curve without gap or repetition."""
        process = start("--total-timesteps", 10**9, "--num-steps", 16, "--save-interval", 0)
        folder, rng = run_folder(process), random.Random(1)
        for _ in range(2):
            saved = load_checkpoint(folder)["global_step"]
            wait_for(lambda before=saved: load_checkpoint(folder)["global_step"] >= before + 640, process)
            time.sleep(0.1 * rng.random())
            process.kill()
            process.communicate(timeout=600)
            process = start("--resume", folder)
        process.kill()  # while it starts
        process.communicate(timeout=600)
        total = load_checkpoint(folder)["global_step"] + 640
        assert total >= 3 * 640
        process = start("--resume", folder, "--total-timesteps", total)  # files of one second are sorted by processes
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert f"Done: {total:,} steps" in out
        assert logged_steps(folder) == list(range(64, total + 1, 64))

    @pytest.mark.parametrize("moment", ["half written", "before the rename"])
    def test_in_the_middle_of_a_save(self, moment):
        code = f"""
import os, signal, ppo
moment, saves, fsync, rename = {moment!r}, [], os.fsync, os.replace
def die(): os.kill(os.getpid(), signal.SIGKILL)
def broken_fsync(fd):
    saves.append(fd)
    if len(saves) == 5 and moment == "half written":
        os.ftruncate(fd, 1000)
        die()
    fsync(fd)
def broken_rename(old, new):
    if len(saves) == 5 and moment == "before the rename": die()
    rename(old, new)
os.fsync, os.replace = broken_fsync, broken_rename
ppo.train(ppo.Args(total_timesteps=640, num_steps=16, save_interval=0))
"""
        process = start(code=code)
        process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL
        folder = run_folder()
        assert load_checkpoint(folder)["global_step"] == 256
        time.sleep(1)  # event files are sorted by the second in which they began, and of these runs, by chance then
        resume(folder)
        assert logged_steps(folder) == list(range(64, 641, 64))
        assert sorted(path.name.split(".")[-1] for path in folder.glob("[ac]*")) == ["json", "pt"]

    def test_the_last_words_are_said_before_another_signal_can_end_it(self):
        """When training returns, signals do what they did before; here, one comes at once."""
        code = "import os, ppo; ppo.train(ppo.Args(total_timesteps=512)); os.kill(os.getpid(), 15)"
        process = start(code=code)
        out, err = process.communicate(timeout=600)
        assert process.returncode == -signal.SIGTERM, err
        assert out.startswith("Done: 512 steps") and out.endswith(" --total-timesteps 1024\n")

    @pytest.mark.parametrize(
        ("signum", "exit_code", "vectorization"),
        [(signal.SIGINT, 130, "async"), (signal.SIGTERM, 143, "auto")],
    )
    def test_signals_save_and_say_how_to_go_on(self, signum, exit_code, vectorization):
        """As from a terminal: Ctrl-C reaches the processes of the environments, too."""
        process = start("--total-timesteps", 10**9, "--vectorization", vectorization)
        folder = run_folder(process)
        os.killpg(process.pid, signum) if signum == signal.SIGINT else process.send_signal(signum)
        out, err = process.communicate(timeout=600)
        assert process.returncode == exit_code
        assert "Traceback" not in err
        saved = load_checkpoint(folder)
        assert saved["global_step"] >= 1024  # the iteration in hand is finished
        assert f"Stopped: {saved['global_step']:,} steps" in out
        assert f"--resume {folder}\n" in out
        assert logged_steps(folder) == list(range(512, saved["global_step"] + 1, 512))

    def test_workers_that_die_or_raise_end_the_run(self):
        """Whichever of two it is, and without waiting for the other, also while they are made; the process then ends.

        Those that are well are closed, and those that were there before stay.
        """
        code = """
import gymnasium, ppo
before = gymnasium.make_vec("CartPole-v1", 2, "async")
for env_id, seed in ("Dying", 1), ("Dying", 2), ("RaisingPercent", 1), ("Unmakeable", 1), ("Simulator", 1):
    print(env_id, hash((seed, 0, 0)) % 2)  # a seed for the environments that is even, or odd
    try:
        ppo.train(ppo.Args(env_id=f"worlds:{env_id}", vectorization="async", num_envs=2, seed=seed))
    except (Exception, SystemExit) as error:
        print(repr(error))
        last = error  # as a notebook keeps it, with all that it was about
print(before.reset()[0].shape)
before.close()
"""
        process = start(code=code)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        said = out.splitlines()
        assert {said[0], said[2]} == {"Dying 0", "Dying 1"} and said[1] == said[3] == "EOFError()"
        assert len(said) == 11 and all("Error" in line for line in said[5:8:2])
        assert "no longer finite" in said[9] and said[10] == "(2, 4)"
        assert Path("closed").read_text() == "closed\n" * 3  # and the one that shows its spaces
        assert "another exception" not in err

    def test_the_third_signal_ends_at_once(self):
        """What does not get to the end of an iteration can be stopped; the process is then as it was before."""
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            train(Args(env_id="worlds:Impatient"))
        assert end.value.code == 143 and worlds.Impatient.heard == 2
        assert signal.getsignal(signal.SIGTERM) == before and ppo.stop_signals == []

    def test_no_one_reads_the_progress(self, monkeypatch):
        """As with `2>&1 | head`: the iteration before is saved."""

        def broken(*args):
            raise BrokenPipeError

        monkeypatch.setattr(ppo.tqdm, "update", broken)
        with pytest.raises(BrokenPipeError):
            train(Args(**SHORT))
        assert load_checkpoint(run_folder())["global_step"] == 64


class TestEvaluating:
    def test_mean_and_spread(self, finished):
        """Of a folder or of a file, without a change to either; the same for the same seed."""
        before = digest(finished)
        agent, envs = load(finished)
        assert envs.num_envs == 1
        results = evaluate(agent, load_checkpoint(finished)["args"], 7)
        returns = [episode_return for episode_return, _ in results]
        assert len(set(returns)) > 1 and all(length == episode_return for episode_return, length in results)
        expected = f"7 episodes: return {np.mean(returns):.2f} ± {np.std(returns):.2f}\n"
        for source in (finished, finished / "checkpoint.pt"):
            assert command("--evaluate", source, "--eval-episodes", 7) == (0, expected, "")
        assert command("--evaluate", finished, "--eval-episodes", 7, "--seed", 5)[1] != expected
        assert digest(finished) == before
        assert list(Path().iterdir()) == []

    def test_returns_are_those_of_whole_episodes(self, monkeypatch):
        """Counting: episode k of environment 0 pays 100 * k + step, for 2 + k % 4 steps. At most max_length of them."""
        run_dir = counting(monkeypatch)["run_dir"]
        agent, args = load(run_dir)[0], load_checkpoint(run_dir)["args"]
        for max_length in (10**9, 3):
            monkeypatch.setattr(worlds.Counting, "created", 0)
            lengths = [min(n, max_length) for n in (2, 3, 4, 5, 2, 3)]
            results = evaluate(agent, args, 6, max_length=max_length)
            assert results == [(100 * k * n + n * (n - 1) / 2, n) for k, n in enumerate(lengths)]

    def test_long_episodes(self):
        """Are played to their end; films of training are cut."""
        gym.register("Long", gym.spec("MountainCar-v0").entry_point, max_episode_steps=2500)
        settings = {"env_id": "Long", "num_steps": 16, "total_timesteps": 64}
        agent = train(Args(**settings))["agent"]
        assert [length for _, length in evaluate(agent, Args(**settings), 2)] == [2500, 2500]

    def test_an_interrupted_episode_does_not_count(self, monkeypatch):
        """Nor is there another one."""
        run_dir = counting(monkeypatch)["run_dir"]
        agent, calls, act = load(run_dir)[0], [], ppo.Agent.act
        monkeypatch.setattr(ppo, "stop_signals", [])

        def interrupted(*args, **kwargs):
            calls.append(len(calls))
            ppo.stop_signals.extend([signal.SIGINT] * (len(calls) == 7))  # of 2 + 3 + 4 steps
            return act(*args, **kwargs)

        monkeypatch.setattr(ppo.Agent, "act", interrupted)
        monkeypatch.setattr(worlds.Counting, "created", 0)
        results = evaluate(agent, load_checkpoint(run_dir)["args"], 9)
        assert [length for _, length in results] == [2, 3] and len(calls) == 7

    def test_the_policy_is_the_trained_one(self):
        """Actions are sampled from it, with its masks, its first choice, and several components."""
        settings = {"num_steps": 16, "learning_rate": 0.02, "ent_coef": 0.0, "total_timesteps": 2048}
        for world, best in {"Shifted": 1.0, "Pairs": 2.0, "Switches": 1.0, "Masked": 1.2}.items():
            args = Args(env_id=f"worlds:{world}", **settings)
            results = evaluate(load(train(args)["run_dir"])[0], args, 50)
            assert np.mean(results, axis=0)[0] > 0.9 * best

    def test_sampled_and_greedy(self):
        """Of an agent that has learned nothing: sampled actions are both, and others for another seed."""
        args = Args(env_id="worlds:Probe4", num_steps=16, total_timesteps=64, learning_rate=0.0)
        run_dir = train(args)["run_dir"]
        agent = load(run_dir)[0]
        first, second = (evaluate(agent, replace(args, seed=seed), 60) for seed in (1, 2))
        assert {episode_return for episode_return, _ in first} == {-1.0, 1.0}
        assert first != second
        likely = agent.actor(torch.zeros(1)).argmax().item()
        _, out, _ = command("--evaluate", run_dir, "--eval-greedy", "--eval-episodes", 60)
        assert out == f"60 episodes: return {2 * likely - 1:.2f} ± 0.00\n"

    def test_each_episode_starts_elsewhere(self):
        """Probe2 pays what chance shows at the start, in one step. The command prints returns."""
        args = Args(env_id="worlds:Probe2", num_steps=16, total_timesteps=64)
        result = train(args)
        results = evaluate(result["agent"], args, 20)
        returns = [episode_return for episode_return, _ in results]
        assert {*results} == {(-1.0, 1), (1.0, 1)}
        _, out, _ = command("--evaluate", result["run_dir"], "--eval-episodes", 20)
        assert out == f"20 episodes: return {np.mean(returns):.2f} ± {np.std(returns):.2f}\n"

    @pytest.mark.parametrize("normalised", [True, False])
    def test_normalisation_is_the_saved_one_and_stays(self, normalised, monkeypatch):
        """Without it, the policy sees everything as it is."""
        run_dir = counting(monkeypatch, norm_obs=normalised, norm_reward=True)["run_dir"]
        agent, seen = load(run_dir)[0], []
        agent.actor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy().copy()))
        monkeypatch.setattr(worlds.Counting, "created", 0)
        evaluate(agent, load_checkpoint(run_dir)["args"], 2)
        expected = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 1, 2]])
        saved = load_checkpoint(run_dir)["agent"]
        if normalised:
            mean, var = (saved[f"obs_stats.{name}"].numpy() for name in ("mean", "var"))
            assert (mean[1:] > 0.5).all()
            expected = np.clip((expected - mean) / np.sqrt(var + 1e-8), -10, 10)
        np.testing.assert_allclose(np.concatenate(seen), expected, rtol=1e-5)
        assert all(torch.equal(saved[name], x) for name, x in agent.state_dict().items())

    def test_ctrl_c(self, finished):
        """Ends with what has been played so far."""
        process = start("--evaluate", finished, "--eval-episodes", 10**5, "--capture-video")
        wait_for(lambda: len(list(Path("videos").glob("*/*.mp4"))) >= 2, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
        assert " episodes: return " in out and "Traceback" not in err

    def test_what_training_needed_is_not_needed(self, finished, monkeypatch):
        """Compiler, tracking, films."""
        data = torch.load(finished / "checkpoint.pt", weights_only=True)
        data["args"] |= {"compile": True, "track": True, "capture_video": True}
        torch.save(data, "elsewhere.pt")
        monkeypatch.setenv("PATH", "nowhere")
        assert command("--evaluate", "elsewhere.pt")[::2] == (0, "")
        assert os.listdir() == ["elsewhere.pt"]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize("option", ["--resume", "--evaluate"])
class TestForeignFiles:
    def refused(self, option, saved=None, raw=None):
        """A checkpoint with these contents."""
        Path("odd").mkdir(exist_ok=True)
        Path("odd/checkpoint.pt").write_bytes(raw) if raw is not None else torch.save(saved, "odd/checkpoint.pt")
        more = ("--total-timesteps", 1280) if option == "--resume" else ()
        assert "odd/checkpoint.pt is missing, damaged, or of another" in fails(option, "odd", *more)
        assert os.listdir() == ["odd"] and os.listdir("odd") == ["checkpoint.pt"]

    def test_missing(self, option):
        Path("empty").mkdir()
        for place in ("nowhere", "runs/nothing", "empty"):
            assert f"{place}" in (error := fails(option, place)) and "is missing" in error
        assert os.listdir() == ["empty"]

    def test_truncated(self, option, finished):
        data = (finished / "checkpoint.pt").read_bytes()
        for length in (0, 1, 100, len(data) // 2, len(data) - 1):
            self.refused(option, raw=data[:length])

    def test_hostile(self, option, finished):
        """Loading never runs what a file asks for."""
        saved = torch.load(finished / "checkpoint.pt", weights_only=True)
        self.refused(option, raw=pickle.dumps(Hostile()))
        for data in (Hostile(), saved | {"agent": Hostile()}, saved | {"args": Hostile()}):
            self.refused(option, data)

    def test_foreign(self, option, finished):
        """Not of this script, or of another network or environment than it makes now."""
        with zipfile.ZipFile("zip", "w") as archive:
            archive.writestr("data", "hello")
        for raw in (b"hello", Path("zip").read_bytes()):
            Path("zip").unlink(missing_ok=True)
            self.refused(option, raw=raw)
        saved = torch.load(finished / "checkpoint.pt", weights_only=True)
        other = saved["args"] | {"buffer_size": 10**6}
        for data in ([1, 2, 3], {"model": torch.zeros(3)}, saved | {"args": other}, saved | {"agent": {}}):
            self.refused(option, data)
        self.refused(option, saved | {"args": saved["args"] | {"env_id": "Acrobot-v1"}})
        self.refused(option, saved | {"agent": saved["agent"] | {"actor.0.weight": torch.zeros(64, 6)}})
        if option == "--resume":
            self.refused(option, saved | {"optimizer": {}})
