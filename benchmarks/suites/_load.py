"""Suites by the names that they have on the command line."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.suites._suite import Suite


class Entry(NamedTuple):
    """How to make a suite, and how much work its merges are worth.

    Attributes:
        module: Where its `load` is.
        options: What `load` is called with.
        pool: How many direct evaluations tell what is reachable.
        verify: How many points of a proposed front are evaluated to judge it, besides what
            twice as many preferences pick.
    """

    module: str
    options: dict[str, Any]
    pool: int = 5120
    verify: int = 100


# The likelihood is there for surrogates that need a derivative. The licence of mhc8's data
# admits research alone: it runs only where someone names it. A merge of sentiment4 takes a
# second to evaluate, one of clip8 longer: little can be verified.
SUITES: dict[str, Entry] = {
    "tiny": Entry("tiny", {}, pool=50, verify=10),
    "digits3": Entry("digits3", {}),
    "digits8": Entry("digits8", {}),
    "digits8_weak_base": Entry("digits8", {"base_steps": 60, "expert_steps": 100}),
    "digits8_likelihood": Entry("digits8", {"metric": "likelihood"}),
    "digits16": Entry("digits16", {}),
    "vision8": Entry("vision8", {}, pool=2560, verify=25),
    "sentiment4": Entry("sentiment4", {}, pool=160, verify=6),
    "mhc8": Entry("mhc8", {}),
    "clip8": Entry("clip8", {"folder": None}, pool=160, verify=6),
}


def load(name: str, seed: int = 0, *, folder: Path | None = None) -> Suite:
    """Load a suite, or train its models.

    Args:
        name: One of `SUITES`.
        seed: Draws what the suite's own `load` says.
        folder: Where clip8 finds its models and images.

    Raises:
        ValueError: If a suite that needs a folder gets none.
    """
    entry = SUITES[name]
    module = importlib.import_module(f"benchmarks.suites.{entry.module}")
    options = entry.options
    if "metric" in options:
        options = options | {"metric": getattr(module, options["metric"])}
    if "folder" in options:
        if folder is None:
            raise ValueError(
                f"{name} reads models and images from a folder: pass `--folder PATH`. How it "
                f"is laid out, {module.__name__} says."
            )
        options = options | {"folder": folder}
    return module.load(seed, **options)._replace(name=name)
