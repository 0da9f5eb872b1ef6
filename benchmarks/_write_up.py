"""The report: Markdown and pictures from the JSON files of all benchmarks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import _front_tables, _pictures, _speed_tables
from benchmarks._markdown import listed, markdown_table
from benchmarks._reasons import REASONS
from benchmarks.methods import METHODS, NOT_RUN

_FRONTS = "fronts_"
_MEASURES = """\
All scores are on validation examples, on which coefficients are chosen, unless said \
otherwise; a cell is the median over seeds and, in brackets, their range. Names in code are \
drivers of mapjax. With N + 1 evaluations (the base and the experts) all direct methods have \
the same points; 2p is (N + 1)(N + 2).

- *hypervolume*: percent of the box from zero to the best known of every task that is \
dominated by what was evaluated and by the *points* that were judged, each really evaluated \
for this, on top of the budget: what 200 preferences pick, and up to 100 points spread over \
the proposed front; methods without a surrogate propose only what they have evaluated. *of \
evaluated*: by what was evaluated alone. Rules with a merge for each preference (layer \
matching, RegMean, Fisher and WUDI means, ReACT) answer every preference themselves, and are \
judged by these answers, which cost no evaluation; drivers on them pick such a merge too, \
unless another is predicted to be better by more than luck, so that up to 301 points of them \
are judged. Rewarded soups are picked by what was evaluated, which is kinder to their regret.
- *IGD+*: how far the same points stay behind the best front known (all methods and the pool \
of direct evaluations), in percent of each task's best.
- *regret*: what a preference loses against the best merge known, in points of the metric, \
on average over 200 preferences: for the point that the method picks, without knowing its \
score; *of evaluated*: for the best that it has evaluated; *of linear*: for the pick, \
against the best merge known of the suite's own task vectors, without those of other rules.
- *win rate*: share of pairs with a point of the paper's protocol at 2p that are won, per \
task, in percent.
- *average*: test score over the expert's own, on average over tasks, of the pick at equal \
preference, in percent. *gap*: validation less test score of the picks, in points. *held \
out*: mean score of the pick at equal preference on two tasks that no model has seen.
- *least R2*: of the surrogate, the worst task, on 128 fresh merges of the default design. \
*coverage*: true scores within the 90 % band, in percent.
- *evaluations*: of merges on all validation examples; *examples*: these times the examples. \
What else a method reads its settings say: inputs of training examples (RegMean, Fisher, \
ReACT, layer matching, and drivers on their rules), or steps of gradients (AdaMerging).
- *seconds*: the whole run, evaluations and compiling included. The first method of a process \
pays for what those after it share, and many ran while others had the same cores: only orders \
of magnitude say something. *MB*: by how much the process grew.
"""


def front_tables(name: str, figures: dict[str, Any]) -> str:
    """Write the tables of one suite."""
    measured = figures["methods"]
    left = [
        m.replace("_", " ")
        for m, method in METHODS.items()
        if m not in measured and (not method.only or name in method.only)
    ]
    parts = [
        f"## {name}",
        f"{figures['experts']} experts, seeds {', '.join(map(str, figures['seeds']))}; "
        f"best of some {figures['pool']['median']:,.0f} distinct scores known. Regret of the "
        f"base alone {_front_tables.cell(figures['regret_of_base'], 2)}, of the base and the "
        f"experts {_front_tables.cell(figures['regret_of_base_and_experts'], 2)}."
        + (f" Not measured yet: {', '.join(left)}." if left else ""),
    ]
    for budget, table in _front_tables.tables(figures):
        parts += [f"### {name}, {budget} evaluations", table]
    return "\n\n".join(parts)


def write(folder: Path) -> Iterator[Path]:
    """Write `README.md` and the pictures it shows from the JSON files in a folder.

    Args:
        folder: Where the JSON files are.

    Yields:
        What was written.
    """
    results = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    fronts = {
        name.removeprefix(_FRONTS): one["figures"]
        for name, one in results.items()
        if name.startswith(_FRONTS)
    }
    parts = ["# What was measured", _machines(results), "# Fronts", _MEASURES]
    parts += ["## Where mapjax is not the best", _losses(fronts)]
    for suite, figures in fronts.items():
        picture = folder / f"{_FRONTS}{suite}.svg"
        _pictures.by_evaluations(suite, figures, picture)
        yield picture
        parts += [front_tables(suite, figures), f"![{suite}]({picture.name})"]
    settings = [f"{name.replace('_', ' ')}: {m.settings}." for name, m in METHODS.items()]
    missing = [f"{name.replace('_', ' ')}: {why}" for name, why in NOT_RUN.items()]
    parts += ["## Settings", listed(settings), "## Not run", listed(missing)]
    parts.append("# Speed and size")
    for name, one in results.items():
        if name in _speed_tables.SECTIONS:
            parts.append(_speed_tables.SECTIONS[name](one["figures"]))
            if "curves" in one["figures"]:
                picture = folder / f"{name}.svg"
                _pictures.curves(one["figures"]["curves"], picture)
                yield picture
                parts.append(f"![How times grow]({picture.name})")
    page = folder / "README.md"
    page.write_text("\n\n".join(parts) + "\n")
    yield page


def _losses(fronts: dict[str, Any]) -> str:
    """List by the method that is ahead: why, and where."""
    found: dict[str, list[str]] = {}
    for suite, figures in fronts.items():
        for method, line in _front_tables.lost(suite, figures):
            found.setdefault(method, []).append(line)
    parts = [
        f"**{method.replace('_', ' ')}.** {REASONS.get(method, '')}\n\n{listed(lines)}"
        for method, lines in found.items()
    ]
    return "\n\n".join(parts) or "Nowhere."


def _machines(results: dict[str, Any]) -> str:
    rows = [
        (
            name,
            one["date"],
            "{device} ({processor})".format(**one["machine"]),
            one["machine"]["python"],
            ", ".join(f"{package} {v}" for package, v in one["versions"].items()),
        )
        for name, one in results.items()
    ]
    return markdown_table(("figures", "date", "device", "python", "versions"), rows)
