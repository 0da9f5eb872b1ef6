"""Promises that hold across the whole package."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys

import equinox as eqx
import pytest

import mapjax as mj


def modules():
    for info in pkgutil.walk_packages(mj.__path__, "mapjax."):
        yield importlib.import_module(info.name)


def loaded_by(code):
    """Run code in a new process; return what it imports from outside of Python."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; before = {{*sys.modules}}\n{code}\n"
         "print(*sorted({*sys.modules} - before))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = done.stdout.splitlines()[-1].split()
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def test_importing_mapjax_loads_nothing_else():
    assert loaded_by("import mapjax; dir(mapjax)") == {"mapjax"}


def test_the_names_of_mapjax_load_nothing_heavy():
    packages = ("design", "evaluation", "metrics", "pareto", "surrogate")
    names = ", ".join([*packages, *mj._HOMES])
    loaded = loaded_by(f"from mapjax import {names}")
    assert {"jax", "numpy", "mapjax.surrogate", "mapjax.task_vectors"} <= loaded
    heavy = {"flax", "orbax", "matplotlib", "optax", "tyro", "rich", "sklearn", "pandas"}
    heavy |= {"safetensors", "evosax.algorithms", "scipy.stats", "scipy.special"}
    assert heavy.isdisjoint(loaded)


def test_help_loads_no_arrays():
    code = "from mapjax.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    loaded = loaded_by(code)
    assert "tyro" in loaded
    assert {"jax", "numpy", "scipy", "equinox", "mapjax.io"}.isdisjoint(loaded)


def test_what_type_checkers_see_is_what_there_is():
    (seen,) = [x for x in ast.parse(inspect.getsource(mj)).body if isinstance(x, ast.If)]
    imports = [x for x in seen.body if isinstance(x, ast.ImportFrom)]
    names = {name.asname: x.module for x in imports for name in x.names}
    homes = {name: f"mapjax.{home}" for name, home in mj._HOMES.items()}
    assert names == dict.fromkeys(mj._PACKAGES, "mapjax") | homes
    assert {*dir(mj)} == {*names}
    assert all(getattr(mj, name) is not None for name in dir(mj))


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
    names = {*dir(mj)} - {*mj._PACKAGES}
    assert len(names) <= 20
    assert {"TaskVectors", "merge", "Task", "Evaluator", "map_front", "Solution"} <= names
    assert mj.search.NSGA3 is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mj.nothing  # noqa: B018


def test_every_public_thing_is_documented():
    for package in (mj, mj.design, mj.metrics, mj.pareto, mj.surrogate, mj.search, mj.plot):
        for name in dir(package):
            thing = getattr(package, name)
            ours = getattr(thing, "__module__", "").startswith("mapjax")
            if name.startswith("_") or not callable(thing) or not ours:
                continue
            assert (thing.__doc__ or "").strip(), f"{package.__name__}.{name}"
