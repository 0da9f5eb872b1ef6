"""Rules by name: the transforms that look at one tensor at a time."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mapjax.cli._errors import UsageError

if TYPE_CHECKING:
    from mapjax.task_vectors import TaskVectors

# What looks at several tensors at once, or at data, is not among them.
RULES = (
    "linear",
    "ties",
    "dare",
    "della",
    "breadcrumbs",
    "magmax",
    "pcb",
    "consensus",
    "tall_mask",
    "tsv",
    "iso_c",
    "iso_cts",
    "opcm",
    "model_stock",
    "widen",
    "wudi",
    "wudi_descent",
    "doge",
)
"""Names of `mapjax.transforms`, and "linear" for none."""

_ELEMENTWISE = ("dare", "magmax")


class Rule(NamedTuple):
    """A rule and its options.

    Attributes:
        name: One of `RULES`.
        options: Keyword arguments of the transform.
    """

    name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


def read_rule(name: str, options: Mapping[str, Any], seed: int) -> Rule:
    """Check a rule's name and the names of its options.

    Raises:
        UsageError: If one is unknown.
    """
    if name not in RULES:
        raise UsageError(f"The rule is {name!r}; choose from {', '.join(RULES)}.")
    parameters = {} if name == "linear" else _parameters(name)
    known = [n for n in parameters if n != "key"]
    for option in options:
        if option not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            raise UsageError(f"The rule {name!r} has no option {option!r}; it {takes}.")
    given = {
        n: float(x) if isinstance(x, int) and isinstance(parameters[n], float) else x
        for n, x in options.items()
    }
    if "key" in parameters:
        given["seed"] = seed
    return Rule(name, given)


def merge_arguments(rule: Rule) -> dict[str, Any]:
    """Say what `mapjax.io.merge_files` takes for a rule.

    Raises:
        ValueError: If an option has a wrong value.
    """
    from mapjax.io import TIES

    if rule.name == "linear":
        return {}
    if rule.name == "ties":
        return {"transform": TIES(**rule.options)}
    function, key = _function(rule)
    return {
        "transform": function,
        "elementwise": rule.name in _ELEMENTWISE,
        "key": key,
    }


def edit(task_vectors: "TaskVectors", rule: Rule) -> "TaskVectors":
    """Edit vectors in memory as `mapjax.io.merge_files` does, tensor by tensor.

    What is evaluated is then what a merge of the files gives, random numbers included.

    Raises:
        ValueError: If an option has a wrong value.
    """
    import jax
    import jax.numpy as jnp

    from mapjax import TaskVectors, _tree
    from mapjax.io._names import flatten
    from mapjax.io._plan import bucket
    from mapjax.io._recipe import BLOCK

    if rule.name == "linear":
        return task_vectors
    function, key = _function(rule)
    if rule.name == "ties":  # which may compare all tensors
        return function(task_vectors)
    base = task_vectors.base
    tensors = flatten(base)
    vectors = _tree.values_up_to(base, task_vectors.vectors)
    order = sorted(n for n, v in zip(tensors, vectors, strict=True) if v is not None)

    def apply(name: str, base: Any, v: Any, key: Any) -> Any:
        more = {} if key is None else {"key": key}
        one = TaskVectors({name: base}, {name: v}, task_vectors.names)
        return function(one, **more).vectors[name]

    def blocks(name: str, base: Any, v: Any, key: Any) -> Any:
        block = bucket(min(base.size, BLOCK))
        padding = -base.size % block
        flat = jnp.pad(base.ravel(), (0, padding))
        rows = jnp.pad(v.reshape(len(v), -1), ((0, 0), (0, padding)))
        parts = [
            apply(
                name,
                flat[at : at + block],
                rows[:, at : at + block],
                None if key is None else jax.random.fold_in(key, at // block),
            )
            for at in range(0, flat.size, block)
        ]
        return jnp.concatenate(parts, axis=1)[:, : base.size].reshape(v.shape)

    edited = []
    for (name, leaf), v in zip(tensors.items(), vectors, strict=True):
        if v is not None and v.size:
            own = None if key is None else jax.random.fold_in(key, order.index(name))
            method = blocks if rule.name in _ELEMENTWISE else apply
            v = method(name, jnp.asarray(leaf), v, own)
        edited.append(v)
    return TaskVectors(base, _tree.rebuild(base, edited), task_vectors.names)


def check_rule(rule: Rule) -> None:
    """Try a rule on four numbers, so that a wrong option is found before any work.

    Raises:
        UsageError: If an option has a wrong value.
    """
    import jax.numpy as jnp

    from mapjax import TaskVectors

    base = {"w": jnp.zeros((2, 2))}
    experts = [{"w": jnp.arange(4.0).reshape(2, 2) + i} for i in range(2)]
    try:
        edit(TaskVectors.from_params(base, experts), rule)
    except (TypeError, ValueError) as error:
        raise UsageError(f"The rule {rule} cannot be used: {error}") from error


def _parameters(name: str) -> dict[str, Any]:
    """List the arguments of a rule, with their defaults."""
    import inspect

    from mapjax import transforms

    found = inspect.signature(getattr(transforms, name)).parameters
    # Only TIES compares all tensors of files.
    skipped = ("task_vectors", "" if name == "ties" else "scope")
    return {n: p.default for n, p in found.items() if n not in skipped}


def _function(rule: Rule) -> tuple[Callable[..., Any], Any]:
    import functools

    import jax

    from mapjax import transforms

    options = {name: value for name, value in rule.options.items() if name != "seed"}
    function = functools.partial(getattr(transforms, rule.name), **options)
    if "input_axes" in _parameters(rule.name):
        function = functools.partial(_beside_a_matrix, function)
    key = jax.random.key(rule.options["seed"]) if "seed" in rule.options else None
    return function, key


def _beside_a_matrix(function: Callable[..., Any], task_vectors: "TaskVectors") -> Any:
    """Edit one tensor as among others: rules for matrices refuse models without any."""
    import jax.numpy as jnp

    from mapjax import TaskVectors

    ((name, base),) = task_vectors.base.items()
    vectors = task_vectors.vectors[name]
    matrix = jnp.eye(2, dtype=vectors.dtype)
    both = TaskVectors(
        {name: base, f"{name} ": matrix},
        {name: vectors, f"{name} ": jnp.stack([matrix] * len(vectors))},
        task_vectors.names,
    )
    edited = function(both)
    return TaskVectors(task_vectors.base, {name: edited.vectors[name]}, task_vectors.names)
