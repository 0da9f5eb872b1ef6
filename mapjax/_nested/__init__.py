"""Nested MAP: many experts merged two by two, in a tree."""

from mapjax._nested._nested_front import nested_front as nested_front
