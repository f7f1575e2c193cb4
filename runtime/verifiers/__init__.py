"""Verification algorithms, one file each; importing this package fills the registry."""

from specbound.runtime.verifiers import block, greedy_block, token
from specbound.runtime.verifiers.registry import Verifier, get, names, register, verify

__all__ = ["Verifier", "block", "get", "greedy_block", "names", "register", "token", "verify"]
