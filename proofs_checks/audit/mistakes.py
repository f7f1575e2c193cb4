"""Known mistakes of verifiers, as short scalar programs, to name the likely cause of a failed audit.

A mistake explains a failure if its exact law equals that of the audited code on every case compared. The programs
are read by the same interception as foreign code; `random` is their only source of randomness. A family of mistakes has
one unknown number (a lenience, a threshold), which is found from the acceptance length on one case.

Letters: p target row, q draft row, x the drafted tokens, L draft length, K paths; c the running ratio of block
verification, c_i = min(1, c_{i-1} p(x_i) / q(x_i)).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from specbound.theory.prefix_tree import PrefixTree

from ..laws.law import Law
from .foreign.adapters import Call, Foreign, foreign_law, symbolic_law
from .foreign.interception import Interception

Row = Sequence[float]
Rule = Callable[[Row, Row, int], float]
Weights = Callable[[Row, Row, int], Row]


@dataclass(frozen=True)
class Mistake:
    """A wrong verifier and the sentence that names its mistake.

    Attributes:
        name: a short name.
        cause: the mistake, as a sentence.
        verify: the program, from a `Call` to the emitted tokens; random.
        paths: "single" if it reads one path only.
        group: of mistakes of one group that explain a failure only the first is named.
    """

    name: str
    cause: str
    verify: Callable[[Call], list[int]]
    paths: Literal["single", "many"] = "single"
    group: str = ""

    def law(self, tree: PrefixTree, paths: int, interception: Interception | None = None) -> Law:
        """Its exact law; under an interception that is in force, if one is given."""
        code = Foreign(self.verify, lambda call: {"call": call}, lambda block, _: block, self.paths)
        if interception is None:
            return foreign_law(code, tree, paths)
        return symbolic_law(interception, code, tree, paths)


@dataclass(frozen=True)
class Family:
    """Mistakes that differ in one number, in which their acceptance length does not fall.

    Attributes:
        cause: the sentence, with {value} for the number.
        program: from the number to the program.
        low, high: between which the number lies.
    """

    cause: str
    program: Callable[[float], Callable[[Call], list[int]]]
    low: float
    high: float

    def member(self, cases: Sequence[tuple[PrefixTree, float]], interception: Interception) -> Mistake | None:
        """The mistake of these acceptance lengths on instances of one path, by bisection; None if there is none."""
        low, high = self.low, self.high
        for _ in range(BISECTIONS):
            value = (low + high) / 2
            made = Mistake("", self.cause.format(value=f"{value:.4g}"), self.program(value))
            excesses = (made.law(tree, 1, interception).acceptance_length - length for tree, length in cases)
            wrong = next((excess for excess in excesses if abs(excess) > SAME_LENGTH), None)
            if wrong is None:
                return made
            low, high = (low, value) if wrong > 0 else (value, high)
        return None


SAME_LENGTH = 1e-11
BISECTIONS = 50
FAMILIES: dict[str, Family] = {}
MISTAKES: dict[str, Mistake] = {}


def _enter(
    name: str,
    cause: str,
    verify: Callable[[Call], list[int]],
    paths: Literal["single", "many"] = "single",
    group: str | None = None,
) -> None:
    MISTAKES[name] = Mistake(name, cause, verify, paths, group or name)


# ---------------------------------------------------------------------- pieces


def _coin(probability: float) -> bool:
    return random.random() < probability


def _draw(weights: Row, instead: Row) -> int:
    """A token drawn in proportion to the weights; from `instead` if they are all zero."""
    weights = weights if sum(weights) > 0 else instead
    return random.choices(range(len(weights)), list(weights))[0]


def _ratio(p: Row, q: Row, x: int) -> float:
    return p[x] / q[x] if q[x] > 0 else 1.0


def _residual(p: Row, q: Row, x: int = 0, scale: float = 1.0) -> Row:
    return [max(0.0, scale * a - b) for a, b in zip(p, q, strict=True)]


def _normalised(row: Row) -> Row:
    return [entry / sum(row) for entry in row] if sum(row) > 0 else row


def _only(call: Call) -> tuple[list[int], list[Row], list[Row]]:
    """x, the draft rows and the target rows of the first path, as lists."""
    return call.tokens[0].tolist(), call.draft_probs[0].tolist(), call.target_probs[0].tolist()


# ---------------------------------------------------------------------- token verification


def _token(ratio: Rule = _ratio, correction: Weights = _residual, bonus: int = 0) -> Callable[[Call], list[int]]:
    """Token verification with one of its parts exchanged; the bonus token from row L + `bonus`."""

    def verify(call: Call) -> list[int]:
        x, q, p = _only(call)
        for i, token in enumerate(x):
            if not _coin(ratio(p[i], q[i], token)):
                return [*x[:i], _draw(correction(p[i], q[i], token), p[i])]
        return [*x, _draw(p[len(x) + bonus], p[len(x)])]

    return verify


def _falls_on(place: int) -> Callable[[Call], list[int]]:
    """Inverse-CDF sampling from the residual without dividing by its sum; the missing mass falls on one token."""

    def verify(call: Call) -> list[int]:
        x, q, p = _only(call)
        for i, token in enumerate(x):
            if not _coin(_ratio(p[i], q[i], token)):
                weights = list(_residual(p[i], q[i]))
                weights[place] += 1 - sum(weights)
                return [*x[:i], _draw(weights, p[i])]
        return [*x, _draw(p[-1], p[-1])]

    return verify


def _tempered(power: float) -> Callable[[Call], list[int]]:
    """Token verification told the draft law at another temperature than the one that drew the tokens."""

    def told(q: Row) -> Row:
        return _normalised([entry**power for entry in q])

    return _token(lambda p, q, x: _ratio(p, told(q), x), lambda p, q, x: _residual(p, told(q)))


def _one_uniform(call: Call) -> list[int]:
    x, q, p = _only(call)
    uniform = random.random()
    for i, token in enumerate(x):
        if not uniform < _ratio(p[i], q[i], token):
            return [*x[:i], _draw(_residual(p[i], q[i]), p[i])]
    return [*x, _draw(p[-1], p[-1])]


def _counted(call: Call) -> list[int]:
    x, q, p = _only(call)
    kept = sum(_coin(_ratio(p[i], q[i], token)) for i, token in enumerate(x))
    weights = _residual(p[kept], q[kept]) if kept < len(x) else p[kept]
    return [*x[:kept], _draw(weights, p[kept])]


def _residual_for_bonus(call: Call) -> list[int]:
    x, q, p = _only(call)
    for i, token in enumerate(x):
        if not _coin(_ratio(p[i], q[i], token)):
            return [*x[:i], _draw(_residual(p[i], q[i]), p[i])]
    return [*x, _draw(_residual(p[-1], q[-1]), p[-1])]


def _next_row(call: Call) -> list[int]:
    x, q, p = _only(call)
    for i, token in enumerate(x):
        if not _coin(_ratio(p[i], q[i], token)):
            return [*x[:i], _draw(_residual(p[i + 1], q[min(i + 1, len(x) - 1)]), p[i + 1])]
    return [*x, _draw(p[-1], p[-1])]


def _steps(count: int, strict: bool) -> Rule:
    """A ratio compared with a uniform of so many values: the chance that a multiple of 1/count is below it."""

    def chance(p: Row, q: Row, x: int) -> float:
        scaled = min(1.0, _ratio(p, q, x)) * count
        return min(1.0, (math.ceil(scaled) if strict else math.floor(scaled) + 1) / count)

    return chance


def _rounded(row: Row, bits: int) -> Row:
    """The row in a format of so many significant bits."""
    return [
        0.0 if entry == 0 else math.ldexp(round(math.ldexp(m, bits)), e - bits)
        for entry in row
        for m, e in [math.frexp(entry)]
    ]


def _in_format(bits: int) -> Callable[[Call], list[int]]:
    """Token verification with all rows rounded."""
    return _token(
        lambda p, q, x: _ratio(_rounded(p, bits), _rounded(q, bits), x),
        lambda p, q, x: _residual(_rounded(p, bits), _rounded(q, bits)),
    )


def _likeliest(row: Row) -> Row:
    return [float(y == row.index(max(row))) for y in range(len(row))]


def _cut(row: Row, mass: float) -> Row:
    """The likeliest tokens of a row that hold the mass, as top-p keeps them."""
    kept, total = set(), 0.0
    for y in sorted(range(len(row)), key=lambda y: -row[y]):
        if total < mass * sum(row):
            kept.add(y)
        total += row[y]
    return [entry if y in kept else 0.0 for y, entry in enumerate(row)]


def _argmax(correction: bool, bonus: bool) -> Callable[[Call], list[int]]:
    """Token verification whose correction or bonus token is the likeliest one instead of a drawn one."""

    def verify(call: Call) -> list[int]:
        x, q, p = _only(call)
        for i, token in enumerate(x):
            if not _coin(_ratio(p[i], q[i], token)):
                rest = _residual(p[i], q[i])
                return [*x[:i], _draw(_likeliest(rest) if correction else rest, p[i])]
        return [*x, _draw(_likeliest(p[-1]) if bonus else p[-1], p[-1])]

    return verify


def _sampled_and_compared(correction: Weights) -> Callable[[Call], list[int]]:
    """A token is drawn from the target and compared with the drafted one; where they differ another is drawn."""

    def verify(call: Call) -> list[int]:
        x, q, p = _only(call)
        for i, token in enumerate(x):
            if _draw(p[i], p[i]) != token:
                return [*x[:i], _draw(correction(p[i], q[i], token), p[i])]
        return [*x, _draw(p[-1], p[-1])]

    return verify


def _row_before(call: Call) -> list[int]:
    x, q, p = _only(call)
    for i, token in enumerate(x):
        if not _coin(_ratio(p[max(i - 1, 0)], q[max(i - 1, 0)], token)):
            return [*x[:i], _draw(_residual(p[i], q[i]), p[i])]
    return [*x, _draw(p[-1], p[-1])]


def _without(p: Row, q: Row, x: int) -> Row:
    return [0.0 if y == x else entry for y, entry in enumerate(p)]


_enter(
    "target for residual",
    "the correction is drawn from the target row, not from max(0, p - q)",
    _token(correction=lambda p, q, x: p),
)
_enter(
    "absolute residual",
    "the correction is drawn from |p - q|, not from max(0, p - q)",
    _token(correction=lambda p, q, x: [abs(a - b) for a, b in zip(p, q, strict=True)]),
)
_enter(
    "rejected token removed",
    "the correction is drawn from the target row without the rejected token, not from max(0, p - q)",
    _token(correction=_without),
)
_enter(
    "residual not renormalised, last token",
    "the residual is not renormalised; the missing mass falls on the last token",
    _falls_on(-1),
)
_enter(
    "residual not renormalised, first token",
    "the residual is not renormalised; the missing mass falls on the first token",
    _falls_on(0),
)
_enter(
    "ratio inverted",
    "tokens are kept with probability q/p instead of p/q",
    _token(ratio=lambda p, q, x: q[x] / p[x] if p[x] > 0 else 1.0),
)
_enter(
    "no coin",
    "tokens are kept if and only if p >= q, without a coin",
    _token(ratio=lambda p, q, x: float(p[x] >= q[x])),
)
_enter(
    "greedy match",
    "tokens are kept if and only if they are the target's most likely one, which is emitted otherwise",
    _token(ratio=lambda p, q, x: float(p[x] == max(p)), correction=lambda p, q, x: [float(a == max(p)) for a in p]),
)
_enter(
    "draft taken as deterministic in the coin",
    "a token is kept with probability p(x), as if it had not been drawn (or if it equals one drawn from the target), "
    "while the correction uses the draft row",
    _token(ratio=lambda p, q, x: p[x]),
)
_enter(
    "draft sampled from another law, sharper",
    "the tokens were not drawn from the draft row that is used (here q squared, temperature 1/2)",
    _tempered(2.0),
)
_enter(
    "draft sampled from another law, flatter",
    "the tokens were not drawn from the draft row that is used (here the root of q, temperature 2)",
    _tempered(0.5),
)
_enter(
    "one uniform for all positions",
    "one uniform number is compared at every position instead of a fresh one",
    _one_uniform,
)
_enter(
    "acceptances counted",
    "accepted tokens are counted over the whole draft instead of up to the first rejection",
    _counted,
)
_enter("bonus from the row before", "the bonus token is drawn from the target row before the last", _token(bonus=-1))
_enter(
    "residual for the bonus",
    "the bonus token is drawn from a residual although nothing was rejected",
    _residual_for_bonus,
)
_enter("correction one row late", "the correction is drawn from the rows of the next position", _next_row)
_enter("ratio of the row before", "the ratio p/q is read from the rows of the position before", _row_before)
_enter(
    "argmax for the correction",
    "the correction is the likeliest token of the residual instead of one drawn from it",
    _argmax(correction=True, bonus=False),
    group="correction cut",
)
_enter(
    "argmax for the bonus",
    "the bonus token is the target's likeliest one instead of a drawn one",
    _argmax(correction=False, bonus=True),
)
_enter(
    "argmax for both",
    "the correction and the bonus token are the likeliest ones instead of drawn ones",
    _argmax(correction=True, bonus=True),
)
_enter(
    "target sampled twice",
    "a drafted token is kept if it equals one drawn from the target, which already is lossless with that token; where "
    "they differ another one is drawn from the target",
    _sampled_and_compared(lambda p, q, x: p),
)
for _mass in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
    _enter(
        f"top-p {_mass} for the correction only",
        f"the correction is cut to its likeliest tokens (as by top-p {_mass}), and p in the ratio is not",
        _token(correction=lambda p, q, x, mass=_mass: _cut(_residual(p, q), mass)),  # type: ignore[misc]
        group="correction cut",
    )
for _format, _bits in (("bfloat16", 8), ("float16", 11), ("float32", 24)):
    _enter(
        f"rows in {_format}",
        f"number format: the rows are rounded to {_format} (2^-{_bits}) before they are compared and subtracted",
        _in_format(_bits),
        group="format",
    )
    for _compared, _strict in (("u < p/q", True), ("u <= p/q", False)):
        _enter(
            f"uniforms in {_format}, {_compared}",
            f"number format: the uniform numbers have the 2^{_bits} values of {_format}, compared as {_compared}",
            _token(ratio=_steps(2**_bits, _strict)),
            group="format",
        )
FAMILIES["lenience"] = Family(
    "lenience: tokens are kept with probability {value} p/q instead of p/q",
    lambda value: _token(ratio=lambda p, q, x: value * _ratio(p, q, x)),
    0.0,
    100.0,
)
FAMILIES["added lenience"] = Family(
    "lenience: tokens are kept with probability p/q + {value}",
    lambda value: _token(ratio=lambda p, q, x: _ratio(p, q, x) + value),
    0.0,
    1.0,
)
FAMILIES["least ratio"] = Family(
    "the ratio p/q is clamped at {value} from below",
    lambda value: _token(ratio=lambda p, q, x: max(_ratio(p, q, x), value)),
    0.0,
    1.0,
)
FAMILIES["threshold on the target"] = Family(
    "a threshold: tokens of target probability {value} or so and more are kept without a coin",
    lambda value: _token(ratio=lambda p, q, x: 1.0 if p[x] >= 1 - value else _ratio(p, q, x)),
    0.0,
    1.0,
)
FAMILIES["threshold on the ratio"] = Family(
    "a threshold: tokens are kept if and only if p/q is at least about 1/{value}, without a coin",
    lambda value: _token(ratio=lambda p, q, x: float(_ratio(p, q, x) * value >= 1)),
    0.0,
    100.0,
)


# ---------------------------------------------------------------------- block verification


def _clamped(c: float, ratio: float) -> float:
    return min(1.0, c * ratio)


def _threshold(c: float, p: Row, q: Row) -> float:
    surplus = sum(_residual(p, q, scale=c))
    return surplus / (surplus + 1 - c) if surplus + 1 - c > 0 else 1.0


def _block(
    step: Callable[[float, float], float] = _clamped,
    threshold: Callable[[float, Row, Row], float] = _threshold,
    residual_scale: Callable[[float], float] = lambda c: c,
    last: Callable[[float, float], float] = lambda c, ratio: c,
    stops_at: bool | None = None,
    rows_behind: int = 0,
) -> Callable[[Call], list[int]]:
    """Block verification with one of its parts exchanged.

    Args:
        stops_at: stop at the first coin that fails (False) or succeeds (True) instead of at the end.
        rows_behind: the threshold of a position is read from rows so many positions earlier.
    """

    def verify(call: Call) -> list[int]:
        x, q, p = _only(call)
        length = len(x)
        ratios = [_ratio(p[i], q[i], token) for i, token in enumerate(x)]
        c = [1.0]
        for ratio in ratios:
            c.append(step(c[-1], ratio))
        at = [i - rows_behind for i in range(1, length)]
        h = [threshold(c[i], p[j], q[j]) for i, j in enumerate(at, start=1)] + [last(c[length], ratios[-1])]
        kept = 0
        for i, chance in enumerate(h, start=1):
            heads = _coin(chance)
            kept = i if heads else kept
            if heads == stops_at:
                break
        weights = p[kept] if kept == length else _residual(p[kept], q[kept], scale=residual_scale(c[kept]))
        return [*x[:kept], _draw(weights, p[kept])]

    return verify


def _greedy_threshold(c: float, p: Row, q: Row) -> float:
    surplus, lack = (sum(max(0.0, sign * (c * a - b)) for a, b in zip(p, q, strict=True)) for sign in (1, -1))
    return min(1.0, surplus / lack) if lack > 0 else 1.0


_enter(
    "token residual in block verification",
    "block verification draws its correction from the residual of token verification, max(0, p - q), "
    "not from max(0, c p - q)",
    _block(residual_scale=lambda c: 1.0),
)
_enter(
    "missing 1 - c term",
    "the term 1 - c is missing in the threshold of block verification, h = s / (s + 1 - c)",
    _block(threshold=lambda c, p, q: float(sum(_residual(p, q, scale=c)) > 0)),
)
_enter(
    "threshold not divided",
    "the threshold of block verification is s itself, not s / (s + 1 - c)",
    _block(threshold=lambda c, p, q: sum(_residual(p, q, scale=c))),
)
_enter(
    "each ratio clamped in block verification",
    "c of block verification is the product of min(1, p/q) instead of min(1, c p/q)",
    _block(step=lambda c, ratio: c * min(1.0, ratio)),
)
_enter(
    "block coins read as token coins",
    "block verification stops at the first coin that fails instead of keeping the last that succeeds",
    _block(stops_at=False),
)
_enter(
    "first success instead of last",
    "block verification stops at the first coin that succeeds instead of keeping the last that does",
    _block(stops_at=True),
)
_enter(
    "threshold of the row before",
    "the threshold of block verification is read from the rows of the position before",
    _block(rows_behind=1),
)
_enter(
    "token ratio at the end of the block",
    "the whole block is kept with the last token's min(1, p/q) instead of c",
    _block(last=lambda c, ratio: min(1.0, ratio)),
)
_enter(
    "greedy block without modification",
    "the running ratio c is not clamped at 1: greedy block verification without the change of the target law "
    "of the positions that follow",
    _block(step=lambda c, ratio: c * ratio, threshold=_greedy_threshold),
)


# ---------------------------------------------------------------------- many paths


def _recursive(
    distinct: bool = False,
    update: Callable[[Row, Row], Row] = lambda p, q: _normalised(_residual(p, q)),
    order: Callable[[list[int], Row], list[int]] = lambda kids, p: kids,
    at_the_end: Callable[[Row, Row, Row], Row] = lambda rest, p, q: rest,
    of_any_prefix: bool = False,
) -> Callable[[Call], list[int]]:
    """Recursive rejection over the paths' next tokens with one of its parts exchanged; `of_any_prefix` goes on with
    all paths, not only those that begin with what was kept."""

    def verify(call: Call) -> list[int]:
        paths = list(range(call.paths))
        kept: list[int] = []
        for i in range(call.length):
            p, q = call.target_probs[paths[0], i].tolist(), call.draft_probs[paths[0], i].tolist()
            kids = [int(call.tokens[k, i]) for k in paths]
            rest = p
            for token in order(list(dict.fromkeys(kids)) if distinct else kids, p):
                if _coin(_ratio(rest, q, token)):
                    break
                rest = update(rest, q)
            else:
                return [*kept, _draw(at_the_end(rest, p, q), p)]
            kept.append(token)
            with_it = [k for k in paths if call.tokens[k, i] == token]
            paths = [*with_it, *(k for k in paths if k not in with_it)] if of_any_prefix else with_it
        last = call.target_probs[paths[0], call.length].tolist()
        return [*kept, _draw(last, last)]

    return verify


def _longest_run(call: Call) -> list[int]:
    runs = [_token()(Call(call.tokens[[k]], call.draft_probs[[k]], call.target_probs[[k]])) for k in range(call.paths)]
    return max(runs, key=len)


def _best_ratio(call: Call) -> list[int]:
    def ratio(k: int) -> float:
        product = 1.0
        for i, token in enumerate(call.tokens[k]):
            product *= call.target_probs[k, i, token] / call.draft_probs[k, i, token]
        return product

    k = max(range(call.paths), key=ratio)
    return _block()(Call(call.tokens[[k]], call.draft_probs[[k]], call.target_probs[[k]]))


_enter(
    "duplicates skipped",
    "a draft token that repeats a rejected one is skipped without updating the residual or the draft row",
    _recursive(distinct=True),
    "many",
)
_enter(
    "residual not updated between drafts",
    "the next draft is tested against the target row instead of what is left after the rejection",
    _recursive(update=lambda p, q: p, at_the_end=lambda rest, p, q: _residual(p, q)),
    "many",
)
_enter(
    "residual not renormalised between drafts",
    "the residual is not renormalised before the next draft is tested",
    _recursive(update=_residual),
    "many",
)
_enter(
    "target after the last draft",
    "after all drafts are rejected the correction is drawn from the target row",
    _recursive(at_the_end=lambda rest, p, q: p),
    "many",
)
_enter(
    "drafts of other prefixes kept",
    "at a position the tokens of all paths are tried, also of paths that begin with other tokens than those kept",
    _recursive(of_any_prefix=True),
    "many",
)
_enter(
    "all drafts tested against the target",
    "every draft of a position is tested against the target row on its own, and the correction comes from that row",
    _recursive(update=lambda p, q: p),
    "many",
)
_enter(
    "drafts sorted by token",
    "the drafts are tried in the order of their tokens, not in the order drawn",
    _recursive(order=lambda kids, p: sorted(kids)),
    "many",
)
_enter(
    "drafts sorted by target probability",
    "the drafts are tried in the order of their target probability, not in the order drawn",
    _recursive(order=lambda kids, p: sorted(kids, key=lambda y: -p[y])),
    "many",
)
_enter(
    "longest of the paths", "every path is verified on its own and the longest result is taken", _longest_run, "many"
)
_enter(
    "best path with the draft's own law",
    "the path with the largest p/q is chosen and then verified as if it had been drawn from q",
    _best_ratio,
    "many",
)


# ---------------------------------------------------------------------- ties


def _ranked_selection(call: Call) -> list[int]:
    """Of one drafted token each the one of largest p/q is taken; ties are broken towards the smaller token when the
    drafts are sorted, and towards the larger one in the law that the taken token is verified with."""
    p, q = call.target_probs[0, 0].tolist(), call.draft_probs[0, 0].tolist()
    if call.length > 1:
        return _best_ratio(call)
    ratios = [a / b if b > 0 else -1.0 for a, b in zip(p, q, strict=True)]
    x = min((int(token) for token in call.tokens[:, 0]), key=lambda y: (-ratios[y], y))
    walked = sorted(range(len(q)), key=lambda y: (ratios[y], y))
    below, law = 0.0, [0.0] * len(q)
    for y in walked:
        law[y] = (below + q[y]) ** call.paths - below**call.paths
        below += q[y]
    if _coin(_ratio(p, law, x)):
        k = [int(token) for token in call.tokens[:, 0]].index(x)
        last = call.target_probs[k, 1].tolist()
        return [x, _draw(last, last)]
    return [_draw(_residual(p, law), p)]


_enter(
    "ties broken two ways",
    "ties of p/q are broken one way where the drafts are sorted and another way in the law of the one that is taken",
    _ranked_selection,
    "many",
)
