"""The score race's kernel under Triton's interpreter; `test_kernel_score_race.py` runs this file in its own process.

The tensor version, which the exact laws check, sees rows of 300 tokens and, where a test says so, all rows at the same
knots as the kernel: then both decide alike.

Letters: B requests, K paths, L drafted tokens, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime import compiled, kernels
from specbound.runtime.draws import Draws
from specbound.runtime.kernels import Workspace, race_split, score_race, verify_laws
from specbound.runtime.parts import ratio_knots
from specbound.runtime.parts.draft_tree import first_appearance
from specbound.runtime.parts.ratio_knots import LAST, histograms
from specbound.runtime.parts.score_law import over
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers import get
from specbound.runtime.verifiers.score_race import race
from tests.support.interpreted_kernels import (
    TREES,
    Answers,
    Case,
    GivenDraws,
    Stratum,
    _interpreter_is_fast,
    buffers,
    races,
    random_case,
    recorded,
    tensors_of,
    undecided,
)

__all__ = ["_interpreter_is_fast"]


@pytest.fixture
def few_knots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensor version sees every row at the fixed knots, however few tokens it has."""
    monkeypatch.setattr(ratio_knots, "MOST", 0)


def uniforms(case: Case) -> Answers:
    """Uniforms of the scores [B, K], the coins [B, L] and the choice [B]."""
    return case.answers("score-race")


def normalised(case: Case) -> Case:
    """Logits whose exponentials, at the temperature, are the laws: the kernel's knots are then the tensor version's."""
    scale = case.temperatures.double()[:, None, None, None]
    target, draft = ((law.log() * scale).to(case.target.dtype) for law in case.laws())
    return dataclasses.replace(case, target=target, draft=draft)


def by_kernel(case: Case, answers: Answers, lengths: Tensor | None = None, block: int = 64, span: int = 2) -> Verdict:
    """The kernel's verdict, in poisoned buffers."""
    out = buffers(*case.shape, case.target.dtype, block, span)
    given = (case.target, case.draft, case.temperatures, case.tokens, lengths, *answers)
    return kernels.verify_score_race_logits(*given, out=out)


class GivenScores(GivenDraws):
    """Answers the race too."""

    def smallest_score(self, score: Tensor, below: Tensor) -> Tensor:
        """The least score, each where its law reaches the uniform."""
        parts = (self.answers[0].flatten(), below.flatten(0, 1), score.flatten(0, 1))
        found = [np.interp(*(part.numpy() for part in each)) for each in zip(*parts, strict=True)]
        ordered = torch.tensor(found).view(score.shape[:2]).sort(dim=1).values
        self._near(ordered[:, 1:2] - ordered[:, :1])
        return super().smallest_score(score, below)


def by_tensor(case: Case, answers: Answers) -> tuple[Verdict, GivenDraws]:
    """The tensor version's verdict on the laws in float64, and how near the uniforms came to a threshold."""
    target, draft = case.laws()
    draws = GivenScores(answers if case.shape[1] > 1 else answers[1:])
    draws.margin = torch.full_like(answers[2], math.inf)
    return get("score-race").verify(Batch(case.tokens, draft, target), draws), draws


# -- the walk of each path ------------------------------------------------------------------------------------------


def walk_error(dtype: torch.dtype, paths: int = 3, length: int = 3, seed: int = 1) -> float:
    """Largest difference of a path's score, law at the knots and ratios from those of the tensor version."""
    case = random_case(2, paths, length, 300, seed=seed)
    target, draft = (law.to(dtype) for law in case.laws())
    knots, ahead, drawn = histograms(Batch(case.tokens, draft, target), dtype)
    law, tables = race(knots, over(ahead, drawn), paths, "safe", dtype)
    draws = uniforms(case)[0]
    out = buffers(*case.shape, dtype, 64, 3)
    ones = torch.ones(2, dtype=torch.float64)
    score_race.run_race(target, draft, ones, case.tokens, out.lengths, draws, out, laws=True)
    scores = [np.interp(*each) for each in zip(draws.flatten().numpy(), law.below, law.score, strict=True)]
    near, part = knots.between(over(ahead, drawn))
    low, high = np.moveaxis(np.take_along_axis(tables, near, axis=-1), -1, 0)
    ratios = [np.ones(len(near))]
    for step in (over(ahead, drawn) / (low + part * (high - low))).T:
        ratios.append(np.minimum(ratios[-1] * step, 1))
    found = out.path_tables[..., : LAST + 1].double().numpy()
    return max(
        float(np.abs(out.path_scores.numpy() - scores).max()),
        float(np.abs((found - tables) * knots.mass).sum(axis=-1).max()),
        float(np.abs(out.path_ratios.numpy() - np.stack(ratios, axis=1)).max()),
    )


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_every_path_has_the_score_and_the_law_of_the_tensor_version(dtype: torch.dtype, most: float) -> None:
    assert walk_error(dtype) < most


@triton.jit
def never_covered(ratio, mass, split, densities, law, node, levels, SLACK: tl.constexpr, PATHS: tl.constexpr):
    """The careful split at every node."""
    return levels < 0


@triton.jit
def always_covered(ratio, mass, split, densities, law, node, levels, SLACK: tl.constexpr, PATHS: tl.constexpr):
    """The bold split at every node."""
    return levels >= 0


@triton.jit
def same_law(law, used, edges, shares, PATHS: tl.constexpr, SLOTS: tl.constexpr):
    """Scores that stay as they were whatever the token."""
    return law


@triton.jit
def unmoved(level, upper, mass, border):
    """Cuts that stay in the middle of their windows."""
    return race_split.edges_of(border / 2, border, (1.0 + border) / 2)


@triton.jit
def lower_knot(table, near, part, SIZE: tl.constexpr):
    """A law that is constant between knots for the drafted token, and linear for the others."""
    return race_split.entry(table, near, SIZE)


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (race_split, "is_covered", never_covered),
        (race_split, "is_covered", always_covered),
        (race_split, "child_law", same_law),
        (race_split, "moved_cuts", unmoved),
        (score_race, "between", lower_knot),
    ],
)
def test_the_comparison_of_walks_rejects_broken_kernels(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, broken: object
) -> None:
    """One of the nodes of these drafts takes the careful split."""
    monkeypatch.setattr(module, name, broken)
    assert walk_error(torch.float32) > 1e-3


# -- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_batch_of_probabilities_is_decided_as_by_the_tensor_version_with_an_equal_generator(
    dtype: torch.dtype,
) -> None:
    case = random_case(2, 3, 2, 300, seed=1)
    target, draft = case.laws()
    batch = Batch(case.tokens, draft.to(dtype), target.to(dtype))
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    got, want = verify_laws("score-race", batch, ours), get("score-race").verify(batch, Draws(theirs))
    assert torch.equal(got.path, want.path)
    assert torch.equal(got.accepted, want.accepted)
    assert torch.equal(got.token, want.token)
    assert len(set(got.path.tolist())) > 1
    assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.usefixtures("few_knots")
@pytest.mark.parametrize(
    ("requests", "paths", "length", "vocab", "dtype", "masked"),
    [
        (6, 2, 2, 40, torch.float32, False),
        (3, 4, 2, 300, torch.bfloat16, False),
        (8, 3, 2, 17, torch.float32, True),
        (4, 2, 1, 1, torch.float32, False),
        (2, 9, 1, 5, torch.float16, False),
    ],
)
def test_decisions_from_logits_equal_the_tensor_versions(
    requests: int, paths: int, length: int, vocab: int, dtype: torch.dtype, masked: bool
) -> None:
    case = normalised(random_case(requests, paths, length, vocab, dtype, seed=vocab, masked=masked))
    if dtype in (torch.bfloat16, torch.float16):
        case.target, case.draft = case.target.to(dtype).float(), case.draft.to(dtype).float()
        case = normalised(case)
    answers = uniforms(case)
    want, draws = by_tensor(case, answers)
    assert undecided(by_kernel(case, answers), want, draws.margin, resolution=1e-4) <= 1


@pytest.mark.usefixtures("few_knots")
def test_knots_that_lie_elsewhere_are_those_of_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the target all larger by 0.3 octaves: the knots lie 0.3 octaves lower, the laws are the same."""
    case = normalised(random_case(4, 3, 2, 40, seed=3, temperatures=torch.ones(4)))
    answers, factor = uniforms(case), 2.0**-0.3
    case.target += 0.3 * math.log(2)
    fixed, leading_bits = ratio_knots.fixed_knots, ratio_knots._leading_bits
    got = by_kernel(case, answers)
    monkeypatch.setattr(compiled, "usable", lambda device="cpu": False)
    monkeypatch.setattr(ratio_knots, "fixed_knots", lambda device: fixed(device) * factor)
    monkeypatch.setattr(ratio_knots, "_leading_bits", lambda ratio: leading_bits(ratio / factor))
    want, draws = by_tensor(case, answers)
    assert undecided(got, want, draws.margin, resolution=1e-4) <= 1


def test_the_comparison_of_decisions_rejects_a_race_that_the_largest_score_wins() -> None:
    case = normalised(random_case(6, 2, 1, 300, seed=4))
    answers = uniforms(case)
    want, draws = by_tensor(case, answers)
    with pytest.raises(AssertionError, match="path"):
        undecided(by_kernel(case, [1 - answers[0], *answers[1:]]), want, draws.margin, resolution=1e-4)


class Strata(Stratum):
    """Strata of the race's uniforms too."""

    def smallest_score(self, score: Tensor, below: Tensor) -> Tensor:
        """The winner's uniform near 0, the others' near 1: that path wins so, if it ever does."""
        winner = self.inner.smallest_score(score, below)
        mine = torch.arange(score.shape[1]) == winner[:, None]
        self.questions.append(lambda place: torch.where(mine, 1e-7, 1 - 1e-7).double())
        return winner


def stratified(block: int = 16) -> Callable[[Batch, Draws], Verdict]:
    """A verifier for `exact_law` that decides with the kernel from logits, inside every stratum of the uniforms."""

    def verify(batch: Batch, draws: Draws) -> Verdict:
        requests, paths, _, _ = batch.shape
        strata = Strata(draws)
        get("score-race").verify(batch, strata)
        temperatures = torch.linspace(0.5, 2, requests, dtype=torch.float64)
        case = normalised(Case(batch.target_probs.log(), batch.draft_probs.log(), torch.ones(requests), batch.tokens))
        scale = temperatures[:, None, None, None]
        case = dataclasses.replace(
            case, target=(case.target * scale).float(), draft=(case.draft * scale).float(), temperatures=temperatures
        )
        answers = [question(1 - 1e-3) for question in strata.questions]
        if paths == 1:
            answers.insert(0, torch.zeros(requests, 1, dtype=torch.float64))
        got = by_kernel(case, answers, block=block)
        return Verdict(got.path.clone(), got.accepted.clone(), got.token.clone())

    return verify


@pytest.mark.usefixtures("few_knots")
@pytest.mark.parametrize(("tree", "paths"), [("one step", 2), ("zeros", 2), ("two tokens", 1)])
def test_the_exact_law_through_the_kernel_is_the_targets(tree: str, paths: int) -> None:
    """Which path wins is taken from the tensor version: its probabilities are those of scores compared above."""
    law = exact_law(stratified(), TREES[tree], paths=paths)
    assert law.total_variation(TREES[tree].target_law()) < 1e-12
    assert abs(law.acceptance_length - exact_law("score-race", TREES[tree], paths=paths).acceptance_length) < 1e-12


@pytest.mark.usefixtures("few_knots")
def test_the_law_check_rejects_a_winner_that_is_verified_as_if_it_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_race, "over", unselected)
    law = exact_law(stratified(), TREES["one step"], paths=2)
    assert law.total_variation(TREES["one step"].target_law()) > 1e-3


@triton.jit
def unselected(value, mass):
    """The draft's own law."""
    return value * 0.0 + 1.0


def test_one_path_alone_is_verified_as_a_block() -> None:
    case = random_case(8, 1, 3, 40, seed=2)
    answers = uniforms(case)
    got = by_kernel(case, answers)
    out = buffers(8, 1, 3, 40, torch.float32)
    rows = (case.target[:, 0].contiguous(), case.draft[:, 0].contiguous(), case.temperatures, case.tokens[:, 0])
    want = kernels.verify_block_logits(*rows[:3], rows[3].contiguous(), None, *answers[1:], out=out)
    assert torch.equal(got.accepted, want.accepted)
    assert torch.equal(got.token, want.token)
    assert 0 < got.accepted.float().mean() < 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_temperature_zero_the_targets_largest_logits_come_out(dtype: torch.dtype) -> None:
    temperatures = torch.tensor([0, 1e-12, 1e-6, 1e-3], dtype=dtype)
    case = random_case(4, 2, 2, 33, dtype, seed=5, temperatures=temperatures)
    got = by_kernel(case, uniforms(case))
    for row in range(4):
        path, kept = int(got.path[row]), int(got.accepted[row])
        largest = case.target[row, path].argmax(dim=-1)
        assert torch.equal(case.tokens[row, path, :kept], largest[:kept])
        assert got.token[row] == largest[kept]
        drafts = [(case.tokens[row, k] == case.target[row, k, :2].argmax(dim=-1)).long() for k in range(2)]
        assert kept == max(int(draft.cumprod(dim=0).sum()) for draft in drafts)


def test_equal_laws_keep_every_token() -> None:
    case = random_case(3, 2, 2, 19)
    case.draft = case.target[:, :, :-1].clone()
    answers = uniforms(case)
    answers[1] = torch.full((3, 2), 1 - 1e-6, dtype=torch.float64)
    assert by_kernel(case, answers).accepted.tolist() == [2, 2, 2]


@pytest.mark.usefixtures("few_knots")
def test_ragged_drafts_decide_as_each_does_alone_and_rows_behind_them_are_not_read() -> None:
    whole = normalised(random_case(6, 2, 3, 21, seed=2))
    lengths = torch.tensor([3, 0, 1, 2, 0, 1], dtype=torch.int32)
    case, answers = dataclasses.replace(whole, target=whole.target.clone(), draft=whole.draft.clone()), uniforms(whole)
    for row, length in enumerate(lengths.tolist()):
        case.target[row, :, length + 1 :] = case.draft[row, :, length:] = math.nan
        case.tokens[row, :, length:] = -1
    got = by_kernel(case, answers, lengths, block=16)
    for length in (1, 2, 3):
        rows = lengths == length
        given = [answers[0][rows], answers[1][rows, :length], answers[2][rows]]
        want, draws = by_tensor(case.part(rows, length), given)
        answer = Verdict(got.path[rows], got.accepted[rows], got.token[rows])
        assert undecided(answer, want, draws.margin, resolution=1e-4) == 0
    empty = lengths == 0
    assert got.accepted[empty].tolist() == [0, 0]
    draws = GivenDraws([answers[2][empty]])
    assert torch.equal(got.token[empty], draws.choose(whole.laws()[0][empty, 0, 0]))
    assert draws.margin.min() > 1e-5


def test_rows_without_a_law_and_unknown_tokens_are_flagged_and_leave_the_others_alone() -> None:
    case = random_case(7, 2, 2, 9)
    answers = uniforms(case)
    want = by_kernel(case, answers)
    keep = [want.path[6].item(), want.accepted[6].item(), want.token[6].item()]
    case.target[0, :, 1, 3] = math.nan
    case.target[1, :, 0] = -torch.inf
    case.draft[2, :, 1, 0] = torch.inf
    case.draft[3, :, 0] = -torch.inf
    case.tokens[4, :, 1] = 9
    case.tokens[5, -1, 0] = -1
    got = by_kernel(case, answers)
    assert got.path.tolist()[:6] == got.accepted.tolist()[:6] == [0] * 6
    assert got.token.tolist()[:6] == [-1] * 6
    assert [got.path[6].item(), got.accepted[6].item(), got.token[6].item()] == keep


def test_buffers_can_be_used_again_and_no_requests_give_an_empty_verdict() -> None:
    first, second = (random_case(2, 2, 2, 20, seed=seed) for seed in (1, 2))
    out, found = buffers(2, 2, 2, 20, torch.float32), []
    for case in (first, second, first):
        given = (case.target, case.draft, case.temperatures, case.tokens, None, *uniforms(case))
        got = kernels.verify_score_race_logits(*given, out=out)
        found.append((got.path.tolist(), got.accepted.tolist(), got.token.tolist()))
    assert found[0] == found[2] != found[1]
    empty = first.part(torch.zeros(2, dtype=torch.bool), 2)
    assert by_kernel(empty, uniforms(empty)).token.shape == (0,)


def test_no_program_depends_on_another_of_the_same_launch() -> None:
    case = random_case(5, 3, 2, 20, seed=9, temperatures=torch.full((5,), 0.5))
    case.tokens[1, 0, 0] = -1
    case.target[2, :, 1] = math.nan
    with races() as found:
        by_kernel(case, uniforms(case), torch.tensor([2, 0, 1, 2, 2], dtype=torch.int32), block=16)
    assert found == []


def test_a_prefix_that_paths_share_is_read_once_for_all() -> None:
    case = random_case(4, 3, 3, 70, seed=8, temperatures=torch.full((4,), 0.4))
    target, draft, out = rows_read(case, uniforms(case))
    owner = torch.zeros(4, 3, 4, dtype=torch.int64)
    owner[:, :, 1:] = first_appearance(case.tokens)
    mine = owner == torch.arange(3)[:, None]
    second = torch.zeros(4, 3, 4, dtype=torch.int64)
    for row, path in enumerate(out.verdict.path.tolist()):
        for depth in range(int(out.first[row]), int(out.stop[row])):
            second[row, owner[row, path, depth], depth] = 1
    assert torch.equal(target, mine.long() + second)
    assert torch.equal(draft, (mine.long() + second)[..., :3])
    assert (~mine[..., 1:]).sum() > 5
    assert second.sum() > 0


def rows_read(case: Case, answers: Answers) -> tuple[Tensor, Tensor, Workspace]:
    """How often each row of the target [B, K, L+1] and the draft [B, K, L] is read as a whole; and the buffers.

    Every access is checked to lie in the inputs or the buffers.
    """
    out = buffers(*case.shape, case.target.dtype, 16, 2)
    inputs = {"target": case.target, "draft": case.draft, "tokens": case.tokens, "temperatures": case.temperatures}
    inputs |= dict(zip(("scores", "coins", "choice"), answers, strict=True))
    with recorded(inputs, tensors_of(out)) as reads:
        kernels.verify_score_race_logits(
            case.target, case.draft, case.temperatures, case.tokens, None, *answers, out=out
        )
    return reads["target"].amin(dim=-1), reads["draft"].amin(dim=-1), out


def test_wrong_arguments_are_named() -> None:
    case = random_case(2, 2, 2, 5)
    answers = uniforms(case)
    with pytest.raises(ValueError, match=r"score_uniforms has shape \(2, 1\); want \(2, 2\)"):
        by_kernel(case, [answers[0][:, :1], *answers[1:]])
    with pytest.raises(ValueError, match=r"coin_uniforms has shape \(2, 1\); want \(2, 2\)"):
        by_kernel(case, [answers[0], answers[1][:, :1], answers[2]])
