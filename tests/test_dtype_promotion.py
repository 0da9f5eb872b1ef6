"""Transforms and rules where `jax_numpy_dtype_promotion` is "strict"."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_explicit_axes import INPUTS, RULES, TRANSFORMS

import mapjax as mj

DTYPES = {"layer_0": "float32", "layer_1": "float32", "layer_2": "bfloat16"}
USUAL = {"della", "ties", "slerp"}
CASES = [
    name if name in USUAL else pytest.param(name, marks=pytest.mark.slow)
    for name in (*TRANSFORMS, *RULES)
]


@pytest.fixture(autouse=True)
def strict():
    """Set it as users do: a context manager would not reach other threads."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "standard")


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_promoted_unasked(name):
    rng = np.random.default_rng(0)
    base, *experts = (
        {k: jnp.asarray(rng.normal(size=(8, 8)), dtype) for k, dtype in DTYPES.items()}
        for _ in range(3)
    )
    tv = mj.TaskVectors.from_params(base, experts)
    measured = list(zip(experts, map(jnp.asarray, INPUTS), strict=True))
    edited = (TRANSFORMS | RULES)[name](tv, measured)
    for c in ([1, 1], np.array([0.3, 0.5], np.float32)):
        merged = mj.merge(edited, c)
        assert {k: x.dtype for k, x in merged.items()} == DTYPES
        assert all(np.isfinite(x).all() for x in merged.values())
    if name in RULES:

        def total(c):
            return jnp.sum(mj.merge(edited, c)["layer_1"])

        slope = jax.grad(total)(jnp.array([0.3, 0.5]))
        assert np.isfinite(slope).all()
