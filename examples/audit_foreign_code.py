"""Audit somebody else's code unchanged: exact, by intercepting its randomness.

The parameters' names say what they take; `foreign` names those that do not speak for themselves. Functions known
by their path need no adapter at all:

    specbound audit transformers.generation.utils:_speculative_sampling --vocab 2..3 --length 1..2
    specbound audit examples.audit_foreign_code:audited --vocab 2..3 --length 1..2
"""

import random

import numpy as np

from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.foreign.adapters import foreign


def their_verifier(ids, small, big):
    """One uniform for all positions; the rest is right."""
    u = random.random()
    for i, token in enumerate(ids):
        if u > big[i][token] / small[i][token]:
            rest = np.maximum(np.subtract(big[i], small[i]), 0)
            return [*ids[:i], np.random.choice(len(rest), p=rest / rest.sum())]  # noqa: NPY002
    return [*ids, random.choices(range(len(big[-1])), big[-1])[0]]


audited = foreign(their_verifier, kind="list", tokens="ids", draft_probs="small", target_probs="big")

if __name__ == "__main__":
    print(report_text(audit(audited, vocab=range(2, 4), length=range(1, 3), cases=40)))
    print(report_text(audit("transformers.generation.utils:_speculative_sampling", length=range(1, 3), cases=40)))
