"""How close multi-path verifiers come to the certified optimum: exact laws on many small random instances.

    python benchmarks/selection_survey.py [--instances 504] [--output benchmarks/results/selection_survey.json]

Instances: random target and draft rows of vocabulary 2..4 and length 1..3, rows close to each other, moderately and
far apart, and K = 2 or 3 paths. For every verifier the fraction value / certified optimum (the lossless optimum of K
paths, gap at most 1e-6), and every instance on which two-level or many-level keeps less than another verifier.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime.verifiers import entries, get
from specbound.theory.multi_path import antichain
from specbound.theory.prefix_tree import PrefixTree

RESULTS = Path(__file__).parent / "results" / "selection_survey.json"
SIZES = ((2, 1, 2), (2, 1, 3), (3, 1, 2), (3, 1, 3), (4, 1, 2), (2, 2, 2), (2, 2, 3), (3, 2, 2), (2, 3, 2))
FAMILIES = {"close": 0.25, "middle": 0.75, "far": 2.5}
UNDETERMINED = ("table",)  # solved for a tree
VERIFIERS = tuple(
    entry.name
    for entry in entries()
    if entry.lossless and not entry.stateful and entry.name not in UNDETERMINED and entry.drafts == "independent"
)
OURS = ("two-level", "many-level")


def instance(vocab: int, length: int, spread: float, seed: int) -> PrefixTree:
    """Target rows Dirichlet(1); draft rows the target's times lognormal noise of standard deviation `spread`."""
    rng = np.random.default_rng(seed)
    rows: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def both(prefix: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        if prefix not in rows:
            target = rng.dirichlet(np.ones(vocab))
            draft = target * np.exp(spread * rng.standard_normal(vocab))
            rows[prefix] = target, draft / draft.sum()
        return rows[prefix]

    return PrefixTree.from_conditionals(lambda prefix: both(prefix)[0], lambda prefix: both(prefix)[1], vocab, length)


def survey(instances: int) -> list[dict[str, Any]]:
    """One record per instance: its size, family, seed, certified optimum and the exact value of every verifier."""
    records = []
    for number in range(instances):
        vocab, length, paths = SIZES[number % len(SIZES)]
        family = list(FAMILIES)[number // len(SIZES) % len(FAMILIES)]
        tree = instance(vocab, length, FAMILIES[family], seed=number)
        optimum = antichain.optimum(tree, paths, tolerance=1e-6)
        values = {
            name: exact_law(name, tree, 1 if get(name).paths == "single" else paths).acceptance_length
            for name in VERIFIERS
        }
        records.append(
            {
                "vocab": vocab,
                "length": length,
                "paths": paths,
                "family": family,
                "seed": number,
                "optimum": optimum.value,
                "bound": optimum.bound,
                "values": values,
            }
        )
    return records


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and minimum fraction of the optimum per verifier, and the instances on which two-level loses."""
    fractions = {
        name: [record["values"][name] / record["optimum"] for record in records if record["optimum"] > 0]
        for name in VERIFIERS
    }
    losses = [
        {**record, "loser": ours, "below": rival}
        for record in records
        for ours in OURS
        for rival in VERIFIERS
        if record["values"][ours] < record["values"][rival] - 1e-8
    ]
    counts = {
        ours: {rival: sum(loss["loser"] == ours and loss["below"] == rival for loss in losses) for rival in VERIFIERS}
        for ours in OURS
    }
    above = [record for record in records if max(record["values"].values()) > record["bound"] + 1e-9]
    return {
        "instances": len(records),
        "fraction_of_optimum": {
            name: {"mean": float(np.mean(values)), "min": min(values)} for name, values in fractions.items()
        },
        "times_below": counts,
        "losses": losses,
        "above_the_bound": above,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=504)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.instances < 1:
        parser.error(f"instances is {options.instances}; want at least 1")
    result = summary(survey(options.instances))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['instances']} instances; fraction of the certified optimum")
    print(f"{'certified optimum':22} mean 1.0000  min 1.0000")
    ranked = sorted(result["fraction_of_optimum"].items(), key=lambda entry: -entry[1]["mean"])
    for name, values in ranked:
        print(f"{name:22} mean {values['mean']:.4f}  min {values['min']:.4f}")
    for ours, counts in result["times_below"].items():
        print(
            f"{ours} below", ", ".join(f"{rival} {times} times" for rival, times in counts.items() if times) or "none"
        )
    print(f"above the certified bound: {len(result['above_the_bound'])}")


if __name__ == "__main__":
    main()
