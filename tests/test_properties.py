"""What holds for all shapes, ends, masks and seeds (with hypothesis), and for spaces made at random."""

import math
import warnings

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import ppo
import ppo_atari
import ppo_continuous
import worlds
from conftest import make_agent
from test_train import parameters, scalars

seeds = st.integers(0, 2**32 - 1)


@st.composite
def action_masks(draw):
    """The numbers of choices of some components, and a mask for each of some environments."""
    choices = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    count = draw(st.integers(1, 5))
    masks = draw(arrays.arrays(np.int8, (count, sum(choices)), elements=st.integers(0, 1)))
    starts = np.cumsum([0, *choices[:-1]])
    for mask in masks:
        for first, k in zip(starts, choices, strict=True):
            if not mask[first : first + k].any():
                mask[first + draw(st.integers(0, k - 1))] = 1
    return choices, masks


@given(action_masks(), seeds)
def test_masks(choices_and_masks, seed):
    """Forbidden choices are never taken and have no probability; those of what is allowed add up to 1."""
    choices, masks = choices_and_masks
    rng, N = np.random.default_rng(seed), len(masks)
    torch.manual_seed(seed)
    agent = make_agent(ppo, 3, spaces.MultiDiscrete(choices))
    allowed = agent.masks({"action_mask": masks}, np.zeros(N, bool))
    assert allowed.shape == (N, len(choices), max(choices))
    for n in range(N):
        row = np.concatenate([row[:k] for row, k in zip(allowed[n], choices, strict=True)])
        assert row.tolist() == masks[n].astype(bool).tolist()
    for greedy in [False] * 5 + [True]:
        actions = agent.act(rng.normal(0, 3, (N, 3)), allowed, greedy=greedy)
        assert np.take_along_axis(allowed, actions[..., None], -1).all()
    # All combinations of choices, for the first environment
    combinations = torch.cartesian_prod(*map(torch.arange, choices)).view(-1, len(choices))
    obs = torch.randn(1, 3).repeat(len(combinations), 1)
    repeated = torch.from_numpy(allowed[:1]).repeat(len(combinations), 1, 1)
    logprob, entropy, _ = agent({"obs": obs, "masks": repeated, "actions": combinations})
    assert logprob.exp().sum().item() == pytest.approx(1, abs=1e-4)
    most = np.log(allowed[0].sum(-1)).sum()
    assert -1e-5 <= entropy[0].item() <= most + 1e-5


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=8, phases=[Phase.generate])  # a smaller example is not worth minutes of training
@given(
    script=st.sampled_from([(ppo, "worlds:Masked"), (ppo_continuous, "worlds:Continuous2")]),
    shape=st.tuples(st.integers(1, 4), st.integers(2, 9), st.integers(1, 4)),
    normalised=st.booleans(),
    iterations=st.integers(2, 5),
    seed=seeds,
)
def test_checkpoints(script, shape, normalised, iterations, seed):
    """Resumed twice from one checkpoint, a run ends with the same numbers; what was saved is what it goes on with."""
    module, env_id = script
    num_envs, num_steps, epochs = shape
    batch_size = num_envs * num_steps
    arguments = {"env_id": env_id, "num_envs": num_envs, "num_steps": num_steps, "update_epochs": epochs, "seed": seed}
    arguments |= {"norm_obs": normalised, "norm_reward": normalised, "num_minibatches": 1, "save_interval": 0.0}
    first = module.train(module.Args(**arguments, total_timesteps=batch_size * iterations))
    saved = module.load_checkpoint(first["run_dir"])
    assert saved["global_step"] == batch_size * iterations
    assert saved["args"].seed == seed
    for name, tensor in first["agent"].state_dict().items():
        assert torch.equal(saved["agent"][name], tensor)
    data, ends = (first["run_dir"] / "checkpoint.pt").read_bytes(), []
    rates = scalars(first)["charts/learning_rate"]
    for _ in range(2):
        (first["run_dir"] / "checkpoint.pt").write_bytes(data)
        result = module.train(module.Args(resume=first["run_dir"], total_timesteps=batch_size * (iterations + 2)))
        assert result["global_step"] == batch_size * (iterations + 2)
        assert scalars(result)["charts/learning_rate"].items() > rates.items()  # the curve went on behind them
        ends.append(parameters(result))
    assert torch.equal(*ends)


def random_box(rng, shape=None):
    """Bounds of all kinds, and all kinds of floats."""
    shape = tuple(rng.integers(1, 4, rng.integers(0, 3))) if shape is None else shape
    low, high = np.sort(rng.normal(0, 2, (2, *shape)), axis=0)
    low, high = np.where(rng.random(shape) < 0.3, -np.inf, low - 0.1), np.where(rng.random(shape) < 0.3, np.inf, high)
    dtype = rng.choice([np.float32, np.float64, np.float16])
    return spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype)


def random_observations(rng, depth=1):
    """Whatever gymnasium can flatten to a vector."""
    kind = rng.integers(6 if depth else 4)
    parts = [random_observations(rng, depth - 1) for _ in range(rng.integers(1, 4))] if kind > 3 else []
    return (
        lambda: random_box(rng),
        lambda: spaces.Discrete(int(rng.integers(2, 6)), start=int(rng.integers(-3, 3))),
        lambda: spaces.MultiBinary(int(rng.integers(1, 5))),
        lambda: spaces.MultiDiscrete(rng.integers(1, 5, rng.integers(1, 4))),
        lambda: spaces.Tuple(parts),
        lambda: spaces.Dict({f"part {i}": part for i, part in enumerate(parts)}),
    )[kind]()


def random_choices(rng):
    return (
        lambda: spaces.Discrete(int(rng.integers(1, 6)), start=int(rng.integers(-3, 3))),
        lambda: spaces.MultiBinary(tuple(rng.integers(1, 4, rng.integers(1, 3)))),
        lambda: spaces.MultiDiscrete(rng.integers(1, 5, rng.integers(1, 4)), start=None),
        lambda: spaces.MultiDiscrete(rng.integers(1, 4, (2, 2))),
    )[rng.integers(4)]()


def random_images(rng):
    sizes = [*rng.integers(8, 40, 2)]
    sizes.insert(rng.integers(2) * 2, rng.integers(1, 5))
    if math.prod(sizes) < 1024:
        return random_images(rng)
    return spaces.Box(0, 255, sizes, np.uint8)


@pytest.mark.parametrize("seed", [4, 7, 9])  # each script gets components with different numbers of choices
@pytest.mark.parametrize(
    ("script", "observations", "actions"),
    [
        (ppo, random_observations, random_choices),
        (ppo_continuous, random_observations, random_box),
        (ppo_atari, random_images, random_choices),
    ],
    ids=["ppo", "ppo_continuous", "ppo_atari"],
)
def test_updates_of_anything(script, observations, actions, seed, monkeypatch):
    """Random spaces, rewards, lengths and ends, under anomaly detection: nothing is ever not finite."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(worlds.Fuzz, "observation_space", observations(rng))
    monkeypatch.setattr(worlds.Fuzz, "action_space", actions(rng))
    gradients, compute_gradient = [], script.compute_gradient

    def record(*args):
        gradients.append(compute_gradient(*args))
        return gradients[-1]

    monkeypatch.setattr(script, "compute_gradient", record)
    monkeypatch.setattr("torch.fx.traceback.format_stack", list)  # kept for each operation, in half of the test's time
    updates = 40 if script is ppo_atari else 100  # a convolutional network takes its time
    settings = {"num_envs": 2, "num_steps": 4, "num_minibatches": 2, "update_epochs": 2, "total_timesteps": 2 * updates}
    settings |= {"norm_reward": seed % 2 == 0, "norm_obs": seed % 2 == 1, "learning_rate": 1e-3}
    with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly():
        result = script.train(script.Args(env_id="worlds:Fuzz", seed=seed, **settings))
    assert len(gradients) == updates
    assert all(gradient.isfinite().all() for gradient, _ in gradients)
    assert sum(bool(gradient.any()) for gradient, _ in gradients) > 0.75 * updates
    assert all(tensor.isfinite() for _, diagnostics in gradients for tensor in diagnostics.values())
    assert parameters(result).isfinite().all()
