"""Which surrogate a driver fits."""

from typing import Literal

import equinox as eqx


class Outputs(eqx.Module):
    """Predict every output and push it through the true metric; see `fit_outputs`.

    What is kept in memory and on disk are the outputs of every evaluated merge. Keep
    only what the metric needs: let `predict` return the logits of the possible answers
    instead of a whole vocabulary, or embeddings, with the head in the metric
    (`metric.after(head)`).

    Attributes:
        degree: Of the Taylor series in the coefficients, 1, 2 or infinity; "auto" for
            the one with the least leave-one-out error of the metric.
        ridge: Penalty, or "auto" for the one with the least leave-one-out error.
        correct: Whether to mix in a quadratic of the scores by as much as lowers the
            leave-one-out error.
    """

    degree: float | int | Literal["auto"] = eqx.field(default="auto", static=True)
    ridge: float | int | Literal["auto"] = eqx.field(default="auto", static=True)
    correct: bool = eqx.field(default=True, static=True)
