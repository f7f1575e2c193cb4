"""Audit code whose randomness cannot be intercepted (a kernel, a service): sampled, with a stated resolution.

The number of calls follows from the total variation that must be found and the false-alarm rate; gross errors stop
the audit early, and the report says what could have passed unseen. Tensor verifiers and kernels that take a batch
and `Draws` are sampled in the same way, on a GPU with `device="cuda"`.
"""

import numpy as np

from specbound.proofs_checks.audit import audit, report_text


class Kernel:
    """Stands for compiled code: its generator is out of reach."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def verify(self, draft_tokens, q, p):
        """Token verification whose residual is not renormalised: the missing mass falls on the last token."""
        for i, token in enumerate(draft_tokens):
            if self.generator.random() * q[i, token] > p[i, token]:
                edges = np.maximum(p[i] - q[i], 0).cumsum()[:-1]
                return [*draft_tokens[:i], int((self.generator.random() > edges).sum())]
        return [*draft_tokens, self.generator.choice(len(p[-1]), p=p[-1])]


opaque = Kernel(seed=1).verify

if __name__ == "__main__":
    print(report_text(audit(opaque, length=range(1, 2), cases=6)))  # undecided: says that it cannot be enumerated
    print(report_text(audit(opaque, length=range(1, 2), cases=6, resolution=0.05)))
