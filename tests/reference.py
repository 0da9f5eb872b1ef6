"""Published single merges in NumPy, written from the papers, one task after the other.

Each takes the task vectors of every tensor, `[tasks, ...]` in float64, and gives the change
of every tensor that the paper adds to the base.
"""

import numpy as np
from scipy import stats


def flat_tasks(tau):
    """One long vector per task, and how to cut one up into tensors again."""
    n = len(tau[0])
    flat = np.stack([np.concatenate([v[i].ravel() for v in tau]) for i in range(n)])

    def cut(vector):
        ends = np.cumsum([v[0].size for v in tau])[:-1]
        parts = np.split(vector, ends)
        return [p.reshape(v.shape[1:]) for p, v in zip(parts, tau, strict=True)]

    return flat, cut


def in_scope(rule, tau, scope):
    """Apply a rule of flat vectors `[tasks, entries]` to each tensor or to all together."""
    if scope == "global":
        flat, cut = flat_tasks(tau)
        return cut(rule(flat))
    return [rule(v.reshape(len(v), -1)).reshape(v.shape[1:]) for v in tau]


def elect_and_average(v):
    """Steps 2 and 3 of TIES: the sign of the sum, the mean of those that share it."""
    merged = np.zeros(v.shape[1])
    for p in range(v.shape[1]):
        sign = np.sign(v[:, p].sum())
        agreeing = [x for x in v[:, p] if x != 0 and np.sign(x) == sign]
        merged[p] = np.mean(agreeing) if agreeing else 0.0
    return merged


def trim(x, density):
    number = max(1, round(density * x.size))
    smallest_kept = np.sort(np.abs(x))[-number]
    return np.where(np.abs(x) >= smallest_kept, x, 0.0)


def ties(tau, density=0.2, scope="tensor"):
    def rule(v):
        return elect_and_average(np.stack([trim(x, density) for x in v]))

    return in_scope(rule, tau, scope)


def dare(tau, uniforms, density=0.1):
    merged = []
    for v, u in zip(tau, uniforms, strict=True):
        merged.append(
            sum(np.where(u[i] < density, v[i], 0) / density for i in range(len(v)))
        )
    return merged


def della(tau, uniforms, density=0.5, window=0.2):
    merged = []
    for v, u in zip(tau, uniforms, strict=True):
        kept = []
        for x, draw in zip(v.reshape(len(v), -1), u.reshape(len(v), -1), strict=True):
            digits = np.frexp(np.abs(x))  # nine binary ones, the first of them always one
            same = np.ldexp(np.floor(digits[0] * 512), digits[1])
            rank = stats.rankdata(same) - 1  # equals share the mean
            drop = (1 - density) + window / 2 - window * (rank + 0.5) / x.size
            kept.append(np.where(draw < 1 - drop, x / (1 - drop), 0.0))
        merged.append(elect_and_average(np.stack(kept)).reshape(v.shape[1:]))
    return merged


def breadcrumbs(tau, beta=0.85, gamma=0.007):
    merged = []
    for v in tau:
        total = np.zeros(v[0].size)
        for x in v.reshape(len(v), -1):
            magnitudes = np.sort(np.abs(x))
            stays = max(1, round((1 - beta) * x.size))
            outliers = min(round(gamma * x.size), stays - 1)
            least, most = magnitudes[x.size - stays], magnitudes[x.size - 1 - outliers]
            total += np.where((least <= np.abs(x)) & (np.abs(x) <= most), x, 0.0)
        merged.append(total.reshape(v.shape[1:]))
    return merged


def tall_masks(v, scale):
    multi_task = v.sum(axis=0)
    return np.stack([np.abs(x) >= scale * np.abs(multi_task - x) for x in v])


def tall_mask(tau, scale=0.4):
    return [(tall_masks(v, scale) * v).sum(axis=0) for v in tau]


def consensus(tau, scale=0.4, agreement=2):
    return [(tall_masks(v, scale).sum(0) >= agreement) * v.sum(0) for v in tau]


def normalise(x):
    return (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else np.zeros_like(x)


def pcb(tau, density=0.1, scope="tensor"):
    def rule(v):
        n, size = v.shape
        weights = []
        for x in v:
            score = np.exp(n * normalise(np.abs(x)) ** 2) * np.tanh(x * v.sum(axis=0))
            kept = np.sort(score)[size - max(1, round(density * size))]
            equal = kept == score.max()
            one = 1.0 * (score >= kept) * (score > 0)
            weights.append(one if equal else normalise(score.clip(kept)))
        total = np.sum(weights, axis=0)
        return (weights * v).sum(axis=0) / np.where(total > 0, total, 1.0)

    return in_scope(rule, tau, scope)


def lines(tau, depths, alpha, beta):
    return [(alpha + beta * d) * v.sum(axis=0) for v, d in zip(tau, depths, strict=True)]


def metagpt(tau):
    flat, cut = flat_tasks(tau)
    squares = (flat**2).sum(axis=1)
    return cut(squares / max(squares.sum(), 1e-300) @ flat)


def cosine(a, b):
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / norms if norms > 0 else 0.0


def model_stock(tau):
    merged = []
    for v in tau:
        n, flat = len(v), v.reshape(len(v), -1)
        pairs = [cosine(flat[i], flat[j]) for i in range(n) for j in range(i)]
        cos = max(np.mean(pairs), 0.0) if pairs else 1.0
        t = n * cos / (1 + (n - 1) * cos)
        merged.append(t * v.mean(axis=0))
    return merged


def magmax(tau):
    merged = []
    for v in tau:
        flat = v.reshape(len(v), -1)
        winner = [
            max(range(len(v)), key=lambda i, p=p: abs(flat[i, p]))
            for p in range(flat[0].size)
        ]
        merged.append(flat[winner, range(flat[0].size)].reshape(v.shape[1:]))
    return merged


def widen(tau, base, ratio=1.0, score=1.0):
    def softmax(change):
        return np.exp(change) / np.exp(change).sum(axis=0)

    def scores(change):
        size = change.shape[1]
        rank = np.empty(change.shape)
        for i, x in enumerate(change):
            rank[i, np.argsort(x, kind="stable")] = np.arange(size)
        return np.where(rank > ratio * np.mean(range(size)), score, softmax(rank / size))

    def length(w):
        return np.sqrt((w**2).sum(axis=-1))

    merged = []
    for v, b in zip(tau, base, strict=True):
        if b.ndim < 2:
            change = np.abs(v)
            mean = change.mean(axis=tuple(range(1, v.ndim)), keepdims=True)
            weights = np.where(change > ratio * mean, score, softmax(change))
            merged.append((weights * v).sum(axis=0))
            continue
        rows, old = v.reshape(len(v), -1, b.shape[-1]), b.reshape(-1, b.shape[-1])
        new = [old + x for x in rows]
        growth = np.stack([np.abs(length(w) - length(old)) for w in new])
        both = np.stack([length(w) * length(old) for w in new])
        turn = 1 - np.stack([(w * old).sum(-1) for w in new]) / np.where(both > 0, both, 1)
        weights = (scores(growth) + scores(turn.round(12))) / 2
        merged.append((weights[..., None] * rows).sum(axis=0).reshape(b.shape))
    return merged
