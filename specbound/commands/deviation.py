"""How far a lossy verifier is from the target's law, measured exactly where a text's contexts can be solved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from specbound.runtime.models import Pair
    from specbound.runtime.verifiers import Verifier

CONTEXTS, LONGEST, MOST_TOKENS = 3, 3, 4


def measured_deviation(
    pair: Pair, entry: Verifier, sequence: Tensor, prompt: int, length: int, top_k: int, temperature: float
) -> dict[str, Any]:
    """Exact laws of one call at up to three places of a text, with at most three drafted tokens and top-k at most 4.

    Args:
        sequence [T] int64: the text; prompt: where the generated part begins.
        length, top_k, temperature: of the run; top_k 0 keeps all tokens.
    Returns:
        the contexts solved, the L and top-k they were solved with, deviation (mean and largest total variation of a
        call's law to the target's), tokens kept and the best possible at that deviation (means).
    """
    from specbound.proofs_checks.laws.model_trees import from_models
    from specbound.proofs_checks.laws.wasted import lossy_points

    places = sorted({prompt + step * (len(sequence) - prompt) // CONTEXTS for step in range(CONTEXTS)})
    settings: dict[str, Any] = {"length": min(length, LONGEST), "top_k": min(top_k or MOST_TOKENS, MOST_TOKENS)}
    points = []
    for place in places:
        tree = from_models(pair.target, pair.draft, sequence[:place], **settings, temperature=temperature)
        points += lossy_points(tree, [entry])
    means = {
        name: sum(getattr(point, name) for point in points) / len(points) for name in ("deviation", "kept", "best")
    }
    return {"contexts": len(points), **settings, **means, "largest": max(point.deviation for point in points)}


def deviation_line(found: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"deviation of a call's law {found['deviation']:.4f} (largest {found['largest']:.4f}), exact at "
        f"{found['contexts']} contexts with L = {found['length']} and top-k {found['top_k']}: keeps "
        f"{found['kept']:.3f}, the best at that deviation {found['best']:.3f}"
    )
