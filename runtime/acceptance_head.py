"""The acceptance head of SpecDec++: from the draft's last hidden state to the probability that a token is accepted.

The hidden state that has read token Y_i (final norm applied, [D] numbers) goes through n residual blocks
h + SiLU(W h + b) and one linear map to two logits; softmax gives ahat(Y_i), the predicted acceptance probability.

The head is trained on the weighted loss (a = min(1, target/draft)(Y_i) the soft label, w the class weight)

    sum_i [w (1 - a_i) (-log(1 - ahat_i)) + a_i (-log ahat_i)] / sum_i [w (1 - a_i) + a_i]

whose minimiser is not a but a / (a + w (1 - a)): for w > 1 the raw head is biased low. A calibrated head undoes
that: a = w ahat / (w ahat + 1 - ahat).

[SD++] arXiv:2405.19715, Sections 3.2-3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AcceptanceHead(nn.Module):
    """Residual SiLU blocks and a linear map to (reject, accept) logits, in float32.

    Args:
        hidden_size: D, width of the draft's hidden state.
        blocks: number of residual blocks, each with its own weights.
        class_weight: w of the training loss.
        calibrated: whether `acceptance` undoes the bias of the weighted loss.

    Raises:
        ValueError: sizes below 1 (blocks below 0), or a class weight that is not positive.
    """

    def __init__(self, hidden_size: int, blocks: int = 3, class_weight: float = 6.0, calibrated: bool = True) -> None:
        super().__init__()
        if hidden_size < 1 or blocks < 0:
            raise ValueError(f"hidden_size is {hidden_size} and blocks {blocks}; want at least 1 and 0")
        if not class_weight > 0:
            raise ValueError(f"class_weight is {class_weight}; want a positive number")
        self.hidden_size = hidden_size
        self.class_weight = class_weight
        self.calibrated = calibrated
        self.blocks = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(blocks))
        self.output = nn.Linear(hidden_size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., 2] (reject, accept) from hidden states [..., D] of any float dtype."""
        state = hidden.to(self.output.weight.dtype)
        for block in self.blocks:
            state = state + nn.functional.silu(block(state))
        return self.output(state)

    @torch.no_grad()
    def acceptance(self, hidden: Tensor) -> Tensor:
        """Predicted acceptance probability [...] of the last token that `hidden` [..., D] has read, in [0, 1]."""
        log_odds = self(hidden).diff(dim=-1).squeeze(-1)
        if self.calibrated:
            return calibrate(log_odds.sigmoid(), self.class_weight)
        return log_odds.sigmoid()


def calibrate(predicted: Tensor, class_weight: float) -> Tensor:
    """The acceptance probability behind a prediction of the weighted loss: w ahat / (w ahat + 1 - ahat)."""
    return class_weight * predicted / (class_weight * predicted + 1 - predicted)
