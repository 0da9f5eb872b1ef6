"""Propose points by botorch, in an environment of its own, for whoever asks on stdin.

A line in holds JSON with what was evaluated in the unit box, `x` and `y` (maximised), how
many points are wanted, `q`, and a `seed`; the line out holds the `candidates`, or an `error`.
"""

# This alone is run where torch is installed, and checked where it is not.
# pyright: reportMissingImports=false

import json
import sys
import warnings
from typing import Any

import torch
from botorch.acquisition.multi_objective.logei import (
    qLogNoisyExpectedHypervolumeImprovement,
)
from botorch.acquisition.multi_objective.parego import (
    qLogNParEGO,
)
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from botorch.utils.multi_objective.hypervolume import (
    infer_reference_point,
)
from botorch.utils.multi_objective.pareto import (
    is_non_dominated,
)
from gpytorch.mlls import ExactMarginalLogLikelihood

MOST_FOR_HYPERVOLUME = 4
"""Above so many objectives the boxes of exact hypervolumes explode."""


def propose(x: Any, y: Any, q: int, seed: int) -> Any:
    """Fit a Gaussian process to each objective, and maximise the acquisition in turn."""
    torch.manual_seed(seed)
    model = SingleTaskGP(x, y)  # independent processes, in one batch
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    found = x[:0]
    for _ in range(q):
        pending = found if len(found) else None
        if y.shape[1] <= MOST_FOR_HYPERVOLUME:
            acquisition = qLogNoisyExpectedHypervolumeImprovement(
                model,
                ref_point=infer_reference_point(y[is_non_dominated(y)]),
                X_baseline=x,
                X_pending=pending,
                prune_baseline=True,
            )
        else:
            # Each point has weights of its own, drawn from the simplex.
            acquisition = qLogNParEGO(
                model, X_baseline=x, X_pending=pending, prune_baseline=True
            )
        box = torch.stack([torch.zeros_like(x[0]), torch.ones_like(x[0])])
        new, _ = optimize_acqf(
            acquisition,
            box,
            q=1,
            num_restarts=10,
            raw_samples=512,
            options={"batch_limit": 5, "maxiter": 200},
        )
        found = torch.cat([found, new])
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.double)
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            x, y = torch.tensor(asked["x"]), torch.tensor(asked["y"])
            candidates = propose(x, y, asked["q"], asked["seed"])
            answer = {"candidates": candidates.tolist()}
        except Exception as error:  # the one who asks decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
