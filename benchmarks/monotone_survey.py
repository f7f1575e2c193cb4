"""Rules of one selected path against the certified optimum: do they fall when a draft is added, or below the key race?

    python -m benchmarks.monotone_survey [--instances 252]

Random instances as in `selection_survey` (target rows Dirichlet(1), the draft's close, moderately far and far), V 2..4,
L 1..3, K 2..4. For every rule, by theory: value over certified optimum, mean and least; how often the value for K is
below that for K - 1, below the key race's and below block verification's, each by more than 1e-6 of it, and by how
much at most. Results go to benchmarks/results/monotone_survey.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.selection_survey import FAMILIES, instance
from specbound.theory import key_safe_race, monotone_race, multi_path
from specbound.theory.known_values import known_value
from specbound.theory.prefix_tree import PrefixTree

RESULTS = Path(__file__).parent / "results" / "monotone_survey.json"
SIZES = ((2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3), (3, 3))
PATHS = (2, 3, 4)
SMALLEST = 1e-6
Value = Callable[[PrefixTree, int], float]


def closed_form(name: str) -> Value:
    """The value of a registered verifier."""
    return lambda tree, paths: known_value(name, tree, paths).value


RULES: dict[str, Value] = {name: closed_form(name) for name in ("block", "key-race", "two-level", "score-race")}
RULES["key-safe race"] = lambda tree, paths: float(key_safe_race.acceptance(tree, paths)[1:].sum())
RULES["monotone race"] = lambda tree, paths: float(monotone_race.acceptance(tree, paths)[1:].sum())


def survey(instances: int) -> list[dict[str, Any]]:
    """Per instance: size, certified optimum, and every rule's value for K and K - 1."""
    records = []
    with click.progressbar(range(instances), label="instances") as numbers:
        for number in numbers:
            vocab, length = SIZES[number % len(SIZES)]
            family, paths = list(FAMILIES)[number // len(SIZES) % len(FAMILIES)], PATHS[number % len(PATHS)]
            tree = instance(vocab, length, FAMILIES[family], seed=number)
            values = {name: [value(tree, count) for count in (paths - 1, paths)] for name, value in RULES.items()}
            size = {"vocab": vocab, "length": length, "paths": paths, "family": family, "seed": number}
            records.append(size | {"optimum": multi_path.lossless_optimum(tree, paths).bound, "values": values})
    return records


def losses(records: list[dict[str, Any]], name: str, other: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """How often the rule's value is below another one, and by what share of it at most."""
    shares = np.array([1 - record["values"][name][1] / other(record["values"]) for record in records])
    return {"times": int((shares > SMALLEST).sum()), "most": float(shares.max(initial=0.0, where=shares > SMALLEST))}


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """By rule."""
    found = {}
    for name in RULES:
        shares = [record["values"][name][1] / record["optimum"] for record in records]
        found[name] = {
            "mean": float(np.mean(shares)),
            "least": float(np.min(shares)),
            "falls": losses(records, name, lambda values, name=name: values[name][0]),  # type: ignore[misc]
            "below_key_race": losses(records, name, lambda values: values["key-race"][1]),
            "below_block": losses(records, name, lambda values: values["block"][1]),
        }
    return found


@click.command()
@click.option("--instances", default=252, show_default=True, type=click.IntRange(min=1))
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(instances: int, out: Path) -> None:
    """Measure, print and write as JSON."""
    found = summary(survey(instances))
    out.write_text(json.dumps({"instances": instances, "rules": found}, indent=1) + "\n", encoding="utf-8")
    for name, row in found.items():
        click.echo(
            f"{name:14} mean {row['mean']:.4f}  least {row['least']:.4f}  falls {row['falls']['times']}, below the key "
            f"race {row['below_key_race']['times']}, below block verification {row['below_block']['times']} times"
        )


if __name__ == "__main__":
    main()
