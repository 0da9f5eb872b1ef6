"""Alignment: experts without a common base, told apart and brought together."""

from mapjax.alignment._matching import weight_matching as weight_matching
from mapjax.alignment._shared_base import SharedBase as SharedBase
from mapjax.alignment._shared_base import check_shared_base as check_shared_base
from mapjax.alignment._shared_base import shares_base as shares_base
from mapjax.alignment._spec import Blocks as Blocks
from mapjax.alignment._spec import Spec as Spec
from mapjax.alignment._spec import mlp_spec as mlp_spec
from mapjax.alignment._spec import permute as permute
