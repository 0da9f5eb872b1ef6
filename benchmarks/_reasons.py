"""Why another method is ahead of mapjax somewhere, and what would change that."""

_BY_PREFERENCE = (
    "Its merge for each preference is chosen by nothing that could go wrong. A driver on it "
    "leaves such a merge only for what is predicted to be better by more than luck; where it "
    "is not better, the loss is within what seeds differ by."
)
_ALL_WON = "Both win nearly every pair: the difference is in what is rounded away."
_HELD_OUT = (
    "Nothing was chosen on the held-out tasks: a merge that keeps away from the seen ones is "
    "as likely to do well there. No method aims at them."
)

REASONS: dict[str, str] = {
    "regmean_mean": _BY_PREFERENCE,
    "direct_sobol": _HELD_OUT,
    "tsv": _HELD_OUT,
    "direct_mixed_regmean": _ALL_WON,
    "adamerging": _HELD_OUT,
}
"""By the method that is ahead."""
