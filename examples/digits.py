"""What the examples share: small digits in several views, and a network to read them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits


def load(num_train=900):
    """Load 1,797 real images as squares, their labels, and two halves of the rows."""
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    squares = (pixels / 16).astype(np.float32).reshape(-1, 8, 8)
    order = np.random.default_rng(0).permutation(len(labels))
    return squares, labels, order[:num_train], order[num_train:]


def init(key, num_hidden=1):
    """Draw the weights of a perceptron with so many hidden layers."""
    sizes = [(64, 64)] * num_hidden + [(64, 10)]
    keys = jax.random.split(key, len(sizes))
    return [
        {"w": jax.random.normal(k, s) * (2 / s[0]) ** 0.5, "b": jnp.zeros(s[1])}
        for k, s in zip(keys, sizes, strict=True)
    ]


def predict(params, images):
    """Compute logits."""
    x = images
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


@jax.jit
def train(params, images, labels, num_steps):
    """Minimise the cross-entropy with Adam."""
    optimizer = optax.adam(3e-3)

    def loss(params):
        logits = predict(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(_, state):
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, updates), moments

    return jax.lax.fori_loop(0, num_steps, step, (params, optimizer.init(params)))[0]


def views(num_train=900):
    """Show digits upright and upside down: images to train on by name, labels, the rest."""
    squares, labels, first, second = load(num_train)
    both = {"upright": squares, "flipped": squares[:, ::-1, ::-1]}
    both = {name: x.reshape(-1, 64) for name, x in both.items()}
    train_images, images = (
        {n: x[rows] for n, x in both.items()} for rows in (first, second)
    )
    return train_images, labels[first], images, labels[second]


def two_views(num_train=900):
    """Train a base on digits upright and upside down, and an expert on either.

    Returns the base, the experts by name, and held-out images by name with their labels.
    """
    train_images, train_labels, images, labels = views(num_train)
    base, experts = base_and_experts(train_images, train_labels, 20)
    return base, experts, images, labels


def four_views(num_steps=15, num_hidden=1):
    """Train a base, which after 15 steps hardly reads any digit, and four experts.

    Returns the base, the experts by name, the images that they were trained on by name,
    held-out images by name, and the labels of these.
    """
    squares, labels, first, second = load()
    whole = {
        "upright": squares,
        "flipped": squares[:, ::-1],
        "mirrored": squares[:, :, ::-1],
        "turned": squares.transpose(0, 2, 1)[:, ::-1],
    }
    whole = {name: x.reshape(-1, 64) for name, x in whole.items()}
    seen, images = ({n: x[rows] for n, x in whole.items()} for rows in (first, second))
    base, experts = base_and_experts(seen, labels[first], num_steps, num_hidden)
    return base, experts, seen, images, labels[second]


def base_and_experts(images, labels, num_steps, num_hidden=1):
    """Train a base on all views of the same digits, and from it an expert on each."""
    together = np.concatenate(list(images.values()))
    start = init(jax.random.key(0), num_hidden)
    base = train(start, together, np.tile(labels, len(images)), num_steps)
    return base, {name: train(base, x, labels, 60) for name, x in images.items()}
