"""What drivers are told, checked before any work."""

import warnings
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from mapjax.evaluation import Evaluator, host_memory
from mapjax.surrogate import Outputs

_OUTPUTS_SHARE = 0.25


def check_budget(budget: int, cost: int, first: str, num_experts: int) -> None:
    """Refuse a budget that does not even pay for what every run starts with."""
    if budget < (least := cost * (num_experts + 1)):
        raise ValueError(
            f"`budget` is {budget}, but the {first} and {num_experts} experts alone take "
            f"{least} evaluations. Pass at least that."
        )


def check_tolerance(tolerance: float, unit: str) -> None:
    """Refuse a tolerance below zero, or NaN."""
    if not isinstance(tolerance, Real) or not tolerance >= 0:
        raise ValueError(
            f"`tolerance` is {tolerance!r}, but must be {unit} from 0 up; 0 spends the whole "
            "budget."
        )


def read_surrogate(surrogate: Any, evaluate: Any, capacity: int) -> Outputs | str:
    """Choose the surrogate: of the outputs, where there are any and they fit."""
    names = (None, "outputs", "quadratic", "gradient")
    if surrogate not in names and not isinstance(surrogate, Outputs):
        raise ValueError(
            f"`surrogate` is {surrogate!r}; use 'outputs', 'quadratic', 'gradient' or "
            "`mapjax.surrogate.Outputs(...)`."
        )
    asked = surrogate == "outputs" or isinstance(surrogate, Outputs)
    if not isinstance(evaluate, Evaluator):
        if surrogate == "gradient":
            raise ValueError(
                "`surrogate` is 'gradient', but a plain function of the coefficients gives "
                "no derivatives. Pass a `mapjax.Evaluator`, or surrogate='quadratic'."
            )
        if asked:
            raise ValueError(
                "`surrogate` predicts outputs, which a plain function of the coefficients "
                "does not give. Pass a `mapjax.Evaluator`, or surrogate='quadratic'."
            )
        return "quadratic"
    if surrogate == "quadratic":
        return surrogate
    if surrogate == "gradient":
        c = jax.ShapeDtypeStruct((1, evaluate.num_coefficients), jnp.zeros(()).dtype)
        jax.eval_shape(evaluate.value_and_jacobian, c)  # says why, where it cannot
        return surrogate
    shapes = evaluate.output_shapes()
    leaves = jax.tree.leaves(shapes)
    steps = {
        name: str(x.dtype)
        for name, tree in shapes.items()
        for x in jax.tree.leaves(tree)
        if not jnp.issubdtype(x.dtype, jnp.floating)
    }
    needed = capacity * sum(4 * x.size for x in leaves)
    free = host_memory()
    if not steps and needed < _OUTPUTS_SHARE * free:
        return surrogate if isinstance(surrogate, Outputs) else Outputs()
    why = (
        f"tasks {steps} return no floating-point outputs: return logits instead of decisions"
        if steps
        else f"the outputs of {capacity} merges take {needed / 2**30:.1f} GiB, of which "
        f"{_OUTPUTS_SHARE * free / 2**30:.1f} may be used: let `predict` return only what "
        "the metric needs, or lower the budget"
    )
    if asked:
        raise ValueError(f"The output-space surrogate cannot be used, since {why}.")
    warnings.warn(
        f"Scores are predicted by a quadratic and not from outputs, since {why}. "
        "`surrogate='quadratic'` says that you know.",
        stacklevel=4,
    )
    return "quadratic"
