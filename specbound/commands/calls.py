"""The part of `specbound solve` that counts target calls: `--tokens N`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specbound.commands.instance import read_instance

if TYPE_CHECKING:
    from specbound.theory.many_calls import CallsOptimum
    from specbound.theory.prefix_tree import PrefixTree

SOURCE = "specbound (own)"


def stream_tree(options: dict[str, Any], tree: PrefixTree, tokens: int) -> PrefixTree:
    """Both models N - 1 tokens deep: an iid instance looked at deeper, any other as it is.

    Raises:
        ValueError: the instance is not that deep.
    """
    if options["target"] is not None:
        return read_instance(**(options | {"length": max(1, tokens - 1)}))[1]
    if tokens > tree.length + 1:
        raise ValueError(
            f"--tokens is {tokens}, but the instance is {tree.length} tokens deep; want at most {tree.length + 1}, or "
            "an iid instance (--target, --draft)"
        )
    return tree


def calls_results(tree: PrefixTree, length: int, tokens: int, paths: int) -> list[dict[str, Any]]:
    """Expected target calls for N tokens, as `results` of the JSON output: verifiers, then the certified fewest.

    One path: `calls-block`, `calls-pooled-fill`, `calls-pooled-young` and `calls-optimum`, which is that of `pooled`.
    Several: `calls-stateless-optimum` (no carry) and `calls-optimum`, from the program with every antichain.
    """
    from specbound.runtime.verifiers import get
    from specbound.theory import many_calls

    if paths > 1:
        found = {
            stateless: many_calls.linear_optimum(tree, length, tokens, paths, stateless) for stateless in (True, False)
        }
        return [_result("calls-stateless-optimum", found[True], False), _result("calls-optimum", found[False], True)]
    results = []
    for name, policy in many_calls.POLICIES.items():
        verifier = get("block" if name == "block" else f"pooled-{name}")
        calls = many_calls.calls(tree, length, tokens, policy)
        results.append(
            {
                "name": f"calls-{verifier.name}",
                "value": float(calls),
                "exact": str(calls) if tree.exact else None,
                "bound": float(calls),
                "gap": 0.0,
                "lossless": verifier.lossless,
                "stateful": verifier.stateful,
                "source": verifier.source,
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
