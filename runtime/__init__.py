"""Verifiers on batched tensors, and decoding of language models with them."""

from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers import Verifier, get, names, register, verify

__all__ = ["Batch", "Draws", "Verdict", "Verifier", "get", "names", "register", "verify"]
