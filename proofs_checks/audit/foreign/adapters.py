"""Foreign verifiers: how our instance becomes a function's arguments, and its result the emitted tokens.

The function is called unchanged, one request at a time. An adapter says which parameter takes what, in which
layout; `foreign` builds it from the parameters' names. The exact law of the function is then found by intercepting
its randomness.

Letters: L draft length, K paths, V vocabulary size.
"""

from __future__ import annotations

import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch

from specbound.theory.prefix_tree import Prefix, PrefixTree

from ...laws.emissions import law_of_emissions
from ...laws.law import Law, batch_of
from ...laws.replay import InvalidResult
from ..hidden_state import look_for_state
from .formats import BITS, BOUND, coarser, name_of, representable, rounding
from .interception import Interception, Route

Kind = Literal["list", "numpy", "torch"]
Result = Callable[[Any, "Call"], Sequence[int]]
MAX_CALLS = 50_000
MAX_ENTRIES = 100_000


@dataclass(frozen=True)
class Call:
    """The inputs of one call of a verifier, in float64.

    Attributes:
        tokens [K, L] int64; draft_probs [K, L, V]; target_probs [K, L+1, V]: as in `runtime.Batch`, without B.
    """

    tokens: np.ndarray
    draft_probs: np.ndarray
    target_probs: np.ndarray

    @cached_property
    def draft_logits(self) -> np.ndarray:
        """Logarithms of `draft_probs`, -inf for zeros."""
        return _logarithm(self.draft_probs)

    @cached_property
    def target_logits(self) -> np.ndarray:
        """Logarithms of `target_probs`, -inf for zeros."""
        return _logarithm(self.target_probs)

    @property
    def paths(self) -> int:
        """K."""
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """L."""
        return self.tokens.shape[1]

    @property
    def vocab(self) -> int:
        """V."""
        return self.draft_probs.shape[-1]


def _logarithm(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(values)


@dataclass(frozen=True)
class Foreign:
    """A function that verifies one request, and how to call it.

    Attributes:
        function: the code under audit, called as `function(**arguments(call))`.
        arguments: from a `Call` to its keyword arguments.
        emitted: from its result (and the `Call`) to the emitted tokens: those kept and the one that follows them.
        paths: "single" if it takes one drafted path, "many" if K >= 1.
        dtype: number format of its rows.
        row: from a row to the one that this format can hold; None in float64.
        precise: makes the same subject with rows in float64; None if these are.
        families: families of instances that every audit must hold.
        note: what a reader of its law has to know.
    """

    function: Callable[..., Any]
    arguments: Callable[[Call], Mapping[str, Any]]
    emitted: Result
    paths: Literal["single", "many"] = "single"
    dtype: torch.dtype = torch.float64
    row: Callable[[np.ndarray], np.ndarray] | None = None
    precise: Callable[[], Any] | None = None
    families: tuple[str, ...] = ()
    note: str = ""

    def handed(self, tree: PrefixTree) -> PrefixTree:
        """The instance as the function gets it, in float64."""
        return representable(tree, self.row) if self.row else tree.as_float()

    def __call__(self, call: Call) -> Prefix:
        """The emitted block for one call; random.

        Raises:
            InvalidResult: if it is not 1 to L+1 tokens in 0..V-1.
        """
        return self.read(self.function(**self.arguments(call)), call)

    def read(self, result: Any, call: Call) -> Prefix:
        """The emitted block of a result, checked."""
        block = tuple(int(token) for token in self.emitted(result, call))
        if not 1 <= len(block) <= call.length + 1:
            raise InvalidResult(f"it emitted {len(block)} tokens, {list(block)}; want 1 to L+1 = {call.length + 1}")
        if min(block) < 0 or max(block) >= call.vocab:
            raise InvalidResult(f"it emitted {list(block)}; tokens are 0..{call.vocab - 1}")
        return block


_PARAMETERS = {
    "tokens": "tokens draft_tokens draft_token_ids draft_ids candidate_tokens candidate_input_ids x drafts",
    "draft_probs": "draft_probs draft_probabilities draft_dist q q_probs draft_p candidate_probs proposal_probs",
    "target_probs": "target_probs target_probabilities target_dist p p_probs target_p model_probs",
    "draft_logits": "draft_logits candidate_logits q_logits assistant_logits",
    "target_logits": "target_logits new_logits p_logits model_logits",
    "length": "length draft_length candidate_length gamma num_draft_tokens num_speculative_tokens",
    "vocab": "vocab vocab_size n_vocab",
    "paths": "paths num_paths n_paths num_drafts n_drafts",
    "rng": "rng generator random_state",
}
PARAMETERS = {noun: tuple(names.split()) for noun, names in _PARAMETERS.items()}
ARRAYS = ("tokens", "draft_probs", "target_probs", "draft_logits", "target_logits")


def foreign(
    function: Callable[..., Any],
    *,
    kind: Kind | None = None,
    batched: bool = False,
    paths: Literal["single", "many"] | None = None,
    emitted: Result | None = None,
    **parameters: str,
) -> Foreign:
    """An adapter built from the names of the function's parameters.

    Args:
        kind: what arrays the function takes; default: that of its annotations, or "torch" if its code names
            torch, else "numpy".
        batched: put a batch axis of size 1 before the others.
        paths: "many" keeps the axis K; default: "many" if the function has a parameter for K, else "single".
        emitted: from the result and the `Call` to the emitted tokens; default `emitted_tokens`.
        parameters: noun = parameter name, where the name is not one of `PARAMETERS`: nouns are tokens, draft_probs,
            target_probs, draft_logits, target_logits, length, vocab, paths, rng.

    Raises:
        ValueError: if a required parameter is of unknown meaning, or no parameter takes the drafted tokens.
    """
    signature = inspect.signature(function)
    nouns = {parameter: noun for noun, names in PARAMETERS.items() for parameter in names}
    for noun, parameter in parameters.items():
        if noun not in PARAMETERS or parameter not in signature.parameters:
            raise ValueError(f"{noun}={parameter!r}; want one of {', '.join(PARAMETERS)} = a parameter of the function")
        nouns[parameter] = noun
    taken = {name: nouns[name] for name in signature.parameters if name in nouns}
    for name, about in signature.parameters.items():
        required = about.default is about.empty and about.kind not in (about.VAR_POSITIONAL, about.VAR_KEYWORD)
        if required and name not in taken:
            raise ValueError(
                f"parameter {name!r} of {function.__name__} is of unknown meaning; write foreign(function, "
                f"noun={name!r}) with noun one of {', '.join(PARAMETERS)}, or give an adapter (class Foreign)"
            )
    if "tokens" not in taken.values():
        raise ValueError(f"no parameter of {function.__name__}{signature} takes the drafted tokens; want an adapter")
    kind = kind or _kind(function)
    paths = paths or ("many" if "paths" in taken.values() else "single")

    def arguments(call: Call) -> dict[str, Any]:
        return {name: _argument(call, noun, kind, batched, paths) for name, noun in taken.items()}

    return Foreign(function, arguments, emitted or emitted_tokens, paths)


def _kind(function: Callable[..., Any]) -> Kind:
    annotations = " ".join(str(note) for note in getattr(function, "__annotations__", {}).values())
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    if "Tensor" in annotations or "torch" in names:
        return "torch"
    return "list" if "list[" in annotations or "Sequence[" in annotations else "numpy"


def _argument(call: Call, noun: str, kind: Kind, batched: bool, paths: str | None) -> Any:
    if noun == "rng":
        return np.random.default_rng()
    if noun not in ARRAYS:
        return getattr(call, noun)
    array = getattr(call, noun) if paths == "many" else getattr(call, noun)[0]
    array = np.array(array[None] if batched else array)
    return torch.from_numpy(array) if kind == "torch" else array.tolist() if kind == "list" else array


def emitted_tokens(result: Any, call: Call) -> list[int]:
    """The emitted tokens of the usual results: one sequence of tokens (padding of -1 dropped), a pair (sequence,
    anything), or a pair (accepted count, token) of one drafted path."""
    if isinstance(result, tuple) and len(result) == 2:
        first, second = result
        if np.ndim(_plain(first)) == 0:
            return [*call.tokens[0, : int(first)].tolist(), int(second)]
        result = first
    if isinstance(result, Sized) and not isinstance(result, torch.Tensor) and len(result) > MAX_ENTRIES:
        raise InvalidResult(f"it returned {len(result)} entries; want 1 to L+1 = {call.length + 1} tokens")
    return [int(token) for token in np.ravel(_plain(result)) if token != -1]


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def hugging_face(function: Callable[..., Any]) -> Foreign:
    """transformers' `_speculative_sampling`: logits with a batch axis, (tokens [1, n], matches) back."""
    return foreign(function, kind="torch", batched=True)


KNOWN: dict[str, Callable[[Callable[..., Any]], Foreign]] = {
    "transformers.generation.utils:_speculative_sampling": hugging_face,
}


def call_of(tree: PrefixTree, leaves: Sequence[int]) -> Call:
    """The call whose K drafts are the given leaf nodes."""
    batch = batch_of(tree, np.array([leaves]))
    return Call(batch.tokens[0].numpy(), batch.draft_probs[0].numpy(), batch.target_probs[0].numpy())


@dataclass(frozen=True)
class Enumerated:
    """An exact law, and what limits it.

    Attributes:
        law: of one call; wanted: the target's law of the rows that were handed over.
        resolution: total variation below which it says nothing (see `laws.judge.Evidence`).
        notes: what a reader has to know.
    """

    law: Law
    wanted: dict[Prefix, float]
    resolution: float
    notes: tuple[str, ...]


def foreign_law(code: Foreign, tree: PrefixTree, paths: int = 1) -> Law:
    """The exact law of foreign code: every K-tuple of drafts, and every outcome of its intercepted randomness.

    The acceptance length counts the emitted tokens but one.

    Raises:
        NotExact, InvalidResult, ValueError: see `enumerated`.
    """
    return enumerated(code, tree, paths).law


def enumerated(code: Foreign, tree: PrefixTree, paths: int = 1, thorough: bool = False) -> Enumerated:
    """The exact law of foreign code by its symbolic random numbers, or, where these are refused, by concrete coins.

    Args:
        thorough: also ask some calls again in another order, for state that outlives a call.

    Raises:
        NotExact: if its randomness cannot be enumerated.
        OutlivesCall: if the same call has another law when it is asked again.
        InvalidResult: if it returns something that is not a block of tokens.
        ValueError: if there are more than 50000 K-tuples of drafts.
    """
    tree = code.handed(tree)
    tuples = _tuples(tree, paths)
    with Interception(code.function) as interception:
        calls = [partial(code, call_of(tree, leaves)) for leaves in tuples]
        laws = interception.by_either_route(lambda law: _laws(interception, law, calls, thorough), tree.vocab)
    resolution, notes = stated(interception, tree, code.dtype, code.note)
    return Enumerated(_emitted(tree, tuples, laws), wanted_law(tree), resolution, notes)


def symbolic_law(interception: Interception, code: Foreign, tree: PrefixTree, paths: int) -> Law:
    """The exact law of a program of ours under an interception that is in force already.

    Raises:
        NotExact, InvalidResult, ValueError: see `enumerated`.
    """
    tree = code.handed(tree)
    tuples = _tuples(tree, paths)
    laws = [interception.symbolic(partial(code, call_of(tree, leaves))) for leaves in tuples]
    return _emitted(tree, tuples, laws)


def _tuples(tree: PrefixTree, paths: int) -> list[tuple[int, ...]]:
    """All K-tuples of leaves that can be drafted."""
    drafted = [leaf for leaf in range(tree.leaves.start, tree.leaves.stop) if tree.draft_joint[leaf] > 0]
    if len(drafted) ** paths > MAX_CALLS:
        raise ValueError(f"{len(drafted)} drafts and {paths} paths are too many to enumerate; use a smaller tree")
    return list(itertools.product(drafted, repeat=paths))


def _emitted(tree: PrefixTree, tuples: list[tuple[int, ...]], laws: list[dict[Prefix, float]]) -> Law:
    emissions: dict[Prefix, float] = defaultdict(float)
    for leaves, law in zip(tuples, laws, strict=True):
        weight = float(np.prod(tree.draft_joint[list(leaves)]))
        for block, probability in law.items():
            emissions[block] += weight * probability
    return law_of_emissions(tree, emissions, sum(map(len, laws)))


def stated(
    interception: Interception, tree: PrefixTree, dtype: torch.dtype, note: str
) -> tuple[float, tuple[str, ...]]:
    """(resolution, notes) of a law: rounding in the coarser format of rows and arithmetic, and what was left out."""
    seen = coarser(dtype, interception.arithmetic)
    notes = [note, *interception.notes]
    if seen != dtype:
        notes.append(f"It computes in {name_of(seen)}; {BOUND} 2^-{BITS[seen]} counts as rounding.")
    resolution = interception.resolution
    if seen != torch.float64:
        resolution += rounding(tree.vocab, tree.length, seen)
    return resolution, tuple(filter(None, notes))


def wanted_law(tree: PrefixTree) -> dict[Prefix, float]:
    """The target's law in floats."""
    return {block: float(probability) for block, probability in tree.target_law().items()}


def _laws(interception: Interception, law: Route, calls: list[Any], thorough: bool) -> list[dict[Prefix, float]]:
    def ask(numbers: Sequence[int]) -> list[Any]:
        return [law(calls[number]) for number in numbers]

    laws = ask(range(len(calls)))
    if thorough and interception.trees:
        interception.look_again()
    elif thorough:
        look_for_state(ask, len(calls), batches=False)
    return laws
