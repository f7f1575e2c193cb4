"""Hypothesis strategies and instance families that the tests share."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import strategies as st

from specbound.theory.prefix_tree import Prefix, PrefixTree

PUBLISHED = PrefixTree.iid([Fraction(1, 3), Fraction(2, 3)], [Fraction(2, 3), Fraction(1, 3)], 2)


def row(vocab: int, zeros: bool = True) -> st.SearchStrategy[list[Fraction]]:
    """Rows of V small fractions that sum to 1; with zeros and one-hot rows among them."""
    counts = st.lists(st.integers(0 if zeros else 1, 4), min_size=vocab, max_size=vocab)
    return counts.filter(any).map(lambda weights: [Fraction(weight, sum(weights)) for weight in weights])


@st.composite
def trees(draw: st.DrawFn, vocab: int = 3, length: int = 3, same: bool = False) -> PrefixTree:
    """Full rational trees with V up to `vocab` and L up to `length`; `same` makes draft and target equal."""
    v, depth = draw(st.integers(1, vocab)), draw(st.integers(1, length))
    laws: list[dict[Prefix, list[Fraction]]] = [{}, {}]

    def law(which: int, prefix: Prefix) -> list[Fraction]:
        if prefix not in laws[which]:
            laws[which][prefix] = draw(row(v))
        return laws[which][prefix]

    return PrefixTree.from_conditionals(
        lambda prefix: law(0, prefix), lambda prefix: law(0 if same else 1, prefix), v, depth
    )


def edge_trees() -> dict[str, PrefixTree]:
    """Named instances at the edges: disjoint supports, one-hot rows, equal models, V = 1, L = 1, zeros."""
    half, third = Fraction(1, 2), Fraction(1, 3)
    return {
        "published example": PUBLISHED,
        "equal models": PrefixTree.iid([half, half], [half, half], 3),
        "disjoint supports": PrefixTree.iid([0, 1], [1, 0], 2),
        "one-hot draft inside the target": PrefixTree.iid([half, half], [1, 0], 3),
        "one-hot target inside the draft": PrefixTree.iid([1, 0], [third, 2 * third], 3),
        "one token": PrefixTree.iid([1], [1], 3),
        "one position": PrefixTree.iid([half, third, third / 2], [third / 2, third, half], 1),
        "zeros in both": PrefixTree.markov(
            [[0, half, half], [third, 2 * third, 0], [1, 0, 0]],
            [[half, half, 0], [third, third, third], [0, half, half]],
            3,
        ),
        "random": PrefixTree.random(3, 3, seed=7),
        "nearly equal": PrefixTree.iid([0.5, 0.5], [0.5 + 1e-9, 0.5 - 1e-9], 3),
    }
