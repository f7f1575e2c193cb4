"""Decoding: greedy equality, the exact law of the whole loop by replay, broken caches, batches, refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.streamers import BaseStreamer

from specbound import shipped_pair
from specbound.runtime import registry
from specbound.runtime.acceptance_head import AcceptanceHead
from specbound.runtime.cache import CachedModel
from specbound.runtime.decode import Generation, generate, loop, pad_rows, perplexity, speculative
from specbound.runtime.draws import Draws
from specbound.runtime.lengths import AcceptanceHeadLength, ConfidenceLength, EntropyLength, MeasuredLength, Pace
from specbound.runtime.models import load_pair
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers.mjsd import mjsd
from specbound.runtime.verifiers.pooled import Offers
from specbound.theory.contexts import ContextModel
from specbound.theory.joint_decoding import beam_sampling_law
from tests.support.tiny_models import (
    EXACT,
    FAMILIES,
    HiddenLength,
    LoopReplay,
    distance,
    replayed_law,
    target_law,
    tiny,
)

WANTS_A_TABLE = {"table"}  # a verifier solved for one tree, not for a language model
LOSSLESS = [name for name in registry.names() if registry.get(name).lossless and name not in WANTS_A_TABLE]


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    return tiny("llama", 0, vocab=20, layers=2), tiny("llama", 1, vocab=20)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the exact law of the whole loop ------------------------------------------------------------------------------

PROMPTS = [[1, 0, 1], [1]]
SHORTER = {"key-race": (2, 2, 2), "spectr-gbv": (2, 2, 2), "naive": (2, 1, 4)}
ALONE = {
    "single-step-optimal",
    "many-level",
    "score-race",
    "score-race-2",
}  # draws a path even where all offer the same sure token, so replay row by row


def loop_cases() -> Iterator[tuple[str, int, int, int]]:
    """(verifier, K, L, tokens): K = 1 for every lossless verifier, and K = 2 where it takes many paths."""
    for name in LOSSLESS:
        yield name, 1, 2, 4
        if registry.get(name).paths == "many":
            usual = 2 if name in ALONE else 4 if registry.get(name).stateful else 3
            yield (name, *SHORTER.get(name, (2, 2, usual)))


@pytest.fixture(scope="module")
def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    return tiny("llama", 0, vocab=2, layers=2), tiny("llama", 1, vocab=2)


def loop_distance(
    pair: tuple[PreTrainedModel, PreTrainedModel], new: int, prompts: list[list[int]] = PROMPTS, **settings: object
) -> float:
    """Largest total variation over the prompts between the loop's law and the target's, missing mass included."""
    laws = replayed_law(*pair, prompts, new, **settings)
    wanted = [target_law(pair[0], prompt, new) for prompt in prompts]
    return max(distance(law, want) for law, want in zip(laws, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("verifier", "paths", "length", "new"), list(loop_cases()))
def test_the_whole_loop_has_the_law_of_the_target(pair, verifier, paths, length, new):
    settings = {"verifier": verifier, "paths": paths, "length": length}
    if verifier in ALONE and paths > 1:
        settings |= {"rows_per_pass": 1, "prompts": PROMPTS[:1]}
    assert loop_distance(pair, new, **settings) < 1e-12


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_the_whole_loop_has_the_law_of_the_target_in_other_families(family):
    models = tiny(family, 2, vocab=2), tiny(family, 3, vocab=2)
    assert loop_distance(models, 4, verifier="traversal", paths=2, length=2) < 1e-12


def test_the_whole_loop_has_the_law_of_the_target_with_three_tokens(pair):
    models = tiny("llama", 4, vocab=3), tiny("gpt2", 5, vocab=3)
    assert loop_distance(models, 3, verifier="block", length=2) < 1e-12


@pytest.mark.parametrize("verifier", ["token", "block"])
@pytest.mark.parametrize(
    "policy", [ConfidenceLength(0.5, maximum=3), EntropyLength(0.7, maximum=3), HiddenLength(3)], ids=repr
)
def test_the_whole_loop_has_the_law_of_the_target_with_adaptive_lengths(pair, verifier, policy):
    seen: list[int] = []
    distances = loop_distance(pair, 4, verifier=verifier, length=policy, on_call=lambda b, *_: seen.append(b.shape[2]))
    assert distances < 1e-12
    assert max(seen) <= 3


@pytest.mark.parametrize(("verifier", "paths", "new"), [("block", 1, 3), ("key-race", 2, 2)])
def test_the_whole_loop_has_the_law_of_the_target_with_measured_lengths(pair, monkeypatch, verifier, paths, new):
    """Lengths follow from what earlier calls kept; those of a batch are common, so every row is replayed alone."""
    drafted: set[int] = set()

    def off() -> float:
        policy = MeasuredLength(2, seconds=[1.0, 1.4, 1.9])
        monkeypatch.setattr(MeasuredLength, "pace", lambda self, *_: Pace(2, self.seconds, kept=0.5, reached=1.0))
        settings = {"verifier": verifier, "paths": paths, "length": policy, "rows_per_pass": 1}
        (law,) = replayed_law(*pair, [[1]], new, on_call=lambda batch, *_: drafted.add(batch.shape[2]), **settings)
        return distance(law, target_law(pair[0], [1], new))

    assert off() < 1e-12
    assert {0, 1} <= drafted

    def flipped(self: loop.Decoding, starts: list[int], tokens: Tensor) -> tuple[Tensor, Tensor]:
        laws, slots = score(self, starts, tokens)
        return laws if tokens.shape[2] else laws.flip(-1), slots

    score = loop.Decoding._score
    monkeypatch.setattr(loop.Decoding, "_score", flipped)
    assert off() > 1e-3


def test_measured_lengths_go_on_after_plain_steps_and_rows_that_ended(models):
    policy = MeasuredLength(3)
    lengths = iter([2, 0, 0, 0, 0, 0, 0, 3, 0, 1] * 9)
    policy.pace(3, 1).length = lambda: next(lengths)
    ids, mask = torch.tensor([[0, 0, 5], [4, 3, 2], [0, 7, 7]]), torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]])
    target, draft = models
    end = int(target.generate(ids[:1, 2:], do_sample=False, max_new_tokens=4)[0, 4])
    settings = {"do_sample": False, "max_new_tokens": 30, "eos_token_id": end, "pad_token_id": end}
    output = generate(target, draft, ids, mask, length=policy, **settings)
    for row in range(3):
        alone = target.generate(ids[row][mask[row].bool()][None], **settings)[0, int(mask[row].sum()) :].tolist()
        ours = output.sequences[row, 3:].tolist()
        assert ours == alone + [end] * (len(ours) - len(alone))
    assert {0, 1, 3} <= set(output.statistics.drafted.flatten().tolist())


def test_the_exact_law_of_the_loop_rejects_padding_without_the_moved_bonus_row(pair, monkeypatch):
    def unmoved(target_probs: Tensor, lengths: Tensor, done: list[bool]) -> Tensor:
        padded = pad_rows(target_probs, lengths, done)
        padded[:, :, -1] = torch.where(torch.tensor(done)[:, None, None], padded[:, :, -1], target_probs[:, :, -1])
        return padded

    monkeypatch.setattr(loop, "pad_rows", unmoved)
    assert loop_distance(pair, 4, verifier="block", length=ConfidenceLength(0.5, maximum=3)) > 1e-3


@pytest.mark.parametrize("policy", [ConfidenceLength(0.1, maximum=4), HiddenLength(4)], ids=repr)
def test_adaptive_drafts_end_where_the_policy_says(models, policy):
    batches: list[Batch] = []
    output = generate(
        *models, torch.tensor([[1, 2, 3], [4, 5, 6]]), length=policy, generator=seeded(0), max_new_tokens=20,
        on_call=lambda batch, *_: batches.append(batch), **EXACT,
    )  # fmt: skip
    drafted = output.statistics.drafted
    assert len(set(drafted[:-3][output.statistics.active[:-3]].tolist())) > 1
    if isinstance(policy, ConfidenceLength):
        for batch, lengths in zip(batches[:3], drafted[:3].tolist(), strict=True):
            for row, length in enumerate(lengths):
                given = batch.draft_probs[row, 0, range(length), batch.tokens[row, 0, :length]]
                assert (given[:-1] >= 0.1).all()
                assert length == 4 or given[-1] < 0.1


# ---- beams and joint acceptance -------------------------------------------------------------------------------------


def beam_without_cache(model: PreTrainedModel, prompt: list[int], beams: int, length: int) -> tuple[list[int], float]:
    """The best block of a beam search by plain forward passes, and the logarithm of its probability."""
    kept = [(0.0, prompt)]
    for _ in range(length):
        with torch.no_grad():
            rows = model(torch.tensor([block for _, block in kept])).logits[:, -1].log_softmax(dim=-1).tolist()
        grown = [(j + p, [*block, y]) for (j, block), row in zip(kept, rows, strict=True) for y, p in enumerate(row)]
        kept = sorted(grown, key=lambda entry: -entry[0])[:beams]
    return kept[0][1][len(prompt) :], kept[0][0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3, 64])
def test_joint_decoding_keeps_the_blocks_of_a_plain_beam_search(family, beams):
    target, draft = tiny(family, 0, vocab=6, layers=2), tiny(family, 1, vocab=6)
    joint = replace(registry.get("mjsd"), verify=mjsd(0.02, token="argmax"))
    ids, mask = torch.tensor([[0, 0, 3], [4, 5, 1]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    output = generate(
        target, draft, ids, mask, verifier=joint, beams=beams, length=3, max_new_tokens=12, pad_token_id=0, **EXACT
    )
    kept = set()
    for row, prompt in enumerate([[3], [4, 5, 1]]):
        text = list(prompt)
        while len(text) < len(prompt) + 12:
            block, _ = beam_without_cache(draft, text, beams, 3)
            with torch.no_grad():
                ours, theirs = (m(torch.tensor([text + block])).logits[0].log_softmax(-1) for m in (target, draft))
            rows = range(len(text) - 1, len(text) + 2)
            ratio = (ours[rows, block] - theirs[rows, block]).cumsum(0)
            count = max((i + 1 for i in range(3) if ratio[i] >= math.log(0.02)), default=0)
            kept.add(count)
            text += [*block[:count], int(ours[len(text) - 1 + count].argmax())]
        assert output.sequences[row, 3:].tolist() == text[len(prompt) : len(prompt) + 12]
    assert len(kept) > 1


@pytest.mark.parametrize("width", [1, 2])
def test_sampled_beams_have_the_exact_law_of_beam_sampling(width):
    """With threshold 0 all of the draft is the output; by theory on the draft's rows, drawn without replacement."""
    target, draft = tiny("llama", 0, vocab=3), tiny("llama", 1, vocab=3)
    with torch.no_grad():
        rows = {
            prefix: draft(torch.tensor([[2, *prefix]])).logits[0, -1].softmax(-1).double().tolist()
            for prefix in ((), (0,), (1,), (2,))
        }
    expected = beam_sampling_law(ContextModel.tree(rows), 2, width)
    settings = {"verifier": registry.get("mjsd").configured(threshold=0.0), "length": 2, "beams": width}
    (law,) = replayed_law(target, draft, [[2]], 2, **settings, sample_beams=True)
    assert distance(law, expected) < 1e-9
    (best,) = replayed_law(target, draft, [[2]], 2, **settings)
    assert distance(best, expected) > 0.1
    with pytest.raises(ValueError, match="give the number of beams"):
        generate(target, draft, torch.tensor([[2]]), verifier="mjsd", sample_beams=True, max_new_tokens=1)


def test_greedy_joint_decoding_compares_joint_probabilities_of_beam_drafts_and_ends_with_the_likeliest_token():
    target, draft, ids = tiny("llama", 0, vocab=6, layers=2), tiny("llama", 1, vocab=6), torch.tensor([[4, 5, 1]])
    entry = registry.get("mjsd").configured(threshold=0.02)
    settings = {"length": 3, "max_new_tokens": 12}
    for beams in (0, 1, 3):
        greedy = generate(target, draft, ids, verifier=entry, beams=beams, do_sample=False, **settings)
        same = entry.configured(token="argmax")
        explicit = generate(target, draft, ids, verifier=same, beams=max(1, beams), **settings, **EXACT)
        assert greedy.sequences.tolist() == explicit.sequences.tolist()
    matched = generate(target, draft, ids, verifier="token", do_sample=False, **settings)
    assert greedy.statistics.block_efficiency > matched.statistics.block_efficiency
    strict = entry.configured(threshold=1.0)
    assert strict.settings == {"threshold": 1.0}
    plain = generate(target, draft, ids, verifier=strict, do_sample=False, **settings)
    assert plain.sequences.tolist() == matched.sequences.tolist()


def test_perplexity_is_that_of_the_chain_rule():
    model = tiny("llama", 0, vocab=6)
    sequences = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 5]])
    laws = [target_law(model, [1, 2], 2), target_law(model, [1, 2], 1)]
    expected = [laws[0][3, 4] ** (-1 / 2), laws[1][0,] ** -1]
    assert perplexity(model, sequences, 2, torch.tensor([2, 1])).tolist() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="prompt is 4 of 4"):
        perplexity(model, sequences, 4)
    for lengths in ([0, 2], [1, 3], [1]):
        with pytest.raises(ValueError, match=r"want one number in 1\.\.2 for each row"):
            perplexity(model, sequences, 2, torch.tensor(lengths))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_wherever_it_stands_does_not_change_the_perplexity(family):
    model = tiny(family, 0, vocab=6)
    prompts, texts = ([[9, 9, 3], [4, 9, 1], [4, 5, 1]], [[2, 4], [2, 0], [1, 1]])
    mask = torch.tensor(prompts) != 9
    sequences = torch.tensor(
        [[*(0 if t == 9 else t for t in p), *more] for p, more in zip(prompts, texts, strict=True)]
    )
    found = perplexity(model, sequences, 3, torch.tensor([2, 1, 2]), mask)
    for row, (real, count) in enumerate(zip(mask, (2, 1, 2), strict=True)):
        alone = torch.cat([sequences[row, :3][real], sequences[row, 3 : 3 + count]])[None]
        assert float(found[row]) == pytest.approx(float(perplexity(model, alone, int(real.sum()))[0]), rel=1e-12)
    assert not torch.allclose(found, perplexity(model, sequences, 3, torch.tensor([2, 1, 2])))


def drop_one(self: CachedModel, base: list[int]) -> None:
    """Broken twin: one committed token too few is remembered, and its slot is taken by the next."""
    keep(self, [max(0, count - 1) if self.cache.end > 4 else count for count in base])


def late_positions(self: CachedModel, tokens: Tensor, positions: Tensor, *rest: object) -> Tensor:
    """Broken twin: the last known token and two drafted ones stand one position late in the target's pass."""
    return feed(self, tokens, positions + (tokens.shape[1] == 3), *rest)


def late_tree_positions(self: CachedModel, tokens: Tensor, positions: Tensor, *rest: object, **more: object) -> Tensor:
    """Broken twin: the tokens of a tree stand at the places of their slots instead of their depths."""
    return extend(self, tokens, positions[:, :1] + torch.arange(positions.shape[1]), *rest, **more)


def stale_mask(self: CachedModel, seen: Tensor | None, *rest: object) -> Tensor:
    """Broken twin: a token sees every slot in use, other paths and later tokens included."""
    return masks(self, None if seen is None else torch.ones_like(seen), *rest)


def lost_path(self: CachedModel, places: Tensor) -> None:
    """Broken twin: the winning path stays where it was."""


def other_rows(self: CachedModel, rows: list[int]) -> None:
    """Broken twin: when rows that are done are left out, the others get each other's slots."""
    select(self, rows)
    self.cache.select(torch.arange(len(rows)).flip(0), max(self.base))


select = CachedModel.select
keep, feed, extend, masks = CachedModel.forget_tail, CachedModel._feed, CachedModel.extend, CachedModel._masks
BROKEN = [
    ("forget_tail", drop_one, "block", 1),
    ("_feed", late_positions, "block", 1),
    ("extend", late_tree_positions, "traversal", 2),
    ("_masks", stale_mask, "block", 1),
    ("_masks", stale_mask, "traversal", 2),
    ("keep_path", lost_path, "traversal", 2),
    ("select", other_rows, "block", 1),
]


@pytest.mark.parametrize(("method", "broken", "verifier", "paths"), BROKEN)
def test_the_exact_law_of_the_loop_rejects_corrupt_caches(pair, monkeypatch, method, broken, verifier, paths):
    monkeypatch.setattr(CachedModel, method, broken)
    swapped = pair[0], pair[0]
    for models in (pair, swapped):
        if loop_distance(models, 4, verifier=verifier, paths=paths, length=2, check=False) > 1e-4:
            return
    pytest.fail("the corrupt cache went unnoticed")


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("role", [0, 1])
def test_a_model_without_a_law_stops_the_loop_before_anything_is_emitted(role, paths, do_sample):
    models = [tiny("llama", 0, vocab=20, layers=2), tiny("llama", 1, vocab=20)]
    torch.nn.init.constant_(models[role].lm_head.weight, math.nan)
    with pytest.raises(ValueError, match="no law to sample from"):
        generate(
            *models, torch.tensor([[1, 2]]), paths=paths, length=2, check=False, do_sample=do_sample, max_new_tokens=4
        )


# ---- greedy ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("verifier", LOSSLESS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_is_the_greedy_output_of_the_target(verifier, family):
    target, draft = tiny(family, 0, vocab=20, layers=2), tiny(family, 1, vocab=20)
    paths = 1 if registry.get(verifier).paths == "single" else 3
    ids = torch.randint(20, (3, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :3], mask[2, -5:] = 0, 0
    output = generate(
        target, draft, ids, mask, verifier=verifier, paths=paths, length=4, do_sample=False, max_new_tokens=12
    )
    for row in range(3):
        alone = ids[row][mask[row].bool()][None]
        plain = target.generate(alone, do_sample=False, max_new_tokens=12)
        assert output.sequences[row, 6:].tolist() == plain[0, alone.shape[1] :].tolist()


def test_a_draft_equal_to_the_target_is_kept_whole():
    target = tiny("llama", 0, vocab=20, layers=2)
    output = generate(target, target, torch.tensor([[1, 2, 3]]), length=4, max_new_tokens=25, **EXACT)
    assert output.statistics.accepted.tolist() == [[4]] * 5
    assert output.statistics.block_efficiency == 5.0
    assert output.statistics.discarded == 0
    assert output.sequences.shape == (1, 28)


@pytest.mark.parametrize("verifier", ["traversal", "two-level"])
def test_a_draft_equal_to_the_target_is_kept_whole_on_every_path(verifier):
    target = tiny("qwen2", 0, vocab=20, layers=2)
    output = generate(
        target, target, torch.tensor([[1, 2, 3]]), verifier=verifier, paths=3, length=4, max_new_tokens=25, **EXACT
    )
    assert output.statistics.accepted.tolist() == [[4]] * 5
    assert output.statistics.discarded == 2 * 4 * 5


# ---- settings and transformers --------------------------------------------------------------------------------------

SETTINGS = [
    {"temperature": 0.6, "top_k": 2},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": [1]},
    {"forced_eos_token_id": 2},
    {"min_new_tokens": 2, "eos_token_id": [1, 2]},
    {"bad_words_ids": [[2, 1]]},
    {"exponential_decay_length_penalty": (1, 1.5), "eos_token_id": 1},
]


def plain_law(
    model: PreTrainedModel, prompt: list[int], new: int, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> dict[tuple[int, ...], float]:
    """The exact law of transformers' own sampling loop: its multinomial draws are replayed."""
    law: dict[tuple[int, ...], float] = {}
    pending: list[tuple[int, ...]] = [()]
    while pending:
        draws = LoopReplay([pending.pop()])
        with monkeypatch.context() as patch:
            patch.setattr(torch, "multinomial", lambda probs, num_samples, draws=draws: draws.choose(probs)[:, None])
            output = model.generate(torch.tensor([prompt]), max_new_tokens=new, pad_token_id=0, **settings)
        block = output[0, len(prompt) :].tolist()
        block = tuple(block + [0] * (new - len(block)))
        law[block] = law.get(block, 0.0) + float(draws.weight[0])
        pending += [decisions for _, decisions in draws.alternatives]
    return law


@pytest.fixture(scope="module")
def unset() -> list[dict[tuple[int, ...], float]]:
    """The laws of plain sampling without any setting."""
    with pytest.MonkeyPatch.context() as patch:
        return [plain_law(tiny("llama", 6, vocab=3), prompt, 3, patch, **EXACT) for prompt in ([1, 1, 2], [2])]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_every_setting_gives_the_law_of_plain_sampling_in_transformers(settings, monkeypatch, unset):
    models = tiny("llama", 6, vocab=3), tiny("llama", 7, vocab=3)
    settings = EXACT | settings
    prompts = [1, 1, 2], [2]
    laws = replayed_law(*models, list(prompts), 3, verifier="block", length=2, **settings)
    for law, prompt, other in zip(laws, prompts, unset, strict=True):
        plain = plain_law(models[0], prompt, 3, monkeypatch, **settings)
        assert distance(law, plain) < 1e-6  # transformers samples in float32
        assert distance(law, other) > 1e-3


def test_transformers_custom_generation_gives_the_same_tokens(models):
    target, draft = models
    ids = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    ours = generate(target, draft, ids, mask, length=3, generator=seeded(7), max_new_tokens=9, **EXACT)
    method = speculative(draft, length=3, generator=seeded(7))
    inside = target.generate(ids, attention_mask=mask, max_new_tokens=9, custom_generate=method, **EXACT)
    assert isinstance(inside, Tensor)
    assert inside.tolist() == ours.sequences.tolist()
    whole = target.generate(
        ids, max_new_tokens=9, custom_generate=speculative(draft), return_dict_in_generate=True, **EXACT
    )
    assert isinstance(whole, Generation)
    assert whole.statistics.calls > 0


def test_a_seed_fixes_the_output_and_another_seed_changes_it(models):
    def tokens(seed: int) -> list[list[int]]:
        return generate(
            *models, torch.tensor([[1, 2]]), generator=seeded(seed), max_new_tokens=30, **EXACT
        ).sequences.tolist()

    assert tokens(1) == tokens(1) != tokens(2)


def test_padding_stays_where_it_was_given_and_changes_no_token(models):
    plain = generate(*models, torch.tensor([[4, 3, 2]]), generator=seeded(0), max_new_tokens=9, **EXACT)
    for ids, mask in (([0, 4, 3, 2], [0, 1, 1, 1]), ([4, 3, 2, 9], [1, 1, 1, 0]), ([4, 7, 3, 2], [1, 0, 1, 1])):
        output = generate(
            *models, torch.tensor([ids]), torch.tensor([mask]), generator=seeded(0), max_new_tokens=9, **EXACT
        )
        assert output.sequences.tolist() == [[*ids, *plain.sequences[0, 3:].tolist()]]


def test_statistics_rebuild_every_call_and_context(models):
    met: list[tuple[Batch, Verdict, list[int]]] = []
    ids, mask = torch.tensor([[0, 0, 5], [4, 3, 2]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    output = generate(
        *models, ids, mask, verifier="token", length=3, generator=seeded(0), max_new_tokens=11, pad_token_id=0,
        on_call=lambda batch, verdict, starts: met.append((batch, verdict, starts)), **EXACT,
    )  # fmt: skip
    facts, padding = output.statistics, [2, 0]
    assert len(met) == len(facts.start)
    for row in range(2):
        known = 3 - padding[row]
        for call, (batch, verdict, starts) in enumerate(met):
            if not facts.active[call, row]:
                continue
            kept = int(facts.accepted[call, row])
            assert (starts[row], int(verdict.accepted[row])) == (known, kept)
            assert int(facts.start[call, row]) == known
            block = [*batch.tokens[row, 0, :kept].tolist(), int(verdict.token[row])]
            emitted = int(facts.emitted[call, row])
            column = padding[row] + known
            assert output.sequences[row, column : column + emitted].tolist() == block[:emitted]
            known += emitted
        assert known == 3 - padding[row] + 11
    drafted, kept = facts.drafted[facts.active].sum(), facts.accepted[facts.active].sum()
    assert facts.discarded == drafted - kept
    assert facts.calls == int(facts.active.sum())
    assert facts.block_efficiency == pytest.approx(1 + float(kept) / facts.calls)
    assert set(facts.seconds) == {"prefill", "draft", "target", "verify", "overhead"}


@pytest.mark.parametrize(("verifier", "paths"), [("block", 1), ("greedy-block", 1), ("two-level", 2)])
def test_rows_that_are_done_leave_the_passes_and_change_nothing(models, verifier, paths):
    target, draft = models
    ids = torch.randint(20, (6, 4), generator=seeded(1))
    settings = {"verifier": verifier, "paths": paths, "length": 3, "do_sample": False, "max_new_tokens": 25}
    settings |= {"output_scores": True, "return_dict_in_generate": True}
    fed: list[int] = []
    hook = target.register_forward_pre_hook(lambda *call: fed.append(len(call[2]["input_ids"])), with_kwargs=True)
    left, held = (
        generate(target, draft, ids, **settings, eos_token_id=[3, 7], pad_token_id=0, on_call=on_call)
        for on_call in (None, lambda *_: None)
    )
    hook.remove()
    counts = fed[-len(held.statistics.start) - len(left.statistics.start) :]
    assert counts[len(left.statistics.start)] == min(counts[len(left.statistics.start) :]) == 6
    assert min(counts) < 5
    assert torch.equal(left.sequences, held.sequences)
    active = held.statistics.active
    assert torch.equal(left.statistics.active, active)
    for name in ("start", "drafted", "accepted", "path", "emitted"):
        ours, theirs = (getattr(output.statistics, name) for output in (left, held))
        assert torch.equal(ours[active], theirs[active])
    assert torch.equal(left.statistics.start, held.statistics.start)
    torch.testing.assert_close(torch.stack(left.scores), torch.stack(held.scores), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eos", [3, [3, 7]])
def test_rows_end_at_their_first_end_token_and_are_padded_behind_it(models, eos):
    ids = torch.randint(20, (6, 4), generator=seeded(1))
    ends = {eos} if isinstance(eos, int) else set(eos)
    output = generate(
        *models, ids, length=4, generator=seeded(2), max_new_tokens=30, eos_token_id=eos, pad_token_id=19, **EXACT
    )
    ended = 0
    for row in output.sequences[:, 4:].tolist():
        first = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        assert all(token == 19 for token in row[first + 1 :])
        ended += row[first] in ends
    assert ended >= 2


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.puts: list[list[int]] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.puts.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_the_prompt_and_then_each_call(models):
    streamer = Recorder()
    output = generate(*models, torch.tensor([[1, 2]]), streamer=streamer, max_new_tokens=12, **EXACT)
    assert streamer.puts[0] == [1, 2]
    assert list(itertools.chain(*streamer.puts)) == output.sequences[0].tolist()
    assert [len(put) for put in streamer.puts[1:]] == output.statistics.emitted[:, 0].tolist()
    assert streamer.ended


def test_stopping_criteria_end_a_row_at_the_first_token_that_meets_them(models):
    class UntilSum(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
            return input_ids.sum(dim=1) > 60

    criteria = StoppingCriteriaList([UntilSum()])
    output = generate(
        *models, torch.tensor([[1, 2]]), stopping_criteria=criteria, generator=seeded(3), max_new_tokens=40, **EXACT
    )
    row = output.sequences[0].tolist()
    assert sum(row) > 60 >= sum(row[:-1])


def test_an_interrupt_keeps_what_was_generated(models):
    def stop(batch: Batch, verdict: Verdict, starts: list[int]) -> None:
        if starts[0] > 8:
            raise KeyboardInterrupt

    full = generate(*models, torch.tensor([[1, 2]]), generator=seeded(4), max_new_tokens=30, **EXACT)
    part = generate(*models, torch.tensor([[1, 2]]), generator=seeded(4), max_new_tokens=30, on_call=stop, **EXACT)
    assert part.statistics.interrupted
    assert not full.statistics.interrupted
    assert 8 < part.sequences.shape[1] < 32
    assert part.sequences[0].tolist() == full.sequences[0, : part.sequences.shape[1]].tolist()


def test_inside_transformers_an_interrupt_is_one_and_a_streamer_gets_every_token(models):
    def stop(batch: Batch, verdict: Verdict, starts: list[int]) -> None:
        if starts[0] > 8:
            raise KeyboardInterrupt

    target, draft = models
    settings = {"max_new_tokens": 30, **EXACT}
    streamer = Recorder()
    with pytest.raises(KeyboardInterrupt):
        target.generate(
            torch.tensor([[1, 2]]), streamer=streamer, custom_generate=speculative(draft, on_call=stop), **settings
        )
    assert streamer.ended
    assert 8 < sum(map(len, streamer.puts)) < 32
    for given in ({"streamer": Recorder()}, {}):
        streamer = Recorder()
        method = speculative(draft, generator=seeded(4), **({} if given else {"streamer": streamer}))
        inside = {"streamer": streamer} if given else {}
        output = target.generate(torch.tensor([[1, 2]]), custom_generate=method, **inside, **settings)
        assert streamer.puts[0] == [1, 2]
        assert list(itertools.chain(*streamer.puts)) == output[0].tolist()
    method = speculative(draft, streamer=Recorder())
    with pytest.raises(ValueError, match="two streamers are given"):
        target.generate(torch.tensor([[1, 2]]), custom_generate=method, streamer=Recorder(), **settings)


class UntilSure(StoppingCriteria):
    """Reads the scores of the last token."""

    def __call__(self, input_ids: Tensor, scores: tuple[Tensor, ...], **kwargs: object) -> Tensor:
        return scores[-1].amax(dim=1) > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stopping_criteria": StoppingCriteriaList([UntilSure()])}, "UntilSure wants scores"),
        ({"encoder_repetition_penalty": 1.2}, "encoder_repetition_penalty wants one row and one path"),
        ({"encoder_no_repeat_ngram_size": 2}, "encoder_no_repeat_ngram_size wants one row and one path"),
    ],
)
def test_what_needs_more_than_the_tokens_of_one_row_is_refused_in_one_line(models, settings, message):
    with pytest.raises(ValueError, match=message) as refusal:
        generate(*models, torch.tensor([[1, 2], [3, 4]]), max_new_tokens=5, **EXACT, **settings)
    assert "\n" not in str(refusal.value)


def test_a_processor_that_runs_a_model_is_refused(models):
    guided = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, models[0])
    with pytest.raises(ValueError, match="runs a model of its own along the text"):
        generate(*models, torch.tensor([[1, 2]]), logits_processor=LogitsProcessorList([guided]), max_new_tokens=5)


def test_a_penalty_on_the_prompt_keeps_its_law_for_one_row(monkeypatch):
    models = tiny("llama", 6, vocab=3), tiny("llama", 7, vocab=3)
    settings = EXACT | {"encoder_repetition_penalty": 1.8}
    law = replayed_law(*models, [[2, 1]], 2, rows_per_pass=1, verifier="block", length=1, **settings)[0]
    assert distance(law, plain_law(models[0], [2, 1], 2, monkeypatch, **settings)) < 1e-6
    assert distance(law, plain_law(models[0], [2, 1], 2, monkeypatch, **EXACT)) > 1e-3


def test_a_stop_string_ends_the_text_where_it_first_appears():
    pair = load_pair(shipped_pair.TARGET, shipped_pair.DRAFT, device="cpu")
    ids = pair.tokenizer(shipped_pair.prompts()[0]["text"], return_tensors="pt").input_ids
    plain = pair.target.generate(ids, do_sample=False, max_new_tokens=60)
    text = pair.tokenizer.decode(plain[0, ids.shape[1] :])
    stop = next(text[i : i + 3] for i in range(10, len(text)) if text[i : i + 3] not in text[: i + 2])
    settings = {"do_sample": False, "max_new_tokens": 60, "stop_strings": [stop], "tokenizer": pair.tokenizer}
    wanted = pair.target.generate(ids, **settings)
    assert generate(pair.target, pair.draft, ids, **settings).sequences.tolist() == wanted.tolist()
    config = GenerationConfig(do_sample=False, max_new_tokens=60, stop_strings=stop, eos_token_id=0, pad_token_id=1)
    ours = generate(pair.target, pair.draft, ids, generation_config=config, tokenizer=pair.tokenizer)
    assert ours.sequences.tolist() == wanted.tolist()
    assert wanted.shape[1] < plain.shape[1]


def test_allowed_tokens_are_honoured_for_one_row(models):
    settings = {"prefix_allowed_tokens_fn": lambda _, ids: [(int(ids[-1]) + 1) % 20, (int(ids[-1]) + 2) % 20]}
    ids = torch.tensor([[1, 2]])
    ours = generate(*models, ids, do_sample=False, max_new_tokens=20, **settings)
    assert ours.sequences.tolist() == models[0].generate(ids, do_sample=False, max_new_tokens=20, **settings).tolist()
    with pytest.raises(ValueError, match="prefix_allowed_tokens_fn wants one row"):
        generate(*models, torch.tensor([[1], [2]]), max_new_tokens=5, **settings)


REFUSED = [
    ({"stop_strings": ["x"]}, "tokenizer is None"),
    ({"num_beams": 2}, "num_beams is 2"),
    ({"penalty_alpha": 0.5}, "penalty_alpha is 0.5"),
    ({"guidance_scale": 2.0}, "guidance_scale is 2.0"),
    ({"prompt_lookup_num_tokens": 3}, "draft and prompt_lookup_num_tokens is given"),
    ({"output_attentions": True}, "output_attentions is True"),
    ({"assistant_model": "another"}, "assistant_model is not supported"),
    ({"past_key_values": object()}, "past_key_values is not supported"),
    ({"verifier": "none such"}, "verifier is 'none such'"),
    ({"paths": 2, "verifier": "block"}, "takes one path; paths is 2"),
    ({"paths": 0}, "paths is 0"),
    ({"length": 0}, "length is 0"),
    ({"length": "automatic"}, "want an integer of at least 1, 'auto' or a policy"),
    ({"length": "auto", "verifier": "greedy-block"}, "changes from call to call; 'greedy-block'"),
    ({"max_new_tokens": 500}, "the target reads at most 64"),
    ({"generation_config": GenerationConfig(num_beams=3)}, "num_beams is 3"),
    ({"attention_mask": torch.zeros(1, 2)}, "row 0 of input_ids is empty"),
    ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, "no tokens"),
    ({"input_ids": torch.zeros(3, 0, dtype=torch.int64), "attention_mask": torch.zeros(3, 0)}, "no tokens"),
    ({"input_ids": torch.tensor([[1, 20]])}, r"input_ids lie in 1\.\.20; want 0\.\.19, the target's tokens"),
    ({"input_ids": torch.tensor([[2**62, 1, -1]]), "attention_mask": torch.tensor([[0, 1, 1]])}, r"lie in -1\.\.1;"),
    ({"length": AcceptanceHeadLength(AcceptanceHead(5))}, "wants a draft of width 5; this one has 8"),
    ({"beams": 2}, "beams is 2"),
    ({"length": ConfidenceLength(), "verifier": "greedy-block"}, "wants one sampled path"),
    ({"length": ConfidenceLength(), "verifier": "two-level", "paths": 2}, "wants one sampled path"),
    ({"input_ids": torch.ones(2, 2, dtype=torch.int64), "streamer": Recorder()}, "a streamer wants 1"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_cannot_be_honoured_is_refused_before_any_work(models, monkeypatch, settings, message):
    target, draft = models
    for model in models:
        monkeypatch.setattr(model.model, "forward", lambda *_, **__: pytest.fail("a model ran"))
    arguments = {"input_ids": torch.tensor([[1, 2]]), "max_new_tokens": 5} | settings
    if "generation_config" in settings:
        del arguments["max_new_tokens"]
    with pytest.raises(ValueError, match=message):
        generate(target, draft, **arguments)


def test_the_same_beams_are_refused_inside_transformers(models):
    with pytest.raises(ValueError, match="num_beams is 2"):
        models[0].generate(torch.tensor([[1]]), num_beams=2, max_new_tokens=3, custom_generate=speculative(models[1]))


def test_temperature_zero_is_greedy(models):
    ids = torch.tensor([[4, 5]])
    zero = generate(*models, ids, temperature=0, max_new_tokens=10)
    assert zero.sequences.tolist() == models[0].generate(ids, do_sample=False, max_new_tokens=10).tolist()


@pytest.mark.parametrize("sizes", [(20, 23), (23, 20)])
def test_vocabularies_that_differ_by_padding_rows_work(sizes):
    target, draft = tiny("llama", 0, vocab=sizes[0]), tiny("llama", 1, vocab=sizes[1])
    ids = torch.tensor([[4, 5]])
    greedy = generate(target, draft, ids, do_sample=False, max_new_tokens=20)
    assert greedy.sequences.tolist() == target.generate(ids, do_sample=False, max_new_tokens=20).tolist()
    sampled = generate(target, draft, ids, generator=seeded(0), max_new_tokens=30, **EXACT)
    assert int(sampled.sequences.max()) < sizes[0]


def test_models_of_different_dtypes_decode_together(models):
    target, draft = models[0], tiny("llama", 1, vocab=20).to(torch.bfloat16)
    ids = torch.tensor([[4, 5]])
    greedy = generate(target, draft, ids, do_sample=False, max_new_tokens=20)
    assert greedy.sequences.tolist() == target.generate(ids, do_sample=False, max_new_tokens=20).tolist()


# ---- verifiers that read the draft's row after the whole path ------------------------------------------------------


def test_the_row_after_the_path_is_the_draft_s_and_costs_one_pass_where_it_is_asked(models):
    seen: list[tuple[Batch, list[int]]] = []
    output = generate(
        *models, torch.tensor([[1, 2, 3], [4, 5, 6]]), verifier="pooled", length=2, generator=seeded(0),
        max_new_tokens=16, on_call=lambda batch, _, starts: seen.append((batch, starts)), **EXACT,
    )  # fmt: skip
    asked = [entry for entry in seen if entry[0].draft_after.asked]
    assert output.statistics.rows_after == len(asked)
    assert 0 < len(asked) <= len(seen)
    again = generate(
        *models, torch.tensor([[1, 2, 3], [4, 5, 6]]), verifier="block", length=2, generator=seeded(0),
        max_new_tokens=16, **EXACT,
    )  # fmt: skip
    assert again.statistics.rows_after == 0


def test_the_exact_law_of_the_loop_rejects_a_row_before_the_path_s_end(pair, monkeypatch):
    class Early(loop.RowAfter):
        def __call__(self) -> Tensor:
            return super().__call__().flip(-1)

    monkeypatch.setattr(loop, "RowAfter", Early)
    assert loop_distance(pair, 4, verifier="pooled", length=1) > 1e-3


def test_a_row_that_starts_again_takes_an_empty_carry_along():
    first, draws = registry.get("pooled"), Draws(seeded(3))
    tokens = torch.zeros(2, 1, 1, dtype=torch.int64)
    draft, target = torch.tensor([0.6, 0.4]).expand(2, 1, 1, 2), torch.tensor([0.4, 0.6]).expand(2, 1, 2, 2)
    batch = Batch(tokens, draft, target, None, draft[:, :, 0])
    carry = first.verify(batch, draws).carry
    restarted = Offers.joined([carry.select([0]), Offers.none(1, 1, carry.offered.dtype, carry.offered.device)])
    assert torch.equal(restarted.starting[1:], torch.ones(1))
    assert torch.equal(restarted.select([0]).numbers(), carry.select([0]).numbers())
    assert first.verify(replace(batch, carry=restarted), draws).accepted.shape == (2,)
