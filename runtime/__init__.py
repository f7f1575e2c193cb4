"""Verifiers on batched tensors, and decoding of language models with them."""

from .draws import Draws
from .verdict import Batch, Verdict
from .verifiers import Verifier, get, names, register, verify

__all__ = ["Batch", "Draws", "Verdict", "Verifier", "get", "names", "register", "verify"]
