"""Saving, resuming, evaluating: nothing is lost, nothing is counted twice, and a checkpoint is only data."""

import hashlib
import io
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

import ppo
import worlds
from conftest import ROOT, make_agent
from ppo import Args, evaluate, load_checkpoint, parse_args, train
from test_train import counting, parameters, scalars

SHORT = {"num_steps": 16, "total_timesteps": 640}  # 10 iterations of 64 steps


def resume(run_dir, *args):
    return train(parse_args(["--resume", str(run_dir), *args]))


def start(*args, code=None, **kwargs):
    """The command, or a driver around it, as a process of its own."""
    command = [sys.executable, *(["-c", code] if code else [str(ROOT / "ppo.py")]), *map(str, args)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **pipes, **kwargs)


def wait_for(condition):
    """Until it holds; a minute is the guard against a hang."""
    deadline = time.time() + 60
    while not (result := condition()):
        assert time.time() < deadline
        time.sleep(0.01)
    return result


def logged_steps(run_dir):
    """All steps at which a run logged, in order and with what is there twice, as TensorBoard shows them."""
    events = EventAccumulator(str(run_dir), {"scalars": 0}).Reload()
    return [event.step for event in events.Scalars("charts/SPS")]


def run_folder():
    return wait_for(lambda: next(iter(Path("runs").glob("*/checkpoint.pt")), None)).parent


def fails(capsys, *args):
    """What the command says on its way out with code 2."""
    with pytest.raises(SystemExit) as stopped:
        arguments = parse_args([str(arg) for arg in args])
        evaluate(arguments) if arguments.evaluate else train(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ppo.py: error: ") and error.count("\n") == 1
    return error


@pytest.fixture
def snapshots(monkeypatch, tmp_path):
    """Keeps a copy of each checkpoint that training saves."""
    copies, save_checkpoint = [], ppo.save_checkpoint

    def save(data, run_dir):
        save_checkpoint(data, run_dir)
        copies.append(tmp_path / "snapshots" / f"{len(copies)}.pt")
        copies[-1].parent.mkdir(exist_ok=True)
        shutil.copy(run_dir / "checkpoint.pt", copies[-1])

    monkeypatch.setattr(ppo, "save_checkpoint", save)
    return copies


class TestResuming:
    @pytest.mark.parametrize("normalised", [False, True])
    def test_it_goes_on_as_if_it_had_never_stopped(self, snapshots, normalised):
        """Bit for bit, in a world where starting anew changes nothing: so all that matters is in the checkpoint."""
        settings = {"norm_obs": normalised, "norm_reward": normalised, "learning_rate": 0.001, "save_interval": 0}
        whole = train(Args(env_id="worlds:Probe4", anneal_clip=True, **SHORT, **settings))
        copy = Path("copy")
        copy.mkdir()
        shutil.copy(snapshots[6], copy / "checkpoint.pt")
        assert load_checkpoint("copy")["iteration"] == 6
        resumed = resume(copy)
        assert resumed["global_step"] == whole["global_step"] == 640
        assert torch.equal(parameters(resumed), parameters(whole))
        assert resumed["episodes"] == whole["episodes"]
        first, second = scalars(whole), scalars(resumed)
        for name in set(first) - {"charts/SPS"}:
            assert second[name] == {step: value for step, value in first[name].items() if step > 6 * 64}

    def test_a_checkpoint_holds_everything(self, monkeypatch):
        """Counters, Adam's state, statistics, generators, episodes, arguments."""
        result = counting(monkeypatch, norm_obs=True, norm_reward=True, learning_rate=0.01)
        saved = load_checkpoint(str(result["run_dir"]))
        assert (saved["iteration"], saved["global_step"]) == (5, 120)
        assert saved["args"].env_id == "worlds:Counting" and saved["args"].norm_obs
        agent = make_agent(ppo, 3, Discrete(2))
        agent.load_state_dict(saved["agent"])
        assert torch.equal(parameters({"agent": agent}), parameters(result))
        mean, square, step = saved["adam"]
        assert step == 5 * 4 * 2 and mean.abs().max() > 0 and square.max() > 0
        assert mean.numel() == square.numel() == parameters(result).numel()
        assert saved["stats"]["obs"]["count"] == 3 * 41  # observations, the first included
        np.testing.assert_array_equal(saved["stats"]["obs"]["mean"], result["stats"]["obs"].mean)
        assert saved["stats"]["return"]["count"] < 3 * 40  # rewards, but those of reset steps
        assert saved["episodes"] == result["episodes"]
        assert len(saved["torch_rng"]) > 1000 and saved["numpy_rng"]["state"]["state"] > 0

    def test_statistics_go_on(self, monkeypatch):
        """Those of observations, too: what was seen before counts, and the first observations of new episodes."""
        first = counting(monkeypatch, norm_obs=True)
        before = vars(first["stats"]["obs"]).copy()
        monkeypatch.setattr(worlds.Counting, "created", 0)
        after = resume(first["run_dir"], "--total-timesteps", "168")["stats"]["obs"]
        assert (before["count"], after.count) == (3 * 41, 3 * 41 + 3 * 17)
        new = (after.mean * after.count - before["mean"] * before["count"]) / (3 * 17)
        np.testing.assert_allclose(new[0], 1)  # environments 0, 1, 2, equally often
        assert 0 < new[1] < before["mean"][1]  # their episodes count from 0 again

    def test_episodes_start_anew_from_seeds_of_their_own(self, snapshots, minibatches):
        """Not those of the beginning; and resuming twice from one checkpoint gives the same numbers."""
        settings = {"update_epochs": 1, "num_minibatches": 1}
        first = train(Args(**SHORT, **settings))["run_dir"]
        starts = minibatches[0][0]["obs"].tolist()
        copies = [shutil.copytree(first, f"copy{i}") for i in range(2)]
        minibatches.clear()
        runs = [resume(copy, "--total-timesteps", "960") for copy in copies]
        assert torch.equal(parameters(runs[0]), parameters(runs[1]))
        assert runs[0]["episodes"] == runs[1]["episodes"]
        assert len(minibatches) == 10
        again = minibatches[0][0]["obs"].tolist()
        assert not {tuple(obs) for obs in again} & {tuple(obs) for obs in starts}

    def test_counters_curves_and_schedules_go_on(self):
        first = train(Args(**SHORT, learning_rate=0.01))
        before = scalars(first)
        second = resume(first["run_dir"], "--total-timesteps", "1280")
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
        shutil.copy(snapshots[4], run_dir / "checkpoint.pt")
        before = scalars({"run_dir": run_dir})["losses/policy_loss"]
        after = scalars(resume(run_dir))["losses/policy_loss"]
        assert logged_steps(run_dir) == list(range(64, 641, 64))
        assert [step for step in after if after[step] != before[step]] == list(range(320, 641, 64))

    def test_speed_is_that_of_the_session(self, monkeypatch):
        """Steps of earlier sessions don't count as done in the seconds of this one."""
        first = train(Args(num_steps=2, total_timesteps=4000, num_minibatches=1, update_epochs=1))
        second = scalars(resume(first["run_dir"], "--total-timesteps", "4008"))["charts/SPS"]
        assert second[4008] < 2 * second[4000]

    def test_other_arguments(self, capsys):
        """Those that may change do; the others are refused by name."""
        run_dir = train(Args(**SHORT))["run_dir"]
        may = [
            "--total-timesteps",
            "704",
            "--stop-return",
            "1e6",
            "--save-interval",
            "5",
            "--device",
            "cpu",
            "--no-cuda",
        ]
        assert resume(run_dir, *may)["global_step"] == 704
        for name, value in {
            "seed": 2,
            "env-id": "Acrobot-v1",
            "num-envs": 8,
            "num-steps": 32,
            "learning-rate": 0.1,
            "gamma": 0.5,
            "exp-name": "other",
        }.items():
            error = fails(capsys, "--resume", run_dir, "--total-timesteps", 1280, f"--{name}", value)
            assert f"--{name} {value} " in error
        error = fails(capsys, "--resume", run_dir, "--total-timesteps", 1280, "--norm-obs")
        assert "--norm-obs True" in error
        assert resume(run_dir, "--seed", "1", "--num-envs", "4", "--total-timesteps", "768")["global_step"] == 768

    def test_a_complete_run(self, capsys):
        run_dir = train(Args(**SHORT))["run_dir"]
        assert "has done all its 640 steps: raise --total-timesteps" in fails(capsys, "--resume", run_dir)

    def test_the_checkpoint_file_names_its_run_too(self):
        run_dir = train(Args(**SHORT))["run_dir"]
        assert resume(run_dir / "checkpoint.pt", "--total-timesteps", "704")["run_dir"] == run_dir

    @pytest.mark.parametrize(("interval", "saves"), [(0.0, 11), (1000.0, 2)])
    def test_how_often_to_save(self, interval, saves, snapshots):
        """At the start and at the end, and in between after so many seconds: 0 is after each iteration."""
        run_dir = train(Args(**SHORT, save_interval=interval))["run_dir"]
        assert len(snapshots) == saves
        resume(run_dir, "--total-timesteps", "704", "--save-interval", "1000")
        assert len(snapshots) == saves + 1  # what is resumed need not be saved at once

    def test_seconds_count_from_the_last_save(self, snapshots, monkeypatch):
        """By a clock that runs a second each time that it is looked at."""
        monkeypatch.setattr("time.time", itertools.count(10**9).__next__)
        train(Args(**SHORT, save_interval=15))
        assert 3 <= len(snapshots) <= 7

    def test_curves_go_on_in_a_file_that_is_read_after_the_others(self, tmp_path):
        """By its name: TensorBoard sorts by second, then by machine and process."""
        for second in range(3):
            Path(f"events.out.tfevents.{int(time.time()) + second}.zzz.1.0").touch()
        ppo.open_curves(tmp_path).close()
        *_, last = sorted(path.name for path in tmp_path.iterdir())
        assert not last.endswith(".zzz.1.0")

    def test_curves_are_on_disk_before_the_checkpoint(self, monkeypatch):
        """So a kill between the two leaves no gap."""
        calls, save_checkpoint, flush = [], ppo.save_checkpoint, ppo.SummaryWriter.flush
        monkeypatch.setattr(ppo, "save_checkpoint", lambda *args: calls.append("save") or save_checkpoint(*args))
        monkeypatch.setattr(ppo.SummaryWriter, "flush", lambda self: calls.append("flush") or flush(self))
        train(Args(**SHORT, save_interval=0))
        assert calls[:24] == ["flush", "save"] * 11 + calls[22:24]

    @pytest.mark.parametrize(
        "options",
        [
            ("--track",),
            ("--wandb-project-name", "other"),
            ("--wandb-entity", "us"),
            ("--capture-video",),
            ("--compile",),
            ("--no-cuda",),
            ("--device", "cpu"),
            ("--no-torch-deterministic",),
            ("--save-interval", "7"),
            ("--total-timesteps", "9999"),
            ("--stop-return", "3"),
            ("--vectorization", "sync"),
        ],
    )
    def test_what_may_change(self, options):
        run_dir = train(Args(**SHORT))["run_dir"]
        name = options[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        before, after = (asdict(parse_args(["--resume", str(run_dir), *more])) for more in ((), options))
        assert {key for key in before if before[key] != after[key]} == {name}


class TestKilling:
    def test_at_any_moment(self):
        """SIGKILL again and again: always a whole checkpoint, and in the end one curve without gap or repetition."""
        args = ("--total-timesteps", 64 * 150, "--num-steps", 16, "--save-interval", 0)
        process, kills, rng = start(*args), 0, random.Random(1)
        folder = run_folder()
        while kills < 4:
            saved = load_checkpoint(str(folder))["iteration"]
            wait_for(lambda before=saved: load_checkpoint(str(folder))["iteration"] >= before + 10)
            time.sleep(0.1 * rng.random())
            process.kill()
            process.communicate()
            kills += 1
            assert saved + 10 <= load_checkpoint(str(folder))["iteration"] < 150
            process = start("--resume", folder)
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert "9,600/9,600 steps" in out
        assert logged_steps(folder) == list(range(64, 9601, 64))

    @pytest.mark.parametrize("moment", ["half written", "before the rename", "after the rename"])
    def test_in_the_middle_of_a_save(self, moment):
        code = f"""
import os, signal, sys, ppo
moment, saves = {moment!r}, 0
fsync, rename = os.fsync, os.replace
def die(): os.kill(os.getpid(), signal.SIGKILL)
def broken_fsync(fd):
    global saves
    saves += 1
    if saves == 5 and moment == "half written":
        os.ftruncate(fd, 1000)
        die()
    fsync(fd)
def broken_rename(old, new):
    if saves == 5 and moment == "before the rename": die()
    rename(old, new)
    if saves == 5: die()
os.fsync, os.replace = broken_fsync, broken_rename
ppo.train(ppo.parse_args())
"""
        process = start("--total-timesteps", 640, "--num-steps", 16, "--save-interval", 0, code=code)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        folder = run_folder()
        assert load_checkpoint(str(folder))["iteration"] == (4 if moment == "after the rename" else 3)
        resume(folder)
        assert logged_steps(folder) == list(range(64, 641, 64))
        assert not (folder / "checkpoint.pt.new").exists()

    def test_a_second_signal_ends_at_once(self):
        process = start("--env-id", "worlds:Sleepy", "--total-timesteps", 10**9)
        run_folder()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None  # the iteration in hand has a long way to go
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT

    @pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("vectorization", ["auto", "async"])
    def test_signals_save_and_say_how_to_go_on(self, signum, exit_code, vectorization):
        """As from a terminal: Ctrl-C reaches the processes of the environments, too."""
        args = ("--total-timesteps", 10**9, "--vectorization", vectorization)
        process = start(*args, start_new_session=True)
        folder = run_folder()
        events = next(folder.glob("events*"))
        wait_for(lambda: events.stat().st_size > 3000)  # it trains
        if signum == signal.SIGINT:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (exit_code, "")
        saved = load_checkpoint(str(folder))
        assert saved["global_step"] > 0
        assert f"Stopped: {saved['global_step']:,} steps" in out
        assert f"--resume {folder}\n" in out
        assert logged_steps(folder) == list(range(512, saved["global_step"] + 1, 512))

    def test_a_disk_that_takes_no_more(self):
        """Training goes on to the end, and says loudly that it can't save; what was saved stays."""
        code = """
import resource, ppo
save_checkpoint, saves = ppo.save_checkpoint, []
def save(*args):
    saves.append(args)
    if len(saves) == 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
    if len(saves) == 8:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save_checkpoint(*args)
ppo.save_checkpoint = save
result = ppo.train(ppo.parse_args())
assert ppo.load_checkpoint(str(result["run_dir"]))["iteration"] == 10, "it saves again once there is room"
from test_checkpoint import logged_steps
assert logged_steps(result["run_dir"])[-3:] == [512, 576, 640], "and logs again"
"""
        process = start("--total-timesteps", 640, "--num-steps", 16, "--save-interval", 0, code=code)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "Done: 640 steps" in out
        assert err.count("WARNING: ") == 3
        assert "WARNING: training goes on, but can't be saved at step 256: " in err

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_curves_that_can_not_be_written_any_more(self, monkeypatch, capsys):
        """Training ends as usual, with a checkpoint."""
        calls, write = [], RecordWriter.write

        def full(*args):
            calls.append(args)
            if len(calls) > 5:
                raise OSError(28, "No space left on device")
            write(*args)

        monkeypatch.setattr(RecordWriter, "write", full)
        result = train(Args(**SHORT, save_interval=0))
        assert load_checkpoint(str(result["run_dir"]))["iteration"] == 10
        printed = capsys.readouterr()
        assert "Done: 640 steps" in printed.out and "No space left on device" in printed.err

    def test_what_was_saved_stays_when_saving_fails(self, monkeypatch, capsys):
        calls, fsync = [], os.fsync

        def full(fd):
            calls.append(fd)
            if len(calls) > 4:
                raise OSError(28, "No space left on device")
            fsync(fd)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            result = train(Args(**SHORT, save_interval=0))
        assert result["global_step"] == 640
        assert load_checkpoint(str(result["run_dir"]))["iteration"] == 3
        assert not (result["run_dir"] / "checkpoint.pt.new").exists()  # which would take what space there is
        assert "No space left on device" in capsys.readouterr().err
        assert resume(result["run_dir"])["global_step"] == 640


def digest(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


class TestEvaluating:
    def test_mean_and_spread(self, capsys):
        """Of a folder or of a file, without a change to either; the same for the same seed."""
        run_dir = train(Args(**SHORT))["run_dir"]
        before = digest(run_dir)
        results = []
        for source in (run_dir, run_dir / "checkpoint.pt"):
            capsys.readouterr()
            results.append(evaluate(parse_args(["--evaluate", str(source), "--eval-episodes", "7"])))
            returns = [episode_return for episode_return, _ in results[-1]]
            out = capsys.readouterr().out
            assert "7 episodes of CartPole-v1 with the policy of step 640" in out
            assert f"return {np.mean(returns):.2f} ± {np.std(returns):.2f}" in out
            assert f"({min(returns):.2f} to {max(returns):.2f})" in out
            assert f": length {np.mean(results[-1], axis=0)[1]:.1f}, " in out
        assert results[0] == results[1] and len(results[0]) == 7 and len(set(results[0])) > 1
        assert digest(run_dir) == before
        other = evaluate(parse_args(["--evaluate", str(run_dir), "--eval-episodes", "7", "--seed", "5"]))
        assert other != results[0]
        assert sorted(path.name for path in Path().iterdir()) == ["runs"]

    def test_returns_are_those_of_whole_episodes(self, monkeypatch):
        """Counting: episode k of environment 0 pays 100 * k + step, for 2 + k % 4 steps."""
        run_dir = counting(monkeypatch)["run_dir"]
        monkeypatch.setattr(worlds.Counting, "created", 0)
        results = evaluate(parse_args(["--evaluate", str(run_dir), "--eval-episodes", "6"]))
        lengths = [2 + k % 4 for k in range(6)]
        assert results == [(100 * k * n + n * (n - 1) / 2, n) for k, n in enumerate(lengths)]

    def test_the_policy_is_the_trained_one(self):
        """Actions are sampled from it, with its masks, its first choice, and several components."""
        settings = {"num_steps": 16, "learning_rate": 0.02, "ent_coef": 0.0, "total_timesteps": 4096}
        for world, best in {"Shifted": 1.0, "Pairs": 2.0, "Switches": 1.0}.items():
            run_dir = train(Args(env_id=f"worlds:{world}", **settings))["run_dir"]
            results = evaluate(parse_args(["--evaluate", str(run_dir), "--eval-episodes", "50"]))
            assert np.mean(results, axis=0)[0] > 0.9 * best
        run_dir = train(Args(env_id="worlds:Masked", num_steps=16, total_timesteps=128))["run_dir"]
        assert len(evaluate(parse_args(["--evaluate", str(run_dir)]))) == 10
        start = train(Args(env_id="worlds:Probe4", num_steps=16, total_timesteps=64, learning_rate=0.0))["run_dir"]
        returns = [r for r, _ in evaluate(parse_args(["--evaluate", str(start), "--eval-episodes", "60"]))]
        assert set(returns) == {-1.0, 1.0}
        other = evaluate(parse_args(["--evaluate", str(start), "--eval-episodes", "60", "--seed", "2"]))
        assert [r for r, _ in other] != returns  # other actions, where the episodes are the same

    def test_each_episode_starts_elsewhere(self):
        """Probe2 pays what chance shows at the start."""
        run_dir = train(Args(env_id="worlds:Probe2", num_steps=16, total_timesteps=64))["run_dir"]
        results = evaluate(parse_args(["--evaluate", str(run_dir), "--eval-episodes", "20"]))
        assert {episode_return for episode_return, _ in results} == {-1.0, 1.0}

    @pytest.mark.parametrize("normalised", [True, False])
    def test_normalisation_is_the_saved_one_and_stays(self, normalised, monkeypatch):
        """Without it, the policy sees everything as it is: here, in the twelfth episode, an 11."""
        run_dir = counting(monkeypatch, norm_obs=normalised)["run_dir"]
        saved = load_checkpoint(str(run_dir))["stats"]["obs"]
        seen, numpy_policy = [], ppo.numpy_policy

        def record(agent):
            policy = numpy_policy(agent)
            return lambda obs: seen.append(obs) or policy(obs)

        monkeypatch.setattr(ppo, "numpy_policy", record)
        monkeypatch.setattr(worlds.Counting, "created", 0)
        evaluate(parse_args(["--evaluate", str(run_dir), "--eval-episodes", "2" if normalised else "12"]))
        if not normalised:
            assert np.max(seen) == 11
            return
        raw = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 1, 2]])
        expected = np.clip((raw - saved["mean"].numpy()) / np.sqrt(saved["var"].numpy() + 1e-8), -10, 10)
        np.testing.assert_allclose(np.concatenate(seen), expected, rtol=1e-5)

    def test_other_arguments_are_refused_by_name(self, capsys):
        run_dir = train(Args(**SHORT))["run_dir"]
        assert "--env-id Acrobot-v1 " in fails(capsys, "--evaluate", run_dir, "--env-id", "Acrobot-v1")
        assert "--eval-episodes must be from 1" in fails(capsys, "--evaluate", run_dir, "--eval-episodes", 0)
        assert "--device cpu " in fails(capsys, "--evaluate", run_dir, "--device", "cpu")
        assert "give one of them" in fails(capsys, "--evaluate", run_dir, "--resume", run_dir)

    def test_a_run_that_was_resumed(self):
        run_dir = train(Args(**SHORT))["run_dir"]
        resume(run_dir, "--total-timesteps", "704")
        assert len(evaluate(parse_args(["--evaluate", str(run_dir)]))) == 10

    def test_ctrl_c(self):
        """Ends after the step in hand, with what has been played so far."""
        run_dir = train(Args(**SHORT))["run_dir"]
        process = start("--evaluate", run_dir, "--eval-episodes", 10**5)
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "")
        assert " episodes of CartPole-v1 with the policy of step 640" in out

    def test_what_training_needed_is_not_needed(self, monkeypatch):
        """Compiler and tracking, for example."""
        data = torch.load(train(Args(**SHORT))["run_dir"] / "checkpoint.pt", weights_only=True)
        data["args"] |= {"compile": True, "track": True, "capture_video": True}
        torch.save(data, "elsewhere.pt")
        args = parse_args(["--evaluate", "elsewhere.pt"])
        assert not (args.compile or args.track or args.capture_video)
        assert len(evaluate(args)) == 10

    def test_an_environment_that_breaks(self, capsys, monkeypatch):
        run_dir = train(Args(env_id="worlds:Raising", num_steps=4, total_timesteps=16))["run_dir"]
        error = fails(capsys, "--evaluate", run_dir)
        assert "worlds:Raising failed in step 6 of episode 0: ValueError: the seventh step is broken (" in error


class Hostile:
    def __reduce__(self):
        return os.system, ("touch owned",)


class TestForeignFiles:
    def saved(self, **changes):
        data = torch.load(train(Args(**SHORT))["run_dir"] / "checkpoint.pt", weights_only=True)
        return data | changes

    @pytest.mark.parametrize("option", ["--resume", "--evaluate"])
    def test_missing(self, option, capsys):
        Path("empty").mkdir()
        for place in ("nowhere", "runs/nothing", "empty"):
            assert f"{place}" in (error := fails(capsys, option, place)) and "does not exist" in error
        assert sorted(os.listdir()) == ["empty"]

    @pytest.mark.parametrize("option", ["--resume", "--evaluate"])
    def test_truncated(self, option, capsys):
        run_dir = train(Args(**SHORT))["run_dir"]
        data = (run_dir / "checkpoint.pt").read_bytes()
        for length in (0, 1, 100, len(data) // 2, len(data) - 1):
            (run_dir / "checkpoint.pt").write_bytes(data[:length])
            assert "damaged" in fails(capsys, option, run_dir)

    def test_flipped_bits(self, capsys):
        """Which would be other weights, and go unnoticed without the checksums."""
        file = train(Args(**SHORT))["run_dir"] / "checkpoint.pt"
        data = bytearray(file.read_bytes())
        flat = torch.load(file, weights_only=True)["agent"]["actor.0.weight"].flatten()[:8]
        data[data.index(flat.numpy().tobytes()) + 5] ^= 16
        file.write_bytes(data)
        assert "damaged" in fails(capsys, "--evaluate", file)

    def test_a_part_is_missing_or_of_another_shape(self, capsys):
        saved = self.saved()
        wrong = {"adam": [torch.zeros(3)] * 3, "stats": [{"mean": torch.zeros(7)}] * 2, "torch_rng": torch.zeros(5)}
        wrong |= {"numpy_rng": {}, "episodes": 5, "agent": {}}
        Path("odd").mkdir()
        for name, value in wrong.items():
            for odd in (saved | {name: value}, {key: x for key, x in saved.items() if key != name}):
                torch.save(odd, "odd/checkpoint.pt")
                assert "damaged" in fails(capsys, "--resume", "odd", "--total-timesteps", 1280)

    @pytest.mark.parametrize("option", ["--resume", "--evaluate"])
    def test_hostile(self, option, capsys):
        """Loading never runs what a file asks for."""
        Path("plain.pt").write_bytes(pickle.dumps(Hostile()))
        torch.save(Hostile(), "wrapped.pt")
        torch.save(self.saved(agent=Hostile()), "hidden.pt")
        torch.save(self.saved(args=Hostile()), "args.pt")
        for name in ("plain.pt", "wrapped.pt", "hidden.pt", "args.pt"):
            assert "damaged" in fails(capsys, option, name)
            assert not Path("owned").exists()

    def test_foreign(self, capsys):
        Path("text.pt").write_text("hello")
        with zipfile.ZipFile("zip.pt", "w") as archive:
            archive.writestr("data", "hello")
        torch.save([1, 2, 3], "list.pt")
        torch.save({"model": torch.zeros(3)}, "dict.pt")
        torch.save(self.saved(args={"env_id": "CartPole-v1", "buffer_size": 10**6}), "other_script.pt")
        for name in ("text.pt", "zip.pt", "list.pt", "dict.pt", "other_script.pt"):
            error = fails(capsys, "--evaluate", name)
            assert "not a checkpoint of ppo.py" in error and name in error

    @pytest.mark.parametrize("option", ["--resume", "--evaluate"])
    def test_of_another_network(self, option, capsys):
        saved = self.saved()
        saved["agent"]["actor.0.weight"] = torch.zeros(64, 6)
        Path("other").mkdir()
        torch.save(saved, "other/checkpoint.pt")
        more = ("--total-timesteps", 1280) if option == "--resume" else ()
        assert "of another environment or network" in fails(capsys, option, "other", *more)

    @pytest.mark.parametrize("option", ["--resume", "--evaluate"])
    def test_of_an_environment_that_has_changed(self, option, capsys):
        saved = self.saved()
        saved["args"]["env_id"] = "Acrobot-v1"
        Path("other").mkdir()
        torch.save(saved, "other/checkpoint.pt")
        more = ("--total-timesteps", 1280) if option == "--resume" else ()
        assert "of another environment or network" in fails(capsys, option, "other", *more)

    @pytest.mark.filterwarnings("ignore:The field")
    def test_arguments_of_other_types(self, capsys):
        for name, value in {"gamma": [0.5], "num_steps": 16.5, "learning_rate": {}}.items():
            saved = self.saved()
            saved["args"][name] = value
            torch.save(saved, "odd.pt")
            assert f"--{name.replace('_', '-')}" in fails(capsys, "--evaluate", "odd.pt")

    def test_a_checkpoint_in_memory(self):
        data = (train(Args(**SHORT))["run_dir"] / "checkpoint.pt").read_bytes()
        assert load_checkpoint(io.BytesIO(data))["args"] == replace(Args(), **SHORT)
