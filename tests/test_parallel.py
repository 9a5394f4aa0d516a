"""One run in two processes, as torchrun starts them: they learn as one, and have one fate."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gymnasium.spaces import Discrete

import ppo
from conftest import ROOT, make_agent
from ppo import Args, RunningMeanStd, load_checkpoint, train
from test_probes import probability, value
from test_train import parameters, scalars

SHORT = ["--num-steps", "32", "--learning-rate", "0.003", "--norm-obs", "--norm-reward", "--save-interval", "0"]


def launch(folder, script, *args):
    """Run a script in two processes: torchrun's exit code, and standard output and standard error of each process."""
    logs = Path(folder, f"logs{len(list(Path(folder).glob('logs*')))}")
    flags = ["--standalone", "--nproc-per-node=2", "--redirects=3", f"--log-dir={logs}"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, str(script), *args]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    torchrun = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        code = torchrun.wait(timeout=120)
    except subprocess.TimeoutExpired:
        torchrun.terminate()  # which ends its processes too, by force after 30 seconds
        torchrun.wait()
        pytest.fail("two processes wait for each other")
    return code, [
        ((log / "stdout.log").read_text(), (log / "stderr.log").read_text())
        for log in sorted(logs.glob("*/attempt_0/*"))
    ]


# What the two processes do


def listen(owner, name, keep):
    """From now on, a list of what `keep` makes of the arguments and the result of each call of owner.name."""
    seen, function = [], getattr(owner, name)

    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        seen.append(keep(result, *args))
        return result

    setattr(owner, name, call)
    return seen


def seen_in(round_number, rank):
    """Data of which one process has more than the other."""
    rng = np.random.default_rng([round_number, rank])
    return (
        (5 + 2 * rng.normal(size=((5, 2), (0, 7), (1, 40))[round_number][rank] * 3)).astype(np.float32).reshape(-1, 3)
    )


def watch():
    """Several runs, watched from inside."""
    dist.init_process_group("gloo")
    rank, seen = dist.get_rank(), {}
    stats = RunningMeanStd((3,))
    for i in range(3):
        stats.update(seen_in(i, rank))
    seen["shared"] = stats.state_dict()

    own = listen(
        ppo,
        "ppo_loss",
        lambda result, agent, *_: torch.autograd.grad(result[0], [*agent.parameters()], retain_graph=True),
    )
    gradients = listen(ppo, "compute_gradient", lambda result, *_: result[0].clone())
    rollouts = listen(ppo, "compute_gae", lambda advantages, *given: (advantages, given[2].copy()))
    settings = {"num_envs": 8, "num_steps": 16, "num_minibatches": 1, "update_epochs": 1, "max_grad_norm": 1e9}
    result = train(Args(env_id="worlds:Probe4", exp_name="single", total_timesteps=128, **settings))
    seen["single"] = {"own": torch.cat([x.flatten() for x in own[0]]), "gradient": gradients[0], "rollout": rollouts[0]}
    seen["single"] |= {"episodes": result["episodes"], "run_dir": result["run_dir"]}

    updates = listen(RunningMeanStd, "update", lambda _, __, data: data.copy())
    noise = listen(ppo.Agent, "noise", lambda noise, *_: noise.copy())
    gradients.clear()
    settings = {"norm_obs": True, "norm_reward": True, "target_kl": 0.01, "num_steps": 64, "learning_rate": 3e-3}
    result = train(Args(exp_name="normed", total_timesteps=2048, **settings))
    seen["normed"] = {"parameters": parameters(result), "updates": len(gradients), "noise": noise[0]}
    seen["normed"] |= {"episodes": result["episodes"], "obs": np.concatenate([x for x in updates if x.ndim == 2])}
    seen["normed"]["stats"] = result["agent"].obs_stats.state_dict()

    result = train(Args(exp_name="stopped", stop_return=0.0, total_timesteps=50_000))
    seen["stopped"] = {"steps": result["global_step"], "episodes": result["episodes"]}

    settings = {"num_envs": 8, "num_steps": 32, "learning_rate": 0.01, "num_minibatches": 1}
    result = train(Args(env_id="worlds:Probe5", exp_name="probe", total_timesteps=10_240, **settings))
    seen["agent"] = result["agent"].state_dict()
    torch.save(seen, f"process{rank}.pt")


def signal_in_third_iteration(whom, signum):
    """Process 1 sends a signal to itself or to both."""
    both = [None, None]

    def send(*_):
        iterations.append(0)
        if not both[0]:
            dist.all_gather_object(both, os.getpid())
        if len(iterations) == 3 and dist.get_rank() == 1:
            for pid in both if whom == "both" else both[1:]:
                os.kill(pid, getattr(signal, signum))

    iterations = []
    listen(ppo, "compute_gae", send)
    result = train(ppo.tyro.cli(Args, args=[*SHORT, "--total-timesteps", "1000000"]))
    sys.exit(result["exit_code"])


# The tests


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The folder of the runs that both processes watched, what they printed, and what each saw."""
    folder = tmp_path_factory.mktemp("watched")
    code, printed = launch(folder, __file__, "watch")
    assert code == 0, printed
    return folder, printed, [torch.load(folder / f"process{rank}.pt", weights_only=False) for rank in range(2)]


class TestNumbers:
    """Each process has its own environments, and all take the same steps."""

    def test_the_gradient_is_the_mean_over_processes(self, watched):
        first, second = (seen["single"] for seen in watched[2])
        assert not torch.allclose(first["own"], second["own"], rtol=0.1)
        torch.testing.assert_close(first["gradient"], (first["own"] + second["own"]) / 2)
        assert torch.equal(first["gradient"], second["gradient"])

    def test_parameters_stay_equal_bit_for_bit(self, watched):
        """Also when the limit of the KL divergence ends epochs early, which both do at once."""
        first, second = (seen["normed"] for seen in watched[2])
        assert torch.equal(first["parameters"], second["parameters"])
        assert 8 * 4 < first["updates"] == second["updates"] < 8 * 16

    def test_both_see_the_same_episodes(self, watched):
        first, second = (seen["normed"]["episodes"] for seen in watched[2])
        assert first == second
        assert len(first) > 20

    def test_environments_and_actions_differ(self, watched):
        starts = [tuple(start) for seen in watched[2] for start in seen["normed"]["obs"][:2].tolist()]
        assert len(set(starts)) == 4
        first, second = (seen["normed"]["noise"] for seen in watched[2])
        assert (first != second).all()

    def test_statistics_are_those_of_everything(self, watched):
        """Also if a process has seen nothing; and with the same bits."""
        first, second = (seen["shared"] for seen in watched[2])
        everything = np.concatenate([seen_in(i, rank) for i in range(3) for rank in range(2)])
        assert (first["count"] == len(everything)).all()
        np.testing.assert_allclose(first["mean"], everything.mean(0), rtol=1e-5)
        np.testing.assert_allclose(first["var"], everything.var(0), rtol=1e-5)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_normalisation_of_a_run(self, watched):
        first, second = (seen["normed"] for seen in watched[2])
        everything = np.concatenate([first["obs"], second["obs"]])
        assert (first["stats"]["count"] == len(everything)).all()
        np.testing.assert_allclose(first["stats"]["mean"], everything.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(first["stats"]["var"], everything.var(0), rtol=1e-4)
        assert all(torch.equal(first["stats"][name], second["stats"][name]) for name in first["stats"])

    def test_logged_are_both(self, watched):
        """Means over processes, and all episodes."""
        runs = [seen["single"] for seen in watched[2]]
        logged = {name: values[128] for name, values in scalars({"run_dir": watched[0] / runs[0]["run_dir"]}).items()}
        advantages = []
        for run in runs:
            values, ended = run["rollout"]
            advantages += [values[~np.concatenate([np.zeros((1, 4), bool), ended[:-1]])]]  # but those of reset steps
        value_loss, mean = np.mean([(0.5 * (x**2).mean(), x.mean()) for x in advantages], axis=0)
        assert logged["losses/value_loss"] == pytest.approx(value_loss, rel=1e-3)
        assert logged["losses/advantage_mean"] == pytest.approx(mean, rel=1e-3, abs=1e-6)
        assert logged["losses/grad_norm"] == pytest.approx(runs[0]["gradient"].norm().item(), rel=1e-4)
        assert logged["charts/episodic_return"] == pytest.approx(np.mean(runs[0]["episodes"], axis=0)[0], abs=1e-6)
        assert len(runs[0]["episodes"]) >= 60

    def test_a_probe_is_learned(self, watched):
        agent = make_agent(ppo, 1, Discrete(2))
        for seen in watched[2]:
            agent.load_state_dict(seen["agent"])
            assert probability(agent, [1.0], 1) > 0.95
            assert probability(agent, [-1.0], 0) > 0.95
            assert value(agent, 1.0) == pytest.approx(1, abs=0.1)


def test_both_stop_when_solved(watched):
    first, second = (seen["stopped"] for seen in watched[2])
    assert first == second
    assert first["steps"] < 10_000
    assert len(first["episodes"]) == 100


def test_process_0_alone_prints_and_writes(watched):
    folder, ((out, _), (silence, errors)), _ = watched
    assert out.count("Done: ") == 4
    assert silence == "" and "steps/s" not in errors
    runs = sorted((folder / "runs").iterdir())
    names = ["CartPole-v1__normed", "CartPole-v1__stopped", "worlds:Probe4__single", "worlds:Probe5__probe"]
    assert [run.name.rsplit("__", 2)[0] for run in runs] == [name.replace(":", "_") for name in names]
    for run in runs:
        assert sorted(path.name.split(".")[0] for path in run.iterdir()) == ["args", "checkpoint", "events"]


def test_environments_that_can_not_be_shared_out(tmp_path):
    code, printed = launch(tmp_path, ROOT / "ppo.py", "--num-envs", "3")
    assert code != 0
    assert "must divide" in printed[0][1] + printed[1][1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("whom", "signum"), [("one", "SIGTERM"), ("both", "SIGINT")])
def test_a_signal_stops_both_and_the_run_can_be_resumed(whom, signum, tmp_path):
    """After the iteration in hand, with a checkpoint."""
    code, ((out, _), (silence, _)) = launch(tmp_path, __file__, "signal_in_third_iteration", whom, signum)
    assert code != 0 and silence == ""
    assert "Stopped: 384 steps" in out or "Stopped: 512 steps" in out  # gathered after the third, or in the fourth
    (run_dir,) = (tmp_path / "runs").iterdir()
    saved = load_checkpoint(run_dir)["global_step"]
    code, ((out, _), _) = launch(tmp_path, ROOT / "ppo.py", "--resume", str(run_dir), "--total-timesteps", "1024")
    assert code == 0 and "Done: 1,024 steps" in out
    assert list(scalars({"run_dir": run_dir})["charts/SPS"]) == list(range(128, 1025, 128))
    assert saved < load_checkpoint(run_dir)["global_step"] == 1024


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
