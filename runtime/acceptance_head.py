"""The acceptance head of SpecDec++: from the draft's last hidden state to the probability that a token is accepted.

The hidden state that has read token Y_i (final norm applied, [D] numbers) goes through n residual blocks
h + SiLU(W h + b) and one linear map to two logits; softmax gives ahat(Y_i), the predicted acceptance probability.

The head is trained on the weighted loss (a = min(1, target / draft)(Y_i) the soft label, w the class weight)

    sum_i [w (1 - a_i) (-log(1 - ahat_i)) + a_i (-log ahat_i)] / sum_i [w (1 - a_i) + a_i]

whose minimiser is not a but a / (a + w (1 - a)): for w > 1 the raw head is biased low. A calibrated head undoes
that: a = w ahat / (w ahat + 1 - ahat).

Letters: N sequences of T tokens, E training examples, D hidden width, V vocabulary. [SD++] arXiv:2405.19715,
Sections 3.2-3.3. Unlike the authors' code, whose n blocks share one weight matrix, every block has its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from specbound.files import replacing

FORMAT = "specbound.acceptance-head/1"
TARGET_SHARE = 0.15
CLASS_WEIGHT = 6.0


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

    def __init__(
        self, hidden_size: int, blocks: int = 3, class_weight: float = CLASS_WEIGHT, calibrated: bool = True
    ) -> None:
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
        """Logits [..., 2] (reject, accept) from hidden states [..., D] of any float dtype.

        Raises:
            ValueError: if the last axis is not D.
        """
        if hidden.shape[-1] != self.hidden_size:
            raise ValueError(f"hidden has shape {tuple(hidden.shape)}; want [..., {self.hidden_size}]")
        state = hidden.to(self.output.weight.dtype)
        for block in self.blocks:
            state = state + nn.functional.silu(block(state))
        return self.output(state)

    @torch.no_grad()
    def acceptance(self, hidden: Tensor) -> Tensor:
        """Predicted acceptance probability [...] of the last token that `hidden` [..., D] has read, in [0, 1]."""
        log_odds = self(hidden).diff(dim=-1).squeeze(-1)
        return (log_odds + math.log(self.class_weight)).sigmoid() if self.calibrated else log_odds.sigmoid()

    def save(self, path: str | Path) -> None:
        """Write weights and settings to one safetensors file."""
        settings = {
            "format": FORMAT,
            "hidden_size": str(self.hidden_size),
            "blocks": str(len(self.blocks)),
            "class_weight": repr(float(self.class_weight)),
            "calibrated": str(self.calibrated),
        }
        weights = {name: weight.detach().contiguous() for name, weight in self.state_dict().items()}
        with replacing(path) as partial:
            save_file(weights, partial, settings)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> AcceptanceHead:
        """Read what `save` wrote; the head is in evaluation mode.

        Raises:
            ValueError: if the file is not an acceptance head of this format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                settings = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
        if settings.get("format") != FORMAT:
            raise ValueError(f"{path} has format {settings.get('format')!r}; want {FORMAT!r}")
        try:
            head = cls(
                int(settings["hidden_size"]),
                int(settings["blocks"]),
                float(settings["class_weight"]),
                settings["calibrated"] == "True",
            )
            head.load_state_dict(weights)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} has settings and weights that do not fit together: {error}") from None
        return head.to(device).eval()


def biased(acceptance: Tensor, class_weight: float) -> Tensor:
    """What the weighted loss drives a prediction to: a / (a + w (1 - a))."""
    return acceptance / (acceptance + class_weight * (1 - acceptance))


def calibrated(predicted: Tensor, class_weight: float) -> Tensor:
    """The acceptance probability behind such a prediction: w ahat / (w ahat + 1 - ahat), the inverse of `biased`."""
    return class_weight * predicted / (class_weight * predicted + 1 - predicted)


def weighted_loss(logits: Tensor, labels: Tensor, class_weight: float = CLASS_WEIGHT) -> Tensor:
    """The loss of the module text, averaged by weight.

    Args:
        logits [E, 2] (reject, accept); labels [E] soft labels a in [0, 1]; class_weight: w > 0.
    Returns:
        a scalar.
    """
    log_reject, log_accept = logits.log_softmax(dim=-1).unbind(dim=-1)
    reject = class_weight * (1 - labels)
    return -(reject * log_reject + labels * log_accept).sum() / (reject + labels).sum()


def soft_labels(target_probs: Tensor, draft_probs: Tensor, tokens: Tensor) -> Tensor:
    """Acceptance probability min(1, target(y) / draft(y)) of drafted tokens; rows [..., V], tokens [...]."""
    index = tokens.unsqueeze(-1)
    target, draft = target_probs.gather(-1, index).squeeze(-1), draft_probs.gather(-1, index).squeeze(-1)
    return torch.where(target >= draft, torch.ones_like(target), target / draft)


@torch.no_grad()
def training_examples(
    target: Any,
    draft: Any,
    sequences: Tensor,
    first: int,
    target_share: float = TARGET_SHARE,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Hidden states and soft labels from sequences that the target has written, [SD++] Section 3.3.

    At every place i >= first the draft draws Y_i given the target's prefix X_<i, and a_i = min(1, target/draft)(Y_i).
    The draft then reads the sequence in which each X_i, i >= first, is replaced by Y_i with probability
    1 - target_share; the places that were replaced are the examples.

    Args:
        target, draft: causal language models (transformers), one tokenizer.
        sequences [N, T] int64: X, a prompt of `first` tokens and what the target wrote after it; no padding.
        first: number of prompt tokens, 1 <= first < T.
        target_share: in [0, 1).

    Returns:
        hidden [E, D] in the draft's dtype, labels [E] float32.

    Raises:
        ValueError: first or target_share out of range.
    """
    if not 1 <= first < sequences.shape[1]:
        raise ValueError(f"first is {first}; want 1..{sequences.shape[1] - 1}, below the sequences' length")
    if not 0 <= target_share < 1:
        raise ValueError(f"target_share is {target_share}; want a number in [0, 1)")
    rows = [model(sequences).logits[:, first - 1 : -1].float().softmax(dim=-1) for model in (target, draft)]
    drafted = torch.multinomial(rows[1].flatten(0, 1), 1, generator=generator).view(len(sequences), -1)
    labels = soft_labels(rows[0], rows[1], drafted)
    replaced = torch.rand(labels.shape, generator=generator, device=labels.device) >= target_share
    mixed = torch.cat([sequences[:, :first], torch.where(replaced, drafted, sequences[:, first:])], dim=1)
    hidden = draft(mixed, output_hidden_states=True).hidden_states[-1][:, first:]
    return hidden[replaced], labels[replaced]


def train_head(
    hidden: Tensor,
    labels: Tensor,
    *,
    blocks: int = 3,
    class_weight: float = CLASS_WEIGHT,
    calibrated: bool = True,
    epochs: int = 4,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> AcceptanceHead:
    """Train a head by AdamW on the weighted loss, the rate falling to zero along a cosine.

    Args:
        hidden [E, D]; labels [E] in [0, 1].
        blocks, class_weight, calibrated: as in `AcceptanceHead`.
        epochs: passes over the examples, at least 1; batch_size: examples per step.

    Returns:
        the head, in evaluation mode.

    Raises:
        ValueError: shapes, hidden states, labels or epochs out of range.
    """
    for name, values in (("hidden", hidden), ("labels", labels)):
        if not values.is_floating_point() or values.device.type == "meta":
            raise ValueError(f"{name} has dtype {values.dtype} on {values.device}; want float numbers")
    if hidden.ndim != 2 or labels.shape != hidden.shape[:1] or len(labels) == 0:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}, labels {tuple(labels.shape)}; want [E, D] and [E]")
    if not bool(torch.isfinite(hidden.float()).all()):
        raise ValueError("hidden has NaN or infinite entries; want finite numbers")
    labels = labels.float()
    if not bool(((labels >= 0) & (labels <= 1)).all()):
        raise ValueError(f"labels lie in {labels.min():g}..{labels.max():g}; want 0..1")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs is {epochs} and batch_size {batch_size}; want at least 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AcceptanceHead(hidden.shape[1], blocks, class_weight, calibrated).to(hidden.device)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.01)
    steps = epochs * math.ceil(len(labels) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=order).split(batch_size):
            chosen = chosen.to(hidden.device)
            loss = weighted_loss(head(hidden[chosen]), labels[chosen], class_weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def prediction_figures(head: AcceptanceHead, hidden: Tensor, labels: Tensor) -> dict[str, Any]:
    """How well a head predicts labels: means, mean squared error, correlation, and the labels by predicted tenth.

    The correlation is None where it does not exist: one example, or no variation.

    Args:
        hidden [E, D]; labels [E] in [0, 1], of text the head was not trained on.
    """
    predicted = head.acceptance(hidden)
    tenth = (predicted * 10).long().clamp_max(9)
    table = [
        {
            "predicted": round(predicted[tenth == i].mean().item(), 4),
            "accepted": round(labels[tenth == i].mean().item(), 4),
            "examples": int((tenth == i).sum()),
        }
        for i in range(10)
        if (tenth == i).any()
    ]
    return {
        "examples": len(labels),
        "mean_label": round(labels.mean().item(), 4),
        "mean_predicted": round(predicted.mean().item(), 4),
        "squared_error": round((predicted - labels).square().mean().item(), 4),
        "squared_error_of_the_mean_label": round(labels.var(correction=0).item(), 4),
        "correlation": _correlation(predicted, labels),
        "by_predicted_tenth": table,
    }


def _correlation(left: Tensor, right: Tensor) -> float | None:
    if len(left) < 2 or float(left.std()) == 0 or float(right.std()) == 0:
        return None
    return round(torch.corrcoef(torch.stack([left, right]))[0, 1].item(), 4)
