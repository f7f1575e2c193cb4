"""Tiny random models, and the exact law of a whole generation with them: what the tests of decoding share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from specbound.proofs_checks.laws.replay import ReplayDraws
from specbound.runtime.decode import generate
from specbound.runtime.lengths import FixedLength

FAMILIES = ("llama", "qwen2", "gpt2")
EXACT = {"do_sample": True, "top_k": 0, "temperature": 1.0}


def tiny(family: str, seed: int, vocab: int, layers: int = 1) -> PreTrainedModel:
    """A random float64 model whose next-token laws are far from uniform and depend on the whole context."""
    torch.manual_seed(seed)
    shape = {"vocab_size": vocab, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.6}
    if family == "gpt2":
        config = GPT2Config(n_embd=8, n_layer=layers, n_head=2, n_positions=64, **shape)
        model: PreTrainedModel = GPT2LMHeadModel(config)
    else:
        cls, config_cls = {
            "llama": (LlamaForCausalLM, LlamaConfig),
            "qwen2": (Qwen2ForCausalLM, Qwen2Config),
        }[family]
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
        model = cls(config_cls(hidden_size=8, intermediate_size=16, num_hidden_layers=layers, **heads, **shape))
    model.get_output_embeddings().register_forward_hook(on_a_grid)
    return model.double().eval()


def on_a_grid(module: torch.nn.Module, inputs: object, logits: Tensor) -> Tensor:
    """Logits in steps of 2^-30: then a row's laws are the same to the last bit whatever its neighbours are."""
    return (logits * 2**30).round() / 2**30


class LoopReplay(ReplayDraws):
    """Replay for a whole generation, where the same row meets other neighbours in every pass.

    Sums may then differ by rounding, so probabilities below 1e-12 count as 0; and drafts are padded to the longest
    of the batch, so a decision is noted as the rank among the possible answers instead of the answer.
    """

    def __init__(self, decisions: Sequence[tuple[int, ...]]) -> None:
        super().__init__(decisions)
        self.order, self.weights = np.arange(len(decisions)), np.ones(len(decisions))
        self.others: list[tuple[int, tuple[int, ...]]] = []

    def select(self, rows: list[int]) -> None:
        """Only these rows go on."""
        self.found()
        self.order, self.asked, self.weight = self.order[rows], self.asked[rows], self.weight[rows]
        self.decisions = [self.decisions[row] for row in rows]

    def found(self) -> tuple[np.ndarray, list[tuple[int, tuple[int, ...]]]]:
        """Each row's weight, and the answers left behind, by the places of rows at the beginning."""
        self.weights[self.order] = self.weight
        self.others += [(int(self.order[row]), decisions) for row, decisions in self.alternatives]
        self.alternatives = []
        return self.weights, self.others

    def _answer(self, law: Tensor) -> Tensor:
        law = torch.where(law < 1e-12, torch.zeros_like(law), law)
        possible_first = (law == 0).to(torch.int8).argsort(dim=1, stable=True)
        rank = super()._answer(law.gather(1, possible_first))
        return possible_first.gather(1, rank[:, None])[:, 0]


def target_law(model: PreTrainedModel, prompt: list[int], new: int) -> dict[tuple[int, ...], float]:
    """The law of the next `new` tokens by plain forward passes without any cache: the second route."""
    law = {(): 1.0}
    for _ in range(new):
        blocks = list(law)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + list(block) for block in blocks])).logits[:, -1]
        rows = logits.softmax(dim=-1).tolist()
        law = {(*block, y): law[block] * p for block, row in zip(blocks, rows, strict=True) for y, p in enumerate(row)}
    return law


def replayed_law(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    prompts: list[list[int]],
    new: int,
    rows_per_pass: int = 4096,
    **settings: object,
) -> list[dict[tuple[int, ...], float]]:
    """Exact law of the first `new` tokens of `generate` for each prompt: every batch row replays one outcome.

    The rows of a pass hold outcomes of all prompts, mixed, so rows of different lengths decode side by side.
    """
    width = max(map(len, prompts))
    laws: list[dict[tuple[int, ...], float]] = [{} for _ in prompts]
    pending: list[tuple[int, tuple[int, ...]]] = [(which, ()) for which in range(len(prompts))]
    while pending:
        now, pending = pending[:rows_per_pass], pending[rows_per_pass:]
        ids = torch.tensor([[0] * (width - len(prompts[w])) + prompts[w] for w, _ in now])
        mask = torch.tensor([[0] * (width - len(prompts[w])) + [1] * len(prompts[w]) for w, _ in now])
        draws = LoopReplay([decisions for _, decisions in now])
        output = generate(
            target, draft, ids, mask, generator=draws, max_new_tokens=new, pad_token_id=0, **EXACT | settings
        )
        weights, others = draws.found()
        for (which, _), tokens, weight in zip(now, output.sequences[:, width:].tolist(), weights, strict=True):
            block = tuple(tokens + [0] * (new - len(tokens)))
            laws[which][block] = laws[which].get(block, 0.0) + weight
        pending += [(now[row][0], decisions) for row, decisions in others]
    return laws


def distance(law: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float]) -> float:
    return 0.5 * sum(abs(law.get(block, 0.0) - other.get(block, 0.0)) for block in law.keys() | other.keys())


@dataclass(frozen=True)
class HiddenLength(FixedLength):
    """Stops where the first hidden unit is negative: a policy that reads hidden states and token both."""

    adaptive = True
    needs_hidden = True

    def should_stop(self, state, *, draft_row, hidden, token, drafted):
        return (hidden[:, 0] < 0) ^ (token == 1), state
