"""Calling conventions: how engines call their verification, so that the function they ship is audited as it is.

Each convention names its parameters, builds them from a `Call`, and reads the emitted tokens back. Where a signature
has a batch, the audited request is the second of two: the first is a companion with one-hot rows, whose answer needs
no coin, and code that answers every request from the first row is found. Shapes: B = 2 requests, L drafted tokens, N
drafted tokens of all requests, V vocabulary. Rows are handed over in the audit's number format.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...laws.replay import InvalidResult
from .adapters import Call, Foreign
from .generators import FIRST_SEED

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
ROUNDING = {"float64": 0.0, "float32": 2.0**-19, "bfloat16": 2.0**-5}
Build = Callable[[Call, torch.dtype], dict[str, Any]]
Read = Callable[[Any, dict[str, Any], Call], Sequence[int]]


@dataclass(frozen=True)
class Convention:
    """One way of being called.

    Attributes:
        name: as in `specbound audit --as NAME`.
        parameters: names of the arguments, all passed by name.
        returns: what comes back.
        assumes: what is taken for granted.
        build: from a `Call` and a number format to the arguments; read: from the result and the arguments (which may
            be buffers written into) to the emitted tokens.
        paths: "many" if it takes several drafted paths.
    """

    name: str
    parameters: tuple[str, ...]
    returns: str
    assumes: str
    build: Build
    read: Read
    paths: Literal["single", "many"] = "single"

    @property
    def signature(self) -> str:
        """The call in one line."""
        return f"({', '.join(self.parameters)}) -> {self.returns}"


def subject(function: Callable[..., Any], name: str, dtype: str = "float32") -> Foreign:
    """The function as a subject of the audit, called by a convention.

    Raises:
        ValueError: for an unknown convention or number format, or if the parameters are not those of the convention.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"convention is {name!r}; known are {', '.join(CONVENTIONS)}, and ours")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; want one of {', '.join(DTYPES)}")
    convention = CONVENTIONS[name]
    _check_parameters(function, convention)
    handed: list[dict[str, Any]] = []

    def arguments(call: Call) -> Mapping[str, Any]:
        handed[:] = [convention.build(call, DTYPES[dtype])]
        return handed[0]

    def emitted(result: Any, call: Call) -> Sequence[int]:
        return convention.read(result, handed[0], call)

    return Foreign(function, arguments, emitted, convention.paths, ROUNDING[dtype], f"Called as {name}, in {dtype}.")


def _check_parameters(function: Callable[..., Any], convention: Convention) -> None:
    taken = inspect.signature(function).parameters
    if any(about.kind is about.VAR_KEYWORD for about in taken.values()):
        return
    needed = [name for name, about in taken.items() if about.default is about.empty]
    wrong = [name for name in convention.parameters if name not in taken] + [
        name for name in needed if name not in convention.parameters
    ]
    if wrong:
        raise ValueError(
            f"the function takes ({', '.join(taken)}), {convention.name} passes ({', '.join(convention.parameters)}): "
            f"{', '.join(wrong)} is not on both sides"
        )


def _rows(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array(values)).to(dtype)


def _one_hot(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    rows = torch.zeros(shape, dtype=dtype)
    rows[..., 0] = 1
    return rows


def _beside(mine: Tensor, other: Tensor) -> Tensor:
    """[2, ...]: the companion first, the audited request second."""
    return torch.stack([other.to(mine.dtype), mine])


def _shaped(value: Any, shape: tuple[int, ...], convention: str) -> Tensor:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InvalidResult(f"it returned {got}; {convention} wants a tensor of shape {shape}")
    return value


def _companion(emitted: Sequence[int], length: int) -> None:
    if list(emitted) != [0] * (length + 1):
        raise InvalidResult(
            f"beside the audited request stands one whose rows are one-hot at token 0 with {length} drafted; it must "
            f"emit {[0] * (length + 1)}, and emitted {list(emitted)}"
        )


def _unpadded(row: Tensor) -> list[int]:
    return [token for token in row.tolist() if token != -1]


# ---------------------------------------------------------------------- transformers


def _build_transformers(call: Call, dtype: torch.dtype) -> dict[str, Any]:
    context = torch.zeros(1, 1, dtype=torch.int64)
    return {
        "candidate_input_ids": torch.cat([context, torch.from_numpy(call.tokens[:1].copy())], dim=1),
        "candidate_logits": _rows(call.draft_logits[:1], dtype),
        "candidate_length": call.length,
        "new_logits": _rows(call.target_logits[:1], dtype),
    }


def _read_transformers(result: Any, arguments: dict[str, Any], call: Call) -> Sequence[int]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise InvalidResult(f"it returned {type(result).__name__}; transformers wants (tokens [1, n], matches)")
    return [int(token) for token in result[0].reshape(-1).tolist()]


# ---------------------------------------------------------------------- vLLM V1


def _build_vllm(call: Call, dtype: torch.dtype) -> dict[str, Any]:
    vocab, length = call.vocab, call.length
    target = _rows(call.target_probs[0], dtype)
    bonus = torch.multinomial(target[length], 1)
    return {
        "draft_token_ids": torch.cat([torch.zeros(1, dtype=torch.int32), torch.from_numpy(call.tokens[0]).int()]),
        "num_draft_tokens": [1, length],
        "max_spec_len": length,
        "cu_num_draft_tokens": torch.tensor([1, 1 + length], dtype=torch.int32),
        "draft_probs": torch.cat([_one_hot((1, vocab), dtype), _rows(call.draft_probs[0], dtype)]),
        "target_probs": torch.cat([_one_hot((1, vocab), dtype), target[:length]]),
        "bonus_token_ids": torch.stack([torch.zeros(1, dtype=torch.int32), bonus.int()]),
        "sampling_metadata": SimpleNamespace(
            all_greedy=False, all_random=True, temperature=torch.ones(2), generators={}, top_k=None, top_p=None
        ),
    }


def _read_vllm(result: Any, arguments: dict[str, Any], call: Call) -> Sequence[int]:
    emitted = _shaped(result, (2, call.length + 1), "vllm-v1")
    _companion(_unpadded(emitted[0]), 1)
    return _unpadded(emitted[1])


# ---------------------------------------------------------------------- flashinfer, TensorRT-LLM


def _build_rectangle(call: Call, dtype: torch.dtype) -> dict[str, Any]:
    vocab, length = call.vocab, call.length
    drafted = torch.from_numpy(call.tokens[0]).int()
    return {
        "draft_probs": _beside(_rows(call.draft_probs[0], dtype), _one_hot((length, vocab), dtype)),
        "draft_token_ids": _beside(drafted, torch.zeros_like(drafted)),
        "target_probs": _beside(_rows(call.target_probs[0], dtype), _one_hot((length + 1, vocab), dtype)),
    }


def _build_flashinfer(call: Call, dtype: torch.dtype) -> dict[str, Any]:
    counters = {
        name: torch.full((2,), 5, dtype=torch.int32)
        for name in ("maybe_output_accepted_token_num", "maybe_output_emitted_draft_token_num")
    }
    return {**_build_rectangle(call, dtype), **counters, "deterministic": True, "generator": None}


def _read_flashinfer(result: Any, arguments: dict[str, Any], call: Call) -> Sequence[int]:
    if not isinstance(result, tuple) or len(result) != 3:
        raise InvalidResult(f"it returned {type(result).__name__}; flashinfer-chain wants (ids, accepted, emitted)")
    ids = _shaped(result[0], (2, call.length + 1), "flashinfer-chain")
    mine = _unpadded(ids[1])
    _companion(_unpadded(ids[0]), call.length)
    if int(result[2][1]) != 5 + len(mine) - 1:
        raise InvalidResult(
            f"the counter of emitted draft tokens went from 5 to {int(result[2][1])} where {len(mine) - 1} were "
            "emitted; flashinfer-chain adds to the counters that it is given"
        )
    return mine


def _build_tensorrt(call: Call, dtype: torch.dtype) -> dict[str, Any]:
    return {**_build_rectangle(call, dtype), "deterministic": True, "seed": FIRST_SEED, "offset": 0}


def _read_tensorrt(result: Any, arguments: dict[str, Any], call: Call) -> Sequence[int]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise InvalidResult(f"it returned {type(result).__name__}; tensorrt-llm wants (tokens [B, K+1], counts [B])")
    tokens = _shaped(result[0], (2, call.length + 1), "tensorrt-llm")
    _companion(tokens[0, : int(result[1][0])].tolist(), call.length)
    return [int(token) for token in tokens[1, : int(result[1][1])].tolist()]


# ---------------------------------------------------------------------- SGLang


def _build_sglang(call: Call, dtype: torch.dtype, drafted: bool) -> dict[str, Any]:
    vocab, length = call.vocab, call.length
    nodes = length + 1
    chain = torch.cat([torch.zeros(1, dtype=torch.int64), torch.from_numpy(call.tokens[0].copy())])
    step = torch.tensor([*range(1, nodes), -1])
    draft = torch.zeros(nodes, vocab, dtype=dtype)
    if drafted:
        draft[:length] = _rows(call.draft_probs[0], dtype)
    return {
        "predicts": torch.zeros(2 * nodes, dtype=torch.int32),
        "accept_index": torch.full((2, nodes), -1, dtype=torch.int32),
        "accept_token_num": torch.zeros(2, dtype=torch.int32),
        "candidates": _beside(chain, torch.zeros_like(chain)),
        "retrive_index": torch.arange(2 * nodes).reshape(2, nodes),
        "retrive_next_token": torch.stack([step, step]),
        "retrive_next_sibling": torch.full((2, nodes), -1),
        "uniform_samples": torch.rand(2, nodes),
        "uniform_samples_for_final_sampling": torch.rand(2),
        "target_probs": _beside(_rows(call.target_probs[0], dtype), _one_hot((nodes, vocab), dtype)),
        "draft_probs": _beside(draft, _one_hot((nodes, vocab), dtype) if drafted else torch.zeros_like(draft)),
        "threshold_single": 1.0,
        "threshold_acc": 1.0,
        "deterministic": True,
    }


def _read_sglang(result: Any, arguments: dict[str, Any], call: Call) -> Sequence[int]:
    emitted = []
    for row in range(2):
        count = int(arguments["accept_token_num"][row])
        places = arguments["accept_index"][row, : count + 1].tolist()
        if count > call.length or min(places) < 0:
            raise InvalidResult(
                f"accept_token_num is {count} and accept_index {places}; want places of {count + 1} nodes"
            )
        emitted.append([int(arguments["predicts"][place]) for place in places])
    _companion(emitted[0], call.length)
    return emitted[1]


# ---------------------------------------------------------------------- EAGLE


def _build_eagle(call: Call, dtype: torch.dtype) -> dict[str, Any]:
    root = np.zeros((call.paths, 1), dtype=np.int64)
    return {
        "logits": _rows(call.target_logits, dtype),
        "candidates": torch.from_numpy(np.concatenate([root, call.tokens], axis=1)),
        "logits_processor": lambda ids, logits: logits,
    }


def _read_eagle(result: Any, arguments: dict[str, Any], call: Call) -> Sequence[int]:
    if not isinstance(result, tuple) or len(result) != 3:
        raise InvalidResult(
            f"it returned {type(result).__name__}; eagle-posterior wants (best, accept_length, sample_p)"
        )
    best, count, row = int(result[0]), int(result[1]), result[2].reshape(-1)
    return [*call.tokens[best, :count].tolist(), int(torch.multinomial(row, 1))]


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention(
            "transformers",
            ("candidate_input_ids", "candidate_logits", "candidate_length", "new_logits"),
            "(tokens [1, n], matches)",
            "One request with one context token; logits are logarithms of the rows; the result holds kept tokens and "
            "the one behind them.",
            _build_transformers,
            _read_transformers,
        ),
        Convention(
            "vllm-v1",
            (
                "draft_token_ids",
                "num_draft_tokens",
                "max_spec_len",
                "cu_num_draft_tokens",
                "draft_probs",
                "target_probs",
                "bonus_token_ids",
                "sampling_metadata",
            ),
            "int [B, max_spec_len + 1], -1 padded",
            "A ragged batch of two requests (1 and L drafted tokens), rows flattened; the caller has drawn the bonus "
            "token from the row behind the draft; all requests are random, at temperature 1, without own generators.",
            _build_vllm,
            _read_vllm,
        ),
        Convention(
            "sglang-tree",
            (
                "predicts",
                "accept_index",
                "accept_token_num",
                "candidates",
                "retrive_index",
                "retrive_next_token",
                "retrive_next_sibling",
                "uniform_samples",
                "uniform_samples_for_final_sampling",
                "target_probs",
                "draft_probs",
                "threshold_single",
                "threshold_acc",
                "deterministic",
            ),
            "None; predicts, accept_index and accept_token_num are written",
            "A chain given as a tree, its root first; draft_probs is a zeroed work buffer, so that a drafted token is "
            "a deterministic child; coins come in as arguments; thresholds are 1.",
            lambda call, dtype: _build_sglang(call, dtype, drafted=False),
            _read_sglang,
        ),
        Convention(
            "sglang-chain",
            (
                "predicts",
                "accept_index",
                "accept_token_num",
                "candidates",
                "retrive_index",
                "retrive_next_token",
                "retrive_next_sibling",
                "uniform_samples",
                "uniform_samples_for_final_sampling",
                "target_probs",
                "draft_probs",
                "threshold_single",
                "threshold_acc",
                "deterministic",
            ),
            "None; predicts, accept_index and accept_token_num are written",
            "As sglang-tree, but draft_probs holds the rows that the drafted tokens were drawn from.",
            lambda call, dtype: _build_sglang(call, dtype, drafted=True),
            _read_sglang,
        ),
        Convention(
            "flashinfer-chain",
            (
                "draft_probs",
                "draft_token_ids",
                "target_probs",
                "maybe_output_accepted_token_num",
                "maybe_output_emitted_draft_token_num",
                "deterministic",
                "generator",
            ),
            "(ids [B, n+1], -1 padded, accepted [B], emitted [B])",
            "Two requests of the same length; the counters start at 5 and are added to; the generator is None, so that "
            "torch's own is used.",
            _build_flashinfer,
            _read_flashinfer,
        ),
        Convention(
            "tensorrt-llm",
            ("draft_probs", "draft_token_ids", "target_probs", "deterministic", "seed", "offset"),
            "(tokens [B, K+1], counts [B])",
            "Two requests of the same length; the coins are those of a generator that the code seeds with the seed "
            "(plus a request's number, if it likes); counts includes the token behind the kept ones.",
            _build_tensorrt,
            _read_tensorrt,
        ),
        Convention(
            "eagle-posterior",
            ("logits", "candidates", "logits_processor"),
            "(best candidate, accept length, row to sample from)",
            "K candidate paths behind a root token, drafted tokens are deterministic children (their q is 1); the "
            "caller draws the token behind the kept ones from the row that comes back.",
            _build_eagle,
            _read_eagle,
            "many",
        ),
    )
}
OURS = "(batch, draws) -> Verdict"


def listing() -> dict[str, dict[str, str]]:
    """Names of all conventions with signature and assumptions, `ours` among them."""
    found = {name: {"signature": c.signature, "assumes": c.assumes} for name, c in CONVENTIONS.items()}
    return {**found, "ours": {"signature": OURS, "assumes": "All coins are asked of draws; see Bring your own."}}
