"""The optimum of any drafted tree: against enumerated trees, brute force over all verifiers, and published values."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from specbound.proofs_checks.laws.instances import random_tree
from specbound.theory import linear_program as lp
from specbound.theory.best_drafts import best_drafts, drafted_sets
from specbound.theory.drafted_trees import (
    DraftLaw,
    Drafts,
    certificate_from_json,
    certificate_to_json,
    drafted_optimum,
    node_curve,
)
from specbound.theory.feasibility import selected_mass
from specbound.theory.multi_path import coupling, lossless_optimum
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.single_step import by_ratio
from specbound.theory.solution import CertificateError

F = Fraction
CONTRACT = PrefixTree.iid([F(9, 10), F(1, 20), F(1, 20)], [F(1, 3)] * 3, 1)
SPECS = ["iid:2", "without-replacement:2,1", "without-replacement:2,2", "top:2,1", "top-and-sampled:2,2", "stem:1,2"]


# ---------------------------------------------------------------------- the law, by drawing it step by step


def drawn(tree: PrefixTree, spec: str) -> dict[frozenset[int], Fraction]:
    """Law of the set of drafted leaves, by enumerating every draw one token after the other."""
    kind, sizes = Drafts.parse(spec).kind, Drafts.parse(spec).sizes

    def one(node: int) -> Iterator[tuple[tuple[int, ...], Fraction]]:
        children = range(tree.children[node].start, tree.children[node].stop)
        yield from (((child,), tree.draft[child]) for child in children if tree.draft[child] > 0)

    def children_of(node: int, width: int) -> Iterator[tuple[tuple[int, ...], Fraction]]:
        children = [child for child, *_ in (c for c, _ in one(node))]
        ranked = sorted(children, key=lambda child: -tree.draft[child])
        width = min(width, len(children))
        if kind == "top":
            yield tuple(ranked[:width]), F(1)
            return
        if kind == "top-and-sampled":
            rest = ranked[width - 1 :]
            for child in rest:
                yield (*ranked[: width - 1], child), tree.draft[child] / sum(tree.draft[other] for other in rest)
            return
        for order in itertools.permutations(children, width):
            chance, left = F(1), F(1)
            for child in order:
                chance, left = chance * tree.draft[child] / left, left - tree.draft[child]
            yield order, chance

    def below(node: int, depth: int) -> Iterator[tuple[frozenset[int], Fraction]]:
        if depth == tree.length:
            yield frozenset([node - tree.leaves.start]), F(1)
            return
        if kind in ("iid", "stem"):
            stem = 0 if kind == "iid" else sizes[0]
            if depth == stem:
                paths = list(path_ends(node))
                for ends in itertools.product(paths, repeat=sizes[-1]):
                    yield frozenset(end for end, _ in ends), np.prod([chance for _, chance in ends])
                return
            drawings = one(node)
        else:
            drawings = children_of(node, sizes[depth])
        for children, chance in drawings:
            for parts in itertools.product(*(list(below(child, depth + 1)) for child in children)):
                yield frozenset().union(*(leaves for leaves, _ in parts)), chance * np.prod([c for _, c in parts])

    def path_ends(node: int) -> Iterator[tuple[int, Fraction]]:
        if tree.depth[node] == tree.length:
            yield node - tree.leaves.start, F(1)
            return
        for (child,), chance in one(node):
            yield from ((end, chance * further) for end, further in path_ends(child))

    law: dict[frozenset[int], Fraction] = {}
    for leaves, chance in below(0, 0):
        law[leaves] = law.get(leaves, F(0)) + chance
    return law


def instance(seed: int, vocab: int = 3) -> PrefixTree:
    return random_tree("zeros in draft" if seed % 3 == 2 else "independent", vocab, 2, seed)


@pytest.mark.parametrize("spec", SPECS)
def test_the_law_is_that_of_drawing_the_tree_token_by_token(spec):
    for seed in range(3):
        tree = instance(seed)
        law, wanted = DraftLaw(tree, Drafts.parse(spec)), drawn(tree, spec)
        assert sum(wanted.values()) == 1
        reach = law.reach()
        for leaf in range(len(tree.bonus)):
            node = tree.leaves.start + leaf
            assert reach[node] == sum(chance for leaves, chance in wanted.items() if leaf in leaves)
        order = np.random.default_rng(seed).permutation(len(tree.bonus)).tolist()
        first = law.corner(order)
        for leaf in range(len(tree.bonus)):
            before = set(order[: order.index(leaf)])
            assert first[leaf] == sum(
                chance for leaves, chance in wanted.items() if leaf in leaves and not leaves & before
            )


# ---------------------------------------------------------------------- the optimum


def by_selecting_from_each_tree(tree: PrefixTree, law: dict[frozenset[int], Fraction]) -> float:
    """The best block verification over all ways to select a leaf from each drafted set: one LP, no set function."""
    program = lp.Program()
    phi = program.columns(tree.size - 1, 1)
    links: list[dict] = [{column: 1} for column in phi]
    for leaves, chance in law.items():
        chosen = program.columns(len(leaves))
        program.equal(dict.fromkeys(chosen, 1), chance)
        for leaf, column in zip(sorted(leaves), chosen, strict=True):
            node = tree.leaves.start + leaf
            while node > 0:
                links[node - 1][column] = -1
                node = int(tree.parent[node])
    for node, column in enumerate(phi, start=1):
        parent = int(tree.parent[node])
        row = {column: 1} | ({phi[parent - 1]: -tree.target[node]} if parent else {})
        program.limit(row, 0 if parent else tree.target[node])
        program.limit(links[node - 1], 0)
    return program.solve().value


@pytest.mark.parametrize("spec", SPECS)
def test_the_optimum_is_that_of_selecting_from_every_drafted_tree(spec):
    for seed in range(3):
        tree = instance(seed)
        found = drafted_optimum(tree, Drafts.parse(spec))
        assert found.exact is not None
        assert found.value == pytest.approx(by_selecting_from_each_tree(tree, drawn(tree, spec)), abs=1e-9)
        assert sum(found.weights) <= 1
        assert found.bound == found.value


@pytest.mark.parametrize("spec", ["without-replacement:2,1", "top-and-sampled:2,1", "stem:1,2"])
def test_no_verifier_of_drafted_trees_does_better(spec):
    """Brute force over everything a round can do: couplings of trees, kept prefixes and emitted tokens."""
    tree = instance(1, vocab=2)
    law = drawn(tree, spec)
    most = max(map(len, law))
    drafts = np.array([sorted(leaves) + [min(leaves)] * (most - len(leaves)) for leaves in law])
    phi, bound = coupling.coupled(tree.as_float(), drafts, np.array([float(chance) for chance in law.values()]))
    best = drafted_optimum(tree, Drafts.parse(spec)).value
    assert phi[1:].sum() - 1e-8 <= best <= bound + 1e-8
    assert bound - phi[1:].sum() < 1e-6


def test_contract_values():
    found = {spec: drafted_optimum(CONTRACT, Drafts.parse(spec)).exact for spec in ("iid:2", "without-replacement:2")}
    assert found == {"iid:2": F(59, 90), "without-replacement:2": F(23, 30)}


@pytest.mark.parametrize("paths", [2, 3])
def test_independent_paths_have_the_optimum_of_the_other_solver(paths):
    for seed in (1, 2):
        tree = PrefixTree.random(3, 2, seed)
        found = drafted_optimum(tree, Drafts("iid", (paths,)), tolerance=1e-8)
        assert found.value == pytest.approx(lossless_optimum(tree, paths).value, abs=2e-6)
        assert found.exact is None


def test_a_fixed_tree_keeps_what_the_target_walks_through():
    tree = instance(3)
    found = drafted_optimum(tree, Drafts("top", (2, 2)))
    reach = DraftLaw(tree, found.drafts).reach()
    assert set(reach) <= {0, 1}
    assert found.exact == (reach * tree.target_joint)[1:].sum()


def test_the_first_token_in_closed_form_and_never_worse_without_replacement():
    for seed in range(6):
        tree = random_tree("independent", 4, 1, seed)
        p, q = tree.target[1:], tree.draft[1:]
        exact = {}
        for kind in ("iid", "without-replacement"):
            law = DraftLaw(tree, Drafts(kind, (2,)))
            order = by_ratio(p, q)
            covered = [law.corner(order[:size]).sum() for size in range(5)]
            best = 1 + min(f - p[order[:size]].sum() for size, f in enumerate(covered))
            exact[kind] = drafted_optimum(tree, Drafts(kind, (2,))).exact
            assert exact[kind] == best
        assert exact["without-replacement"] >= exact["iid"]


def test_larger_trees_close_to_the_tolerance_or_say_so():
    tree = PrefixTree.random(4, 3, 1)
    found = drafted_optimum(tree, Drafts("without-replacement", (2, 1, 1)), tolerance=1e-4)
    assert found.gap <= 1e-4
    with pytest.raises(CertificateError, match="apart after 1 rounds; give a larger tolerance"):
        drafted_optimum(tree, Drafts("without-replacement", (2, 1, 1)), max_rounds=1)


def test_curves_rise_with_the_nodes():
    tree = PrefixTree.random(3, 2, 4)
    for kind in ("iid", "without-replacement", "top"):
        points = node_curve(tree, kind, 3, 1e-5)
        assert points[0][0] == pytest.approx(2)
        assert points[-1][0] > points[0][0]
        widest = max(points)
        assert widest[1] >= points[0][1] - 1e-5


# ---------------------------------------------------------------------- specs and certificates


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("iid", "drafts is 'iid'; want iid:K"),
        ("beam:3", "drafts is 'beam:3'; want iid:K"),
        ("iid:x", "want whole numbers after the colon"),
        ("iid:²", "want whole numbers after the colon"),
        ("iid:1,2", "want iid:K"),
        ("stem:2", "want stem:L1,K"),
        ("iid:0", "want at least 1"),
        ("top:2,0", "want at least 1"),
        ("stem:1,0", "want at least 1"),
        ("top:1,1,1", "want 2 numbers, one per drafted token"),
        ("stem:2,3", "want a stem shorter than the draft length 2"),
    ],
)
def test_what_is_no_drafting_law_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        drafted_optimum(instance(0), Drafts.parse(spec))


def test_a_certificate_is_proved_again_and_a_corrupted_one_is_refused():
    tree = instance(1)
    found = drafted_optimum(tree, Drafts.parse("without-replacement:2,1"))
    text = certificate_to_json(tree, found)
    assert certificate_from_json(text)[1].exact == found.exact
    data = json.loads(text)
    assert data["value"] == str(found.exact)
    lies = {
        "value": str(found.exact + F(1, 10**12)),
        "bound": str(found.exact - F(1, 10**12)),
        "potential": ["0"] * tree.size,
        "drafts": "without-replacement:2,2",
        "weights": ["1", *["0"] * (len(found.weights) - 1)],
    }
    for name, lie in lies.items():
        with pytest.raises(CertificateError, match="the file claims"):
            certificate_from_json(data | {name: lie})
    for name, lie in {"orders": [[0, 0]], "weights": ["-1"], "drafts": 3, "potential": ["-1"]}.items():
        with pytest.raises(ValueError, match=r"order|weights|drafts|potential"):
            certificate_from_json(data | {name: lie})
    plain = drafted_optimum(tree.as_float(), Drafts.parse("without-replacement:2,1"))
    again = certificate_from_json(certificate_to_json(tree.as_float(), plain))[1]
    assert again.value == pytest.approx(float(found.exact), abs=1e-6)


def test_the_mixture_of_corners_is_the_law_of_the_selected_leaf():
    tree = instance(2)
    found = drafted_optimum(tree, Drafts.parse("top-and-sampled:2,2"))
    law = DraftLaw(tree, found.drafts)
    mixed = sum(weight * law.corner(order) for order, weight in zip(found.orders, found.weights, strict=True))
    assert (mixed == found.kappa).all()
    assert (selected_mass(tree, found.kappa)[1:] >= found.phi[1:]).all()


# ---------------------------------------------------------------------- the best drafting law


def test_a_drafter_that_knows_the_target_draws_from_it_and_keeps_every_node():
    tree = PrefixTree.iid([F(3, 5), F(2, 5)], [F(1, 2), F(1, 2)], 2)
    for nodes in (F(0), F(1, 2), F(1), F(3, 2), F(2), F(6)):
        found = best_drafts([tree], [1], nodes)
        assert found.exact == min(nodes, F(2))
        assert found.nodes <= nodes


def test_no_drafting_law_with_as_many_nodes_beats_the_best_one():
    """Two targets, equally likely; the draft law is their mean.

    One drafted token of law q keeps 1/2 sum_i sum_y min(p_i, q)(y), at best 11/16 (q = 1/8 on the second token).
    """
    rows = ([F(3, 4), F(1, 8), F(1, 8)], [F(1, 8), F(1, 8), F(3, 4)])
    mean = [(a + b) / 2 for a, b in zip(*rows, strict=True)]
    targets = [PrefixTree.iid(row, mean, 1) for row in rows]
    best = {nodes: best_drafts(targets, [F(1, 2), F(1, 2)], nodes) for nodes in (F(0), F(1), F(3, 2), F(5, 3), F(2))}
    for spec in ("iid:1", "iid:2", "without-replacement:2", "top:1", "top:2", "top-and-sampled:2"):
        optima = [drafted_optimum(tree, Drafts.parse(spec)) for tree in targets]
        bound = best_drafts(targets, [F(1, 2), F(1, 2)], optima[0].nodes)
        assert bound.exact >= (optima[0].exact + optima[1].exact) / 2
    assert [best[nodes].exact for nodes in (0, 2)] == [0, 1]
    assert best[F(1)].exact == F(11, 16)
    slopes = [(best[b].exact - best[a].exact) / (b - a) for a, b in itertools.pairwise(best)]
    assert slopes == sorted(slopes, reverse=True)
    assert best[F(1)].price == pytest.approx(float(slopes[1]))


def test_the_sets_of_nodes_are_closed_under_ancestors():
    tree = PrefixTree.iid([F(1, 2), F(1, 2)], [F(1, 2), F(1, 2)], 2)
    sets = drafted_sets(tree)
    assert len(sets) == len({*sets}) == 25
    assert all(tree.parent[node] in (0, *nodes) for nodes in sets for node in nodes)
    with pytest.raises(ValueError, match="more than 3000 trees"):
        drafted_sets(PrefixTree.random(3, 3, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], 1), "weights is"),
        (([CONTRACT], [F(1, 2)], 1), "want a law on the 1 targets"),
        (([CONTRACT, PrefixTree.random(3, 2, 0)], [0.5, 0.5], 1), "different prefixes"),
        (([CONTRACT], [1], -1), "nodes is -1"),
    ],
)
def test_what_the_program_cannot_take_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        best_drafts(*arguments)
