"""Vectors of sizes whose squares single precision does not hold."""

import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax import rules, transforms

RNG = np.random.default_rng(0)
BASE, VECTORS = RNG.normal(size=(6, 5)), RNG.normal(size=(3, 6, 5))
VECTORS[1] += 0.8 * VECTORS[0]  # so that directions have something in common
VECTORS[2] += 0.8 * VECTORS[0]
C = np.array([0.2, 0.3, 0.5], np.float32)


def vectors(transform, **options):
    return lambda tv: transform(tv, **options).vectors["w"]


LINEAR = {
    "iso_c": vectors(transforms.iso_c),
    "iso_cts": vectors(transforms.iso_cts, common=0.5),
    "metagpt": vectors(transforms.metagpt),
    "model_stock": vectors(transforms.model_stock),
    "opcm": vectors(transforms.opcm),
    "widen": vectors(transforms.widen),
    "wudi": vectors(transforms.wudi),
    "wudi_mean": lambda tv: rules.wudi_mean(tv)(C)["w"],
}
FIXED = {
    "doge": vectors(transforms.doge, num_steps=0),  # of a length that is given
    "low_rank": lambda tv: mj.low_rank(tv, rank=2).vectors["w"].error,
}


@pytest.mark.parametrize("size", [2.0**-67, 2.0**67])
@pytest.mark.parametrize("name", LINEAR | FIXED)
def test_edits_do_the_same_at_any_size(name, size):
    found = []
    for unit in (1.0, size):
        base, v = jnp.asarray(BASE, jnp.float32), jnp.asarray(VECTORS, jnp.float32)
        tv = mj.TaskVectors({"w": unit * base}, {"w": unit * v}, ("a", "b", "c"))
        edited = np.asarray((LINEAR | FIXED)[name](tv), float)
        found.append(edited / unit if name in LINEAR else edited)
    assert np.abs(found[0]).max() > 0.01
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
