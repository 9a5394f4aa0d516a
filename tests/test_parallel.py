"""One run in two processes, as torchrun starts them: they learn as one, and share one fate."""

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gymnasium.spaces import Discrete

import ppo
from conftest import ROOT, make_agent
from ppo import Args, RunningMeanStd, compute_gradient, train
from test_probes import probability, value
from test_train import parameters, scalars

TARGET_KL = 0.01  # of the run `normed`
BATCH = 4 * 32  # steps of an iteration in the runs that end before their time
SHORT = {"num_steps": 32, "learning_rate": 0.003, "norm_obs": True, "norm_reward": True, "save_interval": 0}


def end(torchrun):
    """At once, as a machine without power does: its processes, which have groups of their own, first."""
    rows = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout.split("\n")
    pairs = [tuple(map(int, row.split())) for row in rows if row]
    for pid in [pid for pid, parent in pairs if parent == torchrun.pid] + [torchrun.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    torchrun.wait()


def launch(folder, script, *args):
    """Run a script in two processes: torchrun's exit code, and standard output and standard error of each process."""
    flags = ["--standalone", "--nproc-per-node=2", "--redirects=3", "--log-dir=logs"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, str(script), *args]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PYTHONUNBUFFERED": ""}
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = (
        "300"  # seconds for an iteration and a save on a busy machine, not 30
    )
    torchrun = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        code = torchrun.wait(timeout=600)
    except subprocess.TimeoutExpired:
        pytest.fail("two processes wait for each other")
    finally:
        if torchrun.poll() is None:
            end(torchrun)
    logs = Path(folder).glob("logs/*/attempt_0/*")
    return code, [((log / "stdout.log").read_text(), (log / "stderr.log").read_text()) for log in sorted(logs)]


# What the two processes do


def listen(owner, name, keep, result=False):
    """From now on, a list of what `keep` makes of the arguments, or of the result, of each call of owner.name."""
    seen, function = [], getattr(owner, name)

    def call(*args, **kwargs):
        if result:
            seen.append(keep(output := function(*args, **kwargs)))
            return output
        seen.append(keep(*args))
        return function(*args, **kwargs)

    setattr(owner, name, call)
    return seen


def signal_in_third_iteration(whom, signum):
    """Process 1 sends a signal to itself, to torchrun, or to all three."""
    iterations, both = [], [None, None]

    def send(*args):
        iterations.append(0)
        if not both[0]:
            dist.all_gather_object(both, os.getpid())
        if len(iterations) == 3 and ppo.RANK == 1:
            pids = {"one": both[1:], "torchrun": [os.getppid()], "all": [*both, os.getppid()]}[whom]
            for pid in pids:
                os.kill(pid, getattr(signal, signum))

    if signum == "SIGKILL":  # torchrun's SIGTERM to the other may come when `train` is over and nothing is printed yet
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listen(ppo, "compute_gae", send)
    sys.exit(train(Args(total_timesteps=10**6, **SHORT))["exit_code"])


def train_until_power_fails(run_dir, machine):
    """Goes on with a run; at its first start, the second machine comes to a halt in the third iteration."""
    iterations = []

    def halt(*args):
        iterations.append(0)
        if len(iterations) == 3 and machine == "1" and not Path("halted").exists():
            Path("halted").touch()
            time.sleep(600)

    listen(ppo, "compute_gae", halt)
    started = ppo.load_checkpoint(run_dir)["global_step"]
    result = train(Args(resume=run_dir, total_timesteps=8 * BATCH))
    torch.save({"started": started, "parameters": parameters(result), "world": ppo.WORLD_SIZE}, f"rank{ppo.RANK}.pt")


def samples():
    """A minibatch for each of two processes; more of the first one's steps only reset."""
    generator, batches = torch.Generator().manual_seed(4), []
    for likely in (0.3, 0.9):
        random = torch.rand(16, 5, generator=generator)
        batch = {"obs": torch.randn(16, 6, generator=generator), "masks": torch.ones(16, 1, 3, dtype=torch.bool)}
        batch |= {"actions": torch.randint(3, (16, 1), generator=generator), "valid": random[:, 0] < likely}
        batch |= {"logprobs": random[:, 1] - 1.6, "values": random[:, 2], "returns": 3 * random[:, 3]}
        batches.append(batch | {"advantages": 2 * random[:, 4] + 1})
    return batches


def learn_from(batch, max_grad_norm):
    torch.manual_seed(5)
    agent = make_agent(ppo, 6, Discrete(3))
    return compute_gradient(agent, list(agent.parameters()), batch, 1.0, Args(max_grad_norm=max_grad_norm))


AMOUNTS = [(0, 3), (5, 2), (0, 7), (4, 0), (0, 0), (1, 40)]  # of data that each process has seen in each round


def seen_in(round_number, rank):
    return 5 + 2 * np.random.default_rng([round_number, rank]).normal(size=(AMOUNTS[round_number][rank], 3))


def share_statistics(rank):
    """Mean, variance and count after each round."""
    stats, states = RunningMeanStd((3,)), []
    for i in range(len(AMOUNTS)):
        stats.update(seen_in(i, rank))
        states.append({name: x.clone() for name, x in stats.state_dict().items()})
    return states


def watch(run_of_one):
    """Several runs, watched from inside."""
    dist.init_process_group("gloo")
    seen = {"learned": learn_from(samples()[ppo.RANK], 0.1), "shared": share_statistics(ppo.RANK)}
    minibatches = listen(ppo, "compute_gradient", lambda agent, params, batch, *_: batch)
    rollouts = listen(ppo, "compute_gae", lambda rewards, *_: rewards.copy())
    noise = listen(ppo.Agent, "act", lambda agent, obs, masks, noise: noise.copy())
    updates = listen(RunningMeanStd, "update", lambda stats, data: data.copy())

    settings = {"num_envs": 8, "num_steps": 16, "num_minibatches": 1, "update_epochs": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: 1e9 + 10 * len(rollouts))  # iterations of ten seconds
        result = train(Args(env_id="worlds:Masked", exp_name="single", total_timesteps=128, **settings))
    seen["single"] = {"batch": minibatches[0], "rewards": rollouts[0], "episodes": result["episodes"]}
    seen["single"]["run_dir"] = result["run_dir"]

    for recorded in (minibatches, noise, updates, rollouts):
        recorded.clear()
    kls = listen(ppo, "compute_gradient", lambda found: (len(rollouts), found[1]["approx_kl"].item()), result=True)
    orders = listen(torch, "randperm", lambda order: order.tolist(), result=True)
    settings = {"norm_obs": True, "norm_reward": True, "target_kl": TARGET_KL, "num_steps": 64, "learning_rate": 3e-3}
    result = train(Args(exp_name="normed", total_timesteps=2048, **settings))
    seen["normed"] = {"state": result["agent"].state_dict(), "steps": len(minibatches), "noise": [*noise]}
    seen["normed"] |= {"kls": [*kls], "orders": [*orders]}
    seen["normed"] |= {"episodes": result["episodes"], "updates": [*updates], "run_dir": result["run_dir"]}

    result = train(Args(exp_name="stopped", stop_return=0.0, total_timesteps=50_000))
    seen["stopped"] = {"steps": result["global_step"], "episodes": result["episodes"]}

    settings = {"num_envs": 8, "num_steps": 32, "learning_rate": 0.01, "num_minibatches": 1}
    result = train(Args(env_id="worlds:Probe5", exp_name="probe", total_timesteps=10_240, **settings))
    seen["probe"] = result["agent"].state_dict()

    noise.clear()
    adam = listen(torch.optim.Adam, "step", lambda adam: [x.clone() for x in (adam.param_groups[0]["params"][0],)])
    result = train(Args(resume=run_of_one, total_timesteps=8 * BATCH))
    seen["resumed"] = {"found": adam[0][0], "updates": len(adam), "parameters": parameters(result)}
    seen["resumed"] |= {"episodes": result["episodes"], "noise": [*noise]}
    dist.destroy_process_group()
    torch.save(seen, f"process{ppo.RANK}.pt")


# The tests


def makers(folder):
    """Where each process of the tests that makes the runs leaves a file."""
    return folder.parent.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The folder of the runs that both processes watched, what they printed, what each saw, and a run before them."""
    folder = tmp_path_factory.mktemp("watched")
    (makers(folder) / f"{os.getpid()}.watched").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = folder / train(Args(exp_name="of_one", total_timesteps=4 * BATCH, **SHORT))["run_dir"]
    saved = ppo.load_checkpoint(before)
    code, printed = launch(folder, __file__, "watch", str(before))
    assert code == 0, printed
    seen = [torch.load(folder / f"process{rank}.pt", weights_only=False) for rank in range(2)]
    return folder, printed, seen, (before, saved)


@pytest.mark.xdist_group("watched")
class TestWatched:
    """Each process has its own environments, and both together learn from all of them."""

    def test_the_gradient_is_the_mean_and_then_clipped(self, watched):
        gradients, diagnostics = zip(*(learn_from(batch, 1e9) for batch in samples()), strict=True)
        mean = (gradients[0] + gradients[1]) / 2
        assert mean.norm() > 0.2 and not torch.allclose(*gradients, rtol=0.1)
        for seen, own in zip(watched[2], diagnostics, strict=True):
            gradient, found = seen["learned"]
            torch.testing.assert_close(gradient, mean * 0.1 / (mean.norm() + 1e-6), atol=1e-7, rtol=1e-5)
            torch.testing.assert_close(found["grad_norm"], mean.norm())
            torch.testing.assert_close(found["value_loss"], own["value_loss"])  # averaged once an iteration
        assert torch.equal(watched[2][0]["learned"][0], watched[2][1]["learned"][0])

    def test_all_stays_equal_bit_for_bit(self, watched):
        """Parameters and statistics; also where the limit of the KL divergence ends epochs, which both do at once."""
        first, second = (seen["normed"] for seen in watched[2])
        assert all(torch.equal(x, second["state"][name]) for name, x in first["state"].items())
        assert first["state"]["obs_stats.count"].min() > 1900
        assert 8 * 4 < first["steps"] == second["steps"] < 8 * 16
        assert first["episodes"] == second["episodes"] and len(first["episodes"]) > 20

    def test_environments_and_actions_differ(self, watched):
        starts = [tuple(obs) for seen in watched[2] for obs in seen["normed"]["updates"][1][:2].tolist()]
        assert len(starts) == len(set(starts)) == 4
        for run in ("normed", "resumed"):
            first, second = (np.array(seen[run]["noise"]) for seen in watched[2])
            assert (first != second).all()

    def test_each_shuffles_by_itself(self, watched):
        orders = [tuple(order) for seen in watched[2] for order in seen["normed"]["orders"]]
        assert len(orders) == len({*orders}) >= 2 * 8

    def test_epochs_end_by_the_mean_kl(self, watched):
        """Of the latest epoch of both; also where that of one, or their sum, says otherwise."""
        otherwise = {"first": 0, "second": 0, "sum": 0}
        for iteration in range(1, 9):
            kls = np.array([[kl for i, kl in seen["normed"]["kls"] if i == iteration] for seen in watched[2]])
            first, second = kls.reshape(2, -1, 4).mean(-1)  # of epochs of four minibatches
            beyond = (first + second) / 2 > TARGET_KL
            assert not beyond[:-1].any() and (beyond[-1] or len(beyond) == 4)
            for name, kl in {"first": first, "second": second, "sum": first + second}.items():
                otherwise[name] += ((kl > TARGET_KL) != beyond).sum()
        assert min(otherwise.values()) > 0, otherwise

    def test_merged_statistics_are_those_of_everything(self, watched):
        """After each round, also if a process has seen nothing in it; and with the same bits."""
        everything = np.zeros((0, 3))
        for i, (first, second) in enumerate(zip(*(seen["shared"] for seen in watched[2]), strict=True)):
            everything = np.concatenate([everything, seen_in(i, 0), seen_in(i, 1)])
            assert all(torch.equal(x, second[name]) for name, x in first.items())
            assert (first["count"] == len(everything)).all()
            np.testing.assert_allclose(first["mean"], everything.mean(0), rtol=1e-5)
            np.testing.assert_allclose(first["var"], everything.var(0), rtol=1e-4)

    def test_normalisation_of_a_run(self, watched):
        """Its statistics are those of all observations and returns of both processes, each counted once."""
        runs = [seen["normed"] for seen in watched[2]]
        saved = ppo.load_checkpoint(watched[0] / runs[0]["run_dir"])["agent"]
        for part, ndim in (("obs_stats", 2), ("return_stats", 1)):
            everything = np.concatenate([x for run in runs for x in run["updates"] if x.ndim == ndim])
            assert (saved[f"{part}.count"] == len(everything)).all()
            np.testing.assert_allclose(saved[f"{part}.mean"], everything.mean(0), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(saved[f"{part}.var"], everything.var(0), rtol=1e-4)

    def test_logged_are_means_over_processes_and_all_episodes(self, watched):
        """At the first update, where ratios are 1."""
        runs = [seen["single"] for seen in watched[2]]
        logged = {name: x[128] for name, x in scalars({"run_dir": watched[0] / runs[0]["run_dir"]}).items()}
        expected = []
        for run in runs:
            batch = {name: x[run["batch"]["valid"]] for name, x in run["batch"].items()}
            advantages = batch["returns"] - batch["values"]
            unexplained = advantages.var(correction=0) / batch["returns"].var(correction=0)
            numbers = {"value_loss": 0.5 * (advantages**2).mean(), "advantage_mean": advantages.mean()}
            numbers |= {"advantage_std": advantages.std(correction=0), "residual_variance": unexplained}
            expected.append({name: x.item() for name, x in numbers.items()})
        for name in expected[0]:
            assert expected[0][name] != pytest.approx(expected[1][name], rel=1e-3)
            assert logged[f"losses/{name}"] == pytest.approx((expected[0][name] + expected[1][name]) / 2, rel=1e-4)
        # 8 environments, each of which ends and resets 4 episodes of 3 steps in these 16 steps
        assert len(runs[0]["episodes"]) == 32
        total = sum(run["rewards"].sum() for run in runs)
        assert logged["charts/episodic_return"] == pytest.approx(total / 32, rel=1e-6)
        assert logged["charts/episodic_length"] == 3
        assert logged["charts/SPS"] == pytest.approx(12.8)  # 128 steps of both together in ten seconds

    def test_a_probe_is_learned(self, watched):
        agent = make_agent(ppo, 1, Discrete(2))
        for seen in watched[2]:
            agent.load_state_dict(seen["probe"])
            assert probability(agent, [1.0], 1) > 0.95
            assert probability(agent, [-1.0], 0) > 0.95
            assert value(agent, 1.0) == pytest.approx(1, abs=0.1)

    def test_both_stop_when_solved(self, watched):
        first, second = (seen["stopped"] for seen in watched[2])
        assert first == second
        assert first["steps"] < 10_000 and len(first["episodes"]) == 100

    def test_process_0_alone_prints_and_writes(self, watched):
        folder, ((out, progress), silence), *_ = watched
        assert out.count("Done: ") == 5 and "steps/s" in progress
        assert silence == ("", "")
        runs = sorted((folder / "runs").iterdir())
        assert [run.name.split("__")[1] for run in runs] == ["normed", "of_one", "stopped", "single", "probe"]
        for run in runs:
            names = sorted({path.name.split(".")[0] for path in run.iterdir()})
            assert names == ["args", "checkpoint", "events"]

    def test_two_go_on_with_the_run_of_one(self, watched):
        before, saved = watched[3]
        first, second = (seen["resumed"] for seen in watched[2])
        found = torch.cat([x.flatten() for name, x in saved["agent"].items() if "stats" not in name])
        assert torch.equal(first["found"], found) and torch.equal(second["found"], found)
        assert first["updates"] == second["updates"] == 4 * 16
        assert torch.equal(first["parameters"], second["parameters"])
        assert first["episodes"] == second["episodes"]
        assert first["episodes"][: len(saved["episodes"])] == saved["episodes"] or len(first["episodes"]) == 100
        assert list(scalars({"run_dir": before})["charts/SPS"]) == list(range(BATCH, 8 * BATCH + 1, BATCH))
        after = ppo.load_checkpoint(before)
        assert after["optimizer"]["state"][0]["step"] == 8 * 16
        assert after["agent"]["obs_stats.count"].min() > 1.8 * saved["agent"]["obs_stats.count"].max()

    def test_the_runs_are_made_once(self, watched):
        """One process gets this whole class: pytest-xdist 3.8.0 keeps groups together, but not with pytest 9.2.0."""
        assert len([*makers(watched[0]).glob("*.watched")]) == 1


def test_compiled_gradients_are_averaged_too(monkeypatch):
    """Averaging is in the function that `--compile` compiles; here the sum over processes is three times one's own."""
    agent, rng = make_agent(ppo, 4, Discrete(2)), np.random.default_rng(0)
    batch = {"obs": torch.from_numpy(rng.normal(size=(8, 4)).astype(np.float32)), "valid": torch.ones(8) > 0}
    batch |= {"actions": torch.zeros(8, 1, dtype=torch.int64), "masks": torch.ones(8, 1, 2) > 0}
    batch |= {name: torch.from_numpy(rng.normal(size=8).astype(np.float32)) for name in ("advantages", "returns")}
    given = [agent, [*agent.parameters()], batch | {"logprobs": -torch.ones(8), "values": torch.zeros(8)}]
    given += [torch.tensor(1.0), Args(max_grad_norm=1e6)]
    own, _ = compute_gradient(*given)
    monkeypatch.setattr(ppo, "WORLD_SIZE", 2)
    monkeypatch.setattr(dist, "all_reduce", lambda x: x.mul_(3))
    with ppo.process_settings():
        compiled, _ = torch.compile(compute_gradient, fullgraph=True, backend="eager")(
            *given
        )  # traced, as for any backend
    torch.testing.assert_close(compiled, 1.5 * own)
    assert own.abs().max() > 0.01


@pytest.mark.parametrize("name", ["ppo", "ppo_continuous", "ppo_atari", "ppo_procgen", "ppo_lstm"])
def test_processes_without_a_gpu_where_there_is_one(name, monkeypatch):
    """What is on the CPU can be averaged on any machine: by default, PyTorch takes only what its GPU needs."""
    script, begin = importlib.import_module(name), dist.init_process_group

    class Begun(Exception):
        pass

    def alone(*args, **options):
        begin(*args, **options, store=dist.HashStore(), rank=0, world_size=1)
        dist.all_reduce(x := torch.ones(3))
        assert x.tolist() == [1, 1, 1]
        raise Begun

    monkeypatch.setattr(dist, "init_process_group", alone)
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(script, "WORLD_SIZE", 2)
    try:
        with pytest.raises(Begun):
            script.train(script.Args(num_envs=8, cuda=False))
    finally:
        dist.destroy_process_group()


def go_on(folder, steps):
    """For another iteration, in one process, from where two left it."""
    (run_dir,) = Path(folder, "runs").iterdir()
    saved = ppo.load_checkpoint(run_dir)
    assert saved["global_step"] == steps
    time.sleep(1)  # event files are sorted by the second in which they began
    assert train(Args(resume=run_dir, total_timesteps=steps + BATCH))["global_step"] == steps + BATCH
    assert ppo.load_checkpoint(run_dir)["optimizer"]["state"][0]["step"] == (steps // BATCH + 1) * 16
    assert list(scalars({"run_dir": run_dir})["charts/SPS"]) == list(range(BATCH, steps + BATCH + 1, BATCH))


def test_a_process_that_dies_ends_the_other(tmp_path):
    """With an error; and the last checkpoint stays."""
    code, ((out, err), _) = launch(tmp_path, __file__, "signal_in_third_iteration", "one", "SIGKILL")
    assert code != 0
    assert "Traceback" in err
    assert "Done" not in out and "Stopped" not in out
    go_on(tmp_path, 2 * BATCH)


@pytest.mark.parametrize(("whom", "signum"), [("one", "SIGINT"), ("all", "SIGTERM")])
def test_a_signal_to_some_stops_both(whom, signum, tmp_path):
    """After the iteration in hand and a checkpoint; each may get the signal more than once."""
    code, ((out, err), silence) = launch(tmp_path, __file__, "signal_in_third_iteration", whom, signum)
    assert code != 0
    assert "Traceback" not in err and silence == ("", "")
    steps = int(out.split("Stopped: ")[1].split(" steps")[0].replace(",", ""))
    assert steps == 3 * BATCH if whom == "one" else steps >= 3 * BATCH
    go_on(tmp_path, steps)


def test_two_machines(tmp_path, monkeypatch):
    """Two agents of torchrun, as on two machines with a common folder: one is killed, and started again goes on from
    the last checkpoint, with the other. Parameters are equal bit for bit."""
    monkeypatch.chdir(tmp_path)
    run_dir = str(train(Args(total_timesteps=2 * BATCH, **SHORT))["run_dir"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    agents = []

    def start(machine):
        flags = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", "--rdzv-backend=c10d", "--rdzv-id=7"]
        flags += [f"--rdzv-endpoint={address}", "--local-addr=127.0.0.1", "--redirects=3", f"--log-dir=logs{machine}"]
        flags += [f"--rdzv-conf=is_host={machine == 0},keep_alive_interval=1,keep_alive_max_attempt=2"]
        arguments = [__file__, "train_until_power_fails", run_dir, str(machine)]
        command = [sys.executable, "-m", "torch.distributed.run", *flags, *arguments]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else one that comes back waits for an old address
        agents.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))

    try:
        start(0)
        start(1)
        for _ in range(1200):  # the other one may still be saving
            if Path("halted").exists() and ppo.load_checkpoint(run_dir)["global_step"] == 4 * BATCH:
                break
            time.sleep(0.1)
        else:
            pytest.fail("they don't come to the third iteration")
        end(agents[1])
        start(1)
        assert [agents[0].wait(timeout=300), agents[2].wait(timeout=300)] == [0, 0]
    finally:
        for agent in agents:
            if agent.poll() is None:
                end(agent)
    first, second = (torch.load(f"rank{rank}.pt") for rank in (0, 1))
    assert first["started"] == second["started"] == 4 * BATCH and first["world"] == second["world"] == 2
    assert torch.equal(first["parameters"], second["parameters"])
    saved = ppo.load_checkpoint(run_dir)
    assert saved["global_step"] == 8 * BATCH and saved["optimizer"]["state"][0]["step"] == 8 * 16
    assert list(scalars({"run_dir": run_dir})["charts/SPS"]) == list(range(BATCH, 8 * BATCH + 1, BATCH))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
