"""specbound: ground truth for speculative-decoding verification, and a fast runtime beside it.

The names below are loaded when first used, so that `import specbound` stays light:

    PrefixTree      two models on a tree of prefixes, small enough to solve exactly
    exact_law       the exact law of a verifier, by running it through every random outcome
    from_models     the prefix tree of two real models at a real context
    verify          run a registered verifier on a batch of tensors
    Batch, Draws, Verdict   what a verifier reads, asks and returns
    generate, load_pair     decode a language model with a draft model
    speculative     the same as `target.generate(..., custom_generate=speculative(draft))`
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbound.proofs_checks.laws.law import exact_law as exact_law
    from specbound.proofs_checks.laws.model_trees import from_models as from_models
    from specbound.runtime.decode import generate as generate
    from specbound.runtime.decode import speculative as speculative
    from specbound.runtime.draws import Draws as Draws
    from specbound.runtime.models import load_pair as load_pair
    from specbound.runtime.verdict import Batch as Batch
    from specbound.runtime.verdict import Verdict as Verdict
    from specbound.runtime.verifiers import verify as verify
    from specbound.theory.prefix_tree import PrefixTree as PrefixTree

__version__ = "0.1.0"

_HOMES = {
    "PrefixTree": "specbound.theory.prefix_tree",
    "exact_law": "specbound.proofs_checks.laws.law",
    "from_models": "specbound.proofs_checks.laws.model_trees",
    "verify": "specbound.runtime.verifiers",
    "Batch": "specbound.runtime.verdict",
    "Verdict": "specbound.runtime.verdict",
    "Draws": "specbound.runtime.draws",
    "generate": "specbound.runtime.decode",
    "speculative": "specbound.runtime.decode",
    "load_pair": "specbound.runtime.models",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'specbound' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
