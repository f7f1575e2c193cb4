"""Every check of the judge is needed: without it, a reproduction that it decides comes out otherwise.

Each entry switches one check off and names a case that it decides. With the check the verdict is the right one, without
it the case comes out differently: a check that no case needs would fail here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit import audit, counterexample, run, subject
from specbound.proofs_checks.laws import judge as judging
from specbound.proofs_checks.laws import replay as replaying
from specbound.proofs_checks.laws import stream as streaming
from specbound.proofs_checks.laws.judge import Evidence, judge, verdict
from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime.verdict import Verdict
from specbound.runtime.verifiers import get
from specbound.theory.prefix_tree import PrefixTree
from tests.support import zoo
from tests.support.strategies import PUBLISHED

ONE = [(PUBLISHED, 1)]
SMALL = {"vocab": range(2, 3), "length": range(1, 2), "paths": range(1, 2), "cases": 2}


def negative_token(batch, draws):
    """One token of -1 counts from the end of an array that nobody checks."""
    verdict = zoo.correct_tensors(batch, draws)
    last = batch.shape[3] - 1
    return replace(verdict, token=torch.where(verdict.token == last, -1, verdict.token))


def asks_something_else_the_second_time():
    """Token verification that asks one more question in its first pass only; its weights do not sum to 1."""
    calls = []

    def verify(batch, draws):
        calls.append(1)
        rare = 0.1 if len(calls) == 1 else 0.0
        draws.choose(torch.tensor([1 - rare, rare], dtype=torch.float64).expand(len(batch.tokens), -1))
        token = draws.choose(batch.target_probs[:, 0, 0])
        return Verdict(torch.zeros_like(token), torch.zeros_like(token), token)

    return verify


def forged(*_, **__):
    """The target's law, and more tokens than any lossless verifier can keep."""
    wanted = {block: float(mass) for block, mass in PUBLISHED.target_law().items()}
    return Evidence(wanted, wanted, 1.9, 4, False)


def own_generator(batch, draws):
    token = torch.multinomial(batch.target_probs[:, 0, 0], 1)[:, 0]
    return Verdict(token * 0, token * 0, token)


def judged_forged() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "evidence", forged)
        return judge("block", ONE).verdict


def audited_pretence() -> str:
    """The exact law pretends to be the target's; real calls emit token 0 only."""

    def always_zero(batch, draws):
        verdict = zoo.correct_tensors(batch, draws)
        return replace(verdict, accepted=verdict.accepted * 0, token=verdict.token * 0)

    def pretended(self, tree, paths, stateful=False, thorough=True):
        wanted = {block: float(mass) for block, mass in tree.target_law().items()}
        return Evidence(wanted, wanted, 0.0, 1, stateful)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject.TensorSubject, "evidence", pretended)
        return audit(always_zero, **SMALL).verdict


def contexts_differ() -> str:
    """Lossless where contexts agree; a stream that stays in one context does not see what happens in the other."""
    tree = PrefixTree.markov([[0.5, 0.5], [0.1, 0.9]], [[0.5, 0.5], [0.6, 0.4]], 2)
    return judge(zoo.greedy_block_that_ignores_the_carry_it_is_given, [(tree, 1)]).verdict


@dataclass(frozen=True)
class Check:
    """A check, how to switch it off, the case that needs it, and the right answer."""

    name: str
    off: Callable[[pytest.MonkeyPatch], None]
    case: Callable[[], object]
    right: object


def without(module, name, value):
    return lambda patch: patch.setattr(module, name, value)


def stateless(patch):
    patch.setattr(judging, "exact_law", lambda *arguments: replace(exact_law(*arguments), stateful=False))


CHECKS = [
    Check(
        "nothing looked at is no pass",
        without(judging, "verdict", lambda distances, troubles, tolerance: "lossless"),
        lambda: judge("block", []).verdict,
        "undecided",
    ),
    Check(
        "a carry is followed over several calls",
        stateless,
        lambda: judge(get("greedy-block").verify, ONE).verdict,
        "lossless",
    ),
    Check(
        "the carry reaches the next call",
        without(streaming._Merged, "streams", lambda self, streams=streaming._Merged.streams: forgotten(streams(self))),
        lambda: judge("greedy-block", ONE).verdict,
        "lossless",
    ),
    Check(
        "the contexts of the stream are those of the tree",
        without(
            judging, "looped_pair", lambda tree, looped=judging.looped_pair: looped(PrefixTree.iid([1, 0], [1, 0], 2))
        ),
        contexts_differ,
        "not lossless",
    ),
    Check(
        "no lossless verifier keeps more than the optimum",
        without(judging, "contradiction", lambda *_: None),
        judged_forged,
        "undecided",
    ),
    Check(
        "tokens are in range",
        without(replaying, "_read", lambda verdict, name, limit, rows: getattr(verdict, name).numpy()),
        lambda: judge(negative_token, ONE).verdict,
        "broken",
    ),
    Check(
        "the weights of a request sum to one",
        without(replaying, "LOST", np.inf),
        lambda: judge(asks_something_else_the_second_time(), ONE).verdict,
        "broken",
    ),
    Check(
        "a carry has the methods of one",
        without(replaying, "_read_carry", lambda verdict, rows: None),
        lambda: judge(zoo.carries_nothing_of_use, ONE).verdict,
        "broken",
    ),
    Check(
        "what is too large is not skipped in silence",
        without(judging, "UNDECIDED", ()),
        lambda: verdict([0.0], ["too large"], 1e-9),
        "undecided",
    ),
    Check(
        "laws that real calls contradict decide nothing",
        without(judging, "VOID", "nothing"),
        lambda: verdict([0.5], ["disagrees"], 1e-9),
        "undecided",
    ),
    Check(
        "exact laws are held against real calls",
        without(run, "disagreement", lambda *_: None),
        audited_pretence,
        "undecided",
    ),
    Check(
        "randomness comes from the draws",
        without(subject, "only_its_draws", lambda call: call()),
        lambda: audit(own_generator, **SMALL).breakdowns[0].kind,
        "not exact",
    ),
    Check(
        "requests do not depend on each other",
        without(subject, "_look_for_state", lambda *_: None),
        lambda: audit(zoo.token_cut_to_the_shortest_of_the_batch, **SMALL | {"cases": 8}).exit_code,
        1,
    ),
    Check(
        "what breaks while shrinking is told",
        without(counterexample, "UNDECIDED", ("exception", "invalid result")),
        lambda: len(audit(zoo.breaks_on_smaller_instances, range(3, 4), range(1, 2), range(1, 2), 1).breakdowns),
        1,
    ),
]


def forgotten(groups):
    """Streams as if nothing had been carried."""
    return [replace(streams, carry=None) for streams in groups]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_check_decides_its_case_and_without_it_the_case_comes_out_otherwise(check, monkeypatch):
    assert check.case() == check.right
    check.off(monkeypatch)
    assert check.case() != check.right
