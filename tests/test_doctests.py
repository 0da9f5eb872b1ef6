"""The examples in the docstrings run and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import mapjax as mj

MODULES = [info.name for info in pkgutil.walk_packages(mj.__path__, "mapjax.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_to_find():
    finder, modules = doctest.DocTestFinder(), map(importlib.import_module, MODULES)
    assert sum(len(t.examples) for m in modules for t in finder.find(m)) > 100
