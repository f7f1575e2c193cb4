"""The fused kernels under Triton's interpreter; `test_kernels.py` runs this file in a process of its own.

Letters: B requests, K paths, L drafted tokens, V vocabulary. Every buffer is poisoned before every call.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from specbound.proofs_checks.law import exact_law
from specbound.runtime.draws import Draws
from specbound.runtime.kernels import (
    Workspace,
    passes,
    two_level,
    verify_block_logits,
    verify_laws,
    verify_token_logits,
    verify_two_level_logits,
    workspace,
)
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers import get
from specbound.theory.prefix_tree import PrefixTree

KERNELS = {"block": verify_block_logits, "token": verify_token_logits}
INPUTS = ("lengths", "nodes", "shape", "block", "dtype", "verdict")
POISON = -77


def poisoned(requests: int, paths: int, length: int, vocab: int, dtype: torch.dtype, block: int = 4096) -> Workspace:
    """A workspace in which everything a kernel writes starts as NaN or -77."""
    buffers = workspace(requests, paths, length, vocab, "cpu", dtype, block)
    written = [getattr(buffers, f.name) for f in dataclasses.fields(buffers) if f.name not in INPUTS]
    for tensor in [*written, buffers.verdict.path, buffers.verdict.accepted, buffers.verdict.token]:
        tensor.fill_(math.nan if tensor.is_floating_point() else POISON)
    return buffers


class GivenDraws(Draws):
    """Answers a tensor verifier from given uniforms, as the kernels do; remembers how near they came to a threshold.

    Args:
        coins [B, L]: one per coin; choices: one [B] per draw of an index, in order.

    Attributes:
        margin [B]: distance of the nearest threshold; thresholds [B, L]: of the coins.
    """

    def __init__(self, coins: Tensor, choices: list[Tensor]) -> None:
        super().__init__(None)
        self.coins, self.choices = coins, list(choices)
        self.margin = torch.full((len(coins),), math.inf, dtype=torch.float64)
        self.thresholds = coins

    def accept(self, probability: Tensor) -> Tensor:
        """Coin i comes up if its uniform is below its probability."""
        self.thresholds = probability
        self.margin = self.margin.minimum((self.coins - probability).abs().amin(dim=1))
        return self.coins < probability

    def choose(self, weights: Tensor) -> Tensor:
        """The first index whose cumulative weight exceeds the uniform times the total."""
        uniform = self.choices.pop(0)[:, None]
        cumulative = weights.cumsum(dim=1) / weights.sum(dim=1, keepdim=True)
        gaps = torch.cat([(uniform - cumulative[:, :-1]).abs(), self.margin[:, None]], dim=1)
        self.margin = gaps.amin(dim=1)
        return ((cumulative > uniform) & (weights > 0)).long().argmax(dim=1)


class Stratum(Draws):
    """Passes questions on to a replay and remembers the interval of uniforms [low, high) that gives its answer."""

    def __init__(self, inner: Draws) -> None:
        super().__init__(None)
        self.inner = inner
        self.coins: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self.choices: list[tuple[Tensor, Tensor]] = []

    def accept_last(self, probability: Tensor) -> Tensor:
        """Coins behind the last success fail; those before it may fall either way."""
        last = self.inner.accept_last(probability)
        place = torch.arange(1, probability.shape[1] + 1)
        zero, one = torch.zeros_like(probability), torch.ones_like(probability)
        low = torch.where(place > last[:, None], probability, zero)
        self.coins = low, torch.where(place == last[:, None], probability, one)
        return last

    def accept_while(self, probability: Tensor) -> Tensor:
        """Coins up to the first failure succeed; those behind it may fall either way."""
        count = self.inner.accept_while(probability)
        place = torch.arange(probability.shape[1])
        zero, one = torch.zeros_like(probability), torch.ones_like(probability)
        low = torch.where(place == count[:, None], probability, zero)
        self.coins = low, torch.where(place < count[:, None], probability, one)
        return count

    def choose(self, weights: Tensor) -> Tensor:
        """The interval of the cumulative law."""
        index = self.inner.choose(weights)
        cumulative = weights.cumsum(dim=1) / weights.sum(dim=1, keepdim=True)
        high = cumulative.gather(1, index[:, None])[:, 0]
        self.choices.append((high - weights.gather(1, index[:, None])[:, 0] / weights.sum(dim=1), high))
        return index


Kernel = Callable[[Batch, Tensor, list[Tensor]], Verdict]


def stratified(name: str, kernel: Kernel, places: tuple[float, ...] = (1 - 1e-3,)) -> Callable[[Batch, Draws], Verdict]:
    """A verifier for `exact_law` that decides with the kernel, at given places inside every stratum of the uniforms.

    The strata are those of the tensor verifier, with their exact probabilities, so that the law is integrated exactly
    if every stratum of the kernel is the same; places near 0 and 1 locate the thresholds to that part of a stratum.
    """

    def verify(batch: Batch, draws: Draws) -> Verdict:
        strata = Stratum(draws)
        get(name).verify(batch, strata)
        verdicts = []
        for place in places:
            coins, *choices = [low + (high - low) * place for low, high in (strata.coins, *strata.choices)]
            verdicts.append(kernel(batch, coins, choices))
        first, *others = [(v.path.clone(), v.accepted.clone(), v.token.clone()) for v in verdicts]
        path, accepted, token = first
        for other in others:
            same = torch.stack([one == two for one, two in zip(first, other, strict=True)]).all(dim=0)
            token = torch.where(same, token, (first[2] + 1) % batch.shape[3])
        return Verdict(path, accepted, token)

    return verify


NEAR_BOTH_ENDS = (1e-6, 1 - 1e-6)


def single_path_kernel(name: str, dtype: torch.dtype = torch.float64, laws: bool = False) -> Kernel:
    """The kernel on logits of the batch's laws, each request at its own temperature; two chunks per row and more."""

    def run(batch: Batch, coins: Tensor, choices: list[Tensor]) -> Verdict:
        requests, _, length, vocab = batch.shape
        temperatures = torch.linspace(0.5, 2, requests, dtype=torch.float64)
        rows = [probs[:, 0] for probs in (batch.target_probs, batch.draft_probs)]
        if not laws:
            rows = [row.log() * temperatures[:, None, None] + 3 for row in rows]
        target, draft = (row.to(dtype).contiguous() for row in rows)
        out = poisoned(requests, 1, length, vocab, dtype, block=16)
        tokens = batch.tokens[:, 0].contiguous()
        scale = torch.ones_like(temperatures) if laws else temperatures
        return KERNELS[name](target, draft, scale, tokens, None, coins, choices[-1], out=out, laws=laws)

    return run


TREES = [
    PrefixTree.iid([0.6, 0.25, 0.15], [0.8, 0.1, 0.1], 2),
    PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2),
    PrefixTree.iid([0.5, 0.0, 0.5], [0.5, 0.5, 0.0], 1),
]


@pytest.mark.parametrize("tree", TREES, ids=["three-tokens", "two-tokens", "zeros"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_exact_law_through_the_kernel_is_the_targets(name: str, tree: PrefixTree) -> None:
    places = NEAR_BOTH_ENDS if tree is TREES[0] else (1 - 1e-3,)
    law = exact_law(stratified(name, single_path_kernel(name), places), tree)
    assert law.total_variation(tree.target_law()) < 1e-12
    assert abs(law.acceptance_length - exact_law(name, tree).acceptance_length) < 1e-12


def test_probabilities_and_single_precision_give_the_same_law() -> None:
    for kernel in (single_path_kernel("block", torch.float32), single_path_kernel("block", laws=True)):
        law = exact_law(stratified("block", kernel), TREES[1])
        assert law.total_variation(TREES[1].target_law()) < 1e-12


@triton.jit
def surplus_without_ratio(
    target, draft, temperatures, nodes, norms, ratios, selection, request, depth, offsets, paths, length, vocab,
    SELECTED: tl.constexpr, IS_LAW: tl.constexpr, TINY: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The residual of token verification, in block verification: a bug that has shipped elsewhere."""
    inverse = passes.inverse_temperature(temperatures, request, REAL)
    slot = request * 2 * (length + 1) + depth
    ahead = passes.read_row(target, request * (length + 1) + depth, offsets, vocab, IS_LAW, REAL)
    drawn = passes.read_row(draft, request * length + depth, offsets, vocab, IS_LAW, REAL)
    target_law = passes.law(ahead, inverse, norms, slot, REAL)
    return tl.maximum(target_law - passes.law(drawn, inverse, norms, slot + length + 1, REAL), 0.0)


def test_the_law_check_rejects_the_residual_of_token_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "surplus", surplus_without_ratio)
    law = exact_law(stratified("block", single_path_kernel("block")), TREES[0])
    assert law.total_variation(TREES[0].target_law()) > 1e-3


def test_the_law_check_rejects_coins_in_the_wrong_order() -> None:
    def swapped(batch: Batch, coins: Tensor, choices: list[Tensor]) -> Verdict:
        return single_path_kernel("block")(batch, coins.flip(1).contiguous(), choices)

    law = exact_law(stratified("block", swapped), TREES[1])
    assert law.total_variation(TREES[1].target_law()) > 1e-3


@dataclasses.dataclass
class Case:
    """Inputs of a kernel from logits, and what the tensor verifiers make of them in float64."""

    target: Tensor
    draft: Tensor
    temperatures: Tensor
    tokens: Tensor
    coins: Tensor
    choice: Tensor

    def laws(self) -> tuple[Tensor, Tensor]:
        """Target and draft laws [B, N, V] in float64; at temperature 0 uniform over the largest logits."""
        scale = self.temperatures.double().clamp_min(1e-30)[:, None, None]

        def softmax(logits: Tensor) -> Tensor:
            shifted = logits.double() - logits.double().amax(dim=-1, keepdim=True)
            return (shifted / scale).softmax(dim=-1)

        return softmax(self.target), softmax(self.draft)

    def kernel(self, name: str, lengths: Tensor | None = None, block: int = 4096) -> Verdict:
        """The kernel's verdict, in poisoned buffers."""
        requests, length, vocab = self.draft.shape
        out = poisoned(requests, 1, length, vocab, self.target.dtype, block)
        rest = (self.temperatures, self.tokens, lengths, self.coins, self.choice)
        return KERNELS[name](self.target, self.draft, *rest, out=out)

    def tensor(self, name: str) -> tuple[Verdict, Tensor]:
        """The tensor verifier's verdict and the margin [B] of its uniforms."""
        target, draft = self.laws()
        draws = GivenDraws(self.coins, [self.choice])
        batch = Batch(self.tokens[:, None], draft[:, None], target[:, None])
        return get(name).verify(batch, draws), draws.margin


def random_case(
    requests: int, length: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0, masked: bool = False
) -> Case:
    """Correlated Gaussian logits; `masked` puts most at -inf, as top-k does, not the same ones in both models."""
    generator = torch.Generator().manual_seed(seed)
    target = 2 * torch.randn(requests, length + 1, vocab, generator=generator)
    draft = target[:, :-1] + torch.randn(requests, length, vocab, generator=generator)
    temperatures = torch.rand(requests, generator=generator) + 0.3
    if masked:
        for rows in (target, draft):
            kept = torch.rand(rows.shape, generator=generator) < 0.2
            kept.scatter_(-1, rows.argmax(dim=-1, keepdim=True), True)
            rows.masked_fill_(~kept, -torch.inf)
    target, draft = target.to(dtype), draft.to(dtype)
    laws = (draft.double() / temperatures[:, None, None]).softmax(dim=-1).flatten(0, 1)
    tokens = torch.multinomial(laws, 1, generator=generator).view(requests, length)
    uniforms = torch.rand(requests, length + 1, dtype=torch.float64, generator=generator)
    coins, choice = uniforms[:, :length].contiguous(), uniforms[:, length].contiguous()
    return Case(target, draft, temperatures, tokens, coins, choice)


def undecided(got: Verdict, want: Verdict, margin: Tensor, resolution: float) -> int:
    """Assert equal verdicts wherever no uniform lies within `resolution` of a threshold; how many requests are left."""
    clear = margin > resolution
    for name in ("path", "accepted", "token"):
        assert torch.equal(getattr(got, name)[clear], getattr(want, name)[clear]), name
    return int((~clear).sum())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decisions_equal_the_tensor_versions_in_double_precision(name: str, dtype: torch.dtype) -> None:
    case = random_case(requests=8, length=3, vocab=127, dtype=dtype)
    assert undecided(case.kernel(name, block=64), *case.tensor(name), resolution=1e-5) <= 2


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("vocab", [1, 2, 17])
def test_small_vocabularies_and_masked_logits(name: str, vocab: int) -> None:
    case = random_case(requests=8, length=3, vocab=vocab, seed=vocab, masked=True)
    assert undecided(case.kernel(name), *case.tensor(name), resolution=1e-5) <= 1


@pytest.mark.parametrize("vocab", [50257, 128256])
def test_vocabularies_of_real_models(vocab: int) -> None:
    for name in KERNELS:
        case = random_case(requests=1, length=1, vocab=vocab, dtype=torch.bfloat16, seed=3)
        case.coins.fill_(0.97)
        assert undecided(case.kernel(name), *case.tensor(name), resolution=1e-7) == 0


@pytest.mark.parametrize("name", KERNELS)
def test_temperatures_near_and_at_zero(name: str) -> None:
    case = random_case(requests=8, length=2, vocab=33, seed=5)
    case.temperatures = torch.tensor([0, 1e-12, 1e-6, 1e-3, 1e-2, 0, 1e-9, 1e9])
    case.tokens[:4] = case.draft[:4].argmax(dim=-1)
    assert undecided(case.kernel(name), *case.tensor(name), resolution=1e-5) <= 1


@pytest.mark.parametrize("name", KERNELS)
def test_equal_laws_keep_every_token(name: str) -> None:
    case = random_case(requests=4, length=3, vocab=19)
    case.draft = case.target[:, :-1].clone()
    case.coins.fill_(1 - 1e-9)
    assert case.kernel(name).accepted.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("name", KERNELS)
def test_ragged_drafts_decide_as_each_does_alone_and_rows_behind_them_are_not_read(name: str) -> None:
    whole = random_case(requests=8, length=3, vocab=21, seed=2)
    lengths = torch.tensor([3, 0, 1, 2, 0, 1, 2, 3], dtype=torch.int32)
    case = dataclasses.replace(whole, target=whole.target.clone(), draft=whole.draft.clone())
    for row, length in enumerate(lengths.tolist()):
        case.target[row, length + 1 :] = case.draft[row, length:] = math.nan
        case.tokens[row, length:] = -1
    got = case.kernel(name, lengths, block=16)
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        parts = (case.temperatures[one], case.tokens[one, :length], case.coins[one, :length], case.choice[one])
        alone = Case(case.target[one, : length + 1], case.draft[one, :length], *parts)
        if length:
            want, margin = alone.tensor(name)
        else:
            draws = GivenDraws(alone.coins, [alone.choice])
            zero = torch.zeros(1, dtype=torch.int64)
            want, margin = Verdict(zero, zero, draws.choose(alone.laws()[0][:, 0])), draws.margin
        answer = Verdict(got.path[one], got.accepted[one], got.token[one])
        assert undecided(answer, want, margin, resolution=1e-5) == 0


def test_the_comparison_rejects_a_kernel_that_ignores_the_temperature() -> None:
    case = random_case(requests=16, length=3, vocab=21)
    want, margin = case.tensor("block")
    case.temperatures = torch.ones(16)
    with pytest.raises(AssertionError, match=r"accepted|token"):
        undecided(case.kernel("block"), want, margin, resolution=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_rows_without_a_law_and_unknown_tokens_are_flagged_and_leave_the_others_alone(name: str) -> None:
    case = random_case(requests=6, length=2, vocab=9)
    want = case.kernel(name)
    keep = [want.accepted[5].item(), want.token[5].item()]
    case.target[0, 1, 3] = math.nan
    case.target[1, 0] = -torch.inf
    case.draft[2, 1, 0] = torch.inf
    case.tokens[3, 1] = 9
    case.tokens[4, 0] = -1
    got = case.kernel(name)
    assert got.accepted.tolist()[:5] == [0] * 5
    assert got.token.tolist()[:5] == [-1] * 5
    assert [got.accepted[5].item(), got.token[5].item()] == keep


def test_buffers_can_be_used_again_and_no_requests_give_an_empty_verdict() -> None:
    first, second = (random_case(requests=5, length=2, vocab=20, seed=seed) for seed in (1, 2))
    out = poisoned(5, 1, 2, 20, torch.float32)
    for case in (first, second, first):
        rest = (case.temperatures, case.tokens, None, case.coins, case.choice)
        got = verify_block_logits(case.target, case.draft, *rest, out=out)
        assert got.token.data_ptr() == out.verdict.token.data_ptr()
        assert undecided(got, *case.tensor("block"), resolution=1e-5) == 0
    empty = random_case(requests=1, length=2, vocab=4)
    parts = {field.name: getattr(empty, field.name)[:0] for field in dataclasses.fields(empty)}
    assert Case(**parts).kernel("block").token.shape == (0,)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("target", lambda x: x[:, :-1].contiguous(), r"target_logits has shape \(2, 1, 2, 5\); want \(2, 1, 3, 5\)"),
        ("tokens", lambda x: x.int(), "tokens has dtype torch.int32; want torch.int64"),
        ("coins", lambda x: x[:, :1], "coin_uniforms has shape"),
        ("draft", lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), "draft_logits is not contiguous"),
        ("draft", lambda x: x.long(), "draft_logits has dtype torch.int64"),
        ("target", lambda x: x.double(), "out computes in torch.float32"),
    ],
)
def test_wrong_arguments_are_named(field: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    case = random_case(requests=2, length=2, vocab=5)
    setattr(case, field, change(getattr(case, field)))
    rest = (case.temperatures, case.tokens, None, case.coins, case.choice)
    with pytest.raises(ValueError, match=message):
        verify_block_logits(case.target, case.draft, *rest, out=poisoned(2, 1, 2, 5, torch.float32))


def many_paths(requests: int, paths: int, length: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Target logits [B, K, L+1, V], draft logits [B, K, L, V], drafted tokens [B, K, L]; a row has one prefix."""
    target = torch.empty(requests, paths, length + 1, vocab, dtype=dtype)
    draft = torch.empty(requests, paths, length, vocab, dtype=dtype)
    tokens = torch.empty(requests, paths, length, dtype=torch.int64)
    sampler = torch.Generator().manual_seed(0)
    for request, path in itertools.product(range(requests), range(paths)):
        seed = request + 1
        for depth in range(length + 1):
            row = torch.randn(2, vocab, generator=torch.Generator().manual_seed(seed))
            target[request, path, depth] = 1.5 * row[0]
            if depth < length:
                draft[request, path, depth] = row[0] + 1.5 * row[1]
                law = draft[request, path, depth].double().softmax(dim=-1)
                token = int(torch.multinomial(law, 1, generator=sampler))
                tokens[request, path, depth] = token
                seed = seed * 1009 + token + 1
    return target, draft, tokens


def uniforms(requests: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Selection [B, L], coin [B, L] and choice [B] uniforms."""
    generator = torch.Generator().manual_seed(seed)
    select, coins = torch.rand(2, requests, length, dtype=torch.float64, generator=generator)
    return select, coins, torch.rand(requests, dtype=torch.float64, generator=generator)


def two_level_both(
    paths: int, vocab: int, dtype: torch.dtype, requests: int = 4
) -> tuple[Verdict, Verdict, Tensor, float]:
    """Verdicts of kernel and tensor version for L = 2, the margin, and the largest difference of the last threshold."""
    target, draft, tokens = many_paths(requests, paths, 2, vocab, dtype)
    select, coins, choice = uniforms(requests, 2)
    out = poisoned(requests, paths, 2, vocab, dtype, block=16)
    ones = torch.ones(requests)
    got = verify_two_level_logits(target, draft, ones, tokens, None, select, coins, choice, out=out)
    draws = GivenDraws(coins, [*(select.unbind(dim=1) if paths > 1 else []), choice])
    batch = Batch(tokens, draft.double().softmax(dim=-1), target.double().softmax(dim=-1))
    want = get("two-level").verify(batch, draws)
    return got, want, draws.margin, float((out.ratios[:, -1] - draws.thresholds[:, -1]).abs().max())


@pytest.mark.parametrize(
    ("paths", "vocab", "dtype", "resolution"),
    [(3, 5, torch.float64, 1e-7), (2, 40, torch.float32, 1e-3), (1, 17, torch.bfloat16, 1e-3)],
)
def test_two_level_decides_as_the_tensor_version(paths: int, vocab: int, dtype: torch.dtype, resolution: float) -> None:
    got, want, margin, difference = two_level_both(paths, vocab, dtype)
    assert undecided(got, want, margin, resolution) <= 1
    assert difference < resolution
    assert paths == 1 or len(set(got.path.tolist())) > 1


@triton.jit
def same_count(counts, level, mass, fails, high, low, PATHS: tl.constexpr):
    """A walk that forgets that paths drop out."""
    return counts


def test_the_two_level_comparison_rejects_a_walk_that_forgets_how_many_paths_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(two_level, "count_below", same_count)
    assert two_level_both(3, 5, torch.float32)[-1] > 1e-2


SKEWED = PrefixTree.iid([0.1, 0.5, 0.4], [0.8, 0.1, 0.1], 1)


def two_level_kernel(batch: Batch, coins: Tensor, choices: list[Tensor]) -> Verdict:
    """The kernel on the batch's laws, in float32."""
    *select, choice = choices
    requests, paths, length, vocab = batch.shape
    out = poisoned(requests, paths, length, vocab, torch.float32)
    target, draft = (probs.log().float() for probs in (batch.target_probs, batch.draft_probs))
    stacked = torch.stack(select, dim=1)
    return verify_two_level_logits(
        target, draft, torch.ones(requests), batch.tokens, None, stacked, coins, choice, out=out
    )


def test_the_exact_law_through_the_two_level_kernel_is_the_targets() -> None:
    law = exact_law(stratified("two-level", two_level_kernel), SKEWED, paths=2)
    assert law.total_variation(SKEWED.target_law()) < 1e-12
    assert abs(law.acceptance_length - exact_law("two-level", SKEWED, paths=2).acceptance_length) < 1e-12


@triton.jit
def draft_law_only(target, draft, ratio, selection, TINY: tl.constexpr, REAL: tl.constexpr):
    """The selected path verified as if it had not been selected."""
    return draft


def test_the_law_check_rejects_a_selected_path_verified_against_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "selected_law", draft_law_only)
    law = exact_law(stratified("two-level", two_level_kernel), SKEWED, paths=2)
    assert law.total_variation(SKEWED.target_law()) > 1e-3


def test_rows_off_the_selected_path_are_not_read_and_shorter_drafts_end_earlier() -> None:
    requests, paths, length, vocab = 3, 3, 2, 6
    target, draft, tokens = many_paths(requests, paths, length, vocab, torch.float32)
    lengths = torch.tensor([2, 1, 0], dtype=torch.int32)
    drawn = uniforms(requests, length, seed=1)
    out = poisoned(requests, paths, length, vocab, torch.float32)
    first = verify_two_level_logits(target, draft, torch.ones(requests), tokens, lengths, *drawn, out=out)
    want = [getattr(first, name).tolist() for name in ("path", "accepted", "token")]
    on_walk = torch.zeros(requests, paths, length + 1, dtype=torch.bool)
    for request, depth in itertools.product(range(requests), range(length + 1)):
        on_walk[request, out.nodes[request, depth], depth] = depth <= lengths[request]
    target[~on_walk] = math.nan
    draft[~(on_walk[:, :, :-1] & (torch.arange(length) < lengths[:, None])[:, None])] = math.nan
    again = verify_two_level_logits(target, draft, torch.ones(requests), tokens, lengths, *drawn, out=out)
    assert [getattr(again, name).tolist() for name in ("path", "accepted", "token")] == want
    assert want[1][2] == 0
    assert min(want[2]) >= 0


def test_two_level_flags_a_row_without_a_law_on_the_walk() -> None:
    target, draft, tokens = many_paths(2, 2, 1, 5, torch.float32)
    target[0, :, 0] = -torch.inf
    tokens[1, 1, 0] = 5
    got = verify_two_level_logits(
        target, draft, torch.ones(2), tokens, None, *uniforms(2, 1), out=poisoned(2, 2, 1, 5, torch.float32)
    )
    assert got.token.tolist() == [-1, -1]
    assert got.accepted.tolist() == [0, 0]


@pytest.mark.parametrize(("name", "paths"), [("block", 1), ("token", 1), ("two-level", 2)])
def test_a_batch_of_probabilities_is_verified_with_uniforms_of_its_generator(name: str, paths: int) -> None:
    target, draft, tokens = many_paths(3, paths, 1, 6, torch.float32)
    batch = Batch(tokens, draft.softmax(dim=-1), target.softmax(dim=-1))
    drawn = torch.Generator().manual_seed(11)
    coins, choice, select = (torch.rand(shape, dtype=torch.float64, generator=drawn) for shape in ((3, 1), (3,), (3,)))
    draws = GivenDraws(coins, [select, choice] if paths > 1 else [choice])
    want = get(name).verify(Batch(tokens, batch.draft_probs.double(), batch.target_probs.double()), draws)
    got = verify_laws(name, batch, torch.Generator().manual_seed(11))
    assert undecided(got, want, draws.margin, resolution=1e-3) == 0
