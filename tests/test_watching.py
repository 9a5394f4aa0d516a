"""What a run shows beside its curves: Weights & Biases, and films."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from moviepy import VideoFileClip

import ppo
from conftest import ROOT
from ppo import Args, load_checkpoint, train
from test_checkpoint import command, digest, resume
from test_train import CHARTS, LOSSES, parameters, scalars

SHORT = {"num_steps": 16, "total_timesteps": 640}  # 10 iterations of 64 steps


def records(file):
    """The records of a LevelDB log, as W&B writes it: 7 bytes, then blocks of 32 KiB, of whole records and parts."""
    data, position, parts = file.read_bytes(), 7, b""
    while position < len(data):
        left = 2**15 - position % 2**15
        if left < 7:  # a block's rest that is too short for a header
            position += left
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read_wandb(folder):
    """What W&B recorded offline: the run's record, its configuration, its history by step, and the files to upload."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    run, history, files = None, {}, set()
    for data in records(file):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            run = record.run
        if record.HasField("files"):
            files |= {saved.path for saved in record.files.files}
        if record.HasField("history"):
            row = {}
            for item in record.history.item:  # a dictionary comes as one value, or as one for each of its keys
                *parents, key = item.nested_key or [item.key]
                place = row
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[key] = json.loads(item.value_json)
            history.setdefault(row["_step"], {}).update(row)
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    return run, config, history, files


def tracked(folder):
    """A run that was tracked and filmed, without network and without display, and its first and second part in W&B."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    shutil.copy(ROOT / "ppo.py", folder)

    def call(*words):
        line, env = [sys.executable, "ppo.py", *map(str, words)], environment | {"WANDB_MODE": "offline"}
        return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True)

    names = ("--track", "--wandb-project-name", "tests", "--wandb-entity", "me")
    done = [call("--num-steps", 16, "--total-timesteps", 256, "--capture-video", *names)]
    (run_dir,) = folder.glob("runs/*")
    time.sleep(1)  # W&B names its folders by the second
    done.append(call("--resume", run_dir.relative_to(folder), "--total-timesteps", 384))
    for process in done:
        assert process.returncode == 0 and "wandb sync" in process.stdout, process.stderr
        assert "Traceback" not in process.stderr and "Warning" not in process.stderr
    return run_dir, sorted(folder.glob("wandb/offline-run-*"))


class TestTracking:
    def test_the_same_as_in_tensorboard_and_more(self, tmp_path):
        """Also after resuming: together, without a gap or a doubled point."""
        run_dir, parts = tracked(tmp_path)
        logged, rows, films = scalars({"run_dir": run_dir}), [], []
        for part, total in zip(parts, (256, 384), strict=True):
            run, config, history, files = read_wandb(part)
            rows += [row for row in history.values() if "charts/SPS" in row]
            for row in history.values():
                if film := row.get("videos/episode"):  # media, with the step of the policy that they show
                    assert film["_type"] == "video-file"
                    films.append(row["global_step"])
                    (file,) = (run_dir / "videos" / f"step-{films[-1]:09}").glob("*.mp4")
                    assert (part / "files" / film["path"]).read_bytes() == file.read_bytes()
                    assert 8 <= frames_of(file) <= 501
            resumed = {"resume": str(Path(*run_dir.parts[-2:]))} if total == 384 else {}
            settings = {"num_steps": 16, "total_timesteps": total, "track": True, "capture_video": True}
            expected = asdict(Args(wandb_project_name="tests", wandb_entity="me", **settings, **resumed))
            assert {name: config[name] for name in expected} == expected
            assert (run.project, run.entity, run.display_name) == ("tests", "me", run_dir.name)
            assert run.run_id == run_dir.name[-64:]
            assert "code/ppo.py" in files
            assert (part / "files" / "code" / "ppo.py").read_bytes() == (ROOT / "ppo.py").read_bytes()
        assert [row["global_step"] for row in rows] == films == list(range(64, 385, 64))
        assert set(logged) == {f"losses/{x}" for x in LOSSES.split()} | {f"charts/{x}" for x in CHARTS.split()}
        for name, points in logged.items():
            curve = {row["global_step"]: row[name] for row in rows if name in row}
            assert curve == pytest.approx(points, rel=1e-5, abs=1e-8), name

    def test_what_wandb_is_told(self, monkeypatch):
        """A resumed run goes on, also from within its folder; an id has 64 characters; a notebook tracks several."""
        told = []
        wandb = SimpleNamespace(init=lambda **given: told.append(given))
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        name = "a_name_that_is_longer_than_an_id_of_Weights_and_Biases_may_be_by_far"
        settings = {"track": True, "exp_name": name, "num_steps": 16}
        runs = [train(Args(total_timesteps=64, seed=seed, **settings))["run_dir"] for seed in (1, 2)]
        train(Args(resume=str(runs[0]), total_timesteps=128))
        monkeypatch.chdir(runs[0])
        files = sorted(os.listdir())
        train(Args(resume="checkpoint.pt", total_timesteps=192))
        assert load_checkpoint(".")["global_step"] == 192
        assert [x for x in sorted(os.listdir()) if "tfevents" not in x] == [x for x in files if "tfevents" not in x]
        assert [given["name"] for given in told] == [runs[i].name for i in (0, 1, 0, 0)]
        assert [given["id"] for given in told] == [runs[i].name[-64:] for i in (0, 1, 0, 0)]
        assert told[0]["id"] != told[1]["id"]
        assert {given["resume"] for given in told} == {"allow"} and {x["reinit"] for x in told} == {"finish_previous"}

    def refused(self, **given):
        with pytest.raises(SystemExit) as stopped:
            train(Args(track=True, total_timesteps=1024, **given))
        assert stopped.value.code.startswith("error: can't start: ") and "\n" not in stopped.value.code
        return stopped.value.code

    def test_without_wandb(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        assert "pip install wandb" in self.refused()

    def test_without_login(self, monkeypatch):
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NETRC", "nowhere")
        monkeypatch.setattr("sys.stdin.isatty", lambda: False)
        assert "`wandb login`" in self.refused()

    def test_what_takes_several_lines_to_say(self, monkeypatch):
        """As a mistake in `WANDB_MODE` does, if it is the first that W&B hears of in a process."""

        def refuse(**given):
            raise ValueError("1 mistake:\n  mode 'sometimes'\n")

        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
        assert "can't start: 1 mistake: mode 'sometimes' (" in self.refused()

    def test_a_run_that_exists_stays(self, monkeypatch):
        """Also when W&B refuses to go on with it."""
        run_dir = train(Args(total_timesteps=512))["run_dir"]
        before = digest(run_dir)
        monkeypatch.setenv("WANDB_MODE", "sometimes")
        self.refused(resume=str(run_dir))
        after = digest(run_dir)
        assert all(after[path] == content for path, content in before.items() if path.name != "args.json")


def frames_of(file):
    with VideoFileClip(str(file)) as clip:
        return round(clip.duration * clip.fps)


class TestVideos:
    def test_training_is_the_same_with_and_without(self):
        with_videos, without = (train(Args(**SHORT, capture_video=video)) for video in (True, False))
        assert torch.equal(parameters(with_videos), parameters(without))
        first, second = scalars(with_videos), scalars(without)
        assert all(name == "charts/SPS" or first[name] == second[name] for name in second)
        assert len(list(with_videos["run_dir"].glob("videos/*/*.mp4"))) == 10

    def test_after_the_first_iteration_and_each_tenth(self, monkeypatch):
        """Also of a run that is resumed; each shows the policy of the moment, for at most 2,000 steps."""
        seen, evaluate = [], ppo.evaluate

        def play(agent, args, episodes, folder, max_length):
            assert (episodes, max_length) == (1, 2000)
            seen.append((folder.name, np.mean(evaluate(agent, args, 50), axis=0)[0]))

        monkeypatch.setattr(ppo, "evaluate", play)
        settings = {"num_steps": 16, "total_timesteps": 1280, "learning_rate": 0.005, "capture_video": True}
        run_dir = train(Args(env_id="worlds:Probe4", **settings))["run_dir"]
        assert [name for name, _ in seen] == [f"step-{step:09}" for step in (64, *range(128, 1281, 128))]
        assert abs(seen[0][1]) < 0.9 and np.mean([episode_return for _, episode_return in seen[-3:]]) > 0.9
        seen.clear()
        resume(run_dir, total_timesteps=1920)
        assert [name for name, _ in seen] == [f"step-{step:09}" for step in range(1344, 1921, 192)]

    def test_an_endless_episode_is_cut_off(self):
        result = train(Args(env_id="worlds:Endless", num_steps=16, total_timesteps=64, capture_video=True))
        (film,) = result["run_dir"].glob("videos/step-000000064/*.mp4")
        assert frames_of(film) == 2001

    def test_evaluation(self):
        """Films all episodes, elsewhere than in the run's folder; they are those that it plays without filming."""
        run_dir = train(Args(total_timesteps=512))["run_dir"]
        before = digest(run_dir)
        _, out, _ = command("--evaluate", run_dir, "--eval-episodes", 2, "--capture-video")
        assert out == command("--evaluate", run_dir, "--eval-episodes", 2)[1]
        lengths = [frames_of(file) - 1 for file in sorted(Path("videos", run_dir.name).iterdir())]
        assert out == f"2 episodes: return {np.mean(lengths):.2f} ± {np.std(lengths):.2f}\n"
        assert digest(run_dir) == before and os.listdir("videos") == [run_dir.name]
