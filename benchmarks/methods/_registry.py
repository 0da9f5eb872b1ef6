"""Methods by the names that they have on the command line."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import mapjax as mj
from benchmarks.methods import _closed, _direct, _drivers, _paper, _single, _tuned
from benchmarks.methods._botorch import botorch_qnehvi
from benchmarks.methods._found import Found
from benchmarks.suites import Suite
from mapjax import transforms


class Method(NamedTuple):
    """A way to a front.

    Attributes:
        run: Takes a suite and a budget of evaluations, which it keeps to.
        settings: Whose they are, in words for the report.
        is_ours: Whether it is a driver of mapjax.
        only: Names of the suites that it can do; empty for all.
    """

    run: Callable[[Suite, int], Found]
    settings: str
    is_ours: bool = False
    only: tuple[str, ...] = ()


# ReACT solves for the last layer: tasks with heads of their own do not merge any.
_SHARED_HEAD = (
    *("tiny", "digits3", "digits8", "digits8_weak_base", "digits8_likelihood"),
    *("digits16", "sentiment4", "mhc8"),
)

METHODS: dict[str, Method] = {
    "map_front": Method(_drivers.with_driver, "all defaults", True),
    "map_front_regmean": Method(
        partial(_drivers.on_rule, make=_drivers.regmean),
        "on vectors of `transforms.regmean`",
        True,
    ),
    "map_front_regmean_mean": Method(
        partial(_drivers.on_rule, make=_drivers.regmean_mean),
        "on the weights of `rules.regmean_mean`",
        True,
    ),
    "map_front_regmean_mean_axial": Method(
        partial(_drivers.on_rule, make=_drivers.regmean_mean, design="axial"),
        'the same with `design="axial"`: from the uniform mixture, not from the experts',
        True,
    ),
    "map_front_react": Method(
        partial(_drivers.on_rule, make=_drivers.react),
        "on the preferences of `rules.react`",
        True,
        only=_SHARED_HEAD,
    ),
    "map_front_match_layers": Method(
        partial(_drivers.on_rule, make=_drivers.match_layers),
        "on the preferences of `rules.match_layers`",
        True,
    ),
    "map_front_one_shot": Method(
        partial(_drivers.with_driver, rounds=1), "`rounds=1`", True
    ),
    "map_front_quadratic": Method(
        partial(_drivers.with_driver, surrogate="quadratic"),
        '`surrogate="quadratic"`',
        True,
    ),
    "map_front_gradient": Method(
        partial(_drivers.with_driver, surrogate="gradient", rounds=1),
        '`surrogate="gradient"`, `rounds=1`; a gradient counts as three evaluations',
        True,
        only=("digits8_likelihood",),
    ),
    "bayesian_front": Method(
        partial(_drivers.with_driver, driver=mj.bayesian_front), "all defaults", True
    ),
    "bayesian_front_react": Method(
        partial(_drivers.on_rule, make=_drivers.react, driver=mj.bayesian_front),
        "on the preferences of `rules.react`",
        True,
        only=_SHARED_HEAD,
    ),
    "nested_front": Method(
        partial(_drivers.with_driver, driver=mj.nested_front), "all defaults", True
    ),
    "scalar_quadratic": Method(
        partial(_drivers.with_driver, surrogate="quadratic", rounds=1),
        "the paper's surrogate, fitted and searched by mapjax: "
        '`surrogate="quadratic"`, `rounds=1`',
        True,
    ),
    "paper_protocol": Method(
        _paper.paper_protocol,
        "grid, `curve_fit` from all-ones, DEAP's NSGA-III for 25 generations in [-3, 3]",
    ),
    "direct_nsga2": Method(
        partial(_direct.direct_search, start=_direct.nsga2),
        "pymoo's defaults, 1/3 of the budget alive",
    ),
    "direct_nsga3": Method(
        partial(_direct.direct_search, start=_direct.nsga3),
        "pymoo's defaults, 1/3 of the budget alive",
    ),
    "direct_moead": Method(
        partial(_direct.direct_search, start=_direct.moead),
        "pymoo's defaults (20 neighbours, boundary intersection above two tasks), "
        "1/3 of the budget alive",
    ),
    "direct_sobol": Method(_direct.direct_sobol, "scrambled, unit box"),
    "direct_mixed": Method(_direct.direct_mixed, "simplex and boxes of many sizes"),
    "direct_mixed_regmean": Method(
        lambda suite, budget: _direct.direct_mixed(
            suite, budget, rule=_drivers.regmean(suite)
        ),
        "as `direct_mixed`, on the vectors that `map_front_regmean` has: what the vectors "
        "do, and what the search",
    ),
    "rewarded_soups": Method(_direct.rewarded_soups, "uniform on the simplex"),
    "botorch_qnehvi": Method(
        botorch_qnehvi,
        "2N + 2 points (base, experts, Sobol), then 4 at a time in the unit box; a "
        "`SingleTaskGP` per task with botorch's defaults; up to four tasks qLogNEHVI with "
        "botorch's own reference point, above that qLogNParEGO, as botorch's authors advise: "
        "at eight tasks, boxes approximated to 0.01 took 12 s a point at 18 points, and more "
        "with each one that followed",
    ),
    "task_arithmetic": Method(
        partial(_single.at_one_scale, scales=_single.first(0.4, 0.0, 1.0, 0.05)),
        "0.4, then 0 to 1 by 0.05; best mean on validation examples",
    ),
    "ties": Method(
        partial(
            _single.at_one_scale,
            transform=lambda vectors, _: transforms.ties(vectors, scope="global"),
            scales=(1.0, 0.05, *(i / 10 for i in range(1, 10)), 1.2, 1.5, 2.0, 2.5, 3.0),
        ),
        "the top 20 % of the whole model; 1, then 0.05, 0.1 to 0.9 by 0.1, 1.2, 1.5 and 2 to "
        "3 by 0.5",
    ),
    "dare": Method(
        partial(
            _single.at_one_scale,
            transform=_single.dare,
            scales=_single.first(1.0, 0.05, 0.9, 0.05),
        ),
        "90 % dropped, task arithmetic of the rest; 1, then 0.05 to 0.9 by 0.05",
    ),
    "tsv": Method(
        partial(
            _single.at_one_scale,
            transform=lambda vectors, _: transforms.tsv(vectors),
            scales=_single.first(1.0, 0.1, 3.0, 0.1),
        ),
        "TSV-M, rank divided by N; 1, then 0.1 to 3 by 0.1",
    ),
    "iso_c": Method(
        partial(
            _single.at_one_scale,
            transform=lambda vectors, _: transforms.iso_c(vectors),
            scales=_single.first(1.0, 0.1, 3.0, 0.1),
        ),
        "1, then 0.1 to 3 by 0.1",
    ),
    "wudi": Method(
        partial(
            _single.at_one_scale,
            transform=lambda vectors, _: transforms.wudi(vectors),
            scales=_single.first(1.0, 0.05, 0.9, 0.05),
        ),
        "the minimum in closed form (published is an early-stopped Adam, and no scale); 1, "
        "then 0.05 to 0.9 by 0.05",
    ),
    "regmean_mean": Method(
        partial(_closed.by_preference, rule=_drivers.regmean_mean),
        "off-diagonals times 0.9, up to 500 inputs a task; a solve per preference",
    ),
    "fisher_mean": Method(
        partial(_closed.by_preference, rule=_closed.fisher_mean),
        "empirical, up to 500 labelled training examples a task",
    ),
    "wudi_mean": Method(
        partial(_closed.by_preference, rule=_closed.wudi_mean),
        "the vectors alone; a solve per preference",
    ),
    "match_layers": Method(
        partial(_closed.by_preference, rule=_drivers.match_layers),
        "`rules.match_layers`, without a driver: up to 500 unlabelled inputs a task",
        True,
    ),
    "react": Method(
        partial(_closed.by_preference, rule=_drivers.react),
        "corrects the last layer of the uniform merge (on that of AdaMerging, the paper's, "
        "it does worse here); beta 0.1, up to 500 unlabelled inputs a task",
        only=_SHARED_HEAD,
    ),
    "adamerging": Method(
        _tuned.adamerging,
        "a coefficient per task; 500 steps of Adam with 1e-3 from 0.3 on the entropy of 16 "
        "unlabelled validation inputs a task, which are not counted as evaluations; 0.3 for "
        "every expert is published, and is too much for digits8's eight: a dead merge, which "
        "the steps do not revive",
    ),
    "adamerging_layerwise": Method(
        partial(_tuned.adamerging, by="tensor"),
        "as `adamerging`, with a coefficient per task and tensor",
    ),
}

NOT_RUN: dict[str, str] = {
    "mergenetic": "0.1.1 (Apache-2.0) is a loop of pymoo's around language models: every "
    "problem it has loads the Hugging Face causal language model that mergekit 0.0.6 wrote "
    "to disk for each candidate, and importing one needs vLLM and bitsandbytes. pip was "
    "stopped while it still looked for versions that go together (29 of vLLM tried). Its "
    "search, given task arithmetic and pymoo's NSGA-II, is `direct_nsga2` here.",
}
"""Peers that are not measured, and why."""
