"""Joint decoding, exactly: what multi-token joint greedy decoding and MJSD output, and how many target calls they cost.

Letters: P target joint, Q draft joint, N output length, gamma tokens drafted per call, B beam width, tau threshold.
  greedy      token argmax.
  MJGD(k)     repeat: append argmax over w in V^m of P(w | text), m = min(k, remaining).
  MJSD        repeat: draft x_1..x_gamma by beam search under Q; accept i = max { i : P(x_1..i) >= tau Q(x_1..i) },
              intermediate i may fail; tau >= 1 accepts nothing, tau <= 0 everything; then one target token t:
              argmax p (greedy mode) or t ~ p (sample mode), never a residual. The output is cut to N tokens and
              calls are counted until N is reached.
  speculative sampling with a temperature: token-level verification, output law = tempered target.
All ties go to the lexicographically smallest block. Perplexity of x is P(x)^(-1/N), always under the target itself.
MJSD is lossy by design: none of its modes has the target's law unless nothing is ever accepted.

`guarantees` states what one round guarantees.

How public implementations differ from the definition above (facts about their code, as read):
  The MJSD repository verifies all B beams and keeps the longest accepted prefix (first among equals); the number it
  uses as Q is the beam sampler's probability, normalised over beams times vocabulary and not gathered again after
  beams are reordered, so it is no joint and its ratios are inflated. It treats tau >= 1 as "reject all".
  MTAD, the later version, tests strictly, P > tau Q, allows tau > 1, and uses the true joint of one final beam
  under the tempered, top-k or top-p draft; its batched version weighs beams by a softmax of probabilities.
  Target temperature 0 makes p one-hot there: acceptance is then exact argmax matching (lossless greedy decoding),
  not the greedy mode of this module. Tree versions accept at depth d any beam node with P > tau Qref(d), Qref the
  largest Q among the beam's nodes or the final winner's own entry. With gamma = 1 MTAD selects no beam.

[MJSD] arXiv:2407.09722 (MTAD is the name of its later versions), sections 3 and 4.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..chains import closed_classes, stationary_law
from ..contexts import ContextModel, Prefix
from ..numbers import Number, read_count, read_number

Mode = Literal["sample", "greedy"]


def greedy(model: ContextModel, length: int) -> Prefix:
    """`length` tokens, each the most probable given the text."""
    return joint_greedy(model, length, 1)


def joint_greedy(model: ContextModel, length: int, window: int) -> Prefix:
    """MJGD(window): repeat the most probable block of min(window, remaining) tokens. [MJSD] section 3.

    Raises:
        ValueError: window below 1 or a negative length.
    """
    length, window = read_count(length, "length"), _positive(window, "window")
    tokens: Prefix = ()
    while len(tokens) < length:
        context = model.context_after(tokens)
        tokens += most_probable_block(model, min(window, length - len(tokens)), context)
    return tokens


def most_probable_block(model: ContextModel, size: int, context: int | None = None) -> Prefix:
    """argmax over V^size of P(block | context), by Viterbi recursion; the lexicographically smallest argmax.

    Raises:
        ValueError: its probability is below the range of floats.
    """
    values: list[list[Number]] = [[model.one] * model.contexts]
    for left in range(1, size + 1):
        values.append([max(_continued(model, c, values[left - 1])) for c in range(model.contexts)])
    context = model.start if context is None else context
    _check_in_range(values[size][context], size)
    block: Prefix = ()
    for left in range(size, 0, -1):
        token = _continued(model, context, values[left - 1]).index(values[left][context])
        block += (token,)
        context = model.following[context][token]
    return block


def _continued(model: ContextModel, context: int, values: list[Number]) -> list[Number]:
    """Per next token: its probability times the value of the context it leads to."""
    return [p * values[model.following[context][z]] for z, p in enumerate(model.table[context])]


def beam_block(model: ContextModel, size: int, width: int, context: int | None = None) -> Prefix:
    """The best block of beam search: keep the `width` blocks of largest joint at each step, return the first.

    width >= V^size gives `most_probable_block`.

    Raises:
        ValueError: width below 1, or a probability below the range of floats.
    """
    width = _positive(width, "width")
    context = model.start if context is None else context
    beams: list[tuple[Number, Prefix, int]] = [(model.one, (), context)]
    for _ in range(size):
        grown = [
            (joint * p, (*tokens, z), model.following[c][z])
            for joint, tokens, c in beams
            for z, p in enumerate(model.table[c])
        ]
        beams = sorted(grown, key=lambda beam: (-beam[0], beam[1]))[:width]
    _check_in_range(beams[0][0], size)
    return beams[0][1]


def _check_in_range(joint: Number, size: int) -> None:
    """Raise ValueError where blocks can no longer be told apart because their probabilities vanish in float64."""
    if isinstance(joint, float) and joint < sys.float_info.min:
        raise ValueError(
            f"blocks of {size} tokens have probabilities below {sys.float_info.min:.0e}; give exact fractions, or "
            "shorter blocks"
        )


def beam_sampling_law(model: ContextModel, size: int, width: int, context: int | None = None) -> dict[Prefix, Number]:
    """The exact law of the block that beam sampling returns.

    Each step draws min(width, number of continuations of positive joint) continuations one after the other without
    replacement, with weights proportional to their joint; the surviving block of largest joint is returned.
    width = 1 is plain sampling. The number of surviving sets grows quickly: for small widths.
    """
    width = _positive(width, "width")
    context = model.start if context is None else context
    law: dict[tuple[Prefix, ...], Number] = {((),): model.one}
    for _ in range(size):
        grown: dict[tuple[Prefix, ...], Number] = {}
        for beams, mass in law.items():
            weights = {
                (*tokens, z): joint
                for tokens in beams
                for z in range(model.vocab)
                if (joint := model.joint((*tokens, z), context)) > 0
            }
            for survivors, probability in _drawn_without_replacement(weights, width).items():
                grown[survivors] = grown.get(survivors, 0) + mass * probability
        law = grown
    winners: dict[Prefix, Number] = {}
    for beams, mass in law.items():
        best = min(beams, key=lambda tokens: (-model.joint(tokens, context), tokens))
        winners[best] = winners.get(best, 0) + mass
    return winners


def _drawn_without_replacement(weights: Mapping[Prefix, Number], count: int) -> dict[tuple[Prefix, ...], Number]:
    """The law of the set (sorted) of min(count, #) blocks drawn one by one in proportion to `weights`."""
    total = sum(weights.values())
    law: dict[tuple[Prefix, ...], Number] = {(): total / total}
    for _ in range(min(count, len(weights))):
        grown: dict[tuple[Prefix, ...], Number] = {}
        for drawn, mass in law.items():
            left = sum(weight for block, weight in weights.items() if block not in drawn)
            for block, weight in weights.items():
                if block not in drawn:
                    survivors = tuple(sorted((*drawn, block)))
                    grown[survivors] = grown.get(survivors, 0) + mass * weight / left
        law = grown
    return law


@dataclass(frozen=True)
class DecodingLaw:
    """The law of an N-token output, and the expected number of target calls.

    Attributes:
        law: probability of every possible output.
        calls: E[target calls] to reach N tokens.
        target: the model perplexities are measured under.
    """

    law: Mapping[Prefix, Number]
    calls: Number
    target: ContextModel

    @property
    def tokens(self) -> Prefix:
        """The output of a deterministic decoder. Raises ValueError if there are several."""
        if len(self.law) != 1:
            raise ValueError(f"the law has {len(self.law)} outputs; want a deterministic decoder")
        return next(iter(self.law))

    @cached_property
    def perplexity_of_mean(self) -> float:
        """exp(E[NLL per token]); infinite if an output has target probability 0."""
        return math.exp(sum(float(mass) * self._log_perplexity(tokens) for tokens, mass in self.law.items()))

    @cached_property
    def mean_perplexity(self) -> float:
        """E[perplexity]."""
        return sum(float(mass) * math.exp(self._log_perplexity(tokens)) for tokens, mass in self.law.items())

    def _log_perplexity(self, tokens: Prefix) -> float:
        surprise, context = 0.0, self.target.start
        for token in tokens:
            surprise -= _log(self.target.table[context][token])
            context = self.target.following[context][token]
        return surprise / max(len(tokens), 1)


def _log(probability: Number) -> float:
    """Natural logarithm, -inf of 0; of fractions beyond the range of floats too."""
    if probability == 0:
        return -math.inf
    if isinstance(probability, float):
        return math.log(probability)
    return math.log(probability.numerator) - math.log(probability.denominator)


@dataclass(frozen=True)
class JointSpeculation:
    """MJSD's settings: models, gamma = draft_length, B = width, tau, and how the beam is built.

    beam "best" drafts the winner of beam search; "sampled" the winner of beam sampling (a random block).
    Raises ValueError for different vocabularies, draft_length or width below 1, tau not finite, or another beam.
    """

    target: ContextModel
    draft: ContextModel
    draft_length: int
    width: int
    tau: Number
    beam: Literal["best", "sampled"] = "best"

    def __post_init__(self) -> None:
        if self.draft.vocab != self.target.vocab:
            raise ValueError(f"draft has {self.draft.vocab} tokens and target {self.target.vocab}; want the same")
        if self.beam not in ("best", "sampled"):
            raise ValueError(f'beam is {self.beam!r}; want "best" or "sampled"')
        object.__setattr__(self, "draft_length", _positive(self.draft_length, "draft_length"))
        object.__setattr__(self, "width", _positive(self.width, "width"))
        object.__setattr__(self, "tau", read_number(self.tau, "tau"))

    @cached_property
    def _rounds(self) -> dict[tuple[int, int], dict[Prefix, Number]]:
        return {}

    def accepted_prefixes(self, target_context: int, draft_context: int) -> dict[Prefix, Number]:
        """The law of the accepted prefix of one round, from these contexts of the two models."""
        key = (target_context, draft_context)
        if key not in self._rounds:
            law: dict[Prefix, Number] = {}
            for block, mass in self._blocks(draft_context).items():
                targets = self.target.prefix_joints(block, target_context)
                drafts = self.draft.prefix_joints(block, draft_context)
                prefix = block[: accepted_length(targets, drafts, self.tau)]
                law[prefix] = law.get(prefix, 0) + mass
            self._rounds[key] = law
        return self._rounds[key]

    def _blocks(self, context: int) -> dict[Prefix, Number]:
        if self.beam == "sampled":
            return beam_sampling_law(self.draft, self.draft_length, self.width, context)
        return {beam_block(self.draft, self.draft_length, self.width, context): self.draft.one}


def accepted_length(target_joints: list[Number], draft_joints: list[Number], tau: Number) -> int:
    """max { i : P(x_1..i) >= tau Q(x_1..i) }, 0 if none; tau >= 1 gives 0 and tau <= 0 the whole block.

    Args: joints of the prefixes of lengths 0..gamma.
    """
    if tau >= 1:
        return 0
    return max((i for i in range(1, len(draft_joints)) if target_joints[i] >= tau * draft_joints[i]), default=0)


def mjsd(settings: JointSpeculation, length: int, mode: Mode) -> DecodingLaw:
    """The exact output law and expected calls of MJSD for `length` tokens. [MJSD] section 4.

    mass(text) flows to mass(text + accepted prefix + t), t ~ p (mode "sample") or t = argmax p (mode "greedy").
    """
    length = read_count(length, "length")
    target = settings.target
    calls = 0 * target.one
    unfinished: list[dict[Prefix, Number]] = [{} for _ in range(length)]
    law: dict[Prefix, Number] = {}

    def receive(text: Prefix, mass: Number) -> None:
        texts = unfinished[len(text)] if len(text) < length else law
        kept = text[:length]
        texts[kept] = texts.get(kept, 0) + mass

    receive((), target.one)
    for texts in unfinished:
        for text, mass in texts.items():
            calls += mass
            for committed, probability in _committed(settings, text, mode).items():
                receive(text + committed, mass * probability)
    return DecodingLaw(law, calls, target)


def _committed(settings: JointSpeculation, text: Prefix, mode: Mode) -> dict[Prefix, Number]:
    """The law of the tokens one round adds after `text`."""
    start = settings.target.context_after(text)
    committed: dict[Prefix, Number] = {}
    for prefix, mass in settings.accepted_prefixes(start, settings.draft.context_after(text)).items():
        context = settings.target.context_after(prefix, start)
        for token, probability in _extra_token(settings.target, context, mode):
            block = (*prefix, token)
            committed[block] = committed.get(block, 0) + mass * probability
    return committed


def _extra_token(target: ContextModel, context: int, mode: Mode) -> Iterable[tuple[int, Number]]:
    if mode == "greedy":
        return [(target.argmax(context), target.one)]
    if mode == "sample":
        return [(z, p) for z, p in enumerate(target.table[context]) if p > 0]
    raise ValueError(f'mode is {mode!r}; want "sample" or "greedy"')


def committed_per_call(settings: JointSpeculation, mode: Mode) -> Number:
    """Long-run tokens committed per target call, from the stationary law of the contexts rounds start in.

    Raises:
        ValueError: rounds started in the models' start contexts can end up in several closed classes.
    """
    starts = [(settings.target.start, settings.draft.start)]
    flows: list[dict[tuple[int, int], Number]] = []
    tokens: list[Number] = []
    while len(flows) < len(starts):
        flow, committed = _round_flow(settings, *starts[len(flows)], mode)
        flows.append(flow)
        tokens.append(committed)
        starts += [pair for pair in flow if pair not in starts]
    transition = [[flow.get(pair, 0 * settings.target.one) for pair in starts] for flow in flows]
    if len(closed_classes(transition)) > 1:
        raise ValueError("rounds from the start contexts end in several closed classes; want one (other start)")
    law = stationary_law(transition)
    return sum((mass * count for mass, count in zip(law, tokens, strict=True)), start=0 * settings.target.one)


def _round_flow(
    settings: JointSpeculation, target_context: int, draft_context: int, mode: Mode
) -> tuple[dict[tuple[int, int], Number], Number]:
    """Where one round leads (contexts of both models) and how many tokens it commits on average."""
    flow: dict[tuple[int, int], Number] = {}
    committed = 0 * settings.target.one
    for prefix, mass in settings.accepted_prefixes(target_context, draft_context).items():
        committed += mass * (len(prefix) + 1)
        after_target = settings.target.context_after(prefix, target_context)
        after_draft = settings.draft.context_after(prefix, draft_context)
        for token, p in _extra_token(settings.target, after_target, mode):
            pair = (settings.target.following[after_target][token], settings.draft.following[after_draft][token])
            flow[pair] = flow.get(pair, 0) + mass * p
    return flow, committed


def speculative_sampling(
    target: ContextModel, draft: ContextModel, draft_length: int, length: int, temperature: Number = 1
) -> DecodingLaw:
    """Vanilla speculative decoding, both models tempered: output law = tempered target, expected calls by recursion.

        calls(n) = 1 + E[calls(n - tau - 1, next context)],   Pr(accepted = w, next = z) = phi(w) p(z|w) - phi(wz),
    phi(w) = product of min(p, q) along w. Perplexities stay those of the untempered target.
    """
    draft_length, length = _positive(draft_length, "draft_length"), read_count(length, "length")
    tempered, drafting = target.tempered(temperature), draft.tempered(temperature)
    if drafting.vocab != tempered.vocab:
        raise ValueError(f"draft has {draft.vocab} tokens and target {target.vocab}; want the same")
    calls = _Calls(tempered, drafting, draft_length).expected(length, tempered.start, drafting.start)
    return DecodingLaw(tempered.block_law(length), calls, target)


class _Calls:
    """Expected target calls of token-level speculative sampling, remembered per (tokens left, contexts)."""

    def __init__(self, target: ContextModel, draft: ContextModel, draft_length: int) -> None:
        self.target, self.draft, self.draft_length = target, draft, draft_length
        self.known: dict[tuple[int, int, int], Number] = {}

    def expected(self, left: int, target_context: int, draft_context: int) -> Number:
        if left <= 0:
            return 0 * self.target.one
        key = (left, target_context, draft_context)
        if key not in self.known:
            later = self._later(left, target_context, draft_context, self.target.one, self.draft_length)
            self.known[key] = 1 + later
        return self.known[key]

    def _later(self, left: int, target_context: int, draft_context: int, phi: Number, depth: int) -> Number:
        """sum over z of phi(w) p(z|w) calls(after wz), less what wz carries on if it is drafted and accepted."""
        total = 0 * self.target.one
        if left <= 1 or phi <= 0:
            return total
        rows = zip(self.target.table[target_context], self.draft.table[draft_context], strict=True)
        for z, (p, q) in enumerate(rows):
            after = (self.target.following[target_context][z], self.draft.following[draft_context][z])
            accepted = phi * min(p, q) if depth > 0 else 0 * phi
            total += (phi * p - accepted) * self.expected(left - 1, *after)
            total += self._later(left - 1, *after, accepted, depth - 1)
        return total


def _positive(value: int, field: str) -> int:
    if read_count(value, field) < 1:
        raise ValueError(f"{field} is {value}; want at least 1")
    return int(value)
