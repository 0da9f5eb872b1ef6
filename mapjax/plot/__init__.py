"""Pictures of solutions; needs the extra `plot`. Nothing is shown or saved on its own."""

from mapjax.plot._contours import contours as contours
from mapjax.plot._front import front as front
from mapjax.plot._fronts import fronts as fronts
from mapjax.plot._pairs import pairs as pairs
from mapjax.plot._parallel import parallel as parallel
from mapjax.plot._predicted import predicted_vs_verified as predicted_vs_verified
