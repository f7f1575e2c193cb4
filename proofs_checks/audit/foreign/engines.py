"""What engines pass to their verification, and how their answers are read: the two halves of every convention.

Where a signature has a batch, the audited request is the last of three. The others, its companions, have one-hot
rows, at token 0 and at token V-1, so that their answers need no coin and are known. In a ragged batch they have one
drafted token and none. Code that answers every request from one row, that mixes up offsets, or that reads another
request's rows is found by one of the three answers.

Shapes: B = 3 requests, L drafted tokens of the audited one, N drafted tokens of all requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from ...laws.replay import InvalidResult
from .adapters import Call
from .generators import given_seed

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One request of a batch: drafted tokens [L], rows that they were drawn from [L, V], target's rows [L+1, V]."""

    tokens: Tensor
    draft: Tensor
    target: Tensor

    @property
    def length(self) -> int:
        """L."""
        return len(self.tokens)

    @property
    def logits(self) -> Request:
        """The rows as logarithms, the largest entry of each 0."""
        return Request(self.tokens, logits(self.draft), logits(self.target))


def logits(rows: Tensor) -> Tensor:
    """Logarithms of rows relative to their largest entry, -inf for zeros; zeros for an empty row."""
    largest = rows.amax(dim=-1, keepdim=True)
    return torch.where(largest > 0, (rows / largest.clamp_min(1e-300)).log(), 0.0)


def requests(call: Call, lengths: tuple[int, int]) -> list[Request]:
    """Two companions of these lengths, and the audited request; rows in float64."""
    found = []
    for token, length in zip((0, call.vocab - 1), lengths, strict=True):
        rows = one_hot(torch.full((length + 1,), token), call.vocab).double()
        found.append(Request(torch.full((length,), token), rows[:length], rows))
    mine = (torch.from_numpy(np.array(part[0])) for part in (call.tokens, call.draft_probs, call.target_probs))
    return [*found, Request(*mine)]


def audited(emitted: Sequence[Sequence[int]], batch: Sequence[Request]) -> Sequence[int]:
    """The tokens of the audited request, after a look at its companions'.

    Raises:
        InvalidResult: if a companion did not emit the only tokens it can.
    """
    for place, request in enumerate(batch[:-1]):
        token = int(request.target[0].argmax())
        want = [token] * (request.length + 1)
        if list(emitted[place]) != want:
            raise InvalidResult(
                f"request {place} of {len(batch)} has one-hot rows at token {token} and {request.length} drafted "
                f"tokens; it must emit {want}, and emitted {list(emitted[place])}"
            )
    return emitted[-1]


def tensor_of(value: Any, shape: tuple[int, ...], convention: str) -> Tensor:
    """The value, if it is a tensor of this shape.

    Raises:
        InvalidResult: if not; names both sides.
    """
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InvalidResult(f"it returned {got}; {convention} wants a tensor of shape {shape}")
    return value


def parts_of(result: Any, count: int, convention: str, want: str) -> tuple[Any, ...]:
    """The result, if it is a tuple of so many parts.

    Raises:
        InvalidResult: if not; names both sides.
    """
    if not isinstance(result, tuple) or len(result) != count:
        raise InvalidResult(f"it returned {type(result).__name__}; {convention} wants {want}")
    return result


def drawn_for_sure(call: Call) -> bool:
    """Whether every drafted token was drawn from a one-hot row, which engines pass as no rows at all."""
    return bool((call.draft_probs[0].max(axis=-1) == 1).all())


def unpadded(row: Tensor) -> list[int]:
    """The tokens of a row that is padded with -1."""
    return [token for token in row.tolist() if token != -1]


# ---------------------------------------------------------------------- transformers


def build_transformers(call: Call, dtype: torch.dtype) -> Arguments:
    mine = requests(call, (0, 0))[-1].logits
    return {
        "candidate_input_ids": pad(mine.tokens, (1, 0))[None],
        "candidate_logits": mine.draft[None].to(dtype),
        "candidate_length": mine.length,
        "new_logits": mine.target[None].to(dtype),
    }


def read_transformers(result: Any, arguments: Arguments, call: Call) -> Sequence[int]:
    tokens, _ = parts_of(result, 2, "transformers", "(tokens [1, n], matches)")
    return [int(token) for token in tokens.reshape(-1).tolist()]


# ---------------------------------------------------------------------- vLLM


def ragged(call: Call) -> list[Request]:
    """A batch whose requests have 1, 0 and L drafted tokens."""
    return requests(call, (1, 0))


def build_vllm(call: Call, dtype: torch.dtype) -> Arguments:
    batch = ragged(call)
    counts = [request.length for request in batch]
    bonus = [torch.multinomial(request.target[-1].to(dtype), 1) for request in batch]
    return {
        "draft_token_ids": torch.cat([request.tokens for request in batch]).int(),
        "num_draft_tokens": counts,
        "max_spec_len": call.length,
        "cu_num_draft_tokens": torch.tensor(counts).cumsum(0).int(),
        "draft_probs": None if drawn_for_sure(call) else torch.cat([request.draft for request in batch]).to(dtype),
        "target_probs": torch.cat([request.target[:-1] for request in batch]).to(dtype),
        "bonus_token_ids": torch.stack(bonus).int(),
        "sampling_metadata": SimpleNamespace(
            all_greedy=False, all_random=True, temperature=torch.ones(3), generators={}, top_k=None, top_p=None
        ),
    }


def read_vllm(result: Any, arguments: Arguments, call: Call) -> Sequence[int]:
    emitted = tensor_of(result, (3, call.length + 1), "vllm-v1")
    return audited([unpadded(row) for row in emitted], ragged(call))


STATES = (2, 0, 1)


def build_mrv2(call: Call, dtype: torch.dtype) -> Arguments:
    batch = [request.logits for request in ragged(call)]
    rows = [request.length + 1 for request in batch]
    states = torch.tensor(STATES)
    draft = torch.zeros(3, call.length, call.vocab, dtype=dtype)
    for state, request in zip(STATES, batch, strict=True):
        draft[state, : request.length] = request.draft.to(dtype)
    return {
        "target_logits": torch.cat([request.target for request in batch]).to(dtype),
        "draft_logits": None if drawn_for_sure(call) else draft,
        "draft_sampled": torch.cat([pad(request.tokens, (1, 0)) for request in batch]).int(),
        "cu_num_logits": pad(torch.tensor(rows).cumsum(0), (1, 0)).int(),
        "pos": torch.cat([torch.arange(first, first + count) for first, count in zip((5, 90, 300), rows, strict=True)]),
        "idx_mapping": states,
        "expanded_idx_mapping": states.repeat_interleave(torch.tensor(rows)),
        "expanded_local_pos": torch.cat([torch.arange(count) for count in rows]).int(),
        "temperature": torch.ones(3),
        "seed": given_seed() + 1000 * torch.arange(3),
        "num_speculative_steps": call.length,
        "synthetic_conditional_rates": None,
        "use_fp64": dtype == torch.float64,
        "use_block_verification": False,
    }


def read_mrv2(result: Any, arguments: Arguments, call: Call) -> Sequence[int]:
    sampled, counts = parts_of(result, 2, "vllm-mrv2", "(sampled [B, L+1], num_sampled [B])")
    tokens = tensor_of(sampled, (3, call.length + 1), "vllm-mrv2")
    counts = tensor_of(counts, (3,), "vllm-mrv2")
    return audited([row[: int(count)].tolist() for row, count in zip(tokens, counts, strict=True)], ragged(call))


# ---------------------------------------------------------------------- flashinfer, TensorRT-LLM


def rectangle(call: Call) -> list[Request]:
    """A batch whose requests all have L drafted tokens."""
    return requests(call, (call.length, call.length))


def build_rectangle(call: Call, dtype: torch.dtype) -> Arguments:
    batch = rectangle(call)
    return {
        "draft_probs": torch.stack([request.draft for request in batch]).to(dtype),
        "draft_token_ids": torch.stack([request.tokens for request in batch]).int(),
        "target_probs": torch.stack([request.target for request in batch]).to(dtype),
    }


COUNTERS = ("maybe_output_accepted_token_num", "maybe_output_emitted_draft_token_num")
COUNTED = 5


def build_flashinfer(call: Call, dtype: torch.dtype) -> Arguments:
    counters = {name: torch.full((3,), COUNTED, dtype=torch.int32) for name in COUNTERS}
    return {**build_rectangle(call, dtype), **counters, "deterministic": True, "generator": None}


def read_flashinfer(result: Any, arguments: Arguments, call: Call) -> Sequence[int]:
    ids, _, counter = parts_of(result, 3, "flashinfer-chain", "(ids, accepted, emitted)")
    emitted = [unpadded(row) for row in tensor_of(ids, (3, call.length + 1), "flashinfer-chain")]
    mine = audited(emitted, rectangle(call))
    if int(counter[-1]) != COUNTED + len(mine) - 1:
        raise InvalidResult(
            f"the counter of emitted draft tokens went from {COUNTED} to {int(counter[-1])} where {len(mine) - 1} were "
            "emitted; flashinfer-chain adds to the counters that it is given"
        )
    return mine


def build_tensorrt(call: Call, dtype: torch.dtype) -> Arguments:
    return {**build_rectangle(call, dtype), "deterministic": True, "seed": given_seed(), "offset": 0}


def read_tensorrt(result: Any, arguments: Arguments, call: Call) -> Sequence[int]:
    tokens, counts = parts_of(result, 2, "tensorrt-llm", "(tokens [B, K+1], counts [B])")
    tokens = tensor_of(tokens, (3, call.length + 1), "tensorrt-llm")
    emitted = [row[: int(count)].tolist() for row, count in zip(tokens, counts, strict=True)]
    return audited(emitted, rectangle(call))


# ---------------------------------------------------------------------- SGLang


@dataclass(frozen=True)
class Tree:
    """The drafted paths of a request with common beginnings merged, the root first, then level by level.

    Attributes:
        tokens [N], target [N, V]: token of each node (0 at the root) and the target's row behind it.
        child [N], sibling [N]: the node's first child and its next sibling, -1 where there is none.
    """

    tokens: Tensor
    target: Tensor
    child: Tensor
    sibling: Tensor


def tree_of(call: Call) -> Tree:
    """The tree of all paths of the audited request."""
    paths = [tuple(path) for path in call.tokens.tolist()]
    prefixes = list(dict.fromkeys(path[:depth] for depth in range(call.length + 1) for path in paths))
    place = {prefix: number for number, prefix in enumerate(prefixes)}
    owner = [next(k for k, path in enumerate(paths) if path[: len(prefix)] == prefix) for prefix in prefixes]
    child, sibling = (torch.full((len(prefixes),), -1) for _ in range(2))
    last: dict[tuple[int, ...], int] = {}
    for prefix in prefixes[1:]:
        parent, node = prefix[:-1], place[prefix]
        if parent in last:
            sibling[last[parent]] = node
        else:
            child[place[parent]] = node
        last[parent] = node
    rows = np.stack([call.target_probs[k, len(prefix)] for k, prefix in zip(owner, prefixes, strict=True)])
    tokens = torch.tensor([0, *(prefix[-1] for prefix in prefixes[1:])])
    return Tree(tokens, torch.from_numpy(rows), child, sibling)


def build_sglang(call: Call, dtype: torch.dtype, drafted: bool) -> Arguments:
    mine, nodes = tree_of(call), call.length + 1
    batch = rectangle(call)
    more = len(mine.tokens) - nodes
    steps = pad(torch.tensor([*range(1, nodes), -1]), (0, more), value=-1)
    target = [pad(request.target, (0, 0, 0, more)) for request in batch[:-1]]
    draft = [pad(request.draft if drafted else request.draft * 0, (0, 0, 0, more + 1)) for request in batch]
    shape = (3, nodes + more)
    return {
        "predicts": torch.zeros(3 * shape[1], dtype=torch.int32),
        "accept_index": torch.full((3, nodes), -1, dtype=torch.int32),
        "accept_token_num": torch.zeros(3, dtype=torch.int32),
        "candidates": torch.stack(
            [*(pad(pad(request.tokens, (1, 0)), (0, more)) for request in batch[:-1]), mine.tokens]
        ),
        "retrive_index": torch.arange(3 * shape[1]).reshape(shape),
        "retrive_next_token": torch.stack([steps, steps, mine.child]),
        "retrive_next_sibling": torch.stack([steps * 0 - 1, steps * 0 - 1, mine.sibling]),
        "uniform_samples": torch.rand(shape),
        "uniform_samples_for_final_sampling": torch.rand(3),
        "target_probs": torch.stack([*target, mine.target]).to(dtype),
        "draft_probs": torch.stack(draft).to(dtype),
        "threshold_single": 1.0,
        "threshold_acc": 1.0,
        "deterministic": True,
    }


def build_sglang_tree(call: Call, dtype: torch.dtype) -> Arguments:
    return build_sglang(call, dtype, drafted=False)


def build_sglang_chain(call: Call, dtype: torch.dtype) -> Arguments:
    return build_sglang(call, dtype, drafted=True)


def read_sglang(result: Any, arguments: Arguments, call: Call) -> Sequence[int]:
    emitted = []
    for count, row in zip(arguments["accept_token_num"].tolist(), arguments["accept_index"], strict=True):
        places = row[: count + 1].tolist()
        if not 0 <= count <= call.length or min(places) < 0:
            raise InvalidResult(
                f"accept_token_num is {count} and accept_index {places}; want places of {count + 1} nodes"
            )
        emitted.append([int(arguments["predicts"][place]) for place in places])
    return audited(emitted, rectangle(call))


# ---------------------------------------------------------------------- EAGLE


def build_eagle(call: Call, dtype: torch.dtype) -> Arguments:
    root = np.zeros((call.paths, 1), dtype=np.int64)
    return {
        "logits": logits(torch.from_numpy(np.array(call.target_probs))).to(dtype),
        "candidates": torch.from_numpy(np.concatenate([root, call.tokens], axis=1)),
        "logits_processor": lambda ids, values: values,
    }


def read_eagle(result: Any, arguments: Arguments, call: Call) -> Sequence[int]:
    best, count, row = parts_of(result, 3, "eagle-posterior", "(best, accept_length, sample_p)")
    return [*call.tokens[int(best), : int(count)].tolist(), int(torch.multinomial(row.reshape(-1), 1))]


# ---------------------------------------------------------------------- gpt-fast

POSITION = 3


class CachedModel:
    """A model as gpt-fast calls it: `model(x [1, S], input_pos [S]) -> logits [1, S, V]`, with a cache of tokens.

    Args:
        law: from the tokens behind the first one to a row, or None where the model knows nothing (an even row).
        vocab, dtype: of its rows.
    """

    def __init__(self, law: Any, vocab: int, dtype: torch.dtype) -> None:
        self.law, self.vocab, self.dtype = law, vocab, dtype
        self.cache: dict[int, int] = {}

    def __call__(self, x: Tensor, input_pos: Tensor) -> Tensor:
        rows = []
        for token, position in zip(x.reshape(-1).tolist(), input_pos.reshape(-1).tolist(), strict=True):
            self.cache[position] = token
            behind = range(POSITION + 1, position + 1)
            if position < POSITION or any(place not in self.cache for place in behind):
                raise InvalidResult(
                    f"the model was asked at position {position}, and knows positions {sorted(self.cache)}; the first "
                    f"is {POSITION}"
                )
            row = self.law([self.cache[place] for place in behind])
            rows.append(torch.ones(self.vocab, dtype=torch.float64) if row is None else torch.from_numpy(row))
        return logits(torch.stack(rows))[None].to(self.dtype)


def build_gpt_fast(draft_law: Any, target_law: Any, length: int, vocab: int, dtype: torch.dtype) -> Arguments:
    return {
        "model": CachedModel(target_law, vocab, dtype),
        "draft_model": CachedModel(lambda w: draft_law(w) if len(w) < length else None, vocab, dtype),
        "cur_token": torch.tensor(0),
        "input_pos": POSITION,
        "speculate_k": length,
    }
