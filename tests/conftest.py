"""Every test runs in an empty folder of its own, and finds the script and the environments of the tests."""

import faulthandler
import gc
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

if "torch" not in sys.modules:  # for all processes that tests start, too
    os.environ["OMP_NUM_THREADS"] = "1"  # with more, rounding depends on the number of cores
    gc.disable()  # while all is imported; pytest_runtestloop then exempts those million objects for good

import gymnasium as gym
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from forks import Forks, chosen  # noqa: E402 (from the folder that was just named)

settings.register_profile("same every time", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("same every time")


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="run test_gpu.py too, on a GPU")
    about = "your fork of a script: run the tests that make sense for it, and no others (several times if wanted)"
    parser.addoption("--script", action="append", default=[], metavar="FILE", help=about)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The tests of a fork take less than three minutes on two cores, which pytest-xdist shares out."""
    main = "PYTEST_XDIST_WORKER" not in os.environ and not config.option.usepdb
    if main and config.getoption("dist", "no") == "no":
        config.option.dist = "loadgroup"  # what is made for several tests, by one process alone
    config.option.loadgroup = not main  # which a process that xdist starts knows from its command line alone
    if main and config.getoption("--script") and config.getoption("numprocesses", 0) is None:
        config.option.numprocesses = min(2, os.cpu_count())


def pytest_configure(config):
    config.pluginmanager.register(Forks())
    if config.getoption("--script"):
        chosen(config)  # a mistake is told before any process starts
        config.option.tbstyle = "short" if config.option.tbstyle == "auto" else config.option.tbstyle
    if not config.getoption("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also for the processes that tests start: one machine is as the other


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    gc.freeze()
    gc.enable()


def two_processes(*words):
    """Runs Python with these words in two processes that find each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    found |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        environment = os.environ | found | {"RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, *map(str, words)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err[-3000:]
    finally:
        for process in processes:
            process.kill()


def make_agent(script, obs_size, space, **arguments):
    """The script's agent for observations of that many numbers and an action space."""
    obs_space = gym.spaces.Box(-1, 1, (obs_size,))
    return script.Agent(
        SimpleNamespace(single_observation_space=obs_space, single_action_space=space), script.Args(**arguments)
    )


@pytest.fixture(autouse=True)
def no_test_hangs():
    """One that takes a quarter of an hour ends its process, and shows where it was."""
    faulthandler.dump_traceback_later(900, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fork(request):
    """A script, as a module: each of ours, or those that `--script` names."""
    return request.param.module


@pytest.fixture
def kind(request):
    """Of the script: discrete, continuous or pixels."""
    return request.node.callspec.params["fork"].kind.replace("images", "pixels")


@pytest.fixture
def games(request):
    """Whether the script has what Atari's games need, such as rewards clipped to their sign."""
    return request.node.callspec.params["fork"].kind == "pixels"


@pytest.fixture
def minibatches(monkeypatch):
    """Records what each gradient was computed from: (minibatch, share of the run that is left). Training goes on."""
    import ppo

    seen, compute_gradient = [], ppo.compute_gradient

    def record(agent, params, batch, left, args):
        seen.append(({name: tensor.clone() for name, tensor in batch.items()}, left))
        return compute_gradient(agent, params, batch, left, args)

    monkeypatch.setattr(ppo, "compute_gradient", record)
    return seen
