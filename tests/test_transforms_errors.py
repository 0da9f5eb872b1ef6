"""Settings that a transform cannot take are named, with what it does take."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax import transforms

KEY = jax.random.key(7)
BASE = {"layer_0": jnp.ones((4, 6)), "layer_1": jnp.zeros((4, 6))}
FLAT = mj.TaskVectors.from_params(
    {"w": jnp.eye(2), "b": jnp.ones(2)}, [{"w": 2 * jnp.eye(2), "b": jnp.ones(2)}]
)
TV = mj.TaskVectors.from_params(BASE, [BASE, jax.tree.map(jnp.cos, BASE)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: transforms.ties(TV, density=0.0),
            r"`density` is 0.0, but must be in \(0, 1\]",
        ),
        (
            lambda: transforms.ties(TV, density=1.5),
            r"`density` is 1.5.*share of entries to keep",
        ),
        (lambda: transforms.pcb(TV, density=-0.1), r"`density` is -0.1, but must be in"),
        (
            lambda: transforms.dare(TV, density=2.0, key=KEY),
            r"`density` is 2.0, but must be in",
        ),
        (
            lambda: transforms.ties(TV, density=np.nan),
            "`density` is nan, but must be one finite",
        ),
        (
            lambda: transforms.della(TV, density=0.0, key=KEY),
            r"`density` is 0.0, but must be",
        ),
        (
            lambda: transforms.della(TV, density=0.9, window=0.3, key=KEY),
            r"`window` is 0.3, but with `density` 0.9 it must be from 0 to 0.2, so that",
        ),
        (
            lambda: transforms.breadcrumbs(TV, beta=1.0),
            r"`beta` is 1.0, but must be in \[0, 1\): it is the share to drop",
        ),
        (
            lambda: transforms.breadcrumbs(TV, beta=0.5, gamma=0.6),
            "`beta` is 0.5 and `gamma` is 0.6, which drop every entry: choose two",
        ),
        (
            lambda: transforms.tall_mask(TV, scale=-1.0),
            "`scale` is -1.0, but must be at least 0",
        ),
        (
            lambda: transforms.consensus(TV, agreement=3),
            "`agreement` is 3, but must be an int from 1 to the number of experts, 2",
        ),
        (
            lambda: transforms.consensus(TV, agreement=0),
            "`agreement` is 0, but must be an int",
        ),
        (
            lambda: transforms.lines(TV, alpha=np.inf),
            "`alpha` is inf, but must be one finite",
        ),
        (
            lambda: transforms.lines(TV, beta=np.nan),
            "`beta` is nan, but must be one finite",
        ),
        (
            lambda: transforms.lines(FLAT),
            r"the key paths show \[\] as layer numbers for the leaves \[.*Pass `layers`, a",
        ),
        (
            lambda: transforms.lines(TV, layers=lambda path: 3),
            r"`layers` gave \[3\] as layer numbers.*with two layers or more",
        ),
        (
            lambda: transforms.widen(TV, ratio=np.nan),
            "`ratio` is nan, but must be one finite",
        ),
        (
            lambda: transforms.widen(TV, score=np.inf),
            "`score` is inf, but must be one finite",
        ),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_types_cannot_say_is_checked_as_well():
    # The type checker of the tests would refuse these first; users run without it.
    unchecked: Any = {
        name: getattr(transforms, name).__wrapped__
        for name in ("ties", "dare", "della", "lines")
    }
    with pytest.raises(ValueError, match="`scope` is 'layer': pass 'tensor' to compare"):
        unchecked["ties"](TV, scope="layer")
    with pytest.raises(ValueError, match=r"`density` is '0\.2', but must be one finite"):
        unchecked["ties"](TV, density="0.2")
    for key in (0, jax.random.PRNGKey(0), jax.random.split(KEY)):
        for name in ("dare", "della"):
            with pytest.raises(
                ValueError, match=r"one typed key: pass `key=jax.random.key\(0\)`"
            ):
                unchecked[name](TV, key=key)
    with pytest.raises(
        ValueError, match=r"gave 'a' for leaf \['layer_0'\]: give the number"
    ):
        unchecked["lines"](TV, layers=lambda path: "a")
