"""The rows of a sweep: what each column means, and summaries of them.

tau is the expected acceptance length: drafted tokens kept per call, the correction token not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from ..laws.judge import contradiction
from .design import OPTIMA, Case

Row = dict[str, Any]


class Column(NamedTuple):
    """A column: its name, its type ("string", "int64", "float64" or "bool") and what it holds."""

    name: str
    type: str
    text: str


COLUMNS = (
    Column("number", "int64", "place of the case in the design, 0 first; rows are sorted by it"),
    Column("id", "string", "name of the case, made of its parameters; unique"),
    Column("instance", "string", "random (independent Dirichlet rows) or context (a pair of models at a prompt)"),
    Column("vocab", "int64", "V of a random instance"),
    Column("length", "int64", "draft length L"),
    Column("concentration", "float64", "of the Dirichlet rows of a random instance"),
    Column("replicate", "int64", "which of the random instances of the same parameters, or which draw of a sample"),
    Column("instance_seed", "int64", "seed of a random instance: `solve --random V --length L --seed` takes it"),
    Column("context", "int64", "which prompt of the design, 0 first"),
    Column("top_k", "int64", "tokens kept in each row of the models"),
    Column("temperature", "float64", "T: target rows are raised to the power 1/T and normalised"),
    Column("draft_temperature", "float64", "S: draft rows are raised to the power 1/S and normalised"),
    Column("paths", "int64", "K, independent drafts; a verifier of one path uses one of them"),
    Column("method", "string", "verifier (exact law), closed:NAME (its acceptance length from theory), or optimum"),
    Column("nodes", "int64", "nodes of the instance's prefix tree"),
    Column("value", "float64", "expected acceptance length, in [0, L]; of an optimum its certified lower bound"),
    Column("bound", "float64", "certified upper bound of an optimum"),
    Column("gap", "float64", "bound - value of an optimum"),
    Column("fraction", "float64", "value / value of lossless-optimum on the same instance and K (1 if both are 0)"),
    Column("total_variation", "float64", "distance of the emitted law to the target's, in [0, 1]: see `laws.judge`"),
    Column("lossless", "bool", "laws: the verdict; closed: as declared; optima: of their verifier; none if undecided"),
    Column("verdict", "string", "of a law: lossless (total_variation <= 1e-9), not lossless or undecided"),
    Column("stateful", "bool", "it changes the target law of later positions, and is judged over several calls"),
    Column("seconds", "float64", "wall-clock time of the case; the only column that differs from run to run"),
    Column("status", "string", "done, too large, time limit, memory limit, died (its process did) or failed"),
    Column("error", "string", "why there is no value, or no verdict"),
)
_NOT_INSTANCE = ("number", "id", "instance_seed", "method")
_INSTANCE = tuple(field.name for field in fields(Case) if field.name not in _NOT_INSTANCE)


def row_of(case: Case, **results: Any) -> Row:
    """The row of a case; columns that are not given are None."""
    return {column.name: None for column in COLUMNS} | asdict(case) | results


def with_fractions(rows: Sequence[Row]) -> list[Row]:
    """The rows with `fraction` filled in where the lossless optimum of the same instance and K is among them.

    A verifier with the verdict lossless that keeps more than the certified optimum contradicts it: it is undecided.
    """
    best = {(row["method"], *instance_of(row)): row for row in rows if row["method"] in OPTIMA}

    def checked(row: Row) -> Row:
        if row["verdict"] != "lossless":
            return row
        objective = "block-transport-optimum" if row["stateful"] else "lossless-optimum"
        optimum = best.get((objective, *instance_of(row)))
        if optimum is None or None in (optimum["bound"], row["value"]):
            return row
        odd = contradiction(row["value"], optimum["bound"])
        return row | {"verdict": "undecided", "lossless": None, "error": odd} if odd else row

    def fraction(row: Row) -> float | None:
        optimum = best.get(("lossless-optimum", *instance_of(row)))
        if row["value"] is None or optimum is None or optimum["value"] is None or row["verdict"] == "undecided":
            return None
        return row["value"] / optimum["value"] if optimum["value"] > 0 else 1.0

    return [row | {"fraction": fraction(row)} for row in map(checked, rows)]


def instance_of(row: Row) -> tuple[Any, ...]:
    """What identifies the instance of a row, and K."""
    return tuple(row[name] for name in _INSTANCE)


def complete(rows: Sequence[Row]) -> list[Row]:
    """The rows of those (instance, K) on which every method that has a value anywhere has one: fair to average."""
    done = [row for row in rows if row["status"] == "done"]
    methods = {row["method"] for row in done}
    count: dict[tuple[Any, ...], int] = {}
    for row in done:
        count[instance_of(row)] = count.get(instance_of(row), 0) + 1
    return [row for row in done if count[instance_of(row)] == len(methods)]


def by_method(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One record per method: cases, how many have a value, means, smallest fraction, largest total variation."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["method"], []).append(row)
    return [{"method": method, "cases": len(group)} | _summary(group) for method, group in grouped.items()]


def _summary(group: Sequence[Row]) -> dict[str, Any]:
    def of(name: str) -> list[Any]:
        return [row[name] for row in group if row[name] is not None]

    flags, words = of("lossless"), of("verdict")
    word = next((word for word in ("not lossless", "undecided", "lossless") if word in words), None)
    return {
        "done": sum(row["status"] == "done" for row in group),
        "value": mean(of("value")),
        "fraction": mean(of("fraction")),
        "smallest_fraction": min(of("fraction"), default=None),
        "total_variation": max(of("total_variation"), default=None),
        "lossless": False if False in flags else None if "undecided" in words or not flags else True,
        "verdict": word,
        "undecided": words.count("undecided"),
        "seconds": mean(of("seconds")),
    }


def statuses(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows have each status."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return counts


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return sum(values) / len(values) if values else None


def method_cells(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The summaries of `by_method` as a table of texts, its head first."""

    def cells(summary: Mapping[str, Any]) -> tuple[str, ...]:
        def number(name: str, form: str) -> str:
            return "" if summary[name] is None else format(summary[name], form)

        flag = {True: "yes", False: "no", None: summary["verdict"] or ""}[summary["lossless"]]
        means = (number(name, ".4f") for name in ("value", "fraction", "smallest_fraction"))
        distance = number("total_variation", ".0e")
        done = f"{summary['done']}/{summary['cases']}"
        return summary["method"], done, *means, f"{flag} {distance}".strip(), number("seconds", ".3f")

    return [("method", "done", "value", "fraction", "least", "lossless", "seconds"), *map(cells, summaries)]
