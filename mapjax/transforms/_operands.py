"""Running a traced program while watching what is multiplied with parameters."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array, Float

from mapjax._types import widened

CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}
CALLS |= {"checkpoint", "remat", "remat2"}
"""Primitives that do nothing but call a program with their own operands."""

RESHAPES = {"reshape", "squeeze", "expand_dims", "broadcast_in_dim"}
CASTS = {"convert_element_type", "copy", "copy_p", "stop_gradient", "optimization_barrier"}


class Gram(eqx.Module):
    r"""What a kernel reads: the mean of $x x^\top$ over its inputs.

    Attributes:
        matrix: One row and column for each entry of the kernel's input axes, flattened in
            the order of `axes`.
        num_rows: How many inputs $x$ there were.
        axes: The axes of the kernel that are summed over.
    """

    matrix: Float[Array, "inputs inputs"]
    num_rows: Float[Array, ""]
    axes: tuple[int, ...] = eqx.field(static=True)

    def __add__(self, other: "Gram") -> "Gram":
        return Gram(self.matrix + other.matrix, self.num_rows + other.num_rows, self.axes)


class View(NamedTuple):
    """A parameter, seen with its axes moved or put together.

    Attributes:
        path: Its key path.
        shape: The parameter's own.
        axes: For each axis of the view the parameter's axes that make it up, in order.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]

    @classmethod
    def whole(cls, path: str, shape: tuple[int, ...]) -> "View":
        """View a parameter as it is."""
        return cls(path, shape, tuple((a,) for a in range(len(shape))))

    def transposed(self, permutation: tuple[int, ...]) -> "View":
        """View it with axes moved."""
        return self._replace(axes=tuple(self.axes[p] for p in permutation))

    def reshaped(self, shape: tuple[int, ...]) -> "View | None":
        """View it in another shape, if that keeps its axes whole."""
        left = [a for group in self.axes for a in group if self.shape[a] > 1]
        groups = []
        for size in shape:
            group: list[int] = []
            while left and math.prod(self.shape[a] for a in group) < size:
                group.append(left.pop(0))
            if math.prod(self.shape[a] for a in group) != size:
                return None
            groups.append(tuple(group))
        return self._replace(axes=tuple(groups)) if not left else None


def watch(
    program: Any, given: list[Any], views: list[View | None], seen: dict[str, Gram]
) -> tuple[list[Any], list[View | None]]:
    """Run a program, and add up the Gram matrices of what meets a parameter.

    Args:
        program: A closed jaxpr.
        given: Its operands.
        views: Which of them are parameters.
        seen: Sums so far, by key path; added to.

    Returns:
        The results, and which of them are parameters.
    """
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values.update(zip(jaxpr.invars, given, strict=True))
    known = dict(zip(jaxpr.invars, views, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    def look(atom: Any) -> View | None:
        return None if isinstance(atom, core.Literal) else known.get(atom)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        seen_as = [look(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        called = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if name in CALLS and called is not None:
            if not isinstance(called, core.ClosedJaxpr):
                called = core.ClosedJaxpr(called, ())
            results, shown = watch(called, operands, seen_as, seen)
            known.update(zip(eqn.outvars, shown, strict=True))
        elif name == "scan":
            results = _scan(eqn.params, operands, seen_as, seen)
        else:
            if name == "dot_general":
                _see_product(eqn.params, operands, seen_as, seen)
            elif name == "conv_general_dilated":
                _see_convolution(eqn.params, operands, seen_as[1], seen)
            params = eqn.primitive.get_bind_params(eqn.params)
            # Before jax 0.9 these came with functions, which are operands as well.
            functions, params = params if isinstance(params, tuple) else ((), params)
            results = eqn.primitive.bind(*functions, *operands, **params)
            if not eqn.primitive.multiple_results:
                results = [results]
                known[eqn.outvars[0]] = _follow(name, eqn, seen_as)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars], [look(atom) for atom in jaxpr.outvars]


def _follow(name: str, eqn: Any, views: list[View | None]) -> View | None:
    """Say how the result of an operation shows a parameter, if it still does."""
    view, shape = views[0] if views else None, eqn.outvars[0].aval.shape
    if view is None:
        return None
    if name in CASTS:
        return view
    if name == "transpose":
        return view.transposed(eqn.params["permutation"])
    if name in RESHAPES and math.prod(view.shape) == math.prod(shape):
        return view.reshaped(shape)
    return None


def _scan(
    params: dict[str, Any], operands: list[Any], views: list[View | None], seen: dict
) -> list[Any]:
    """Run a loop; a parameter that every step reads counts with each of them."""
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts = operands[:num_consts]
    start = operands[num_consts : num_consts + num_carry]
    fixed = [*views[:num_consts], *[None] * (len(operands) - num_consts)]

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], Any]:
        inner: dict[str, Gram] = {}
        results, _ = watch(params["jaxpr"], [*consts, *carry, *x], fixed, inner)
        return results[:num_carry], (results[num_carry:], inner)

    carry, (outputs, found) = lax.scan(
        body,
        start,
        operands[num_consts + num_carry :],
        length=params["length"],
        reverse=params["reverse"],
    )
    for path, gram in found.items():
        total = Gram(jnp.sum(gram.matrix, 0), jnp.sum(gram.num_rows), gram.axes)
        _add(seen, path, total)
    return [*carry, *outputs]


def _see_product(
    params: dict[str, Any], operands: list[Any], views: list[View | None], seen: dict
) -> None:
    contracted, batched = params["dimension_numbers"]
    for kernel, other in ((0, 1), (1, 0)):
        view = views[kernel]
        # A product of two parameters reads no input, and kernels in a batch are many.
        if view is None or views[other] is not None or batched[0]:
            continue
        # In the order of the kernel's axes, whatever order the product names them in.
        where = view.axes
        pairs = sorted(
            zip(contracted[kernel], contracted[other], strict=True),
            key=lambda pair, where=where: where[pair[0]],
        )
        axes = tuple(a for d, _ in pairs for a in where[d])
        x = operands[other]
        rows = [d for d in range(x.ndim) if d not in contracted[other]]
        size = math.prod(view.shape[a] for a in axes)
        x = x.transpose(*rows, *(d for _, d in pairs)).reshape(-1, size)
        _see(view.path, x, axes, seen)


def _see_convolution(
    params: dict[str, Any], operands: list[Any], view: View | None, seen: dict
) -> None:
    """Read a convolution as the product of its patches with the kernel."""
    if view is None or params["feature_group_count"] * params["batch_group_count"] > 1:
        return
    spec = params["dimension_numbers"]
    images, kernel = operands
    patches = lax.conv_general_dilated_patches(
        images.transpose(spec.lhs_spec),
        [kernel.shape[d] for d in spec.rhs_spec[2:]],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        precision=lax.Precision.HIGHEST,
    )
    # Features of a patch are ordered by channel first, then by place.
    axes = tuple(a for d in spec.rhs_spec[1:] for a in view.axes[d])
    rows = jnp.moveaxis(patches, 1, -1).reshape(-1, patches.shape[1])
    _see(view.path, rows, axes, seen)


def _see(path: str, rows: Array, axes: tuple[int, ...], seen: dict[str, Gram]) -> None:
    if not jnp.issubdtype(rows.dtype, jnp.floating) or not axes:
        return
    x = widened(rows)
    matrix = jnp.matmul(x.T, x, precision=lax.Precision.HIGHEST)
    _add(seen, path, Gram(matrix, jnp.asarray(len(x), x.dtype), axes))


def _add(seen: dict[str, Gram], path: str, gram: Gram) -> None:
    if path not in seen:
        seen[path] = gram
    elif seen[path].axes == gram.axes:  # else it is read two ways: the first counts
        seen[path] = seen[path] + gram
