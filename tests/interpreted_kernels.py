"""The fused kernels under Triton's interpreter; `test_kernels.py` runs this file in a process of its own.

Letters: B requests, K paths, L drafted tokens, V vocabulary. Every buffer is poisoned before every call.
"""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from specbound.proofs_checks.law import exact_law
from specbound.runtime.draws import Draws
from specbound.runtime.kernels import Workspace, passes, verify_block_logits, verify_token_logits, workspace
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
        coins [B, L]: one per coin; choices: one [B] per draw of an index, in order; keys [B, K].
    """

    def __init__(self, coins: Tensor, choices: list[Tensor], keys: Tensor | None = None) -> None:
        super().__init__(None)
        self.coins, self.choices, self.keys = coins, list(choices), keys
        self.margin = torch.full((len(coins),), math.inf, dtype=torch.float64)

    def accept(self, probability: Tensor) -> Tensor:
        """Coin i comes up if its uniform is below its probability."""
        self.margin = self.margin.minimum((self.coins - probability).abs().amin(dim=1))
        return self.coins < probability

    def choose(self, weights: Tensor) -> Tensor:
        """The first index whose cumulative weight exceeds the uniform times the total."""
        uniform = self.choices.pop(0)[:, None]
        cumulative = weights.cumsum(dim=1) / weights.sum(dim=1, keepdim=True)
        self.margin = (
            self.margin.minimum((uniform - cumulative[:, :-1]).abs().amin(dim=1, keepdim=True)[:, 0])
            if (weights.shape[1] > 1)
            else self.margin
        )
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


def stratified(name: str, kernel: Kernel, inset: float = 1e-6) -> Callable[[Batch, Draws], Verdict]:
    """A verifier for `exact_law` that decides with the kernel, near both ends of every stratum of the uniforms.

    The strata are those of the tensor verifier, with their exact probabilities; the kernel must decide the same at
    both ends, `inset` of the stratum's width inside. So each threshold of the kernel is located to that resolution.
    """

    def verify(batch: Batch, draws: Draws) -> Verdict:
        strata = Stratum(draws)
        get(name).verify(batch, strata)
        ends = []
        for place in (inset, 1 - inset):
            coins, *choices = [low + (high - low) * place for low, high in (strata.coins, *strata.choices)]
            ends.append(kernel(batch, coins, choices))
        first, second = ends
        same = (first.accepted == second.accepted) & (first.token == second.token) & (first.path == second.path)
        return dataclasses.replace(first, token=torch.where(same, first.token, (first.token + 1) % batch.shape[3]))

    return verify


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
    PrefixTree.random(vocab=3, length=2, seed=1),
    PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2),
    PrefixTree.iid([0.5, 0.0, 0.5], [0.5, 0.5, 0.0], 1),
]


@pytest.mark.parametrize("tree", TREES, ids=["random", "two-tokens", "zeros"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_exact_law_through_the_kernel_is_the_targets(name: str, tree: PrefixTree) -> None:
    law = exact_law(stratified(name, single_path_kernel(name)), tree)
    assert law.total_variation(tree.target_law()) < 1e-12
    assert abs(law.acceptance_length - exact_law(name, tree).acceptance_length) < 1e-12


def test_probabilities_and_single_precision_give_the_same_law() -> None:
    for kernel in (single_path_kernel("block", torch.float32), single_path_kernel("block", laws=True)):
        law = exact_law(stratified("block", kernel, inset=1e-4), TREES[1])
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

    law = exact_law(stratified("block", swapped), TREES[0])
    assert law.total_variation(TREES[0].target_law()) > 1e-3


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
    case = random_case(requests=24, length=3, vocab=127, dtype=dtype)
    assert undecided(case.kernel(name, block=64), *case.tensor(name), resolution=1e-5) <= 2


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("vocab", [1, 2, 17])
def test_small_vocabularies_and_masked_logits(name: str, vocab: int) -> None:
    case = random_case(requests=16, length=3, vocab=vocab, seed=vocab, masked=True)
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
