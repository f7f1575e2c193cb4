"""Verifiers of drafted trees, by the exact joint law of drafting and verification."""

from dataclasses import replace
from fractions import Fraction as F

import pytest
import torch

from specbound.proofs_checks.laws.drafted_trees import tree_law
from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.replay import InvalidResult
from specbound.runtime import tree_registry
from specbound.runtime.drafting.dynamic import Dynamic
from specbound.runtime.drafting.shapes import FixedShape
from specbound.runtime.drafting.tree import ROOT, TreeBatch, TreeVerdict, offered
from specbound.runtime.draws import Draws
from specbound.runtime.parts import selected_path
from specbound.runtime.verifiers import tree_rejection, tree_univer
from specbound.runtime.verifiers.tree_match import verify_tree_match
from specbound.runtime.verifiers.tree_rejection import verify_tree_rejection
from specbound.runtime.verifiers.tree_score_race import verify_tree_score_race
from specbound.runtime.verifiers.tree_traversal import verify_tree_traversal
from specbound.runtime.verifiers.tree_univer import verify_tree_univer
from specbound.theory import single_path
from specbound.theory.drafted_trees import Drafts, drafted_optimum
from specbound.theory.prefix_tree import PrefixTree

VERIFIERS = {
    "match": verify_tree_match,
    "rejection": verify_tree_rejection,
    "traversal": verify_tree_traversal,
    "univer": verify_tree_univer,
}
CHOICES = ("iid", "without-replacement", "top", "top-and-sampled")
ZEROS = PrefixTree.markov([[0, 0.5, 0.5], [0.25, 0.75, 0], [1, 0, 0]], [[0.5, 0.5, 0], [0.2, 0.4, 0.4], [0, 0, 1]], 2)
APART = PrefixTree.iid([0.1, 0.1, 0.4, 0.4], [0.3, 0.3, 0.1, 0.3], 1)
ONE_HOT = PrefixTree.iid([0, 1, 0], [0, 0, 1], 2)
SHAPES = [((3, 1), (2,)), ((3, 2), (2, 1)), ((2, 2), (2, 2)), ((4, 1), (3,)), ((2, 3), (1, 2, 1)), ((2, 1), (5,))]


CPU = torch.device("cpu")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def trees(vocab: int, length: int) -> list[PrefixTree]:
    return [PrefixTree.random(vocab, length, seed, 1.0) for seed in (1, 2)]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("verify", VERIFIERS.values(), ids=VERIFIERS)
def test_the_emitted_law_is_the_target_law_however_children_are_chosen(verify, choice):
    cases = [(tree, FixedShape(widths, choice)) for (v, d), widths in SHAPES for tree in trees(v, d)]
    cases += [(tree, FixedShape((2, 1), choice)) for tree in (ZEROS, ONE_HOT)]
    cases += [(PrefixTree.iid([1.0], [1.0], 2), FixedShape((2, 1), choice))]
    for tree, drafter in cases:
        law = tree_law(drafter, verify, tree)
        assert law.total_variation(tree.target_law()) < 1e-12
        assert law.mass == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("verify", VERIFIERS.values(), ids=VERIFIERS)
def test_a_tree_of_given_nodes_is_kept_with_its_target_probability(verify):
    for drafter in (Dynamic(2, 2, 3), Dynamic(2, 3, 5), FixedShape((2, 1), "top")):
        for tree in trees(3, 2):
            law = tree_law(drafter, verify, tree)
            assert law.total_variation(tree.target_law()) < 1e-12
            best = tree_law(drafter, verify_tree_match, tree).acceptance_length
            assert law.acceptance_length == pytest.approx(best, abs=1e-12)


def test_on_a_chain_all_but_rejection_are_block_verification_and_rejection_is_token_verification():
    for tree in trees(3, 2):
        chain = FixedShape((1, 1))
        for verify in (verify_tree_traversal, verify_tree_univer, verify_tree_score_race):
            kept = tree_law(chain, verify, tree).acceptance_length
            assert kept == pytest.approx(float(single_path.optimum(tree).value), abs=1e-12)
        token = exact_law("token", tree).acceptance_length
        assert tree_law(chain, verify_tree_rejection, tree).acceptance_length == pytest.approx(token, abs=1e-12)


def test_independent_children_are_verified_as_the_verifiers_of_paths_do():
    for tree in trees(3, 1):
        drafter = FixedShape((2,), "iid")
        for verify, name in (
            (verify_tree_rejection, "specinfer"),
            (verify_tree_traversal, "traversal"),
            (verify_tree_univer, "univer"),
            (verify_tree_score_race, "score-race"),
        ):
            assert tree_law(drafter, verify, tree).acceptance_length == pytest.approx(
                exact_law(name, tree, 2).acceptance_length, abs=1e-12
            )


def test_two_children_without_replacement_keep_more_than_independent_ones():
    tree = PrefixTree.iid([F(9, 10), F(1, 20), F(1, 20)], [F(1, 3)] * 3, 1)
    kept = [tree_law(FixedShape((2,), choice), verify_tree_rejection, tree).acceptance_length for choice in CHOICES[:2]]
    assert kept[1] == pytest.approx(43 / 60, abs=1e-12)
    assert kept[0] < kept[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entry", tree_registry.entries(), ids=lambda entry: entry.name)
def test_rows_of_fewer_digits_are_verified_as_the_same_rows_with_more(entry, dtype):
    rows = torch.rand(200, 8, 5, generator=seeded()).pow(3)
    target, draft = (part / part.sum(dim=-1, keepdim=True) for part in rows.to(dtype).double().split(4, dim=1))
    grown = {}
    for kind in (dtype, torch.float64):
        exact = draft.to(dtype).to(kind)
        tree = stem(1, 2, 2)(lambda drafted, nodes, exact=exact: exact[:, nodes[0] + 1], Draws(seeded()), 200, CPU)
        batch = TreeBatch(tree, target.to(dtype).to(kind)[:, : tree.shape[1] + 1])
        grown[kind] = entry.verify(batch, Draws(seeded()))
    few, many = grown.values()
    same = (few.node == many.node) & (few.accepted == many.accepted) & (few.token == many.token)
    assert same.double().mean() > 0.98


# ---------------------------------------------------------------------- a stem, then independent paths


def stem(first: int, paths: int, length: int) -> FixedShape:
    return FixedShape((1,) * first + (paths,) + (1,) * (length - first - 1), "iid")


STEMS = [(3, 2, 1, 2), (2, 3, 1, 2), (2, 3, 2, 3)]


def test_the_race_behind_a_stem_is_lossless_and_keeps_more_than_block_verification_of_one_path():
    for vocab, length, first, paths in STEMS:
        for tree in trees(vocab, length)[:1]:
            law = tree_law(stem(first, paths, length), verify_tree_score_race, tree)
            assert law.total_variation(tree.target_law()) < 1e-12
            best = drafted_optimum(tree, Drafts("stem", (first, paths)))
            assert float(single_path.optimum(tree).value) < law.acceptance_length < best.bound + 1e-9
            assert law.acceptance_length > 0.97 * best.value
    for tree in (ZEROS, ONE_HOT):
        law = tree_law(stem(1, 2, 2), verify_tree_score_race, tree)
        assert law.total_variation(tree.target_law()) < 1e-12


def test_without_a_stem_the_race_is_the_score_race_of_paths():
    for tree in trees(2, 2):
        race = tree_law(stem(0, 2, 2), verify_tree_score_race, tree).acceptance_length
        assert race == pytest.approx(exact_law("score-race", tree, 2).acceptance_length, abs=1e-12)


def test_the_race_takes_only_a_stem_and_independent_paths():
    tree, race = trees(2, 2)[0], tree_registry.get("tree-score-race")
    for drafter in (FixedShape((2, 1)), FixedShape((2, 2), "iid"), FixedShape((1, 1), "top"), Dynamic(2, 2, 3)):
        with pytest.raises(ValueError, match="want one stem, then independent paths"):
            tree_law(drafter, verify_tree_score_race, tree)
        with pytest.raises(ValueError, match="'tree-score-race' wants a stem, then independent paths"):
            race.check(drafter)
    for drafter in (FixedShape((1, 1)), stem(0, 2, 2), stem(1, 3, 2)):
        race.check(drafter)


# ---------------------------------------------------------------------- negative controls


def test_a_winner_verified_against_the_law_of_one_draft_is_seen(monkeypatch):
    monkeypatch.setattr(selected_path, "linear_law", lambda table, ratio, target_rows, draft_rows: draft_rows)
    tree = trees(3, 2)[0]
    assert tree_law(stem(1, 2, 2), verify_tree_score_race, tree).total_variation(tree.target_law()) > 1e-3


def test_univer_that_takes_every_child_for_a_given_one_keeps_less_and_one_with_a_wrong_law_is_seen(monkeypatch):
    tree, drafter = trees(3, 1)[0], FixedShape((2,))
    kept = tree_law(drafter, verify_tree_univer, tree).acceptance_length
    monkeypatch.setattr(tree_univer, "offered", lambda batch, node, tried: offered(batch, node, tried) * 0)
    law = tree_law(drafter, verify_tree_univer, tree)
    assert law.total_variation(tree.target_law()) > 1e-3 or law.acceptance_length < kept - 1e-3
    monkeypatch.setattr(tree_univer, "offered", lambda batch, node, tried: offered(batch, node, tried & False))
    assert tree_law(drafter, verify_tree_univer, tree).total_variation(tree.target_law()) > 1e-3


def test_a_sibling_offered_twice_without_replacement_is_seen(monkeypatch):
    monkeypatch.setattr(tree_rejection, "offered", lambda batch, node, tried: offered(batch, node, tried & False))
    law = tree_law(FixedShape((2,)), verify_tree_rejection, APART)
    assert law.total_variation(APART.target_law()) > 1e-3


def test_a_tree_that_hides_how_its_children_were_drawn_is_seen():
    hidden = FixedShape((2,), "iid")

    def drafter(read, draws, requests, device):
        return replace(hidden(read, draws, requests, device), replacement=False)

    assert tree_law(drafter, verify_tree_rejection, APART).total_variation(APART.target_law()) > 1e-3
    assert tree_law(drafter, verify_tree_match, APART).total_variation(APART.target_law()) < 1e-12


def test_verdicts_out_of_range_are_refused():
    def nowhere(batch, draws):
        verdict = verify_tree_match(batch, draws)
        return TreeVerdict(torch.full_like(verdict.node, ROOT), torch.ones_like(verdict.node), verdict.token)

    with pytest.raises(InvalidResult, match="keeps 1 of a path of 0 tokens"):
        tree_law(FixedShape((1,)), nowhere, trees(2, 1)[0])


@pytest.mark.parametrize(
    "change, text",
    [
        ({"tokens": torch.tensor([[3, 0]])}, "tokens lie in 0..3"),
        ({"parent": torch.tensor([[0, -1]])}, "parent names a node"),
        ({"present": torch.tensor([[False, True]]), "parent": torch.tensor([[-1, 0]])}, "whose parent is absent"),
        ({"sampled": torch.tensor([[1, 0]])}, "sampled is torch.int64"),
        ({"draft_probs": torch.full((1, 3, 3), 0.5)}, "sum is 0.5 away"),
        ({"draft_probs": torch.full((3, 3), 0.5)}, "want .B, N.1, V"),
    ],
)
def test_trees_that_are_none_are_refused(change, text):
    uniform = torch.full((1, 3, 3), 1 / 3)

    def drafter(read, draws, requests, device):
        return FixedShape((2,))(lambda tree, nodes: uniform[:, :1].expand(requests, -1, -1), draws, requests, device)

    tree = drafter(None, Draws(torch.Generator().manual_seed(0)), 1, torch.device("cpu"))
    tree.validate()
    with pytest.raises(ValueError, match=text):
        replace(tree, **change).validate()


@pytest.mark.parametrize("widths", [(), (0,), (2, -1), (1.5,)])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match="widths is"):
        FixedShape(widths)


@pytest.mark.parametrize("name", ["length", "beam", "nodes"])
def test_an_impossible_dynamic_tree_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Dynamic(**{"length": 1, "beam": 1, "nodes": 1, name: 0})
