"""Why another method is ahead of mapjax somewhere, and what would change that."""

REASONS: dict[str, str] = {
    "react": "For a preference it solves for the last layer that copies the experts best on "
    "500 inputs of each task, so that the preference itself is nearly the best choice and "
    "all evaluations are of the front. `map_front_react` searches the same rule, spends "
    "evaluations on learning what each coefficient does, and picks by a prediction that is "
    "off by a few tenths of a point. Starting the search at the preferences, where a rule "
    "has them for coefficients, would close the gap; it is not done.",
    "regmean_mean": "Its coefficients are the preference, as ReACT's are, and every "
    "evaluation is a point of its front, where `map_front` on the same rule spends some on "
    "the base and the experts. Starting the search at the preferences would close the gap; "
    "it is not done.",
    "iso_c": "With the base and the experts alone, `map_front` has evaluated nothing between "
    "them, while the nine scales of one vector, all of them evaluated, happen to pass near "
    "good merges of these tasks. `map_front` on the vectors of `transforms.iso_c` starts "
    "from the same line.",
}
"""By the method that is ahead."""
