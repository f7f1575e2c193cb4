"""Rounding is told from bias: by the bound of the number format, and by asking again in float64."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.foreign.adapters import enumerated
from specbound.proofs_checks.audit.foreign.conventions import subject
from specbound.proofs_checks.audit.foreign.formats import BITS, DTYPES, representable, representable_row, rounding
from specbound.theory.prefix_tree import PrefixTree
from tests.support import stand_ins

SMALL = {"vocab": range(2, 4), "length": range(1, 2), "paths": range(1, 2), "cases": 4}
CHAIN = {**SMALL, "convention": "flashinfer-chain"}


def port(tokens, draft, target, by=0.0):
    """Token verification with a ratio in the rows' format; wrong if the ratio is too large by a share of it."""
    for i, x in enumerate(tokens.tolist()):
        if torch.rand(()) > target[i, x] / draft[i, x] * (1 + by):
            rest = (target[i] - draft[i]).clamp_min(0)
            return [*tokens[:i].tolist(), stand_ins.picked(rest / rest.sum(), torch.rand)]
    return [*tokens.tolist(), stand_ins.picked(target[len(tokens)], torch.rand)]


def only_in_float32(by=0.0, **given):
    if given["target_probs"].dtype != torch.float32:
        raise TypeError("want float32")
    return stand_ins.flash(verify=partial(port, by=by), **given)


def test_a_port_to_float32_is_lossless_and_what_it_is_off_is_called_rounding():
    report = audit(partial(stand_ins.flash, verify=port), **CHAIN)
    assert report.verdict == "lossless", report_text(report).plain
    assert "With rows in float32 its law is up to" in report.limits
    assert ": rounding." in report.limits
    assert report.tolerance == rounding(3, 1, torch.float32)


@pytest.mark.parametrize("by", [1e-4, 1e-5, 1e-6])
def test_a_bias_in_float32_is_found_below_what_rounding_could_explain(by):
    report = audit(partial(stand_ins.flash, verify=partial(port, by=by)), **CHAIN)
    assert report.verdict == "not lossless", report_text(report).plain
    assert "a bias, no rounding" in report.limits
    assert by / 100 < report.largest_total_variation < by


@pytest.mark.parametrize("by, verdict", [(0.0, "lossless"), (1e-5, "not lossless")])
def test_code_that_does_not_run_in_float64_is_judged_by_the_bound(by, verdict):
    report = audit(partial(only_in_float32, by=by), **CHAIN)
    assert report.verdict == verdict, report_text(report).plain
    assert "It does not run with rows in float64 (TypeError: want float32" in report.limits


@pytest.mark.parametrize("by, verdict", [(0.0, "lossless"), (0.01, "not lossless")])
def test_half_precision_is_told_from_bias(by, verdict):
    report = audit(partial(stand_ins.flash, verify=partial(port, by=by)), **CHAIN, dtype="bfloat16")
    assert report.verdict == verdict, report_text(report).plain


def test_a_cause_is_found_behind_rounding():
    report = audit(partial(stand_ins.flash, verify=stand_ins.target_as_residual), **CHAIN)
    assert report.causes == ("the correction is drawn from the target row, not from max(0, p - q)",)
    assert report.counterexample.emitted == Fraction(3, 4)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("logits", [False, True])
def test_rows_that_are_handed_over_are_those_that_the_law_is_compared_with(name, logits):
    """What the format makes of a row, read back and normalised, is the row; done twice it is the same."""
    dtype = DTYPES[name]
    tree = PrefixTree.random(3, 2, seed=4)
    row_of = partial(representable_row, dtype=dtype, logits=logits)
    once = representable(tree, row_of)
    rows = once.rows(once.target)[:4]
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-15)
    given = torch.from_numpy(np.log(rows / rows.max(axis=1, keepdims=True)) if logits else rows).to(dtype).double()
    back = given.softmax(-1) if logits else given
    np.testing.assert_allclose(back.numpy(), rows, rtol=1e-14)
    twice = representable(once, row_of)
    np.testing.assert_allclose(twice.target, once.target, rtol=1e-14)
    assert abs(once.target - tree.target).max() < 16 * 2.0 ** -BITS[dtype]


def test_rows_on_a_grid_keep_their_zeros_and_sum_to_one():
    tree = PrefixTree.iid([Fraction(1, 10**6), Fraction(999_999, 10**6), 0], [Fraction(1, 3)] * 3, 1)
    for name in ("float32", "bfloat16"):
        rows = representable(tree, partial(representable_row, dtype=DTYPES[name], logits=False))
        assert rows.target[1:4].sum() == rows.draft[1:4].sum() == 1
        assert rows.target[3] == 0


def test_the_bound_is_no_vacuous_one():
    """A port to float32 comes within a factor of 500 of it, and its law in float64 is 1e-7 times nearer."""
    code = partial(stand_ins.flash, verify=port)
    tree = PrefixTree.random(3, 2, seed=1)
    single = enumerated(subject(code, "flashinfer-chain"), tree)
    double = enumerated(subject(code, "flashinfer-chain", "float64"), tree)
    off = single.law.total_variation(single.wanted)
    assert single.resolution / 500 < off < single.resolution
    assert double.law.total_variation(double.wanted) < 1e-7 * off
