"""The optimum of an instance, by the best route there is for it, with its witnesses.

one path                        closed form, exact on exact trees        `single_path`, `block_transport`
several, a small exact tree     linear program in fractions              `multi_path.exact`
several, any other tree         interior point, certified in float64     `multi_path.solver`
"""

from __future__ import annotations

from . import block_transport, single_path
from .multi_path import lossless_optimum, transport_optimum
from .multi_path.certificates import PathObjective, check_objective
from .multi_path.exact import exact_optimum
from .prefix_tree import PrefixTree
from .solution import Solution, check_paths

MAX_EXACT_NODES = 100


def certified_optimum(
    tree: PrefixTree, paths: int = 1, objective: PathObjective = "lossless", tolerance: float = 1e-6
) -> Solution:
    """The optimum of K = `paths` independent drafts with kappa and potential, exact where the tree is and is small.

    Args:
        objective: "lossless" (stateless lossless verifiers) or "block-transport" (later target laws modified).
        tolerance: largest certified gap where the answer is not exact.
    Raises:
        ValueError: paths, objective or tolerance are out of range.
        CertificateError: the bounds did not meet.
    """
    check_paths(paths)
    check_objective(objective)
    if paths == 1:
        return single_path.optimum(tree) if objective == "lossless" else block_transport.optimum(tree)
    solver = lossless_optimum if objective == "lossless" else transport_optimum
    near = solver(tree, paths, tolerance)
    if not (tree.exact and tree.size <= MAX_EXACT_NODES):
        return near
    return exact_optimum(tree, paths, objective, near) or near
