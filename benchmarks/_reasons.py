"""Why another method is ahead of mapjax somewhere, and what would change that."""

_BY_PREFERENCE = (
    "Its coefficients are the preference, which is nearly the best choice for it, so that "
    "every evaluation is a point of its front and a pick needs no prediction. `map_front` on "
    "the same rule starts from the same mixtures, and picks by a prediction that is off by "
    "some tenths of a point while it has seen few of them. It evaluates what is best for "
    "somebody, and so less of the volume; `bayesian_front` on the rule aims at that."
)
_ONE_POINT = (
    "Its front is one point near the base that beats the paper's protocol everywhere; ours "
    "spread over trades, and a few of their points lose a pair."
)
_ALL_WON = "Both win nearly every pair: the difference is in what is rounded away."
_HELD_OUT = (
    "Nothing was chosen on the held-out tasks: a merge that keeps away from the seen ones is "
    "as likely to do well there. No method aims at them."
)

REASONS: dict[str, str] = {
    "react": _BY_PREFERENCE,
    "regmean_mean": _BY_PREFERENCE,
    "iso_c": _HELD_OUT,
    "tsv": _HELD_OUT,
    "ties": _ONE_POINT,
    "direct_mixed_regmean": _ALL_WON,
    "task_arithmetic": _ONE_POINT,
    "adamerging": _HELD_OUT,
    "wudi_mean": _HELD_OUT,
    "scalar_quadratic": "`map_front` samples where its front is, and not the box that R2 is "
    "taken over; with `rounds=1` it samples the box.",
}
"""By the method that is ahead."""
