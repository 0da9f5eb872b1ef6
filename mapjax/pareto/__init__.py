"""Fronts, reference directions, indicators and picks; everything is minimised."""

from mapjax.pareto._attainment import attainment_band as attainment_band
from mapjax.pareto._directions import das_dennis as das_dennis
from mapjax.pareto._directions import reference_directions as reference_directions
from mapjax.pareto._directions import riesz_energy as riesz_energy
from mapjax.pareto._directions import two_layer as two_layer
from mapjax.pareto._dominance import crowding_distance as crowding_distance
from mapjax.pareto._dominance import dominance_matrix as dominance_matrix
from mapjax.pareto._dominance import non_dominated as non_dominated
from mapjax.pareto._dominance import non_dominated_ranks as non_dominated_ranks
from mapjax.pareto._dominance import (
    probability_non_dominated as probability_non_dominated,
)
from mapjax.pareto._hypervolume import hypervolume as hypervolume
from mapjax.pareto._hypervolume import hypervolume_monte_carlo as hypervolume_monte_carlo
from mapjax.pareto._indicators import coverage as coverage
from mapjax.pareto._indicators import gd as gd
from mapjax.pareto._indicators import gd_plus as gd_plus
from mapjax.pareto._indicators import igd as igd
from mapjax.pareto._indicators import igd_plus as igd_plus
from mapjax.pareto._indicators import spacing as spacing
from mapjax.pareto._indicators import win_rate as win_rate
from mapjax.pareto._picks import pick_achievement as pick_achievement
from mapjax.pareto._picks import pick_knee as pick_knee
from mapjax.pareto._picks import pick_tchebycheff as pick_tchebycheff
from mapjax.pareto._picks import pick_weighted_sum as pick_weighted_sum
from mapjax.pareto._subset import spread_subset as spread_subset
