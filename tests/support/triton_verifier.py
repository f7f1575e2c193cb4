"""Tiny Triton kernels for the audit; as a program it prints the laws of some, found under Triton's interpreter."""

from __future__ import annotations

import json

import torch
import triton
import triton.language as tl


@triton.jit
def _verify(out, x, draft, target, coins, vocab, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    p = tl.load(target + lanes, mask=lanes < vocab, other=0.0)
    q = tl.load(draft + lanes, mask=lanes < vocab, other=0.0)
    kept = tl.load(coins) * tl.load(draft + x) <= tl.load(target + x)
    last = tl.load(target + vocab + lanes, mask=lanes < vocab, other=0.0)
    weights = tl.where(kept, last, p if WRONG else tl.maximum(p - q, 0.0))
    sums = tl.cumsum(weights, 0)
    token = tl.sum(tl.where((lanes < vocab) & (sums < tl.load(coins + 1) * tl.sum(weights, 0)), 1, 0), 0)
    tl.store(out, kept.to(tl.int64))
    tl.store(out + 1, token.to(tl.int64))


def verify(draft_token_ids: torch.Tensor, q: torch.Tensor, p: torch.Tensor, wrong: bool = False):
    """Token verification of one drafted token; wrong if the correction comes from the target's row."""
    out = torch.zeros(2, dtype=torch.int64)
    block = triton.next_power_of_2(p.shape[-1])
    _verify[(1,)](out, int(draft_token_ids[0]), q, p, torch.rand(2), p.shape[-1], wrong, BLOCK=block)
    kept, token = out.tolist()
    return [*draft_token_ids[:kept].tolist(), token]


@triton.jit
def _coins(out, seed, first_at, second_at, DERIVED: tl.constexpr, CAST: tl.constexpr):
    first, second = tl.load(first_at), tl.load(second_at)
    other = tl.randint(seed, first) if DERIVED else seed
    tl.store(out, tl.rand(seed, first) < 0.25)
    tl.store(out + 1, (other.to(tl.float32) < 0) if CAST else (tl.rand(other, second) < 0.5))


@triton.jit
def _race(out, seed, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    noise = -tl.log(-tl.log(tl.rand(seed, lanes)))
    tl.store(out, tl.argmax(tl.log(lanes + 1.0) + noise, 0))


def coins(first: int, second: int, derived: bool = False, cast: bool = False) -> tuple[bool, ...]:
    """Two coins of one seed, or of a seed made of it."""
    out = torch.zeros(2, dtype=torch.bool)
    _coins[(1,)](out, 7, torch.tensor(first), torch.tensor(second), derived, cast)
    return tuple(out.tolist())


def race() -> int:
    """An argmax with Gumbel noise, weights 1 and 2."""
    out = torch.zeros(1, dtype=torch.int64)
    _race[(1,)](out, 7, BLOCK=2)
    return int(out)


if __name__ == "__main__":
    from specbound.proofs_checks.audit.foreign.interception import Interception
    from specbound.proofs_checks.audit.foreign.lazy import NotExact
    from specbound.proofs_checks.audit.foreign.triton_coins import repair_interpreter

    repair_interpreter()

    def law(call, rows=0):
        with Interception(call) as interception:
            try:
                return {str(result): chance for result, chance in interception.law(call, rows).items()}
            except NotExact as error:
                return str(error)

    laws = {
        "one stream": law(lambda: coins(3, 3)),
        "two places": law(lambda: coins(3, 4)),
        "a derived seed": law(lambda: coins(3, 3, derived=True)),
        "an integer": law(lambda: coins(3, 3, derived=True, cast=True)),
        "a race": law(race, rows=2),
    }
    print(json.dumps(laws))
