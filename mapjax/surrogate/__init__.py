"""Surrogates: cheap models of scores as a function of the coefficients."""

from mapjax.surrogate._fit import fit as fit
from mapjax.surrogate._fit_quadratic import fit_quadratic as fit_quadratic
from mapjax.surrogate._links import LINKS as LINKS
from mapjax.surrogate._quadratic import Quadratic as Quadratic
