"""Verification algorithms, one file each; importing this package fills the registry."""

from specbound.runtime.verifiers import block, token
from specbound.runtime.verifiers.registry import Verifier, get, names, register, verify

__all__ = ["Verifier", "block", "get", "names", "register", "token", "verify"]
