"""Validate a runtime verifier against the certified LP bound: is it lossless, and how much does it leave?

python examples/validate_verifier.py two-level
"""

import sys

from specbound import PrefixTree, exact_law
from specbound.proofs_checks.laws.judge import judge
from specbound.theory.optima import certified_optimum

name = sys.argv[1] if len(sys.argv) > 1 else "two-level"
trees = [PrefixTree.random(vocab, length, seed) for vocab in (2, 3) for length in (1, 2) for seed in (0, 1)]
paths = 2
verdict = judge(name, [(tree, paths) for tree in trees])
print(f"{name}: {verdict.verdict} on {len(trees)} random trees, total variation at most {verdict.total_variation:.0e}")
if not verdict.lossless:
    sys.exit(1)
worst = 1.0
for tree in trees:
    kept = exact_law(name, tree, paths).acceptance_length
    best = certified_optimum(tree, paths)
    worst = min(worst, kept / best.value)
    print(f"  V = {tree.vocab}, L = {tree.length}: keeps {kept:.6f} of at most {best.bound:.6f}")
print(f"at worst {100 * worst:.2f} % of the optimum")
