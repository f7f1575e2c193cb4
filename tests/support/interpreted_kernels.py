"""The fused kernels under Triton's interpreter; `test_kernels.py` runs this file in a process of its own.

Every buffer is poisoned before every call. A *question* is one request of a verifier for randomness; `answers` are the
uniforms of its questions, in the order in which the tensor version asks them.

Letters: B requests, K paths, L drafted tokens, V vocabulary.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from triton.runtime import interpreter

from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime import compiled, kernels
from specbound.runtime.decode import generate
from specbound.runtime.draws import Draws
from specbound.runtime.kernels import (
    Workspace,
    gbv_bucketed,
    key_race,
    passes,
    single_path,
    two_level,
    verify_laws,
    workspace,
)
from specbound.runtime.kernels import buffers as kernel_buffers
from specbound.runtime.kernels.histograms import LAST, knot_of
from specbound.runtime.kernels.rows import inverse_temperature, log_law, read_row
from specbound.runtime.kernels.single_path import sum_rows
from specbound.runtime.parts import ratio_knots
from specbound.runtime.parts.draft_tree import first_appearance
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers import get
from specbound.theory.prefix_tree import PrefixTree
from tests.support.fast_interpreter import speed_up

SINGLE, SELECTING = ("block", "token"), ("two-level", "gbv-bucketed")
MANY = (*SELECTING, "key-race")
POISON = -77
Answers = list[Tensor]
Kernel = Callable[[Batch, Answers], Verdict]


@pytest.fixture(autouse=True, scope="session")
def _interpreter_is_fast() -> None:
    speed_up()


COMPARED: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="session")
def _near_thresholds_are_reported() -> Iterator[None]:
    yield
    print(f"\n{COMPARED['all']} requests compared; {COMPARED['near']} left out, with a uniform near a threshold")


def buffers(
    requests: int, paths: int, length: int, vocab: int, dtype: torch.dtype, block: int = 4096, span: int = 8
) -> Workspace:
    """A workspace in which everything a kernel writes starts as NaN or -77; residual masses as 77, as if real."""
    out = workspace(requests, paths, length, vocab, "cpu", dtype, block, span)
    for name, tensor in tensors_of(out).items():
        if name != "lengths" and not (name == "nodes" and paths == 1):
            tensor.fill_(math.nan if tensor.is_floating_point() else POISON)
    out.masses.fill_(-POISON)
    return out


def tensors_of(out: Workspace) -> dict[str, Tensor]:
    """Every tensor of a workspace by name."""
    fields = {field.name: getattr(out, field.name) for field in dataclasses.fields(out)}
    found = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    for name in ("verdict", "path_verdict"):
        found |= {f"{name} {part}": getattr(fields[name], part) for part in ("path", "accepted", "token")}
    return found


def function_of(name: str) -> Callable[..., Verdict]:
    """The kernel from logits of that name."""
    function: Callable[..., Verdict] = getattr(kernels, f"verify_{name.replace('-', '_')}_logits")
    return function


def arguments(name: str, paths: int, length: int, answers: Answers) -> Answers:
    """The answers as arguments of the kernel."""
    if name == "key-race":
        keys = answers[2 * paths] if paths > 1 else torch.zeros_like(answers[1])[:, None]
        return [torch.stack(answers[0 : 2 * paths : 2], 1), torch.stack(answers[1 : 2 * paths : 2], 1), keys]
    if name == "two-level":
        select = torch.stack(answers[:-2], 1) if paths > 1 else torch.zeros_like(answers[0])
        return [select, *answers[-2:]]
    return answers


def shortened(name: str, paths: int, answers: Answers, length: int) -> Answers:
    """Answers for drafts cut to `length` tokens."""
    if name == "key-race":
        coins = range(0, 2 * paths, 2)
        return [answer[:, :length] if place in coins else answer for place, answer in enumerate(answers)]
    return [*answers[:-2][:length], answers[-2][:, :length], answers[-1]]


class GivenDraws(Draws):
    """Answers a tensor verifier from given uniforms; remembers how near they came to a threshold.

    Attributes:
        margin [B]: distance of the nearest threshold; thresholds [B, L]: of the last coins.
    """

    def __init__(self, answers: Answers) -> None:
        super().__init__(None)
        self.answers = list(answers)
        self.margin = torch.full((len(answers[0]),), math.inf, dtype=torch.float64)
        self.thresholds = answers[0]

    def _uniform(self, like: Tensor) -> Tensor:
        return self.answers.pop(0).view(like.shape)

    def _near(self, gaps: Tensor) -> None:
        self.margin = self.margin.minimum(gaps.flatten(1).amin(dim=1)) if gaps.shape[1] else self.margin

    def accept(self, probability: Tensor) -> Tensor:
        """A coin comes up if its uniform is below its probability."""
        self.thresholds = probability
        self._near((self.answers[0] - probability).abs())
        return super().accept(probability)

    def choose(self, weights: Tensor) -> Tensor:
        """The first index whose cumulative weight exceeds the uniform times the total."""
        cumulative = weights.cumsum(dim=1) / weights.sum(dim=1, keepdim=True)
        self._near((self.answers[0][:, None] - cumulative[:, :-1]).abs())
        return super().choose(weights)

    def smallest_key(self, low: Tensor, high: Tensor) -> Tensor:
        """The smallest of keys low + (high - low) uniform."""
        keys = (low + (high - low) * self.answers[0]).sort(dim=1).values
        self._near(keys[:, 1:2] - keys[:, :1])
        return super().smallest_key(low, high)


class Stratum(Draws):
    """Passes questions on to a replay and remembers where a uniform must lie for its answer.

    `questions` are functions from a place in (0, 1) to uniforms: near 0 and near 1 they are at the ends of the stratum.
    """

    def __init__(self, inner: Draws) -> None:
        super().__init__(None)
        self.inner = inner
        self.questions: list[Callable[[float], Tensor]] = []

    def _between(self, low: Tensor, high: Tensor) -> None:
        self.questions.append(lambda place: low + (high - low) * place)

    def accept_last(self, probability: Tensor) -> Tensor:
        """Coins behind the last success fail; those before it may fall either way."""
        last = self.inner.accept_last(probability)
        place = torch.arange(1, probability.shape[1] + 1)
        zero, one = torch.zeros_like(probability), torch.ones_like(probability)
        self._between(
            torch.where(place > last[:, None], probability, zero), torch.where(place == last[:, None], probability, one)
        )
        return last

    def accept_while(self, probability: Tensor) -> Tensor:
        """Coins up to the first failure succeed; those behind it may fall either way."""
        count = self.inner.accept_while(probability)
        place = torch.arange(probability.shape[1])
        zero, one = torch.zeros_like(probability), torch.ones_like(probability)
        self._between(
            torch.where(place == count[:, None], probability, zero),
            torch.where(place < count[:, None], probability, one),
        )
        return count

    def choose(self, weights: Tensor) -> Tensor:
        """The interval of the cumulative law."""
        index = self.inner.choose(weights)
        cumulative = weights.cumsum(dim=1) / weights.sum(dim=1, keepdim=True)
        high = cumulative.gather(1, index[:, None])[:, 0]
        self._between(high - weights.gather(1, index[:, None])[:, 0] / weights.sum(dim=1), high)
        return index

    def smallest_key(self, low: Tensor, high: Tensor) -> Tensor:
        """The winner's key below every other's upper end, in the middle; the others' between it and their end."""
        winner = self.inner.smallest_key(low, high)[:, None]
        span = (high - low).clamp_min(1e-300)

        def uniforms(place: float) -> Tensor:
            own = low.gather(1, winner)
            key = own + (high.amin(dim=1, keepdim=True) - own) / 2
            least = low.maximum(key)
            others = (least + (high - least) * place - low) / span
            return others.scatter(1, winner, (key - own) / span.gather(1, winner)).clamp(0, 1 - 1e-15)

        self.questions.append(uniforms)
        return winner[:, 0]


@contextmanager
def fixed_knots(gap: float = 0.0) -> Iterator[None]:
    """The tensor versions look at small vocabularies through the knots of large ones, as the kernels do.

    From logits that are `gap` octaves of target/draft from normalised ones the knots lie at 2^-gap of those.
    """
    knots, bits, scale = ratio_knots.fixed_knots, ratio_knots._leading_bits, 2.0**-gap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ratio_knots, "MOST", 0)
        if gap:
            patch.setattr(compiled, "usable", lambda device="cpu": False)
            patch.setattr(ratio_knots, "fixed_knots", lambda device: knots(device) * scale)
            patch.setattr(ratio_knots, "_leading_bits", lambda ratio: bits(ratio / scale))
        yield


def stratified(
    name: str, kernel: Kernel, places: tuple[float, ...] = (1 - 1e-3,), gap: float = 0.0
) -> Callable[[Batch, Draws], Verdict]:
    """A verifier for `exact_law` that decides with the kernel, at given places inside every stratum of the uniforms.

    The strata are those of the tensor verifier, with their exact probabilities, so that the law is integrated exactly
    if every stratum of the kernel is the same; places near 0 and 1 locate the thresholds to that part of a stratum.
    """

    def verify(batch: Batch, draws: Draws) -> Verdict:
        strata = Stratum(draws)
        with fixed_knots(gap):
            get(name).verify(batch, strata)
        verdicts = [kernel(batch, [question(place) for question in strata.questions]) for place in places]
        first, *others = [(v.path.clone(), v.accepted.clone(), v.token.clone()) for v in verdicts]
        path, accepted, token = first
        for other in others:
            same = torch.stack([one == two for one, two in zip(first, other, strict=True)]).all(dim=0)
            token = torch.where(same, token, (first[2] + 1) % batch.shape[3])
        return Verdict(path, accepted, token)

    return verify


NEAR_BOTH_ENDS = (1e-6, 1 - 1e-6)
INSIDE = (1 - 1e-3,)


def on_logits(name: str, dtype: torch.dtype = torch.float64, laws: bool = False, gap: float = 0.0) -> Kernel:
    """The kernel on logits of the batch's laws, each request at its own temperature; chunks of 16.

    gap: octaves by which the target's logits are above those of its law, more than the draft's.
    """

    def run(batch: Batch, answers: Answers) -> Verdict:
        requests, paths, length, vocab = batch.shape
        temperatures = torch.linspace(0.5, 2, requests, dtype=torch.float64)
        rows = [batch.target_probs, batch.draft_probs]
        if not laws:
            scale = temperatures[:, None, None, None]
            rows = [(row.log() + math.log(2) * up) * scale + 3 for row, up in zip(rows, (gap, 0), strict=True)]
        inputs = [*(row.to(dtype) for row in rows), batch.tokens]
        target, draft, tokens = (each[:, 0].contiguous() if name in SINGLE else each.contiguous() for each in inputs)
        scale = torch.ones_like(temperatures) if laws else temperatures
        out = buffers(requests, paths, length, vocab, dtype, block=16)
        drawn = [each.contiguous() for each in arguments(name, paths, length, answers)]
        return function_of(name)(target, draft, scale, tokens, None, *drawn, out=out, laws=laws)

    return run


TREES = {
    "three tokens": PrefixTree.iid([0.6, 0.25, 0.15], [0.8, 0.1, 0.1], 2),
    "two tokens": PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2),
    "one step": PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 1),
    "zeros": PrefixTree.iid([0.5, 0.0, 0.5], [0.5, 0.5, 0.0], 1),
    "skewed": PrefixTree.iid([0.1, 0.5, 0.4], [0.8, 0.1, 0.1], 1),
}


@pytest.mark.parametrize(
    ("name", "paths", "dtype", "tree", "places"),
    [
        *((name, 1, torch.float64, "two tokens", NEAR_BOTH_ENDS) for name in SINGLE),
        ("block", 1, torch.float64, "three tokens", INSIDE),
        *((name, 1, torch.float64, "zeros", INSIDE) for name in SINGLE),
        ("two-level", 2, torch.float32, "skewed", INSIDE),
        ("key-race", 2, torch.float64, "one step", INSIDE),
        ("gbv-bucketed", 2, torch.float64, "one step", INSIDE),
    ],
)  # fmt: skip
def test_the_exact_law_through_the_kernel_is_the_targets(
    name: str, paths: int, dtype: torch.dtype, tree: str, places: tuple[float, ...]
) -> None:
    law = exact_law(stratified(name, on_logits(name, dtype), places), TREES[tree], paths=paths)
    assert law.total_variation(TREES[tree].target_law()) < 1e-12
    with fixed_knots():
        assert abs(law.acceptance_length - exact_law(name, TREES[tree], paths=paths).acceptance_length) < 1e-12


@pytest.mark.parametrize(("name", "gap"), [("two-level", 5.3), ("gbv-bucketed", -0.4)])
def test_the_exact_law_is_the_targets_wherever_the_knots_lie(name: str, gap: float) -> None:
    """The tree's ratios 1/8, 4 and 5 are knots of normalised rows, and not of these."""
    tree = TREES["skewed"]
    law = exact_law(stratified(name, on_logits(name, gap=gap), gap=gap - round(gap)), tree, paths=2)
    assert law.total_variation(tree.target_law()) < 1e-12
    with fixed_knots(gap - round(gap)):
        assert abs(law.acceptance_length - exact_law(name, tree, paths=2).acceptance_length) < 1e-12


def test_probabilities_and_single_precision_give_the_same_law() -> None:
    for kernel in (on_logits("block", torch.float32), on_logits("block", torch.float32, laws=True)):
        law = exact_law(stratified("block", kernel), TREES["two tokens"])
        assert law.total_variation(TREES["two tokens"].target_law()) < 1e-12


@triton.jit
def surplus_without_ratio(
    target, draft, temperatures, nodes, norms, ratios, selection, windows, walk, depth, chunk, length, vocab,
    BLOCK: tl.constexpr, SELECTED: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr,
    IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The residual of token verification, in block verification: a bug that has shipped elsewhere."""
    offsets = chunk * BLOCK + tl.arange(0, BLOCK)
    inverse = inverse_temperature(temperatures, walk, REAL)
    ahead = read_row(target, walk * (length + 1) + depth, offsets, vocab, IS_LAW, REAL)
    drawn = read_row(draft, walk * length + depth, offsets, vocab, IS_LAW, REAL)
    slot = walk * 2 * (length + 1) + depth
    target_law = tl.exp(log_law(ahead, inverse, norms, slot, REAL))
    return tl.maximum(target_law - tl.exp(log_law(drawn, inverse, norms, slot + length + 1, REAL)), 0.0)


@triton.jit
def density_unselected(
    ahead, drawn, inverse, norms, selection, windows, walk, node, depth, chunk, offsets, length,
    SELECTED: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The selected path verified as if it had not been selected."""
    return 1.0


@triton.jit
def no_excess(target, draft, log_ratio):
    """Keys that know nothing of what their path kept."""
    return target * 0.0


@pytest.mark.parametrize(
    ("name", "paths", "tree", "module", "attribute", "broken"),
    [
        ("block", 1, "three tokens", passes, "surplus", surplus_without_ratio),
        *((name, 2, "skewed", passes, "selected_density", density_unselected) for name in SELECTING),
        ("key-race", 2, "one step", key_race, "log_excess", no_excess),
    ],
)
def test_the_law_check_rejects_broken_kernels(
    monkeypatch: pytest.MonkeyPatch, name: str, paths: int, tree: str, module: object, attribute: str, broken: object
) -> None:
    monkeypatch.setattr(module, attribute, broken)
    law = exact_law(stratified(name, on_logits(name, torch.float32)), TREES[tree], paths=paths)
    assert law.total_variation(TREES[tree].target_law()) > 1e-3


def test_the_law_check_rejects_coins_in_the_wrong_order() -> None:
    def swapped(batch: Batch, answers: Answers) -> Verdict:
        return on_logits("block")(batch, [answers[0].flip(1), answers[1]])

    law = exact_law(stratified("block", swapped), TREES["two tokens"])
    assert law.total_variation(TREES["two tokens"].target_law()) > 1e-3


def law_of(logits: Tensor, temperature: Tensor) -> Tensor:
    """Softmax in float64; at temperature 0 uniform over the largest logits."""
    shifted = logits.double() - logits.double().amax(dim=-1, keepdim=True)
    return (shifted / temperature.double().clamp_min(1e-30)).softmax(dim=-1)


@dataclasses.dataclass
class Case:
    """Inputs of a kernel from logits: target [B, K, L+1, V], draft [B, K, L, V], and the answers drawn from a seed."""

    target: Tensor
    draft: Tensor
    temperatures: Tensor
    tokens: Tensor
    seed: int = 0
    coin: float | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, K, L, V)."""
        requests, paths, length, vocab = self.draft.shape
        return requests, paths, length, vocab

    def laws(self) -> tuple[Tensor, Tensor]:
        """Target and draft laws."""
        scale = self.temperatures[:, None, None, None]
        return law_of(self.target, scale), law_of(self.draft, scale)

    def answers(self, name: str) -> Answers:
        """Uniforms of all questions; every coin is `coin` if that is given."""
        requests, paths, length, _ = self.shape
        generator = torch.Generator().manual_seed(self.seed)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, dtype=torch.float64, generator=generator)

        def coins() -> Tensor:
            return (
                uniform(requests, length)
                if self.coin is None
                else torch.full((requests, length), self.coin, dtype=torch.float64)
            )

        rounds = paths if name == "key-race" else 1
        select = [uniform(requests) for _ in range(length)] if name == "two-level" and paths > 1 else []
        if name == "score-race":
            select = [uniform(requests, paths)]
        verify = [answer for _ in range(rounds) for answer in (coins(), uniform(requests))]
        return [*select, *verify, *([uniform(requests, paths)] if name == "key-race" and paths > 1 else [])]

    def kernel(
        self, name: str, lengths: Tensor | None = None, block: int = 4096, out: Workspace | None = None
    ) -> Verdict:
        """The kernel's verdict, in poisoned buffers unless others are given."""
        requests, paths, length, vocab = self.shape
        if out is None:
            out = buffers(requests, paths, length, vocab, self.target.dtype, block)
        inputs = [self.target, self.draft, self.tokens]
        target, draft, tokens = (each[:, 0].contiguous() if name in SINGLE else each for each in inputs)
        drawn = [each.contiguous() for each in arguments(name, paths, length, self.answers(name))]
        return function_of(name)(target, draft, self.temperatures, tokens, lengths, *drawn, out=out)

    def tensor(self, name: str, answers: Answers | None = None) -> tuple[Verdict, GivenDraws]:
        """The tensor version's verdict on the laws in float64."""
        target, draft = self.laws()
        draws = GivenDraws(self.answers(name) if answers is None else answers)
        with fixed_knots():
            verdict = get(name).verify(Batch(self.tokens, draft, target), draws)
        if name == "gbv-bucketed":
            ratio = target[:, :, :-1].gather(-1, self.tokens[..., None]) / draft.gather(-1, self.tokens[..., None])
            octaves = (ratio * 16 / 23).log2().nan_to_num(0.5, 0.5, 0.5).flatten(1)
            draws.margin = draws.margin.minimum((octaves - octaves.round()).abs().amin(dim=1))
        return verdict, draws

    def part(self, rows: Tensor, length: int) -> "Case":
        """Some of the requests, with drafts cut to `length`."""
        return Case(
            self.target[rows, :, : length + 1],
            self.draft[rows, :, :length],
            self.temperatures[rows],
            self.tokens[rows, :, :length],
        )


def random_case(
    requests: int, paths: int, length: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0,
    masked: bool = False, temperatures: Tensor | None = None,
) -> Case:  # fmt: skip
    """Gaussian logits, the draft's correlated with the target's; paths of a request that share a prefix share its rows.

    `masked` puts most logits at -inf, as top-k does, not the same ones in both models. Rows are normalised, to the
    rounding of their dtype: else the knots of the kernels, whole octaves of the logits, are not those of the laws.
    """
    generator = torch.Generator().manual_seed(seed)
    target = torch.empty(requests, paths, length + 1, vocab, dtype=dtype)
    draft = torch.empty(requests, paths, length, vocab, dtype=dtype)
    tokens = torch.empty(requests, paths, length, dtype=torch.int64)
    if temperatures is None:
        temperatures = torch.rand(requests, generator=generator) + 0.3
    rows: dict[tuple[int, ...], Tensor] = {}
    for request, path, depth in itertools.product(range(requests), range(paths), range(length + 1)):
        node = (request, *tokens[request, path, :depth].tolist())
        if node not in rows:
            noise = torch.randn(2, vocab, generator=generator)
            pair = torch.stack([2 * noise[0], 2 * noise[0] + noise[1]])
            if masked:
                kept = torch.rand(pair.shape, generator=generator) < 0.2
                pair = pair.masked_fill(~kept.scatter(-1, pair.argmax(dim=-1, keepdim=True), True), -torch.inf)
            scale = temperatures[request].double().clamp_min(1e-30)
            rows[node] = (pair.double() - scale * (pair.double() / scale).logsumexp(dim=-1, keepdim=True)).to(dtype)
        target[request, path, depth] = rows[node][0]
        if depth < length:
            draft[request, path, depth] = rows[node][1]
            law = law_of(rows[node][1], temperatures[request])
            tokens[request, path, depth] = torch.multinomial(law, 1, generator=generator)[0]
    return Case(target, draft, temperatures, tokens, seed)


def undecided(got: Verdict, want: Verdict, margin: Tensor, resolution: float) -> int:
    """Assert equal verdicts wherever no uniform lies within `resolution` of a threshold; how many requests are left."""
    clear = margin > resolution
    for name in ("path", "accepted", "token"):
        assert torch.equal(getattr(got, name)[clear], getattr(want, name)[clear]), name
    COMPARED["all"] += len(margin)
    COMPARED["near"] += int((~clear).sum())
    return int((~clear).sum())


def left_out(case: Case, name: str, block: int = 4096) -> int:
    """Compare kernel and tensor version; how many requests lie too near a threshold.

    In float32 two-level finds its success mass to 2^-16 of a bracket in which its sum counts as linear.
    """
    want, draws = case.tensor(name)
    resolution = {"two-level": 1e-3, "gbv-bucketed": 1e-4}.get(name, 1e-5)
    return undecided(case.kernel(name, block=block), want, draws.margin, resolution)


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decisions_equal_the_tensor_versions_in_double_precision(name: str, dtype: torch.dtype) -> None:
    case = random_case(requests=8, paths=1, length=3, vocab=127, dtype=dtype)
    assert left_out(case, name, block=64) <= 2


def test_normalisers_and_residual_masses_are_those_of_the_laws() -> None:
    case = random_case(8, 1, 3, 100, seed=6)
    out = buffers(8, 1, 3, 100, torch.float32, block=16)
    case.kernel("block", out=out)
    for place, (logits, law) in enumerate(zip((case.target, case.draft), case.laws(), strict=True)):
        rows = logits.shape[2]
        largest, log_sum = out.norms[:, place, :rows].unbind(dim=-1)
        assert torch.equal(largest, logits[:, 0].amax(dim=-1).double())
        assert (log_sum + law[:, 0].amax(dim=-1).log()).abs().max() < 1e-5
    target, draft = (law[:, 0] for law in case.laws())
    wanted = (out.ratios[:, :3, None] * target[:, :3] - draft).clamp_min(0).sum(dim=-1)
    matter = (torch.arange(3) >= out.first[:, None]) & (torch.arange(3) < out.stop[:, None])
    assert (out.masses[:, :3].sum(dim=-1) - wanted)[matter].abs().max() < 1e-5
    assert matter.sum() > 5


@pytest.mark.parametrize(
    ("name", "requests", "paths", "length", "vocab", "dtype"),
    [
        ("key-race", 4, 8, 2, 127, torch.bfloat16),
        ("key-race", 3, 5, 2, 257, torch.float16),
        *((name, 4, 8, 2, 127, torch.float32) for name in SELECTING),
        *((name, 3, 5, 2, 257, torch.float64) for name in SELECTING),
        *((name, 1, 64, 1, 9, torch.float32) for name in MANY),
    ],
)
def test_decisions_of_many_paths_equal_the_tensor_versions(
    name: str, requests: int, paths: int, length: int, vocab: int, dtype: torch.dtype
) -> None:
    case = random_case(requests, paths, length, vocab, dtype, seed=1)
    assert left_out(case, name, block=128) <= requests // 2
    assert paths != 8 or max(case.tensor(name)[0].path.tolist()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SELECTING)
def test_half_precision_is_decided_as_the_same_logits_in_single_precision(name: str, dtype: torch.dtype) -> None:
    case = random_case(3, 3, 2, 90, dtype, seed=2)
    got = case.kernel(name, block=32)
    want = dataclasses.replace(case, target=case.target.float(), draft=case.draft.float()).kernel(name, block=32)
    assert all(torch.equal(getattr(got, part), getattr(want, part)) for part in ("path", "accepted", "token"))


@pytest.mark.parametrize("name", [*SINGLE, *MANY])
@pytest.mark.parametrize("vocab", [1, 2, 17])
def test_small_vocabularies_and_masked_logits(name: str, vocab: int) -> None:
    paths = 1 if name in SINGLE else 3
    case = random_case(requests=8 // paths, paths=paths, length=2, vocab=vocab, seed=vocab, masked=True)
    assert left_out(case, name, block=16) <= 1


@pytest.mark.parametrize(("name", "vocab"), [*((name, 50257) for name in (*SINGLE, *MANY)), ("block", 128256)])
def test_vocabularies_of_real_models(name: str, vocab: int) -> None:
    paths = 1 if name in SINGLE else 2
    dtype = torch.float32 if name in SELECTING else torch.bfloat16
    case = random_case(1, paths, 1, vocab, dtype, seed=3)
    case.coin = 0.97
    out = buffers(1, paths, 1, vocab, dtype)
    want, draws = case.tensor(name)
    assert undecided(case.kernel(name, out=out), want, draws.margin, resolution=1e-4) == 0
    if name in SELECTING:
        assert draws.thresholds[0, 0] < 0.3
        assert abs(out.ratios[0, 1] - draws.thresholds[0, 0]) < 1e-4


@pytest.mark.parametrize("name", [*SINGLE, *MANY])
def test_temperatures_near_and_at_zero(name: str) -> None:
    temperatures = torch.tensor([0, 1e-12, 1e-6, 1e-3, 1e-2, 0, 1e-9, 1e9])
    case = random_case(8, 1 if name in SINGLE else 2, 1, 33, seed=5, temperatures=temperatures)
    assert left_out(case, name) <= 1


@pytest.mark.parametrize("name", [*SINGLE, *MANY])
def test_equal_laws_keep_every_token(name: str) -> None:
    case = random_case(requests=3, paths=1 if name in SINGLE else 2, length=2, vocab=19)
    case.draft = case.target[:, :, :-1].clone()
    case.coin = 1 - (1e-9 if name in SINGLE else 1e-6)
    assert case.kernel(name).accepted.tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", [*SINGLE, *MANY])
def test_ragged_drafts_decide_as_each_does_alone_and_rows_behind_them_are_not_read(name: str) -> None:
    paths = 1 if name in SINGLE else 3
    whole = random_case(requests=6, paths=paths, length=3, vocab=21, seed=2)
    lengths = torch.tensor([3, 0, 1, 2, 0, 1], dtype=torch.int32)
    case = dataclasses.replace(whole, target=whole.target.clone(), draft=whole.draft.clone())
    for row, length in enumerate(lengths.tolist()):
        case.target[row, :, length + 1 :] = case.draft[row, :, length:] = math.nan
        case.tokens[row, :, length:] = -1
    got = case.kernel(name, lengths, block=16)
    for length in (1, 2, 3):
        rows = lengths == length
        answers = [answer[rows] for answer in shortened(name, paths, case.answers(name), length)]
        want, draws = case.part(rows, length).tensor(name, answers)
        answer = Verdict(got.path[rows], got.accepted[rows], got.token[rows])
        assert undecided(answer, want, draws.margin, resolution=1e-3 if name == "two-level" else 1e-5) == 0
    empty = lengths == 0
    assert got.accepted[empty].tolist() == [0, 0]
    last = arguments(name, paths, 3, case.answers(name))[1 if name in (*SINGLE, "gbv-bucketed", "key-race") else 2]
    choice = last.gather(1, got.path[:, None])[:, 0] if name == "key-race" else last
    target, draws = case.laws()[0][empty, 0, 0], GivenDraws([choice[empty]])
    assert torch.equal(got.token[empty], draws.choose(target))
    assert draws.margin.min() > 1e-5


def test_the_comparison_rejects_a_kernel_that_ignores_the_temperature() -> None:
    case = random_case(requests=16, paths=1, length=3, vocab=21)
    want, draws = case.tensor("block")
    case.temperatures = torch.ones(16)
    with pytest.raises(AssertionError, match=r"accepted|token"):
        undecided(case.kernel("block"), want, draws.margin, resolution=1e-5)


@pytest.mark.parametrize(("dtype", "finest"), [(torch.float32, 2.0**-16), (torch.float64, 2.0**-32)])
def test_of_all_success_masses_that_serve_the_smallest_is_taken(dtype: torch.dtype, finest: float) -> None:
    """Equal laws: every b serves, up to the rounding of a sum; with b = 0 all coins fail and k1 = K = 3, k2 = 1."""
    case = random_case(3, 3, 1, 20, dtype)
    case.draft = case.target[:, :, :-1].clone()
    out = buffers(3, 3, 1, 20, dtype, block=16)
    case.kernel("two-level", out=out)
    assert (out.selection[:, 0, LAST.value] - 3).abs().max() < 4 * finest
    assert (out.selection[:, 0, 0] - 1).abs().max() < 4 * finest


@triton.jit
def same_count(counts, level, mass, fails, high, low, PATHS: tl.constexpr):
    """A walk that forgets that paths drop out."""
    return counts


def on_laws(name: str, block: int, span: int) -> tuple[Case, Workspace, Verdict]:
    """The kernel on the probabilities of 300 tokens in double precision."""
    case = random_case(4, 3, 2, 300, torch.float64, seed=block)
    out = buffers(4, 3, 2, 300, torch.float64, block, span)
    drawn = [each.contiguous() for each in arguments(name, 3, 2, case.answers(name))]
    rows = (*case.laws(), torch.ones(4), case.tokens)
    return case, out, function_of(name)(*rows, None, *drawn, out=out, laws=True)


@pytest.mark.parametrize(("block", "span"), [(512, 1), (64, 1), (64, 2), (128, 8)])
@pytest.mark.parametrize("name", SELECTING)
def test_decisions_on_probabilities_are_those_of_the_tensor_version(name: str, block: int, span: int) -> None:
    case, out, got = on_laws(name, block, span)
    want, draws = case.tensor(name)
    assert undecided(got, want, draws.margin, resolution=1e-9) == 0
    assert (out.ratios[:4, -1] - draws.thresholds[:, -1]).abs().max() < 1e-12


def residual_error(name: str) -> float:
    """Residual masses of the kernel, where they matter, against those of the law of the selected path."""
    case, out, _ = on_laws(name, 64, 2)
    target, draft = (
        torch.stack([law.flatten(0, 1)[out.nodes[:4, depth].long(), depth] for depth in range(2)], dim=1)
        for law in case.laws()
    )
    table = out.selection[..., : LAST.value + 1]
    if name == "gbv-bucketed":
        law = draft * table.gather(-1, ratio_knots.knot_below(target, draft))
    else:
        knots = ratio_knots.fixed_knots(table.device).expand_as(table)
        with fixed_knots():
            law = ratio_knots.linear_law(table, knots, target, draft)
    assert (law.sum(dim=-1) - 1).abs().max() < 1e-12
    depth = torch.arange(2)
    matter = (depth >= out.first[:4, None]) & (depth < out.stop[:4, None])
    wanted = (out.ratios[:4, :2, None] * target - law).clamp_min(0).sum(dim=-1)
    masses = torch.stack([out.masses[out.nodes[:4, place].long(), place].sum(dim=-1) for place in range(2)], dim=1)
    assert matter.any()
    return float((masses - wanted)[matter].abs().max())


@triton.jit
def misplaced_knots(log_ratio, tile, centre, before, octave, REAL: tl.constexpr):
    """Every token half an octave too low, at a knot."""
    knot, part = knot_of(log_ratio, tile, centre, before, octave, REAL)
    return tl.maximum(knot - 8, 0), part * 0


@pytest.mark.parametrize("name", SELECTING)
def test_the_selected_law_is_that_of_the_walk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert residual_error(name) < 1e-12
    monkeypatch.setattr(passes, "knot_of", misplaced_knots)
    assert residual_error(name) > 1e-5


def two_level_error() -> float:
    """Largest difference between kernel and tensor version in the acceptance ratio of the whole path."""
    case = random_case(2, 3, 2, 5, torch.float64)
    out = buffers(2, 3, 2, 5, torch.float64, block=16)
    case.kernel("two-level", out=out)
    return float((out.ratios[:2, -1] - case.tensor("two-level")[1].thresholds[:, -1]).abs().max())


def test_the_two_level_walk_knows_how_many_paths_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert two_level_error() < 1e-7
    monkeypatch.setattr(two_level, "count_below", same_count)
    assert two_level_error() > 1e-2


@triton.jit
def same_paths(counts, below, reached, drafted, density, PATHS: tl.constexpr):
    """The same for a walk by buckets."""
    return counts


def test_the_bucketed_walk_knows_how_many_paths_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> float:
        case = random_case(2, 3, 2, 5, torch.float64)
        out = buffers(2, 3, 2, 5, torch.float64, block=16)
        case.kernel("gbv-bucketed", out=out)
        return float((out.ratios[:2, -1] - case.tensor("gbv-bucketed")[1].thresholds[:, -1]).abs().max())

    assert error() < 1e-12
    monkeypatch.setattr(gbv_bucketed, "count_through", same_paths)
    assert error() > 1e-2


@pytest.mark.parametrize("name", [*SINGLE, *MANY])
def test_rows_without_a_law_and_unknown_tokens_are_flagged_and_leave_the_others_alone(name: str) -> None:
    paths = 1 if name in SINGLE else 2
    case = random_case(requests=7, paths=paths, length=2, vocab=9)
    want = case.kernel(name)
    keep = [want.accepted[6].item(), want.token[6].item()]
    case.target[0, :, 1, 3] = math.nan
    case.target[1, :, 0] = -torch.inf
    case.draft[2, :, 1, 0] = torch.inf
    case.draft[3, :, 0] = -torch.inf
    case.tokens[4, :, 1] = 9
    case.tokens[5, -1, 0] = -1
    got = case.kernel(name)
    assert got.accepted.tolist()[:6] == [0] * 6
    assert got.token.tolist()[:6] == [-1] * 6
    assert got.path.tolist()[:6] == [0] * 6
    assert [got.accepted[6].item(), got.token[6].item()] == keep


@pytest.mark.parametrize("name", ["block", *MANY])
def test_buffers_can_be_used_again_and_no_requests_give_an_empty_verdict(name: str) -> None:
    paths = 1 if name in SINGLE else 2
    first, second = (random_case(requests=3, paths=paths, length=2, vocab=20, seed=seed) for seed in (1, 2))
    out = buffers(3, paths, 2, 20, torch.float32)
    for case in (first, second, first):
        got = case.kernel(name, out=out)
        assert got.token.data_ptr() == out.verdict.token.data_ptr()
        want, draws = case.tensor(name)
        assert undecided(got, want, draws.margin, resolution=1e-3) <= 1
    empty = random_case(requests=1, paths=paths, length=2, vocab=4).part(torch.zeros(1, dtype=torch.bool), 2)
    assert empty.kernel(name).token.shape == (0,)


@contextmanager
def recorded(readable: dict[str, Tensor], written: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Counts of reads of every element of the readable tensors; an access outside them is an error.

    A load must lie in a readable or a written tensor, a store in a written one.
    """
    counts = {name: torch.zeros(tensor.shape, dtype=torch.int64) for name, tensor in readable.items()}
    spans = [
        (name, tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size(), tensor.element_size())
        for name, tensor in (readable | written).items()
    ]
    builder = interpreter.interpreter_builder
    load, store = builder.create_masked_load, builder.create_masked_store

    def check(addresses: np.ndarray, mask: np.ndarray, allowed: dict[str, Tensor], what: str) -> None:
        left = np.broadcast_to(mask, addresses.shape).copy()
        for name, low, high, size in spans:
            inside = left & (addresses >= low) & (addresses < high)
            if name in allowed and inside.any():
                left &= ~inside
                if name in counts and what == "load":
                    places = torch.from_numpy(((addresses[inside] - low) // size).astype(np.int64))
                    counts[name].view(-1).index_add_(0, places, torch.ones_like(places))
        if left.any():
            raise RuntimeError(f"{what} outside the tensors it may use")

    def checked_load(pointers, mask, other, *options):  # type: ignore[no-untyped-def]
        check(pointers.data, mask.data, readable | written, "load")
        return load(pointers, mask, other, *options)

    def checked_store(pointers, value, mask, *options):  # type: ignore[no-untyped-def]
        check(pointers.data, mask.data, written, "store")
        return store(pointers, value, mask, *options)

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    try:
        yield counts
    finally:
        del builder.create_masked_load, builder.create_masked_store


@contextmanager
def races() -> Iterator[list[str]]:
    """Kernels in which a program reads, or overwrites with another value, what another of the same launch writes.

    The interpreter runs one program after the other and would never notice; on a device they run at once.
    """
    found: list[str] = []
    touched: dict[str, list[tuple[np.ndarray, ...]]] = {"read": [], "written": []}
    builder, launch = interpreter.interpreter_builder, interpreter.GridExecutor.__call__
    load, store = builder.create_masked_load, builder.create_masked_store

    def note(kind: str, pointers: np.ndarray, mask: np.ndarray, values: np.ndarray) -> None:
        inside = np.broadcast_to(mask, pointers.shape)
        addresses = pointers[inside].astype(np.int64)
        program = int(np.ravel_multi_index(builder.grid_idx, builder.grid_dim))
        touched[kind].append(
            (addresses, np.full_like(addresses, program), np.broadcast_to(values, pointers.shape)[inside].astype(float))
        )

    def noted_load(pointers, mask, other, *options):  # type: ignore[no-untyped-def]
        note("read", pointers.data, mask.data, np.zeros(1))
        return load(pointers, mask, other, *options)

    def noted_store(pointers, value, mask, *options):  # type: ignore[no-untyped-def]
        note("written", pointers.data, mask.data, value.data)
        return store(pointers, value, mask, *options)

    def checked_launch(executor, *arguments, **options):  # type: ignore[no-untyped-def]
        for accesses in touched.values():
            accesses.clear()
        launch(executor, *arguments, **options)
        reads, writes = (
            [np.concatenate(parts) for parts in zip(*touched[kind], strict=True)] if touched[kind] else None
            for kind in ("read", "written")
        )
        if writes is None:
            return
        owners: dict[int, tuple[int, float]] = {}
        for address, program, value in zip(*writes, strict=True):
            owner, before = owners.setdefault(address, (program, value))
            if owner != program and not (value == before or (math.isnan(value) and math.isnan(before))):
                found.append(executor.fn.__name__)
        for address, program, _ in zip(*reads, strict=True) if reads is not None else ():
            if address in owners and owners[address][0] != program:
                found.append(executor.fn.__name__)

    builder.create_masked_load, builder.create_masked_store = noted_load, noted_store
    interpreter.GridExecutor.__call__ = checked_launch
    try:
        yield found
    finally:
        interpreter.GridExecutor.__call__ = launch
        del builder.create_masked_load, builder.create_masked_store


@pytest.mark.parametrize("name", [*SINGLE, *MANY])
def test_no_program_depends_on_another_of_the_same_launch(name: str) -> None:
    paths = 1 if name in SINGLE else 3
    case = random_case(6, paths, 3, 20, seed=9, temperatures=torch.full((6,), 0.5))
    case.tokens[1, 0, 0] = -1
    case.target[2, :, 1] = math.nan
    with races() as found:
        case.kernel(name, LENGTHS, block=16)
    assert found == []


@triton.jit
def neighbours(numbers, running: tl.constexpr):
    """Running sums by programs that wait for nothing; or, if not `running`, all write their number to one place."""
    index = tl.program_id(0)
    if running:
        tl.store(numbers + index + 1, tl.load(numbers + index) + 1)
    else:
        tl.store(numbers, index)


@pytest.mark.parametrize("running", [True, False])
def test_a_program_that_depends_on_another_is_noticed(running: bool) -> None:
    with races() as found:
        neighbours[(3,)](torch.zeros(4), running)
        neighbours[(1,)](torch.zeros(4), running)
    assert set(found) == {"neighbours"}
    assert len(found) == 2


def whole_reads(case: Case, name: str, lengths: Tensor, block: int) -> tuple[Tensor, Tensor, Workspace]:
    """How often each row of the target [B, K, L+1] and the draft [B, K, L] is read as a whole; and the buffers.

    That is the least over its entries: drawing a token reads one chunk again, so a row wants more chunks than paths.

    Every access of the kernel is checked to lie in the inputs or the buffers.
    """
    requests, paths, length, vocab = case.shape
    out = buffers(requests, paths, length, vocab, case.target.dtype, block)
    inputs = {"target": case.target, "draft": case.draft, "tokens": case.tokens, "temperatures": case.temperatures}
    drawn = [each.contiguous() for each in arguments(name, paths, length, case.answers(name))]
    inputs |= {f"uniforms {place}": each for place, each in enumerate(drawn)} | {"given lengths": lengths}
    rows = [case.target, case.draft, case.tokens]
    target, draft, tokens = (each[:, 0] if name in SINGLE else each for each in rows)
    with recorded(inputs, tensors_of(out)) as reads:
        function_of(name)(target, draft, case.temperatures, tokens, lengths, *drawn, out=out)
    return reads["target"].amin(dim=-1), reads["draft"].amin(dim=-1), out


@dataclasses.dataclass
class Traffic:
    """What launches move: their names, and bytes that programs load and store, each place once per program."""

    launches: list[str] = dataclasses.field(default_factory=list)
    loaded: int = 0
    stored: int = 0


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Counts launches and bytes: what a program loads twice stays on the chip, what another loads may not.

    A row's chunk is loaded in one piece, so that only small tables are loaded in parts that overlap.
    """
    found = Traffic()
    launch, builder = interpreter.GridExecutor.__call__, interpreter.interpreter_builder
    load, store, grid = builder.create_masked_load, builder.create_masked_store, type(builder).set_grid_idx
    touched: dict[tuple[str, int], list[np.ndarray]] = {}

    def note(kind: str, pointers: interpreter.TensorHandle, mask: np.ndarray) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        touched.setdefault((kind, size), []).append(pointers.data[np.broadcast_to(mask, pointers.data.shape)])

    def settle() -> None:
        for (kind, size), places in touched.items():
            moved = size * len(np.unique(np.concatenate(places)))
            setattr(found, kind, getattr(found, kind) + moved)
        touched.clear()

    def noted_load(pointers, mask, other, *options):  # type: ignore[no-untyped-def]
        note("loaded", pointers, mask.data)
        return load(pointers, mask, other, *options)

    def noted_store(pointers, value, mask, *options):  # type: ignore[no-untyped-def]
        note("stored", pointers, mask.data)
        return store(pointers, value, mask, *options)

    def next_program(*place: int) -> None:
        settle()
        grid(builder, *place)

    def noted_launch(executor, *arguments, **options):  # type: ignore[no-untyped-def]
        found.launches.append(executor.fn.__name__)
        launch(executor, *arguments, **options)
        settle()

    builder.create_masked_load, builder.create_masked_store = noted_load, noted_store
    builder.set_grid_idx, interpreter.GridExecutor.__call__ = next_program, noted_launch
    try:
        yield found
    finally:
        interpreter.GridExecutor.__call__ = launch
        del builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx


def moved(name: str, vocab: int) -> tuple[Traffic, float]:
    """What eight drafted tokens, of four requests or on four paths, move; and over the floor, each node's rows once."""
    requests, paths = (4, 1) if name in SINGLE else (1, 4)
    case = random_case(requests, paths, 8, vocab, torch.bfloat16, seed=3)
    out = buffers(requests, paths, 8, vocab, torch.bfloat16)
    with traffic() as found:
        case.kernel(name, out=out)
    owned = torch.ones(requests, paths, 9, dtype=torch.bool)
    owned[:, :, 0] = torch.arange(paths) == 0
    owned[:, :, 1:] = first_appearance(case.tokens) == torch.arange(paths)[:, None]
    return found, (found.loaded + found.stored) / (2 * vocab * int(owned.sum() + owned[..., :-1].sum()))


@pytest.mark.parametrize(
    ("name", "count"),
    [("block", 4), ("token", 4), ("two-level", 5), ("gbv-bucketed", 5), ("score-race", 6), ("key-race", 6)],
)
def test_launches_are_few_and_little_more_is_moved_than_every_row_once(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    """At most six launches, and with all tables and histograms 1.35 times the floor, at 32768 tokens in bfloat16."""
    monkeypatch.setattr(kernel_buffers, "TILE", 4096)
    found, ratio = moved(name, 2**15)
    assert len(found.launches) == count
    print(f"{name}: {count} launches, {ratio:.3f} of the floor")
    assert 1 <= ratio <= 1.35


def test_the_count_of_bytes_notices_a_second_read(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(1, 1, 8, 64, torch.bfloat16, seed=3)
    with traffic() as found:
        case.kernel("block", block=32)
    once = found.loaded
    monkeypatch.setattr(
        single_path, "sum_rows", lambda *rows, **options: [sum_rows(*rows, **options) for _ in range(2)]
    )
    with traffic() as found:
        case.kernel("block", block=32)
    assert found.loaded - once >= 2 * 64 * 17
    assert len(found.launches) == 5


LENGTHS = torch.tensor([3, 0, 1, 2, 3, 3], dtype=torch.int32)


def reached(lengths: Tensor, depths: int) -> Tensor:
    """bool [B, depths]: depths of the draft and, in the last column, of the row after it."""
    return torch.arange(depths) < lengths[:, None]


@pytest.mark.parametrize("name", SINGLE)
def test_every_logit_is_read_once_and_twice_only_where_a_residual_can_matter(name: str) -> None:
    case = random_case(6, 1, 3, 50, seed=4)
    target, draft, out = whole_reads(case, name, LENGTHS, block=16)
    depth = torch.arange(4)
    twice = (depth >= out.first[:, None]) & (depth < out.stop[:, None])
    assert torch.equal(target[:, 0], reached(LENGTHS + 1, 4).long() + twice)
    assert torch.equal(draft[:, 0], reached(LENGTHS, 3).long() + twice[:, :3])
    assert 0 < twice.sum() < (6 if name == "token" else 12)
    assert name == "block" or twice.sum(dim=1).max() == 1


def test_the_second_read_of_a_block_is_from_the_last_sure_prefix_to_the_last_one_that_its_coin_may_keep() -> None:
    case = random_case(6, 1, 3, 50, seed=4)
    whole, coins = case.tensor("block")[1].thresholds[:, -1], case.answers("block")[0]
    _, _, out = whole_reads(case, "block", torch.full((6,), 3, dtype=torch.int32), block=16)
    assert (out.ratios[:, 3] - whole).abs().max() < 1e-5
    for row in range(6):
        sure = max(depth for depth in range(3) if out.ratios[row, depth] == 1)
        likely = max(depth for depth in range(3) if depth == 0 or coins[row, depth - 1] < out.ratios[row, depth])
        wanted = (3, 3) if coins[row, 2] < whole[row] else (sure, max(sure, likely) + 1)
        assert (out.first[row], out.stop[row]) == wanted
    assert len(set(out.first.tolist())) > 2
    assert (out.stop < 3).any()


@pytest.mark.parametrize("name", ["block", *MANY])
def test_kernels_are_launched_on_the_device_of_the_logits(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    current: list[Tensor] = []
    launched: list[bool] = []
    launch = interpreter.GridExecutor.__call__

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    def noted(executor, *arguments, **options):  # type: ignore[no-untyped-def]
        launched.append([tensor.shape[-1] for tensor in current] == [9])
        launch(executor, *arguments, **options)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", noted)
    random_case(requests=1, paths=1, length=1, vocab=9).kernel(name)
    assert len(launched) >= 4
    assert all(launched)


def test_more_paths_than_a_grid_has_room_for_are_refused() -> None:
    rows = torch.zeros(1, 1, 1).expand(65536, 2, 1)
    given = (torch.ones(65536), torch.zeros(65536, 1, dtype=torch.int64), None)
    with pytest.raises(ValueError, match="B K = 65536; want at most 65535"):
        kernels.verify_block_logits(rows, rows[:, :1], *given, torch.zeros(65536, 1), torch.zeros(65536))


def test_the_race_reads_a_shared_prefix_once() -> None:
    case = random_case(6, 4, 3, 70, seed=8, temperatures=torch.full((6,), 0.4))
    target, draft, out = whole_reads(case, "key-race", LENGTHS, block=16)
    owner = torch.zeros(6, 4, 4, dtype=torch.int64)
    owner[:, :, 1:] = first_appearance(case.tokens)
    mine = owner == torch.arange(4)[:, None]
    depth = torch.arange(4)
    wanted = (depth >= out.first.view(6, 4, 1)) & (depth < out.stop.view(6, 4, 1))
    twice = torch.zeros(6, 4, 4, dtype=torch.int64).scatter_add(1, owner, wanted.long()) > 0
    assert torch.equal(target, (mine & reached(LENGTHS + 1, 4)[:, None]).long() + twice)
    assert torch.equal(draft, (mine[..., :3] & reached(LENGTHS, 3)[:, None]).long() + twice[..., :3])
    assert (~mine[reached(LENGTHS + 1, 4)[:, None].expand(6, 4, 4)]).sum() > 20
    assert (wanted & ~mine).any()


@pytest.mark.parametrize("name", SELECTING)
def test_every_node_is_read_once_and_the_walks_again_where_a_residual_can_matter(name: str) -> None:
    lengths = torch.tensor([2, 0, 1], dtype=torch.int32)
    case = random_case(3, 3, 2, 70, seed=9)
    case.coin = 0.999
    target, draft, out = whole_reads(case, name, lengths, block=16)
    owner = torch.zeros(3, 3, 3, dtype=torch.int64)
    owner[:, :, 1:] = first_appearance(case.tokens)
    expected = (owner == torch.arange(3)[:, None]) & reached(lengths + 1, 3)[:, None]
    expected = expected.long()
    for row, length in enumerate(lengths.tolist()):
        for place in range(length + 1):
            path = int(out.nodes[row, place]) - 3 * row
            expected[row, path, place] += int(out.first[row] <= place < out.stop[row])
    assert torch.equal(target, expected)
    assert torch.equal(draft, torch.where(reached(lengths, 3)[:, None], expected, 0)[..., :2])
    assert (out.first < out.stop)[:3].any()


@triton.jit
def product(numbers, factor):
    """The second number, the first times the factor, in 32 bits."""
    tl.store(numbers + 1, tl.load(numbers) * factor)


@pytest.mark.parametrize(("factor", "wraps"), [(2**16 - 1, False), (2**16, True), (-(2**16), False)])
def test_an_integer_that_wraps_is_noticed(factor: int, wraps: bool) -> None:
    numbers = torch.tensor([2**15, 0], dtype=torch.int32)
    with pytest.raises(Exception, match="mul overflows int32") if wraps else nullcontext():
        product[(1,)](numbers, factor)
    assert numbers[1] == (0 if wraps else 2**15 * factor)


def test_an_access_outside_the_tensors_is_noticed() -> None:
    case = random_case(2, 1, 2, 20)
    out = buffers(2, 1, 2, 20, torch.float32)
    inputs = {"target": case.target, "tokens": case.tokens, "temperatures": case.temperatures}
    with pytest.raises(Exception, match="load outside"), recorded(inputs, tensors_of(out)):
        case.kernel("block", out=out)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("target", lambda x: x[:, :, :-1].contiguous(), r"target_logits has shape \(2, 1, 2, 5\); want \(2, 1, 3, 5\)"),
        ("tokens", lambda x: x.int(), "tokens has dtype torch.int32; want torch.int64"),
        ("draft", lambda x: x.long(), "draft_logits has dtype torch.int64"),
        ("target", lambda x: x.double(), "out computes in torch.float32"),
        ("temperatures", lambda x: x[:1], r"temperatures has shape \(1,\); want \(2,\)"),
    ],
)
@pytest.mark.parametrize("name", ["block", *MANY])
def test_wrong_arguments_are_named(name: str, field: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    case = random_case(requests=2, paths=1, length=2, vocab=5)
    out = buffers(2, 1, 2, 5, torch.float32)
    setattr(case, field, change(getattr(case, field)))
    with pytest.raises(ValueError, match=message):
        case.kernel(name, out=out)


def test_rows_must_be_contiguous_and_have_all_axes() -> None:
    case = random_case(requests=2, paths=1, length=2, vocab=5)
    rest = (case.temperatures, case.tokens, None, *case.answers("gbv-bucketed"))
    turned = case.draft.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match="draft_logits is not contiguous"):
        kernels.verify_gbv_bucketed_logits(case.target, turned, *rest)
    with pytest.raises(ValueError, match=r"draft_logits has shape \(2, 2, 5\); want \[B, K, L, V\]"):
        kernels.verify_gbv_bucketed_logits(case.target, case.draft[:, 0], *rest)
    with pytest.raises(ValueError, match=r"draft_logits has shape \(2, 1, 2, 5\); want \[B, L, V\]"):
        kernels.verify_block_logits(case.target, case.draft, *rest)


@pytest.mark.parametrize(("name", "paths"), [*((name, 1) for name in (*SINGLE, *MANY)), *((name, 3) for name in MANY)])
def test_a_batch_of_probabilities_is_decided_as_by_the_tensor_version_with_an_equal_generator(
    name: str, paths: int
) -> None:
    case = random_case(3, paths, 2, 6, seed=1)
    target, draft = case.laws()
    batch = Batch(case.tokens, draft.float(), target.float())
    ours, theirs = (torch.Generator().manual_seed(11) for _ in range(2))
    got = verify_laws(name, batch, ours)
    with fixed_knots():
        want = get(name).verify(batch, Draws(theirs))
    assert undecided(got, want, torch.ones(3), resolution=1e-3) == 0
    assert torch.equal(ours.get_state(), theirs.get_state())


def tiny(seed: int) -> GPT2LMHeadModel:
    """A random model of a vocabulary of 11."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 11, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.6}
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=64, **shape)).eval()


@pytest.mark.parametrize("name", [*SINGLE, *MANY])
def test_decoding_through_the_kernels_gives_the_tokens_of_the_tensor_version(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    target, draft = tiny(0), tiny(1)
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    settings = {"verifier": name, "paths": 1 if name in SINGLE else 2, "length": 2, "max_new_tokens": 4}
    settings |= {"do_sample": True, "temperature": 1.3}
    found = {}
    for wish in ("interpret", "0"):
        monkeypatch.setenv("SPECBOUND_KERNELS", wish)
        with fixed_knots():
            found[wish] = generate(target, draft, prompts, generator=torch.Generator().manual_seed(3), **settings)
    assert torch.equal(found["interpret"].sequences, found["0"].sequences)
    assert found["interpret"].statistics.verification == "kernels"
    assert found["0"].statistics.verification == "tensor"
    assert found["0"].statistics.accepted.sum() > 0
