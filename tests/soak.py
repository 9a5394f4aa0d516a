"""Kill each script twenty times at random instants, and resume it: `python -m pytest tests/soak.py` (some minutes).

Whatever the instant, also while it starts, saves or resumes: the checkpoint is whole, nothing that was saved is lost,
and the curve ends up without a gap or a repetition.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from test_checkpoint import logged_steps, wait_for

KILLS = 20
ITERATIONS = {"ppo.py": 600, "ppo_continuous.py": 400, "ppo_atari.py": 150, "ppo_procgen.py": 150, "ppo_lstm.py": 400}
SCRIPTS = {
    "ppo.py": ["--env-id", "CartPole-v1", "--num-envs", "4", "--num-steps", "16"],
    "ppo_continuous.py": ["--env-id", "Pendulum-v1", "--num-envs", "4", "--num-steps", "16", "--num-minibatches", "4"],
    "ppo_atari.py": ["--num-envs", "4", "--num-steps", "16", "--no-bf16"],
    "ppo_procgen.py": ["--num-envs", "4", "--num-steps", "16", "--network", "nature", "--no-bf16"],
    "ppo_lstm.py": ["--env-id", "CartPole-v1", "--num-envs", "4", "--num-steps", "16", "--num-minibatches", "4"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_kills_at_random_instants(script, tmp_path):
    total = ITERATIONS[script] * 4 * 16
    command = [sys.executable, str(ROOT / script)]

    def start(*arguments):
        with open(tmp_path / "output", "a") as output:
            return subprocess.Popen([*command, *arguments], stdout=output, stderr=output)

    rng, saved, kills, while_starting = random.Random(script), 0, 0, 0
    process = start(*SCRIPTS[script], "--total-timesteps", str(total), "--save-interval", "0")
    folder = wait_for(lambda: next(iter(Path("runs").glob("*/checkpoint.pt")), None)).parent
    while kills < KILLS:
        try:  # within eight seconds, of which starting takes about half
            assert process.wait(rng.uniform(0, 8)) == 0, (tmp_path / "output").read_text()[-2000:]
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        before, saved = saved, global_step(script, folder)
        assert saved >= before
        while_starting += saved == before
        if saved == total:  # too early: as much again
            total *= 2
        process = start("--resume", str(folder), "--total-timesteps", str(total))
    assert process.wait() == 0, (tmp_path / "output").read_text()[-2000:]
    assert 0 < while_starting < KILLS
    assert global_step(script, folder) == total
    assert logged_steps(folder) == list(range(64, total + 1, 64))
    assert "Traceback" not in (tmp_path / "output").read_text()


def global_step(script, folder):
    module = __import__(script.removesuffix(".py"))
    return module.load_checkpoint(str(folder))["global_step"]
