"""Solve a toy distribution: what every verifier keeps, the certified optimum, and a verifier that attains it.

python examples/solve_toy.py
"""

import json

from specbound import PrefixTree, exact_law
from specbound.runtime.verifiers.table import table_verifier
from specbound.theory.known_values import known_values
from specbound.theory.multi_path.verifier_table import verifier_table
from specbound.theory.optima import certified_optimum

tree = PrefixTree.iid(target=["1/2", "1/3", "1/6"], draft=["1/6", "1/3", "1/2"], length=2)
paths = 2
for known in sorted(known_values(tree, paths), key=lambda known: known.value):
    print(f"{known.name:14} {known.value:.6f}  {known.exact or ''}")
best = certified_optimum(tree, paths)
print(f"{'optimum':14} {best.value:.6f}  {best.exact or ''}  at most {best.bound:.9f} ({best.solver})")

table = verifier_table(tree, paths, best.kappa, best.objective)
law = exact_law(table_verifier(json.loads(table.to_json())).verify, tree, paths)
distance = law.total_variation(tree.target_law())
print(
    f"a verifier made from the solution keeps {law.acceptance_length:.6f}; total variation to the target {distance:.0e}"
)
