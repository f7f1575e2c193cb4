"""Fuzzing of what takes tensors: every registered verifier, sampling, draws, lengths, heads, decoding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation import logits_process

from specbound.runtime import lengths, registry, tuning
from specbound.runtime.acceptance_head import AcceptanceHead, train_head
from specbound.runtime.carry import layer_law
from specbound.runtime.decode import generate
from specbound.runtime.draws import Draws
from specbound.runtime.sampling import Sampler, check_rows
from specbound.runtime.tree_attention import merge_paths
from specbound.runtime.verdict import ROW_TOLERANCE, Batch, Verdict, validate_rows
from tests.support.fuzzing import attempt, case, fuzz
from tests.support.tiny_models import tiny

pytestmark = pytest.mark.fuzz

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64]
DTYPES += [torch.float8_e4m3fn, torch.uint8]
ENTRIES = [float("nan"), float("inf"), -float("inf"), -1e-3, -1e-30, 5e-324, 1e-45, 1e-300, 0.0, 1.0, 2.0, 1e300]
SINGLE = [name for name in registry.names() if registry.get(name).paths == "single"]


def laws(shape: tuple[int, ...], kind: str, generator: torch.Generator) -> torch.Tensor:
    """Rows of one kind, float64 [..., V]."""
    if 0 in shape:
        return torch.zeros(shape, dtype=torch.float64)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    if kind == "one-hot":
        return torch.nn.functional.one_hot(noise.argmax(dim=-1), shape[-1]).double()
    if kind == "zeros":
        noise = torch.where(noise < noise.amax(dim=-1, keepdim=True) - 0.5, -torch.inf, noise)
    if kind == "tiny":
        noise = noise * 300
    if kind == "uniform":
        noise = noise * 0
    return noise.softmax(dim=-1)


@st.composite
def altered(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or one like it with an odd entry, dtype, device, stride or shape."""
    kind = draw(st.sampled_from(["same"] * 6 + ["entry", "dtype", "meta", "stride", "expand", "shape", "row"]))
    if kind == "entry" and tensor.numel():
        tensor = tensor.clone()
        entries = ENTRIES if tensor.is_floating_point() else [-1, 0, 1, 999, 2**62]
        place, entry = draw(st.integers(0, tensor.numel() - 1)), draw(st.sampled_from(entries))
        tensor.view(-1)[place] = torch.tensor(entry).to(tensor.dtype)
    elif kind == "row" and tensor.numel():
        tensor = tensor.clone()
        tensor[(0,) * (tensor.ndim - 1)] = 0
    elif kind == "dtype":
        tensor = tensor.to(draw(st.sampled_from(DTYPES)))
    elif kind == "meta":
        tensor = tensor.to("meta")
    elif kind == "stride":
        tensor = tensor.transpose(0, -1).contiguous().transpose(0, -1)
    elif kind == "expand" and tensor.shape[0]:
        tensor = tensor[:1].expand_as(tensor)
    elif kind == "shape":
        change = draw(st.sampled_from(["first", "last", "more", "less", "flat"]))
        tensor = {
            "first": lambda: tensor[1:],
            "last": lambda: tensor[..., 1:],
            "more": lambda: tensor[None],
            "less": lambda: tensor[0] if tensor.shape[0] else tensor,
            "flat": lambda: tensor.reshape(-1),
        }[change]()
    return tensor


@st.composite
def batches(draw: st.DrawFn, paths: int | None = None) -> Batch:
    size = draw(st.sampled_from([0, 1, 1, 2, 5]))
    count = paths or draw(st.sampled_from([0, 1, 1, 2, 3, 4, 33]))
    length, vocab = draw(st.sampled_from([0, 1, 1, 2, 3, 4])), draw(st.sampled_from([0, 1, 2, 2, 3, 5, 300]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    kinds = st.sampled_from(["softmax", "softmax", "one-hot", "zeros", "tiny", "uniform"])
    draft = laws((size, count, length, vocab), draw(kinds), generator)
    target = laws((size, count, length + 1, vocab), draw(kinds), generator)
    if draft.numel():
        tokens = draft.reshape(-1, vocab).multinomial(1, generator=generator).reshape(draft.shape[:-1])
        if draw(st.integers(0, 3)) == 0:
            target[:, :, :length] = draft
        target, draft = _shared(tokens, target), _shared(tokens, draft)
    else:
        tokens = torch.zeros((size, count, length), dtype=torch.int64)
    dtype = draw(st.sampled_from(DTYPES[:4]))
    return Batch(draw(altered(tokens)), draw(altered(draft.to(dtype))), draw(altered(target.to(dtype))))


def _shared(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows that depend on the tokens before them only, as those of models do: path k takes those of the first path
    with the same tokens so far."""
    rows = rows.clone()
    for place in range(rows.shape[2] if rows.numel() else 0):
        before = tokens[:, :, :place]
        same = (before[:, :, None] == before[:, None]).all(dim=-1)
        first = same.float().argmax(dim=2)
        rows[:, :, place] = rows[:, :, place].gather(1, first[:, :, None].expand(-1, -1, rows.shape[3]))
    return rows


def checked_verdict(batch: Batch, verdict: Verdict) -> None:
    """The fields of a verdict are in range, and a token that the target never emits is not emitted."""
    size, paths, length, vocab = batch.shape
    for values, limit in ((verdict.path, paths), (verdict.accepted, length + 1), (verdict.token, vocab)):
        assert values.shape == (size,)
        assert values.dtype == torch.int64
        assert bool(((values >= 0) & (values < limit)).all())


@pytest.mark.parametrize("name", registry.names())
@fuzz(6)
@given(st.data())
def test_verifiers_give_a_verdict_in_range_or_refuse_the_batch(name, data):
    batch = data.draw(batches(1 if name in SINGLE and data.draw(st.integers(0, 9)) else None))
    with case():
        verdict = attempt(registry.verify, name, batch, Draws(torch.Generator().manual_seed(1)))
        if verdict is None:
            return
        checked_verdict(batch, verdict)
        if verdict.carry is not None and data.draw(st.booleans()):
            again = Batch(batch.tokens, batch.draft_probs, batch.target_probs, verdict.carry)
            following = attempt(registry.verify, name, again, Draws(torch.Generator().manual_seed(2)))
            assert following is not None
            checked_verdict(batch, following)


@fuzz(30)
@given(st.data())
def test_rows_are_laws_or_refused(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    shape = tuple(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)))
    rows = data.draw(altered(laws(shape, "softmax", generator).to(data.draw(st.sampled_from(DTYPES)))))
    with case():
        try:
            validate_rows("rows", rows)
        except ValueError:
            return
        assert rows.is_floating_point()
        if rows.numel():
            assert bool((rows >= 0).all())
            assert bool(((rows.double().sum(dim=-1) - 1).abs() <= 2 * ROW_TOLERANCE[rows.dtype]).all())


PROCESSORS = [
    lambda: logits_process.TemperatureLogitsWarper(0.5),
    lambda: logits_process.TemperatureLogitsWarper(1e-30),
    lambda: logits_process.TopKLogitsWarper(2),
    lambda: logits_process.TopPLogitsWarper(0.7),
    lambda: logits_process.RepetitionPenaltyLogitsProcessor(1.3),
    lambda: logits_process.MinLengthLogitsProcessor(4, 0, device="cpu"),
]


@fuzz(30)
@given(st.data())
def test_sampling_laws_sum_to_one_or_the_logits_are_refused(data):
    size, paths, places, vocab = (data.draw(st.integers(1, 3)) for _ in range(4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn((size, paths, places, vocab), generator=generator) * data.draw(st.sampled_from([1, 50, 1e30]))
    logits = logits.to(data.draw(st.sampled_from(DTYPES[:4])))
    if data.draw(st.booleans()):
        value = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e-40, -1e38]))
        logits.view(-1)[data.draw(st.integers(0, logits.numel() - 1))] = value
    chosen = [PROCESSORS[i]() for i in data.draw(st.lists(st.integers(0, len(PROCESSORS) - 1), max_size=2))]
    wide = data.draw(st.integers(vocab, vocab + 2))
    sampler = Sampler(chosen, data.draw(st.booleans()), wide, [0] * size, torch.device("cpu"))
    tokens = torch.randint(vocab, (size, paths, places), generator=generator)
    with case():
        found = sampler.laws(logits, [tokens[b, 0] for b in range(size)], tokens)
        if attempt(lambda: check_rows(found) is None):
            assert found.shape == (size, paths, places, wide)
            validate_rows("laws", found)


@fuzz(40)
@given(st.data())
def test_draws_answer_in_range(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    draws = Draws(generator)
    shape = (data.draw(st.integers(0, 4)), data.draw(st.integers(1, 5)))
    dtype = data.draw(st.sampled_from(DTYPES[:4]))
    weights = torch.rand(shape, generator=generator, dtype=torch.float64)
    weights = (weights ** data.draw(st.sampled_from([1, 50, 900]))).to(dtype)
    zero = torch.rand(shape, generator=generator) < 0.3
    weights = torch.where(zero, 0, weights)
    with case():
        accepted = draws.accept(weights)
        assert bool((~accepted | (weights > 0)).all())
        for answer in (draws.accept_while(weights), draws.accept_last(weights)):
            assert bool(((answer >= 0) & (answer <= shape[1])).all())
        alive = weights.double().sum(dim=-1) > 0
        chosen = draws.choose(weights[alive])
        assert bool((weights[alive].gather(1, chosen[:, None]) > 0).all())
        winner = draws.smallest_key(torch.zeros_like(weights), weights)
        assert bool(((winner >= 0) & (winner < shape[1])).all())


@fuzz(25)
@given(st.data())
def test_merged_paths_hold_every_path(data):
    size, paths, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    tokens = torch.randint(data.draw(st.integers(1, 3)), (size, paths, length), generator=generator)
    with case():
        merged = merge_paths(torch.zeros(size, dtype=torch.int64), tokens)
        for b in range(size):
            for k in range(paths):
                assert merged.tokens[b, merged.place[b, k, 1:]].tolist() == tokens[b, k].tolist()


@fuzz(25)
@given(st.data())
def test_layers_of_greedy_block_are_laws(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    vocab = data.draw(st.integers(1, 4))
    kinds = st.sampled_from(["softmax", "one-hot", "zeros", "tiny", "uniform"])
    target, draft = (laws((2, vocab), data.draw(kinds), generator) for _ in range(2))
    ratio = torch.tensor([data.draw(st.sampled_from([-math.inf, -800.0, -1.0, 0.0, 0.5, 30.0, 800.0, math.inf]))] * 2)
    with case():
        validate_rows("law", layer_law(target, draft, ratio.double(), data.draw(st.sampled_from([1, 2, 64]))))


NUMBERS = st.one_of(st.integers(-2, 5), st.sampled_from([0.0, 0.5, 1.0, -0.1, 1.1, math.nan, math.inf, 2.5]))
POLICIES = [lengths.FixedLength, lengths.EntropyLength, lengths.ConfidenceLength]


@fuzz(40)
@given(st.sampled_from(POLICIES), st.lists(NUMBERS, min_size=1, max_size=2))
def test_length_policies_are_made_or_refused(policy, given_numbers):
    with case():
        try:
            found = attempt(policy, *given_numbers)
        except TypeError:
            return
        if found is not None:
            assert isinstance(found.maximum, int)
            assert found.maximum >= 1


@fuzz(20)
@given(st.data())
def test_acceptance_heads_give_probabilities_or_refuse(data):
    width, count = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 4))
    hidden = data.draw(altered(torch.randn(count, width)))
    labels = data.draw(altered(torch.rand(count)))
    with case():
        head = attempt(
            train_head,
            hidden,
            labels,
            blocks=data.draw(st.sampled_from([-1, 0, 1])),
            class_weight=data.draw(st.sampled_from([6.0, 0.0, math.nan, 1e30])),
            epochs=data.draw(st.sampled_from([0, 1])),
            batch_size=data.draw(st.sampled_from([0, 1, 512])),
        )
        if head is not None and hidden.ndim == 2:
            acceptance = head.acceptance(hidden)
            assert bool(((acceptance >= 0) & (acceptance <= 1)).all())


@fuzz(20)
@given(st.binary(max_size=60) | st.integers(0, 400), st.integers(0, 255))
def test_head_files_are_read_or_refused(tmp_path_factory, content, byte):
    file = tmp_path_factory.getbasetemp() / "head.safetensors"
    if isinstance(content, int):
        AcceptanceHead(2, 1).save(file)
        whole = bytearray(file.read_bytes())
        whole[content % len(whole)] = byte
        content = bytes(whole)
    file.write_bytes(content)
    with case():
        attempt(AcceptanceHead.load, file)


@fuzz(25)
@given(st.data())
def test_tuning_recommends_a_candidate_or_refuses(data):
    numbers = st.lists(st.sampled_from([0, 1, 5, 1e-300, 1e300, -1, math.nan, math.inf]), max_size=3)
    tokens, seconds = (data.draw(st.dictionaries(st.sampled_from("abc"), numbers, max_size=3)) for _ in range(2))
    if data.draw(st.booleans()):
        seconds = {name: [abs(value) + 1 for value in values] for name, values in tokens.items()}
    with case():
        found = attempt(tuning.recommend, tokens, seconds, samples=20)
        if found is not None:
            assert found.name in found.rivals
            assert 0 <= found.confidence <= 1
        kept = torch.rand(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2)))
        speed = attempt(tuning.predicted_speed, kept, data.draw(st.integers(-1, 3)), data.draw(NUMBERS))
        assert speed is None or (speed > 0 and math.isfinite(speed))


TARGET, DRAFT = tiny("llama", 0, vocab=9), tiny("llama", 1, vocab=9)
SETTINGS = {
    "verifier": ["block", "token", "gbv", "two-level", "greedy-block", "mjsd", "table", "none", "", 3, None],
    "paths": [1, 2, 3, 0, -1, 1.5, None, True],
    "length": [1, 2, 5, 0, -1, 2.5, None, "2", lengths.EntropyLength(maximum=3), lengths.ConfidenceLength(maximum=2)],
    "max_new_tokens": [1, 3, 0, -1, 2.5, None],
    "do_sample": [True, False, None],
    "temperature": [1.0, 0, 0.0, 1e-30, -1.0, math.nan, math.inf, None],
    "top_k": [0, 1, 3, 99, -1],
    "top_p": [1.0, 0.5, 0.0, 2.0, math.nan],
    "repetition_penalty": [1.3, 0.0, -1.0],
    "beams": [0, 2, -1, None],
    "num_beams": [1, 4],
    "eos_token_id": [0, [1, 2], None, -1],
    "stop_strings": ["x"],
    "min_new_tokens": [2, 99],
    "output_scores": [True],
}


@fuzz(6)
@given(st.data())
def test_generate_decodes_or_refuses(data):
    size, width = data.draw(st.sampled_from([1, 1, 2, 3, 0])), data.draw(st.sampled_from([1, 3, 5, 0]))
    ids = data.draw(altered(torch.randint(9, (size, width), generator=torch.Generator().manual_seed(1))))
    chosen = {"max_new_tokens": 3, "do_sample": True} | {
        name: data.draw(st.sampled_from(values))
        for name, values in SETTINGS.items()
        if data.draw(st.integers(0, 5)) == 0
    }
    if data.draw(st.integers(0, 3)) == 0:
        chosen["attention_mask"] = data.draw(altered((torch.rand(ids.shape) < 0.7).long() if ids.ndim else ids))
    with case():
        output = attempt(generate, TARGET, DRAFT, ids, generator=torch.Generator().manual_seed(1), **chosen)
        if output is not None:
            assert output.sequences[:, : ids.shape[1]].tolist() == ids.tolist()
            new = output.sequences[:, ids.shape[1] :]
            assert bool(((new >= 0) & (new < 9)).all())
            statistics = output.statistics
            assert bool((statistics.accepted <= statistics.drafted).all())
            assert bool((statistics.emitted <= statistics.accepted + 1).all())
