"""One run in two processes, as torchrun starts them: the same numbers as of one process, and one fate for both."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gymnasium.spaces import Discrete
from torch import nn

import ppo
from conftest import ROOT, make_agent
from ppo import Args, RunningMeanStd, all_sum, compute_gradient, train, weigh_minibatches
from test_probes import probability, value
from test_train import parameters, scalars

BATCH = 4 * 32  # steps of an iteration in the runs that end before their time
SHORT = ["--num-steps", "32", "--learning-rate", "0.003", "--norm-obs", "--norm-reward", "--save-interval", "0"]


def launch(folder, script, *args):
    """Run a script in two processes: torchrun's exit code, and standard output and standard error of each process."""
    flags = ["--standalone", "--nproc-per-node=2", "--redirects=3", "--log-dir=logs"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, str(script), *args]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    torchrun = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        code = torchrun.wait(timeout=120)
    except subprocess.TimeoutExpired:
        torchrun.terminate()  # which ends its processes too, by force after 30 seconds
        torchrun.wait()
        pytest.fail("two processes wait for each other")
    logs = Path(folder).glob("logs/*/attempt_0/*")
    return code, [((log / "stdout.log").read_text(), (log / "stderr.log").read_text()) for log in sorted(logs)]


def perform(folder, scenario, *args):
    """Run a function of this file in two processes; returns what `launch` does."""
    return launch(folder, __file__, scenario, *args)


def returned(folder):
    """What the function returned in each process."""
    return [torch.load(folder / f"process{rank}.pt", weights_only=False) for rank in range(2)]


def only_run(folder):
    (run_dir,) = Path(folder, "runs").iterdir()
    return str(run_dir)


# What the two processes do


def listen(owner, name, keep):
    """From now on, a list of what `keep` makes of the arguments of each call of owner.name."""
    seen, function = [], getattr(owner, name)

    def call(*args, **kwargs):
        seen.append(keep(*args))
        return function(*args, **kwargs)

    setattr(owner, name, call)
    return seen


def command(*argv):
    return train(ppo.parse_args([*argv]))


def resume(*argv):
    """Go on with a run; returns also the state in which it was found. Process 1 is late."""
    updates = listen(ppo, "adam", lambda *state: [x[0].clone() for x in state if x])
    shares = listen(RunningMeanStd, "share", lambda stats, before: vars(copy.copy(before)))
    if os.environ.get("RANK") == "1":
        listen(ppo, "make_envs", lambda *_: time.sleep(1))
    result = command("--resume", *argv)
    params, _, *adam = updates[0]
    found = {"parameters": params, "adam": adam, "stats": shares[:2], "updates": len(updates)}
    return found | {"steps": result["global_step"], "new parameters": parameters(result)}


def signal_in_third_iteration(whom, signum):
    """Process 1 sends a signal to itself, to torchrun, or to all three."""
    both = [None, None]

    def send(*args):
        iterations.append(0)
        if not both[0]:
            dist.all_gather_object(both, os.getpid())
        if len(iterations) == 3 and dist.get_rank() == 1:
            pids = {"one": both[1:], "torchrun": [os.getppid()], "all": [*both, os.getppid()]}[whom]
            for pid in pids:
                os.kill(pid, getattr(signal, signum))

    iterations = []
    listen(ppo, "compute_gae", send)
    command(*SHORT, "--total-timesteps", "1000000")


def samples():
    """Two minibatches of 32, of which one process gets the left half and one the right, with more reset steps left."""
    generator = torch.Generator().manual_seed(4)
    random = torch.rand(2, 32, 5, generator=generator)
    obs, actions = torch.randn(2, 32, 6, generator=generator), torch.randint(3, (2, 32, 1), generator=generator)
    batch = {"obs": obs, "actions": actions, "forbidden": torch.zeros(2, 32, 1, 3, dtype=torch.bool)}
    batch |= {"logprobs": random[..., 0] - 1.6, "values": random[..., 1], "returns": 3 * random[..., 2]}
    likely = torch.where(torch.arange(32) < 16, 0.3, 0.9)
    return batch | {"advantages": 2 * random[..., 3] + 1, "valid": random[..., 4] < likely}


def learn_from(batch):
    """Gradient, diagnostics, and advantages of each minibatch."""
    torch.manual_seed(5)
    agent = make_agent(ppo, 6, Discrete(3))
    batch = batch | weigh_minibatches(batch["valid"], batch["advantages"], True)
    learned = []
    for i in range(2):
        row = {name: x[i] for name, x in batch.items()}
        gradient, diagnostics = compute_gradient(agent, list(agent.parameters()), row, 0.2, Args(max_grad_norm=1e9))
        norm = diagnostics.pop("grad_norm").item()
        diagnostics = {name: all_sum(x).item() for name, x in diagnostics.items()} | {"grad_norm": norm}
        learned.append((gradient, diagnostics, row["advantages"]))
    return learned


AMOUNTS = [(0, 0), (0, 3), (5, 2), (0, 7), (4, 0), (0, 0), (1, 40)]  # of data that each process has seen in each round


def seen_in(round_number, rank):
    return 5 + 2 * np.random.default_rng([round_number, rank]).normal(size=(AMOUNTS[round_number][rank], 3))


def share_statistics(rank):
    """Mean, variance and count after each round."""
    stats, states = RunningMeanStd((3,)), []
    for i in range(len(AMOUNTS)):
        before = copy.copy(stats)
        for observation in seen_in(i, rank):
            stats.update(observation[None])
        stats.share(before)
        states.append(vars(copy.copy(stats)))
    return states


def watch():
    """Several runs, watched from inside, in one process group, which is set up and ended here."""
    end, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    part = {name: x[:, 16 * rank : 16 * (rank + 1)] for name, x in samples().items()}
    seen = {"learned": learn_from(part), "shared": share_statistics(rank)}

    steps = listen(ppo, "adam", lambda params, gradients, *_: gradients[0].clone())
    sums = listen(ppo, "all_sum", torch.clone)
    minibatches = listen(ppo, "compute_gradient", lambda agent, params, batch, *_: batch)
    rollouts = listen(ppo, "compute_gae", lambda rewards, *_: rewards.copy())
    noise = listen(ppo, "sample_actions", lambda logits, forbidden, noise: noise)
    updates = listen(RunningMeanStd, "update", lambda stats, batch: batch.copy())

    settings = {"num_envs": 8, "num_steps": 16, "num_minibatches": 1, "update_epochs": 1, "max_grad_norm": 1e9}
    result = train(Args(env_id="worlds:Masked", exp_name="single", total_timesteps=128, **settings))
    seen["single"] = {"step": steps[0], "batch": minibatches[0], "rewards": rollouts[0], "run_dir": result["run_dir"]}
    seen["single"] |= {
        "gradient": next((x for x in sums if x.shape == steps[0].shape), None),
        "episodes": result["episodes"],
    }

    for recorded in (steps, noise, updates):
        recorded.clear()
    settings = {"norm_obs": True, "norm_reward": True, "target_kl": 0.01, "num_steps": 64, "learning_rate": 3e-3}
    result = train(Args(exp_name="normed", total_timesteps=2048, **settings))
    seen["normed"] = {"parameters": parameters(result), "steps": len(steps), "noise": noise[0], "updates": [*updates]}
    seen["normed"] |= {"episodes": result["episodes"], "stats": vars(result["stats"]["obs"])}
    if rank == 0:
        seen["normed"]["saved"] = ppo.load_checkpoint(str(result["run_dir"]))["stats"]

    result = train(Args(exp_name="stopped", stop_return=0.0, total_timesteps=50_000))
    seen["stopped"] = {"steps": result["global_step"], "episodes": result["episodes"]}

    settings = {"num_envs": 8, "num_steps": 32, "learning_rate": 0.01, "num_minibatches": 1}
    result = train(Args(env_id="worlds:Probe5", exp_name="probe", total_timesteps=10_240, **settings))
    seen["agent"] = result["agent"].state_dict()
    end()
    return seen


# The tests


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The folder of the runs that both processes watched, what they printed, and what each saw."""
    folder = tmp_path_factory.mktemp("watched")
    code, printed = perform(folder, "watch")
    assert code == 0, printed
    return folder, printed, returned(folder)


class TestNumbers:
    """Each process has its own environments, and both together learn as one process would from all of them."""

    def test_the_gradient_is_that_of_all_samples(self, watched):
        """Of both processes' valid ones, however many each has; so are diagnostics and normalised advantages."""
        batch = samples()
        counts = batch["valid"].view(2, 2, 16).sum(-1)
        assert (counts[:, 1] > 2 * counts[:, 0]).all() and (counts[:, 0] > 0).all()
        first, second = (seen["learned"] for seen in watched[2])
        for i, (gradient, diagnostics, advantages) in enumerate(learn_from(batch)):
            assert torch.equal(first[i][0], second[i][0])
            torch.testing.assert_close(first[i][0], gradient, atol=1e-6, rtol=1e-5)
            assert first[i][1] == second[i][1] == pytest.approx(diagnostics, rel=1e-5, abs=1e-6)
            both = torch.cat([first[i][2], second[i][2]])
            torch.testing.assert_close(both, advantages, atol=1e-5, rtol=1e-5)
            assert both[batch["valid"][i]].mean().item() == pytest.approx(0, abs=1e-6)
            assert both[batch["valid"][i]].std(correction=0).item() == pytest.approx(1, rel=1e-5)

    def test_an_update_takes_the_sum_of_the_gradients(self, watched):
        first, second = (seen["single"] for seen in watched[2])
        assert not torch.equal(first["gradient"], second["gradient"])
        torch.testing.assert_close(first["step"], first["gradient"] + second["gradient"])
        assert torch.equal(first["step"], second["step"])

    def test_parameters_stay_equal_bit_for_bit(self, watched):
        """Also when the limit of the KL divergence ends epochs early, which both do at once."""
        first, second = (seen["normed"] for seen in watched[2])
        assert torch.equal(first["parameters"], second["parameters"])
        assert 8 * 4 < first["steps"] == second["steps"] < 8 * 16

    def test_both_see_the_same_episodes(self, watched):
        first, second = (seen["normed"]["episodes"] for seen in watched[2])
        assert first == second
        assert len(first) > 20

    def test_environments_and_actions_differ(self, watched):
        starts = [start for seen in watched[2] for start in seen["normed"]["updates"][0].tolist()]
        assert len({tuple(start) for start in starts}) == 4
        first, second = (seen["normed"]["noise"] for seen in watched[2])
        assert (first != second).all()

    def test_shared_statistics_are_those_of_everything(self, watched):
        """After each round, also if a process has seen nothing in it; and with the same bits."""
        everything, expected = [], RunningMeanStd((3,))
        for i, (first, second) in enumerate(zip(*(seen["shared"] for seen in watched[2]), strict=True)):
            for rank in range(2):
                everything += seen_in(i, rank).tolist()
                expected.update(seen_in(i, rank))
            assert first["count"] == second["count"] == expected.count == len(everything)
            for name in ("mean", "var"):
                assert first[name].tolist() == second[name].tolist()
                np.testing.assert_allclose(first[name], getattr(expected, name), rtol=1e-9)
            if everything:
                np.testing.assert_allclose(first["mean"], np.mean(everything, 0), rtol=1e-9)
                np.testing.assert_allclose(first["var"], np.var(everything, 0), rtol=1e-9)

    def test_normalisation_of_a_run(self, watched):
        """Its statistics are those of all observations and returns of both processes, each counted once."""
        first, second = (seen["normed"] for seen in watched[2])
        for part, ndim in (("obs", 2), ("return", 1)):
            updates = [x for seen in (first, second) for x in seen["updates"] if x.ndim == ndim]
            everything = np.concatenate(updates, dtype=np.float64)
            saved = {name: x.numpy() for name, x in first["saved"][part].items()}
            assert saved["count"] == len(everything)
            np.testing.assert_allclose(saved["mean"], everything.mean(0), rtol=1e-9)
            np.testing.assert_allclose(saved["var"], everything.var(0), rtol=1e-9)
        for name in ("mean", "var", "count"):
            assert np.array_equal(first["stats"][name], second["stats"][name])
            assert np.array_equal(first["stats"][name], first["saved"]["obs"][name].numpy())

    def test_logged_are_all_samples(self, watched):
        """Losses of both processes' valid samples, and all episodes; at the first update, with ratios of 1."""
        runs = [seen["single"] for seen in watched[2]]
        batch = {
            name: torch.cat([run["batch"][name][run["batch"]["valid"]] for run in runs]).numpy()
            for name in ("returns", "values", "forbidden")
        }
        logged = {name: values[128] for name, values in scalars({"run_dir": watched[0] / runs[0]["run_dir"]}).items()}
        advantages = batch["returns"] - batch["values"]
        unexplained = advantages.var() / batch["returns"].var()
        assert logged["losses/value_loss"] == pytest.approx(0.5 * (advantages**2).mean(), rel=1e-4)
        assert logged["losses/advantage_mean"] == pytest.approx(advantages.mean(), rel=1e-4)
        assert logged["losses/advantage_std"] == pytest.approx(advantages.std(), rel=1e-4)
        assert logged["losses/residual_variance"] == pytest.approx(unexplained, rel=1e-4)
        assert logged["losses/explained_variance"] == pytest.approx(1 - unexplained, abs=1e-4)
        assert logged["losses/grad_norm"] == pytest.approx(runs[0]["step"].norm().item(), rel=1e-4)
        most = np.log((~batch["forbidden"]).sum(-1)).mean()
        assert logged["losses/relative_entropy"] == pytest.approx(logged["losses/entropy"] / most, rel=1e-4)
        # 8 environments, each of which ends and resets 4 episodes of 3 steps in these 16 steps
        assert len(runs[0]["episodes"]) == 32
        total = sum(run["rewards"].sum() for run in runs)
        assert logged["charts/episodic_return"] == pytest.approx(total / 32, rel=1e-6)
        assert logged["charts/episodic_length"] == 3

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
    folder, ((out, _), (silence, _)), _ = watched
    assert out.count("Done: ") == 4
    assert silence == ""
    names = ["CartPole-v1__normed", "CartPole-v1__stopped", "worlds_Masked__single", "worlds_Probe5__probe"]
    runs = sorted((folder / "runs").iterdir())
    assert [run.name.rsplit("__", 2)[0] for run in runs] == names
    for run in runs:
        assert sorted(path.name.split(".")[0] for path in run.iterdir()) == ["args", "checkpoint", "events"]


def test_environments_that_can_not_be_shared_out(tmp_path):
    code, printed = launch(tmp_path, ROOT / "ppo.py", "--num-envs", "3")
    assert code != 0
    assert printed == [("", "ppo.py: error: --num-envs 3 must be a multiple of the 2 processes\n")] * 2
    assert not (tmp_path / "runs").exists()


def found_as_saved(found, saved):
    assert torch.equal(found["parameters"], nn.utils.parameters_to_vector(saved["agent"].values()))
    assert all(torch.equal(a, b) for a, b in zip(found["adam"], saved["adam"], strict=True))


class TestEnding:
    def go_on(self, monkeypatch, run_dir, steps):
        """For another iteration, in one process, from where two left it."""
        saved = ppo.load_checkpoint(run_dir)
        assert saved["global_step"] == steps
        for owner, name in ((ppo, "adam"), (RunningMeanStd, "share")):
            monkeypatch.setattr(owner, name, getattr(owner, name))  # put back after the test
        found = resume(run_dir, "--total-timesteps", str(steps + BATCH))
        found_as_saved(found, saved)
        assert (found["steps"], found["updates"]) == (steps + BATCH, 16)
        assert list(scalars({"run_dir": run_dir})["charts/SPS"]) == list(range(BATCH, steps + BATCH + 1, BATCH))
        assert np.isfinite(ppo.load_checkpoint(run_dir)["episodes"]).all()

    def test_a_process_that_dies_ends_the_other(self, monkeypatch, tmp_path):
        """With an error; and the last checkpoint stays."""
        code, ((out, err), _) = perform(tmp_path, "signal_in_third_iteration", "one", "SIGKILL")
        assert code != 0
        assert "Traceback" in err
        assert "Done" not in out and "Stopped" not in out
        self.go_on(monkeypatch, only_run(tmp_path), 2 * BATCH)

    @pytest.mark.parametrize("whom", ["one", "torchrun", "all"])
    def test_a_signal_to_some_stops_both(self, whom, monkeypatch, tmp_path):
        """After the iteration in hand and a checkpoint; each may get the signal more than once."""
        code, printed = perform(tmp_path, "signal_in_third_iteration", whom, "SIGTERM")
        assert code != 0
        ((out, err), (silence, other_err)) = printed
        assert silence == err == other_err == ""
        steps = int(out.split("Stopped: ")[1].split(" steps")[0].replace(",", ""))
        assert steps == 3 * BATCH if whom == "one" else steps >= 3 * BATCH
        self.go_on(monkeypatch, only_run(tmp_path), steps)


def test_two_go_on_with_the_run_of_one(tmp_path):
    run_dir = str(command(*SHORT, "--total-timesteps", str(4 * BATCH))["run_dir"])
    saved = ppo.load_checkpoint(run_dir)
    code, printed = perform(tmp_path, "resume", run_dir, "--total-timesteps", str(8 * BATCH))
    assert code == 0, printed
    first, second = returned(tmp_path)
    for found in (first, second):
        found_as_saved(found, saved)
        for before, stats in zip(found["stats"], saved["stats"].values(), strict=True):
            assert all(np.array_equal(before[name], x.numpy()) for name, x in stats.items())
        assert (found["steps"], found["updates"]) == (8 * BATCH, 4 * 16)
    assert torch.equal(first["new parameters"], second["new parameters"])
    assert only_run(tmp_path) == f"{tmp_path}/{run_dir}"
    assert list(scalars({"run_dir": run_dir})["charts/SPS"]) == list(range(BATCH, 8 * BATCH + 1, BATCH))
    assert np.isfinite(ppo.load_checkpoint(run_dir)["episodes"]).all()


if __name__ == "__main__":
    for signum in (signal.SIGINT, signal.SIGTERM):  # as the script does
        signal.signal(signum, ppo.request_stop)
    torch.save(globals()[sys.argv[1]](*sys.argv[2:]), f"process{os.environ['RANK']}.pt")
