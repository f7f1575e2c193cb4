"""The score race on tensors: exact laws, theory's value, rows seen at knots, and the law of its scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.races import score_race_law
from specbound.runtime.draws import Draws
from specbound.runtime.parts import ratio_knots
from specbound.runtime.parts.score_law import ScoreLaw
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get, many_level, score_race
from specbound.theory import score_race as theory
from specbound.theory import single_path
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import DEGENERATE, INSTANCES, ragged

RULES = ("two-part", "best-set", "safe", "two-part-reserved", "best-set-reserved")
TREES = {
    **DEGENERATE,
    **INSTANCES,
    "three tokens": PrefixTree.random(3, 2, 4),
    "one token deep": PrefixTree.random(6, 1, 5, 0.3),
    "ragged": ragged(3, 3, 2),
    "alone": PrefixTree.iid([1.0], [1.0], 2),
}


def enumerable(tree: PrefixTree, paths: int) -> bool:
    return int((tree.as_float().draft_joint[tree.leaves] > 0).sum()) ** paths <= 100


@pytest.mark.parametrize("name", TREES)
def test_it_is_lossless_and_keeps_what_theory_says(name):
    tree = TREES[name]
    place = list(TREES).index(name)
    for rule, paths in (("safe", 2), ("safe", (1, 3)[place % 2]), (RULES[place % 5], 2 + place % 2)):
        if enumerable(tree, paths):
            law = exact_law(score_race.score_race(rule), tree, paths)
            assert law.total_variation(tree.target_law()) < 1e-12
            assert abs(law.acceptance_length - theory.acceptance(tree, paths, rule)[1:].sum()) < 1e-11


@pytest.mark.usefixtures("arrays")
@pytest.mark.parametrize("rule", RULES)
def test_the_arrays_are_lossless_and_keep_what_theory_says(rule):
    """The loops run everywhere else."""
    for name in ("three tokens", "alone", next(iter(INSTANCES))):
        law = exact_law(score_race.score_race(rule), TREES[name], 2)
        assert law.total_variation(TREES[name].target_law()) < 1e-12
        assert abs(law.acceptance_length - theory.acceptance(TREES[name], 2, rule)[1:].sum()) < 1e-11


def test_many_paths_over_few_drafts_are_lossless():
    tree = PrefixTree.iid([0.3, 0.7], [0.6, 0.4], 1)
    law = exact_law("score-race", tree, 6)
    assert law.total_variation(tree.target_law()) < 1e-12
    assert law.acceptance_length == pytest.approx(theory.acceptance(tree, 6)[1:].sum(), abs=1e-11)


def test_the_registered_names_are_these_rules():
    tree = TREES["three tokens"]
    for name, rule in (("score-race", "safe"), ("score-race-2", "two-part")):
        kept = exact_law(name, tree, 2).acceptance_length
        assert kept == pytest.approx(theory.acceptance(tree, 2, rule)[1:].sum(), abs=1e-12)
    reserved = get("score-race").configured(rule="best-set-reserved")
    kept = exact_law(reserved, tree, 2).acceptance_length
    assert kept == pytest.approx(theory.acceptance(tree, 2, "best-set-reserved")[1:].sum(), abs=1e-12)
    with pytest.raises(ValueError, match="rule is 'fast'; want one of two-part"):
        get("score-race").configured(rule="fast")


@pytest.mark.usefixtures("host")
def test_a_race_whose_scores_are_all_uniform_is_not_lossless_against_the_law_of_unequal_ones(monkeypatch):
    race = score_race.race

    def uniform(knots, ratio, paths, *rest):
        return ScoreLaw.uniform(len(ratio), paths), race(knots, ratio, paths, *rest)[1]

    monkeypatch.setattr(score_race, "race", uniform)
    law = exact_law("score-race", TREES["three tokens"], 2)
    assert law.total_variation(TREES["three tokens"].target_law()) > 1e-3


@pytest.fixture
def few_knots(monkeypatch, host):
    """Every row is read at the fixed knots, however few tokens it has."""
    monkeypatch.setattr(ratio_knots, "MOST", 0)


@pytest.mark.parametrize("paths", [1, 2])
def test_many_level_on_the_steps_between_knots_is_as_lossless_and_keeps_as_much(monkeypatch, paths):
    """Three tokens a row, each on a step of its own nearly always; in the last tree two share one."""
    trees = {PrefixTree.random(3, 1 + seed % 2, seed): 0.9999 for seed in range(3)}
    trees[PrefixTree.iid([0.3, 0.3, 0.4], [0.301, 0.299, 0.4], 1)] = 0.998
    for tree, least in trees.items():
        monkeypatch.setattr(many_level, "MOST", 256)
        exact = exact_law("many-level", tree, paths).acceptance_length
        monkeypatch.setattr(many_level, "MOST", 0)
        law = exact_law("many-level", tree, paths)
        assert law.total_variation(tree.target_law()) < 1e-12
        assert law.acceptance_length > least * exact


def test_many_level_against_the_law_of_other_steps_is_not_lossless(monkeypatch):
    tree = PrefixTree.random(3, 1, 0)
    monkeypatch.setattr(many_level, "MOST", 0)
    monkeypatch.setattr(many_level, "stepped_law", lambda table, target_rows, draft_rows: draft_rows)
    assert exact_law("many-level", tree, 2).total_variation(tree.target_law()) > 1e-3


def test_rows_seen_at_fixed_knots_are_as_lossless_and_keep_as_much(monkeypatch):
    """With few heavy tokens, where steps of the ratio matter most."""
    rules = {"two-level": get("two-level").verify, "score-race": get("score-race").verify}
    found = {name: [] for name in rules}
    for seed in range(6):
        tree = PrefixTree.random(2 + seed % 2, 1 + seed % 3 // 2, 40 + seed)
        for name, rule in rules.items():
            monkeypatch.setattr(ratio_knots, "MOST", 256)
            exact = exact_law(rule, tree, 2).acceptance_length
            monkeypatch.setattr(ratio_knots, "MOST", 0)
            law = exact_law(rule, tree, 2)
            assert law.total_variation(tree.target_law()) < 1e-12
            found[name].append(law.acceptance_length / exact)
        assert law.acceptance_length >= single_path.acceptance(tree)[1:].sum() - 1e-9
    for name, fractions in found.items():
        assert np.mean(fractions) > 0.9999, name
        assert min(fractions) > 0.999, name
        assert max(abs(fraction - 1) for fraction in fractions) > 1e-6, name


@pytest.mark.usefixtures("few_knots")
def test_mass_at_the_knots_keeps_every_sum_that_is_linear_in_the_ratio():
    rng = torch.Generator().manual_seed(0)
    target, draft = (torch.rand(3, 40, generator=rng, dtype=torch.float64) ** 3 for _ in range(2))
    target, draft = target / target.sum(1, keepdim=True), draft / draft.sum(1, keepdim=True)
    knots = ratio_knots.Knots.of(target[:, None], draft[:, None], torch.float64)[:, 0]
    ratio, mass = torch.tensor(knots.ratio), torch.from_numpy(knots.mass)
    assert (mass >= 0).all()
    assert torch.allclose(mass.sum(1), torch.ones(3, dtype=torch.float64), atol=1e-14)
    capped = torch.minimum(target, 2.0**8 * draft)
    assert torch.allclose((mass * ratio).sum(1), capped.sum(1), atol=1e-12)
    table = ratio.clamp(0.25, 2)
    law = ratio_knots.linear_law(table, ratio, target, draft)
    assert torch.allclose(law.sum(1), (table * mass).sum(1), atol=1e-12)
    inside = (target > draft / 4) & (target < 2 * draft)
    assert torch.allclose(law[inside], target[inside], atol=1e-12)
    tokens = torch.tensor([0, 17, 39])
    own = ratio_knots.own_ratio(target, draft)[torch.arange(3), tokens].numpy()
    want = law[torch.arange(3), tokens] / draft[torch.arange(3), tokens]
    assert ratio_knots.between(table.numpy(), *knots.between(own)) == pytest.approx(want.numpy(), abs=1e-12)


def big_batch(dtype: torch.dtype, requests: int, paths: int, vocab: int = 1500) -> Batch:
    """Sharp rows of two models; all paths of a request see the same row at the root."""
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(1, 1, 3, vocab, generator=generator)
    target = torch.softmax(logits, dim=-1).expand(requests, paths, -1, -1)
    noise = torch.randn(1, 1, 3, vocab, generator=generator)
    draft = torch.softmax(logits + noise, dim=-1)[:, :, :2].expand(requests, paths, -1, -1)
    tokens = torch.multinomial(draft.flatten(0, 2), 1, generator=generator).view(requests, paths, 2)
    return Batch(tokens, draft.to(dtype), target.to(dtype))


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_every_dtype_select_with_nearly_the_law_of_float64(dtype):
    batch, exact = big_batch(dtype, 4, 6), big_batch(torch.float64, 4, 6)
    exact = Batch(exact.tokens, batch.draft_probs.double(), batch.target_probs.double())
    laws = []
    for each in (batch, exact):
        asked = Asked()
        get("score-race").verify(each, asked)
        laws.append(score_race_law(asked.score, asked.below))
    assert torch.allclose(laws[0].sum(1), torch.ones(4, dtype=torch.float64), atol=1e-9)
    assert (laws[0] - laws[1]).abs().max() < 2e-3


class Asked(Draws):
    """Remembers the scores of the race."""

    def smallest_score(self, score, below):
        self.score, self.below = score, below
        return super().smallest_score(score, below)


SHAPES = [(0, 3, 5), (2, 64, 3), (1, 2, 1), (3, 1, 300), (2, 64, 300), (0, 2, 300)]


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(("requests", "paths", "vocab"), SHAPES)
def test_shapes_from_none_to_many(requests, paths, vocab):
    batch = big_batch(torch.float32, requests, paths, vocab)
    verdict = get("score-race").verify(batch, Draws(torch.Generator().manual_seed(0)))
    assert verdict.path.shape == verdict.accepted.shape == verdict.token.shape == (requests,)
    assert ((verdict.token >= 0) & (verdict.token < vocab) & (verdict.accepted <= 2)).all()
    assert ((verdict.path >= 0) & (verdict.path < paths)).all()


def test_emitted_tokens_of_a_large_vocabulary_follow_the_target():
    """2,000 calls; a false alarm has probability below 1e-9 (normal approximation at 6.5 standard errors)."""
    batch, calls = big_batch(torch.float32, 2_000, 3, 300), 2_000
    generator = torch.Generator().manual_seed(7)
    target, draft = batch.target_probs[0, 0, 0].double(), batch.draft_probs[0, 0, 0]
    tokens = torch.multinomial(draft, 3 * calls, replacement=True, generator=generator).view(calls, 3, 1)
    rows = Batch(tokens, batch.draft_probs[:, :, :1], batch.target_probs[:, :, :2])
    verdict = get("score-race").verify(rows, Draws(generator))
    chosen = tokens[torch.arange(calls), verdict.path, 0]
    first = torch.where(verdict.accepted > 0, chosen, verdict.token)
    error = (target * (1 - target) / calls).sqrt()
    likely = target * calls > 20
    for found, close in ((first, True), (chosen, False)):
        share = torch.bincount(found, minlength=300) / calls
        assert (((share - target).abs() / error)[likely].max() < 6.5) == close


@pytest.mark.usefixtures("host")
def test_the_law_of_the_least_score_agrees_with_drawing_it():
    rng = np.random.default_rng(3)
    score = torch.as_tensor(np.sort(rng.random((1, 4, 6)), axis=2))
    below = torch.as_tensor(np.sort(rng.random((1, 4, 6)), axis=2))
    score[..., 0], score[..., -1], below[..., 0], below[..., -1] = 0, 1, 0, 1
    law = score_race_law(score, below)[0]
    calls = 100_000
    winners = Draws(torch.Generator().manual_seed(1)).smallest_score(
        score.expand(calls, -1, -1), below.expand(calls, -1, -1)
    )
    error = (law * (1 - law) / calls).sqrt()
    assert law.sum() == pytest.approx(1, abs=1e-12)
    assert ((torch.bincount(winners, minlength=4) / calls - law).abs() / error).max() < 6.5
    assert (law - 0.25).abs().max() > 0.01


def test_a_score_of_positive_probability_is_part_of_the_law():
    """Both scores are 1/2 with probability 1/2: the first wins a tie, of probability 1/4, and half of the rest."""
    score = torch.tensor([[[0, 1 / 2, 1 / 2, 1]] * 2], dtype=torch.float64)
    below = torch.tensor([[[0, 1 / 4, 3 / 4, 1]] * 2], dtype=torch.float64)
    assert score_race_law(score, below)[0].tolist() == pytest.approx([5 / 8, 3 / 8], abs=1e-15)
    apart = score.clone()
    apart[:, 1, 1:3] = torch.tensor([1 / 2 - 1e-3, 1 / 2 + 1e-3])
    assert score_race_law(apart, below)[0, 0] == pytest.approx(1 / 2, abs=1e-2)


@pytest.mark.parametrize("name", ["score-race", "score-race-2"])
def test_a_token_of_probability_1e_17_is_verified_as_well(name):
    tree = PrefixTree.iid([0.92, 0.04, 0.04], [0.75, 0.25, 6e-18], 2)
    law = exact_law(name, tree, 2)
    assert law.total_variation(tree.target_law()) < 1e-12


def test_the_value_of_a_score_law_is_the_integral_of_the_winning_density():
    law = ScoreLaw.uniform(1, 5)
    mass = np.array([[0.0, 1e-12, 0.3, 1 - 1e-9, 1.0]])
    assert law.value(mass) == pytest.approx(1 - (1 - mass) ** 5, abs=1e-15)
    assert law.value(mass)[0, 1] == pytest.approx(5e-12, rel=1e-11)
    edges, one = np.array([[0, 0.25, 1]]), np.ones((1, 1))
    lower, upper = (law.rearranged(edges, np.array([shares])) for shares in ([1.0, 0.0], [0.0, 1.0]))
    assert 0.25 * lower.value(one) + 0.75 * upper.value(one) == pytest.approx(1, abs=1e-15)
    assert lower.value(one).item() == pytest.approx((1 - 0.75**5) / 0.25, abs=1e-14)
