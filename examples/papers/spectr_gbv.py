"""SpecTr-GBV (arXiv:2604.25925) in one screen: the acceptance it derives, its published rule, a lossless rule.

python examples/papers/spectr_gbv.py
"""

from fractions import Fraction

from specbound import PrefixTree, exact_law
from specbound.proofs_checks.laws.judge import judge
from specbound.theory.known_values import spectr_gbv_claim
from specbound.theory.optima import certified_optimum

tree = PrefixTree.iid(target=["1/3", "2/3"], draft=["2/3", "1/3"], length=1)
for paths in (1, 2, 3):
    derived = Fraction(spectr_gbv_claim(tree, paths)[1:].sum())
    best = certified_optimum(tree, paths, "block-transport")
    print(f"K = {paths}: derived acceptance {derived}, best coupling of K drafts {best.exact}")

print("two paths, exact laws of the code:")
for name in ("spectr-gbv-published", "spectr-gbv"):
    law = exact_law(name, tree, paths=2)
    verdict = judge(name, [(tree, 2)])
    print(f"  {name}: keeps {law.acceptance_length:.6f}, {verdict.verdict} ({verdict.total_variation:.1e} away)")

longer = PrefixTree.iid(target=["1/3", "2/3"], draft=["2/3", "1/3"], length=2)
kept = exact_law("spectr-gbv", longer, paths=2).acceptance_length
print(f"L = 2: the lossless construction keeps {kept:.12f}; derived {Fraction(spectr_gbv_claim(longer, 2)[1:].sum())}")
