"""Tables of the documentation, made from what the project measures; `outputs.py` puts them into the pages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from specbound.cli import cli
from specbound.proofs_checks.claims import ledger
from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.sweep.results import COLUMNS
from specbound.runtime.verifiers import get
from specbound.theory.prefix_tree import PrefixTree

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = PrefixTree.iid([Fraction(1, 3), Fraction(2, 3)], [Fraction(2, 3), Fraction(1, 3)], 2)


def verifiers() -> str:
    """Every registered verifier: what it does, declared and measured facts, tokens kept on the published example."""
    lines = ["| verifier | what it does | lossless: declared / measured | keeps, K = 1 / 2 |", "|---|---|---|---|"]
    for entry in _listed():
        if entry["paths"] == "tree":
            continue
        many = entry["paths"] == "many"
        measured = _measured(entry)
        if get(entry["name"]).needs:
            kept = "the optimum of its table"
        else:
            kept = " / ".join(_kept(entry["name"], paths) for paths in ((1, 2) if many else (1,)))
        name = f"`{entry['name']}`<br>{'K paths' if many else 'one path'}{', stateful' if entry['stateful'] else ''}"
        story = f"{entry['summary']}<br>*{_linked(entry['source'])}; {entry['cost']}*"
        lines.append(f"| {name} | {story} | {'yes' if entry['lossless'] else 'no'} / {measured} | {kept} |")
    return "\n".join(lines) + "\n"


def tree_verifiers() -> str:
    """Every registered verifier of drafted trees: what it does and wants, declared and measured facts."""
    lines = ["| verifier | what it does | wants | lossless: declared / measured |", "|---|---|---|---|"]
    for entry in _listed():
        if entry["paths"] == "tree":
            story = f"{entry['summary']}<br>*{_linked(entry['source'])}; {entry['cost']}*"
            lossless = f"{'yes' if entry['lossless'] else 'no'} / {_measured(entry)}"
            lines.append(f"| `{entry['name']}` | {story} | {entry['requires']} | {lossless} |")
    return "\n".join(lines) + "\n"


@cache
def _listed() -> list[dict[str, Any]]:
    """What `specbound verifiers --json` lists."""
    return json.loads(CliRunner().invoke(cli, ["verifiers", "--json"], standalone_mode=False).stdout)["verifiers"]


def _measured(entry: dict[str, Any]) -> str:
    return "yes" if entry["measured_lossless"] else f"no, up to {entry['total_variation']:.3f} off"


def _kept(name: str, paths: int) -> str:
    if get(name).reads_after:
        return "[over many calls](many-calls.md)"
    return f"{exact_law(get(name).verify, EXAMPLE, paths).acceptance_length:.4f}"


def sweep_columns() -> str:
    """The columns of a sweep's rows."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{column.name}` | {column.type} | {column.text} |" for column in COLUMNS]
    return "\n".join(lines) + "\n"


def timings() -> str:
    """Milliseconds per verdict of a batch, from the recorded benchmark."""
    record = json.loads((ROOT / "benchmarks" / "results" / "verifiers.json").read_text(encoding="utf-8"))
    batches = list(record["verdicts"])
    lines = ["| verifier | " + " | ".join(f"B = {batch}" for batch in batches) + " |"]
    lines.append("|---|" + "---:|" * len(batches))
    for name in record["verdicts"][batches[0]]:
        times = [record["verdicts"][batch].get(name, {}).get("verdict_ms") for batch in batches]
        cells = ["" if time is None else f"{time:.2g}" for time in times]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def beside() -> str:
    """Verifiers in units of block verification of as many rows, from the recorded benchmark."""
    record = json.loads((ROOT / "benchmarks" / "results" / "verifiers.json").read_text(encoding="utf-8"))["beside"]
    lines = ["| | " + " | ".join(record) + " |", "|---|" + "---:|" * len(record)]
    for name in next(iter(record.values())):
        cells = [f"{rows[name]['times_block']:.2g}" for rows in record.values()]
        lines.append(f"| {name if ' ' in name else f'`{name}`'} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def survey() -> str:
    """Verifiers by the mean fraction of the certified optimum, from the recorded survey."""
    record = json.loads((ROOT / "benchmarks" / "results" / "all_verifiers.json").read_text(encoding="utf-8"))
    ranked = sorted(record["fraction_of_optimum"].items(), key=lambda entry: -entry[1]["mean"])
    lines = ["| verifier | mean | smallest |", "|---|---:|---:|", "| certified optimum | 1 | 1 |"]
    lines += [f"| `{name}` | {values['mean']:.4f} | {values['min']:.4f} |" for name, values in ranked]
    return "\n".join(lines) + "\n"


def lossy() -> str:
    """What lossy verifiers cost and waste, from the recorded benchmark."""
    record = json.loads((ROOT / "benchmarks" / "results" / "lossy.json").read_text(encoding="utf-8"))
    kinds = ("random", "shipped pair")
    lines = ["| verifier | deviation | keeps | best possible | wasted | deviation, pair | keeps | best | wasted |"]
    lines.append("|---|" + "---:|" * 8)
    for rows in zip(*(record[kind]["verifiers"] for kind in kinds), strict=True):
        cells = [f"{row[name]:.4f}" for row in rows for name in ("deviation", "kept", "best", "wasted")]
        lines.append(f"| `{rows[0]['name']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def findings() -> str:
    """Every claim of the ledger, paper by paper, with its recorded verdict and counterexample."""
    record = ledger.read_record()
    lines: list[str] = []
    for paper, claims in itertools.groupby(ledger.claims().values(), key=lambda claim: claim.paper):
        lines += ["", f"### {_linked(paper.heading)}", "", "| claim | statement, and what was tested |", "|---|---|"]
        for claim in claims:
            found = record[claim.id]
            story = f"{claim.statement}<br>*{_linked(claim.source)}; tested: {_linked(claim.tested)}*"
            if found["counterexample"]:
                story += f"<br>Counterexample: {found['counterexample']}"
            kind = "" if claim.kind in ("stated", "own") else f"<br>{KINDS[claim.kind]}"
            lines.append(f"| `{claim.id}`<br>**{found['verdict']}**{kind} | {story.replace('|', chr(92) + '|')} |")
    return "\n".join(lines[1:]) + "\n"


KINDS = {"reading": "a reading", "code": "public code", "experiment": "an experiment"}


def _linked(source: str) -> str:
    """Sources with arXiv numbers and the ledger's short names as links."""
    for paper in dict.fromkeys(claim.paper for claim in ledger.claims().values() if claim.paper.arxiv):
        source = source.replace(f"[{paper.short}]", f"[{paper.short}](https://arxiv.org/abs/{paper.arxiv})")
    words = source.split(" ")
    for place, word in enumerate(words):
        number = word.strip(",;()").removeprefix("arXiv:")
        if word.lstrip("(").startswith("arXiv:"):
            words[place] = word.replace(f"arXiv:{number}", f"[arXiv:{number}](https://arxiv.org/abs/{number})")
    return " ".join(words)


def many_calls() -> str:
    """Tokens per call with a carry against block verification, from the recorded benchmark."""
    record = json.loads((ROOT / "benchmarks" / "results" / "calls.json").read_text(encoding="utf-8"))
    given = {(entry["length"], entry["verifier"]): entry for entry in record["given_text"]}
    decoded = {(entry["length"], entry["verifier"]): entry for entry in record["decoded"]}
    columns = "L", "block", "fill : block", "young : block", "pooled : block", "decoded", "time a call", "per second"
    lines = ["| " + " | ".join((*columns, "draft passes")) + " |", "|---|" + "---:|" * len(columns)]
    for length in sorted({length for length, _ in given}):
        own = decoded[length, "pooled"]
        cells = [f"{given[length, 'block']['tokens_per_call']:.3f}"]
        cells += [_ratio(given[length, name]) for name in ("pooled-fill", "pooled-young", "pooled")]
        cells.append(_ratio(own["tokens_per_call_ratio"], 2))
        cells += [_ratio(own["time_per_call_ratio"]), _ratio(own["tokens_per_second_ratio"])]
        cells.append(f"+{own['extra_draft_passes_per_call']:.2f}")
        lines.append(f"| {length} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def paths_decoded() -> str:
    """Block efficiency of verifiers of several paths in decoding, by temperature, L and K, from the recorded run."""
    rows = _of_paths("decoded")
    text = ""
    for temperature in sorted({setting[0] for setting in rows}, reverse=True):
        chosen = {setting: found for setting, found in rows.items() if setting[0] == temperature}
        text += f"Temperature {temperature:g}:\n\n" + _by_setting(chosen, lambda row: _mean(row["block_efficiency"]))
        for label, words in (("over_block", "block, one path"), ("over_two_level", "two-level")):
            cells = [_mean(found["score-race"][label], sign="+") for found in chosen.values()]
            text += f"| *score-race over {words}* | " + " | ".join(cells) + " |\n"
        text += "\n"
    return text


def paths_same_drafts() -> str:
    """Paired differences to two-level selection on the same drafts, from the recorded benchmark."""
    record = json.loads((ROOT / "benchmarks" / "results" / "paths.json").read_text(encoding="utf-8"))
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(record["rows"], key=lambda row: (-row["temperature"], row["length"], row["paths"])):
        if row["verifier"] in ("block", "traversal", "key-race", "score-race"):
            setting = row["temperature"], 0, row["length"], row["paths"]
            rows.setdefault(setting, {})[row["verifier"]] = row
    text = ""
    for temperature in sorted({setting[0] for setting in rows}, reverse=True):
        chosen = {setting: found for setting, found in rows.items() if setting[0] == temperature}
        over = _by_setting(chosen, lambda row: _mean(row["over_two_level"], sign="+"))
        text += f"Temperature {temperature:g}:\n\n{over}\n"
    return text


def paths_times() -> str:
    """CPU milliseconds per verdict and request, and of a whole call, in the same run at temperature 1."""
    rows = {setting: found for setting, found in _of_paths("decoded").items() if setting[0] == 1}
    return _by_setting(rows, lambda row: f"{row['verdict_ms']:.2g} / {row['call_ms']:.2g}")


def paths_solved() -> str:
    """Measured block efficiency and the exact one at the very same calls, top-k sampling, from the recorded run."""
    rows = _of_paths("solved")
    text = ""
    for temperature in sorted({setting[0] for setting in rows}, reverse=True):
        chosen = {setting: found for setting, found in rows.items() if setting[0] == temperature}
        text += f"Temperature {temperature:g}:\n\n" + _by_setting(chosen, _beside_exact) + "\n"
    return text


def _beside_exact(row: dict[str, Any]) -> str:
    measured = f"{row['block_efficiency']['mean']:.2f}"
    return f"{measured} / {row['predicted']:.2f} +- {row['within']:.2f}" if "predicted" in row else f"{measured} /"


def _of_paths(part: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """(temperature, top-k, L, K) -> verifier -> recorded row."""
    record = json.loads((ROOT / "benchmarks" / "results" / "paths_decoded.json").read_text(encoding="utf-8"))
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in record[part]:
        setting = tuple(row[name] for name in ("temperature", "top_k", "length", "paths"))
        found.setdefault(setting, {})[row["verifier"]] = row
    return found


def _by_setting(rows: dict[tuple[Any, ...], dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> str:
    """A line per verifier, a column per L and K."""
    heads = [f"L={length} K={paths}" for _, _, length, paths in rows]
    lines = ["| verifier | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name in next(iter(rows.values())):
        lines.append(f"| `{name}` | " + " | ".join(cell(found[name]) for found in rows.values()) + " |")
    return "\n".join(lines) + "\n"


def _mean(entry: dict[str, float], sign: str = "") -> str:
    return f"{entry['mean']:{sign}.2f} +- {entry['half']:.2f}"


def monotone() -> str:
    """Rules of one selected path in the survey of monotone rules."""
    record = json.loads((ROOT / "benchmarks" / "results" / "monotone_survey.json").read_text(encoding="utf-8"))
    columns = "mean", "least", "falls in K", "below the key race", "below block"
    lines = ["| rule | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in record["rules"].items():
        cells = [f"{row['mean']:.4f}", f"{row['least']:.4f}"]
        for lost in (row["falls"], row["below_key_race"], row["below_block"]):
            cells.append(f"{lost['times']} ({100 * lost['most']:.2g} %)" if lost["times"] else "0")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\n{record['instances']} instances.\n"


def _ratio(entry: dict[str, float], digits: int = 3) -> str:
    return f"{entry['mean']:.{digits}f} +- {entry['half_width']:.{digits}f}"


def _of_drafts(part: str) -> dict[str, Any]:
    """A part of the recorded benchmark of drafts."""
    return json.loads((ROOT / "benchmarks" / "results" / "drafts.json").read_text(encoding="utf-8"))[part]


def looked_up() -> str:
    """Prompt look-up against plain decoding, from the recorded benchmark."""
    lines = ["| text | temperature | tokens per call | times as fast, wall | processor |", "|---|---:|---:|---:|---:|"]
    for entry in _of_drafts("look-up")["results"]:
        cells = [f"{entry['temperature']:.1f}", f"{entry['block_efficiency']:.2f}"]
        for kind, name in (("speed_ratio", "interval"), ("processor_speed_ratio", "processor_interval")):
            low, high = entry[name]
            cells.append(f"{entry[kind]:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {entry['text']}, {entry['prompts']} prompts | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def drafted_trees() -> str:
    """Tokens per call of ways to draft with equally many nodes, from the recorded benchmark."""
    lines = ["| nodes | drafts | L | verifier | tokens per call | to the best independent paths |"]
    lines.append("|---:|---|---:|---|---:|---:|")
    for entry in _of_drafts("trees")["results"]:
        names = f"{entry['nodes']} | `{entry['drafts']}` | {entry['length']} | `{entry['verifier']}`"
        difference = entry["difference"]
        against = f"{difference['mean']:+.2f} +- {difference['half_width']:.2f}" if difference["half_width"] else ""
        lines.append(f"| {names} | {_ratio(entry['tokens_per_call'], 2)} | {against} |")
    return "\n".join(lines) + "\n"


def drafted_exact() -> str:
    """Certified optima of drafting laws and what verifiers keep of them, from the recorded enumeration."""
    lines = ["| drafts | optimum | kept, and its share of the optimum |", "|---|---:|---|"]
    for entry in _of_drafts("exact")["ways"]:
        best = entry["optimum"]
        kept = ", ".join(f"`{name}` {value:.3f} ({value / best:.1%})" for name, value in entry["kept"].items())
        lines.append(f"| `{entry['drafts']}` | {best:.3f} | {kept} |")
    return "\n".join(lines) + "\n"


def drafted_curves() -> str:
    """The optimum against the number of drafted nodes, from the recorded enumeration."""
    record = _of_drafts("exact")
    lines = ["| drafts | " + " | ".join(f"{nodes} nodes" for nodes in record["budgets"]) + " |"]
    lines.append("|---|" + "---:|" * len(record["budgets"]))
    for kind, values in record["curves"].items():
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _of_experiment(name: str) -> str:
    """The tables of a recorded experiment, of those by task only what holds for all tasks together."""
    record = json.loads((ROOT / "benchmarks" / "results" / "experiments" / f"{name}.json").read_text(encoding="utf-8"))
    settings = record["settings"]
    prompts, seeds = sum(settings["prompts"].values()), settings["seeds"]
    text = f"{prompts} prompts of {len(settings['prompts'])} tasks, {seeds} x {settings['new_tokens']} tokens each.\n\n"
    for table in record["tables"]:
        columns, rows = table["columns"], table["rows"]
        if columns[0] == "task":
            columns, rows = columns[1:], [row[1:] for row in rows if row[0] == "all"]
        lines = [f"*{table['title']}*", "", "| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
        lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
        text += "\n".join(lines) + "\n\n" + (f"{table['note']}\n\n" if table["note"] else "")
    return text


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


experiment_block_verification = partial(_of_experiment, "block-verification")
experiment_gbv = partial(_of_experiment, "gbv")
experiment_spectr_gbv = partial(_of_experiment, "spectr-gbv")
experiment_mjsd = partial(_of_experiment, "mjsd")
experiment_specdec = partial(_of_experiment, "specdec++")
