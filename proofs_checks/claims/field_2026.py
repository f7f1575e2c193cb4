"""Claims of 2026 and of the verifiers that came with them: HSD, UniVer, layer verification, couplings, sampler match.

What a paper states, what its public code does, and what users reported, each decided by exact laws of this project's
runtime or by closed forms in fractions. Where only notes or an abstract were at hand the claim is marked as a reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from specbound.runtime.draws import Draws
from specbound.runtime.parts.lift import Serve, Served
from specbound.runtime.registry import get
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers.global_resolution import resolve
from specbound.runtime.verifiers.gumbel_coupling import match, shared, winner
from specbound.runtime.verifiers.layer import layer, serve_in_turn, serve_optimally
from specbound.theory import block_transport, budgeted, frontier, level_by_level, single_path, single_step, token_level
from specbound.theory.multi_path import lossless_optimum
from specbound.theory.prefix_tree import PrefixTree

from ..laws.instances import random_tree
from ..laws.law import exact_law
from .evidence import Case, Subject, Value, lossless, many_path_cases, single_path_cases, size_of, wrong_at
from .experiments import DELAYED
from .instances import described, rational_rows, simple_instances, sizes_run
from .ledger import OWN, Outcome, Paper, claim
from .own import never_below

HSD = Paper("HSD", "Hierarchical speculative decoding", "2601.05724")
UNIVER = Paper("UniVer", "UniVer", "2605.04543")
LAYER = Paper("Layer", "Layer Verification", None)
RESOLUTION = Paper("Global Resolution", "Global Resolution", "2511.15898")
GUMBEL = Paper("Gumbel coupling", "Gumbel coupling", "2408.07978")
REPORTS = Paper("Reports", "Reports of users and of public pull requests", None)
EXACT, NEAR = 1e-12, 1e-9


def simple_cases(vocab: int, length: int, denominator: int, paths: int = 1) -> list[Case]:
    """iid instances in fractions from the simplest on."""
    return [(tree, paths) for tree in simple_instances(vocab, length, denominator)]


def kept_by(subject: Subject) -> Value:
    """Acceptance length of a verifier by its exact law."""
    return lambda tree, paths: exact_law(subject, tree, paths).acceptance_length


# ---------------------------------------------------------------------- HSD


@claim(
    "HSD-code-lossless",
    paper=HSD,
    kind="code",
    source="public implementation of arXiv:2601.05724, as read",
    statement="Hierarchical speculative decoding as its public code has it leaves the target's law unchanged.",
    tested="runtime verifier `hsd`: the whole block kept by the uncapped joint ratio, shorter ones as in block "
    "verification",
    subject="hsd",
    control="block",
)
def hsd_code_is_lossless(verifier: Subject, deep: bool) -> Outcome:
    return lossless(verifier, simple_cases(2, 2, 4 if deep else 3))


@claim(
    "HSD-ahead-of-block",
    paper=HSD,
    kind="stated",
    source="arXiv:2601.05724, main comparison",
    statement="A lossless verifier of one draft keeps more tokens than block verification.",
    tested="the certified optimum over all stateless lossless verifiers of one draft against block verification, in "
    "fractions; the paper's final algorithm, as read, is block verification formula for formula",
    subject=lambda tree: single_path.optimum(tree).exact,
    control=lambda tree: block_transport.optimum(tree).exact,
)
def something_lossless_is_ahead_of_block(best: Callable[[PrefixTree], Fraction], deep: bool) -> Outcome:
    count = 0
    for tree in simple_instances(2, 3, 4 if deep else 3):
        count += 1
        if best(tree) > single_path.acceptance(tree)[1:].sum():
            return Outcome("holds", f"ahead on instance {count}: {described(tree)}")
    example = PrefixTree.iid(*PUBLISHED_ROWS, 2)
    return Outcome("refuted", f"nowhere ahead on {count} rational instances, V <= 2, L <= 3", described(example))


PUBLISHED_ROWS = ([Fraction(1, 3), Fraction(2, 3)], [Fraction(2, 3), Fraction(1, 3)])

# ---------------------------------------------------------------------- reports


@claim(
    "REPORT-token-equals-block",
    paper=REPORTS,
    kind="stated",
    source="a public pull request",
    statement="For draft lengths up to 2, token and block verification keep equally many tokens.",
    tested="closed forms in fractions",
    subject=2,
    control=1,
)
def token_equals_block(length: int, deep: bool) -> Outcome:
    count = 0
    for tree in simple_instances(3 if deep else 2, length, 3):
        count += 1
        token, block = token_level.acceptance(tree)[1:].sum(), single_path.acceptance(tree)[1:].sum()
        if token != block:
            return Outcome("refuted", f"instance {count}: {token} against {block}", described(tree))
    return Outcome("holds", f"in fractions on {count} rational instances, L <= {length}")


@claim(
    "REPORT-sampler-match",
    paper=REPORTS,
    kind="reading",
    source="sampler match in public code, reported by users as biased",
    statement="Drawing from the target and keeping the drafted token if it is the one drawn leaves the law unchanged.",
    tested="runtime verifier `naive`, one path",
    subject="naive",
    control=wrong_at("naive", vocab=2, length=2, paths=1),
)
def sampler_match_is_lossless(verifier: Subject, deep: bool) -> Outcome:
    return lossless(verifier, single_path_cases(deep))


def with_softened_drafts(batch: Batch, draws: Draws) -> Verdict:
    """Token verification that is told the draft row was soft although its best token was drafted for certain."""
    even = torch.full_like(batch.draft_probs, 1 / batch.draft_probs.shape[-1])
    return get("token").verify(replace(batch, draft_probs=(batch.draft_probs + even) / 2), draws)


@claim(
    "REPORT-deterministic-children",
    paper=REPORTS,
    kind="reading",
    source="EAGLE's public code, reported for years as a bug",
    statement="A token that was drafted for certain may be verified with draft probability 1.",
    tested="token verification on trees whose draft rows are one-hot",
    subject="token",
    control=with_softened_drafts,
)
def deterministic_children_are_lossless(verifier: Subject, deep: bool) -> Outcome:
    sizes = [(vocab, length) for vocab in (2, 3) for length in (1, 2)]
    seeds = range(40 if deep else 10)
    return lossless(verifier, [(random_tree("one-hot draft", *size, seed), 1) for size in sizes for seed in seeds])


# ---------------------------------------------------------------------- UniVer and layer verification


@claim(
    "UNIVER-at-least-recursive-rejection",
    paper=UNIVER,
    kind="reading",
    source="arXiv:2605.04543, its advantage over recursive rejection, read for independent drafts",
    statement="UniVer keeps at least as many tokens as recursive rejection of the same independent drafts.",
    tested="runtime verifier `univer` (the first path of a node is its sampled child) against SpecInfer's closed form",
    subject="univer",
    control="single-step-optimal",
)
def univer_against_recursive_rejection(verifier: Subject, deep: bool) -> Outcome:
    cases = [(tree, 2) for tree in simple_instances(3, 1, 3)][:: 1 if deep else 3]
    return never_below(kept_by(verifier), lambda tree, k: float(level_by_level.specinfer(tree, k)[1:].sum()), cases)


@claim(
    "UNIVER-block-on-a-chain",
    paper=UNIVER,
    kind="stated",
    source="arXiv:2605.04543, as read",
    statement="On a chain UniVer keeps what block verification keeps.",
    tested="exact law of the runtime verifier `univer` with one path against the closed form",
    subject="univer",
    control="specinfer",
)
def univer_on_a_chain(verifier: Subject, deep: bool) -> Outcome:
    return equals(verifier, lambda tree, k: float(single_path.optimum(tree).value), single_path_cases(deep)[::2])


def equals(subject: Subject, value: Value, cases: Iterable[Case]) -> Outcome:
    """Does the subject keep exactly this value on every case?"""
    run, worst = [], 0.0
    for case in cases:
        run.append(size_of(case))
        worst = max(worst, abs(exact_law(subject, *case).acceptance_length - float(value(*case))))
        if worst > NEAR:
            return Outcome("refuted", f"case {len(run)}: off by {worst:.6f}", f"{described(case[0])}, K={case[1]}")
    return Outcome("holds", f"to {worst:.0e}, {sizes_run(run)}")


def forgetful(wanted: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor, alive: torch.Tensor) -> Served:
    """The optimal rule with a correction that does not know what was kept: not lossless."""
    return Served(serve_optimally(wanted, draft, tokens, alive).shares, wanted)


@claim(
    "LAYER-lift-lossless",
    paper=LAYER,
    kind="stated",
    source="openreview XrqcUo6B6L, abstract",
    statement="Layer verification is lossless when its single-step rule is.",
    tested="the lift of this project with two lossless rules, recursive rejection and the single-step optimum",
    subject=(serve_in_turn, serve_optimally),
    control=(forgetful,),
)
def lifted_rules_are_lossless(rules: tuple[Serve, ...], deep: bool) -> Outcome:
    cases = many_path_cases(deep)[:: 1 if deep else 2]
    found = [lossless(layer(rule), cases) for rule in rules]
    return next((outcome for outcome in found if outcome.verdict == "refuted"), found[0])


@claim(
    "LAYER-optimal-at-the-ends",
    paper=LAYER,
    kind="stated",
    source="openreview XrqcUo6B6L, abstract (near-optimal there, with Global Resolution)",
    statement="With the optimal single-step rule, layer verification is optimal for one step and for one path.",
    tested="exact law of the runtime verifier `layer` against certified optima, L = 1 or K = 1",
    subject="layer",
    control="traversal",
)
def layer_is_optimal_at_the_ends(verifier: Subject, deep: bool) -> Outcome:
    cases = [case for case in many_path_cases(deep) if case[0].length == 1 or case[1] == 1]
    return equals(verifier, _optimum_at_the_ends, cases)


def _optimum_at_the_ends(tree: PrefixTree, paths: int) -> float:
    if paths == 1:
        return single_path.optimum(tree).value
    return single_step.optimum(tree.target[1:], tree.draft[1:], paths).value


@claim(
    "LAYER-optimal",
    paper=LAYER,
    kind="reading",
    source="openreview XrqcUo6B6L, whose abstract claims the two ends only",
    statement="With the optimal single-step rule, layer verification is optimal for several paths of several tokens.",
    tested="exact law of the runtime verifier `layer` against the certified optimum of three paths",
    subject=3,
    control=2,
)
def layer_is_optimal(count: int, deep: bool) -> Outcome:
    cases = [(tree, count) for tree in simple_instances(2, 2, 4 if deep else 3)]
    for number, (tree, paths) in enumerate(cases, start=1):
        kept, best = exact_law("layer", tree, paths).acceptance_length, lossless_optimum(tree, paths).value
        if kept < best - 1e-5:
            return Outcome("refuted", f"case {number}: {kept:.6f} of {best:.6f}", f"{described(tree)}, K={paths}")
    return Outcome("holds", f"on {len(cases)} iid instances in fractions, V <= 2, L <= 2, K {count}")


# ---------------------------------------------------------------------- Global Resolution


@claim(
    "RESOLUTION-lossless",
    paper=RESOLUTION,
    kind="reading",
    source="arXiv:2511.15898, from notes, and this project's correction",
    statement="Global resolution, corrected against the law that its weights give, leaves the target's law unchanged.",
    tested="runtime verifier `global-resolution`",
    subject="global-resolution",
    control=wrong_at("global-resolution", vocab=2, length=2, paths=2),
)
def global_resolution_is_lossless(verifier: Subject, deep: bool) -> Outcome:
    cases = [case for case in many_path_cases(deep) if case[0].length < 3 and case[0].vocab ** case[0].length < 9]
    return lossless(verifier, cases[:: 1 if deep else 2])


@claim(
    "RESOLUTION-optimal",
    paper=RESOLUTION,
    kind="reading",
    source="arXiv:2511.15898, from notes",
    statement="Two convex problems for selection weights give the single-step optimum of independent drafts.",
    tested="acceptance after 400 steps of the runtime verifier's iteration against the closed form, to 1e-3",
    subject=400,
    control=0,
)
def convex_problems_give_the_single_step_optimum(steps: int, deep: bool) -> Outcome:
    worst, count = 0.0, 0
    for seed in range(60 if deep else 15):
        for paths in (2, 3):
            target, draft = np.random.default_rng(seed).dirichlet([0.5] * 4, size=2)
            p, q = torch.as_tensor(target)[None], torch.as_tensor(draft)[None]
            law = resolve(p, q, torch.full((1,), float(paths), dtype=torch.float64), steps)[2][0].numpy()
            best = single_step.optimum(target, draft, paths).value
            worst, count = max(worst, best - float(np.minimum(target, law).sum())), count + 1
            if worst > 1e-3:
                text = f"target {np.round(target, 4).tolist()}, draft {np.round(draft, 4).tolist()}, K={paths}"
                return Outcome("refuted", f"case {count}: short of the optimum by {worst:.4f}", text)
    return Outcome("holds", f"short of it by at most {worst:.0e} on {count} pairs of rows, V 4, K 2..3")


# ---------------------------------------------------------------------- couplings


def paper_bound(distance: Any) -> Any:
    """(1 - TV) / (1 + TV)."""
    return (1 - distance) / (1 + distance)


@claim(
    "GUMBEL-match",
    paper=GUMBEL,
    kind="stated",
    source="arXiv:2408.07978",
    statement="With shared coins draft and target draw the same token with probability at least (1 - TV) / (1 + TV).",
    tested="the match probability in closed form, on all pairs of rows of three tokens with one small denominator",
    subject=paper_bound,
    control=lambda distance: 1 - distance,
)
def matches_are_likely(bound: Callable[[Any], Any], deep: bool) -> Outcome:
    rows = rational_rows(3, 6 if deep else 4)
    count = 0
    for p in rows:
        for q in rows:
            count += 1
            target, draft = (torch.tensor([[float(y) for y in row]], dtype=torch.float64) for row in (p, q))
            tokens = torch.arange(3)
            same, _ = match(tokens, draft.expand(3, 3), target.expand(3, 3))
            found = float((draft[0] * same).sum())
            wanted = float(bound(sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2))
            if found < wanted - EXACT:
                shown = f"target ({','.join(map(str, p))}), draft ({','.join(map(str, q))})"
                return Outcome("refuted", f"pair {count}: {found:.6f} where {wanted:.6f} was claimed", shown)
    return Outcome("holds", f"on {count} pairs of rows of three tokens")


def text_with_shared_coins(coins: torch.Tensor, target: torch.Tensor, draft: torch.Tensor) -> list[int]:
    """One block: drafts raced with the coins, kept as far as the target's winners agree, and the next token."""
    length = len(coins) - 1
    tokens = winner(coins[:-1], draft.expand(length, -1))
    batch = Batch(
        tokens.view(1, 1, -1), draft.expand(1, 1, length, -1), target.expand(1, 1, length + 1, -1).contiguous()
    )
    verdict = shared(coins[None])(batch, Draws())
    return [*tokens[: int(verdict.accepted)].tolist(), int(verdict.token)]


def text_with_resampling(coins: torch.Tensor, target: torch.Tensor, draft: torch.Tensor) -> list[int]:
    """The same drafts, verified by token verification with one seed."""
    length = len(coins) - 1
    tokens = winner(coins[:-1], draft.expand(length, -1))
    batch = Batch(
        tokens.view(1, 1, -1), draft.expand(1, 1, length, -1), target.expand(1, 1, length + 1, -1).contiguous()
    )
    verdict = get("token").verify(batch, Draws(torch.Generator().manual_seed(0)))
    return [*tokens[: int(verdict.accepted)].tolist(), int(verdict.token)]


@claim(
    "GUMBEL-invariant",
    paper=GUMBEL,
    kind="stated",
    source="arXiv:2408.07978",
    statement="With shared coins the text does not depend on the draft model.",
    tested="blocks of two drafters with the same coins: one is the beginning of the other",
    subject=text_with_shared_coins,
    control=text_with_resampling,
)
def text_is_invariant(text: Callable[..., list[int]], deep: bool) -> Outcome:
    count = 400 if deep else 100
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        coins = torch.empty(4, 4, dtype=torch.float64).exponential_(generator=generator)
        target, one, other = torch.softmax(torch.randn(3, 4, generator=generator, dtype=torch.float64), dim=1)
        blocks = [text(coins, target, draft) for draft in (one, other)]
        shorter = min(map(len, blocks))
        if blocks[0][:shorter] != blocks[1][:shorter]:
            return Outcome("refuted", f"seed {seed}: {blocks[0]} and {blocks[1]}", f"seed {seed}, V=4, L=3")
    return Outcome("holds", f"{count} pairs of drafters, V 4, L 3")


# ---------------------------------------------------------------------- rankings


def plain_decoding(batch: Batch, draws: Draws) -> Verdict:
    """Keeps nothing and draws from the target: plain decoding."""
    zero = torch.zeros_like(batch.tokens[:, 0, 0])
    return Verdict(zero, zero, draws.choose(batch.target_probs[:, 0, 0]))


RANKED: dict[str, tuple[str, Value, Subject]] = {
    "specinfer": ("SpecInfer", lambda tree, k: float(level_by_level.specinfer(tree, k)[1:].sum()), "naive"),
    "kseq": ("SpecTr (K-SEQ)", lambda tree, k: float(level_by_level.kseq(tree, k)[1:].sum()), "single-step-optimal"),
    "block": ("block verification of one path", lambda tree, k: single_path.optimum(tree).value, "naive"),
    "naive": ("naive sampling", lambda tree, k: float(level_by_level.naive(tree, k)[1:].sum()), plain_decoding),
}


def _ranking(name: str) -> None:
    words, value, control = RANKED[name]

    @claim(
        f"RANK-traversal-{name}",
        paper=DELAYED,
        kind="reading",
        source="arXiv:2602.16994, mean tokens per call of an experiment, read for every instance",
        statement=f"Traversal verification keeps at least as many tokens as {words}.",
        tested="exact law of the runtime verifier `traversal` against the closed form",
        subject="traversal",
        control=control,
    )
    def check(verifier: Subject, deep: bool) -> Outcome:
        one_step = simple_cases(3, 1, 3, paths=2)[:: 1 if deep else 4]
        return never_below(kept_by(verifier), value, one_step if name == "kseq" else many_path_cases(deep))


for _name in RANKED:
    _ranking(_name)

# ---------------------------------------------------------------------- lossy, own


def at_budget(tree: PrefixTree, eps: Fraction) -> tuple[Any, Any]:
    """Kept tokens and deviation of the rule with that budget, in fractions."""
    phi, stream = budgeted.acceptance(tree, eps)
    return phi[1:].sum(), frontier.block_deviation(tree, stream)


@claim(
    "BUDGET-kept",
    paper=OWN,
    kind="own",
    source="specbound (own); the proof stands on the page The price of losing",
    statement="Block verification with a budget eps deviates by at most eps and stays below the frontier.",
    tested="the closed form against the certified frontier, in fractions",
    subject=at_budget,
    control=lambda tree, eps: at_budget(tree, min(Fraction(1), 2 * eps)),
)
def budgets_are_kept(rule: Callable[[PrefixTree, Fraction], tuple[Any, Any]], deep: bool) -> Outcome:
    count, on = 0, 0
    for tree in list(simple_instances(2, 3, 4 if deep else 3))[:: 1 if deep else 5]:
        for eps in (Fraction(1, 50), Fraction(1, 9)):
            kept, deviation = rule(tree, eps)
            best = frontier.optimum(tree, eps).exact
            count, on = count + 1, on + (kept == best)
            if deviation > eps or (best is not None and kept > best):
                return Outcome("refuted", f"case {count}: deviation {deviation}, kept {kept}", described(tree))
    return Outcome("holds", f"in fractions on {count} rational cases, V <= 2, L <= 3; on the frontier in {on} of them")


@claim(
    "BUDGET-on-the-frontier",
    paper=OWN,
    kind="own",
    source="specbound (own), a question",
    statement="Block verification with a budget is the best verifier of one path at its deviation.",
    tested="the closed form against the certified frontier, in fractions",
    subject=3,
    control=2,
)
def budgets_are_spent_optimally(length: int, deep: bool) -> Outcome:
    count = 0
    trees = list(simple_instances(2, length, 5 if deep else 4))
    trees += [random_tree("independent", 2, length, seed) for seed in range(20)]
    for tree in trees:
        count += 1
        eps = Fraction(1, 20)
        kept, best = at_budget(tree, eps)[0], frontier.optimum(tree, eps).exact
        if best is not None and kept < best:
            return Outcome("refuted", f"instance {count}: {float(kept):.6f} of {float(best):.6f}", described(tree))
    return Outcome("holds", f"in fractions on {count} instances, V <= 2, L <= {length}")
