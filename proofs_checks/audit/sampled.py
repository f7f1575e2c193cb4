"""The sampled audit, for code whose randomness can neither be replayed nor intercepted: kernels, GPU code, services.

The code is run n times on drafts drawn from the draft law, and the empirical law of the emitted tokens (continued
exactly from the target to L+1 tokens) is compared with the target's. With m = V^i blocks of i tokens,

    Pr( TV(empirical, true) >= t ) <= 2^m exp(-2 n t^2)         (Hoeffding for every set of blocks, and a union bound)

so that a lossless verifier exceeds t = sqrt((m log 2 + log(1/a)) / 2n) with probability at most a; a is the
false-alarm rate shared evenly among instances, looks and positions i. A verifier that is d away has, on the set of
blocks where it is, an empirical excess of at least d - s but for a probability exp(-2 n s^2), which gives

    n = ( sqrt(m log 2 + log(1/a)) + sqrt(log(1/miss)) )^2 / (2 resolution^2)        for m = V^(L+1).

Looks at n/64, n/16, n/4 and n draws stop early on gross errors; a block of target probability 0 that was seen three
times (rounding may show it once) is certain at any look.

Sources: Hoeffding 1963; Weissman et al. 2003, "Inequalities for the L1 deviation of the empirical distribution".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from specbound.theory.prefix_tree import Prefix, PrefixTree

from ..laws.deviation import Deviation, distance, marginal
from ..laws.emissions import law_of_emissions

LOOKS = (64, 16, 4, 1)
MAX_DRAWS = 50_000_000
SEEN = 3

Draw = Callable[[int, int], dict[Prefix, int]]


@dataclass(frozen=True)
class Plan:
    """How many draws, and what they can show.

    Attributes:
        resolution: total variation that is found but for probability `miss`.
        false_alarm: probability that a lossless verifier is rejected, over all instances, looks and positions.
        miss: probability that a verifier `resolution` away passes an instance.
        draws: calls of the verifier on this instance.
        share: the false-alarm rate of one comparison.
    """

    vocab: int
    length: int
    resolution: float
    false_alarm: float
    miss: float
    draws: int
    share: float

    def threshold(self, position: int, draws: int) -> float:
        """Largest total variation of the first `position` tokens that `draws` calls leave unsuspicious."""
        return math.sqrt(_exponent(self.vocab**position, self.share) / (2 * draws))


def _exponent(blocks: int, rate: float) -> float:
    return blocks * math.log(2) + math.log(1 / rate)


def plan(
    vocab: int, length: int, resolution: float, false_alarm: float = 1e-9, miss: float = 1e-6, instances: int = 1
) -> Plan:
    """The number of draws for one of several instances of this size (see the module's opening).

    Raises:
        ValueError: for rates or a resolution outside (0, 1), or if more than 5e7 draws were needed.
    """
    for name, value in (("resolution", resolution), ("false_alarm", false_alarm), ("miss", miss)):
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"{name} is {value!r}; want a number between 0 and 1")
    share = false_alarm / (instances * len(LOOKS) * (length + 1))
    root = math.sqrt(_exponent(vocab ** (length + 1), share)) + math.sqrt(math.log(1 / miss))
    draws = math.ceil(root**2 / (2 * resolution**2))
    if draws > MAX_DRAWS:
        raise ValueError(
            f"V={vocab}, L={length} and resolution {resolution} need {draws:.2g} draws, more than {MAX_DRAWS:.0e}; "
            "ask for a coarser resolution or smaller sizes"
        )
    return Plan(vocab, length, resolution, false_alarm, miss, draws, share)


@dataclass(frozen=True)
class Sampled:
    """What the draws on one instance showed.

    Attributes:
        draws: calls made; fewer than planned if it stopped early.
        total_variation: of the empirical law (it is positive also for a lossless verifier).
        threshold: the largest value that is unsuspicious at this number of draws.
        deviation: the first position that is wrong beyond doubt, None if none is.
        acceptance_length: empirical mean.
    """

    draws: int
    total_variation: float
    threshold: float
    deviation: Deviation | None
    acceptance_length: float


def sample_law(draw: Draw, tree: PrefixTree, planned: Plan) -> Sampled:
    """Draw in the planned steps and stop as soon as a deviation is certain.

    Args:
        draw: `draw(count, step)` calls the verifier `count` times, each time on fresh drafts, and counts the emitted
            blocks; `step` (0, 1, ...) makes its seed.
    """
    counts: Counter[Prefix] = Counter()
    wanted = {block: float(probability) for block, probability in tree.target_law().items()}
    for step, part in enumerate(LOOKS):
        goal = math.ceil(planned.draws / part)
        counts.update(draw(goal - counts.total(), step))
        total = counts.total()
        law = law_of_emissions(tree.as_float(), {block: count / total for block, count in counts.items()}, total)
        deviation = _certain(law.blocks, wanted, planned, total)
        if deviation is not None:
            break
    return Sampled(
        total,
        distance(law.blocks, wanted),
        planned.threshold(planned.length + 1, total),
        deviation,
        law.acceptance_length,
    )


def _certain(blocks: dict[Prefix, float], wanted: dict[Prefix, float], planned: Plan, draws: int) -> Deviation | None:
    """The first position where the empirical law cannot come from the target's."""
    total = distance(blocks, wanted)
    for position in range(1, planned.length + 2):
        emitted, target = marginal(blocks, position), marginal(wanted, position)
        impossible = [
            block for block in sorted(emitted) if target.get(block, 0.0) == 0 and emitted[block] * draws > SEEN - 0.5
        ]
        if impossible or distance(emitted, target) > planned.threshold(position, draws):
            worst = max(impossible or sorted(emitted), key=lambda block: emitted[block] - target.get(block, 0.0))
            return Deviation(
                total, position, worst[:-1], worst[-1], float(emitted[worst]), float(target.get(worst, 0.0))
            )
    return None
