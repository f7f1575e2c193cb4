"""Time per verdict: against the same algorithms written plainly, request by request, and against reading the inputs.

    python benchmarks/verifiers.py [--vocab 32000] [--length 8] [--paths 4]
    python benchmarks/verifiers.py --only beside --beside 1x32000 32x32000 --repeats 9      # the others are kept

Two plain versions are timed: `plain`, the pseudocode on Python floats, and `per row`, the pseudocode on one NumPy row
of V numbers at a time. The floor is the time of one sum over both models' rows. The last tables stand verifiers of
several paths beside block verification of as many rows (each path a request of its own), ours and what an engine does
in plain torch: vLLM's rejection sampler, which draws a correction for every position. Rounds are interleaved there.
All figures of a table come from one run on one machine, in CPU seconds of one thread, so that other work on the machine
enters little; results go to benchmarks/results/verifiers.json, after every table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get, names

RESULTS = Path(__file__).parent / "results" / "verifiers.json"
Row = list[float]


def random_batch(requests: int, paths: int, length: int, vocab: int, seed: int = 0) -> Batch:
    """float32 rows as of a language model: Gaussian logits, draft and target correlated; paths share the first token
    of path 0 half of the time, and then its rows."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.empty(requests, paths, length + 1, vocab)
    draft = torch.empty(requests, paths, length, vocab)
    tokens = torch.empty(requests, paths, length, dtype=torch.int64)
    shared = torch.ones(requests, paths, dtype=torch.bool)
    for depth in range(length + 1):
        for k in range(paths):
            logits = 3 * torch.randn(requests, vocab, generator=generator)
            copy = shared[:, k : k + 1] & (k > 0)
            target[:, k, depth] = torch.where(copy, target[:, 0, depth], torch.softmax(logits, dim=-1))
            if depth == length:
                continue
            noisy = logits + torch.randn(requests, vocab, generator=generator)
            draft[:, k, depth] = torch.where(copy, draft[:, 0, depth], torch.softmax(noisy, dim=-1))
            token = torch.multinomial(draft[:, k, depth], 1, generator=generator).squeeze(1)
            again = shared[:, k] & (torch.rand(requests, generator=generator) < 0.5) & (k > 0)
            tokens[:, k, depth] = torch.where(again, tokens[:, 0, depth], token)
        if depth < length:
            shared &= tokens[:, :, depth] == tokens[:, :1, depth]
    return Batch(tokens, draft, target)


# ---------------------------------------------------------------- plain versions, from the pseudocode


def plain_draw(weights: Row) -> int:
    return random.choices(range(len(weights)), weights)[0]


def plain_block_of(tokens: list[int], draft: list[Row], target: list[Row]) -> tuple[int, int]:
    """Block verification of one path, one number at a time."""
    length = len(tokens)
    ratios = [1.0]
    for i, token in enumerate(tokens):
        ratios.append(min(1.0, ratios[-1] * target[i][token] / draft[i][token]))
    kept = 0
    for i in range(1, length + 1):
        if i == length:
            threshold = ratios[i]
        else:
            left = sum(max(0.0, ratios[i] * p - q) for p, q in zip(target[i], draft[i], strict=True))
            threshold = left / (left + 1 - ratios[i]) if left + 1 - ratios[i] > 0 else 1.0
        if random.random() < threshold:
            kept = i
    if kept == length:
        return kept, plain_draw(target[length])
    weights = [max(0.0, ratios[kept] * p - q) for p, q in zip(target[kept], draft[kept], strict=True)]
    return kept, plain_draw(weights if sum(weights) > 0 else target[kept])


def plain_gbv(tokens: list[list[int]], draft: list[list[Row]], target: list[list[Row]]) -> tuple[int, int]:
    """Greedy multi-path block verification of one request."""
    paths, length = len(tokens), len(tokens[0])
    alive, rest, own, laws = list(range(paths)), 0.0, 1.0, []
    for i in range(length):
        p, q = target[alive[0]][i], draft[alive[0]][i]
        ratio = [a / b if b > 0 else math.inf for a, b in zip(p, q, strict=True)]
        order = sorted(range(len(p)), key=lambda y: (ratio[y], y))
        law, below, bounds = [0.0] * len(p), 0.0, {}
        everything = -math.expm1(paths * math.log1p(-own)) if own < 1 else 1.0
        for y in order:
            upto, share = rest + own * (below + q[y]), own * q[y]
            bounds[y] = below
            if upto > share:
                law[y] = math.exp(paths * math.log(upto)) * -math.expm1(paths * math.log1p(-share / upto)) / everything
            elif upto > 0:
                law[y] = math.exp(paths * math.log(upto)) / everything
            below += q[y]
        laws.append(law)
        best = max((tokens[k][i] for k in alive), key=lambda y: (ratio[y], y))
        scale = rest + own * (bounds[best] + q[best])
        rest, own = (rest + own * bounds[best]) / scale, own * q[best] / scale
        alive = [k for k in alive if tokens[k][i] == best]
    return plain_block_of(tokens[alive[0]], laws, target[alive[0]])


def plain_two_level(tokens: list[list[int]], draft: list[list[Row]], target: list[list[Row]]) -> tuple[int, int]:
    """Two-level selection and block verification of one request."""
    paths, length = len(tokens), len(tokens[0])
    alive, accept, laws = list(range(paths)), 1.0, []
    count = [0.0] * (paths - 1) + [1.0]

    def densities(mass: float) -> tuple[float, float]:
        powers = [(1 - mass) ** j for j in range(paths)]
        return (
            sum(count[n] * sum(powers[: n + 1]) for n in range(paths)),
            sum(count[n] * powers[n] for n in range(paths)),
        )

    for i in range(length):
        p, q = target[alive[0]][i], draft[alive[0]][i]
        low_end, high_end = 0.0, 1.0
        for _ in range(24):
            middle = (low_end + high_end) / 2
            high, low = densities(middle)
            total = sum(min(max(accept * a, low * b), high * b) for a, b in zip(p, q, strict=True))
            low_end, high_end = (middle, high_end) if total > 1 else (low_end, middle)
        high, low = densities(high_end)
        span = high - low
        level = [
            min(1.0, max(0.0, (accept * a / b - low) / span)) if b > 0 and span > 0 else 1.0
            for a, b in zip(p, q, strict=True)
        ]
        mass = sum(a * b for a, b in zip(level, q, strict=True))
        high, low = densities(mass)
        laws.append([b * (a * high + (1 - a) * low) for a, b in zip(level, q, strict=True)])
        chosen = next((k for k in alive if random.random() < level[tokens[k][i]]), alive[0])
        y = tokens[chosen][i]
        failing, up = q[y] * (1 - level[y]), q[y] * level[y]
        others = 1 - mass - failing
        sums: list[list[float]] = [[1.0]]
        power = [1.0]
        for _ in range(1, paths):
            power = plain_times(power, others, failing)
            sums.append([a + b for a, b in zip(plain_times(sums[-1], 1 - q[y], q[y]), power, strict=True)])
        fresh, power = [0.0] * paths, [1.0]
        for n in range(paths):
            for j in range(n + 1):
                fresh[j] += count[n] * (up * sums[n][j] + failing * power[j]) / laws[-1][y]
            power = plain_times(power, others, failing)
        count = fresh
        accept = min(1.0, accept * p[y] / laws[-1][y])
        alive = [k for k in alive if tokens[k][i] == y]
    return plain_block_of(tokens[alive[0]], laws, target[alive[0]])


def plain_times(polynomial: Row, constant: float, slope: float) -> Row:
    shifted = [0.0, *polynomial]
    return [constant * a + slope * b for a, b in zip([*polynomial, 0.0], shifted, strict=True)]


def plain_block(tokens: list[list[int]], draft: list[list[Row]], target: list[list[Row]]) -> tuple[int, int]:
    return plain_block_of(tokens[0], draft[0], target[0])


PLAIN = {"block": plain_block, "gbv": plain_gbv, "two-level": plain_two_level}


# ---------------------------------------------------------------- the same, one NumPy row at a time


def row_draw(weights: np.ndarray) -> int:
    cumulated = np.cumsum(weights)
    return int(np.searchsorted(cumulated, random.random() * cumulated[-1], side="right"))


def row_block_of(tokens: np.ndarray, draft: Any, target: Any) -> tuple[int, int]:
    length = len(tokens)
    ratios = [1.0]
    for i, token in enumerate(tokens):
        ratios.append(min(1.0, ratios[-1] * float(target[i][token]) / float(draft[i][token])))
    kept = 0
    for i in range(1, length + 1):
        threshold = ratios[i]
        if i < length:
            left = float(np.maximum(0, ratios[i] * target[i] - draft[i]).sum())
            threshold = left / (left + 1 - ratios[i]) if left + 1 - ratios[i] > 0 else 1.0
        if random.random() < threshold:
            kept = i
    if kept == length:
        return kept, row_draw(target[length])
    weights = np.maximum(0, ratios[kept] * target[kept] - draft[kept])
    return kept, row_draw(weights if weights.sum() > 0 else target[kept])


def row_block(tokens: np.ndarray, draft: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    return row_block_of(tokens[0], draft[0], target[0])


def row_gbv(tokens: np.ndarray, draft: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    paths, length = tokens.shape
    alive, rest, own, laws = list(range(paths)), 0.0, 1.0, []
    for i in range(length):
        p, q = target[alive[0], i], draft[alive[0], i].astype(float)
        ratio = p / draft[alive[0], i]
        order = np.argsort(ratio, kind="stable")
        upto = np.cumsum(q[order])
        upper, share = rest + own * upto, own * q[order]
        everything = -math.expm1(paths * math.log1p(-own)) if own < 1 else 1.0
        law = np.empty_like(q)
        with np.errstate(divide="ignore"):
            law[order] = upper**paths * -np.expm1(paths * np.log1p(-np.minimum(share / upper, 1))) / everything
        laws.append(law)
        best = max((tokens[k, i] for k in alive), key=lambda y: (ratio[y], y))
        place = int(np.flatnonzero(order == best)[0])
        below = upto[place - 1] if place else 0.0
        rest, own = (rest + own * below) / upper[place], own * q[best] / upper[place]
        alive = [k for k in alive if tokens[k, i] == best]
    return row_block_of(tokens[alive[0]], laws, target[alive[0]])


def row_two_level(tokens: np.ndarray, draft: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    paths, length = tokens.shape
    alive, accept, laws = list(range(paths)), 1.0, []
    count = np.eye(paths)[-1]

    def densities(mass: float) -> tuple[float, float]:
        powers = (1 - mass) ** np.arange(paths)
        return float(count @ np.cumsum(powers)), float(count @ powers)

    for i in range(length):
        p, q = target[alive[0], i], draft[alive[0], i]
        ratio = accept * p / q
        low_end, high_end = 0.0, 1.0
        for _ in range(24):
            middle = (low_end + high_end) / 2
            high, low = densities(middle)
            total = float(q @ np.clip(ratio, low, high))
            low_end, high_end = (middle, high_end) if total > 1 else (low_end, middle)
        high, low = densities(high_end)
        level = np.clip((ratio - low) / (high - low), 0, 1) if high > low else np.ones_like(q)
        mass = float(q @ level)
        high, low = densities(mass)
        laws.append(q * (low + level * (high - low)))
        chosen = next((k for k in alive if random.random() < level[tokens[k, i]]), alive[0])
        y = tokens[chosen, i]
        failing, up = float(q[y] * (1 - level[y])), float(q[y] * level[y])
        fresh, power, sums = np.zeros(paths), np.array([1.0]), np.array([1.0])
        for n in range(paths):
            fresh[: n + 1] += count[n] * (up * sums + failing * power) / float(laws[-1][y])
            power = np.convolve(power, [1 - mass - failing, failing])
            sums = np.convolve(sums, [1 - float(q[y]), float(q[y])]) + power
        count = fresh
        accept = min(1.0, accept * float(p[y]) / float(laws[-1][y]))
        alive = [k for k in alive if tokens[k, i] == y]
    return row_block_of(tokens[alive[0]], laws, target[alive[0]])


PER_ROW = {"block": row_block, "gbv": row_gbv, "two-level": row_two_level}


# ---------------------------------------------------------------- timing


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Median CPU time of `action`, after one call to warm up."""
    action()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return statistics.median(times)


def one_path(batch: Batch, name: str) -> Batch:
    if get(name).paths == "many":
        return batch
    return Batch(batch.tokens[:, :1], batch.draft_probs[:, :1], batch.target_probs[:, :1])


def speedups(batch: Batch, sampled: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds per verdict of the three versions; the plain ones are timed on `sampled` requests."""
    results = {}
    draws = Draws(torch.Generator().manual_seed(1))
    for name in PLAIN:
        inputs = one_path(batch, name)
        requests = len(inputs.tokens)
        tensor = seconds(lambda name=name, inputs=inputs: get(name).verify(inputs, draws), repeats) / requests
        arrays = [part.numpy() for part in (inputs.tokens, inputs.draft_probs, inputs.target_probs)]

        def per_row(name: str = name, arrays: list[np.ndarray] = arrays) -> None:
            for row in zip(*arrays, strict=True):
                PER_ROW[name](*row)

        rows = seconds(per_row, 1) / requests
        spent = 0.0
        for row in range(sampled):
            lists = [part[row].tolist() for part in arrays]
            start = time.process_time()
            PLAIN[name](*lists)
            spent += time.process_time() - start
        plain = spent / sampled
        results[name] = {
            "tensor_ms": 1e3 * tensor,
            "per_row_ms": 1e3 * rows,
            "plain_ms": 1e3 * plain,
            "speedup_over_per_row": rows / tensor,
            "speedup_over_plain": plain / tensor,
        }
    return results


def floors(batch: Batch, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds per verdict of every stateless verifier, and as a multiple of reading its inputs once."""
    results = {}
    draws = Draws(torch.Generator().manual_seed(1))
    requests = len(batch.tokens)
    for name in names():
        if get(name).stateful or name == "table":
            continue
        inputs = one_path(batch, name)
        floor = seconds(lambda inputs=inputs: (inputs.draft_probs.sum(), inputs.target_probs.sum()), repeats)
        spent = seconds(lambda name=name, inputs=inputs: get(name).verify(inputs, draws), repeats)
        results[name] = {
            "verdict_ms": 1e3 * spent / requests,
            "floor_ms": 1e3 * floor / requests,
            "times_floor": spent / floor,
        }
    return results


# ---------------------------------------------------------------- beside block verification of as many rows


def engine_inputs(batch: Batch) -> tuple[torch.Tensor, ...]:
    """Of one-path requests: tokens [B, L], draft rows [B, L, V], target rows [B, L+1, V], both laws at the tokens."""
    tokens, draft, target = batch.tokens[:, 0], batch.draft_probs[:, 0], batch.target_probs[:, 0]
    at_tokens = (rows.gather(2, tokens.unsqueeze(2)).squeeze(2) for rows in (target[:, :-1], draft))
    return tokens, draft, target, *at_tokens


def engine_draw(weights: torch.Tensor) -> torch.Tensor:
    """One token for each row of weights [B, N, V], by a race of exponentials that the rows of a request share."""
    requests, _, vocab = weights.shape
    return (weights / torch.empty(requests, 1, vocab).exponential_()).argmax(dim=-1)


def engine_token(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Token verification as vLLM's sampler has it: a correction for every position, then the first one refused."""
    _, draft, target, ahead, drawn = engine_inputs(batch)
    corrections = engine_draw((target[:, :-1] - draft).clamp_min(0))
    choices = torch.cat([corrections, engine_draw(target[:, -1:])], dim=1)
    kept = (torch.rand(ahead.shape) * drawn < ahead).long().cumprod(dim=1).sum(dim=1)
    return kept, choices.gather(1, kept.unsqueeze(1)).squeeze(1)


def engine_block(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Block verification in the same way: all residuals, all corrections, then the last position whose coin came up."""
    _, draft, target, ahead, drawn = engine_inputs(batch)
    ratios = [torch.ones_like(ahead[:, 0])]
    for step in (ahead / drawn).unbind(dim=1):
        ratios.append((ratios[-1] * step).clamp_max(1))
    ratio = torch.stack(ratios, dim=1)
    residual = (ratio[:, :-1, None] * target[:, :-1] - draft).clamp_min(0)
    left = residual.sum(dim=2)[:, 1:]
    inner = left / (left + 1 - ratio[:, 1:-1]).clamp_min(torch.finfo(left.dtype).tiny)
    coins = torch.rand(ahead.shape) < torch.cat([inner, ratio[:, -1:]], dim=1)
    kept = (coins * torch.arange(1, ahead.shape[1] + 1)).amax(dim=1)
    choices = torch.cat([engine_draw(residual), engine_draw(target[:, -1:])], dim=1)
    return kept, choices.gather(1, kept.unsqueeze(1)).squeeze(1)


PARTS = ("speedups", "verdicts", "beside")
SIZES = ("1x2048", "32x2048", "1x32000", "32x32000", "1x128000", "32x128000")
BESIDE = ("token", "block", "key-race", "two-level", "score-race", "score-race-2")


def beside(batch: Batch, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds per verdict of a whole batch, rounds interleaved, and in units of our block verification's.

    `times_block` are ratios of medians, `least_times_block` of the fastest rounds.
    """
    alone = Batch(*(part.flatten(0, 1).unsqueeze(1) for part in (batch.tokens, batch.draft_probs, batch.target_probs)))
    draws = Draws(torch.Generator().manual_seed(1))
    calls: dict[str, Callable[[], object]] = {
        "vLLM's token, plain torch": lambda: engine_token(alone),
        "vLLM's block, plain torch": lambda: engine_block(alone),
    }
    for name in BESIDE:
        inputs = batch if get(name).paths == "many" else alone
        calls[name] = lambda name=name, inputs=inputs: get(name).verify(inputs, draws)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if round_:
                spent[name].append(time.process_time() - start)
    times = {name: statistics.median(each) for name, each in spent.items()}
    return {
        name: {
            "batch_ms": 1e3 * value,
            "times_block": value / times["block"],
            "least_times_block": min(spent[name]) / min(spent["block"]),
            "times_vllm_block": value / times["vLLM's block, plain torch"],
        }
        for name, value in times.items()
    }


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"\n{title}\n{'verifier':22}" + "".join(f"{column:>22}" for column in columns))
    for name, values in rows.items():
        print(f"{name:22}" + "".join(f"{values[column]:22.4g}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--length", type=int, default=8)
    parser.add_argument("--paths", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain-requests", type=int, default=2, help="requests on which the plain versions are timed")
    parser.add_argument("--only", choices=PARTS, help="these tables alone")
    parser.add_argument("--beside", nargs="+", default=SIZES, metavar="BxV", help="sizes beside block verification")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if min(options.vocab, options.length, options.paths, options.repeats, options.plain_requests, *options.batches) < 1:
        parser.error("every number must be at least 1")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    machine = {"processor": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__}
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "only", "beside")}
    data = json.loads(options.output.read_text()) if options.only and options.output.exists() else {}
    data.setdefault("machine", machine)
    data.setdefault("settings", settings)

    def keep(part: str, key: str | None, rows: dict[str, dict[str, float]], title: str) -> None:
        print_table(title, rows)
        data[part] = rows if key is None else {**data.get(part, {}), key: rows}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(data, indent=1) + "\n")

    size = f"K={options.paths}, L={options.length}"
    if options.only in (None, "speedups"):
        batch = random_batch(32, options.paths, options.length, options.vocab)
        rows = speedups(batch, options.plain_requests, options.repeats)
        keep("speedups", None, rows, f"B=32, {size}, V={options.vocab}")
        del batch
    if options.only in (None, "verdicts"):
        data["verdicts_settings"] = settings | {"machine": machine, "load": os.getloadavg()}
        for requests in options.batches:
            rows = floors(random_batch(requests, options.paths, options.length, options.vocab), options.repeats)
            keep("verdicts", str(requests), rows, f"B={requests}, {size}, V={options.vocab}")
    for requests, vocab in (
        (map(int, each.split("x")) for each in options.beside) if options.only in (None, "beside") else ()
    ):
        data["beside_settings"] = {"machine": machine, "length": options.length, "paths": options.paths}
        data["beside_settings"] |= {"repeats": options.repeats, "load": os.getloadavg()}
        rows = beside(random_batch(requests, options.paths, options.length, vocab), options.repeats)
        keep("beside", f"B={requests} V={vocab}", rows, f"as many rows: B={requests}, {size}, V={vocab}")
    print(f"\nwritten to {options.output.name}")


if __name__ == "__main__":
    main()
