"""Decoding as a measurement: one prompt, one seed, one method; and what many such records say.

The methods of an experiment decode the same prompts with the same seeds, and their records are compared in pairs.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from specbound.runtime.decode import generate, perplexity
from specbound.runtime.lengths import AcceptanceHeadLength, LengthPolicy
from specbound.runtime.models import Pair
from specbound.runtime.registry import Verifier, get

from .energy import joules, used
from .experiment import Job, Record, Settings, Table, Workplace
from .joint_greedy import joint_greedy
from .tasks import Prompt

PLAIN, BEAM_SEARCH, JOINT_GREEDY = "plain", "beam search", "joint greedy"
ALONE = (PLAIN, BEAM_SEARCH, JOINT_GREEDY)
Quantity = Callable[[list[Record]], str]


@dataclass(frozen=True)
class Method:
    """How to decode: `verifier` "plain", "beam search" and "joint greedy" are the target alone.

    Attributes:
        label: in tables; verifier: a name of the registry, or an entry of one's own.
        options: settings of the verifier (`Verifier.configured`).
        length: L, or a policy; of joint greedy decoding k.
        beams: of a drafted beam search, 0 for samples; of the target's own search.
        sample_beams: the drafted beams are drawn.
    """

    label: str
    verifier: str | Verifier
    paths: int = 1
    length: int | LengthPolicy = 8
    options: dict[str, Any] = field(default_factory=dict)
    beams: int = 0
    sample_beams: bool = False


@dataclass(frozen=True)
class Temperatures:
    """Of target and draft; 0 is greedy, for both."""

    target: float
    draft: float

    @property
    def label(self) -> str:
        """One number if both are the same."""
        return f"{self.target:g}" if self.target == self.draft else f"{self.target:g}/{self.draft:g}"


def temperatures(settings: Settings, default: tuple[float, ...]) -> list[Temperatures]:
    """What the settings ask for."""
    if settings.target_temperature is None and settings.draft_temperature is None:
        return [Temperatures(value, value) for value in settings.temperatures or default]
    one = 1.0 if settings.target_temperature is None else settings.target_temperature
    return [Temperatures(one, one if settings.draft_temperature is None else settings.draft_temperature)]


@contextlib.contextmanager
def draft_at(pair: Pair, heat: Temperatures) -> Iterator[None]:
    """The draft's logits scaled so that the target's temperature gives it its own.

    Raises:
        ValueError: one of two different temperatures is 0.
    """
    if heat.target == heat.draft:
        yield
        return
    if min(heat.target, heat.draft) <= 0:
        raise ValueError(f"temperatures are {heat.label}; want positive ones where they differ")
    scale = heat.target / heat.draft
    handle = pair.draft.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits * scale)
    try:
        yield
    finally:
        handle.remove()


def decode_jobs(
    settings: Settings, methods: Iterable[Method], heats: Iterable[Temperatures], **extra: Any
) -> list[Job]:
    """Every prompt, seed and temperature by every method, the methods of one turn next to each other."""
    methods = list(methods)
    return [
        decode_job(settings, method, heat, prompt, seed, **extra)
        for heat in heats
        for seed in range(settings.seeds)
        for prompt in settings.prompts
        for method in methods
    ]


def decode_job(settings: Settings, method: Method, heat: Temperatures, prompt: Prompt, seed: int, **extra: Any) -> Job:
    """One generation; `extra` goes into the record as it is."""
    turn = f"{prompt.task}/{prompt.number}/{seed}/{heat.label}"
    about = {"task": prompt.task, "turn": turn, "temperature": heat.label, "method": method.label, **extra}

    def run(place: Workplace) -> Record:
        with draft_at(place.pair, heat):
            return about | decode(place.pair, method, heat.target, prompt.text, settings.new_tokens, seed)

    return Job(f"{turn}/{method.label}", run)


def decode(pair: Pair, method: Method, temperature: float, text: str, new_tokens: int, seed: int) -> Record:
    """Tokens, seconds and what became of the drafts, of one generation with a prompt cut to what the models read."""
    inputs = pair.tokenizer(text, return_tensors="pt", return_token_type_ids=False).to(pair.device)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    if temperature == 0:
        sampling = {"do_sample": False}
    sampling |= {"max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}
    energy, began = joules(), time.perf_counter()
    found = None
    if method.verifier in ALONE:
        torch.manual_seed(seed)
        sequences = _by_target(pair, method, inputs, sampling)
    else:
        entry = get(method.verifier) if isinstance(method.verifier, str) else method.verifier
        if isinstance(method.length, AcceptanceHeadLength):
            method.length.head.to(pair.device)
        output = generate(
            pair.target,
            pair.draft,
            **inputs,
            verifier=entry.configured(**method.options) if method.options else entry,
            paths=method.paths,
            length=method.length,
            beams=method.beams,
            sample_beams=method.sample_beams,
            generator=torch.Generator(pair.device).manual_seed(seed),
            **sampling,
        )
        sequences, found = output.sequences, output.statistics
    seconds = time.perf_counter() - began
    spent = used(energy, joules())
    prompt = inputs["input_ids"].shape[1]
    record: Record = {"tokens": sequences.shape[1] - prompt, "seconds": seconds}
    if spent is not None:
        record["joules"] = spent
    record["perplexity"] = float(perplexity(pair.target, sequences, prompt)[0])
    if found is None:
        return record | {"calls": record["tokens"], "block_efficiency": 1.0}
    return record | {
        "calls": found.calls,
        "block_efficiency": found.block_efficiency,
        "drafted": int(found.drafted[found.active].sum()) * found.paths,
        "discarded": found.discarded,
        "verify_seconds": found.seconds["verify"],
        "draft_seconds": found.seconds["draft"],
        "target_seconds": found.seconds["target"],
    }


def _by_target(pair: Pair, method: Method, inputs: Any, sampling: dict[str, Any]) -> torch.Tensor:
    """Sequences [1, T] of the target without a draft."""
    if method.verifier == JOINT_GREEDY:
        assert isinstance(method.length, int)
        return joint_greedy(
            pair.target, inputs["input_ids"], sampling["max_new_tokens"], method.length, max(1, method.beams)
        )
    beams = {"num_beams": method.beams} if method.verifier == BEAM_SEARCH else {}
    return pair.target.generate(**inputs, **sampling, **beams)


@dataclass(frozen=True)
class Mean:
    """A mean with the half width of its 95 % interval over n values; no interval for one value."""

    mean: float
    half_width: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if math.isnan(self.half_width) else f"{self.mean:.3f} +- {self.half_width:.3f}"


def mean(values: Iterable[float]) -> Mean:
    """Mean and interval (normal, over independent values)."""
    listed = list(values)
    if not listed:
        return Mean(math.nan, math.nan, 0)
    half = 1.96 * statistics.stdev(listed) / math.sqrt(len(listed)) if len(listed) > 1 else math.nan
    return Mean(statistics.fmean(listed), half, len(listed))


def paired(found: list[Record], method: str, base: str, quantity: str) -> Mean:
    """Mean over turns of the ratio of a quantity by two methods; "tokens_per_second" is made from the record."""
    by_turn: dict[str, dict[str, float]] = {}
    for record in found:
        by_turn.setdefault(record["turn"], {})[record["method"]] = value_of(record, quantity)
    return mean(turn[method] / turn[base] for turn in by_turn.values() if method in turn and base in turn)


def value_of(record: Record, quantity: str) -> float:
    """A field of the record, or tokens per second."""
    return record["tokens"] / record["seconds"] if quantity == "tokens_per_second" else float(record[quantity])


def groups(found: list[Record], *names: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records by the values of some fields, in the order of appearance."""
    parts: dict[tuple[Any, ...], list[Record]] = {}
    for record in found:
        parts.setdefault(tuple(record[name] for name in names), []).append(record)
    return parts


def method_table(
    found: list[Record], title: str, quantities: dict[str, Quantity], base: str = PLAIN, note: str = ""
) -> Table:
    """A row a temperature and method; a column a quantity, and speed with its paired ratio to the method `base`."""
    rows: list[tuple[object, ...]] = []
    for (heat,), part in groups(found, "temperature").items():
        for (method,), own in groups(part, "method").items():
            speed = mean(value_of(record, "tokens_per_second") for record in own).mean
            ratio = paired(part, method, base, "tokens_per_second")
            rows.append((heat, method, *(of(own) for of in quantities.values()), f"{speed:.1f}", str(ratio)))
    columns = ("temperature", "method", *quantities, "tokens/s", f"x {base}")
    intervals = "+- 95 % intervals over prompts and seeds, ratios paired"
    return Table(title, columns, rows, f"{intervals}; {note}" if note else intervals)


def per_turn(field: str) -> Quantity:
    """The mean over turns of a field, with its interval; empty where no record has it."""
    return lambda own: str(mean(record[field] for record in own if field in record)) if field in own[0] else ""


def share(part: str, whole: str, scale: float = 1.0) -> Quantity:
    """The sum of one field over the sum of another; empty where no record has it."""

    def quantity(own: list[Record]) -> str:
        own = [record for record in own if part in record]
        if not own:
            return ""
        return f"{scale * sum(record[part] for record in own) / max(1, sum(record[whole] for record in own)):.3f}"

    return quantity
