"""A verification with made-up numbers, for drawing."""

import numpy as np

from tangency.dynamics import Run, Verification
from tangency.dynamics.verification import PREDICTIONS

NASTY = "<script>alert(1)</script> & $x_{"


def verification(*, widths=(8, 64), seeds=(0, 1), tested=True, diverged=False):
    """Outputs decay towards the targets; predictions stray from them by the width."""
    rng = np.random.default_rng(0)
    steps, y = np.array([0, 1, 3, 10]), rng.normal(size=(5, 2))
    start = rng.normal(size=(5 + 3 * tested, 2))
    target = np.concatenate([y, np.zeros((3 * tested, 2))])

    def run(width, seed):
        decay = np.exp(-0.3 * steps)[:, None, None]
        network = target + decay * (start - target)
        predicted = {name: network + 0.1 * k * (1 - decay) / width for k, name in enumerate(PREDICTIONS)}
        drift = np.array([0.0, np.nan, 0.3, 0.5]) / width * (1 + 0.1 * seed)
        stopped = None
        if diverged and width == widths[-1]:
            network, stopped = np.where(steps[:, None, None] < 3, network, np.nan), 2
            drift = np.array([0.0, np.nan, np.nan, np.nan])
            predicted[PREDICTIONS[0]] = np.where(steps[:, None, None] < 3, network, 1e300)
        rates = {"empirical": 0.5, "limit": 0.6}
        return Run(width, seed, network, predicted, width**-0.5 * (1 + 0.1 * seed), drift, rates, stopped)

    runs = tuple(tuple(run(width, seed) for seed in seeds) for width in widths)
    texts = ("remark " + NASTY,), "Θ < Θ′", NASTY, r"\Theta"
    return Verification(widths, seeds, steps, 0.15, 0.6, y, runs, 0.1, *texts)
