"""Verification algorithms, one file each; importing this package fills the registry."""

from specbound.runtime.verifiers import (
    block,
    gbv,
    greedy_block,
    key_race,
    kseq,
    mjsd,
    naive,
    single_step_optimal,
    specinfer,
    spectr_gbv,
    spectr_gbv_published,
    table,
    token,
    traversal,
    two_level,
)
from specbound.runtime.verifiers.registry import Verifier, get, names, register, verify

__all__ = [
    "Verifier",
    "block",
    "gbv",
    "get",
    "greedy_block",
    "key_race",
    "kseq",
    "mjsd",
    "naive",
    "names",
    "register",
    "single_step_optimal",
    "specinfer",
    "spectr_gbv",
    "spectr_gbv_published",
    "table",
    "token",
    "traversal",
    "two_level",
    "verify",
]
