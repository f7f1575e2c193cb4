"""The optimum of an instance, by the best route there is for it, with its witnesses.

one path                        closed form, exact on exact trees        `single_path`, `block_transport`
several, a small exact tree     linear program in fractions              `multi_path.exact`
several, any other tree         interior point, certified in float64     `multi_path.solver`
"""

from __future__ import annotations

from . import block_transport, drafted_trees, single_path
from .drafted_trees import MAX_EXACT_NODES, DraftedOptimum, Drafts, drafted_optimum
from .json_objects import parse_json
from .multi_path import certificates, lossless_optimum, transport_optimum
from .multi_path.certificates import PathObjective, check_objective, verify_certificate
from .prefix_tree import PrefixTree
from .solution import Solution, check_paths


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
    if tree.exact and tree.size <= MAX_EXACT_NODES:
        found = drafted_optimum(tree, Drafts("iid", (paths,)), objective, tolerance)
        if found.exact is not None:
            witnesses = found.kappa, found.potential
            return verify_certificate(tree, paths, *witnesses, objective, solver=found.solver, seconds=found.seconds)
    solver = lossless_optimum if objective == "lossless" else transport_optimum
    return solver(tree, paths, tolerance)


def certificate_from_json(text: str) -> tuple[PrefixTree, Solution | DraftedOptimum]:
    """A certificate of either kind, read and verified (`multi_path.certificates`, `drafted_trees`).

    Raises:
        ValueError: naming the field and the fix.
        CertificateError: the file claims more than its witnesses prove.
    """
    data = parse_json("the certificate", text)
    if isinstance(data, dict) and data.get("format") == drafted_trees.FORMAT:
        return drafted_trees.certificate_from_json(data)
    return certificates.certificate_from_json(data)
