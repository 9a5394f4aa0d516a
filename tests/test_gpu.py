"""The scripts on a GPU against the CPU: `python -m pytest tests/test_gpu.py --gpu`. Skipped without `--gpu`."""

import json

import numpy as np
import pytest
import torch

import ppo
import ppo_atari
import ppo_continuous
import ppo_lstm
import ppo_procgen
from test_train import parameters

SMALL = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2, "learning_rate": 1e-3}
WORLDS = {ppo: "Anything", ppo_continuous: "AnythingContinuous", ppo_atari: "Arcade", ppo_procgen: "Arcade"}
WORLDS |= {ppo_lstm: "Anything"}
COMPILED = [script for script in WORLDS if hasattr(script.Args, "compile")]


def float32(script):
    return {"bf16": False} if hasattr(script.Args, "bf16") else {}


@pytest.fixture
def device(request):
    if not request.config.getoption("gpu"):
        pytest.skip("needs --gpu")
    assert torch.cuda.is_available(), "--gpu needs one"
    return "cuda"


@pytest.fixture
def train(monkeypatch):
    """Trains for some iterations: the result, parameters on the CPU, and the minibatches on the CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # 10 bits of 23

    def run(script, device, iterations=1, **changes):
        minibatches, compute_gradient = [], script.compute_gradient

        def record(agent, params, batch, left, args):
            assert {x.device.type for x in [*params, *batch.values(), left]} == {device}
            if not torch.compiler.is_compiling():
                minibatches.append({name: x.cpu().clone() for name, x in batch.items()})
            return compute_gradient(agent, params, batch, left, args)

        arguments = {"env_id": f"worlds:{WORLDS[script]}", "device": device, **SMALL, **changes}
        batch_size = arguments["num_envs"] * arguments["num_steps"]
        with monkeypatch.context() as patch:
            patch.setattr(script, "compute_gradient", record)
            result = script.train(script.Args(**{"total_timesteps": iterations * batch_size} | arguments))
        return result, parameters(result).cpu(), minibatches

    return run


@pytest.mark.parametrize("script", WORLDS)
def test_one_update_as_on_the_cpu(script, train, device):
    """From the same rollout, to rounding. That acting chose the same actions is a part of it."""
    changes = float32(script)
    runs = [train(script, where, **changes) for where in ("cpu", device)]
    for ours, theirs in zip(*(minibatches for _, _, minibatches in runs), strict=True):
        for name in ours:
            assert name != "obs" or torch.equal(ours[name], theirs[name])
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-4, msg=name)
    (_, ours, _), (_, theirs, _) = runs
    start = train(script, "cpu", learning_rate=0.0, **changes)[1]
    step = (ours - start).abs().max()
    assert step > 1e-3
    # Adam divides by the size of a gradient: where that is nearly 0, its rounding counts
    assert ((ours - theirs).abs() > 0.01 * step).float().mean() < 1e-3


def test_observations_arrive_whole(train, device):
    """The memory that the device reads them from is written again while it computes."""
    runs = [
        train(ppo_atari, where, iterations=6, num_envs=8, learning_rate=0.0, bf16=False) for where in ("cpu", device)
    ]
    for ours, theirs in zip(*(minibatches for _, _, minibatches in runs), strict=True):
        assert torch.equal(ours["obs"], theirs["obs"])
        assert torch.equal(ours["actions"], theirs["actions"])


@pytest.mark.parametrize(
    ("script", "compiled"), [*[(script, False) for script in WORLDS], *[(script, True) for script in COMPILED]]
)
def test_same_seed_same_run(script, compiled, train, device):
    """Bit by bit, with `torch_deterministic`; for pixels in bfloat16, where the device has it."""
    runs = []
    for _ in range(2):
        torch.compiler.reset()
        runs.append(train(script, device, iterations=4, **({"compile": True} if compiled else {}))[1])
    assert torch.equal(*runs)


@torch._inductor.config.patch({"triton.cudagraph_or_error": True, "graph_partition": False})  # in one graph
@torch._dynamo.config.patch(error_on_recompile=True)
@pytest.mark.parametrize("script", COMPILED)
def test_compiled_agrees_with_eager(script, train, device):
    """And is compiled once, whatever changes from iteration to iteration; on a GPU into graphs."""
    torch.compiler.reset()  # what other tests compiled
    changes = {"iterations": 3, "anneal_clip": True, "anneal_ent": True, "learning_rate": 1e-4}
    changes |= float32(script)
    plain, compiled = (train(script, device, compile=compiled, **changes)[1] for compiled in (False, True))
    assert ((plain - compiled).abs() > 1e-5).float().mean() < 1e-3


def test_other_sizes(train, device, monkeypatch):
    """No layer without a deterministic gradient."""
    monkeypatch.setattr("worlds.Arcade.observation_space", ppo_atari.gym.spaces.Box(0, 255, (96, 100, 3), np.uint8))
    monkeypatch.setattr("worlds.Arcade.observe", lambda self: self.np_random.integers(0, 256, (96, 100, 3), np.uint8))
    monkeypatch.setattr("worlds.Arcade.info", lambda self: {})
    runs = [train(ppo_atari, device, iterations=2)[1] for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("script", WORLDS)
@pytest.mark.parametrize("order", [1, -1])
def test_resuming_on_another_device(script, order, train, device):
    """A checkpoint is of no device; what comes after is as if the run had stayed."""
    first, second = ["cpu", device][::order]
    changes = {"anneal_lr": False} | float32(script)
    run_dir, ends = str(train(script, first, iterations=2, **changes)[0]["run_dir"]), []
    saved = (np.fromfile(f"{run_dir}/checkpoint.pt", np.uint8), script.load_checkpoint(run_dir))
    for where in (first, second):
        saved[0].tofile(f"{run_dir}/checkpoint.pt")
        result, end, _ = train(script, where, iterations=3, resume=run_dir, **changes)
        assert result["global_step"] == 3 * saved[1]["global_step"] // 2
        ends.append(end)
    moved = max((x.cpu() - saved[1]["agent"][name]).abs().max() for name, x in result["agent"].state_dict().items())
    assert moved > 1e-3
    assert ((ends[0] - ends[1]).abs() > 0.01 * moved).float().mean() < 1e-3


@pytest.mark.parametrize("script", [ppo, ppo_continuous])
def test_numpy_acts(script, train, device, monkeypatch):
    """Also where learning is on a GPU: small networks would else wait for it at every step."""
    act, in_numpy = script.Agent.act, []

    def record(self, *args, **kwargs):
        in_numpy.append("policy" in vars(self))
        return act(self, *args, **kwargs)

    monkeypatch.setattr(script.Agent, "act", record)
    train(script, device, iterations=3)
    assert len(in_numpy) == 3 * SMALL["num_steps"] and all(in_numpy)


def test_evaluation_of_a_run(train, device):
    run_dir = train(ppo_atari, device)[0]["run_dir"]
    assert json.loads((run_dir / "args.json").read_text())["device"] == device
    agent, envs = ppo_atari.load(run_dir)
    envs.close()
    assert len(ppo_atari.evaluate(agent, ppo_atari.load_checkpoint(run_dir)["args"], 3)) == 3
