"""Compiled loops against the arrays that they stand for, and how often they read the rows."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from numba.core import caching

from specbound.runtime import compiled
from specbound.runtime.compiled import jit, rows
from specbound.runtime.draws import Draws
from specbound.runtime.parts import ratio_knots
from specbound.runtime.parts.block_rule import ratios_and_thresholds, ratios_of, surplus
from specbound.runtime.parts.ratio_knots import Knots, fixed_knots, histograms, linear_law
from specbound.runtime.parts.score_law import over
from specbound.runtime.parts.single_path import at, correction_weights, emitted_row
from specbound.runtime.verdict import Batch, arithmetic
from specbound.runtime.verifiers import get, score_race, two_level, verify

RULES = ("two-part", "best-set", "safe", "two-part-reserved", "best-set-reserved")
CPU = torch.device("cpu")


def laws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a target and of a draft, with tokens that one of them, or neither, has."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    pair = [logits, logits + torch.randn(shape, generator=generator, dtype=torch.float64)]
    for each, start in zip(pair, (0, 2), strict=True):
        each[..., start : start + 3] = -torch.inf
    target, draft = (torch.softmax(each, dim=-1).to(dtype) for each in pair)
    return target, draft


def batch_of(
    requests: int, paths: int, length: int, vocab: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    """Paths of a request share their first token's row."""
    target, draft = laws(requests, paths, length + 1, vocab, seed=seed, dtype=dtype)
    target[:, :, 0], draft[:, :, 0] = target[:, :1, 0], draft[:, :1, 0]
    draft = draft[:, :, :-1].contiguous()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.multinomial(draft.flatten(0, 2).double(), 1, generator=generator).view(requests, paths, length)
    return Batch(tokens, draft, target)


def by_arrays(monkeypatch, work):
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "usable", lambda device="cpu": False)
        return work()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [300, 5000])
def test_histograms_are_those_of_the_tensors_in_float64(monkeypatch, dtype, vocab):
    """Whatever the rows' own precision: sums are taken in float64, and only ratios in that of the rows."""
    target, draft = laws(3, 5, vocab, dtype=dtype)
    wide = torch.cat([target, target], dim=1)[:, ::2]
    inside = torch.float64 if dtype == torch.float64 else torch.float32
    for pair in ((target, draft), (wide, draft)):
        found, sums = (work(*pair, inside) for work in (Knots.of, ratio_knots.step_masses))
        want, step_sums = (
            by_arrays(monkeypatch, lambda work=work, pair=pair: work(*(rows.double() for rows in pair), torch.float64))
            for work in (Knots.of, ratio_knots.step_masses)
        )
        assert (found.ratio == want.ratio).all()
        assert np.abs(found.mass - want.mass).max() < 1e-13
        assert np.abs(found.total - want.total).max() < 1e-13
        assert (sums - step_sums).abs().max() < 1e-13
    monkeypatch.setattr(rows, "knot_masses", lambda *given: one_step_off(*given))
    moved = Knots.of(target, draft, inside)
    assert np.abs(moved.mass - want.mass).max() > 1e-3


def one_step_off(target, draft, shift, before, knots, mass, total):
    """The wrong knots: one step off."""
    step = np.ascontiguousarray(np.roll(mass, 1, axis=-1))
    true_masses(target, draft, shift, before, knots, step, total)
    mass[:] = np.roll(step, 1, axis=-1)


true_masses = rows.knot_masses


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ratios_surpluses_and_corrections_are_those_of_block_verification(dtype):
    """Against a law that is given at the fixed knots, up to the rounding of rows of that dtype."""
    vocab, length, close = 3000, 4, 1e-12 if dtype == torch.float64 else 2e-6
    target, draft = laws(length, vocab, dtype=dtype)
    knots = fixed_knots(CPU)
    table = 3 * torch.rand(length, len(knots), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    law = linear_law(table, knots.expand(length, -1), target, draft)
    given = ratio_knots.SHIFT, ratio_knots.BEFORE, knots.numpy()

    tokens = torch.tensor([7, 2000, 0, 17])  # the target has no token 0
    own = tuple(at(part, tokens).double() for part in (target, draft, law))
    want = ratios_of(own[0][None], own[2][None])
    ratios = np.empty((1, length + 1))
    rows.path_ratios((own[0] / own[1]).numpy()[None], *given, table.numpy()[None], ratios)
    assert np.abs(ratios - want.numpy()).max() < close
    assert ratios[0, 3:].max() == 0 < ratios[0, 1:3].min() < 1
    rows.path_ratios((own[0] / own[1]).numpy()[None], *given, 1 + table.numpy()[None], ratios)
    assert np.abs(ratios - want.numpy()).max() > 1e-2

    scale, left = torch.rand(length, dtype=dtype), np.empty(length)
    rows.surpluses(target.numpy(), draft.numpy(), *given, table.numpy(), scale.double().numpy(), left)
    assert np.abs(left - surplus(scale, target, law).numpy()).max() < 10 * close
    assert np.abs(left - surplus(scale, target, draft).numpy()).max() > 1e-3

    weights, want = np.empty(vocab), correction_weights(scale, target, law)
    for i in range(length):
        rows.correction(target[i].numpy(), draft[i].numpy(), *given, table[i].numpy(), float(scale[i]), weights)
        assert np.abs(weights - want[i].numpy()).max() < close
    rows.correction(target[0].numpy(), draft[0].numpy(), *given, 0 * table[0].numpy(), 0.0, weights)
    assert (weights == target[0].double().numpy()).all()


def test_a_law_is_linear_up_to_the_last_knot_and_flat_above():
    ratio = np.array([[1e-3], [0.004], [1.0], [1.01], [241.0], [250.0], [256.0], [1e5]])
    knots = fixed_knots(CPU).numpy()
    tables, found = 400 + 100 * np.random.default_rng(0).random((len(ratio), 1, len(knots))), np.empty((len(ratio), 2))
    rows.path_ratios(ratio, ratio_knots.SHIFT, ratio_knots.BEFORE, knots, tables, found)
    law = [np.interp(own, knots, table[0]) for (own,), table in zip(ratio, tables, strict=True)]
    assert found[:, 1] == pytest.approx(np.minimum(ratio[:, 0] / law, 1), rel=1e-13)


def test_ratios_pass_through_the_smallest_probabilities():
    """1e-45 six times over, and back again."""
    steps = np.array([[1e-45] * 6 + [1e45] * 7])
    knots, ratios = fixed_knots(CPU).numpy(), np.empty((1, 14))
    rows.path_ratios(steps, ratio_knots.SHIFT, ratio_knots.BEFORE, knots, np.ones((1, 13, len(knots))), ratios)
    assert ratios[0, 6] == pytest.approx(1e-270)
    assert ratios[0, 11] == pytest.approx(1e-45)
    assert ratios[0, 12:] == pytest.approx(1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("vocab", "paths", "stem"), [(11, 3, 0), (400, 4, 0), (400, 2, 1), (7, 1, 0), (300, 64, 0)])
def test_the_race_is_that_of_the_arrays(monkeypatch, rule, vocab, paths, stem):
    """As laws: where two knots of a score law fall together, which comes first is nobody's business."""
    batch = batch_of(2, paths if paths < 5 else 2, 3, vocab, seed=paths)
    given = histograms(batch, torch.float64)
    ratio = over(*given[1:])
    law, tables = score_race.race(given[0], ratio, paths, rule, torch.float64, stem)
    want, want_tables = by_arrays(
        monkeypatch, lambda: score_race.race(given[0], ratio, paths, rule, torch.float64, stem)
    )
    assert difference(law, want) < 1e-10
    assert (given[0].mass * np.abs(tables - want_tables)).sum(axis=-1).max() < 1e-10
    if paths > 1:
        other = "safe" if rule.startswith("two-part") else "two-part"
        assert difference(score_race.race(given[0], ratio, paths, other, torch.float64, stem)[0], want) > 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_the_race_is_that_of_the_arrays_deep_down_and_on_sharp_rows(monkeypatch, rule):
    """Six levels of rows with few tokens, nearly none in common, or ratios far beyond the knots."""
    rng = np.random.default_rng(0)
    for sharpness, share, paths, vocab in ((8, 1.0, 2, 300), (0, 0.05, 8, 300), (3, 0.3, 64, 300), (8, 1.0, 3, 8)):
        shape = (2, 6, 6, vocab)
        target, draft = rng.gamma(0.5, size=shape) * np.exp(rng.normal(0, sharpness, shape))
        target, draft = (part * (rng.random(part.shape) < share) + 1e-30 for part in (target, draft))
        target, draft = (torch.from_numpy(part / part.sum(axis=-1, keepdims=True)) for part in (target, draft))
        knots = Knots.of(target, draft, torch.float64)
        likely = draft.flatten(0, 1).pow(1 if vocab > 8 else 0.2)  # of eight, tokens that the draft rarely draws
        tokens = torch.multinomial(likely, 1, generator=torch.Generator().manual_seed(0)).view(6, 6)
        given = knots, (at(target, tokens) / at(draft, tokens)).numpy(), paths, rule, torch.float64
        law, tables = score_race.race(*given)
        want, want_tables = by_arrays(monkeypatch, lambda given=given: score_race.race(*given))
        assert difference(law, want) < 1e-9
        assert (knots.mass * np.abs(tables - want_tables)).sum(axis=-1).max() < 1e-9
        assert np.abs((knots.mass * tables).sum(axis=-1) - 1).max() < (1e-12 if vocab > 8 else 1e-9)


@pytest.mark.usefixtures("host")
def test_a_ratio_that_rounds_up_to_a_knot_takes_no_mass_from_the_next():
    """The step is read off a float32, the ratio is a little below the knot."""
    draft = torch.full((1, 1, 300), 1 / 300, dtype=torch.float64)
    target = draft * torch.tensor([1.5, 0.5]).double().repeat(150) * (1 - 1e-9)
    knots = Knots.of(target, draft, torch.float64)
    assert knots.mass.min() == 0
    assert sorted(knots.mass[knots.mass > 0]) == pytest.approx([0.5, 0.5], abs=1e-14)
    assert sorted(knots.ratio[knots.mass > 0]) == [0.5, 1.5]


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("first", [1e-307, 1e-310, 5e-324, 0])
def test_a_ratio_near_the_smallest_number_leaves_laws(rule, first):
    """Then scores per mass overflow: at 2^-1000 and below a piece of a score law counts as a point."""
    knots = Knots.of(*laws(1, 3, 300), torch.float64)
    law, tables = score_race.race(knots, np.array([[first, 0.1, 1.3]]), 2, rule, torch.float64)
    assert law.below[:, -1] == law.score[:, -1] == 1
    assert (np.diff(law.below) >= 0).all()
    assert (knots.mass * tables).sum(axis=-1) == pytest.approx(1, abs=1e-12)


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("vocab", [20, 300])
def test_rows_that_need_gradients_are_verified(vocab):
    for name, paths in (("block", 1), ("token", 1), ("score-race", 2), ("two-level", 2), ("many-level", 2)):
        batch = batch_of(2, paths, 3, vocab)
        batch.draft_probs.requires_grad_()
        batch.target_probs.requires_grad_()
        assert verify(name, batch, Draws()).token.shape == (2,)


def difference(law, other) -> float:
    """Largest difference of two score laws, away from their jumps."""
    places = (np.arange(997) + 0.5) / 997
    pairs = zip(law.score, law.below, other.score, other.below, strict=True)
    return max(np.abs(np.interp(places, a, b) - np.interp(places, c, d)).max() for a, b, c, d in pairs)


def test_in_float32_the_race_is_nearly_that_of_the_arrays(monkeypatch):
    """Where cuts lie decides what is kept, not what is lossless: they are found to 2^-12 at least."""
    batch = batch_of(2, 4, 4, 3000, dtype=torch.float32)
    given = histograms(batch, torch.float32)
    law, _ = score_race.race(given[0], over(*given[1:]), 4, "safe", torch.float32)
    want, _ = by_arrays(monkeypatch, lambda: score_race.race(given[0], over(*given[1:]), 4, "safe", torch.float32))
    assert difference(law, want) < 5e-3


@pytest.mark.parametrize(("vocab", "paths"), [(11, 3), (400, 4), (400, 1), (300, 64)])
def test_the_levels_are_those_of_the_arrays(monkeypatch, vocab, paths):
    generator = np.random.default_rng(paths)
    target, draft = laws(3, 1, vocab)
    knots = Knots.of(target, draft, torch.float64)[:, 0]
    accept, count = generator.random(3), generator.random((3, paths))
    count /= count.sum(axis=1, keepdims=True)
    alive = generator.random((3, paths)) < 0.7
    alive[:, 0] |= ~alive.any(axis=1)
    offered = generator.random((3, paths)) * 3
    given = knots, accept, count, alive, offered, torch.float64
    found, want = two_level.offers_at(*given), by_arrays(monkeypatch, lambda: two_level.offers_at(*given))
    assert [name for name, a, b in zip(found._fields, found, want, strict=True) if np.abs(a - b).max() > 1e-11] == []
    if paths > 1:
        other = two_level.offers_at(knots, accept, count, ~alive | (alive.sum(1) == paths)[:, None], *given[4:])
        assert np.abs(other.weight - want.weight).max() > 1e-6
    rough = two_level.offers_at(*given[:5], torch.float32)  # coins to 2^-12, and the law that they have to 2^-52
    assert (knots.mass * rough.table).sum(axis=1) == pytest.approx(1, abs=1e-12)
    level, mass = generator.random(3), 0.9 * generator.random(3)
    given = count, level, mass, found.fails
    after = two_level.counts_below(*given)
    assert np.abs(after - by_arrays(monkeypatch, lambda: two_level.counts_below(*given))).max() < 1e-12


@pytest.mark.parametrize("name", ["score-race", "two-level", "many-level"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_verdicts_are_those_of_the_arrays(monkeypatch, name, dtype):
    """With the same uniforms; in float32 a uniform may fall between two thresholds, but for less than one in 50."""
    for requests in (0, 1, 40):
        batch = batch_of(requests, 3, 4, 700, seed=3, dtype=dtype)

        def verdict(batch=batch):
            return get(name).verify(batch, Draws(torch.Generator().manual_seed(0)))

        found, want = verdict(), by_arrays(monkeypatch, verdict)
        same = (found.path == want.path) & (found.accepted == want.accepted) & (found.token == want.token)
        assert same.all() if dtype == torch.float64 else (~same).sum() <= max(1, requests // 20)
    assert (want.token != get(name).verify(batch, Draws(torch.Generator().manual_seed(1))).token).any()


def test_work_is_shared_among_threads_and_comes_out_the_same(monkeypatch):
    monkeypatch.setattr(compiled, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shares = []
    compiled.spread(shares.append, 7, 100)
    assert sorted((share.start, share.stop) for share in shares) == [(0, 2), (2, 4), (4, 7)]
    batch = batch_of(3, 3, 3, 2000)
    found = get("score-race").verify(batch, Draws(torch.Generator().manual_seed(0)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    want = get("score-race").verify(batch, Draws(torch.Generator().manual_seed(0)))
    assert (found.path == want.path).all()
    assert (found.token == want.token).all()

    def fails(some):
        raise ZeroDivisionError

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(ZeroDivisionError):
        compiled.spread(fails, 7, 100)


def test_they_are_left_alone_where_they_are_turned_off_missing_or_the_rows_elsewhere(monkeypatch):
    usable = compiled.usable.__wrapped__
    assert usable()
    assert not usable("cuda")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "numba", None)
        assert not usable()
    monkeypatch.setenv(compiled.VARIABLE, "0")
    assert not usable()


def test_without_numba_the_arrays_answer(monkeypatch):
    monkeypatch.setattr(compiled, "usable", compiled.usable.__wrapped__)
    monkeypatch.setitem(sys.modules, "numba", None)
    for module in ("rows", "walks", "jit"):
        monkeypatch.setitem(sys.modules, f"specbound.runtime.compiled.{module}", None)
        monkeypatch.delattr(compiled, module, raising=False)
    for name in ("score-race", "two-level", "many-level"):
        assert get(name).verify(batch_of(2, 2, 2, 300), Draws()).token.shape == (2,)
    monkeypatch.setattr(compiled, "usable", lambda device="cpu": True)
    with pytest.raises(ImportError):
        get(name).verify(batch_of(2, 2, 2, 300), Draws())


def test_where_nothing_can_be_kept_on_disk_functions_are_compiled_all_the_same(monkeypatch):
    def refuse(self, function):
        raise RuntimeError(f"cannot cache function {function}: no locator available")

    monkeypatch.setattr(caching.CacheImpl, "__init__", refuse)
    add_one = jit.outer(lambda number: number + 1)
    assert add_one(1) == 2


@pytest.mark.parametrize(("name", "passes"), [("score-race", 4), ("two-level", 1)])
@pytest.mark.parametrize("length", [2, 5])
def test_rows_are_read_once_by_the_histograms_and_once_more_on_one_path(monkeypatch, name, passes, length):
    """`passes` paths for their histograms, one for its surpluses after the first row, and one row for the token."""
    vocab, read = 3000, []
    for function in ("knot_masses", "step_masses", "surpluses", "correction"):
        monkeypatch.setattr(rows, function, counting(getattr(rows, function), read))
    monkeypatch.setattr(ratio_knots, "IN_CACHE", 0)
    batch = batch_of(1, 4, length, vocab, dtype=torch.bfloat16)
    assert arithmetic(batch) == torch.float32
    verdict = get(name).verify(batch, Draws(torch.Generator().manual_seed(0)))
    assert {dtype for _, dtype in read} == {np.dtype(np.float32)}
    stopped = verdict.accepted.item() < length  # a token after the whole path is drawn from the target's row itself
    assert sum(numbers for numbers, _ in read) == vocab * (passes * length + (length - 1) + stopped)


def counting(function, read):
    def counted(target, draft, *rest):
        read.append((draft.size, draft.dtype))
        function(target, draft, *rest)

    return counted


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_rule_of_block_verification_is_that_of_the_tensors(monkeypatch, dtype):
    """Tokens that one law or both cannot give, laws that are equal, and paths kept whole among them."""
    target, draft = laws(6, 5, 700, dtype=dtype)
    target[1], target[2, :, 5:] = draft[1], draft[2, :, 5:]
    tokens = torch.randint(700, (6, 4), generator=torch.Generator().manual_seed(0))
    tokens[0, 1], tokens[3, 2], tokens[4, 0] = 0, 3, 2
    draft, kept = draft[:, :4].contiguous(), torch.arange(6) % 5
    scale = torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=dtype)

    def found():
        return *ratios_and_thresholds(tokens, draft, target), emitted_row(scale, kept, draft, target)

    close = 1e-14 if dtype == torch.float64 else 2e-6
    for mine, want in zip(found(), by_arrays(monkeypatch, found), strict=True):
        assert mine.dtype == want.dtype == dtype
        assert mine.shape == want.shape
        assert (mine - want).abs().max() < close
        assert (mine - want.roll(1, dims=0)).abs().max() > 1e-4
    assert ratios_and_thresholds(tokens, draft, target)[1][1].tolist() == [1] * 4
    same = emitted_row(torch.ones(6, dtype=dtype), kept, target[:, :4].contiguous(), target)
    assert (same == target[torch.arange(6), kept]).all()
