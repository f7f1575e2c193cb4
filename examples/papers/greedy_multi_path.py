"""Greedy Multi-Path Block Verification (arXiv:2602.16961) in one screen: optimum, value, and where it loses tokens.

python examples/papers/greedy_multi_path.py
"""

from specbound import PrefixTree, exact_law
from specbound.theory.known_values import known_values
from specbound.theory.optima import certified_optimum


def values(tree, paths):
    """Closed forms by name, in fractions where they are fractions."""
    return {known.name: known.exact if known.exact is not None else known.value for known in known_values(tree, paths)}


published = PrefixTree.iid(target=["1/3", "2/3"], draft=["2/3", "1/3"], length=2)
best = certified_optimum(published, paths=2)
print(f"two paths, L = 2: optimum {best.exact} (gap {best.gap:.0e}), gbv {values(published, 2)['gbv']}")
law = exact_law("gbv", published, paths=2)
distance = law.total_variation(published.target_law())
print(f"  the runtime's gbv keeps {law.acceptance_length:.12f}, total variation to the target {distance:.0e}")

close = PrefixTree.iid(target=["51/100", "49/100"], draft=["1/2", "1/2"], length=1)
print("target (51/100, 49/100), draft (1/2, 1/2), one token: more paths keep fewer tokens")
for paths in (1, 2, 3):
    found = values(close, paths)
    best = certified_optimum(close, paths)
    print(f"  K = {paths}: gbv {found['gbv']}, score race {found['score-race']:.4f}, optimum {best.value:.6f}")
