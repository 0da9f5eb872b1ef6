"""Spectral and closed-form merges as their papers write them, in NumPy and float64.

Every function takes the task vectors of one tensor or of all, as arrays with the tasks
first, and gives parts with the tasks first where the paper's formula has such parts, else
the merged update. Matrices are kernels `[in, out]`; a paper's weight is the transpose.
"""

import numpy as np


def svd(w):
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    return u, s, vt


def nearest_orthogonal(x):
    u, _, vt = svd(x)
    return u @ vt


def tsv(taus, k=None):
    weights = [t.T for t in taus]
    k = k or max(1, min(weights[0].shape) // len(weights))
    factors = [svd(w) for w in weights]
    u = nearest_orthogonal(np.concatenate([u[:, :k] for u, _, _ in factors], axis=1))
    v = nearest_orthogonal(np.concatenate([vt[:k] for _, _, vt in factors], axis=0))
    parts = []
    for i, (_, s, _) in enumerate(factors):
        block = slice(i * k, (i + 1) * k)
        parts.append((u[:, block] @ np.diag(s[:k]) @ v[block]).T)
    return np.stack(parts)


def iso_c(taus):
    u, s, vt = svd(np.sum(taus, axis=0).T)
    return (np.mean(s) * u @ vt).T


def iso_cts(taus, common=0.8):
    weights = [t.T for t in taus]
    n, r = len(weights), min(weights[0].shape)
    k = int(r * common)
    k = r - round((r - k) / n) * n
    u, s, vt = svd(np.sum(weights, axis=0))
    us, ss, vs = [], [], []
    own = (r - k) // n
    for w in weights:
        a, b, c = svd(w - u[:, :k] @ u[:, :k].T @ w)
        us.append(a[:, :own]), ss.append(b[:own]), vs.append(c[:own])
    us = nearest_orthogonal(np.concatenate([*us, u[:, :k]], axis=1))
    vs = nearest_orthogonal(np.concatenate([*vs, vt[:k]], axis=0))
    return (np.mean(np.concatenate([*ss, s[:k]])) * us @ vs).T


def wudi(taus, ridge):
    """Minimise the stacked residuals, rather than solve the normal equations."""
    squares = [np.sum(t**2) for t in taus]
    trace = sum(1 for q in squares if q > 0)
    rows = [t.T / np.sqrt(q) for t, q in zip(taus, squares, strict=True) if q > 0]
    right = [t.T @ t / np.sqrt(q) for t, q in zip(taus, squares, strict=True) if q > 0]
    size = taus[0].shape[0]
    root = np.sqrt(ridge * trace / size)
    a = np.concatenate([*rows, root * np.eye(size)])
    b = np.concatenate([*right, root * sum(taus)])
    return np.linalg.lstsq(a, b, rcond=None)[0]


def adam(gradient, x, steps, rate):
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        g = gradient(x)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        x = x - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


def wudi_descent(taus, steps, rate):
    weights = [t.T for t in taus]

    def gradient(w):
        return sum(2 * (w - t) @ t.T @ t / np.sum(t**2) for t in weights)

    return adam(gradient, np.sum(weights, axis=0), steps, rate).T


def opcm(tensors, matrices, alpha=0.5):
    """Merge all tensors of all tasks, rescaling after every task as the paper does.

    `tensors` are `[tasks, ...]`; those at the places `matrices` are `[tasks, in, out]`.
    """
    num_tasks = len(tensors[0])

    def norm(vectors):
        return np.sqrt(sum(np.sum(v**2) for v in vectors))

    merged = [t[0] for t in tensors]
    norms, scale = [norm(merged)], 1.0
    for i in range(1, num_tasks):
        norms.append(norm([t[i] for t in tensors]))
        total = []
        for place, (old, new) in enumerate(
            zip(merged, (t[i] for t in tensors), strict=True)
        ):
            if place in matrices:
                u, s, vt = np.linalg.svd(old.T)
                p = u.T @ new.T @ vt.T
                r = int(np.argmax(np.cumsum(s) / np.sum(s) >= alpha)) + 1
                p[:r, :r] = 0
                np.fill_diagonal(p, 0)
                new = (u @ p @ vt).T
            total.append(scale * old + new)
        scale = norm(total) / np.mean(norms)
        merged = [t / scale for t in total]
    return merged


def doge(tensors, scale=0.07, density=0.3, steps=400, rate=1e-4, sixth=1 / 6):
    """Merge matrices `[tasks, in, out]`, all of them, as masks are over the whole model."""
    merged = []
    for taus in tensors:
        weights = np.swapaxes(taus, 1, 2)
        n, r = len(weights), min(weights[0].shape)
        lam = scale / np.sqrt(np.sum(weights**2, axis=(1, 2)))
        tops = [svd(w)[0][:, : max(1, r // n)] for w in weights]
        basis = svd(np.concatenate(tops, axis=1))[0][:, : int(r * sixth + 1e-9)]

        def loss(delta, weights=weights, lam=lam):
            update = np.einsum("i,ioj->oj", lam, weights + delta)
            return sum(np.sum(np.sum(w * (w - update), axis=1) ** 2) for w in weights)

        def gradient(delta, weights=weights, lam=lam, basis=basis):
            update = np.einsum("i,ioj->oj", lam, weights + delta)
            g = np.zeros_like(delta)
            for w in weights:
                g += -2 * np.sum(lam) * np.sum(w * (w - update), axis=1)[:, None] * w
            return g - basis @ basis.T @ g

        delta = adam(gradient, np.zeros_like(weights[0]), steps, rate)
        assert loss(delta) <= loss(0 * delta)
        merged.append(np.swapaxes(lam[:, None, None] * (weights + delta), 1, 2))
    sizes = np.concatenate([np.abs(t).reshape(len(t), -1) for t in tensors], axis=1)
    least = np.sort(sizes, axis=1)[:, -round(density * sizes.shape[1])]
    return [
        np.where(np.abs(t) >= least[:, None, None], m, 0)
        for t, m in zip(tensors, merged, strict=True)
    ]


def regmean(taus, grams, factor=0.9):
    shrunk = [factor * g + (1 - factor) * np.diag(np.diag(g)) for g in grams]
    inverse = np.linalg.inv(sum(shrunk))
    return np.stack([inverse @ g @ t for g, t in zip(shrunk, taus, strict=True)])


def fisher_weighted(taus, fishers):
    return fishers * taus / np.sum(fishers, axis=0)


def ota(tensors, moments, density=1.0):
    saliency = np.concatenate(
        [(v * t**2).reshape(len(t), -1) for t, v in zip(tensors, moments, strict=True)],
        axis=1,
    )
    least = np.sort(saliency, axis=1)[:, -max(1, round(density * saliency.shape[1]))]
    parts = []
    for t, v in zip(tensors, moments, strict=True):
        mask = v * t**2 >= least.reshape(-1, *[1] * (t.ndim - 1))
        parts.append(np.sqrt(v) * mask * t / np.sum(np.sqrt(v), axis=0))
    return parts


def mean_gram(*rows):
    rows = np.concatenate(rows).astype(np.float64)
    return rows.T @ rows / len(rows)
