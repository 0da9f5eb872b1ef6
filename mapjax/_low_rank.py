"""Low-rank leaves: two factors that stand for a dense difference."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from mapjax._algebra import HIGHEST, matmul
from mapjax._jit import lenient
from mapjax._types import ArrayLike, wide, widened


class LowRank(eqx.Module):
    r"""Differences of one tensor, kept as factors: $v_i = s_i A_i B_i$.

    Takes the place of an array `[coefficients, ...]` among `TaskVectors.vectors`. Factors
    of lower rank than others are filled up with zeros.

    Attributes:
        a: First factors. Their axes but the first and the last are the first of the tensor.
        b: Second factors. Their axes but the first two are the last of the tensor.
        scale: $s_i$; for LoRA $\alpha / r$.
        error: What the product lacks of the difference it was made from, as a share of its
            Euclidean norm; 0 for adapters, which are exact.
    """

    a: Inexact[Array, "coefficients *rows rank"]
    b: Inexact[Array, "coefficients rank *columns"]
    scale: Float[Array, " coefficients"]
    error: Float[Array, " coefficients"]

    @property
    def rank(self) -> int:
        """The most singular values that a difference can have."""
        return self.a.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that this stands for, `(coefficients, ...)`."""
        return (*self.a.shape[:-1], *self.b.shape[2:])

    @property
    def dtype(self) -> Any:
        """Dtype of that array."""
        return jnp.promote_types(self.a.dtype, self.b.dtype)

    def dense(self) -> Inexact[Array, "coefficients ..."]:
        """Multiply the factors out, at the memory of dense vectors."""
        a, b = self.matrices()
        dense = self.scale[:, None, None] * matmul(a, b)
        return dense.reshape(self.shape).astype(self.dtype)

    def combine(self, c: Inexact[Array, " coefficients"]) -> Inexact[Array, "..."]:
        r"""Sum $\sum_i c_i v_i$ as one product, of the factors side by side."""
        a, b = self.matrices()
        weighted = (c * self.scale).astype(a.dtype)[:, None, None] * b
        total = jnp.einsum("ndr,nrk->dk", a, weighted, precision=HIGHEST)
        return total.reshape(self.shape[1:])

    @lenient
    def apply(
        self, x: Inexact[Array, "..."], c: Inexact[Array, " coefficients"]
    ) -> Inexact[Array, "..."]:
        r"""Multiply inputs by $\sum_i c_i v_i$ without making it: $\sum_i c_i (x A_i) B_i$.

        Args:
            x: Inputs; their last axes are the axes that the first factors have.
            c: One coefficient per expert.
        """
        a, b = self.matrices()
        rows, columns = self.a.ndim - 2, self.b.shape[2:]
        dtype = jnp.promote_types(a.dtype, x.dtype) if jnp.iscomplexobj(x) else a.dtype
        flat = x.reshape(*x.shape[: x.ndim - rows], a.shape[1]).astype(dtype)
        inner = jnp.einsum("...d,ndr->...nr", flat, a)
        inner = inner * (c * self.scale).astype(a.dtype)[:, None]
        found = jnp.einsum("...nr,nrk->...k", inner, b)
        return found.reshape(*found.shape[:-1], *columns)

    def gram(self) -> Float[Array, "coefficients coefficients"]:
        r"""Give the scalar products $\langle v_i, v_j \rangle$, from the factors alone.

        Those of complex vectors are real parts. Rounding may leave a square that should be
        zero a little below it.
        """
        a, b = self.matrices()
        a = self.scale[:, None, None] * a
        first = jnp.einsum("idr,jds->ijrs", a, a.conj(), precision=HIGHEST)
        second = jnp.einsum("irk,jsk->ijrs", b, b.conj(), precision=HIGHEST)
        return jnp.sum(first * second, axis=(2, 3)).real

    def matrices(self) -> tuple[Array, Array]:
        """Give the factors as matrices, in the dtype to compute in."""
        n, r = self.a.shape[0], self.rank
        dtype = wide(self.dtype)
        rows, columns = math.prod(self.a.shape[1:-1]), math.prod(self.b.shape[2:])
        a, b = self.a.reshape(n, rows, r), self.b.reshape(n, r, columns)
        return a.astype(dtype), b.astype(dtype)


class Factored(eqx.Module):
    r"""One merged leaf that is not multiplied out: $W_0 + \sum_i c_i s_i A_i B_i$.

    Made by `merge_factored`. `x @ leaf` is $x W_0 + \sum_i c_i s_i (x A_i) B_i$, so that
    under `jax.vmap` all candidates share the product with $W_0$, and so for `leaf @ x`. To
    all else that takes an array, such as `jnp.einsum` and the layers of flax, it is one
    like any other: it is multiplied out there, one dense leaf for each candidate.

    Attributes:
        base: The base's leaf $W_0$.
        update: The factors of all experts.
        coefficients: $c$, one per expert.
    """

    base: Inexact[Array, "..."]
    update: LowRank
    coefficients: Inexact[Array, " coefficients"]

    __array_ufunc__ = None  # a NumPy array on the left leaves the product to this class

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the leaf that this stands for."""
        return self.base.shape

    @property
    def ndim(self) -> int:
        """How many axes that leaf has."""
        return self.base.ndim

    @property
    def dtype(self) -> Any:
        """Dtype of that leaf."""
        return self.base.dtype

    @property
    def T(self) -> "Factored":
        """Transposed, in factors too; for matrices."""
        a, b = (jnp.swapaxes(x, 1, 2) for x in (self.update.a, self.update.b))
        swapped = dataclasses.replace(self.update, a=b, b=a)
        return Factored(self.base.T, swapped, self.coefficients)

    def __jax_array__(self) -> Inexact[Array, "..."]:
        """Give the leaf to what knows arrays alone."""
        return self.dense()

    def __getitem__(self, index: Any) -> Inexact[Array, "..."]:
        """Index the leaf, multiplied out."""
        return self.dense()[index]

    def __matmul__(self, x: Inexact[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """Multiply the merged matrix by columns, `[columns]` or `[..., columns, k]`."""
        x = jnp.asarray(x)
        if self.ndim != 2:
            return jnp.matmul(self.dense(), x)
        if x.ndim == 1:
            return x @ self.T
        return jnp.swapaxes(jnp.swapaxes(x, -1, -2) @ self.T, -1, -2)

    def __rmatmul__(self, x: Inexact[ArrayLike, "..."]) -> Inexact[Array, "..."]:
        """Multiply inputs `[..., rows]` by the merged matrix `[rows, columns]`.

        A leaf with more axes is a stack of matrices to `@`, and is multiplied out first.
        """
        if self.base.ndim != 2:
            return jnp.matmul(x, self.dense())
        plain = jnp.matmul(x, self.base)
        update = self.update.apply(jnp.asarray(x), self.coefficients)
        return (plain + update).astype(plain.dtype)

    def dense(self) -> Inexact[Array, "..."]:
        """Multiply out: the leaf as `mapjax.merge` makes it."""
        total = widened(self.base)
        return (total + self.update.combine(self.coefficients)).astype(self.base.dtype)
