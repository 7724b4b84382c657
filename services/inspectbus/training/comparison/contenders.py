"""Contenders: what the CNN is compared with. Each is a way to fit and a space of settings to search.

settings, train inputs, labels ─> fit ─> Judge: inputs to logits
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from inspectbus.training.calibration import Floats, Labels
from inspectbus.training.comparison import backpropagation
from inspectbus.training.comparison.learning import Inputs, Judge, Settings

BATCH = 16
EPOCHS = 60
"""Of BPN; its rate is what the search varies."""
EARLY_STOPPING_FROM = 50
"""Images below which MLP keeps none of them back for its own early stopping: a tenth would lack a class."""


@dataclass(frozen=True)
class Contender:
    """A classifier and the space its settings are searched in."""

    name: str
    words: str
    usual: Settings
    """What its library or text book would take: always the first candidate."""
    draw: Callable[[np.random.Generator], Settings]
    fit: Callable[[Settings, Inputs, Labels, int], Judge]
    """From settings, inputs (N, D), labels (N,) and a seed."""


def _fit_svm(settings: Settings, inputs: Inputs, labels: Labels, seed: int) -> Judge:
    del seed  # nothing in it is drawn
    # "scale" times a factor: one over the inputs' whole variance is the width that scikit-learn takes.
    gamma = float(settings["gamma"]) / max(inputs.shape[1] * float(inputs.var()), 1e-12)
    machine = SVC(kernel="rbf", C=float(settings["c"]), gamma=gamma, class_weight="balanced").fit(inputs, labels)
    return lambda unseen: np.asarray(machine.decision_function(unseen), np.float64)


def _fit_knn(settings: Settings, inputs: Inputs, labels: Labels, seed: int) -> Judge:
    del seed
    neighbours = min(int(settings["neighbours"]), len(inputs))
    machine = KNeighborsClassifier(neighbours, weights=str(settings["weights"])).fit(inputs, labels)

    def judge(unseen: Inputs) -> Floats:
        # As if two more neighbours had disagreed (Laplace): no number of neighbours is certain.
        share = (neighbours * machine.predict_proba(unseen)[:, 1] + 1) / (neighbours + 2)
        found: Floats = np.log(share / (1 - share))
        return found

    return judge


def _fit_bpn(settings: Settings, inputs: Inputs, labels: Labels, seed: int) -> Judge:
    network = backpropagation.train(
        inputs.astype(np.float64),
        labels,
        hidden=int(settings["hidden"]),
        rate=float(settings["rate"]),
        epochs=EPOCHS,
        batch=BATCH,
        seed=seed,
    )
    return lambda unseen: 2 * network.net(unseen.astype(np.float64))


def _fit_mlp(settings: Settings, inputs: Inputs, labels: Labels, seed: int) -> Judge:
    machine = MLPClassifier(
        (int(settings["hidden"]),),
        alpha=float(settings["decay"]),
        learning_rate_init=float(settings["rate"]),
        early_stopping=len(inputs) >= EARLY_STOPPING_FROM,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # A candidate that has not settled after 200 epochs is judged by its validation AP like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(inputs, labels)
    return lambda unseen: _logit(machine.predict_proba(unseen)[:, 1])


def _fit_logistic(settings: Settings, inputs: Inputs, labels: Labels, seed: int) -> Judge:
    del seed
    machine = LogisticRegression(C=float(settings["c"]), class_weight="balanced", max_iter=1000).fit(inputs, labels)
    return lambda unseen: np.asarray(machine.decision_function(unseen), np.float64)


def _fit_nothing(settings: Settings, inputs: Inputs, labels: Labels, seed: int) -> Judge:
    del settings, inputs, labels, seed
    return lambda unseen: np.zeros(len(unseen))


def _logit(share: Floats) -> Floats:
    clipped = np.clip(share, 1e-7, 1 - 1e-7)
    found: Floats = np.log(clipped / (1 - clipped))
    return found


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


SVM = Contender(
    "svm",
    "support vector machine, radial basis functions",
    {"c": 1.0, "gamma": 1.0},
    lambda rng: {"c": _log_uniform(rng, 0.1, 100), "gamma": _log_uniform(rng, 0.1, 10)},
    _fit_svm,
)
KNN = Contender(
    "knn",
    "k nearest neighbours",
    {"neighbours": 5, "weights": "uniform"},
    lambda rng: {
        "neighbours": round(_log_uniform(rng, 1, 60)),
        "weights": ("uniform", "distance")[int(rng.integers(2))],
    },
    _fit_knn,
)
BPN = Contender(
    "bpn",
    "one hidden layer of tanh units, plain gradient descent",
    {"hidden": 16, "rate": 0.05},
    lambda rng: {"hidden": round(_log_uniform(rng, 4, 64)), "rate": _log_uniform(rng, 0.005, 0.3)},
    _fit_bpn,
)
MLP = Contender(
    "mlp",
    "one hidden layer of rectified units, Adam, early stopping",
    {"hidden": 100, "decay": 1e-4, "rate": 1e-3},
    lambda rng: {
        "hidden": round(_log_uniform(rng, 16, 256)),
        "decay": _log_uniform(rng, 1e-5, 1),
        "rate": _log_uniform(rng, 3e-4, 1e-2),
    },
    _fit_mlp,
)
LIGHT = Contender(
    "light",
    "mean grey and its spread, nothing else: logistic regression",
    {"c": 1.0},
    lambda rng: {"c": _log_uniform(rng, 0.01, 100)},
    _fit_logistic,
)
ALL_DEFECTIVE = Contender("all-defective", "calls every part defective", {}, lambda rng: {}, _fit_nothing)

BASELINES = (SVM, KNN, BPN, MLP)
