"""`mapjax merge`: checkpoints in, a merged checkpoint out."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from mapjax.cli._errors import UsageError, told
from mapjax.cli._files import (
    check_paths,
    merge_checkpoints,
    print_json,
    read_memory,
    read_options,
    size,
)
from mapjax.cli._rules import check_rule, read_rule


def merge(
    base: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BASE")],
    experts: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="EXPERT")
    ],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    coefficients: tuple[float, ...] = (),
    scale: float = 1.0,
    rule: str = "linear",
    density: float | None = None,
    options: tuple[str, ...] = (),
    seed: int = 0,
    dtype: str | None = None,
    memory: str = "4GiB",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Merge checkpoints into one: the base plus the experts' task vectors.

    Reads and writes in pieces, so that models may be larger than memory. The result is
    safetensors with the shards and dtypes of the base, appears when it is complete, and has
    its recipe in a .md file beside it.

    For example:

      mapjax merge base.safetensors a.safetensors b.safetensors -o ab.safetensors
      --coefficients 0.6 0.4

      mapjax merge base/ math/ code/ -o merged/ --rule ties --density 0.2 --scale 1.5

      mapjax merge base/ math/ code/ -o merged/ --rule dare --density 0.1 --dry-run

    Args:
        base: The pretrained checkpoint: .safetensors, a folder of shards, or .npz.
        experts: The fine-tuned ones.
        output: Where to write: a .safetensors file, or a folder if the base is one.
        coefficients: One per expert, in their order; 1 for each by default, as for a sum.
        scale: What all coefficients are multiplied by.
        rule: linear, ties, dare, della, breadcrumbs, magmax, pcb, consensus, tall_mask, tsv,
            iso_c, iso_cts, opcm, model_stock, widen, wudi, wudi_descent or doge: the
            transforms of mapjax.transforms that look at a tensor at a time.
        density: The share of numbers to keep, for rules that have one.
        options: Further options of the rule as name=value, such as window=0.1.
        seed: Draws what dare and della drop.
        dtype: What to write merged tensors in, such as bfloat16; the base's by default.
        memory: The most memory for numbers, such as 4GiB.
        dry_run: Find every error that can be found without reading the numbers, say what
            would be done, and stop.
        json: Print one JSON object.
    """
    if not experts:
        raise UsageError("There are no experts: pass their paths after that of the base.")
    check_paths({"BASE": base, **{f"EXPERT {i + 1}": p for i, p in enumerate(experts)}})
    if coefficients and len(coefficients) != len(experts):
        raise UsageError(
            f"--coefficients has {len(coefficients)} numbers for {len(experts)} experts: "
            "pass one for each."
        )
    given = read_options(options)
    if density is not None:
        if "density" in given:
            raise UsageError("--density and --options both say density: leave one out.")
        given = {"density": density} | given
    chosen = read_rule(rule, given, seed)
    check_rule(chosen)
    c = [scale * x for x in coefficients or (1.0,) * len(experts)]
    with told():
        plan = merge_checkpoints(
            base,
            names_of(experts),
            output,
            c,
            rule=chosen,
            dtype=dtype,
            memory=read_memory(memory),
            dry_run=dry_run,
            progress=False if json else None,
        )
    if json:
        done = {"output": str(output), "coefficients": c, "rule": str(chosen)}
        print_json(done | {"dry_run": dry_run} | dataclasses.asdict(plan))
        return
    would = "Would merge" if dry_run else "Merged"
    print(
        f"{would} {len(plan.merged)} tensors by {chosen} with {c}; "
        f"{len(plan.left_alone)} taken from the base."
    )
    for name, why in list(plan.left_alone.items())[:5]:
        print(f"  from the base: {name} ({why})")
    print(
        f"Memory {size(plan.peak_memory)}, read {size(plan.bytes_read)}, "
        f"{'to write' if dry_run else 'written'} {size(plan.bytes_written)}: {output}"
    )
    if not dry_run:
        print(f"The recipe is in {output}.md")


def names_of(experts: tuple[Path, ...]) -> dict[str, Path]:
    """Name experts by their files, or by their place where these are called the same."""
    names = [path.resolve().name.removesuffix(".safetensors") for path in experts]
    if len(set(names)) < len(names):
        names = [f"expert_{i}" for i in range(len(names))]
    return dict(zip(names, experts, strict=True))
