"""The loss: numbers worked out by hand, finite differences, and the gradient that becomes an update."""

import math

import pytest
import torch
from gymnasium.spaces import MultiDiscrete
from torch import nn

import ppo
from conftest import make_agent
from ppo import Args, compute_gradient, ppo_loss


class Fixed:
    """An agent that answers with given numbers."""

    def __init__(self, logprob, entropy, value):
        self.outputs = torch.tensor(logprob), torch.tensor(entropy), torch.tensor(value)

    def __call__(self, batch):
        return self.outputs


def by_hand():
    """Three valid samples and one reset step, whose numbers would spoil everything they touch."""
    agent = Fixed([math.log(0.6), math.log(0.2), math.log(0.5), 5.0], [0.5, 0.7, 0.6, 99.0], [1.0, 2.0, 3.0, 1e6])
    batch = {
        "logprobs": torch.tensor([0.5, 0.4, 0.25, 1e-9]).log(),  # ratios 1.2, 0.5, 2
        "advantages": torch.tensor([1.0, -1.0, 3.0, 1e6]),
        "returns": torch.tensor([2.0, 2.5, 1.0, -1e6]),
        "values": torch.tensor([0.9, 1.0, 2.0, 0.0]),
        "valid": torch.tensor([True, True, True, False]),
    }
    return agent, batch | dict.fromkeys(("obs", "masks", "actions"))


def test_by_hand():
    args = Args(ent_coef=0.1, vf_coef=0.25, norm_adv=False, clip_coef=0.3)
    agent, batch = by_hand()
    loss, got = ppo_loss(agent, batch, 1.0, args)
    policy = (-1.2 + 0.7 - 3 * 1.3) / 3  # inside; clipped below 0.7 as the advantage is negative; clipped above 1.3
    # squared errors, plain and clipped: 1 and 1 (inside the clip range); 0.25 and (1.3 - 2.5)²; 4 and (2.3 - 1)²
    value = 0.5 * (1 + 1.44 + 4) / 3
    assert got["policy_loss"].item() == pytest.approx(policy, rel=1e-6)
    assert got["value_loss"].item() == pytest.approx(value, rel=1e-6)
    assert got["entropy"].item() == pytest.approx(0.6, rel=1e-6)
    assert loss.item() == pytest.approx(policy - 0.1 * 0.6 + 0.25 * value, rel=1e-6)
    logs = [math.log(r) for r in (1.2, 0.5, 2.0)]
    assert got["old_approx_kl"].item() == pytest.approx(-sum(logs) / 3, rel=1e-5)
    assert got["approx_kl"].item() == pytest.approx((0.2 - 0.5 + 1.0 - sum(logs)) / 3, rel=1e-5)
    assert got["clipfrac"].item() == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate"),
    [(1.1, 2, 2.2), (1.5, 2, 2.6), (0.5, 2, 1.0), (1.5, -2, -3.0), (0.5, -2, -1.4), (0.9, -2, -1.8)],
)
def test_the_surrogate_is_the_lower_one(ratio, advantage, surrogate):
    """Clipping removes what there is to gain by moving far, and never what there is to lose."""
    agent, batch = by_hand()
    agent.outputs = torch.full((4,), math.log(0.5 * ratio)), *agent.outputs[1:]
    batch |= {"logprobs": torch.full((4,), math.log(0.5)), "advantages": torch.full((4,), float(advantage))}
    _, got = ppo_loss(agent, batch, 1.0, Args(norm_adv=False, clip_coef=0.3))
    assert got["policy_loss"].item() == pytest.approx(-surrogate, rel=1e-5)


def test_the_clip_range_and_the_bonus_fall_with_what_is_left():
    """To nothing, each if it is asked for (detail a)."""
    agent, batch = by_hand()
    weights = {"norm_adv": False, "vf_coef": 0.25}
    for left in (1.0, 0.5, 0.0):
        for anneal_clip, anneal_ent in ((False, False), (True, False), (False, True), (True, True)):
            args = Args(clip_coef=0.4, ent_coef=0.2, anneal_clip=anneal_clip, anneal_ent=anneal_ent, **weights)
            loss, got = ppo_loss(agent, batch, torch.tensor(left), args)
            now = {"clip_coef": 0.4 * left if anneal_clip else 0.4, "ent_coef": 0.2 * left if anneal_ent else 0.2}
            expected, others = ppo_loss(agent, batch, torch.tensor(1.0), Args(**now, **weights))
            assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
            assert {name: x.item() for name, x in got.items()} == pytest.approx(
                {k: x.item() for k, x in others.items()}
            )


def test_plain_value_loss():
    agent, batch = by_hand()
    _, got = ppo_loss(agent, batch, 1.0, Args(clip_vloss=False, clip_coef=0.3))
    assert got["value_loss"].item() == pytest.approx(0.5 * (1 + 0.25 + 4) / 3, rel=1e-6)


def test_advantages_are_normalised_over_the_valid_samples():
    agent, batch = by_hand()
    _, got = ppo_loss(agent, batch, 1.0, Args(clip_coef=0.3))
    deviation = math.sqrt(8 / 3)  # of 1, -1, 3 around their mean 1
    assert got["policy_loss"].item() == pytest.approx((0 + 2 / deviation * 0.7 - 2 / deviation * 1.3) / 3, rel=1e-5)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_batch(agent, size=24, components=2, choices=3, seed=0):
    """A batch as training makes it: off the policy by a little, with reset steps and forbidden choices."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(size, components, choices, generator=generator) >= 0.3
    masks[..., 0] = True
    obs = torch.randn(size, 5, generator=generator)
    actions = (torch.rand(size, components, choices, generator=generator) * masks).argmax(-1)
    noise = torch.randn(4, size, generator=generator)
    with torch.no_grad():
        logprob, _, value = agent({"obs": obs, "masks": masks, "actions": actions})
    return {
        "obs": obs,
        "masks": masks,
        "actions": actions,
        "logprobs": logprob + 0.3 * noise[0],
        "values": value + 0.3 * noise[1],
        "advantages": noise[2],
        "returns": value + noise[3],
        "valid": torch.rand(size, generator=generator) < 0.8,
    }


@pytest.mark.parametrize("args", [Args(), Args(clip_vloss=False), Args(ent_coef=0.5, vf_coef=2.0)])
def test_gradient_by_finite_differences(args, float64):
    torch.manual_seed(0)
    agent = make_agent(ppo, 5, MultiDiscrete([3, 3]))
    batch = random_batch(agent)
    params = list(agent.parameters())
    loss, _ = ppo_loss(agent, batch, 1.0, args)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])
    flat = nn.utils.parameters_to_vector(params).detach()
    nn.utils.vector_to_parameters(flat, params)
    for direction in torch.eye(flat.numel(), dtype=torch.float64)[:: flat.numel() // 60]:
        with torch.no_grad():
            flat += 1e-6 * direction
            above, _ = ppo_loss(agent, batch, 1.0, args)
            flat -= 2e-6 * direction
            below, _ = ppo_loss(agent, batch, 1.0, args)
            flat += 1e-6 * direction
        assert (above - below).item() / 2e-6 == pytest.approx((gradient @ direction).item(), abs=1e-6)


def test_reset_steps_do_not_matter():
    torch.manual_seed(0)
    agent = make_agent(ppo, 5, MultiDiscrete([3, 3]))
    params = list(agent.parameters())
    batch = random_batch(agent)
    other = {name: x.clone() for name, x in batch.items()}
    for name in ("obs", "logprobs", "values", "advantages", "returns"):
        other[name][~batch["valid"]] = 3.0
    for norm_adv in (True, False):
        expected, diagnostics = compute_gradient(agent, params, batch, 1.0, Args(norm_adv=norm_adv))
        gradient, others = compute_gradient(agent, params, other, 1.0, Args(norm_adv=norm_adv))
        torch.testing.assert_close(gradient, expected)
        for name, value in diagnostics.items():
            torch.testing.assert_close(others[name], value, msg=name)


def test_a_minibatch_of_reset_steps_is_harmless():
    agent = make_agent(ppo, 5, MultiDiscrete([3, 3]))
    batch = random_batch(agent)
    batch["valid"][:] = False
    gradient, _ = compute_gradient(agent, list(agent.parameters()), batch, 1.0, Args())
    assert not gradient.any()


def test_a_single_sample_has_a_finite_loss():
    agent = make_agent(ppo, 5, MultiDiscrete([3, 3]))
    gradient, _ = compute_gradient(agent, list(agent.parameters()), random_batch(agent, size=1), 1.0, Args())
    assert gradient.isfinite().all()


def test_the_first_ratio_is_1():
    torch.manual_seed(0)
    agent = make_agent(ppo, 5, MultiDiscrete([3, 3]))
    batch = random_batch(agent)
    with torch.no_grad():
        batch["logprobs"], *_ = agent(batch)
    _, diagnostics = ppo_loss(agent, batch, 1.0, Args())
    for name in ("old_approx_kl", "approx_kl", "clipfrac"):
        assert diagnostics[name].item() == 0


def test_the_global_gradient_norm_is_clipped():
    torch.manual_seed(0)
    agent = make_agent(ppo, 5, MultiDiscrete([3, 3]))
    params, batch = list(agent.parameters()), random_batch(agent)
    loss, _ = ppo_loss(agent, batch, 1.0, Args())
    loss.backward()
    raw = torch.cat([param.grad.flatten() for param in params])
    clipped, diagnostics = compute_gradient(agent, params, batch, 1.0, Args(max_grad_norm=0.01))
    assert diagnostics["grad_norm"].item() == pytest.approx(raw.norm().item(), rel=1e-5)
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), raw / raw.norm())
    small, _ = compute_gradient(agent, params, batch, 1.0, Args(max_grad_norm=1e6))
    torch.testing.assert_close(small, raw)


@torch._dynamo.config.patch(error_on_recompile=True)
def test_compiled_and_eager_updates_agree(monkeypatch):
    """Three iterations each, with forbidden choices, resets, and annealed clip range and bonus. It is compiled once."""
    runs, compiled_functions, compile_function = [], [], torch.compile
    torch.compiler.reset()  # what other tests compiled

    def record(function, **options):
        compiled_functions.append(function)
        return compile_function(function, **options)

    monkeypatch.setattr(torch, "compile", record)
    for compiled in (False, True):
        result = ppo.train(
            Args(
                env_id="worlds:Masked",
                total_timesteps=192,
                num_steps=16,
                anneal_clip=True,
                anneal_ent=True,
                compile=compiled,
            )
        )
        runs.append(torch.cat([param.flatten() for param in result["agent"].parameters()]))
    assert compute_gradient in compiled_functions
    start = ppo.train(Args(env_id="worlds:Masked", total_timesteps=64, num_steps=16, learning_rate=0.0))["agent"]
    start = torch.cat([param.flatten() for param in start.parameters()])
    assert (runs[0] - start).abs().max() > 1e-3
    torch.testing.assert_close(runs[1], runs[0], atol=2e-5, rtol=1e-4)
