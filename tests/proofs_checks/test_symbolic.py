"""The symbolic proofs go through, and fail for a formula with a piece missing."""

from __future__ import annotations

import pytest
import sympy

from specbound.proofs_checks.claims import symbolic


@pytest.mark.parametrize("length, cases", [(1, 4), (2, 64)])
def test_block_verification_is_optimal_in_every_case(length, cases):
    proof = symbolic.block_verification_is_optimal(length)
    assert proof.holds
    assert proof.cases == cases


@pytest.mark.parametrize("length, cases", [(1, 2), (2, 12)])
def test_block_verification_is_lossless_in_every_case(length, cases):
    proof = symbolic.block_verification_is_lossless(length)
    assert proof.holds
    assert proof.cases == cases


def test_a_node_whose_ratio_is_not_the_kept_mass_fails_the_identities():
    """Token verification's habit of starting afresh (c = 1 after an accepted token) breaks the stream law."""
    p, q = sympy.symbols("p q", positive=True)
    target = {(0,): p, (1,): 1 - p, (0, 0): p, (0, 1): 1 - p}
    draft = {(0,): q, (1,): 1 - q, (0, 0): q, (0, 1): 1 - q}
    binds = {(0,): False, (1,): True, (0, 0): True, (0, 1): False}
    ratio = {(): sympy.Integer(1), (0,): p / q, (1,): sympy.Integer(1), (0, 0): sympy.Integer(1)}
    ratio[0, 1] = ratio[0,] * (1 - p) / (1 - q)
    assert symbolic._node_is_lossless((0,), ratio, target, draft, binds)
    broken = ratio | {(0,): sympy.Integer(1)}
    assert not symbolic._node_is_lossless((0,), broken, target, draft, binds)


def test_a_proof_of_nothing_does_not_hold():
    assert not symbolic.Proof(cases=0, failed=0).holds
