"""The k-th largest of many numbers and where each of them stands, without a sort."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from mapjax._tensors import map_by_shape, per_task
from mapjax._types import wide

Scope = Literal["tensor", "global"]
"""What an entry is compared with: its own tensor, or the whole model. Always one task's."""


_DIGIT = 16
"""How many bits are looked at in one round of counting."""


def counts(
    vectors: Sequence[Array], share: float, scope: Scope, least: int = 1
) -> list[Array]:
    """Say how many entries a share is: for each tensor, or one number for all of them.

    Rounded to the nearest number, and `least` at least. They are arrays, so that another
    share does not compile a program again.
    """
    sizes = [math.prod(v.shape[1:]) for v in vectors]
    whole = sizes if scope == "tensor" else [sum(sizes)]
    # More entries than an int32 can count are counted to one part in ten million.
    dtype = jnp.int32 if max(whole) < 2**31 else jnp.float32
    return [jnp.asarray(max(least, round(share * size)), dtype) for size in whole]


def thresholds(
    vectors: Sequence[Array],
    counts: Sequence[Array],
    of: Callable[[Array], Array] = jnp.abs,
) -> list[Array]:
    """Find what an entry must reach to be among the `counts` largest of its task.

    Args:
        vectors: For each tensor `[tasks, ...]`.
        counts: From `counts`, for each tensor or one for all of them together.
        of: What of an entry is compared; by default its magnitude.

    Returns:
        For each tensor an array that broadcasts against its vectors. As many entries reach
        it as were asked for, and more only where several equal it.
    """
    if len(counts) == len(vectors):
        found = map_by_shape(lambda v, k: kth_largest([v], k, of), vectors, counts)
    else:
        found = [kth_largest(vectors, counts[0], of)] * len(vectors)
    return [per_task(t, v) for t, v in zip(found, vectors, strict=True)]


def kth_largest(
    values: Sequence[Array], k: Array, of: Callable[[Array], Array] = lambda v: v
) -> Float[Array, " tasks"]:
    """Find the k-th largest value of each task, exactly.

    Floats, ordered as numbers are, map onto unsigned integers; the answer is the largest
    integer that k values still reach. On the CPU it is found 16 bits at a time, by counting
    how often each pattern comes: 3 nanoseconds a float32, where bit by bit took 27 and a
    sort 270. Elsewhere it is found bit by bit, one pass over the values for each: many
    threads that count in one place wait for each other.

    Args:
        values: Tensors `[tasks, ...]`, whose entries are taken together.
        k: From 1 to the number of entries of one task.
        of: What of a value is compared. Computed where it is read, so that no copy of the
            values is kept.
    """
    kinds = [jax.eval_shape(of, v).dtype for v in values]
    dtype = functools.reduce(wide, kinds, jnp.dtype(jnp.float32))

    def compared(v: Array) -> Array:
        return of(v).astype(dtype)

    return lax.platform_dependent(
        tuple(values),
        k,
        cpu=lambda values, k: _by_digits(values, k, compared, dtype),
        default=lambda values, k: _by_bits(values, k, compared, dtype),
    )


def _by_digits(
    values: Sequence[Array], k: Array, of: Callable[[Array], Array], dtype: jnp.dtype
) -> Float[Array, " tasks"]:
    """Find the k-th largest of each task in rounds of 16 bits."""
    bits = jnp.finfo(dtype).bits

    def one_task(values: Sequence[Array]) -> Array:
        places = [_from_float(of(v)).ravel() for v in values]
        found, left = jnp.zeros((), places[0].dtype), k
        for shift in range(bits - _DIGIT, -1, -_DIGIT):
            number = jnp.zeros(2**_DIGIT, k.dtype)
            for place in places:
                # What differs above these bits is not counted: no pattern is as large.
                same = (place >> shift) >> _DIGIT == found
                digit = (place >> shift) & (2**_DIGIT - 1)
                digit = jnp.where(same, digit.astype(jnp.int32), 2**_DIGIT)
                # One tensor's fit into an int32, those of all may not.
                number = number + _histogram(digit).astype(k.dtype)
            reached = lax.cumsum(number, reverse=True)
            most = jnp.maximum(jnp.sum(reached >= left) - 1, 0)
            left = left - (reached[most] - number[most])
            found = (found << _DIGIT) | most.astype(found.dtype)
        return _to_float(found, dtype)

    return lax.map(one_task, tuple(values))


def _by_bits(
    values: Sequence[Array], k: Array, of: Callable[[Array], Array], dtype: jnp.dtype
) -> Float[Array, " tasks"]:
    """Find the k-th largest of each task bit by bit, from the top."""
    bits = jnp.finfo(dtype).bits
    top = _top(dtype)

    def reach(guess: Array) -> Array:
        return sum(
            (
                jnp.sum(of(v) >= per_task(guess, v), axis=range(1, v.ndim), dtype=jnp.int32)
                for v in values
            ),
            jnp.zeros((), k.dtype),
        )

    def set_bit(i: Array, found: Array) -> Array:
        guess = found | (top >> i.astype(top.dtype))
        return jnp.where(reach(_to_float(guess, dtype)) >= k, guess, found)

    found = lax.fori_loop(0, bits, set_bit, jnp.zeros(len(values[0]), top.dtype))
    return _to_float(found, dtype)


def _top(dtype: jnp.dtype) -> Array:
    """The highest bit of a float, its sign."""
    bits = jnp.finfo(dtype).bits
    return jnp.asarray(1 << (bits - 1), f"uint{bits}")


def _from_float(x: Array) -> Array:
    """Map floats onto unsigned integers of the same order, NaN below all of them."""
    top = _top(x.dtype)
    bits = lax.bitcast_convert_type(x, top.dtype)
    # Negative floats have the top bit set and grow downwards.
    return jnp.where(jnp.isnan(x), 0, jnp.where(bits >= top, ~bits, bits | top))


def _to_float(x: Array, dtype: jnp.dtype) -> Array:
    """Map them back."""
    top = _top(dtype)
    return lax.bitcast_convert_type(jnp.where(x >= top, x ^ top, ~x), dtype)


def _histogram(kinds: Int[Array, "..."]) -> Int[Array, " kinds"]:
    """Count how often each kind comes; what is no kind is left out."""
    return jnp.bincount(kinds.ravel(), length=2**_DIGIT).astype(jnp.int32)


def _sorted_histogram(kinds: Int[Array, "..."]) -> Int[Array, " kinds"]:
    """Count the same by a sort."""
    ends = jnp.searchsorted(jnp.sort(kinds.ravel()), jnp.arange(2**_DIGIT + 1))
    return jnp.diff(ends).astype(jnp.int32)


def standings(
    sizes: Float[Array, "..."],
) -> tuple[Float[Array, " kinds"], Int[Array, "..."]]:
    """Say what share of some magnitudes is smaller than each, equal ones counting half.

    Magnitudes are told apart by 8 binary digits after the first, 0.4 %; those that agree in
    all of them count as equal, so that no order but theirs decides, and the mean over all
    entries is one half.

    Returns:
        A table of the shares, and where in it each magnitude is.
    """
    bits = lax.bitcast_convert_type(sizes.astype(jnp.float32), jnp.uint32)
    kinds = (bits >> (31 - _DIGIT)).astype(jnp.int32)  # but for the sign, which is zero
    # Sorts are quick where many threads that count in one place are not.
    number = lax.platform_dependent(kinds, cpu=_histogram, default=_sorted_histogram)
    below, number = (n.astype(jnp.float32) for n in (jnp.cumsum(number) - number, number))
    return (below + number / 2) / max(1, sizes.size), kinds


def ranks(values: Array) -> Int[Array, "tasks entries"]:
    """Rank the entries `[tasks, entries]` of each task from 0, the smallest, upwards.

    Of equal entries the earlier one has the lower rank. Costs a sort.
    """
    order = jnp.argsort(values, axis=1, stable=True)
    places = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
    return jnp.put_along_axis(order, order, places, axis=1, inplace=False)
