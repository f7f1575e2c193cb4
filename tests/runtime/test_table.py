"""Verifier tables: the executed table has the law that theory computed for it, on its tree."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from specbound.proofs_checks.laws.judge import Judgement, judge
from specbound.proofs_checks.laws.law import batch_of, exact_law
from specbound.proofs_checks.laws.stream import stream_law
from specbound.runtime.carry import Layers
from specbound.runtime.draws import Draws
from specbound.runtime.verifiers import verify
from specbound.runtime.verifiers.table import table_verifier
from specbound.theory import multi_path
from specbound.theory.contexts import ModelPair
from specbound.theory.multi_path.verifier_table import verifier_table
from specbound.theory.prefix_tree import PrefixTree
from tests.support.strategies import PUBLISHED

TREES = {
    "published": PUBLISHED,
    "V2 L3": PrefixTree.random(2, 3, seed=1),
    "V3 L2": PrefixTree.random(3, 2, seed=2),
    "V4 L1": PrefixTree.random(4, 1, seed=3),
    "ties": PrefixTree.iid([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], 1),
    "zeros": PrefixTree.iid([0.0, 0.5, 0.5], [0.25, 0.5, 0.25], 1),
}


def favoured(tree: PrefixTree, paths: int) -> np.ndarray:
    """Law of the draft with the highest target/draft ratio among K: a selection law at the edge of what K allow."""
    draft, target = (np.asarray(joint, dtype=float)[tree.leaves] for joint in (tree.draft_joint, tree.target_joint))
    order = np.argsort(target / draft, kind="stable")
    law = np.zeros(len(draft))
    law[order] = np.diff(np.concatenate([[0], np.cumsum(draft[order])]) ** paths)
    return law


def table_for(label: str, paths: int, objective: str, even: float = 0.0) -> dict:
    """A table as parsed JSON; the law of its selected path is a mixture, `even` the draft law, the rest favoured."""
    tree = TREES[label]
    law = even * np.asarray(tree.draft_joint, dtype=float)[tree.leaves] + (1 - even) * favoured(tree, paths)
    return json.loads(verifier_table(tree, paths, law, objective).to_json())


@pytest.mark.parametrize("objective", ["lossless", "block-transport"])
@pytest.mark.parametrize("even", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("paths", [1, 2, 3])
@pytest.mark.parametrize("label", TREES)
def test_an_executed_table_emits_the_target_and_keeps_what_it_says(label, paths, even, objective):
    data = table_for(label, paths, objective, even)
    verifier = table_verifier(data)
    law = exact_law(verifier, TREES[label], paths)
    assert abs(law.acceptance_length - data["value"]) < 1e-10
    assert law.stateful == verifier.stateful == (objective == "block-transport")
    if not law.stateful:
        assert law.total_variation(TREES[label].target_law()) < 1e-12


@pytest.mark.parametrize("even", [0.0, 0.5])
@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("label", ["published", "ties", "zeros"])
def test_a_block_transport_table_is_lossless_over_several_calls(label, paths, even):
    """On iid trees, where the table's tree begins anew wherever a block ends."""
    verifier = table_verifier(table_for(label, paths, "block-transport", even))
    assert judge(verifier, [(TREES[label], paths)]) == Judgement("lossless", pytest.approx(0, abs=1e-12))


def test_the_optimum_of_two_paths_is_one_27th_off_after_two_tokens_if_it_does_not_read_its_carry():
    found = multi_path.transport_optimum(PUBLISHED.as_float(), 2)
    table = verifier_table(PUBLISHED, 2, found.kappa, "block-transport")
    verify = table_verifier(json.loads(table.to_json())).verify
    pair = ModelPair.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3])

    def forgetful(batch, draws):
        return verify(replace(batch, carry=None), draws)

    wrong, right = (stream_law(law, pair, 2, 2, 2).total_variation(pair.target_law(2)) for law in (forgetful, verify))
    assert wrong == pytest.approx(1 / 27, abs=1e-12)
    assert right < 1e-12


def test_a_carry_of_another_verifier_or_of_other_requests_is_refused():
    verify = table_verifier(table_for("published", 1, "block-transport")).verify
    batch = batch_of(PUBLISHED.as_float(), np.array([[3], [4]]))
    carry = verify(batch, Draws()).carry
    with pytest.raises(ValueError, match="carry is a Layers; want the carry of this verifier's last verdict"):
        verify(replace(batch, carry=Layers.empty(2, 1, torch.float64, torch.device("cpu"))), Draws())
    with pytest.raises(ValueError, match="the state of 1 requests, the batch has 2"):
        verify(replace(batch, carry=carry.select([0])), Draws())


def test_the_law_of_a_transport_table_is_wrong_without_its_carry():
    verifier = table_verifier(table_for("published", 2, "block-transport"))

    def forgetful(batch, draws):
        verdict = verifier.verify(batch, draws)
        return type(verdict)(verdict.path, verdict.accepted, verdict.token)

    assert exact_law(forgetful, PUBLISHED, 2).total_variation(PUBLISHED.target_law()) > 1e-3


def test_the_check_rejects_a_table_with_scores_swapped():
    data = table_for("V2 L3", 2, "lossless")
    data["scores"][0], data["scores"][1] = data["scores"][1], data["scores"][0]
    law = exact_law(table_verifier(data).verify, TREES["V2 L3"], 2)
    assert law.total_variation(TREES["V2 L3"].target_law()) > 1e-6


def test_the_example_of_one_token_accepts_eight_ninths():
    data = {
        "format": "specbound.verifier-table",
        "version": 1,
        "paths": 2,
        "tree": {"vocab": 2, "length": 1, "parent": [-1, 0, 0], "token": [-1, 0, 1]},
        "scores": [[[1 / 3, 1.0]], [[0.0, 1 / 3]]],
        "stop": [1.0, 0.75, 1.0],
        "correction": [1.0, 0.0, 1.0],
        "later": "target",
    }
    law = exact_law(table_verifier(data).verify, PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 1), 2)
    assert abs(law.acceptance_length - 8 / 9) < 1e-12


def test_a_table_is_read_from_a_file(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table_for("published", 2, "lossless")))
    assert exact_law(table_verifier(path).verify, PUBLISHED, 2).acceptance_length > 1.2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "format 'other'"),
        ({"version": 2}, "version 2"),
        ({"paths": 0}, "paths is 0"),
        ({"later": "never"}, "later is 'never'"),
        ({"tree": 3}, "tree is not an instance"),
        (
            {"tree": {"vocab": 10**8, "length": 1, "parent": [-1, 0], "token": [-1, 0]}},
            "2 nodes and 100000000 tokens; want at most 100000000 entries",
        ),
        ({"stop": [1.0]}, "stop has shape"),
        ({"correction": ["x"] * 7}, "correction has an entry that is not a number"),
        ({"correction": ["1e999999999"] * 7}, r"correction has shape .* or entries outside \[0, 1\]"),
        ({"paths": True}, "paths is True; want an integer in 1..1024"),
        ({"correction": [1.0, 0.5, 0.5, 0.5, 0.4, 0.5, 0.5]}, "correction has siblings that sum to 0.9"),
        ({"stop": 3}, "stop is 3; want a list of 7"),
        ({"stop": [float("nan")] * 7}, "stop has shape"),
        ({"scores": [[[0.5, 0.2]], [], [], []]}, r"scores has the entry \[0.5, 0.2\]"),
        ({"scores": [3, [], [], []]}, "scores has the entry 3"),
        ({"scores": []}, "scores must be a list of 4 entries"),
    ],
)
def test_a_malformed_table_raises_an_error_that_names_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        table_verifier(table_for("published", 2, "lossless") | change)


def test_a_missing_field_or_file_is_named(tmp_path):
    data = table_for("published", 2, "lossless")
    del data["stop"]
    with pytest.raises(ValueError, match="lacks field 'stop'"):
        table_verifier(data)
    with pytest.raises(ValueError, match="cannot be read"):
        table_verifier(tmp_path / "none.json")


def test_the_registered_name_asks_for_a_table():
    batch = batch_of(PUBLISHED.as_float(), np.array([[3, 4]]))
    with pytest.raises(ValueError, match="table_verifier"):
        verify("table", batch, Draws())


def test_a_leaf_whose_scores_are_narrower_than_any_float_division_takes_is_executed():
    tree = PrefixTree.iid([0.5, 0.5], [1e-310, 1 - 1e-310], 1)
    made = verifier_table(tree, 2, np.array([2e-310, 1.0]), "lossless")
    assert made.scores[0] == ((0.0, 1e-310),)
    law = exact_law(table_verifier(json.loads(made.to_json())).verify, tree, 2)
    assert law.total_variation(tree.target_law()) < 1e-12


def test_a_batch_that_does_not_fit_the_table_is_refused():
    verifier = table_verifier(table_for("published", 2, "lossless"))
    tree = PUBLISHED.as_float()
    with pytest.raises(ValueError, match="K = 3; the table was made for K = 2"):
        verifier.verify(batch_of(tree, np.array([[3, 4, 5]])), Draws())


def test_a_draft_outside_the_tree_is_refused():
    data = table_for("published", 1, "lossless")
    for values in (data["tree"]["parent"], data["tree"]["token"], data["stop"], data["correction"]):
        del values[-2]
    for values in (data["scores"], data["tree"]["bonus"]):
        del values[-2]
    batch = batch_of(PUBLISHED.as_float(), np.array([[5]]))
    with pytest.raises(ValueError, match="drafted path that the table's tree does not contain"):
        table_verifier(data).verify(batch, Draws())
