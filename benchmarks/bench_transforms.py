"""Every merge rule at equal evaluations: its best average and its front.

Coefficients are chosen on validation examples; all figures are of test examples. Of the
budget, eight evaluations look for the common scale of the rule's vectors, which sets the
box, and `map_front` spends the rest; of a rule that reads proportions alone, one evaluates
the uniform merge. What a rule reads is of training examples. Scores are shown in points
(hundredths).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import mapjax as mj
from benchmarks._report import parser, report
from benchmarks.methods._closed import fishers
from benchmarks.methods._drivers import grams, inputs, match_layers, react
from benchmarks.suites import SUITES, Suite, load, with_rule
from mapjax import pareto, rules, transforms

SCALES = np.array([0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5])
KEY = jax.random.key(0)
RANK = 16


def moments(suite: Suite, steps: int = 500, batch: int = 64) -> list[Any]:
    """Follow Adam's second moments at each expert, on batches of training examples.

    The state that trained it is gone; this one sees the same gradients as if the expert had
    been trained on, at a rate of zero.
    """
    each = zip(suite.train.tasks, suite.experts, strict=True)
    return [transforms.second_moments(_adam(*one, steps, batch)) for one in each]


def _adam(task: mj.Task, params: PyTree, steps: int, batch: int) -> PyTree:
    """Show an expert's gradients to Adam, and keep its state."""
    optimizer = optax.adam(1e-3)

    def loss(params: PyTree, rows: Array) -> Array:
        x, y = jax.tree.map(lambda a: jnp.asarray(a)[rows], (task.inputs, task.targets))
        return mj.metrics.cross_entropy(task.predict(params, x), y)

    @jax.jit
    def step(i: Array, state: PyTree) -> PyTree:
        rows = jax.random.randint(
            jax.random.fold_in(KEY, i), (batch,), 0, task.num_examples
        )
        return optimizer.update(jax.grad(loss)(params, rows), state)[1]

    return jax.lax.fori_loop(0, steps, step, optimizer.init(params))


def _factors(suite: Suite) -> mj.TaskVectors:
    return mj.low_rank(suite.task_vectors, rank=RANK)


RULES: dict[str, Callable[[Suite], mj.TaskVectors | Callable[..., PyTree]]] = {
    "task arithmetic": lambda suite: suite.task_vectors,
    "ties": lambda suite: transforms.ties(suite.task_vectors),
    "dare": lambda suite: transforms.dare(suite.task_vectors, density=0.5, key=KEY),
    "della": lambda suite: transforms.della(suite.task_vectors, key=KEY),
    "breadcrumbs": lambda suite: transforms.breadcrumbs(suite.task_vectors),
    "tall_mask": lambda suite: transforms.tall_mask(suite.task_vectors),
    "consensus": lambda suite: transforms.consensus(suite.task_vectors),
    "pcb": lambda suite: transforms.pcb(suite.task_vectors),
    "lines": lambda suite: transforms.lines(suite.task_vectors),
    "metagpt": lambda suite: transforms.metagpt(suite.task_vectors),
    "model_stock": lambda suite: transforms.model_stock(suite.task_vectors),
    "magmax": lambda suite: transforms.magmax(suite.task_vectors),
    "widen": lambda suite: transforms.widen(suite.task_vectors),
    "tsv": lambda suite: transforms.tsv(suite.task_vectors),
    "iso_c": lambda suite: transforms.iso_c(suite.task_vectors),
    "iso_cts": lambda suite: transforms.iso_cts(suite.task_vectors),
    "wudi": lambda suite: transforms.wudi(suite.task_vectors),
    "wudi_descent": lambda suite: transforms.wudi_descent(suite.task_vectors),
    "opcm": lambda suite: transforms.opcm(suite.task_vectors),
    "doge": lambda suite: transforms.doge(suite.task_vectors),
    "regmean": lambda suite: transforms.regmean(suite.task_vectors, grams(suite, None)),
    "regmean_pp": lambda suite: transforms.regmean_pp(
        suite.task_vectors, suite.train.tasks[0].predict, inputs(suite, None)
    ),
    "fisher_weighted": lambda suite: transforms.fisher_weighted(
        suite.task_vectors, fishers(suite, None)
    ),
    "ota": lambda suite: transforms.ota(suite.task_vectors, moments(suite)),
    f"low_rank, {RANK}": _factors,
    f"knots of ties, {RANK}": lambda suite: transforms.knots(
        _factors(suite), transforms.ties
    ),
    f"core_space of tsv, {RANK}": lambda suite: transforms.core_space(
        _factors(suite), transforms.tsv
    ),
    "rules.multi_slerp": lambda suite: rules.multi_slerp(suite.task_vectors),
    "rules.layer_swap": lambda suite: rules.layer_swap(suite.task_vectors),
    "rules.wudi_mean": lambda suite: rules.wudi_mean(suite.task_vectors),
    "rules.fisher_mean": lambda suite: rules.fisher_mean(
        suite.task_vectors, fishers(suite, None)
    ),
    "rules.regmean_mean": lambda suite: rules.regmean_mean(
        suite.task_vectors, grams(suite, None)
    ),
    "rules.react": react,
    "rules.match_layers": match_layers,
    "task arithmetic, by depth": lambda suite: mj.group(suite.task_vectors, "depth"),
    "regmean, by depth": lambda suite: mj.group(
        transforms.regmean(suite.task_vectors, grams(suite, None)), "depth"
    ),
}


def measure(suite: Suite, rule: str, budget: int) -> dict[str, Any]:
    """Spend a budget on validation examples, and score what was found on the test's."""
    begun = time.perf_counter()
    made = jax.block_until_ready(RULES[rule](suite))
    transforming = time.perf_counter() - begun
    validation, test = (with_rule(e, made) for e in (suite.validation, suite.test))
    ones = np.ones((1, validation.num_coefficients), np.float32)
    # What reads proportions alone has no scale.
    mixtures = getattr(made, "bounds", None) == "simplex"
    scales = np.ones(1) if mixtures else SCALES
    line = np.asarray(scales[:, None] * ones, np.float32)
    on_line = np.asarray(validation(line, progress=False))
    scale = float(scales[np.argmax(on_line.mean(axis=1))])
    solution = mj.map_front(
        validation,
        budget=budget - len(line),
        bounds=None if mixtures else (0.0, max(1.0, 3 * scale)),
        key=jax.random.key(suite.seed),
        progress=False,
    )
    evaluated = np.concatenate([line, np.asarray(solution.samples.coefficients)])
    scores = np.concatenate([on_line, np.asarray(solution.samples.scores)])
    front = np.asarray(pareto.non_dominated(-scores))
    # What a user would keep: measured points that are good on validation, and predicted ones.
    predicted = np.asarray(solution.front.coefficients)[
        np.asarray(pareto.spread_subset(-solution.front.scores, 100))
    ]
    kept = np.concatenate([evaluated[front], predicted])
    real = np.asarray(test(kept, progress=False))
    best = np.argmax(scores.mean(axis=1))
    return {
        "best_average": 100 * float(test(evaluated[[best]], progress=False).mean()),
        "sum_of_ones": 100 * float(test(ones, progress=False).mean()),
        "best_scale": scale,
        "front": real.tolist(),
        "evaluations": len(scores),
        "seconds_to_transform": transforming,
    }


def hypervolume(front: np.ndarray, ideal: np.ndarray) -> float:
    """Measure the dominated share of the box from zero to the best of every task."""
    points = -np.asarray(front) / ideal
    points = points[np.asarray(pareto.non_dominated(points))]
    corner = np.zeros(len(ideal))
    if len(ideal) <= 4:
        return 100 * float(pareto.hypervolume(points, corner))
    volume, _ = pareto.hypervolume_monte_carlo(
        points, corner, key=KEY, num_samples=400_000, ideal=corner - 1
    )
    return 100 * float(volume)


def compare(suite: Suite, rules: list[str], budget: int) -> dict[str, Any]:
    """Measure rules on one suite; their fronts share a box."""
    found = {rule: measure(suite, rule, budget) for rule in rules}
    experts = np.eye(suite.task_vectors.num_tasks, dtype=np.float32)
    at_home = np.diagonal(np.asarray(suite.test(experts, progress=False)))
    everything = np.concatenate([np.asarray(one["front"]) for one in found.values()])
    ideal = np.maximum(everything.max(axis=0), at_home)
    for one in found.values():
        one["hypervolume"] = hypervolume(np.asarray(one.pop("front")), ideal)
    return found


def summarise(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Give median, least and most over the seeds."""
    return {
        rule: {
            name: {
                "median": statistics.median(one[rule][name] for one in seeds),
                "least": min(one[rule][name] for one in seeds),
                "most": max(one[rule][name] for one in seeds),
            }
            for name in figures
        }
        for rule, figures in seeds[0].items()
    }


def table(summary: dict[str, Any]) -> str:
    """Write the figures as Markdown, the largest hypervolume first."""
    lines = [
        "| rule | hypervolume | best average | coefficients one |",
        "|---|---|---|---|",
    ]
    order = sorted(summary, key=lambda rule: -summary[rule]["hypervolume"]["median"])
    for rule in order:
        cells = [
            "{median:.1f} ({least:.1f} to {most:.1f})".format(**summary[rule][name])
            for name in ("hypervolume", "best_average", "sum_of_ones")
        ]
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    command = parser(__doc__ or "")
    command.add_argument(
        "--suite", nargs="+", choices=SUITES, default=["digits8_weak_base", "digits8"]
    )
    command.add_argument("--seeds", nargs="+", type=int, help="0 to 2 by default")
    command.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    command.add_argument("--budget", type=int, default=36)
    return command.parse_args()


def main() -> None:
    arguments = _arguments()
    seeds = arguments.seeds or (range(1) if arguments.quick else range(3))
    figures: dict[str, Any] = {"budget": arguments.budget}
    for name in arguments.suite:
        found = [
            compare(load(name, seed), arguments.rules, arguments.budget) for seed in seeds
        ]
        figures[name] = summarise(found) | {"seeds": list(seeds)}
        print(name, table(summarise(found)), sep="\n", file=sys.stderr)
    report("transforms", figures, arguments.output)


if __name__ == "__main__":
    main()
