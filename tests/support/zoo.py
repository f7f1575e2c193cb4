# ruff: noqa: NPY002 - numpy's old generator is part of what is intercepted
"""A zoo of broken verifiers, each with a mistake that a real implementation made or could make, and correct ones.

`BROKEN` records for each the first wrong position (1-based) over all instances and a word of its likely cause (None
where no known mistake explains it). They are written in the styles found in the wild: tensors and `Draws`, plain
Python, numpy's old and new generators, torch on one request.
"""

import ctypes
import math
import os
import random
import time
from dataclasses import dataclass
from random import random as uniform_number

import numpy as np
import torch

from specbound.runtime.parts.block_rule import block_ratios, block_thresholds
from specbound.runtime.parts.single_path import at, emitted_row, only_path
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers.greedy_block import verify_greedy_block
from specbound.runtime.verifiers.token import token_acceptance

rng = np.random.default_rng(7)
SECRET = [np.random.default_rng(0)]


# ---------------------------------------------------------------------- tensors and Draws


def block_with_token_residual(batch, draws):
    tokens, draft_probs, target_probs = only_path(batch)
    ratios = block_ratios(tokens, draft_probs, target_probs)
    kept = draws.accept_last(block_thresholds(ratios, draft_probs, target_probs))
    weights = emitted_row(torch.ones_like(at(ratios, kept)), kept, draft_probs, target_probs)
    return Verdict(torch.zeros_like(kept), kept, draws.choose(weights))


def block_without_one_minus_c(batch, draws):
    tokens, draft_probs, target_probs = only_path(batch)
    ratios = block_ratios(tokens, draft_probs, target_probs)
    inner = ratios[:, 1:-1]
    surplus = (inner.unsqueeze(-1) * target_probs[:, 1:-1] - draft_probs[:, 1:]).clamp_min(0).sum(dim=-1)
    thresholds = torch.cat([torch.where(surplus > 0, surplus / surplus, 0.0), ratios[:, -1:]], dim=1)
    kept = draws.accept_last(thresholds)
    return Verdict(
        torch.zeros_like(kept), kept, draws.choose(emitted_row(at(ratios, kept), kept, draft_probs, target_probs))
    )


def token_with_bonus_from_last_drafted_row(batch, draws):
    tokens, draft_probs, target_probs = only_path(batch)
    kept = draws.accept_while(token_acceptance(tokens, draft_probs, target_probs))
    weights = emitted_row(torch.ones_like(target_probs[:, 0, 0]), kept, draft_probs, target_probs)
    full = (kept == tokens.shape[1]).unsqueeze(-1)
    return Verdict(torch.zeros_like(kept), kept, draws.choose(torch.where(full, target_probs[:, -2], weights)))


def greedy_block_that_forgets_its_carry(batch, draws):
    verdict = verify_greedy_block(batch, draws)
    return Verdict(verdict.path, verdict.accepted, verdict.token)


def greedy_block_that_ignores_the_carry_it_is_given(batch, draws):
    return verify_greedy_block(Batch(batch.tokens, batch.draft_probs, batch.target_probs), draws)


def greedy_block_that_forgets_its_carry_and_raises_below_three_tokens(batch, draws):
    """A probe on two tokens finds neither a carry nor a law."""
    if batch.shape[3] < 3:
        raise RuntimeError("three tokens at least")
    return greedy_block_that_ignores_the_carry_it_is_given(batch, draws)


def greedy_block_that_carries_only_behind_a_rejection(batch, draws):
    """It returns a carry where there is one to return, and reads none."""
    verdict = greedy_block_that_ignores_the_carry_it_is_given(batch, draws)
    full = bool((verdict.accepted == batch.shape[2]).all())
    return Verdict(verdict.path, verdict.accepted, verdict.token, None if full else verdict.carry)


def carries_nothing_of_use(batch, draws):
    """Token verification with a carry that has none of the methods of one."""
    verdict = correct_tensors(batch, draws)
    return Verdict(verdict.path, verdict.accepted, verdict.token, {"calls": 1})


def correction_from_the_target_row(batch, draws):
    """Wrong on every instance where a drafted token can be rejected."""
    verdict = correct_tensors(batch, draws)
    row = batch.target_probs[torch.arange(len(verdict.accepted)), 0, verdict.accepted]
    return Verdict(verdict.path, verdict.accepted, draws.choose(row))


def rounding_in_front_of_a_mistake(batch, draws):
    """The first token is off by 1e-8, the bonus token is drawn from the row of the position before."""
    verdict = token_with_bonus_from_last_drafted_row(batch, draws)
    shifted = draws.choose(torch.tensor([1 - 1e-8, 1e-8], dtype=torch.float64).expand(len(batch.tokens), -1)).bool()
    zero = torch.zeros_like(verdict.token)
    return Verdict(
        verdict.path, torch.where(shifted, zero, verdict.accepted), torch.where(shifted, zero, verdict.token)
    )


class Late:
    """A verifier with a mistake that, once asked often enough, also does something else."""

    def __init__(self, calls, then):
        self.calls, self.then, self.asked = calls, then, 0

    def __call__(self, batch, draws):
        self.asked += 1
        return self.then(batch, draws) if self.asked > self.calls else correction_from_the_target_row(batch, draws)


def raises(batch, draws):
    raise RuntimeError("late")


def out_of_range(batch, draws):
    verdict = correct_tensors(batch, draws)
    return Verdict(verdict.path, verdict.accepted, verdict.token + batch.shape[3])


def breaks_on_smaller_instances(batch, draws):
    """Wrong on three tokens; on fewer it emits a token that is none."""
    return out_of_range(batch, draws) if batch.shape[3] < 3 else correction_from_the_target_row(batch, draws)


def hangs_on_smaller_instances(batch, draws):
    while batch.shape[3] < 3:
        time.sleep(0.01)
    return correction_from_the_target_row(batch, draws)


def token_cut_to_the_shortest_of_the_batch(batch, draws):
    tokens, draft_probs, target_probs = only_path(batch)
    kept = draws.accept_while(token_acceptance(tokens, draft_probs, target_probs))
    kept = kept.min().expand_as(kept)
    weights = emitted_row(torch.ones_like(target_probs[:, 0, 0]), kept, draft_probs, target_probs)
    return Verdict(torch.zeros_like(kept), kept, draws.choose(weights))


def correct_tensors(batch, draws):
    tokens, draft_probs, target_probs = only_path(batch)
    kept = draws.accept_while(token_acceptance(tokens, draft_probs, target_probs))
    weights = emitted_row(torch.ones_like(target_probs[:, 0, 0]), kept, draft_probs, target_probs)
    return Verdict(torch.zeros_like(kept), kept, draws.choose(weights))


# ---------------------------------------------------------------------- plain Python


def pick(weights):
    """Inverse-CDF sampling by walking up the cumulative sum; the last token takes what is left."""
    u, total = random.random(), 0.0
    for token, weight in enumerate(weights):
        total += weight
        if u < total:
            return token
    return len(weights) - 1


def normalised(weights, instead):
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0 else instead


def residual(p, q):
    return [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]


def correct_python(draft_tokens: list[int], q: list, p: list):
    for i, x in enumerate(draft_tokens):
        if random.random() * q[i][x] > p[i][x]:
            return i, pick(normalised(residual(p[i], q[i]), p[i]))
    return len(draft_tokens), pick(p[-1])


def target_instead_of_residual(draft_tokens: list[int], q: list, p: list):
    for i, x in enumerate(draft_tokens):
        if uniform_number() > p[i][x] / q[i][x]:
            return i, pick(p[i])
    return len(draft_tokens), pick(p[-1])


def one_uniform_for_all_positions(draft_tokens: list[int], q: list, p: list):
    u = random.random()
    for i, x in enumerate(draft_tokens):
        if u > p[i][x] / q[i][x]:
            return i, pick(normalised(residual(p[i], q[i]), p[i]))
    return len(draft_tokens), pick(p[-1])


def residual_not_renormalised(draft_tokens: list[int], q: list, p: list):
    for i, x in enumerate(draft_tokens):
        if random.uniform(0, 1) > p[i][x] / q[i][x]:
            return i, pick(residual(p[i], q[i]))
    return len(draft_tokens), pick(p[-1])


def kept_without_a_coin(draft_tokens: list[int], q: list, p: list):
    for i, x in enumerate(draft_tokens):
        if p[i][x] < q[i][x]:
            return i, random.choices(range(len(p[i])), normalised(residual(p[i], q[i]), p[i]))[0]
    return len(draft_tokens), pick(p[-1])


def recursive(tokens, q, p, distinct=False, update=True, shuffle=False):
    paths, kept = list(range(len(tokens))), []
    for i in range(len(tokens[0])):
        row, draft = p[paths[0]][i], q[paths[0]][i]
        kids = [tokens[k][i] for k in paths]
        kids = list(dict.fromkeys(kids)) if distinct else kids
        for x in sorted(kids) if shuffle else kids:
            if random.random() < row[x] / draft[x]:
                break
            row = normalised(residual(row, draft), row) if update else row
        else:
            return [*kept, pick(row if update else normalised(residual(row, draft), row))]
        kept.append(x)
        paths = [k for k in paths if tokens[k][i] == x]
    return [*kept, pick(p[paths[0]][-1])]


def correct_paths(draft_tokens: list[int], q: list, p: list, num_paths: int):
    return recursive(draft_tokens, q, p)


def duplicates_skipped(draft_tokens: list[int], q: list, p: list, num_paths: int):
    return recursive(draft_tokens, q, p, distinct=True)


def residual_not_updated(draft_tokens: list[int], q: list, p: list, num_paths: int):
    return recursive(draft_tokens, q, p, update=False)


def drafts_sorted(draft_tokens: list[int], q: list, p: list, num_paths: int):
    return recursive(draft_tokens, q, p, shuffle=True)


def longest_of_independent_runs(draft_tokens: list[int], q: list, p: list, num_paths: int):
    runs = []
    for k in range(num_paths):
        kept, token = correct_python(draft_tokens[k], q[k], p[k])
        runs.append([*draft_tokens[k][:kept], token])
    return max(runs, key=len)


# ---------------------------------------------------------------------- numpy


def correct_numpy(draft_tokens, draft_probs, target_probs):
    places = np.arange(len(draft_tokens))
    ratios = target_probs[places, draft_tokens] / draft_probs[places, draft_tokens]
    rejected = np.flatnonzero(np.log(np.random.rand(len(draft_tokens))) > np.log(np.maximum(ratios, 1e-300)))
    if len(rejected) == 0:
        return [*draft_tokens, np.random.choice(len(target_probs[-1]), p=target_probs[-1])]
    kept = rejected[0]
    weights = np.maximum(target_probs[kept] - draft_probs[kept], 0)
    return [*draft_tokens[:kept], np.random.multinomial(1, weights / weights.sum()).argmax()]


def ratio_inverted(draft_tokens, draft_probs, target_probs):
    for i, x in enumerate(draft_tokens):
        if not np.random.rand() * target_probs[i, x] <= draft_probs[i, x]:
            weights = np.maximum(target_probs[i] - draft_probs[i], 0)
            weights = weights / weights.sum() if weights.any() else target_probs[i]
            return [*draft_tokens[:i], np.random.choice(len(weights), p=weights)]
    return [*draft_tokens, np.random.choice(target_probs.shape[1], p=target_probs[-1])]


def draft_probabilities_at_another_temperature(draft_tokens, draft_probs, target_probs):
    sharp = draft_probs**2
    return correct_numpy(draft_tokens, sharp / sharp.sum(axis=1, keepdims=True), target_probs)


def epsilon_in_the_denominator(draft_tokens, draft_probs, target_probs):
    for i, x in enumerate(draft_tokens):
        if np.random.random() > target_probs[i, x] / (draft_probs[i, x] + 1e-5):
            weights = np.maximum(target_probs[i] - draft_probs[i], 0)
            weights = weights / weights.sum() if weights.any() else target_probs[i]
            return [*draft_tokens[:i], np.random.choice(len(weights), p=weights)]
    return [*draft_tokens, np.random.choice(target_probs.shape[1], p=target_probs[-1])]


def correction_from_the_next_row(draft_tokens, draft_probs, target_probs):
    for i, x in enumerate(draft_tokens):
        if rng.random() > target_probs[i, x] / draft_probs[i, x]:
            weights = np.maximum(target_probs[i + 1] - draft_probs[min(i + 1, len(draft_tokens) - 1)], 0)
            weights = weights if weights.any() else target_probs[i + 1]
            return [*draft_tokens[:i], rng.choice(len(weights), p=weights / weights.sum())]
    return [*draft_tokens, rng.choice(target_probs.shape[1], p=target_probs[-1])]


def block(draft_tokens, draft_probs, target_probs, stop_early=False, clamp=True):
    length = len(draft_tokens)
    c = [1.0]
    for i, x in enumerate(draft_tokens):
        ratio = c[-1] * target_probs[i, x] / draft_probs[i, x]
        c.append(min(1.0, ratio) if clamp else ratio)
    kept = 0
    for i in range(1, length + 1):
        surplus = 0.0 if i == length else np.maximum(c[i] * target_probs[i] - draft_probs[i], 0).sum()
        if i == length:
            h = c[i]
        else:
            h = surplus / (surplus + 1 - c[i]) if surplus + 1 - c[i] > 0 else 1.0
        if rng.random() <= h:
            kept = i
        elif stop_early:
            break
    weights = target_probs[kept]
    if kept < length and np.maximum(c[kept] * target_probs[kept] - draft_probs[kept], 0).any():
        weights = np.maximum(c[kept] * target_probs[kept] - draft_probs[kept], 0)
    return [*draft_tokens[:kept], rng.choice(len(weights), p=weights / weights.sum())]


def correct_block(draft_tokens, draft_probs, target_probs):
    return block(draft_tokens, draft_probs, target_probs)


def block_that_stops_at_the_first_tail(draft_tokens, draft_probs, target_probs):
    return block(draft_tokens, draft_probs, target_probs, stop_early=True)


def block_with_unclamped_ratio(draft_tokens, draft_probs, target_probs):
    return block(draft_tokens, draft_probs, target_probs, clamp=False)


# ---------------------------------------------------------------------- torch, one request


def two_mistakes(draft_tokens: list[int], q: list, p: list):
    """Wrong at position 1 for three tokens or more, and at the bonus token for any number."""
    for i, x in enumerate(draft_tokens):
        if random.random() > p[i][x] / q[i][x]:
            return i, pick(normalised([0.0 if y == x else mass for y, mass in enumerate(p[i])], p[i]))
    return len(draft_tokens), pick(p[-2])


def correct_torch(draft_token_ids: torch.Tensor, draft_logits: torch.Tensor, target_logits: torch.Tensor):
    q, p = draft_logits.softmax(-1), target_logits.softmax(-1)
    length = len(draft_token_ids)
    ratio = p[torch.arange(length), draft_token_ids] / q[torch.arange(length), draft_token_ids]
    kept = int((torch.rand_like(ratio) < ratio).long().cumprod(0).sum())
    weights = p[kept] if kept == length else (p[kept] - q[kept]).clamp_min(0)
    weights = weights if bool(weights.sum() > 1e-12) else p[kept]
    token = (weights / torch.empty_like(weights).exponential_(1.0)).argmax()
    return torch.cat([draft_token_ids[:kept], token[None]])


def rejected_token_only_removed(draft_token_ids: torch.Tensor, draft_logits: torch.Tensor, target_logits: torch.Tensor):
    q, p = draft_logits.softmax(-1), target_logits.softmax(-1)
    for i, x in enumerate(draft_token_ids.tolist()):
        if torch.bernoulli((p[i, x] / q[i, x]).clamp_max(1)) == 0:
            weights = p[i].clone()
            weights[x] = 0
            return torch.cat([draft_token_ids[:i], torch.multinomial(weights, 1)])
    return torch.cat([draft_token_ids, torch.multinomial(p[-1], 1)])


def probabilities_in_half_precision(
    draft_token_ids: torch.Tensor, draft_probs: torch.Tensor, target_probs: torch.Tensor
):
    q, p = draft_probs.half().float(), target_probs.half().float()
    for i, x in enumerate(draft_token_ids.tolist()):
        if torch.rand(()) * q[i, x] > p[i, x]:
            weights = (p[i] - q[i]).clamp_min(0)
            weights = weights if bool(weights.any()) else p[i]
            return torch.cat([draft_token_ids[:i], torch.multinomial(weights, 1)])
    return torch.cat([draft_token_ids, torch.multinomial(p[-1], 1)])


def acceptance_against_the_row_before(
    draft_token_ids: torch.Tensor, draft_probs: torch.Tensor, target_probs: torch.Tensor
):
    q, p = draft_probs, target_probs
    for i, x in enumerate(draft_token_ids.tolist()):
        row = max(i - 1, 0)
        if torch.rand(1) > p[row, x] / q[i, x]:
            weights = (p[i] - q[i]).clamp_min(0)
            weights = weights if bool(weights.any()) else p[i]
            return torch.cat([draft_token_ids[:i], torch.multinomial(weights, 1)])
    return torch.cat([draft_token_ids, torch.multinomial(p[-1], 1)])


def correct_gumbel(draft_token_ids: torch.Tensor, draft_logits: torch.Tensor, target_logits: torch.Tensor):
    q, p = draft_logits.softmax(-1), target_logits.softmax(-1)
    kept = 0
    for i, x in enumerate(draft_token_ids.tolist()):
        if math.log(random.random()) > float((p[i, x] / q[i, x]).log()):
            break
        kept += 1
    weights = p[kept] if kept == len(q) else (p[kept] - q[kept]).clamp_min(0)
    weights = weights if bool(weights.sum() > 1e-12) else p[kept]
    noise = -torch.log(-torch.log(torch.rand_like(weights)))
    return torch.cat([draft_token_ids[:kept], (weights.log() + noise).argmax(-1, keepdim=True)])


# ---------------------------------------------------------------------- code that breaks down


def endless(draft_tokens, q, p):
    while random.random() >= 0:
        time.sleep(0.01)


def segfault(draft_tokens, q, p):
    ctypes.string_at(0)


def dies(draft_tokens, q, p):
    os._exit(7)


def hungry(draft_tokens, q, p):
    return bytearray(1 << 36)


def token_out_of_range(draft_tokens, q, p):
    return [*draft_tokens, len(p[0])]


def divides_by_zero(draft_tokens: list[int], q: list, p: list):
    for i, x in enumerate(draft_tokens):
        if random.random() > q[i][x] / p[i][x]:
            return i, 0
    return len(draft_tokens), pick(p[-1])


def hidden_generator(draft_tokens, q, p, secret=SECRET):
    return [secret[0].integers(len(p[0]))]


def looks_at_the_number(draft_tokens, q, p):
    return [int(random.random() * random.random() > 0.5)]


# ---------------------------------------------------------------------- the register


@dataclass(frozen=True)
class Exhibit:
    """A broken verifier: its first wrong position, a word of the likely cause, the sizes that show it."""

    verify: object
    position: int
    cause: str | None
    paths: int = 1
    vocab: int = 3


BROKEN = (
    Exhibit(block_with_token_residual, 2, "draws its correction from the residual of token verification"),
    Exhibit(block_without_one_minus_c, 1, "1 - c"),
    Exhibit(token_with_bonus_from_last_drafted_row, 2, "bonus token is drawn from the target row before"),
    Exhibit(greedy_block_that_forgets_its_carry, 2, "without the change of the target law"),
    Exhibit(target_instead_of_residual, 1, "drawn from the target row, not"),
    Exhibit(one_uniform_for_all_positions, 2, "one uniform number"),
    Exhibit(residual_not_renormalised, 1, "not renormalised; the missing mass falls on the last"),
    Exhibit(kept_without_a_coin, 1, "without a coin"),
    Exhibit(duplicates_skipped, 1, "skipped without updating", paths=2),
    Exhibit(residual_not_updated, 1, "instead of what is left", paths=2),
    Exhibit(drafts_sorted, 1, "in the order of their tokens", paths=2),
    Exhibit(longest_of_independent_runs, 1, "longest result", paths=2),
    Exhibit(ratio_inverted, 1, "q/p instead of p/q"),
    Exhibit(draft_probabilities_at_another_temperature, 1, "not drawn from the draft row"),
    Exhibit(epsilon_in_the_denominator, 1, "perhaps a number format"),
    Exhibit(correction_from_the_next_row, 1, "rows of the next position"),
    Exhibit(block_that_stops_at_the_first_tail, 1, "first coin that fails"),
    Exhibit(block_with_unclamped_ratio, 2, "c is not clamped at 1"),
    Exhibit(rejected_token_only_removed, 1, "without the rejected token"),
    Exhibit(probabilities_in_half_precision, 1, "perhaps a number format"),
    Exhibit(acceptance_against_the_row_before, 2, None),
)
CORRECT = (
    correct_tensors,
    correct_python,
    correct_paths,
    correct_numpy,
    correct_block,
    correct_torch,
    correct_gumbel,
)
