"""What lossy verifiers cost and waste: exact laws on small trees, random ones and those of the shipped pair.

    python benchmarks/lossy.py [--random 60] [--contexts 12] [--output benchmarks/results/lossy.json]

Per tree and verifier: total variation of the exact law of one call to the target's, drafted tokens kept, the certified
best of any verifier of that deviation, and the difference; means over the trees are stored. Random trees: V 2..4,
L 2..4, rows Dirichlet with concentration 0.3, 1 and 3. Trees of the pair: L = 3, top-k 4, temperature 1, contexts in
the shipped prompts. `budgeted` stands in the list with several budgets.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from specbound.proofs_checks.laws.model_trees import from_models
from specbound.proofs_checks.laws.wasted import mean_points
from specbound.runtime.models import load_pair
from specbound.runtime.registry import Verifier
from specbound.runtime.verifiers import entries, get
from specbound.shipped_pair import DRAFT, TARGET, prompts
from specbound.theory.prefix_tree import PrefixTree

RESULTS = Path(__file__).parent / "results" / "lossy.json"
SIZES = ((2, 2), (2, 3), (2, 4), (3, 2), (3, 3), (4, 2))
BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)


def verifiers() -> list[Verifier]:
    """Token and block verification, the rule with a budget at several, and every lossy verifier of one path."""
    budgets = [replace(get("budgeted").configured(deviation=eps), name=f"budgeted {eps}") for eps in BUDGETS]
    lossy = [entry for entry in entries() if not entry.lossless and entry.paths == "single"]
    return [get("token"), get("block"), *budgets, *(entry for entry in lossy if entry.name != "budgeted")]


def random_trees(count: int) -> list[PrefixTree]:
    """Trees of the sizes in turn, seeds 0, 1, .."""
    return [
        PrefixTree.random(*SIZES[seed % len(SIZES)], seed, (0.3, 1.0, 3.0)[seed // len(SIZES) % 3])
        for seed in range(count)
    ]


def shipped_trees(count: int) -> list[PrefixTree]:
    """Trees of the shipped pair at places inside the shipped prompts."""
    pair = load_pair(TARGET, DRAFT)
    trees = []
    for number in range(count):
        text = prompts()[number % len(prompts())]["text"]
        context = pair.tokenizer(text, return_tensors="pt")["input_ids"][0]
        place = len(context) - 4 * (number // len(prompts()))
        trees.append(from_models(pair.target, pair.draft, context[: max(1, place)], length=3, top_k=4))
    return trees


def survey(trees: list[PrefixTree]) -> list[dict[str, Any]]:
    """One record a verifier: means of deviation, tokens kept, the best at that deviation, and what is wasted."""
    points = mean_points(trees, verifiers())
    return [
        {"name": p.name, "deviation": p.deviation, "kept": p.kept, "best": p.best, "wasted": p.wasted} for p in points
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=60)
    parser.add_argument("--contexts", type=int, default=12)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    record = {
        "random": {"trees": options.random, "verifiers": survey(random_trees(options.random))},
        "shipped pair": {"trees": options.contexts, "verifiers": survey(shipped_trees(options.contexts))},
    }
    options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for kind, found in record.items():
        print(f"{kind}: {found['trees']} trees")
        for row in found["verifiers"]:
            print(
                "  {name:16} deviation {deviation:.4f} kept {kept:.4f} best {best:.4f} wasted {wasted:.4f}".format(
                    **row
                )
            )


if __name__ == "__main__":
    main()
