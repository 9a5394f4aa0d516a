"""PPO as the papers' formulas say it, without any speed: float64, NumPy, one sample at a time, gradients by hand.

The scripts must arrive at the same parameters from the same rollouts (`test_reference.py`). Nothing here is shared with
them: not PyTorch, not a function. PPO is arXiv:1707.06347, GAE arXiv:1506.02438, Adam arXiv:1412.6980; the
value loss and the numbered details are those of Huang et al., 2022 ("The 37 Implementation Details of Proximal Policy
Optimization").
"""

import math
from dataclasses import dataclass, field

import numpy as np


class Dense:
    """y = W x + b"""

    def __init__(self, name):
        self.name = name

    def forward(self, x, params):
        self.x = x
        return params[f"{self.name}.weight"] @ x + params[f"{self.name}.bias"]

    def backward(self, grad, params, grads):
        grads[f"{self.name}.weight"] += np.outer(grad, self.x)
        grads[f"{self.name}.bias"] += grad
        return params[f"{self.name}.weight"].T @ grad


class Convolution:
    """Each place of the output is a product of the weights (channels out, channels in, height, width) with a window."""

    def __init__(self, name, stride):
        self.name, self.stride = name, stride

    def windows(self, x, size):
        rows, columns = ((length - size) // self.stride + 1 for length in x.shape[1:])
        for i in range(rows):
            for j in range(columns):
                top, left = i * self.stride, j * self.stride
                yield i, j, (slice(None), slice(top, top + size), slice(left, left + size))

    def forward(self, x, params):
        self.x, weight = x, params[f"{self.name}.weight"]
        outputs = {
            (i, j): weight.reshape(len(weight), -1) @ x[w].ravel() for i, j, w in self.windows(x, weight.shape[2])
        }
        rows, columns = max(outputs)
        y = np.zeros((len(weight), rows + 1, columns + 1))
        for (i, j), output in outputs.items():
            y[:, i, j] = output + params[f"{self.name}.bias"]
        return y

    def backward(self, grad, params, grads):
        weight, grad_x = params[f"{self.name}.weight"], np.zeros_like(self.x)
        for i, j, window in self.windows(self.x, weight.shape[2]):
            grads[f"{self.name}.weight"] += np.multiply.outer(grad[:, i, j], self.x[window])
            grads[f"{self.name}.bias"] += grad[:, i, j]
            grad_x[window] += np.tensordot(grad[:, i, j], weight, 1)
        return grad_x


class Tanh:
    def forward(self, x, params):
        self.y = np.tanh(x)
        return self.y

    def backward(self, grad, params, grads):
        return grad * (1 - self.y**2)


class Relu:
    def forward(self, x, params):
        self.x = x
        return np.where(x > 0, x, 0)

    def backward(self, grad, params, grads):
        return np.where(self.x > 0, grad, 0)


class Flatten:
    def forward(self, x, params):
        self.shape = x.shape
        return x.ravel()

    def backward(self, grad, params, grads):
        return grad.reshape(self.shape)


def forward(network, x, params):
    for layer in network:
        x = layer.forward(x, params)
    return x


def backward(network, grad, params, grads):
    for layer in reversed(network):
        grad = layer.backward(grad, params, grads)
    return grad


def tanh_network(name):
    """Two hidden layers, for policy and value each (detail 13)."""
    return [Dense(f"{name}.0"), Tanh(), Dense(f"{name}.2"), Tanh(), Dense(f"{name}.4")]


def nature_cnn():
    """Mnih et al., 2015 (detail 21)."""
    layers = [Convolution("trunk.1", 4), Convolution("trunk.3", 2), Convolution("trunk.5", 1)]
    return [layers[0], Relu(), layers[1], Relu(), layers[2], Relu(), Flatten(), Dense("trunk.8"), Relu()]


class Categoricals:
    """Independent categoricals over the allowed choices (details 37 and d); outputs are logits (C * K,)."""

    @staticmethod
    def probabilities(outputs, forbidden):
        p = np.where(forbidden, 0, np.exp(outputs.reshape(forbidden.shape)))
        return p / p.sum(-1, keepdims=True)

    def logprob_and_entropy(self, outputs, sample, params):
        logprob, entropy = 0, 0
        for probabilities, choice in zip(self.probabilities(outputs, sample.forbidden), sample.action, strict=True):
            logprob += math.log(probabilities[choice])
            entropy -= sum(p * math.log(p) for p in probabilities if p > 0)
        return logprob, entropy

    def gradient(self, outputs, sample, to_logprob, to_entropy, params, grads):
        """Of the loss by the outputs, from its derivatives by log-probability and entropy."""
        grad = np.zeros(sample.forbidden.shape)
        for c, probabilities in enumerate(self.probabilities(outputs, sample.forbidden)):
            entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
            for k, p in enumerate(probabilities):
                grad[c, k] += to_logprob * ((k == sample.action[c]) - p)
                grad[c, k] -= to_entropy * p * (math.log(p) + entropy) if p > 0 else 0
        return grad.ravel()


class Gaussians:
    """Independent normal distributions with deviations of their own, for all states the same (details 23 to 25)."""

    def logprob_and_entropy(self, outputs, sample, params):
        logprob, entropy = 0, 0
        for mean, log_std, x in zip(outputs, params["log_std"], sample.action, strict=True):
            variance = math.exp(log_std) ** 2
            logprob += -((x - mean) ** 2) / (2 * variance) - 0.5 * math.log(2 * math.pi * variance)
            entropy += 0.5 * math.log(2 * math.pi * math.e * variance)
        return logprob, entropy

    def gradient(self, outputs, sample, to_logprob, to_entropy, params, grads):
        grad = np.zeros(len(outputs))
        for c, (mean, log_std, x) in enumerate(zip(outputs, params["log_std"], sample.action, strict=True)):
            z = (x - mean) / math.exp(log_std)
            grad[c] = to_logprob * z / math.exp(log_std)
            grads["log_std"][c] += to_logprob * (z**2 - 1) + to_entropy
        return grad


def advantage_by_definition(rewards, values, terminated, truncated, gamma, gae_lambda, t, n):
    """Equation 16 of the GAE paper: the sum of (γλ)^l δ_{t+l}, up to the end of the episode or the rollout."""
    total, factor = 0.0, 1.0
    for k in range(t, len(rewards)):
        next_value = 0.0 if terminated[k, n] else values[k + 1, n]
        total += factor * (rewards[k, n] + gamma * next_value - values[k, n])
        factor *= gamma * gae_lambda
        if terminated[k, n] or truncated[k, n]:
            break
    return total


@dataclass
class Step:
    """What all environments did in one step, as they tell it: arrays of (N, ...)."""

    obs: np.ndarray  # before the step
    forbidden: np.ndarray | None  # of the choices in obs, (N, C, K); None where actions are continuous
    action: np.ndarray  # as sampled
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    lives: np.ndarray | None
    next_obs: np.ndarray


@dataclass
class Sample:
    """One transition to learn from."""

    obs: np.ndarray
    forbidden: np.ndarray | None
    action: np.ndarray
    valid: bool
    logprob: float = 0.0
    value: float = 0.0
    advantage: float = 0.0
    value_target: float = 0.0


@dataclass
class Learner:
    """Parameters by name, and all that is remembered from one iteration to the next."""

    params: dict
    args: object  # with the names of the scripts' Args
    policy: object
    trunk: list = field(default_factory=list)
    actor: list = field(default_factory=lambda: tanh_network("actor"))
    critic: list = field(default_factory=lambda: tanh_network("critic"))
    pixels: bool = False
    iteration: int = 0
    adam_steps: int = 0

    def __post_init__(self):
        self.params = {name: np.array(x, np.float64) for name, x in self.params.items()}
        self.adam_mean = {name: np.zeros_like(x) for name, x in self.params.items()}
        self.adam_square = {name: np.zeros_like(x) for name, x in self.params.items()}
        self.all_obs, self.all_returns = [], []
        self.ended = self.discounted = self.lives = None

    def normalise(self, obs):
        """By mean and deviation of what was seen in earlier iterations (details 28 and 29); at first, by 0 and 1.

        Pixels are divided by 255 (detail 22), and with it each frame's mean is taken off; 1 is so far above
        their variance that they are hardly scaled.
        """
        obs = obs / 255 if self.pixels else obs.astype(np.float64)
        if not self.args.norm_obs:
            return obs
        if self.pixels:
            mean, variance = obs.mean((2, 3), keepdims=True), obs.var((2, 3), keepdims=True)
            return (obs - mean) / np.sqrt(variance + 1)
        seen = np.array(self.all_obs, np.float64)
        mean, variance = (seen.mean(0), seen.var(0)) if len(seen) else (0, 1)
        return np.clip((obs - mean) / np.sqrt(variance + 1e-8), -10, 10)

    def scale(self, steps, valid):
        """Rewards to learn from: clipped to their sign (19), or in units of their return's deviation (30 and 31)."""
        rewards = np.array([step.reward for step in steps])
        if not self.args.norm_reward:
            return np.sign(rewards) if self.pixels else rewards
        for step, is_valid in zip(steps, valid, strict=True):
            self.discounted = self.discounted * self.args.gamma + step.reward
            self.all_returns += list(self.discounted[is_valid])
            self.discounted[step.terminated | step.truncated] = 0
        return np.clip(rewards / np.sqrt(np.var(self.all_returns) + 1e-8), -10, 10)

    def outputs(self, obs):
        """What the policy's network gives, and the value."""
        features = forward(self.trunk, obs, self.params)
        return forward(self.actor, features, self.params), forward(self.critic, features, self.params)[0]

    def backward(self, to_outputs, to_value, grads):
        """From the derivatives of the loss by outputs and value to those by the parameters, added to `grads`."""
        to_features = backward(self.actor, to_outputs, self.params, grads)
        to_features = to_features + backward(self.critic, np.array([to_value]), self.params, grads)
        backward(self.trunk, to_features, self.params, grads)

    def learn(self, steps, orders, num_iterations):
        """One iteration: from a rollout of T steps, new parameters. Returns the diagnostics, by minibatch.

        `orders` yields the order of samples for an epoch.
        """
        T, N, args = len(steps), len(steps[0].reward), self.args
        if self.iteration == 0:
            self.ended, self.discounted, self.lives = np.zeros(N, bool), np.zeros(N), np.zeros(N)

        # What happened, as learning sees it
        samples, valid, terminated, truncated = [], [], [], []
        for step in steps:
            valid.append(~self.ended)  # after an end, the next step only resets
            for obs, *rest in zip(self.normalise(step.obs), step.action, valid[-1], strict=True):
                forbidden = None if step.forbidden is None else step.forbidden[len(samples) % N]
                samples.append(Sample(obs, forbidden, *rest))
            self.ended = step.terminated | step.truncated
            lost = step.lives < self.lives if step.lives is not None else np.zeros(N, bool)
            self.lives = step.lives
            terminated.append(step.terminated | lost)  # detail 16
            truncated.append(step.truncated)
        rewards = self.scale(steps, valid)

        # What the policy that acted thought of it, and how much better it went than expected
        values = np.zeros((T + 1, N))
        for i, sample in enumerate(samples):
            outputs, sample.value = self.outputs(sample.obs)
            if sample.valid:
                sample.logprob, _ = self.policy.logprob_and_entropy(outputs, sample, self.params)
            values[i // N, i % N] = sample.value
        for n, obs in enumerate(self.normalise(steps[-1].next_obs)):
            _, values[T, n] = self.outputs(obs)
        history = rewards, values, np.array(terminated), np.array(truncated)
        for i, sample in enumerate(samples):
            discounts = args.gamma, args.gae_lambda
            sample.advantage = advantage_by_definition(*history, *discounts, i // N, i % N)
            sample.value_target = sample.advantage + sample.value

        # Epochs of minibatches, with step sizes that fall linearly (details 4 and a)
        left = 1 - self.iteration / num_iterations
        learning_rate = args.learning_rate * (left if args.anneal_lr else 1)
        clip_coef = args.clip_coef * (left if args.anneal_clip else 1)
        self.ent_coef = args.ent_coef * (left if getattr(args, "anneal_ent", False) else 1)  # older forks lack it
        size = len(samples) // args.num_minibatches
        diagnostics = []
        for _ in range(args.update_epochs):
            order, epoch = next(orders), []
            for start in range(0, len(samples), size):
                minibatch = [samples[i] for i in order[start : start + size]]
                grads, diagnosis = self.gradient(minibatch, clip_coef)
                self.adam(grads, learning_rate)
                epoch.append(diagnosis)
            diagnostics += epoch
            if args.target_kl is not None and np.mean([d["approx_kl"] for d in epoch]) > args.target_kl:  # detail c
                break
        self.all_obs += [obs for step, is_valid in zip(steps, valid, strict=True) for obs in step.obs[is_valid]]
        self.iteration += 1
        return diagnostics

    def gradient(self, minibatch, clip_coef):
        """Of the loss of a minibatch, in the mean over its valid samples, and clipped (detail 11); and diagnostics."""
        args, params, valid = self.args, self.params, [sample for sample in minibatch if sample.valid]
        grads = {name: np.zeros_like(x) for name, x in params.items()}
        names = ["policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac"]
        diagnosis, M = dict.fromkeys(names, 0.0), len(valid)
        mean = sum(sample.advantage for sample in valid) / max(M, 1)
        deviation = math.sqrt(sum((sample.advantage - mean) ** 2 for sample in valid) / max(M, 1))
        for sample in valid:
            outputs, value = self.outputs(sample.obs)
            logprob, entropy = self.policy.logprob_and_entropy(outputs, sample, params)
            advantage = sample.advantage
            if args.norm_adv:  # detail 7
                advantage = (advantage - mean) / (deviation + 1e-8)

            # Policy: L = -min(r A, clip(r) A), which is flat where the clipped term is the smaller one (detail 8)
            ratio = math.exp(logprob - sample.logprob)
            objective, clipped = ratio * advantage, min(max(ratio, 1 - clip_coef), 1 + clip_coef) * advantage
            to_logprob = -ratio * advantage if objective <= clipped else 0.0

            # Value: L = (V - target)² / 2, or that of V moved by clip_coef only, where this is worse (detail 9)
            error, moved = value - sample.value_target, value - sample.value
            clipped_error = sample.value + math.copysign(min(abs(moved), clip_coef), moved) - sample.value_target
            use_clipped = args.clip_vloss and abs(moved) > clip_coef and abs(clipped_error) > abs(error)
            to_value, value_loss = (0.0, clipped_error**2 / 2) if use_clipped else (error, error**2 / 2)

            # Total: L_policy - ent_coef * entropy + vf_coef * L_value (detail 10)
            to_outputs = self.policy.gradient(outputs, sample, to_logprob / M, -self.ent_coef / M, params, grads)
            self.backward(to_outputs, args.vf_coef * to_value / M, grads)

            values = -min(objective, clipped), value_loss, entropy, -math.log(ratio), ratio - 1 - math.log(ratio)
            for name, x in zip(names, [*values, abs(ratio - 1) > clip_coef], strict=True):
                diagnosis[name] += x / M
        norm = diagnosis["grad_norm"] = math.sqrt(sum((grad**2).sum() for grad in grads.values()))
        shrink = min(1.0, args.max_grad_norm / (norm + 1e-6))
        return {name: grad * shrink for name, grad in grads.items()}, diagnosis

    def adam(self, grads, learning_rate):
        """Algorithm 1 of the Adam paper, with ε = 1e-5 (detail 3)."""
        self.adam_steps += 1
        for name, grad in grads.items():
            self.adam_mean[name] = 0.9 * self.adam_mean[name] + 0.1 * grad
            self.adam_square[name] = 0.999 * self.adam_square[name] + 0.001 * grad**2
            mean = self.adam_mean[name] / (1 - 0.9**self.adam_steps)
            square = self.adam_square[name] / (1 - 0.999**self.adam_steps)
            self.params[name] = self.params[name] - learning_rate * mean / (np.sqrt(square) + 1e-5)
