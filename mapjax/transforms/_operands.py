"""Running a traced program while watching what is multiplied with parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jaxtyping import Array, Float

from mapjax._algebra import HIGHEST, matmul
from mapjax._jit import automatic
from mapjax._types import widened

_CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}
_CALLS |= {"checkpoint", "remat", "remat2"}
"""Primitives that do nothing but call a program with their own operands."""

_RESHAPES = {"reshape", "squeeze", "expand_dims", "broadcast_in_dim"}
_CASTS = {"convert_element_type", "copy", "copy_p", "stop_gradient", "optimization_barrier"}


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

    def show(self, parameter: Array) -> Array:
        """Move the axes of the parameter, or of one of its shape, into this view."""
        order = [a for group in self.axes for a in group]
        rest = [a for a in range(len(self.shape)) if a not in order]  # of size one
        sizes = [math.prod(self.shape[a] for a in group) for group in self.axes]
        return parameter.transpose(*order, *rest).reshape(sizes)

    def undo(self, shown: Array) -> Array:
        """Move the axes of what is shown back to where the parameter has them."""
        order = [a for group in self.axes for a in group]
        apart = shown.reshape([self.shape[a] for a in order])
        return apart.transpose(np.argsort(order)).reshape(self.shape)


class Product(NamedTuple):
    """How an operation multiplies the rows of one operand with a matrix of another.

    Attributes:
        path: The parameter's key path.
        kernel: Which operand shows it.
        inputs: Which axes of what is shown are summed over, in the parameter's order.
        axes: The parameter's axes that these are.
        rows: From the other operand to its rows `[rows, inputs]`.
    """

    path: str
    kernel: int
    inputs: tuple[int, ...]
    axes: tuple[int, ...]
    rows: Callable[[Array], Array]

    def matrix(self, shown: Array) -> Array:
        """Make a matrix `[inputs, outputs]` of what is shown."""
        x = shown.transpose(*self.inputs, *self._outputs(shown.ndim))
        return x.reshape(math.prod(x.shape[: len(self.inputs)]), -1)

    def undo(self, matrix: Array, like: Array) -> Array:
        """Make what was shown of a matrix."""
        order = (*self.inputs, *self._outputs(like.ndim))
        apart = matrix.reshape([like.shape[d] for d in order])
        return apart.transpose(np.argsort(order))

    def _outputs(self, ndim: int) -> list[int]:
        return [d for d in range(ndim) if d not in self.inputs]


def find_product(
    name: str, params: dict[str, Any], operands: list[Any], views: list[View | None]
) -> Product | None:
    """Find out whether an operation multiplies inputs with a parameter, and how."""
    if name == "dot_general":
        return _find_dot(params, operands, views)
    if name == "conv_general_dilated":
        return _find_convolution(params, operands, views[1])
    return None


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
        if called := called_program(eqn):
            results, shown = watch(called, operands, seen_as, seen)
            known.update(zip(eqn.outvars, shown, strict=True))
        elif name == "scan":
            results = _scan(eqn.params, operands, seen_as, seen)
        else:
            if product := find_product(name, eqn.params, operands, seen_as):
                _see(product, operands[1 - product.kernel], seen)
            results = bind(eqn, operands)
            if not eqn.primitive.multiple_results:
                known[eqn.outvars[0]] = follow(eqn, seen_as)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars], [look(atom) for atom in jaxpr.outvars]


def called_program(eqn: Any) -> Any:
    """Give the closed jaxpr that an operation does nothing but call, or None."""
    called = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if eqn.primitive.name not in _CALLS or called is None:
        return None
    return called if isinstance(called, core.ClosedJaxpr) else core.ClosedJaxpr(called, ())


def bind(eqn: Any, operands: list[Any]) -> list[Any]:
    """Do an operation, and list its results."""
    params = eqn.primitive.get_bind_params(eqn.params)
    # Before jax 0.9 these came with functions, which are operands as well.
    functions, params = params if isinstance(params, tuple) else ((), params)
    results = eqn.primitive.bind(*functions, *operands, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def follow(eqn: Any, views: list[View | None]) -> View | None:
    """Say how the result of an operation shows a parameter, if it still does."""
    name = eqn.primitive.name
    view, shape = views[0] if views else None, eqn.outvars[0].aval.shape
    if view is None:
        return None
    if name in _CASTS:
        return view
    if name == "transpose":
        return view.transposed(eqn.params["permutation"])
    if name in _RESHAPES and math.prod(view.shape) == math.prod(shape):
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


def _find_dot(
    params: dict[str, Any], operands: list[Any], views: list[View | None]
) -> Product | None:
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
        size = math.prod(view.shape[a] for a in axes)
        summed = [d for _, d in pairs]

        def rows(x: Array, summed: list[int] = summed, size: int = size) -> Array:
            free = [d for d in range(x.ndim) if d not in summed]
            return x.transpose(*free, *summed).reshape(-1, size)

        if _is_float(operands[other]) and axes:
            return Product(view.path, kernel, tuple(d for d, _ in pairs), axes, rows)
    return None


def _find_convolution(
    params: dict[str, Any], operands: list[Any], view: View | None
) -> Product | None:
    """Read a convolution as the product of its patches with the kernel."""
    if view is None or params["feature_group_count"] * params["batch_group_count"] > 1:
        return None
    spec = params["dimension_numbers"]
    shape = [operands[1].shape[d] for d in spec.rhs_spec[2:]]

    def rows(images: Array) -> Array:
        patches = lax.conv_general_dilated_patches(
            images.transpose(spec.lhs_spec),
            shape,
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            precision=HIGHEST,
        )
        return jnp.moveaxis(patches, 1, -1).reshape(-1, patches.shape[1])

    # Features of a patch are ordered by channel first, then by place.
    inputs = tuple(spec.rhs_spec[1:])
    axes = tuple(a for d in inputs for a in view.axes[d])
    if not _is_float(operands[0]) or not axes:
        return None
    return Product(view.path, 1, inputs, axes, rows)


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _see(product: Product, x: Array, seen: dict[str, Gram]) -> None:
    matrix, num_rows = _moments(product.rows, widened(x))
    _add(seen, product.path, Gram(matrix, num_rows, product.axes))


@automatic
def _moments(rows: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    flat = rows(x)
    matrix = matmul(flat.T, flat)
    return matrix, jnp.asarray(len(flat), x.dtype)


def _add(seen: dict[str, Gram], path: str, gram: Gram) -> None:
    if path not in seen:
        seen[path] = gram
    elif seen[path].axes == gram.axes:  # else it is read two ways: the first counts
        seen[path] = seen[path] + gram
