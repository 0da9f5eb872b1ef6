"""Solutions on disk, for those who look for them here."""

from pathlib import Path

from mapjax._solution import Solution


def save_solution(path: str | Path, solution: Solution) -> None:
    """Save a solution; the same as `solution.save(path)`."""
    solution.save(path)


def load_solution(path: str | Path) -> Solution:
    """Load a solution; the same as `mapjax.Solution.load(path)`."""
    return Solution.load(path)
