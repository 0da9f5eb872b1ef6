"""Gram matrices of what every kernel of a model reads, for any framework."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from mapjax import _tree
from mapjax._tensors import kept_tensors
from mapjax._types import Params
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._fisher import count_examples
from mapjax.transforms._matrices import Shape, matrix_shape
from mapjax.transforms._operands import Gram, View, watch


def gram_matrices(
    predict: Callable[[Any, Any], Any],
    params: Params,
    inputs: PyTree,
    *,
    batch_size: int | None = None,
) -> dict[str, Gram]:
    r"""Compute the mean of $x x^\top$ over the inputs $x$ of every kernel of one expert.

    Traces `predict` and watches each matrix product and convolution of which one operand is
    a leaf of `params`: as it is, cast, transposed or reshaped. So it sees every framework
    alike. A kernel that is used more than once, or in every step of a scan, gets the mean
    over all its uses. Not seen are kernels that are changed first (masked, quantised, two
    factors multiplied with each other), sliced out of a stack by a scan, used in a
    `while_loop`, a `cond` or a grouped convolution, or batched along with their inputs.
    `regmean` averages what was not seen.

    Costs a forward pass, and for each kernel a product of its inputs with themselves.

    Args:
        predict: From parameters and inputs to outputs; the same function as in a `Task`.
        params: The expert, as its task vector was made from.
        inputs: Unlabelled examples, a pytree of arrays with one along each first axis.
        batch_size: How many to pass at once, all by default. The last batch may be smaller
            and compiles a second program.

    Returns:
        For each kernel, by its key path, its mean Gram matrix in float32 at least and the
        axes of the kernel that it belongs to, in the order of first use.

    Raises:
        ValueError: If `inputs` has no examples, or no product with a parameter was seen.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> def predict(params, x):
        ...     return x @ params["kernel"]
        >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
        >>> grams = mj.transforms.gram_matrices(predict, {"kernel": jnp.ones((2, 3))}, x)
        >>> grams["['kernel']"].matrix
        Array([[1., 1.],
               [1., 2.]], dtype=float32)

    References:
        Jin et al., *Dataless Knowledge Fusion by Merging Weights of Language Models*, ICLR
        2023, arXiv 2212.09849.
    """
    num_examples = count_examples(inputs, "inputs", 1 if batch_size is None else batch_size)
    size = num_examples if batch_size is None else batch_size
    sums: dict[str, Gram] = {}
    for start in range(0, num_examples, size):
        batch = jax.tree.map(lambda x, start=start: x[start : start + size], inputs)
        for path, gram in _sums(predict, params, batch):
            sums[path] = gram if path not in sums else sums[path] + gram
    if not sums:
        raise ValueError(
            "`predict` multiplies nothing with a leaf of `params`, so there are no Gram "
            "matrices. Use the `params` that it is given, unchanged, as kernels."
        )
    return {
        path: Gram(gram.matrix / gram.num_rows, gram.num_rows, gram.axes)
        for path, gram in sums.items()
    }


@eqx.filter_jit
def _sums(
    predict: Callable[..., Any], params: Params, inputs: PyTree
) -> list[tuple[str, Gram]]:
    leaves = _tree.leaves(params)
    places = [i for i, leaf in enumerate(leaves) if not leaf.kept]

    def run(arrays: list[Any], inputs: PyTree) -> Any:
        values = [leaf.value for leaf in leaves]
        for i, array in zip(places, arrays, strict=True):
            values[i] = array
        outputs = predict(_tree.rebuild(params, values), inputs)
        return eqx.filter(outputs, eqx.is_array)

    arrays = [jnp.asarray(leaves[i].value) for i in places]
    closed = jax.make_jaxpr(run)(arrays, inputs)
    views = [View.whole(leaves[i].path, leaves[i].value.shape) for i in places]
    given = [*arrays, *jax.tree.leaves(inputs)]
    seen: dict[str, Gram] = {}
    watch(closed, given, [*views, *[None] * (len(given) - len(views))], seen)
    return list(seen.items())  # a dict would come back in the order of its keys


def match_grams(
    task_vectors: TaskVectors, given: list[Mapping[str, Gram]]
) -> tuple[tuple[Shape | None, ...], list[tuple[Array] | None]]:
    """Match the Gram matrices of every expert with the tensors.

    Returns:
        For each tensor how it is a matrix, and the Gram matrices of all experts; None for
        both if there are none.

    Raises:
        ValueError: If they do not fit, or are not finite. The key path is named.
    """
    named = kept_tensors(task_vectors)
    for name, grams in zip(task_vectors.names, given, strict=True):
        for path in [p for p in grams if p not in named]:
            raise ValueError(
                f"`grams` of expert {name!r} has a Gram matrix for {path}, which is not "
                f"merged; merged are {list(named)}. Pass `gram_matrices` the same tree as "
                "`TaskVectors.from_params`, or drop this entry."
            )
    shapes: list[Shape | None] = []
    data: list[tuple[Array] | None] = []
    for path, v in named.items():
        found = [grams.get(path) for grams in given]
        present = [gram for gram in found if gram is not None]
        if not present:
            shapes.append(None)
            data.append(None)
            continue
        for name, gram in zip(task_vectors.names, found, strict=True):
            if gram is None:
                raise ValueError(
                    f"`grams` of expert {name!r} has no Gram matrix for {path}, but those "
                    "of other experts have. Compute all with the same `predict`."
                )
            valid = set(gram.axes) <= set(range(len(v.shape) - 1))
            shape = matrix_shape(v.shape[1:], gram.axes) if valid else None
            wanted = shape and (shape.num_inputs,) * 2
            if gram.axes != present[0].axes or gram.matrix.shape != wanted:
                raise ValueError(
                    f"`grams` of expert {name!r} has a Gram matrix of shape "
                    f"{gram.matrix.shape} for the axes {gram.axes} of {path}, whose shape is "
                    f"{v.shape[1:]}; expected is {wanted} for axes {present[0].axes}. "
                    "Compute all with the same `predict` from the experts themselves."
                )
            _check_finite(name, path, gram.matrix)
        shapes.append(matrix_shape(v.shape[1:], present[0].axes))
        data.append((jnp.stack([gram.matrix for gram in present]),))
    return tuple(shapes), data


def _check_finite(name: str, path: str, matrix: Array) -> None:
    if not _tree.is_finite(matrix):
        raise ValueError(
            f"`grams` of expert {name!r} has NaN or infinite entries for {path}: look for "
            "them in the inputs that `gram_matrices` was given, and in what the expert "
            "makes of these."
        )
