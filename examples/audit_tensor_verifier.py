"""Audit a verifier written against `Draws`: exact, by replaying every random outcome.

specbound audit examples.audit_tensor_verifier:verify --vocab 2..3 --length 1..2 --paths 1..1
"""

from torch import zeros_like

from specbound.proofs_checks.audit import audit, report_text
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict


def verify(batch: Batch, draws: Draws) -> Verdict:
    """Token verification that draws its correction from the target row: a common mistake."""
    tokens, draft, target = batch.tokens[:, 0], batch.draft_probs[:, 0], batch.target_probs[:, 0]
    drafted = draft.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    wanted = target[:, :-1].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    kept = draws.accept_while((wanted / drafted).clamp_max(1))
    row = target[range(len(kept)), kept]
    return Verdict(path=zeros_like(kept), accepted=kept, token=draws.choose(row))


if __name__ == "__main__":
    print(report_text(audit(verify, vocab=range(2, 4), length=range(1, 3), paths=range(1, 2), cases=40)))
