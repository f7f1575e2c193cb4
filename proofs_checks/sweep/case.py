"""One case of a sweep: build its instance, then evaluate its method on it. This is what the worker processes run.

    verifier                   exact law of the very code, by replay (or by interception for foreign scalar code), over
                               several calls if it is stateful: see `laws.judge`
    closed:NAME                acceptance length in closed form, `known_values`
    lossless-optimum, block-transport-optimum        certified, `multi_path`

A tree at temperature T has rows proportional to row^(1/T); tokens of probability 0 keep it.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from specbound.runtime import registry
from specbound.theory import multi_path
from specbound.theory.known_values import known_values
from specbound.theory.prefix_tree import Array, PrefixTree

from ..audit.run import TOLERANCE
from ..audit.subject import load as load_subject
from ..laws.judge import lossless, verdict
from ..laws.law import MAX_DRAFTS
from ..laws.replay import TooLarge
from .design import CLOSED, OPTIMA, Case, Design


def serve(settings: str) -> Callable[[Mapping[str, Any] | None], dict[str, Any] | None]:
    """What a worker process runs on each case: its measured columns. None is answered with None, once set up.

    Args:
        settings: JSON object with "design" (see `Design.to_dict`) and "nodes", the size limit.
    """
    _leave_with_parent()
    torch.set_num_threads(1)
    data = json.loads(settings)
    design, limit = Design.from_dict(data["design"]), data["nodes"]
    grow = _growing(design) if design.contexts else None

    @lru_cache(maxsize=4)
    def planted(context: int, length: int, top_k: int) -> PrefixTree:
        assert grow is not None
        return grow(context, length, top_k)

    def answer(fields: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if fields is None:
            return None
        case, start = Case(**fields), time.perf_counter()
        try:
            tree = instance(case, limit, planted)
            results = measure(tree, case.paths, case.method, design.tolerance)
        except TooLarge as error:
            return {"status": "too large", "error": str(error)}
        numbers = {name: value for name, value in results.items() if isinstance(value, int | float)}
        if odd := [name for name, number in numbers.items() if not np.isfinite(number)]:
            raise ValueError(f"{odd[0]} is {results[odd[0]]}")
        return {"nodes": tree.size, **results, "seconds": time.perf_counter() - start, "status": "done"}

    return answer


def instance(case: Case, limit: int, planted: Callable[[int, int, int], PrefixTree]) -> PrefixTree:
    """The tree of a case; `planted(context, length, top_k)` grows those of models.

    Raises:
        TooLarge: it has more than `limit` nodes.
    """
    if case.instance == "random":
        assert case.vocab is not None
        assert case.instance_seed is not None
        assert case.concentration is not None
        _check_nodes(sum(case.vocab**depth for depth in range(case.length + 1)), limit)
        tree = PrefixTree.random(case.vocab, case.length, case.instance_seed, case.concentration)
    else:
        assert case.context is not None
        assert case.top_k is not None
        tree = planted(case.context, case.length, case.top_k)
        _check_nodes(tree.size, limit)
    return tempered(tree, case.temperature, case.draft_temperature)


def _check_nodes(nodes: int, limit: int) -> None:
    if nodes > limit:
        raise TooLarge(f"the tree has {nodes} nodes, the limit is {limit}")


def tempered(tree: PrefixTree, target: float, draft: float) -> PrefixTree:
    """The tree with target rows proportional to row^(1/target) and draft rows to row^(1/draft); 1 leaves rows alone."""

    def power(values: Array, row: Array, temperature: float) -> Array:
        if temperature == 1:
            return values
        with np.errstate(divide="ignore"):
            logarithm = np.log(values) / temperature
        largest = np.full(row.max(initial=0) + 1, -np.inf)
        np.maximum.at(largest, row, logarithm)
        weight = np.exp(logarithm - largest[row])
        return weight / np.bincount(row, weight)[row]

    def conditional(values: Array, temperature: float) -> Array:
        return np.append(1.0, power(values[1:], tree.parent[1:], temperature))

    leaf = np.repeat(np.arange(len(tree.bonus)), tree.vocab)
    bonus = power(tree.bonus.ravel(), leaf, target).reshape(tree.bonus.shape)
    rows = conditional(tree.target, target), conditional(tree.draft, draft)
    return PrefixTree(tree.vocab, tree.length, tree.parent, tree.token, *rows, bonus, tree.symbols)


# ---------------------------------------------------------------------- methods


def measure(tree: PrefixTree, paths: int, method: str, tolerance: float) -> dict[str, Any]:
    """The measured columns of one method on one instance, `value` among them.

    Raises:
        TooLarge: there are too many K-tuples of drafts to enumerate.
        ValueError: the method does not exist, or has no value here.
        CertificateError: the optimum could not be certified.
    """
    if method in OPTIMA:
        solver = multi_path.lossless_optimum if method == "lossless-optimum" else multi_path.transport_optimum
        found = solver(tree, paths, tolerance)
        return {"value": found.value, "bound": found.bound, "gap": found.gap, "lossless": found.lossless}
    if method.startswith(CLOSED):
        known = {value.name: value for value in known_values(tree, paths)}.get(method.removeprefix(CLOSED))
        if known is None:
            raise ValueError(f"{method} has no value at draft length {tree.length}")
        entry = registry.of_closed_form(known.name)
        return {"value": known.value, "lossless": entry.lossless, "stateful": entry.stateful}
    subject = load_subject(method)
    count = 1 if subject.paths == "single" else paths
    tuples = int((tree.draft_joint[tree.leaves] > 0).sum()) ** count
    if tuples > MAX_DRAFTS:
        raise TooLarge(f"{tuples} sets of {count} drafts, more than {MAX_DRAFTS} to enumerate")
    try:
        evidence = subject.evidence(tree, count, subject.stateful, thorough=False)
    except TooLarge as error:
        if error.acceptance_length is None:
            raise
        return {"value": error.acceptance_length, "verdict": "undecided", "stateful": True, "error": str(error)}
    distance = evidence.total_variation
    word = verdict([distance], [], TOLERANCE + evidence.resolution)
    facts = {"total_variation": distance, "verdict": word, "lossless": lossless(word), "stateful": evidence.stateful}
    return {"value": evidence.acceptance_length, **facts}


def default_methods() -> tuple[str, ...]:
    """Both optima, and every registered verifier that is lossless."""
    runnable = (entry.name for entry in registry.entries() if entry.lossless and not entry.needs)
    return (*OPTIMA, *runnable)


def check_methods(methods: tuple[str, ...]) -> None:
    """Raise ValueError unless every method exists (of a module only whether it is there: it is not run here)."""
    verifiers = [entry.name for entry in registry.entries() if not entry.needs]
    closed = [CLOSED + entry.closed_form for entry in registry.entries() if entry.closed_form]
    known = [*OPTIMA, *verifiers, *closed]
    for method in methods:
        if method in known:
            continue
        if method.startswith(CLOSED) or ":" not in method:
            raise ValueError(f"method {method!r} is unknown; known are {', '.join(known)}, and package.module:function")
        module = method.partition(":")[0].partition(".")[0]
        if importlib.machinery.PathFinder.find_spec(module, [os.getcwd(), *sys.path]) is None:
            raise ValueError(f"method {method!r}: no module {module!r} found; start in its folder, or install it")


# ---------------------------------------------------------------------- the process


def _growing(design: Design) -> Callable[[int, int, int], PrefixTree]:
    """Load the pair of models; the function grows the tree of a context."""
    from transformers.utils import logging

    from specbound import shipped_pair
    from specbound.runtime.models import load_pair

    from ..laws.model_trees import from_models

    logging.disable_progress_bar()
    pair = load_pair(design.target or shipped_pair.TARGET, design.draft or shipped_pair.DRAFT, device=design.device)

    def grow(context: int, length: int, top_k: int) -> PrefixTree:
        tokens = pair.tokenizer(design.contexts[context], return_tensors="pt")["input_ids"][0]
        return from_models(pair.target, pair.draft, tokens, length=length, top_k=top_k)

    return grow


def _leave_with_parent() -> None:
    """End this process soon after the one that started it: a killed sweep must not leave cases running."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
