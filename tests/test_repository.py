"""Promises that hold across the whole package."""

import importlib
import pkgutil
import subprocess
import sys

import equinox as eqx
import pytest

import mapjax as mj


def modules():
    for info in pkgutil.walk_packages(mj.__path__, "mapjax."):
        yield importlib.import_module(info.name)


def test_importing_mapjax_loads_nothing_heavy():
    code = "import mapjax, sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"flax", "orbax", "matplotlib", "optax", "tyro", "rich", "sklearn", "pandas"}
    assert heavy.isdisjoint(out.stdout.split())
    code = "import mapjax, sys; print('evosax.algorithms' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"


def test_every_module_class_is_abstract_or_final():
    found = set()
    for module in modules():
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, eqx.Module):
                found.add(thing)
    ours = {c for c in found if c.__module__.startswith("mapjax")}
    assert len(ours) > 5
    for cls in ours:
        for parent in cls.__mro__[1:]:
            if parent in ours:
                assert parent.__name__.startswith("Abstract"), (cls, parent)


def test_the_top_level_is_small_and_complete():
    public = {name for name in vars(mj) if not name.startswith("_")}
    packages = {"design", "metrics", "pareto", "surrogate", "search", "plot", "evaluation"}
    packages |= {"alignment", "io", "rules", "transforms"}
    internal = {"adapters", "cli", "task_vectors", "importlib", "typing"}
    names = public - packages - internal
    assert len(names) <= 20
    assert {"TaskVectors", "merge", "Task", "Evaluator", "map_front", "Solution"} <= names
    assert mj.search.NSGA3 is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mj.nothing  # noqa: B018


def test_every_public_thing_is_documented():
    for package in (mj, mj.design, mj.metrics, mj.pareto, mj.surrogate, mj.search, mj.plot):
        for name, thing in vars(package).items():
            ours = getattr(thing, "__module__", "").startswith("mapjax")
            if name.startswith("_") or not callable(thing) or not ours:
                continue
            assert (thing.__doc__ or "").strip(), f"{package.__name__}.{name}"
