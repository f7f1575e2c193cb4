"""Calling conventions: how engines call their verification, so that the function they ship is audited as it is.

Each convention names its parameters, builds them from a `Call`, and reads the emitted tokens back (see `engines`).
Rows are handed over in the audit's number format (see `formats`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from . import engines
from .adapters import Call, Foreign
from .drafting import DraftAndVerify
from .engines import Arguments
from .formats import BITS, BOUND, DTYPES, representable_row

Build = Callable[[Call, torch.dtype], Arguments]
Read = Callable[[Any, Arguments, Call], Sequence[int]]


@dataclass(frozen=True)
class Convention:
    """One way of being called.

    Attributes:
        name: as in `specbound audit --as NAME`.
        parameters: names of the arguments, all passed by name.
        returns: what comes back.
        assumes: what is taken for granted.
        build: from a `Call` and a number format to the arguments; read: from the result and the arguments (which may
            be buffers written into) to the emitted tokens. None where the function drafts itself.
        paths: "many" if it takes several drafted paths.
        logits: whether the rows are handed over as logits.
        families: families of instances that every audit must hold, because they are passed in a way of their own.
    """

    name: str
    parameters: tuple[str, ...]
    returns: str
    assumes: str
    build: Build | None
    read: Read | None
    paths: Literal["single", "many"] = "single"
    logits: bool = False
    families: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        """The call in one line."""
        return f"({', '.join(self.parameters)}) -> {self.returns}"


def subject(function: Callable[..., Any], name: str, dtype: str = "float32") -> Foreign | DraftAndVerify:
    """The function as a subject of the audit, called by a convention.

    Raises:
        ValueError: for an unknown convention or number format, or if the parameters are not those of the convention.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"convention is {name!r}; known are {', '.join(CONVENTIONS)}, and ours")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; want one of {', '.join(DTYPES)}")
    convention, kind = CONVENTIONS[name], DTYPES[dtype]
    _check_parameters(function, convention)
    note = f"Called as {name}, with rows in {dtype}; {BOUND} 2^-{BITS[kind]} counts as rounding."
    row = partial(representable_row, dtype=kind, logits=convention.logits)
    precise = None if dtype == "float64" else partial(subject, function, name, "float64")
    if convention.build is None or convention.read is None:
        return _drafts_itself(function, kind, note, row, precise)
    build, read = convention.build, convention.read
    handed: list[Arguments] = []

    def arguments(call: Call) -> Mapping[str, Any]:
        handed[:] = [build(call, kind)]
        return handed[0]

    def emitted(result: Any, call: Call) -> Sequence[int]:
        return read(result, handed[0], call)

    return Foreign(function, arguments, emitted, convention.paths, kind, row, precise, convention.families, note=note)


def _drafts_itself(
    function: Callable[..., Any], dtype: torch.dtype, note: str, row: Any, precise: Any
) -> DraftAndVerify:
    def called(draft_law: Any, target_law: Any, length: int, vocab: int) -> Any:
        emitted = function(**engines.build_gpt_fast(draft_law, target_law, length, vocab, dtype))
        return engines.tensor_of(emitted, tuple(getattr(emitted, "shape", ())), "gpt-fast").reshape(-1)

    called.__module__, called.__qualname__ = function.__module__, getattr(function, "__qualname__", str(function))
    return DraftAndVerify(called, "numpy", "single", dtype, row, precise, note)


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


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SGLANG = _words("""predicts accept_index accept_token_num candidates retrive_index retrive_next_token
    retrive_next_sibling uniform_samples uniform_samples_for_final_sampling target_probs draft_probs threshold_single
    threshold_acc deterministic""")
SGLANG_WRITES = "None; predicts, accept_index and accept_token_num are written"
POINT_MASSES = ("one-hot draft",)

CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention(
            "transformers",
            ("candidate_input_ids", "candidate_logits", "candidate_length", "new_logits"),
            "(tokens [1, n], matches)",
            "One request with one context token. Logits are logarithms of the rows relative to the largest entry, so "
            "that a softmax is needed. The result holds the kept tokens and the one behind them.",
            engines.build_transformers,
            engines.read_transformers,
            logits=True,
        ),
        Convention(
            "vllm-v1",
            _words("""draft_token_ids num_draft_tokens max_spec_len cu_num_draft_tokens draft_probs target_probs
                bonus_token_ids sampling_metadata"""),
            "int [B, max_spec_len + 1], -1 padded",
            "A ragged batch of three requests (1, 0 and L drafted tokens), rows flattened. The caller has drawn the "
            "bonus token from the row behind the draft. All requests are random, at temperature 1, without own "
            "generators. Where every drafted token has draft probability 1, draft_probs is None.",
            engines.build_vllm,
            engines.read_vllm,
            families=POINT_MASSES,
        ),
        Convention(
            "vllm-mrv2",
            _words("""target_logits draft_logits draft_sampled cu_num_logits pos idx_mapping expanded_idx_mapping
                expanded_local_pos temperature seed num_speculative_steps synthetic_conditional_rates use_fp64
                use_block_verification"""),
            "(sampled [B, L+1], num_sampled [B])",
            "A ragged batch of three requests (1, 0 and L drafted tokens); cu_num_logits starts at 0 and counts L+1 "
            "rows a request. draft_sampled holds the last sampled token in front of the drafted ones. draft_logits, "
            "temperature and seed belong to request states, which idx_mapping names; they are not in the order of the "
            "batch. Every row has a pos of its own; the coins are those of streams that the code starts from seed and "
            "pos. Entries of sampled behind num_sampled are not read. Where every drafted token has draft probability "
            "1, draft_logits is None. Synthetic rates and block verification are off.",
            engines.build_mrv2,
            engines.read_mrv2,
            logits=True,
            families=POINT_MASSES,
        ),
        Convention(
            "sglang-tree",
            SGLANG,
            SGLANG_WRITES,
            "The drafted paths merged into a tree, the root first, nodes level by level, siblings in the order drawn. "
            "draft_probs is a zeroed work buffer: a drafted token is a deterministic child. Coins come in as "
            "arguments; thresholds are 1. Two more requests are chains whose rows are one-hot, padded with nodes that "
            "nothing points to.",
            engines.build_sglang_tree,
            engines.read_sglang,
            "many",
        ),
        Convention(
            "sglang-chain",
            SGLANG,
            SGLANG_WRITES,
            "As sglang-tree with one path, but draft_probs holds the rows that the drafted tokens were drawn from.",
            engines.build_sglang_chain,
            engines.read_sglang,
        ),
        Convention(
            "flashinfer-chain",
            ("draft_probs", "draft_token_ids", "target_probs", *engines.COUNTERS, "deterministic", "generator"),
            "(ids [B, n+1], -1 padded, accepted [B], emitted [B])",
            "Three requests of the same length. The counters start at 5 and are added to. The generator is None, so "
            "that torch's own is used.",
            engines.build_flashinfer,
            engines.read_flashinfer,
        ),
        Convention(
            "tensorrt-llm",
            ("draft_probs", "draft_token_ids", "target_probs", "deterministic", "seed", "offset"),
            "(tokens [B, K+1], counts [B])",
            "Three requests of the same length. The coins are those of a generator that the code seeds with the seed "
            "(plus a request's number, if it likes). counts includes the token behind the kept ones.",
            engines.build_tensorrt,
            engines.read_tensorrt,
        ),
        Convention(
            "gpt-fast",
            ("model", "draft_model", "cur_token", "input_pos", "speculate_k"),
            "tokens [n]",
            "It drafts and verifies; all its coins are enumerated together. A model is called as model(x [1, S], "
            "input_pos [S]) and gives logits [1, S, V] that depend on the tokens seen at all positions up to each, as "
            "a cache does. cur_token stands at position 3, the first. The result holds the kept tokens and the one "
            "behind them.",
            None,
            None,
            logits=True,
        ),
        Convention(
            "eagle-posterior",
            ("logits", "candidates", "logits_processor"),
            "(best candidate, accept length, row to sample from)",
            "K candidate paths behind a root token; drafted tokens are deterministic children (their q is 1). Logits "
            "are logarithms of the rows relative to the largest entry. The caller draws the token behind the kept "
            "ones from the row that comes back.",
            engines.build_eagle,
            engines.read_eagle,
            "many",
            logits=True,
        ),
    )
}
OURS = "(batch, draws) -> Verdict"


def listing() -> dict[str, dict[str, str]]:
    """Names of all conventions with signature and assumptions, `ours` among them."""
    found = {name: {"signature": c.signature, "assumes": c.assumes} for name, c in CONVENTIONS.items()}
    return {**found, "ours": {"signature": OURS, "assumes": "All coins are asked of draws; see Bring your own."}}
