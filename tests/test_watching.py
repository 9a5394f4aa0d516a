"""What a run shows: Weights & Biases, videos, and the summary of its health."""

import importlib.util
import json
import multiprocessing
import os
import signal
import struct
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from moviepy import VideoFileClip

import ppo
from conftest import ROOT
from ppo import Args, evaluate, parse_args, train
from test_checkpoint import digest, resume, run_folder, start, wait_for
from test_train import CHARTS, LOSSES, parameters, scalars

SHORT = ("--num-steps", 16, "--total-timesteps", 1280)  # 20 iterations of 64 steps


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


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run that was tracked and filmed, without network and without display, and its first and second part in W&B."""
    folder = tmp_path_factory.mktemp("tracked")
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(os, "environ", environment | {"WANDB_MODE": "offline"})
        options = ("--track", "--wandb-project-name", "tests", "--wandb-entity", "me", "--capture-video")
        outputs = [start(*SHORT, *options).communicate()]
        time.sleep(1)
        outputs.append(start("--resume", run_folder(), "--total-timesteps", 1920).communicate())
        run_dir = folder / run_folder()
    parts = sorted(run_dir.glob("wandb/offline-run-*"))
    assert len(parts) == 2, outputs
    return run_dir, parts, outputs


class TestTracking:
    def test_the_same_curves_as_in_tensorboard(self, tracked):
        """Also after resuming: together, without a gap or a doubled point."""
        run_dir, parts, _ = tracked
        logged, rows = scalars({"run_dir": run_dir}), {}
        for part in parts:
            _, _, history, _ = read_wandb(part)
            rows[part] = {step: row for step, row in history.items() if "charts/SPS" in row}
        assert list(rows[parts[0]]) == list(range(64, 1281, 64))
        assert list(rows[parts[1]]) == list(range(1344, 1921, 64))
        rows = rows[parts[0]] | rows[parts[1]]
        assert set(logged) == {f"losses/{x}" for x in LOSSES.split()} | {f"charts/{x}" for x in CHARTS.split()}
        for name, points in logged.items():
            curve = {step: row[name] for step, row in rows.items() if name in row}
            assert curve == pytest.approx(points, rel=1e-5, abs=1e-8), name

    def test_arguments_name_and_source(self, tracked):
        run_dir, parts, _ = tracked
        for part, total in zip(parts, (1280, 1920), strict=True):
            run, config, _, files = read_wandb(part)
            resumed = {"resume": str(Path(*run_dir.parts[-2:]))} if part == parts[1] else {}
            settings = {"num_steps": 16, "total_timesteps": total, "track": True, "capture_video": True}
            expected = asdict(Args(wandb_project_name="tests", wandb_entity="me", **settings, **resumed))
            assert {name: config[name] for name in expected} == expected
            assert (run.project, run.entity, run.display_name) == ("tests", "me", run_dir.name)
            assert run.run_id == run_dir.name[-64:]
            assert (part / "files" / "ppo.py").read_bytes() == (ROOT / "ppo.py").read_bytes()
            assert "ppo.py" in files

    def test_videos(self, tracked):
        """As media, one a step, so that W&B shows them with a slider."""
        run_dir, parts, _ = tracked
        _, _, history, _ = read_wandb(parts[0])
        videos = [row["videos/episode"] for row in history.values() if "videos/episode" in row]
        assert [video["caption"] for video in videos] == [f"step-{step:09}" for step in range(0, 1281, 128)]
        for video in videos:
            assert video["_type"] == "video-file"
            recorded = (parts[0] / "files" / video["path"]).read_bytes()
            (file,) = (run_dir / "videos" / video["caption"]).iterdir()
            assert recorded == file.read_bytes()

    def test_nothing_but_progress_on_the_way(self, tracked):
        """W&B says on stderr where its files are; nobody else complains, about the missing display, for example."""
        _, _, outputs = tracked
        for out, err in outputs:
            assert "Done: " in out
            assert all(line.startswith("wandb: ") for line in err.splitlines()), err
            assert "wandb sync" in err

    def test_without_login(self, monkeypatch, capsys):
        """One line that names the way without network; no folder stays."""
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NETRC", "nowhere")
        monkeypatch.setattr("sys.stdin.isatty", lambda: False)
        with pytest.raises(SystemExit) as stopped:
            train(Args(track=True, total_timesteps=512))
        assert stopped.value.code == 2
        error = next(
            line for line in capsys.readouterr().err.splitlines() if line.startswith("ppo.py: error: --track: ")
        )
        assert "wandb login" in error and "WANDB_MODE=offline" in error
        assert list(Path().glob("runs/*")) == []

    def test_an_unknown_mode(self, monkeypatch, capsys):
        monkeypatch.setenv("WANDB_MODE", "sometimes")
        with pytest.raises(SystemExit) as stopped:
            train(Args(track=True, total_timesteps=512))
        assert stopped.value.code == 2
        assert "ppo.py: error: --track: " in capsys.readouterr().err
        assert list(Path().glob("runs/*")) == []

    def test_a_run_that_exists_stays(self, monkeypatch, capsys):
        """Also when W&B refuses to go on with it."""
        run_dir = train(Args(total_timesteps=512))["run_dir"]
        before = digest(run_dir)
        monkeypatch.setenv("WANDB_MODE", "sometimes")
        with pytest.raises(SystemExit) as stopped:
            resume(run_dir, "--total-timesteps", "1024", "--track")
        assert stopped.value.code == 2
        assert "ppo.py: error: --track: " in capsys.readouterr().err
        after = digest(run_dir)
        assert all(after[path] == content for path, content in before.items() if path.name != "args.json")

    def test_without_wandb(self, monkeypatch, capsys):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SystemExit) as stopped:
            train(Args(track=True, total_timesteps=512))
        assert stopped.value.code == 2
        assert "pip install wandb" in capsys.readouterr().err
        assert list(Path().iterdir()) == []


def videos(folder):
    """Number of frames of each video, by the name of its folder."""
    frames = {}
    for file in sorted(folder.glob("*/*.mp4")):
        with VideoFileClip(str(file)) as clip:
            frames[file.parent.name] = round(clip.duration * clip.fps)
    return frames


class TestVideos:
    def test_start_tenths_and_end(self, tracked):
        run_dir, _, _ = tracked
        frames = videos(run_dir / "videos")
        first = [f"step-{step:09}" for step in range(0, 1281, 128)]  # tenths of 20 iterations
        second = [f"step-{step:09}" for step in range(1344, 1921, 192)]  # tenths of 30 iterations, from the 20th on
        assert list(frames) == sorted({*first, *second, "step-000001920"})
        assert all(8 <= length <= 501 for length in frames.values())  # an episode of CartPole, its reset included

    def test_training_is_the_same_with_and_without(self):
        with_videos, without = (train(Args(total_timesteps=5120, capture_video=video)) for video in (True, False))
        assert torch.equal(parameters(with_videos), parameters(without))
        first, second = scalars(with_videos), scalars(without)
        assert all(name == "charts/SPS" or first[name] == second[name] for name in second)
        assert len(list(with_videos["run_dir"].glob("videos/*/*.mp4"))) == 11

    def test_it_shows_the_policy_of_the_moment(self):
        """Probe-like: CartPole's episodes get longer while it learns, and so do the videos."""
        settings = {"num_envs": 32, "num_steps": 32, "update_epochs": 2, "learning_rate": 5e-3, "clip_vloss": False}
        result = train(Args(total_timesteps=60_000, capture_video=True, **settings))
        frames = list(videos(result["run_dir"] / "videos").values())
        assert np.mean(frames[-5:]) > 2 * np.mean(frames[:3])

    def test_an_endless_episode_is_cut_off(self):
        result = train(Args(env_id="worlds:Endless", num_steps=16, total_timesteps=64, capture_video=True))
        assert videos(result["run_dir"] / "videos") == {"step-000000000": 2001, "step-000000064": 2001}

    def test_evaluation(self):
        run_dir = train(Args(total_timesteps=512))["run_dir"]
        before = digest(run_dir)
        episodes = evaluate(parse_args(["--evaluate", str(run_dir), "--eval-episodes", "2", "--capture-video"]))
        (folder,) = Path("videos").iterdir()
        assert folder.name == f"{run_dir.name}-step-512"
        lengths = []
        for file in sorted(folder.iterdir()):
            with VideoFileClip(str(file)) as clip:
                lengths.append(round(clip.duration * clip.fps))
        assert lengths == [length + 1 for _, length in episodes]
        assert digest(run_dir) == before
        assert episodes == evaluate(parse_args(["--evaluate", str(run_dir), "--eval-episodes", "2"]))

    def test_a_run_that_filmed_evaluates_without(self):
        run_dir = train(Args(total_timesteps=512, capture_video=True))["run_dir"]
        assert not parse_args(["--evaluate", str(run_dir)]).capture_video
        assert parse_args(["--resume", str(run_dir)]).capture_video

    def test_what_can_not_be_filmed(self, capsys):
        with pytest.raises(SystemExit) as stopped:
            train(Args(env_id="worlds:Probe1", capture_video=True))
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert "worlds:Probe1 can't be made to be filmed" in error and "render_mode" in error
        assert list(Path().iterdir()) == []

    def test_a_broken_picture_does_not_end_the_training(self, capfd):
        result = train(Args(env_id="worlds:BadPicture", num_steps=16, total_timesteps=640, capture_video=True))
        assert result["global_step"] == 640
        error = capfd.readouterr().err
        assert error.count("WARNING: nothing in ") == error.count("RuntimeError: no picture today (") == 11

    def test_the_filming_process_may_die(self, monkeypatch, capsys):
        """Training goes on, and says at each video that there is none."""
        calls, compute_gae = [], ppo.compute_gae

        def filming():  # environments of other tests have processes, too, but those are forked
            return [child for child in multiprocessing.active_children() if "Spawn" in type(child).__name__]

        def kill(*args):
            calls.append(args)
            if len(calls) == 5:
                os.kill(filming()[0].pid, signal.SIGKILL)
                wait_for(lambda: not filming())
            return compute_gae(*args)

        monkeypatch.setattr(ppo, "compute_gae", kill)
        result = train(Args(num_steps=16, total_timesteps=1280, capture_video=True))
        assert result["global_step"] == 1280
        assert capsys.readouterr().err.count("WARNING: nothing in ") >= 8

    def test_the_process_that_films_ends_with_the_one_that_trains(self):
        """Even if that is killed."""
        process = start("--total-timesteps", 10**9, "--capture-video")
        folder = run_folder()
        wait_for(lambda: list(folder.glob("videos/*")))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))

    def test_ctrl_c_while_filming(self):
        process = start("--total-timesteps", 10**9, "--capture-video", start_new_session=True)
        folder = run_folder()
        wait_for(lambda: list(folder.glob("videos/*")))
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "")
        assert "Stopped: " in out

    def test_the_filming_process_has_one_thread(self, monkeypatch):
        """Whatever training has: else both wait for each other."""
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=ppo.follow_parent) as recorder:
            assert recorder.submit(torch.get_num_threads).result() == 1


class TestHealth:
    healthy: ClassVar = {
        "losses/clipfrac": 0.1,
        "losses/approx_kl": 0.005,
        "losses/relative_entropy": 0.5,
        "losses/explained_variance": 0.8,
        "losses/advantage_mean": 0.1,
        "losses/advantage_std": 1.0,
    }

    def verdicts(self, *changes):
        """The last words of each line."""
        lines = ppo.health_report([self.healthy | change for change in changes]).splitlines()[1:]
        return {line[:22].strip(): line[44:].strip() for line in lines}

    def test_healthy(self):
        names = ["clipfrac", "approx_kl", "relative_entropy", "explained_variance", "advantage_mean / std"]
        assert self.verdicts({}, {}) == dict.fromkeys(names, "healthy")

    @pytest.mark.parametrize(
        ("name", "value", "advice"),
        [
            ("clipfrac", 0.001, "timid updates: raise --learning-rate"),
            ("clipfrac", 0.4, "wild updates: lower --learning-rate"),
            ("approx_kl", 0.1, "wild updates: lower --learning-rate"),
            ("relative_entropy", 0.01, "raise --ent-coef"),
            ("relative_entropy", 0.99, "still acts at random: raise --learning-rate"),
            ("explained_variance", -0.5, "--no-clip-vloss"),
            ("advantage_mean", -2.0, "values too high"),
            ("advantage_mean", 2.0, "values too low"),
        ],
    )
    def test_unhealthy(self, name, value, advice):
        """The mean over the iterations counts; the other lines stay as they are."""
        verdicts = self.verdicts({f"losses/{name}": 2 * value}, {f"losses/{name}": 0})
        label = "advantage_mean / std" if name == "advantage_mean" else name
        assert advice in verdicts.pop(label)
        assert set(verdicts.values()) == {"healthy"}

    def test_advantages_count_in_units_of_their_spread(self):
        name = "losses/advantage_mean"
        assert set(self.verdicts({name: 20.0, "losses/advantage_std": 100.0}).values()) == {"healthy"}
        verdicts = self.verdicts({name: 0.01, "losses/advantage_std": 0.01})
        assert "values too low" in verdicts["advantage_mean / std"]

    def test_a_run_ends_with_it(self, capsys):
        """From the second half of its iterations."""
        result = train(Args(total_timesteps=5120))
        out = capsys.readouterr().out
        assert "Health: means over the last 5 iterations" in out
        mean = np.mean(list(scalars(result)["losses/relative_entropy"].values())[5:])
        assert f"relative_entropy {mean:11.3f} " in out

    def test_resumed(self, capsys):
        run_dir = train(Args(total_timesteps=512))["run_dir"]
        resume(run_dir, "--total-timesteps", "1024")
        assert "Health: means over the last 1 iterations" in capsys.readouterr().out
