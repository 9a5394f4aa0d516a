"""The training loop: what it collects, in which order it learns from it, what it logs, and when it stops."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo
import worlds
from ppo import Args, RunningMeanStd, train

LOSSES = """policy_loss value_loss entropy approx_kl old_approx_kl clipfrac explained_variance relative_entropy
    residual_variance grad_norm advantage_mean advantage_std"""
CHARTS = "SPS learning_rate episodic_return episodic_length"


def scalars(result):
    """Everything that a run logged: {metric: {step: value}}. No point may be there twice."""
    events = EventAccumulator(str(result["run_dir"]), {"scalars": 0}).Reload()
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all(len(dict(curve)) == len(curve) for curve in points.values())
    return {tag: dict(curve) for tag, curve in points.items()}


def parameters(result):
    return torch.cat([param.detach().flatten() for param in result["agent"].parameters()])


@pytest.fixture
def rollouts(monkeypatch):
    """Records the arguments of each compute_gae: rewards, values, terminated, truncated, gamma, gae_lambda."""
    seen, compute_gae = [], ppo.compute_gae

    def record(*args):
        seen.append([np.array(x) for x in args])
        return compute_gae(*args)

    monkeypatch.setattr(ppo, "compute_gae", record)
    return seen


def counting(monkeypatch, **changes):
    monkeypatch.setattr(worlds.Counting, "created", 0)
    settings = {"num_envs": 3, "num_steps": 8, "num_minibatches": 2, "total_timesteps": 3 * 8 * 5, "learning_rate": 0.0}
    return train(Args(env_id="worlds:Counting", **settings | changes))


class TestCollecting:
    """On `Counting`, whose observations say where they belong: (environment, episode, step)."""

    def collect(self, monkeypatch, minibatches):
        """All samples as (environment, episode, step, valid), sorted."""
        counting(monkeypatch, update_epochs=1, num_minibatches=1)
        samples = [
            (*obs.tolist(), bool(valid))
            for batch, _ in minibatches
            for obs, valid in zip(batch["obs"], batch["valid"], strict=True)
        ]
        return sorted(samples)

    def test_each_transition_is_learned_from_once_and_no_reset(self, monkeypatch, minibatches):
        samples = self.collect(monkeypatch, minibatches)
        for env in range(3):
            steps_of_env, expected = 0, []
            for episode in range(100):
                for step in range(2 + (episode + env) % 4 + 1):
                    resets = step == 2 + (episode + env) % 4  # with the observation after the last step
                    if steps_of_env < 40:
                        expected.append((float(env), float(episode), float(step), not resets))
                    steps_of_env += 1
            assert [sample for sample in samples if sample[0] == env] == expected

    def test_rewards_and_ends_belong_to_their_transition(self, monkeypatch, minibatches, rollouts):
        counting(monkeypatch, update_epochs=1, num_minibatches=1)
        step, episode, t = np.zeros(3, int), np.zeros(3, int), 0
        for rewards, _, terminated, truncated, *_ in rollouts:
            for t in range(8):
                for env in range(3):
                    length = 2 + (episode[env] + env) % 4
                    if step[env] == length:  # the reset step
                        assert not rewards[t, env] and not terminated[t, env] and not truncated[t, env]
                        episode[env], step[env] = episode[env] + 1, 0
                        continue
                    assert rewards[t, env] == 100 * episode[env] + step[env]
                    step[env] += 1
                    ends = step[env] == length
                    assert terminated[t, env] == (ends and episode[env] % 2 == 0)
                    assert truncated[t, env] == (ends and episode[env] % 2 == 1)

    def test_values_are_those_of_the_observations(self, monkeypatch, minibatches, rollouts):
        """Also of the last ones of episodes and rollouts; and the target is the λ-return, the same in all epochs."""
        result = counting(monkeypatch, update_epochs=2, num_minibatches=1, norm_adv=False)
        for batch, _ in minibatches:
            with torch.no_grad():
                torch.testing.assert_close(
                    result["agent"].critic(batch["obs"]).squeeze(-1), batch["values"], atol=1e-4, rtol=1e-4
                )
                logprob, *_ = result["agent"](batch)
            torch.testing.assert_close(logprob, batch["logprobs"], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(batch["returns"], batch["advantages"] + batch["values"])
            assert not any(tensor.requires_grad for tensor in batch.values())
        first = [values[0] for _, values, *_ in rollouts]
        last = [values[-1] for _, values, *_ in rollouts]
        for a, b in zip(last, first[1:], strict=False):  # a rollout begins where the one before stopped
            np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)

    def test_gamma_and_lambda_arrive(self, monkeypatch, rollouts):
        counting(monkeypatch, gamma=0.7, gae_lambda=0.3)
        assert all(rollout[4:] == [0.7, 0.3] for rollout in rollouts)

    def test_the_newest_policy_acts(self, minibatches):
        """What is learned in one iteration is done in the next: here, in a few, the only action that pays."""
        train(Args(env_id="worlds:Probe4", total_timesteps=4096, num_steps=16, learning_rate=0.005))
        first, last = minibatches[0][0]["actions"], minibatches[-1][0]["actions"]
        assert 0.2 < first.float().mean() < 0.8
        assert last.float().mean() > 0.9

    def test_returns_and_lengths_of_episodes(self, monkeypatch):
        result = counting(monkeypatch)
        for episode_return, length in result["episodes"]:
            episode = (episode_return - length * (length - 1) / 2) / (100 * length)
            assert episode == int(episode)
            assert length in {2 + (int(episode) + env) % 4 for env in range(3)}
        ends = [(e, env) for env in range(3) for e in range(100) if sum(3 + (k + env) % 4 for k in range(e + 1)) <= 41]
        assert len(result["episodes"]) == len(ends)


class TestUpdating:
    def test_every_sample_once_an_epoch_in_a_new_order(self, monkeypatch, minibatches):
        counting(monkeypatch, update_epochs=3, num_minibatches=4)
        assert len(minibatches) == 5 * 3 * 4
        for iteration in range(5):
            orders = []
            for epoch in range(3):
                start = (iteration * 3 + epoch) * 4
                rows = [row for batch, _ in minibatches[start : start + 4] for row in batch["obs"].tolist()]
                assert all(len(batch["obs"]) == 6 for batch, _ in minibatches[start : start + 4])
                orders.append(rows)
            assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
            assert orders[0] != orders[1] != orders[2] != orders[0]
            assert len({tuple(row) for row in orders[0]}) == 24
            assert orders[0] != sorted(orders[0])

    def test_a_sample_keeps_its_data(self, monkeypatch, minibatches):
        """Shuffling moves all parts of a sample together, and nothing is computed anew within an update."""
        counting(monkeypatch, update_epochs=3, learning_rate=0.01, norm_adv=False)
        for iteration in range(5):
            known = {}
            for batch, _ in minibatches[iteration * 6 : iteration * 6 + 6]:
                names = ("actions", "logprobs", "advantages", "returns", "values", "valid", "masks")
                for i, obs in enumerate(batch["obs"].tolist()):
                    sample = [batch[name][i].tolist() for name in names]
                    assert known.setdefault(tuple(obs), sample) == sample

    @pytest.mark.parametrize("anneal", [True, False])
    def test_annealing(self, anneal, monkeypatch, minibatches):
        """Linear, by iterations: from the full value down to one iteration short of zero (detail 4). The loss is told
        what is left (detail a)."""
        args = Args(total_timesteps=5200, learning_rate=0.01, anneal_lr=anneal)
        used, step = [], torch.optim.Adam.step
        monkeypatch.setattr(
            torch.optim.Adam, "step", lambda adam: used.append(adam.param_groups[0]["lr"]) or step(adam)
        )
        rates = scalars(train(args))["charts/learning_rate"]
        left = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
        remaining = left if anneal else [1.0] * 10
        assert list(rates) == list(range(512, 5121, 512))
        assert list(rates.values()) == pytest.approx([0.01 * r for r in remaining])
        assert used[::16] == pytest.approx([0.01 * r for r in remaining])
        assert [share.item() for _, share in minibatches[::16]] == pytest.approx(left)

    def test_adam_with_the_right_epsilon(self, monkeypatch):
        """A first Adam step is rate * g / (|g| + eps): half the rate for a gradient as small as 1e-5 (detail 3)."""
        settings = {"total_timesteps": 64, "num_steps": 16, "num_minibatches": 1, "update_epochs": 1}
        start = parameters(train(Args(learning_rate=0.0, **settings)))
        compute_gradient = ppo.compute_gradient

        def tiny(*args):
            gradient, diagnostics = compute_gradient(*args)
            return torch.full_like(gradient, 1e-5), diagnostics

        monkeypatch.setattr(ppo, "compute_gradient", tiny)
        moved = parameters(train(Args(learning_rate=0.1, **settings))) - start
        torch.testing.assert_close(moved, torch.full_like(moved, -0.05), atol=1e-4, rtol=0)

    @pytest.mark.parametrize(
        ("target", "kls", "epochs"),
        [
            (0.25, [0.25], 4),  # reached is not exceeded
            (0.24, [0.25], 1),
            (0.0, [1e-9], 1),
            (0.25, [0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.5], 2),  # the mean of an epoch, and of it alone
            (0.25, [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0], 4),
        ],
    )
    def test_target_kl_is_of_the_latest_epoch(self, target, kls, epochs, monkeypatch):
        seen, compute_gradient = [], ppo.compute_gradient

        def told(*args):
            gradient, diagnostics = compute_gradient(*args)
            seen.append(kls[len(seen) % len(kls)])
            return gradient, diagnostics | {"approx_kl": torch.tensor(seen[-1])}

        monkeypatch.setattr(ppo, "compute_gradient", told)
        logged = scalars(train(Args(target_kl=target, total_timesteps=512)))
        assert len(seen) == 4 * epochs
        assert logged["losses/approx_kl"][512] == pytest.approx(np.mean(seen))

    def test_target_kl_ends_the_epochs(self, minibatches):
        settings = {"total_timesteps": 512, "learning_rate": 0.01}
        train(Args(target_kl=1e-9, **settings))
        assert len(minibatches) == 4  # one epoch
        train(Args(target_kl=1e9, **settings))
        assert len(minibatches) == 4 + 16


class TestReproducing:
    def test_same_seed_same_run(self):
        first, second = (train(Args(total_timesteps=5120)) for _ in range(2))
        assert torch.equal(parameters(first), parameters(second))
        assert first["episodes"] == second["episodes"]
        assert first["run_dir"] != second["run_dir"]
        for name, values in scalars(first).items():
            assert name == "charts/SPS" or values == scalars(second)[name]

    def test_other_seed_other_run(self):
        """Other parameters to begin with, other episodes, other actions."""
        runs = [train(Args(seed=seed, total_timesteps=2048, learning_rate=0.0)) for seed in (1, 2)]
        assert not torch.equal(*(parameters(run) for run in runs))
        assert runs[0]["episodes"] != runs[1]["episodes"]

    @pytest.mark.parametrize("vectorization", ["sync", "async", "vector_entry_point"])
    def test_environments_differ(self, vectorization, minibatches):
        """Each environment of each seed starts elsewhere."""
        starts = []
        for seed in (1, 2, 3):
            settings = {"num_steps": 1, "num_minibatches": 1, "update_epochs": 1, "total_timesteps": 4}
            train(Args(seed=seed, vectorization=vectorization, **settings))
            starts += minibatches[-1][0]["obs"].tolist()
        assert len({tuple(start) for start in starts}) == 12

    def test_sync_and_async_agree(self):
        """The same environments, in one process or in four."""
        runs = [train(Args(total_timesteps=1024, vectorization=mode)) for mode in ("sync", "async")]
        assert torch.equal(parameters(runs[0]), parameters(runs[1]))


class TestNoise:
    """What actions are sampled with."""

    def noise(self, monkeypatch, **changes):
        """Of all iterations, (iterations, T, N, C, K)."""
        seen, noise = [], ppo.Agent.noise

        def record(agent, *shape):
            seen.append(noise(agent, *shape))
            return seen[-1]

        with monkeypatch.context() as patch:
            patch.setattr(ppo.Agent, "noise", record)
            result = train(Args(**{"num_steps": 16, "total_timesteps": 256} | changes))
        return np.array(seen), result

    def test_it_is_never_the_same(self, monkeypatch):
        """Not for two environments, steps, iterations or seeds; and it is Gumbel's."""
        first, _ = self.noise(monkeypatch)
        second, _ = self.noise(monkeypatch, seed=2)
        everything = np.concatenate([first, second])
        assert len(np.unique(everything)) > 0.999 * everything.size
        assert everything.mean() == pytest.approx(np.euler_gamma, abs=0.1)
        assert everything.std() == pytest.approx(np.pi / 6**0.5, abs=0.1)

    def test_a_resumed_run_goes_on_with_it(self, monkeypatch):
        whole, _ = self.noise(monkeypatch)
        first, result = self.noise(monkeypatch, total_timesteps=128)
        second, _ = self.noise(monkeypatch, resume=str(result["run_dir"]))
        assert np.array_equal(np.concatenate([first, second]), whole)


class TestNormalising:
    def test_observations(self, monkeypatch, minibatches):
        """By the statistics of all valid observations of the iterations before, at first by 0 and 1."""
        settings = {"total_timesteps": 72, "num_minibatches": 1, "update_epochs": 1, "norm_obs": True}
        seen, update = [], RunningMeanStd.update
        monkeypatch.setattr(
            RunningMeanStd, "update", lambda stats, data: seen.append(len(minibatches)) or update(stats, data)
        )
        agent = counting(monkeypatch, **settings)["agent"]
        assert seen == [1, 2, 3]  # after the update
        batches = [batch for batch, _ in minibatches]
        valid = np.concatenate([batch["obs"][batch["valid"]].numpy() for batch in batches])
        np.testing.assert_allclose(agent.obs_stats.mean, valid.mean(0), rtol=1e-5)
        np.testing.assert_allclose(agent.obs_stats.var, valid.var(0), rtol=1e-4)
        assert agent.obs_stats.count.tolist() == [len(valid)] * 3
        before = np.concatenate([batch["obs"][batch["valid"]].numpy() for batch in batches[:2]])
        stats = agent.obs_stats
        stats.mean.copy_(torch.from_numpy(before.mean(0)))
        stats.var.copy_(torch.from_numpy(before.var(0)))
        with torch.no_grad():
            logprob, _, values = agent(batches[2])  # the learning rate is 0
        torch.testing.assert_close(values, batches[2]["values"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logprob, batches[2]["logprobs"], atol=1e-4, rtol=1e-4)

    def test_rewards(self, monkeypatch, rollouts):
        """By the deviation of the discounted returns so far, with those of this rollout; reset steps don't count."""
        result = counting(monkeypatch, gamma=0.5, norm_reward=True)
        plain = counting(monkeypatch, gamma=0.5)
        scaled, raw = rollouts[:5], rollouts[5:]
        running, history, was_ended = np.zeros(3), [], np.zeros(3, bool)
        for (got, *_), (rewards, _, terminated, truncated, *_) in zip(scaled, raw, strict=True):
            for t in range(8):
                running = running * 0.5 + rewards[t]
                history += running[~was_ended].tolist()
                was_ended = (terminated | truncated)[t]
                running[was_ended] = 0
            expected = np.clip(rewards / np.sqrt(np.var(history) + 1e-8), -10, 10)
            np.testing.assert_allclose(got, expected, rtol=1e-4)
        assert result["episodes"] == plain["episodes"]  # reported returns are the environment's own
        assert result["agent"].return_stats.count == len(history)


class TestProcess:
    """What is set for the whole process is put back, for notebooks."""

    @pytest.mark.parametrize("changes", [{}, {"num_minibatches": 3}, {"env_id": "worlds:RaisingAtReset"}])
    def test_everything_is_as_it_was(self, changes):
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        before = torch.get_num_threads(), *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))
        during = []
        with pytest.raises((SystemExit, ValueError)) if changes else nullcontext():
            train(Args(**{"total_timesteps": 512} | changes))
        with ppo.process_settings():
            during = [torch.get_num_threads(), *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))]
            torch.use_deterministic_algorithms(True)
            ppo.stop_signals.append(signal.SIGINT)
        assert (torch.get_num_threads(), *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))) == before
        assert all(a != b for a, b in zip(before, during, strict=True))
        assert not ppo.stop_signals and not torch.are_deterministic_algorithms_enabled()
        assert not torch._dynamo.config.trace_autograd_ops
        torch.set_num_threads(threads)

    def test_what_is_set_later_holds(self):
        """A notebook changes arguments that it has."""
        args = Args(total_timesteps=512)
        args.total_timesteps = 1024
        result = train(args)
        assert result["global_step"] == 1024
        args = Args()
        args.resume, args.total_timesteps = str(result["run_dir"]), 1536
        resumed = train(args)
        assert resumed["run_dir"] == result["run_dir"] and resumed["global_step"] == 1536
        assert ppo.load_checkpoint(result["run_dir"])["optimizer"]["state"][0]["step"] == 3 * 16

    def test_in_another_thread(self):
        """Where no signal arrives."""
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(train, Args(total_timesteps=512)).result()["global_step"] == 512


class TestLogging:
    def test_all_metrics(self):
        result = train(Args(total_timesteps=2048))
        logged = scalars(result)
        assert set(logged) == {f"losses/{x}" for x in LOSSES.split()} | {f"charts/{x}" for x in CHARTS.split()}
        assert all(list(values) == [512, 1024, 1536, 2048] for values in logged.values())
        assert json.loads((result["run_dir"] / "args.json").read_text()) == asdict(Args(total_timesteps=2048))

    def test_losses_are_means_over_minibatches(self, monkeypatch):
        seen, compute_gradient = [], ppo.compute_gradient

        def record(*args):
            seen.append(compute_gradient(*args))
            return seen[-1]

        monkeypatch.setattr(ppo, "compute_gradient", record)
        logged = scalars(train(Args(total_timesteps=1024, learning_rate=0.003)))
        for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "old_approx_kl", "clipfrac", "grad_norm"):
            means = [np.mean([diagnostics[name].item() for _, diagnostics in part]) for part in (seen[:16], seen[16:])]
            assert list(logged[f"losses/{name}"].values()) == pytest.approx(means, rel=1e-4, abs=1e-7)

    @pytest.mark.parametrize("env_id", ["Masked", "Anything"])
    def test_statistics_of_the_batch(self, env_id, minibatches):
        """Of its valid samples; the entropy relative to that of a uniform policy over the allowed choices.

        In `Anything`, of two components, of which one may have no choice.
        """
        settings = {
            "total_timesteps": 256,
            "num_minibatches": 1,
            "update_epochs": 1,
            "num_steps": 64,
            "norm_adv": False,
        }
        logged = {
            name: values[256] for name, values in scalars(train(Args(env_id=f"worlds:{env_id}", **settings))).items()
        }
        batch = {name: tensor[minibatches[0][0]["valid"]].numpy() for name, tensor in minibatches[0][0].items()}
        assert 0 < len(batch["obs"]) < 256
        unexplained = (batch["returns"] - batch["values"]).var() / batch["returns"].var()
        assert logged["losses/residual_variance"] == pytest.approx(unexplained, rel=1e-4)
        assert logged["losses/explained_variance"] == pytest.approx(1 - unexplained, abs=1e-4)
        assert logged["losses/advantage_mean"] == pytest.approx(batch["advantages"].mean(), abs=1e-5)
        assert logged["losses/advantage_std"] == pytest.approx(batch["advantages"].std(), rel=1e-4)
        most = np.log(batch["masks"].sum(-1)).sum(-1).mean()
        assert logged["losses/relative_entropy"] == pytest.approx(logged["losses/entropy"] / most, rel=1e-4)
        assert 0.9 < logged["losses/relative_entropy"] <= 1.0001

    def test_where_nothing_can_be_explained_or_chosen(self):
        """Equal returns, and a single action: all metrics are numbers."""
        logged = scalars(train(Args(env_id="worlds:Probe1", num_steps=16, total_timesteps=128)))
        assert all(np.isfinite([*values.values()]).all() for values in logged.values())
        assert {*logged["losses/relative_entropy"].values()} == {0.0}
        assert max(logged["losses/residual_variance"].values()) < 0.01

    def test_episodes(self):
        """Their means over an iteration, where some ended."""
        result = train(Args(total_timesteps=512, num_steps=4, num_envs=4))
        logged = scalars(result)
        assert set(logged["charts/episodic_return"]) < set(logged["charts/SPS"])
        first, both = (train(Args(total_timesteps=steps, anneal_lr=False)) for steps in (512, 1024))
        parts = {512: first["episodes"], 1024: both["episodes"][len(first["episodes"]) :]}
        for step, part in parts.items():
            for name, mean in zip(("return", "length"), np.mean(part, 0), strict=True):
                assert scalars(both)[f"charts/episodic_{name}"][step] == pytest.approx(mean)

    def test_only_whole_iterations(self):
        """Also with one environment."""
        assert train(Args(total_timesteps=1535))["global_step"] == 1024
        assert train(Args(total_timesteps=255, num_envs=1))["global_step"] == 128


class EverySecond(worlds.World):
    """One environment, whose episodes of one step pay 0, 1, 0, 3, 0, 5 and so on."""

    episode = -1

    def reset(self, **kwargs):
        self.episode += 1
        return super().reset(**kwargs)

    def reward(self, action):
        return float(self.episode % 2 * self.episode)


gym.register("EverySecond", EverySecond)


class TestStopping:
    @pytest.mark.parametrize(
        ("num_steps", "wanted", "steps"),
        [
            (20, 0.0, 200),  # with the hundredth episode
            (22, 0.0, 220),  # not with 99
            (20, 50.0, 300),  # of 51, 53, ..., 149, and as many zeros: reached, not exceeded
            (20, 50.1, 320),
        ],
    )
    def test_with_the_iteration_that_reaches_it(self, num_steps, wanted, steps, capsys):
        """Ten or eleven episodes in each: by the mean return of the last hundred."""
        sizes = {"num_envs": 1, "num_steps": num_steps, "num_minibatches": 1, "update_epochs": 1}
        result = train(Args(env_id="test_train:EverySecond", stop_return=wanted, total_timesteps=500, **sizes))
        assert result["global_step"] == steps
        assert result["episodes"] == [[k % 2 * k, 1] for k in range(steps // 2 - 100, steps // 2)]
        output, mean = capsys.readouterr(), np.mean([k % 2 * k for k in range(steps // 2 - 100, steps // 2)])
        assert f"Done: {steps} steps, mean return {mean:.2f}. " in output.out
        assert f", return {mean:.1f}]" in output.err

    def test_no_episode_has_no_return(self, capsys):
        train(Args(env_id="worlds:Endless", num_steps=16, total_timesteps=64))
        assert "Done: 64 steps, mean return nan. " in capsys.readouterr().out

    def test_at_the_wanted_return(self):
        """Of the last 100 episodes, so not before there are so many."""
        result = train(Args(stop_return=0.0, total_timesteps=50_000))
        assert result["global_step"] < 10_000
        assert len(result["episodes"]) == 100

    def test_never_above_it(self):
        assert train(Args(stop_return=501.0, total_timesteps=4096))["global_step"] == 4096

    @pytest.mark.parametrize("world", ["InfiniteObservation", "CartPole-v1"])
    def test_what_is_not_finite_after_the_update_is_not_saved(self, world, monkeypatch, tmp_path):
        """Statistics that have seen what normalisation clips; parameters after the last minibatch."""
        calls, compute_gradient = [], ppo.compute_gradient

        def explode(*args):
            calls.append(args)
            gradient, diagnostics = compute_gradient(*args)
            return gradient * (float("nan") if len(calls) == 2 * 16 and world == "CartPole-v1" else 1), diagnostics

        monkeypatch.setattr(ppo, "compute_gradient", explode)
        env_id = world if "-" in world else f"worlds:{world}"
        with pytest.raises(SystemExit, match=r"error: before step 64, no longer finite: \['(obs_stats|actor)"):
            train(Args(env_id=env_id, norm_obs=True, total_timesteps=1024, num_steps=8, save_interval=0))
        (run_dir,) = (tmp_path / "runs").iterdir()
        saved = ppo.load_checkpoint(run_dir)
        assert saved["global_step"] == 32
        assert all(tensor.isfinite().all() for tensor in saved["agent"].values())

    def test_when_training_is_no_longer_finite(self, monkeypatch, tmp_path):
        """It says what, and at which step; and the checkpoint before it stays."""
        calls, compute_gradient = [], ppo.compute_gradient

        def explode(*args):
            calls.append(args)
            gradient, diagnostics = compute_gradient(*args)
            return gradient * (float("nan") if len(calls) > 2 * 16 else 1), diagnostics

        monkeypatch.setattr(ppo, "compute_gradient", explode)
        with pytest.raises(SystemExit) as stopped:
            train(Args(total_timesteps=1024, num_steps=8, save_interval=0))
        error = stopped.value.code
        assert error.startswith("error: before step 96, no longer finite: ['policy_loss', ")
        assert "--learning-rate" in error
        (run_dir,) = (tmp_path / "runs").iterdir()
        saved = ppo.load_checkpoint(str(run_dir))
        assert saved["global_step"] == 64
        assert all(tensor.isfinite().all() for tensor in saved["agent"].values())

    def test_rollouts_of_reset_steps_alone_are_harmless(self):
        """Episodes of one step in rollouts of one step: every second rollout only resets."""
        result = train(Args(env_id="worlds:Probe1", num_steps=1, num_minibatches=2, total_timesteps=40))
        assert result["global_step"] == 40
        assert np.mean(result["episodes"], 0).tolist() == [1.0, 1.0]


def test_cartpole_is_solved():
    """The README's quick recipe, on a seed."""
    settings = {"num_envs": 32, "num_steps": 32, "update_epochs": 2, "learning_rate": 5e-3, "clip_vloss": False}
    result = train(Args(stop_return=475.0, ent_coef=0.0, vf_coef=0.25, total_timesteps=200_000, **settings))
    assert np.mean(result["episodes"], 0)[0] >= 475
    assert result["global_step"] < 200_000
