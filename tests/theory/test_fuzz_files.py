"""Fuzzing of everything that is read from a file: trees, certificates, verifier tables, stopping problems, prompts."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specbound.commands.decode import read_prompts
from specbound.commands.report import DECODING_FIELDS, FINDING_FIELDS, _read_json
from specbound.proofs_checks.laws.law import exact_law
from specbound.report import decoding_section, page
from specbound.runtime.verifiers.table import table_verifier
from specbound.theory import block_transport, single_path
from specbound.theory.json_objects import parse_json
from specbound.theory.multi_path.certificates import certificate_from_json
from specbound.theory.multi_path.verifier_table import VerifierTable
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError
from specbound.theory.stopping import StoppingInstance, solve_report
from tests.support.fuzzing import almost, attempt, case, fuzz, odd_values, one_of, some_trees
from tests.support.saved_files import CERTIFICATES, STOPPING, TABLES, solved

pytestmark = pytest.mark.fuzz


def checked_tree(tree: PrefixTree) -> None:
    """The invariants of a tree that was accepted."""
    assert abs(float(sum(tree.target_law().values())) - 1) < 1e-6
    assert PrefixTree.from_json(tree.to_json()).to_json() == tree.to_json()
    if tree.size < 200:
        token_free, one_path = block_transport.optimum(tree), single_path.optimum(tree)
        assert 0 <= one_path.value <= one_path.bound + 1e-9 <= token_free.bound + 1e-6
        assert token_free.value <= tree.length + 1e-9


tree_documents = some_trees.map(lambda tree: json.loads(tree.to_json()))


@fuzz(40)
@given(almost(tree_documents))
def test_tree_files_are_read_or_refused(text):
    with case():
        tree = attempt(PrefixTree.from_json, text)
        if tree is not None:
            checked_tree(tree)


certificates, tables = one_of(CERTIFICATES), one_of(TABLES)


@fuzz(40)
@given(almost(certificates))
def test_certificate_files_are_verified_or_refused(text):
    with case():
        try:
            read = attempt(certificate_from_json, text)
        except CertificateError:
            return
        if read is None:
            return
        tree, found = read
        assert found.value <= found.bound + 1e-9 * (1 + tree.length)
        assert -1e-12 <= found.value <= tree.length + 1e-6
        best = solved(tree, found.paths, found.objective)
        assert found.value <= best.bound + 1e-6
        assert found.bound >= best.value - 1e-6


@fuzz(25)
@given(almost(tables))
def test_table_files_give_the_law_they_promise_or_are_refused(text):
    with case():
        table = attempt(VerifierTable.from_json, text)
        if table is None:
            return
        law = exact_law(table_verifier(json.loads(text)).verify, table.tree, table.paths)
        assert abs(law.acceptance_length - table.value) < 1e-6
        if table.objective == "lossless":
            assert law.total_variation(table.tree.target_law()) < 1e-6


@fuzz(25)
@given(almost(tables))
def test_the_runtime_reads_table_files_or_refuses_them(text):
    with case():
        document = attempt(parse_json, "the table", text)
        if not isinstance(document, dict):
            return
        verifier = attempt(table_verifier, document)
        tree = attempt(PrefixTree.from_json, document.get("tree", ""))
        if verifier is None or tree is None:
            return
        law = attempt(exact_law, verifier.verify, tree, document["paths"])
        if law is not None:
            assert abs(law.mass - 1) < 1e-6
            assert abs(sum(law.blocks.values()) - 1) < 1e-6


@fuzz(10)
@given(almost(tables))
def test_the_runtime_reads_table_files_from_disk(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "table.json"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with case():
        attempt(table_verifier, file)


@fuzz(15)
@given(almost(one_of(STOPPING)))
def test_stopping_files_aresolved_or_refused(text):
    with case():
        instance = attempt(StoppingInstance.from_json, text)
        if instance is None or instance.max_length > 12:
            return
        report = solve_report(instance)
        eta = report["eta"]["value"]
        cheapest = 1 / float(instance.target_time)
        assert 0 < eta <= (instance.max_length + 1) * cheapest * (1 + 1e-9)
        for entry in report["constant_lengths"]:
            assert -1e-9 <= entry["eta"]["value"] <= eta * (1 + 1e-9)
        assert math.isfinite(eta)
        json.dumps(report, allow_nan=False)


PROMPTS = st.lists(st.one_of(st.text(max_size=5), st.fixed_dictionaries({"text": odd_values}), odd_values), max_size=4)


@fuzz(40)
@given(
    st.one_of(almost(PROMPTS).map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=40)),
    st.booleans(),
)
def test_prompt_files_are_read_or_refused(tmp_path_factory, data, as_json):
    file = tmp_path_factory.getbasetemp() / ("prompts.json" if as_json else "prompts.txt")
    file.write_bytes(data)
    with case():
        found = attempt(read_prompts, (), str(file))
        assert found is None or found
        assert all(isinstance(prompt, str) and prompt for prompt in found or ())


FINDING = dict.fromkeys(("id", "source", "claim", "tested", "verdict", "evidence"), "holds")
REPORTED = [
    ("findings", {"findings": [FINDING | {"counterexample": None, "recorded": True}], "other": 1}),
    ("decoding", {"decoding": [{"method": "token", "tokens_per_second": 2.5, "speedup": 1, "block_efficiency": 1.5}]}),
    ("decoding", {"decoding": [{"method": "x", "tokens_per_second": 1, "speedup": 1}], "settings": {"top_k": 3}}),
]


@fuzz(15)
@given(st.data())
def test_figures_for_the_report_are_shown_or_refused(tmp_path_factory, data):
    field, document = data.draw(one_of(REPORTED))
    file = tmp_path_factory.getbasetemp() / "figures.json"
    file.write_text(data.draw(almost(st.just(document))), encoding="utf-8")
    wanted = FINDING_FIELDS if field == "findings" else DECODING_FIELDS
    with case():
        read = attempt(_read_json, f"--{field}", str(file), field, wanted)
        if read is not None:
            html = page(read["findings"], []) if field == "findings" else page([], [decoding_section(read)])
            assert html.lower().startswith("<!doctype html>")
