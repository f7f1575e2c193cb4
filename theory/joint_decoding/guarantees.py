"""What one MJSD round guarantees about the tokens it accepts, as inequalities with their slack.

Letters: P target joint, Q draft joint, gamma tokens drafted, tau threshold, as in `joint_decoding`.
Guarantees for one round with accepted prefix x of length i >= 1 of the drafted block b (own derivations):
  G1  P(x) >= tau Q(x)                                   any draft
  G2  P(x) >= tau max over V^gamma of Q                  b = argmax Q
  if moreover i = gamma, with y* = argmax P over V^gamma:
  G3  P(x) >= tau Q(y*)
  G4  P(x) >= tau (max P - max_y (P(y) - Q(y))+)
  G5  P(x) >= tau exp(-D) max P,  D = max_y log P(y)/Q(y)
The tempting version for i < gamma, P(x) >= tau max over V^i of Q, is false.
The paper behind the method: [MJSD] arXiv:2407.09722.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..contexts import Prefix
from ..numbers import Number
from .decoding import JointSpeculation, accepted_length, most_probable_block


@dataclass(frozen=True)
class Guarantee:
    """One of G1-G5 for one round: it holds iff slack >= 0."""

    name: str
    statement: str
    slack: Number


def round_guarantees(settings: JointSpeculation, block: Prefix) -> list[Guarantee]:
    """The guarantees of this module's opening that apply when `block` is drafted at the start contexts.

    Empty when nothing is accepted; G2 on only if the block attains the largest Q in V^gamma; G3-G5 only if the whole
    block is accepted. Statements are for 0 < tau < 1; enumerates V^gamma.

    Raises:
        ValueError: tau outside (0, 1), or a block that is not draft_length tokens.
    """
    if not 0 < settings.tau < 1:
        raise ValueError(f"tau is {settings.tau}; want 0 < tau < 1")
    if len(block) != settings.draft_length:
        raise ValueError(f"block has {len(block)} tokens; want draft_length = {settings.draft_length}")
    target, draft, tau = settings.target, settings.draft, settings.tau
    accepted = accepted_length(target.prefix_joints(block), draft.prefix_joints(block), tau)
    if accepted == 0:
        return []
    reached = target.joint(block[:accepted])
    found = [Guarantee("G1", "P(x) >= tau Q(x)", reached - tau * draft.joint(block[:accepted]))]
    drafts = draft.block_law(len(block))
    if draft.joint(block) == max(drafts.values()):
        found.append(Guarantee("G2", "P(x) >= tau max Q", reached - tau * draft.joint(block)))
        if accepted == len(block):
            found += _full_block_guarantees(settings, reached, drafts)
    return found


def _full_block_guarantees(
    settings: JointSpeculation, reached: Number, drafts: dict[Prefix, Number]
) -> list[Guarantee]:
    targets = settings.target.block_law(settings.draft_length)
    zero, tau = 0 * settings.target.one, settings.tau
    best = max(targets.values())
    best_block = most_probable_block(settings.target, settings.draft_length)
    excess = max(mass - drafts.get(block, zero) for block, mass in targets.items())
    least_ratio = min(drafts.get(block, zero) / mass for block, mass in targets.items())
    return [
        Guarantee("G3", "P(x) >= tau Q(argmax P)", reached - tau * drafts.get(best_block, zero)),
        Guarantee("G4", "P(x) >= tau (max P - max (P - Q)+)", reached - tau * (best - max(excess, zero))),
        Guarantee("G5", "P(x) >= tau exp(-max log P/Q) max P", reached - tau * least_ratio * best),
    ]


def intermediate_prefix_slack(settings: JointSpeculation, block: Prefix) -> Number | None:
    """Slack of the false claim P(x) >= tau max over V^i of Q, i = len(x) accepted tokens of `block`; None if i = 0."""
    target, draft = settings.target, settings.draft
    accepted = accepted_length(target.prefix_joints(block), draft.prefix_joints(block), settings.tau)
    if accepted == 0:
        return None
    return target.joint(block[:accepted]) - settings.tau * max(draft.block_law(accepted).values())
