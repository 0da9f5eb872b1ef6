"""Why another method is ahead of mapjax somewhere, and what would change that."""

_BY_PREFERENCE = (
    "Its pick at equal preference is its uniform merge, which nobody has to choose; a driver "
    "picked by a prediction for validation examples, and was some tenths of a point behind on "
    "test examples, within what seeds differ by. Since these suites were measured, a driver "
    "leaves such a merge only for what is better by more than luck."
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
    "dare": "One seed, and two tenths of a point on test examples: its one merge is nearly "
    "the uniform one, which suits equal preference.",
    "iso_c": _HELD_OUT,
    "tsv": _HELD_OUT,
    "ties": _HELD_OUT,
    "direct_mixed_regmean": _ALL_WON,
    "task_arithmetic": _ONE_POINT,
    "adamerging": _HELD_OUT,
    "wudi_mean": _HELD_OUT,
}
"""By the method that is ahead."""
