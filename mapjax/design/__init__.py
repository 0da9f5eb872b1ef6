"""Designs: where to sample coefficients."""

from mapjax.design._corners import corners as corners
from mapjax.design._d_optimal import d_optimal as d_optimal
from mapjax.design._make_design import DESIGNS as DESIGNS
from mapjax.design._make_design import make_design as make_design
from mapjax.design._mixture import mixture as mixture
from mapjax.design._simplex import axial as axial
from mapjax.design._simplex import dirichlet as dirichlet
from mapjax.design._simplex import mixture_amount as mixture_amount
from mapjax.design._simplex import simplex_lattice as simplex_lattice
from mapjax.design._simplex import to_simplex as to_simplex
from mapjax.design._space_filling import latin_hypercube as latin_hypercube
from mapjax.design._space_filling import multiscale as multiscale
from mapjax.design._space_filling import sobol as sobol
