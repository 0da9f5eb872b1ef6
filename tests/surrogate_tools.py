"""Outputs that are quadratic in the coefficients, and their regression in NumPy."""

import math

import numpy as np

import mapjax as mj
from mapjax.surrogate import fit_outputs

N, EXAMPLES, CLASSES = 3, 40, 4
CORNERS = np.eye(N + 1, N, k=-1)


def sampled(count, seed=0):
    """The base, the experts and other merges near them."""
    others = np.random.default_rng(seed).random((count - N - 1, N)) * 0.6
    return np.concatenate([CORNERS, others])


def logits(c, seed=1, curvature=0.5):
    """Outputs that are quadratic in the coefficients."""
    rng = np.random.default_rng(seed)
    slope = rng.normal(size=(N, EXAMPLES, CLASSES))
    bend = curvature * rng.normal(size=(N, N, EXAMPLES, CLASSES))
    start = rng.normal(size=(EXAMPLES, CLASSES))
    line = np.tensordot(c, slope, 1)
    return start + line + np.einsum("ki,kj,ijec->kec", c, c, bend)


LABELS = np.random.default_rng(2).integers(CLASSES, size=EXAMPLES)


def accuracies(outputs, labels=LABELS):
    return (outputs.argmax(-1) == labels).mean(-1)


def kernel(a, b, degree):
    powers = range(1, int(min(degree, 30)) + 1)
    return np.sum([(a @ b.T) ** n / math.factorial(n) for n in powers], axis=0)


def predicted_outputs(c, points, outputs, degree, ridge):
    """Kernel ridge regression with an intercept, written as a linear system."""
    count = len(c)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = kernel(c, c, degree) + ridge * np.eye(count)
    system[:count, count] = system[count, :count] = 1
    right = np.concatenate([outputs.reshape(count, -1), np.zeros((1, outputs[0].size))])
    solved = np.linalg.solve(system, right)
    features = np.concatenate([kernel(points, c, degree), np.ones((len(points), 1))], 1)
    return (features @ solved).reshape(len(points), *outputs.shape[1:])


def fit(c, outputs, *, metric=mj.metrics.accuracy, labels=LABELS, **options):
    return fit_outputs(c, [outputs], [labels], [metric], **options)
