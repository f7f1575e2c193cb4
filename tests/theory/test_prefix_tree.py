"""Prefix trees: every shape survives JSON, structure and laws agree with their definitions, every fault is named."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbound.theory.contexts import ModelPair
from specbound.theory.numbers import parse_number
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import INSTANCES, ragged
from tests.support.strategies import PUBLISHED, trees

SETTINGS = settings(max_examples=40, deadline=None)
ragged_trees = st.builds(ragged, st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4))
all_trees = st.one_of(trees(), ragged_trees)


def same(left: PrefixTree, right: PrefixTree) -> bool:
    arrays = ("parent", "token", "target", "draft", "bonus")
    return (left.vocab, left.length, left.symbols, left.exact) == (
        right.vocab,
        right.length,
        right.symbols,
        right.exact,
    ) and all(np.array_equal(getattr(left, name), getattr(right, name)) for name in arrays)


# ---------------------------------------------------------------------- structure and laws


@SETTINGS
@given(all_trees)
def test_a_tree_survives_json_bit_for_bit(tree):
    assert same(PrefixTree.from_json(tree.to_json()), tree)
    assert same(PrefixTree.from_json(json.loads(tree.to_json())), tree)


@SETTINGS
@given(all_trees)
def test_levels_children_depth_and_prefixes_describe_one_tree(tree):
    assert [node for level in tree.levels for node in range(level.start, level.stop)] == list(range(tree.size))
    assert sorted(node for kids in tree.children for node in range(kids.start, kids.stop)) == list(range(1, tree.size))
    prefixes = [tree.prefix(node) for node in range(tree.size)]
    assert len(set(prefixes)) == tree.size
    for node in range(1, tree.size):
        parent = int(tree.parent[node])
        assert prefixes[node] == (*prefixes[parent], tree.token[node])
        assert tree.depth[node] == len(prefixes[node])
        assert tree.children[parent].start <= node < tree.children[parent].stop
    assert (tree.leaves.start, tree.leaves.stop) == (tree.size - len(tree.bonus), tree.size)


@SETTINGS
@given(all_trees)
def test_joint_laws_are_products_and_every_law_sums_to_one(tree):
    tolerance = 0 if tree.exact else 1e-9
    for conditional, joint in ((tree.target, tree.target_joint), (tree.draft, tree.draft_joint)):
        for node in range(1, tree.size):
            assert joint[node] == conditional[node] * joint[tree.parent[node]]
        sums = tree.child_sums(joint)
        inner = [node for node in range(tree.size) if tree.children[node].start < tree.children[node].stop]
        assert all(abs(sums[node] - joint[node]) <= tolerance for node in inner)
    assert abs(sum(tree.target_law().values()) - 1) <= tolerance
    assert abs(tree.draft_joint[tree.leaves].sum() - 1) <= tolerance


@SETTINGS
@given(all_trees)
def test_rows_put_each_conditional_at_its_token(tree):
    rows = tree.rows(tree.target)
    assert rows.shape == (tree.size, tree.vocab)
    for node in range(1, tree.size):
        assert rows[tree.parent[node], tree.token[node]] == tree.target[node]
    assert (rows > 0).sum() == (tree.target[1:] > 0).sum()


@SETTINGS
@given(trees())
def test_float_and_exact_trees_agree(tree):
    floats = tree.as_float()
    assert tree.exact
    assert not floats.exact
    assert np.abs(floats.target_joint - tree.target_joint.astype(float)).max() < 1e-15


def test_the_target_law_is_that_of_the_next_tokens():
    law = PUBLISHED.target_law()
    third = {0: Fraction(1, 3), 1: Fraction(2, 3)}
    assert law == {b: third[b[0]] * third[b[1]] * third[b[2]] for b in itertools.product((0, 1), repeat=3)}


def test_the_target_law_stops_where_the_tree_stops():
    parent, token = np.array([-1, 0, 0, 1]), np.array([-1, 0, 1, 0])
    tree = PrefixTree(2, 2, parent, token, *map(np.array, ([1, 0.25, 0.75, 1], [1, 1.0, 0, 1], [[0.5, 0.5]])))
    assert tree.target_law() == {(1,): 0.75, (0, 0, 0): 0.125, (0, 0, 1): 0.125}


# ---------------------------------------------------------------------- constructors


def test_a_seed_names_one_instance():
    rng = np.random.default_rng(5)
    rows = [rng.dirichlet([0.3] * 3, size=3**d) for d in (0, 1)] + [rng.dirichlet([0.3] * 3, size=3**d) for d in (0, 1)]
    bonus = rng.dirichlet([0.3] * 3, size=9)
    tree = PrefixTree.random(3, 2, seed=5, concentration=0.3)
    assert np.array_equal(tree.target[1:], np.concatenate([rows[0].ravel(), rows[1].ravel()]))
    assert np.array_equal(tree.draft[1:], np.concatenate([rows[2].ravel(), rows[3].ravel()]))
    assert np.array_equal(tree.bonus, bonus)
    assert not np.array_equal(PrefixTree.random(3, 2, seed=6, concentration=0.3).target, tree.target)


def test_iid_is_markov_with_equal_rows_and_markov_reads_the_last_token():
    rows = [[Fraction(1, 4), Fraction(3, 4)], [Fraction(1, 2), Fraction(1, 2)]]
    assert same(PrefixTree.markov([rows[0]] * 2, [rows[1]] * 2, 3), PrefixTree.iid(rows[0], rows[1], 3))
    tree = PrefixTree.markov(rows, rows, 2, start=1)
    nodes = {tree.prefix(node): node for node in range(tree.size)}
    assert tree.target[nodes[0,]] == Fraction(1, 2)
    assert tree.target[nodes[0, 1]] == Fraction(3, 4)
    assert tree.target[nodes[1, 1]] == Fraction(1, 2)


def test_rows_may_be_written_as_text():
    thirds = PrefixTree.iid([Fraction(1, 3), Fraction(2, 3)], [Fraction(2, 3), Fraction(1, 3)], 2)
    assert same(PrefixTree.iid(["1/3", "2/3"], ["2/3", "1/3"], 2), thirds)
    with pytest.raises(ValueError, match="'a third'"):
        PrefixTree.iid(["a third", "2/3"], ["2/3", "1/3"], 2)


@pytest.mark.parametrize("name", INSTANCES)
def test_instances_of_integers_and_fractions_are_exact(name):
    tree = INSTANCES[name]
    assert tree.exact
    assert all(isinstance(value, Fraction) for value in (*tree.target, *tree.draft, *tree.bonus.ravel()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PrefixTree.iid([1], [1], 0), "length is 0; want an integer of at least 1"),
        (lambda: PrefixTree.iid([], [], 1), r"target\[0\] has 0 entries"),
        (lambda: PrefixTree.iid([1], [0.5, 0.5], 1), "target has 1 entries and draft 2"),
        (lambda: PrefixTree.iid([0.5, 0.4], [0.5, 0.5], 1), r"target\[0\] sums to 0.9; want 1"),
        (lambda: PrefixTree.iid([0.5, 0.5], [1.5, -0.5], 1), r"draft\[0\]\[1\] is -0.5; want a prob"),
        (lambda: PrefixTree.iid([0.5, float("nan")], [0.5, 0.5], 1), r"target\[0\]\[1\] is nan; want a finite"),
        (lambda: PrefixTree.iid([0.5, 0.5], [float("inf"), 0], 1), r"draft\[0\]\[0\] is inf; want a finite"),
        (lambda: PrefixTree.iid([1], [1], 10**6), r"length 1000000 makes prefixes of 1e\+12 tokens in all"),
        (lambda: PrefixTree.iid([0.5, 0.5], [0.5, 0.5], 40), "more than 2e.07( nodes)?; lower vocab or length"),
        (lambda: PrefixTree.markov([[1]], [[1], [1]], 1), "target has 1 rows and draft 2"),
        (lambda: PrefixTree.markov([[1]], [[1]], 1, start=1), "start is 1; want at most 0"),
        (
            lambda: PrefixTree.from_conditionals(lambda w: [1], lambda w: [1], 2, 1),
            "a target row has 1 entries; want 2",
        ),
        (lambda: PrefixTree.random(2, 2, 0, concentration=0), "concentration is 0; want a positive number"),
        (lambda: PrefixTree.random(2, 2, 0, concentration=float("nan")), "concentration is nan"),
        (lambda: PrefixTree.random(10**6, 9, 0), "lower vocab or length"),
    ],
)
def test_constructors_name_the_argument_and_the_fix(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# ---------------------------------------------------------------------- validation of the arrays

GOOD = {
    "vocab": 2,
    "length": 2,
    "parent": [-1, 0, 0, 1, 1, 2, 2],
    "token": [-1, 0, 1, 0, 1, 0, 1],
    "target": [1, 0.5, 0.5, 0.25, 0.75, 0.5, 0.5],
    "draft": [1, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5],
    "bonus": [[0.5, 0.5]] * 4,
}


def build(**changes) -> PrefixTree:
    data = GOOD | changes
    arrays = [np.array(data[name]) for name in ("parent", "token", "target", "draft", "bonus")]
    return PrefixTree(data["vocab"], data["length"], *arrays, changes.get("symbols"))


def changed(name: str, index: int, value) -> dict:
    values = list(GOOD[name])
    values[index] = value
    return {name: values}


def test_the_good_arrays_build():
    assert build().size == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": 0}, "vocab is 0 and length 2; both want at least 1"),
        ({"length": 0}, "vocab is 2 and length 0"),
        ({"token": [-1, 0]}, r"token has shape \(2,\); want \(7,\), one entry per node"),
        ({"target": [[1.0] * 7]}, r"target has shape \(1, 7\)"),
        ({"parent": [float(x) for x in GOOD["parent"]]}, "parent has dtype float64; want integers"),
        ({"symbols": ("a",)}, "symbols has 1 names; want 2, one per token"),
        (changed("parent", 0, 0), "node 0 must be the root"),
        (changed("token", 0, 0), "node 0 must be the root"),
        (changed("parent", 3, -1), r"parent\[3\] is -1; only node 0 is a root"),
        (changed("parent", 3, 5), r"parent\[3\] is 5: a cycle, or nodes out of order"),
        (changed("parent", 3, 3), r"parent\[3\] is 3: a cycle"),
        (changed("parent", 5, 0), r"parent\[5\] is 0, below the one before; list nodes breadth-first"),
        (changed("token", 4, 2), r"token\[4\] is 2; want 0\.\.1"),
        (changed("token", 4, -1), r"token\[4\] is -1; want 0\.\.1"),
        (changed("token", 4, 0), "node 4 repeats token 0 under node 1"),
        ({"length": 1}, "node 3 has depth 2; length is 1"),
        ({"target": [Fraction(1)] * 7}, "draft has dtype float64; target, draft and bonus are all float64 or all obj"),
        (changed("target", 3, float("nan")), r"target has the entry nan \(at 3\); want finite probabilities"),
        (changed("draft", 4, -0.5), r"draft has the negative entry -0.5 \(at 4\)"),
        (changed("target", 0, 0.5), r"target\[0\] is 0.5; the root has probability 1"),
        (changed("target", 4, 0.5), "target sums to 0.75 over the children of node 1; want 1"),
        ({"length": 3}, "node 3 has depth 2 and no children, but drafts reach it; want leaves at depth 3"),
        ({"bonus": [[0.5, 0.5]]}, r"bonus has shape \(1, 2\); want \(4, 2\) = \[leaves, V\]"),
        ({"bonus": [[0.5, 0.5]] * 3 + [[0.5, 0.4]]}, r"bonus\[3\] sums to 0.9; want 1"),
        ({"bonus": [[0.5, 0.5]] * 3 + [[1.5, -0.5]]}, r"bonus has the negative entry -0.5 \(at 7\)"),
    ],
)
def test_faulty_arrays_are_named_with_their_place(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_exact_rows_must_sum_to_one_exactly():
    third = Fraction(333333333333, 10**12)
    with pytest.raises(ValueError, match=r"target\[0\] sums to 999999999999/1000000000000"):
        PrefixTree.iid([third, third, third], [Fraction(1, 3)] * 3, 1)
    PrefixTree.iid([float(third)] * 3, [1 / 3] * 3, 1)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_shorter_look_at_the_same_models_has_their_law(length):
    """Where the long tree ends early the shorter one may have a bonus row to make up, of a prefix no draft reaches."""
    for seed in range(6):
        tree = ragged(seed, vocab=3, length=3)
        short = tree.truncated(length)
        assert short.length == length
        assert short.size == tree.levels[length].stop
        wanted: dict[tuple[int, ...], float] = {}
        for block, probability in tree.target_law().items():
            wanted[block[: length + 1]] = wanted.get(block[: length + 1], 0.0) + probability
        found: dict[tuple[int, ...], float] = {}
        for block, probability in short.target_law().items():
            cut = block if block in wanted else block[:length]
            found[cut] = found.get(cut, 0.0) + probability
        assert found == pytest.approx(wanted)


def test_a_prefix_without_drafts_may_end_early_and_one_with_drafts_may_not():
    arrays = [-1, 0, 0, 1], [-1, 0, 1, 0], [1, 0.5, 0.5, 1]
    tree = PrefixTree(2, 2, *map(np.array, (*arrays, [1, 1.0, 0, 1], [[1.0, 0]])))
    assert tree.size == 4
    with pytest.raises(ValueError, match="node 2 has depth 1 and no children, but drafts reach it"):
        PrefixTree(2, 2, *map(np.array, (*arrays, [1, 0.9, 0.1, 1], [[1.0, 0]])))


# ---------------------------------------------------------------------- JSON

JSON = {"format": "specbound.prefix-tree", "version": 1, **GOOD}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "unknown field 'extra'; known are format, version"),
        ({"format": "tree"}, "format is 'tree'; want 'specbound.prefix-tree'"),
        ({"version": 2}, "version is 2; this release reads version 1"),
        ({"vocab": 2.0}, "vocab is 2.0; want an integer"),
        ({"vocab": True}, "vocab is True; want an integer"),
        ({"vocab": 10**30}, "vocab is 1000000000000000000000000000000; want at most 2147483647"),
        ({"vocab": 10**9, "bonus": None}, "bonus is None; want a list"),
        ({"length": "2"}, "length is '2'; want an integer"),
        ({"parent": 3}, "parent is 3; want a list of integers"),
        ({"parent": [-1, 0.5]}, "parent is 0.5; want an integer"),
        ({"parent": [-1, 0, 10**30, 1, 1, 2, 2]}, "parent is 1000000000000000000000000000000; want a node or a token"),
        ({"token": [None]}, "token is None; want an integer"),
        ({"target": "1"}, "target is '1'; want a list"),
        ({"target": ["a"] * 7}, "target is 'a'; want a number: a decimal such as 0.25 or a fraction 1/4"),
        ({"target": ["1/0"] * 7}, "target is '1/0'; want a number"),
        ({"target": [True] * 7}, "target is True; want a number"),
        ({"bonus": [0.5]}, "bonus must be a list of rows of equal length"),
        ({"bonus": [[0.5, 0.5], [1]]}, "bonus must be a list of rows of equal length"),
        ({"symbols": "ab"}, "symbols is 'ab'; want a list of strings"),
        ({"symbols": [1, 2]}, r"symbols is \[1, 2\]; want a list of strings"),
        ({"parent": []}, "shape|root"),
    ],
)
def test_faulty_json_is_refused_with_the_field_its_value_and_the_fix(changes, message):
    with pytest.raises(ValueError, match=message):
        PrefixTree.from_json(json.dumps(JSON | changes))


@pytest.mark.parametrize("name", [name for name in JSON if name != "bonus"])
def test_every_field_but_bonus_is_required(name):
    data = {key: value for key, value in JSON.items() if key != name}
    with pytest.raises(ValueError, match=f"field '{name}' is missing; want format, version"):
        PrefixTree.from_json(data)


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "is a JSON list; want an object")])
def test_text_that_is_not_an_object_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        PrefixTree.from_json(text)


def test_json_without_bonus_has_uniform_bonus_rows_and_stays_exact():
    data = json.loads(PUBLISHED.to_json())
    del data["bonus"]
    tree = PrefixTree.from_json(data)
    assert tree.exact
    assert (tree.bonus == Fraction(1, 2)).all()


def test_bonus_rows_too_large_to_make_up_are_refused():
    data = json.loads(PUBLISHED.to_json()) | {"vocab": 10**9}
    del data["bonus"]
    with pytest.raises(ValueError, match="vocab is 1000000000: 4 bonus rows of that length are too large"):
        PrefixTree.from_json(data)


def test_one_decimal_makes_the_whole_tree_float():
    data = json.loads(PUBLISHED.to_json())
    data["bonus"][0] = [0.5, 0.5]
    assert not PrefixTree.from_json(data).exact


def test_symbols_survive_json():
    tree = build(symbols=("a", "b"))
    assert PrefixTree.from_json(tree.to_json()).symbols == ("a", "b")


def test_nan_in_json_is_refused():
    with pytest.raises(ValueError, match="target is nan; want a finite number"):
        PrefixTree.from_json(json.dumps(JSON | changed("target", 3, float("nan"))))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1/3", Fraction(1, 3)), ("0.25", Fraction(1, 4)), ("1e-300", Fraction(1, 10**300)), (1, Fraction(1)), (0.5, 0.5)],
)
def test_numbers_are_read_as_people_write_them(text, value):
    assert parse_number(text) == value
    assert type(parse_number(text)) is type(value)


@pytest.mark.parametrize("text", ["", "one", "1/0", "1//2", "nan", "inf", None, True, [1], "1e999999999"])
def test_what_is_not_a_number_is_refused(text):
    with pytest.raises(ValueError, match="is not a number; write a decimal"):
        parse_number(text)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PrefixTree.random(2**63, 2**70, 0), "lower vocab or length"),
        (lambda: PrefixTree.random(2, 2, 1e18), "seed is 1e.18; want an integer"),
        (lambda: PrefixTree.iid([0.5, 0.5], [0.5, 0.5], None), "length is None; want an integer"),
        (lambda: PrefixTree.iid([10**400, 0.5], [0.5, 0.5], 1), "not a number in range"),
        (lambda: PrefixTree.iid([None, 0.5], [0.5, 0.5], 1), r"target\[0\]\[0\] is None; want a number"),
    ],
)
def test_sizes_seeds_and_entries_that_are_no_numbers_are_refused_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_tree_may_be_given_as_lists():
    fields = {name: value for name, value in GOOD.items() if name not in ("vocab", "length")}
    assert same(PrefixTree(2, 2, **fields), build())
    thirds = PrefixTree(2, 1, [-1, 0, 0], [-1, 0, 1], ["1", "1/3", "2/3"], [1, 1, 0], [["1", 0], (0, 1)])
    assert thirds.exact
    assert thirds.target[1] == Fraction(1, 3)
    with pytest.raises(ValueError, match="target is None; want a list"):
        PrefixTree(2, 2, **fields | {"target": None})
    with pytest.raises(ValueError, match="parent has dtype float64; want integers"):
        PrefixTree(2, 2, **fields | {"parent": [-1, 0, 0, 1, 1, 2, 2.5]})


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_unrolled_from_its_own_pair_of_models_is_the_same_tree(seed):
    """Up to the order of siblings, which is that of the tokens."""

    def by_prefix(tree):
        return {tree.prefix(node): (tree.target[node], tree.draft[node]) for node in range(tree.size)}

    tree = ragged(seed, vocab=3, length=3)
    again = PrefixTree.unrolled(ModelPair.from_tree(tree), 3)
    assert by_prefix(again) == by_prefix(tree)
    assert again.target_law() == tree.target_law()
    short = PrefixTree.unrolled(ModelPair.from_tree(tree), 1)
    assert by_prefix(short) == by_prefix(tree.truncated(1))
    with pytest.raises(ValueError, match="drafts reach it"):
        PrefixTree.unrolled(ModelPair.from_tree(tree), 4)
