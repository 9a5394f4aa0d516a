"""Probes: environments that can be learned only if one thing works. Each takes a few seconds; the first that fails says
where the bug is.

    python examples/probes.py my_ppo.py                              # all of them, on a script or a fork of it
    python examples/probes.py my_ppo.py 6 7                          # these
    python ppo.py --env-id examples.probes:Probe3-v0                 # one of them, from the repository's folder

In this order, as each needs what those before it show. Discount γ = 0.9; V is the value of an observation.

1. Observes 0, one useless action, one step, reward 1. Learned: V = 1.
   Wrong: the value loss or the optimizer.
2. Observes -1 or 1 at random, reward = observation. Learned: V(obs) = obs.
   Wrong: the gradient through the value network, or what it gets as observation.
3. Observes 0, then 1; reward 1 at the end. Learned: V(0) = γ, V(1) = 1.
   Wrong: discounting, or what happens at resets.
4. Two actions, rewards -1 and 1. Learned: to take the second.
   Wrong: the policy's gradient or its sign. Continuous: reward -(action - 0.5)²; learned: 0.5, with little deviation.
5. Observes -1 or 1, two actions, reward 1 if they match, else -1. Learned: to match; V = 1.
   Wrong: batches mix up samples, or hold stale ones. Continuous: reward 1 - (action - obs / 2)²; learned: obs / 2.
6. Observes 1, reward 1 for ever, cut off by a time limit after 5 steps. Learned: V = 1 / (1 - γ) = 10.
   Wrong: the time limit counts as an end, or the step that only resets counts.
7. Reward 1 for 5 steps, which the observation counts: 0, 0.2, … 0.8. It ends by itself.
   Learned: V(step / 5) = 1 + γ + … + γ^(4 - step), from 4.1 down to 1.
   Wrong: an end is bootstrapped as if life went on.

`ProbeContinuous1-v0` to `ProbeContinuous7-v0` are the same for continuous actions. Normalisation is off in these runs.
Exit code: 0 if all are learned, 1 if one is not. Scripts for pixels are probed in tests/test_fork.py only.
"""

import argparse
import importlib
import os
import re
import sys
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete


class World(gym.Env):
    """Base: observations in [-1, 1], one useless action, one step."""

    observation_space = Box(-1, 1, (1,))
    action_space = Discrete(1)
    length = 1
    truncates = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.obs = self.observe()
        return self.obs, self.info()

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        reward = self.reward(action)
        self.t += 1
        ended = self.t == self.length
        self.obs = self.observe()
        return self.obs, reward, ended and not self.truncates, ended and self.truncates, self.info()

    def observe(self):
        return np.zeros(1, np.float32)

    def info(self):
        return {}

    def reward(self, action):
        return 1.0

    def random_sign(self):
        return np.array([self.np_random.choice([-1, 1])], np.float32)


class Probe1(World):
    """One observation, one step, reward 1: V = 1, or the value loss or the optimizer is wrong."""


class Probe2(World):
    """Reward = observation: V = observation, or the gradient does not get through the value network."""

    def observe(self):
        return self.random_sign()

    def reward(self, action):
        return float(self.obs[0])


class Probe3(World):
    """Observation 0, then 1, then reward 1: V(0) = γ and V(1) = 1, or discounting or resets are wrong."""

    length = 2

    def observe(self):
        return np.array([float(self.t == 1)], np.float32)

    def reward(self, action):
        return float(self.t == 1)


class Probe4(World):
    """Reward by action: takes the good one, or the policy gradient is wrong."""

    action_space = Discrete(2)

    def reward(self, action):
        return 1.0 if action == 1 else -1.0


class Probe5(Probe2):
    """Reward for the action that matches the observation: matches, or batches mix up or hold stale data."""

    action_space = Discrete(2)

    def reward(self, action):
        return 1.0 if (action == 1) == (self.obs[0] > 0) else -1.0


class Probe6(World):
    """Reward 1 for ever, cut off by a time limit of 5: V = 1 / (1 - γ), or the time limit counts as an end.

    Observes 1: of a 0, a network of ReLUs without biases learns too little to tell a value of 10 in time.
    """

    length, truncates = 5, True

    def observe(self):
        return np.ones(1, np.float32)


class Probe7(World):
    """The same, ending by itself after 5 steps, which the observation counts: V is the finite sum."""

    length = 5

    def observe(self):
        return np.array([self.t / 5], np.float32)


class Continuous(World):
    """A useless action of one component: the probes 1, 2, 3, 6 and 7 for continuous actions."""

    action_space = Box(-1, 1, (1,))


class Continuous4(Continuous):
    """Reward falls with the squared distance of the action from 0.5."""

    def reward(self, action):
        return -float((action[0] - 0.5) ** 2)


class Continuous5(Continuous, Probe2):
    """Reward falls with the squared distance of the action from half the observation."""

    def reward(self, action):
        return 1 - float((action[0] - 0.5 * self.obs[0]) ** 2)


# The others are the same but for the useless action
Continuous2, Continuous3, Continuous6, Continuous7 = (
    type(f"Continuous{probe.__name__[-1]}", (Continuous, probe), {}) for probe in (Probe2, Probe3, Probe6, Probe7)
)
DISCRETE = [Probe1, Probe2, Probe3, Probe4, Probe5, Probe6, Probe7]
CONTINUOUS = [Continuous, Continuous2, Continuous3, Continuous4, Continuous5, Continuous6, Continuous7]
for number, (discrete, continuous) in enumerate(zip(DISCRETE, CONTINUOUS, strict=True), 1):
    gym.register(f"Probe{number}-v0", discrete)
    gym.register(f"ProbeContinuous{number}-v0", continuous)

GAMMA = 0.9
SETTINGS = {"total_timesteps": 16_384, "num_envs": 8, "num_steps": 32, "num_minibatches": 4, "update_epochs": 4}
SETTINGS |= {"learning_rate": 5e-3, "gamma": GAMMA, "norm_obs": False, "norm_reward": False, "seed": 1}
# What is looked at (V, or of the actions their mean or deviation) for which observation, what is expected, how nearly
CHECKS = {
    1: [("V", 0, 1, 0.02)],
    2: [("V", 1, 1, 0.05), ("V", -1, -1, 0.05)],
    3: [("V", 0, GAMMA, 0.03), ("V", 1, 1, 0.03)],
    4: [("action", 0, 1, 0.03)],
    5: [("action", 1, 1, 0.05), ("action", -1, 0, 0.05), ("V", 1, 1, 0.1)],
    6: [("V", 1, 1 / (1 - GAMMA), 0.3)],
    7: [("V", step / 5, sum(GAMMA**k for k in range(5 - step)), 0.15) for step in range(5)],
}
CONTINUOUS_CHECKS = CHECKS | {
    4: [("action", 0, 0.5, 0.1), ("deviation", 0, 0, 0.3)],
    5: [("action", 1, 0.5, 0.1), ("action", -1, -0.5, 0.1), ("deviation", 1, 0, 0.3), ("V", 1, 1, 0.1)],
}
CHANGES = {6: {"clip_vloss": False}, 7: {"clip_vloss": False, "total_timesteps": 32_768}}  # for values of 10 in time
# The docstring above says what each points at
POINTS_AT = dict(enumerate(re.findall(r"Wrong: (.+?)\.", __doc__), 1))


def look(agent, what: str, obs: float) -> float:
    """The value of an observation; or mean or deviation of 2,000 actions there (of two actions, the second's share)."""
    if what == "V":
        with torch.no_grad():
            return agent.network(torch.full((1, 1), float(obs), device=next(agent.parameters()).device))[1].item()
    torch.manual_seed(0)
    actions = agent.act(np.full((2000, 1), obs, np.float32))
    return float(actions.mean() if what == "action" else actions.std())


def probe(script, number: int, env_id: str, checks: list) -> tuple[bool, str]:
    """Train on one probe: was it learned? And what was found, with what was expected in brackets."""
    known = {field.name for field in fields(script.Args)}  # a fork may have dropped some
    args = {key: x for key, x in (SETTINGS | CHANGES.get(number, {})).items() if key in known}
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            result = script.train(script.Args(env_id=env_id, **args))
    except (Exception, SystemExit) as error:
        return False, f"it stopped: {error!r}"
    if result.get("exit_code"):  # Ctrl-C
        sys.exit(result["exit_code"])
    learned, line = True, []
    for what, obs, expected, near in checks:
        found = look(result["agent"], what, obs)
        learned &= abs(found - expected) <= near
        line.append(f"{what}({obs:g}) = {found:.2f} ({expected:.3g})")
    return learned, ", ".join(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="ppo.py, ppo_continuous.py, or a fork of one")
    parser.add_argument("numbers", nargs="*", type=int, help="of the probes to run; all if none is given")
    args = parser.parse_args()
    path = args.script.resolve()
    if not path.is_file() or path.suffix != ".py" or not {*args.numbers} <= {*CHECKS}:
        found = path.is_file() and path.suffix == ".py"
        parser.error("probes have numbers from 1 to 7" if found else f"there is no script {path}")
    sys.path.insert(0, str(path.parent))
    script = importlib.import_module(path.stem)
    if not {"Args", "make_envs", "train"} <= {*vars(script)} or hasattr(script.Args, "rnn"):
        parser.error(f"{path.name} is no copy of ppo.py or ppo_continuous.py (one with a memory: tests/test_lstm.py)")
    wrong, name = 0, None
    for kind in ("Probe", "ProbeContinuous"):
        with suppress(SystemExit):  # which says that it is for other actions
            script.make_envs(script.Args(env_id=f"{kind}4-v0"), 1).close()
            name = name or kind
    if name is None:
        sys.exit(f"error: {path.name} takes no vectors: try python -m pytest tests --script {args.script} -k Probes")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):  # for its runs
        for number in args.numbers or CHECKS:
            checks = (CHECKS if name == "Probe" else CONTINUOUS_CHECKS)[number]
            learned, line = probe(script, number, f"{name}{number}-v0", checks)
            print(f"{name}{number}-v0: {line}: {'ok' if learned else f'WRONG: {POINTS_AT[number]}'}", flush=True)
            wrong += not learned
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
