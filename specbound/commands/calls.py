"""The part of `specbound solve` that counts target calls: `--tokens N`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbound.theory.many_calls import CallsOptimum
    from specbound.theory.prefix_tree import PrefixTree

SOURCE = "specbound (own)"


def calls_results(tree: PrefixTree, length: int, tokens: int, paths: int, tolerance: float) -> list[dict[str, Any]]:
    """Expected target calls for N tokens, as `results` of the JSON output: verifiers, then the certified fewest.

    One path: `calls-block`, `calls-pooled-fill`, `calls-pooled-young`, `calls-optimum` (that of `pooled`). Several:
    `calls-stateless-optimum` (no carry) and `calls-optimum`, by enumeration of all antichains.
    """
    from specbound.theory import many_calls

    if paths > 1:
        forgetful = many_calls.linear_optimum(tree, length, tokens, paths, stateless=True, tolerance=tolerance)
        best = many_calls.linear_optimum(tree, length, tokens, paths, tolerance=tolerance)
        return [
            _result("calls-stateless-optimum", forgetful, False),
            _result("calls-optimum", best, True),
        ]
    results = []
    for name, policy in many_calls.POLICIES.items():
        calls = many_calls.calls(tree, length, tokens, policy)
        results.append(
            {
                "name": "calls-block" if name == "block" else f"calls-pooled-{name}",
                "value": float(calls),
                "exact": str(calls) if tree.exact else None,
                "bound": float(calls),
                "gap": 0.0,
                "lossless": True,
                "stateful": name != "block",
                "source": "Block Verification, arXiv:2403.10444, Algorithm 2" if name == "block" else SOURCE,
                "seconds": None,
            }
        )
    return [*results, _result("calls-optimum", many_calls.optimum(tree, length, tokens), True)]


def _result(name: str, found: CallsOptimum, stateful: bool) -> dict[str, Any]:
    return {
        "name": name,
        "value": found.value,
        "exact": None if found.exact is None else str(found.exact),
        "bound": found.bound,
        "gap": found.gap,
        "lossless": True,
        "stateful": stateful,
        "source": f"{SOURCE}, certified ({found.solver})",
        "seconds": found.seconds,
    }
