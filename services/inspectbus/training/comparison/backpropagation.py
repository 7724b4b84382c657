"""BPN: the classic back-propagation network, one hidden layer of tanh units, trained by plain gradient descent.

x ─> h = tanh(W1 x + b1) ─> y = tanh(w2 h + b2) ─> E = 1/2 mean (d - y)^2, d = 1 for DEFECTIVE and -1 for GOOD

Each weight moves against its own share of the error, w <- w - rate * dE/dw, the shares found layer by layer from the
output back (Rumelhart, Hinton, Williams, Learning representations by back-propagating errors, Nature 323, 1986). No
momentum, no adaptive rates: this is the network papers of the field compare with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inspectbus.training.calibration import Floats, Labels


@dataclass
class Network:
    """Weights, changed in place by `descend`."""

    hidden: Floats
    """(D, H)."""
    hidden_bias: Floats
    """(H,)."""
    output: Floats
    """(H,)."""
    output_bias: Floats
    """(1,)."""

    def net(self, inputs: Floats) -> Floats:
        """What the output unit receives, (N,): twice it is the logit of (1 + y) / 2."""
        found: Floats = np.tanh(inputs @ self.hidden + self.hidden_bias) @ self.output + self.output_bias[0]
        return found

    def error(self, inputs: Floats, wanted: Floats) -> float:
        return float(0.5 * np.mean((wanted - np.tanh(self.net(inputs))) ** 2))

    def gradient(self, inputs: Floats, wanted: Floats) -> Network:
        """dE/dw of every weight, as a network of the same shape."""
        active = np.tanh(inputs @ self.hidden + self.hidden_bias)
        said = np.tanh(active @ self.output + self.output_bias[0])
        # The output's error signal, then each hidden unit's share of it; tanh' = 1 - tanh^2.
        at_output = (said - wanted) * (1 - said**2) / len(inputs)
        at_hidden = np.outer(at_output, self.output) * (1 - active**2)
        return Network(inputs.T @ at_hidden, at_hidden.sum(axis=0), active.T @ at_output, np.array([at_output.sum()]))

    def descend(self, slope: Network, rate: float) -> None:
        self.hidden -= rate * slope.hidden
        self.hidden_bias -= rate * slope.hidden_bias
        self.output -= rate * slope.output
        self.output_bias -= rate * slope.output_bias


def begin(width: int, hidden: int, rng: np.random.Generator) -> Network:
    """Small random weights (Glorot and Bengio 2010), so that no unit begins saturated."""
    return Network(
        rng.normal(0, np.sqrt(2 / (width + hidden)), (width, hidden)),
        np.zeros(hidden),
        rng.normal(0, np.sqrt(2 / (hidden + 1)), hidden),
        np.zeros(1),
    )


def train(inputs: Floats, labels: Labels, *, hidden: int, rate: float, epochs: int, batch: int, seed: int) -> Network:
    """Gradient descent over shuffled small batches; `inputs` (N, D) should be of about unit size."""
    rng = np.random.default_rng(seed)
    network = begin(inputs.shape[1], hidden, rng)
    wanted = (2 * labels - 1).astype(np.float64)
    for _ in range(epochs):
        order = rng.permutation(len(inputs))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            network.descend(network.gradient(inputs[rows], wanted[rows]), rate)
    return network
