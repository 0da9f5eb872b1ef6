"""Merge rules: from coefficients to parameters, where the merge is not linear in them."""

from mapjax.rules._curvature import fisher_mean as fisher_mean
from mapjax.rules._curvature import regmean_mean as regmean_mean
from mapjax.rules._curvature import wudi_mean as wudi_mean
from mapjax.rules._match_layers import match_layers as match_layers
from mapjax.rules._mean import layer_swap as layer_swap
from mapjax.rules._mean import weighted_average as weighted_average
from mapjax.rules._react import react as react
from mapjax.rules._rule import MergeRule as MergeRule
from mapjax.rules._sphere import multi_slerp as multi_slerp
from mapjax.rules._sphere import nuslerp as nuslerp
from mapjax.rules._sphere import slerp as slerp
