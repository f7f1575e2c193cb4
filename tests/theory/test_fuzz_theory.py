"""Fuzzing of theory's functions on arrays, of exact laws, and of the audit of arbitrary callables."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbound.proofs_checks.audit.foreign.adapters import foreign
from specbound.proofs_checks.audit.report import report_text
from specbound.proofs_checks.audit.run import audit
from specbound.proofs_checks.laws.judge import evidence
from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime import registry
from specbound.runtime.verdict import Verdict
from specbound.theory import block_transport, multi_path, single_path, single_step, token_level
from specbound.theory.contexts import ContextModel
from specbound.theory.joint_decoding import JointSpeculation, committed_per_call
from specbound.theory.known_values import known_values
from specbound.theory.multi_path import antichain, automaton
from specbound.theory.multi_path.certificates import verify_certificate
from specbound.theory.multi_path.verifier_table import verifier_table
from specbound.theory.numbers import parse_number
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError, certify
from tests.support.fuzzing import NUMBERS, TEXTS, attempt, case, fuzz, rows, some_trees

pytestmark = pytest.mark.fuzz

PATHS = st.sampled_from([1, 2, 2, 3, 8, 64, 0, -1, 1.5, None, True, 10**6])
ODD_ENTRIES = [math.nan, math.inf, -math.inf, -1e-3, -1e-320, 5e-324, 0.0, 2.0, 1e300]
OBJECTIVES = st.sampled_from(["lossless", "block-transport", "token", "", None])


@st.composite
def vectors(draw: st.DrawFn, size: int) -> np.ndarray:
    """An array of about that size: a law, zeros, odd entries, another dtype, stride or shape."""
    size = max(0, size + draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1])))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.random(size) ** draw(st.sampled_from([1, 30]))
    values = values / values.sum() if size else values
    values = values * draw(st.sampled_from([1.0, 1.0, 0.5, 3.0]))
    kind = draw(st.sampled_from(["same"] * 5 + ["odd", "object", "int", "matrix", "stride", "complex"]))
    if kind == "odd" and size:
        values[draw(st.integers(0, size - 1))] = draw(st.sampled_from(ODD_ENTRIES))
    elif kind == "object":
        return np.array([Fraction(value) for value in values], dtype=object)
    elif kind == "int":
        return values.astype(int)
    elif kind == "matrix":
        return values[None]
    elif kind == "stride":
        return np.repeat(values, 2)[::2]
    elif kind == "complex":
        return values.astype(complex)
    return values


@fuzz(25)
@given(st.data(), some_trees, PATHS)
def test_certificates_of_any_witness_enclose_the_optimum_or_are_refused(data, tree, paths):
    objective = data.draw(OBJECTIVES)
    kappa, potential = data.draw(vectors(len(tree.bonus))), data.draw(vectors(tree.size))
    with case():
        found = attempt(verify_certificate, tree, paths, kappa, potential, objective)
        if found is not None:
            assert 0 <= found.value <= found.bound + 1e-9
            assert found.value <= tree.length + 1e-9
        table = attempt(verifier_table, tree, paths, kappa, objective)
        if table is not None:
            assert 0 <= table.value <= tree.length + 1e-9
            assert abs(table.kappa.sum() - 1) < 1e-9
        phi = data.draw(vectors(tree.size))
        try:
            solution = attempt(
                certify,
                tree,
                phi,
                data.draw(st.sampled_from([0.5, math.nan])),
                objective=objective,
                paths=1,
                solver="",
                seconds=0.0,
            )
        except CertificateError:
            return
        assert solution is None or 0 <= solution.value <= tree.length + 1e-9


TOLERANCES = st.sampled_from([1e-3, 1e-6, 1e-6, 1.0, 0.0, -1.0, math.nan, math.inf])


@fuzz(12)
@given(some_trees, PATHS, TOLERANCES)
def test_optima_bound_every_verifier_or_the_arguments_are_refused(tree, paths, tolerance):
    with case():
        optima = {}
        for objective, solver in (
            ("lossless", multi_path.lossless_optimum),
            ("block-transport", multi_path.transport_optimum),
        ):
            found = attempt(solver, tree, paths, tolerance)
            if found is None:
                return
            assert -1e-9 <= found.value <= found.bound + 1e-9 <= tree.length + tolerance + 1e-6
            assert found.gap <= tolerance + 1e-9
            optima[objective] = found
        assert optima["lossless"].value <= optima["block-transport"].bound + 1e-9
        if paths == 1:
            assert abs(optima["lossless"].value - single_path.optimum(tree).value) < 1e-9
            assert abs(optima["block-transport"].value - block_transport.optimum(tree).value) < 1e-9
        if paths > 1000:
            return
        for known in known_values(tree, paths):
            best = optima["block-transport" if registry.of_closed_form(known.name).stateful else "lossless"]
            assert known.value <= best.bound + 1e-6, known.name
        assert token_level.optimum(tree).value <= optima["lossless"].bound + 1e-9


@fuzz(8)
@given(some_trees, st.sampled_from([1, 2, 3, 0, None]), st.sampled_from(["lossless", "block-transport", "none"]))
def test_the_antichain_program_agrees_or_refuses(tree, paths, objective):
    if tree.size > 15:
        return
    with case():
        found = attempt(antichain.optimum, tree, paths, objective)
        if found is not None:
            solver = multi_path.lossless_optimum if objective == "lossless" else multi_path.transport_optimum
            assert abs(found.value - solver(tree, paths).value) < 3e-6


@st.composite
def odd_rows(draw: st.DrawFn) -> list:
    row = draw(rows(draw(st.integers(1, 4))))
    if draw(st.integers(0, 3)) == 0:
        row[draw(st.integers(0, len(row) - 1))] = draw(
            st.sampled_from([*ODD_ENTRIES, 10**400, Fraction(1, 3), "x", None])
        )
    return draw(
        st.sampled_from(
            [
                row,
                row,
                row,
                row[1:],
                [],
                [Fraction(value) if isinstance(value, float) and math.isfinite(value) else value for value in row],
            ]
        )
    )


@fuzz(40)
@given(odd_rows(), odd_rows(), PATHS)
def test_single_step_optima_are_in_range_or_refused(target, draft, paths):
    with case():
        found = attempt(single_step.optimum, target, draft, paths)
        if found is not None:
            assert -1e-9 <= found.value <= found.bound <= 1 + 1e-9


LENGTHS = st.sampled_from([1, 2, 3, 0, -1, 1.5, None, True, 10**6, 2**70])


def checked_tree(tree):
    """The target's law sums to 1 (a dictionary: not of millions of blocks)."""
    if tree is not None and tree.size < 10**5:
        assert abs(float(sum(tree.target_law().values())) - 1) < 1e-6


@fuzz(40)
@given(odd_rows(), odd_rows(), LENGTHS)
def test_trees_of_rows_are_built_or_refused(target, draft, length):
    with case():
        checked_tree(attempt(PrefixTree.iid, target, draft, length))
        if length not in (10**6, 2**70):
            checked_tree(attempt(PrefixTree.markov, [target, draft], [draft, target], length))


@fuzz(40)
@given(st.sampled_from([*NUMBERS, 4]), LENGTHS, st.sampled_from([*NUMBERS, 4]), st.sampled_from(NUMBERS))
def test_random_trees_are_built_or_refused(vocab, length, seed, concentration):
    with case():
        checked_tree(attempt(PrefixTree.random, vocab, length, seed, concentration))


@fuzz(60)
@given(st.one_of(st.sampled_from([*NUMBERS, *TEXTS, None, True, []]), st.text(max_size=8), st.floats(), st.integers()))
def test_numbers_are_parsed_or_refused(text):
    with case(2.0):
        attempt(parse_number, text)


@fuzz(10)
@given(odd_rows(), odd_rows(), LENGTHS, PATHS, st.sampled_from(["lossless", "block-transport", "x"]))
def test_bounds_on_long_drafts_enclose_or_refuse(target, draft, length, paths, objective):
    if isinstance(length, int) and length > 100:
        return
    with case():
        try:
            found = attempt(automaton.iid_bounds, target, draft, length, paths, objective)
        except CertificateError:
            return
        if found is not None:
            assert -1e-9 <= found.value <= found.bound + 1e-9
            assert found.value <= length + 1e-9


@fuzz(12)
@given(st.data())
def test_joint_speculation_commits_at_least_one_token_or_is_refused(data):
    vocab = data.draw(st.integers(1, 3))
    matrices = [[data.draw(rows(vocab)) for _ in range(vocab)] for _ in range(2)]
    if data.draw(st.integers(0, 3)) == 0:
        matrices[0][0] = data.draw(odd_rows())
    with case():
        target, draft = (attempt(ContextModel.markov, matrix) for matrix in matrices)
        if target is None or draft is None:
            return
        block = data.draw(st.sampled_from([1, 2, 3, 0, -1]))
        settings = attempt(
            JointSpeculation, target, draft, block, 2, data.draw(st.sampled_from([0.0, 0.3, 1.0, -1, math.nan]))
        )
        if settings is not None:
            found = attempt(committed_per_call, settings, data.draw(st.sampled_from(["greedy", "sampling", "x"])))
            assert found is None or 1 - 1e-9 <= found <= block + 1 + 1e-9


@fuzz(12)
@given(some_trees, st.sampled_from(registry.names()), st.sampled_from([1, 1, 2, 3, 0, -1, 64]))
def test_exact_laws_sum_to_one_or_are_refused(tree, name, paths):
    if tree.size > 20 and paths > 1:
        return
    entry = registry.get(name)
    if entry.paths == "single":
        paths = 1
    with case(60.0):
        law = attempt(exact_law, name, tree, paths)
        if law is None:
            return
        assert abs(law.mass - 1) < 1e-9
        assert abs(sum(law.blocks.values()) - 1) < 1e-9
        assert all(-1e-12 <= kept <= 1 + 1e-9 for kept in law.kept.values())
        assert 0 <= law.acceptance_length <= tree.length + 1e-9
        if law.stateful and len(tree.bonus) ** paths > 9:
            return
        distance = evidence(name, tree, paths).total_variation
        assert -1e-12 <= distance <= 1 + 1e-9
        if entry.lossless:
            assert distance < 1e-6, name
            best = block_transport.optimum(tree) if entry.stateful else single_path.optimum(tree)
            assert paths > 1 or law.acceptance_length <= best.bound + 1e-6
        if name == "block":
            assert abs(law.acceptance_length - single_path.optimum(tree).value) < 1e-6


# ---------------------------------------------------------------------- the audit


class Unprintable:
    def __repr__(self) -> str:
        raise KeyError("no repr")


class Hostile(Exception):
    def __str__(self) -> str:
        raise KeyError("no message")


RESULTS = [None, 3, -1, "x", b"", [], [0], [0, 1], [9], [-1], [0.5], [math.nan], (0,), (0, 1), (5, 0), ([0], 1), {}]
RESULTS += [object(), [None], ["0"], [[0]], 10**400, [10**400], (10**400, 0), [True], np.array(0), np.array([0, -1])]
RESULTS += [np.array([[0.5]]), torch.tensor([0]), torch.tensor(1), torch.zeros(2, 3), torch.tensor([math.nan])]
RESULTS += [torch.zeros(1, device="meta"), range(10**9), iter([0]), lambda: 0, Verdict(None, None, None)]
RESULTS += [Verdict(*[torch.zeros(1, dtype=torch.int64)] * 3), Verdict(*[torch.zeros(1)] * 3), Unprintable()]
ERRORS = [ValueError, KeyError, RecursionError, StopIteration, MemoryError, AssertionError, Hostile, OSError, Warning]


def nested(depth: int) -> int:
    return nested(depth + 1)


ACTIONS = [
    lambda: random.random(),
    lambda: np.random.rand(),  # noqa: NPY002 - what foreign code does
    lambda: torch.rand(1).item(),
    lambda: random.choice([]),
    lambda: nested(0),
    lambda: np.zeros(10**15),
    lambda: random.seed(1),
    lambda: torch.manual_seed(1),
    lambda: 1 / 0,
    lambda: random.random() < 0.5 and random.random() < 0.5,
    lambda: bool(torch.rand(()) < 2),
    lambda: math.log(random.random()),
]


@fuzz(8)
@given(st.data())
def test_the_audit_of_any_callable_ends_in_a_verdict(data):
    result = data.draw(st.integers(0, len(RESULTS) - 1).map(lambda number: RESULTS[number]))
    error = data.draw(st.sampled_from([None, None, *ERRORS]))
    actions = data.draw(st.lists(st.integers(0, len(ACTIONS) - 1), max_size=2))

    def run() -> object:
        for number in actions:
            ACTIONS[number]()
        if error is not None:
            raise error("words")
        return result

    def tensor_verifier(batch, draws):
        return run()

    def scalar_verifier(tokens, draft_probs, target_probs):
        return run()

    target = data.draw(st.sampled_from([tensor_verifier, scalar_verifier, foreign(scalar_verifier, kind="list")]))
    resolution = data.draw(st.sampled_from([None, None, None, 0.9]))
    sizes = {"vocab": range(1, 3), "length": range(1, 2), "paths": range(1, 2), "cases": 2}
    with case():
        report = attempt(audit, target, **sizes, resolution=resolution, false_alarm=0.5, miss=0.5)
        if report is not None:
            assert report.verdict in ("lossless", "not rejected", "not lossless", "broken", "undecided")
            assert report.exit_code in (0, 1, 2)
            assert 0 <= report.largest_total_variation <= 1
            assert report_text(report).plain
            report.to_dict()


ODD_SIZES = [range(2, 3), range(1, 3), range(2, 4), range(0), range(-1, 1), range(3, 1), range(0, 3), range(1, 10**12)]
AUDIT_SETTINGS = {
    "vocab": ODD_SIZES,
    "length": ODD_SIZES,
    "paths": ODD_SIZES,
    "cases": [None, 1, 5, 0, -1, 1.5, math.nan, "3", True],
    "seed": [0, 7, 2**70, -1, 1.5, None, "x"],
    "tolerance": [1e-9, 0.5, 0.0, -1.0, math.nan, math.inf, None],
    "resolution": [None, 0.7, 1e-9, 0.0, 1.0, -1, math.nan, "0.1"],
    "false_alarm": [0.5, 1e-9, 0.0, 2, math.nan],
    "miss": [0.5, 1e-6, 0.0, 1.0, math.nan],
    "device": ["cpu", "meta", "cuda", "tpu", "", 3],
    "seconds": [60.0, 0.0, -1.0, math.nan, math.inf, None],
    "memory": [4096, 64, 0, -5, None, 1.5],
}


@fuzz(8, slow=4)
@given(st.sampled_from(["token", "block", "gbv", "none", "", ":", "a:b", None, 3]), st.data())
def test_the_audit_takes_its_settings_or_refuses_them(target, data):
    sizes = {"vocab": range(2, 3), "length": range(1, 2), "cases": 3}
    chosen = sizes | {
        name: data.draw(st.sampled_from(values))
        for name, values in AUDIT_SETTINGS.items()
        if data.draw(st.integers(0, 4)) == 0
    }
    with case():
        report = attempt(audit, target, **chosen)
        if report is not None:
            assert report.verdict in ("lossless", "not rejected")
            assert report_text(report).plain


def test_the_fuzz_rejects_a_verifier_that_is_not_lossless():
    """The invariant of the exact laws is not empty: a verifier declared lossless that is not would be found."""
    law = exact_law("naive", PrefixTree.iid([0.25, 0.75], [0.75, 0.25], 2), 2)
    assert law.total_variation(PrefixTree.iid([0.25, 0.75], [0.75, 0.25], 2).target_law()) < 1e-9
    lossy = exact_law("spectr-gbv-published", PrefixTree.iid([0.25, 0.75], [0.75, 0.25], 1), 2)
    with pytest.raises(AssertionError):
        assert lossy.total_variation(PrefixTree.iid([0.25, 0.75], [0.75, 0.25], 1).target_law()) < 1e-6
