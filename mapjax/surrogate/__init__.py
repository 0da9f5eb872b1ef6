"""Surrogates: cheap models of scores as a function of the coefficients."""

from mapjax.surrogate._checks import check_bounds as check_bounds
from mapjax.surrogate._checks import check_ridge as check_ridge
from mapjax.surrogate._families import Outputs as Outputs
from mapjax.surrogate._fit import fit as fit
from mapjax.surrogate._fit_outputs import fit_outputs as fit_outputs
from mapjax.surrogate._fit_quadratic import fit_quadratic as fit_quadratic
from mapjax.surrogate._links import LINKS as LINKS
from mapjax.surrogate._output_surrogate import OutputSurrogate as OutputSurrogate
from mapjax.surrogate._quadratic import Quadratic as Quadratic
from mapjax.surrogate._quadratic import hessian_rank as hessian_rank
from mapjax.surrogate._quadratic import num_unknowns as num_unknowns
