"""Lossy acceptance rules as engines and papers offer them, one path, token by token. None has the target's law.

With rows p, q of target and draft at a token x, "residual" meaning max(0, p - q):

    ensemble      coin w p/q + 1 - w, residual: the law w p + (1 - w) q                     DIVERSE, arXiv:2604.07622
    lenient       coin p / ((1 - a) q), residual
    cactus        coin and residual of min(1, p + sqrt(2 d p (1 - p))) in the place of p    Cactus
    fuzzy         all is kept where the divergence of p and q (Jensen-Shannon) is at most T   FSD
    cascade       law q unless max q < max p - a TV(p, q), then p                           speculative cascade, OPT
    top-cascade   law q 1[top] + (q off top) p,  top = {y : p(y) >= (1 - a) max p}          speculative cascade, Tok3
    entropy       coin p / (s q) with s = min(.95, exp(-a H(p))), residual                  entropy verify
    relaxed       kept if p(x) >= max p - d or x is among the k most likely; correction p   relaxed acceptance
    typical       kept if p(x) > min(e, d exp(-H(p))); correction p                         typical acceptance, Medusa
    forgiving     a failed coin is forgiven if p's three most likely tokens are in doubt (entropy at least h) and the
                  next w coins come up by themselves; residual                              FLy, arXiv:2511.22972

They are read from public code, and the readings left something to decide: the entropy rule scales the uniform, not the
probability; the divergence of FSD is its default; FLy's native acceptance is token verification's coin and its window
must lie inside the draft. How far each is from the target's law, and what it wastes, is measured, not promised: see
`specbound.theory.frontier` for the best that its deviation allows.

B requests, L drafted tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.by_token import by_token, coin, entropy
from ..parts.single_path import at, emitted_row, only_path
from ..registry import Verify, register
from ..verdict import Batch, Verdict


def toward(law: Tensor, tokens: Tensor, draft: Tensor) -> tuple[Tensor, Tensor]:
    """Coins and corrections of token verification with another law in the place of the target's; all rows [B, L, V]."""
    return coin(at(law, tokens), at(draft, tokens)), (law - draft).clamp_min(0)


def residual(draft: Tensor, target: Tensor) -> Tensor:
    """max(0, target - draft)."""
    return (target - draft).clamp_min(0)


def ensemble(weight: float = 0.9) -> Verify:
    """The law weight p + (1 - weight) q; weight in [0, 1]."""
    _check("weight", weight, 0, 1)

    def rule(tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return weight * coin(at(target, tokens), at(draft, tokens)) + 1 - weight, residual(draft, target)

    return by_token(rule)


def lenient(leniency: float = 0.2) -> Verify:
    """Coins p / ((1 - leniency) q); leniency in [0, 1)."""
    _check("leniency", leniency, 0, 1)

    def rule(tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return coin(at(target, tokens), (1 - leniency) * at(draft, tokens)), residual(draft, target)

    return by_token(rule)


def cactus(divergence: float = 0.02) -> Verify:
    """The target raised to min(1, p + sqrt(2 divergence p (1 - p))); divergence at least 0."""
    _check("divergence", divergence, 0)

    def rule(tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        raised = (target + (2 * divergence * target * (1 - target).clamp_min(0)).sqrt()).clamp_max(1)
        return toward(raised, tokens, draft)

    return by_token(rule)


def fuzzy(divergence: float = 0.1) -> Verify:
    """Everything is kept where the Jensen-Shannon divergence (nats) of p and q is at most that."""
    _check("divergence", divergence, 0)

    def rule(tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        distance = entropy((target + draft) / 2) - (entropy(target) + entropy(draft)) / 2
        return toward(torch.where((distance <= divergence).unsqueeze(-1), draft, target), tokens, draft)

    return by_token(rule)


def cascade(trust: float = 0.5) -> Verify:
    """The draft's law unless max q < max p - trust TV(p, q); trust at least 0."""
    _check("trust", trust, 0)

    def rule(tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        distance = residual(draft, target).sum(dim=-1)
        defer = draft.amax(dim=-1) < target.amax(dim=-1) - trust * distance
        return toward(torch.where(defer.unsqueeze(-1), target, draft), tokens, draft)

    return by_token(rule)


def top_cascade(slack: float = 0.5) -> Verify:
    """The draft's law on the target's top tokens, p >= (1 - slack) max p, and its mass elsewhere given to p."""
    _check("slack", slack, 0, 1)

    def rule(tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        top = target >= (1 - slack) * target.amax(dim=-1, keepdim=True)
        outside = torch.where(top, 0, draft)
        return toward(draft - outside + outside.sum(dim=-1, keepdim=True) * target, tokens, draft)

    return by_token(rule)


def entropic(scale: float = 0.2) -> Verify:
    """Coins p / (s q), s = min(.95, exp(-scale H(p))); scale at least 0."""
    _check("scale", scale, 0)

    def rule(tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        easier = torch.exp(-scale * entropy(target)).clamp_max(0.95)
        return coin(at(target, tokens), easier * at(draft, tokens)), residual(draft, target)

    return by_token(rule)


def relaxed(margin: float = 0.2, top: int = 1) -> Verify:
    """Kept if p(x) >= max p - margin or fewer than `top` are more likely; margin in [0, 1], top at least 0."""
    _check("margin", margin, 0, 1)
    _check("top", top, 0)

    def rule(tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        own = at(target, tokens)
        better = (target > own.unsqueeze(-1)).sum(dim=-1)
        kept = (own >= target.amax(dim=-1) - margin) | (better < top)
        return kept.to(target.dtype), target

    return by_token(rule)


def typical(floor: float = 0.09, scale: float = 0.3) -> Verify:
    """Kept if p(x) > min(floor, scale exp(-H(p))); both at least 0."""
    _check("floor", floor, 0)
    _check("scale", scale, 0)

    def rule(tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        wanted = (scale * torch.exp(-entropy(target))).clamp_max(floor)
        return (at(target, tokens) > wanted).to(target.dtype), target

    return by_token(rule)


def forgiving(doubt: float = 0.5, window: int = 1) -> Verify:
    """Failed coins are forgiven in doubt if the next `window` come up; doubt in nats at least 0, window at least 1."""
    _check("doubt", doubt, 0)
    _check("window", window, 1)

    def verify(batch: Batch, draws: Draws) -> Verdict:
        tokens, draft_probs, target_probs = only_path(batch)
        length = tokens.shape[1]
        native = draws.accept(coin(at(target_probs[:, :-1], tokens), at(draft_probs, tokens)).double())
        top = target_probs[:, :-1].topk(min(3, target_probs.shape[-1]), dim=-1).values
        unsure = entropy(top / top.sum(dim=-1, keepdim=True)) >= doubt
        later = torch.nn.functional.pad(native.long(), (0, window)).unfold(1, window, 1)[:, 1 : length + 1]
        kept = (native | (unsure & (later.sum(dim=-1) == window))).long().cumprod(dim=1).sum(dim=1)
        one = torch.ones_like(kept, dtype=target_probs.dtype)
        token = draws.choose(emitted_row(one, kept, draft_probs, target_probs))
        return Verdict(torch.zeros_like(kept), kept, token)

    return verify


def _check(name: str, value: float, least: float, most: float = float("inf")) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}; want a number of at least {least}" + f", at most {most}" * (most < 2))


_ENTRIES = (
    ("ensemble", ensemble, ("weight",), "the law 0.9 target + 0.1 draft", "DIVERSE, arXiv:2604.07622"),
    ("lenient", lenient, ("leniency",), "coins of token verification over 0.8", "public code (relaxed ratio)"),
    ("cactus", cactus, ("divergence",), "the target raised by sqrt(0.04 p (1 - p))", "Cactus, public code"),
    ("fuzzy", fuzzy, ("divergence",), "keeps all where target and draft are close", "FSD, public code"),
    ("cascade", cascade, ("trust",), "the draft's law unless the target is surer", "speculative cascade, OPT"),
    ("top-cascade", top_cascade, ("slack",), "the draft's law on the target's top tokens", "speculative cascade, Tok3"),
    ("entropy", entropic, ("scale",), "coins of token verification, easier in doubt", "entropy verify, public code"),
    ("relaxed", relaxed, ("margin", "top"), "keeps tokens near the target's best", "relaxed acceptance, public code"),
    ("typical", typical, ("floor", "scale"), "keeps tokens typical of the target", "typical acceptance, Medusa"),
    ("forgiving", forgiving, ("doubt", "window"), "forgives failed coins if the next come up", "FLy, arXiv:2511.22972"),
)  # fmt: skip

for _name, _make, _options, _summary, _source in _ENTRIES:
    register(
        _name,
        summary=f"{_summary}; lossy",
        source=_source,
        paths="single",
        lossless=False,
        make=_make,
        options=_options,
    )(_make())
