"""Merge rules in NumPy, in float64, as their papers write them, one tensor at a time.

Each takes what the experts have for one tensor, `[tasks, ...]`, and coefficients.
"""

import numpy as np


def shares(c):
    return np.asarray(c, float) / np.sum(c)


def average(experts, c):
    return np.tensordot(shares(c), experts, axes=1)


def slerp(experts, c):
    """Shoemake (1985): t from the first to the second."""
    p, q = experts
    t = shares(c)[1]
    cosine = np.vdot(p, q) / (np.linalg.norm(p) * np.linalg.norm(q))
    omega = np.arccos(cosine)
    return (np.sin((1 - t) * omega) * p + np.sin(t * omega) * q) / np.sin(omega)


def nuslerp(vectors, c, by_output):
    if not by_output:
        return slerp(vectors, c)
    flat = vectors.reshape(2, -1, vectors.shape[-1])
    columns = [slerp(flat[:, :, o], c) for o in range(flat.shape[2])]
    return np.stack(columns, axis=1).reshape(vectors.shape[1:])


def karcher_mean(experts, c):
    """Walk along the mean of the logarithms until there is nowhere to go."""
    shape, x = experts.shape[1:], experts.reshape(len(experts), -1)
    norms = np.linalg.norm(x, axis=1)
    units = x / norms[:, None]
    mean = shares(c) @ units
    mean /= np.linalg.norm(mean)
    for _ in range(1000):
        tangent = np.zeros_like(mean)
        for w, u in zip(shares(c), units, strict=True):
            away = u - (u @ mean) * mean
            size = np.linalg.norm(away)
            if size > 0:
                tangent += w * np.arctan2(size, u @ mean) * away / size
        length = np.linalg.norm(tangent)
        if length < 1e-14:
            break
        mean = np.cos(length) * mean + np.sin(length) * tangent / length
        mean /= np.linalg.norm(mean)
    return (shares(c) @ norms * mean).reshape(shape)


def layer_swap(experts, c, layer, num_layers, resolution=100_000):
    """Count the points of a layer's stretch that fall to each expert."""
    points = (layer + (np.arange(resolution) + 0.5) / resolution) / num_layers
    owners = np.searchsorted(np.cumsum(shares(c))[:-1], points)
    return np.tensordot(np.bincount(owners, minlength=len(c)) / resolution, experts, 1)


def fisher_mean(experts, c, fishers):
    merged = np.empty(experts.shape[1:])
    for place in np.ndindex(merged.shape):
        weights = [w * f[place] for w, f in zip(c, fishers, strict=True)]
        weights = np.array(weights if sum(weights) > 0 else c, float)
        values = np.array([expert[place] for expert in experts])
        merged[place] = weights @ values / weights.sum()
    return merged


def regmean_mean(experts, c, grams, factor):
    """The normal equations, kernels `[in, out]`."""
    left, right = 0, 0
    for w, expert, g in zip(c, experts, grams, strict=True):
        g = np.where(np.eye(len(g)) == 1, g, factor * g)
        left, right = left + w * g, right + w * g @ expert
    return np.linalg.solve(left, right)


def least_squares_mean(experts, c, inputs):
    """What least squares finds for the layers' outputs on all experts' inputs."""
    rows = [np.sqrt(w) * x for w, x in zip(c, inputs, strict=True)]
    answers = [r @ e for r, e in zip(rows, experts, strict=True)]
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(answers), rcond=None)[0]


def wudi_mean(vectors, c, ridge):
    """Least squares on the updates as inputs, and a pull to each of them."""
    m = vectors.reshape(len(vectors), -1, vectors.shape[-1])
    w, size = shares(c), m.shape[1]
    pull = np.sqrt(ridge / size) * np.eye(size)
    rows = [np.concatenate([x.T / np.linalg.norm(x), pull]) for x in m]
    return least_squares_mean(m, w, rows).reshape(vectors.shape[1:])
