"""`specbound report`: one HTML page with everything that can be shown about the verifiers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from specbound.commands.instance import OutputFile
from specbound.commands.terminal import progress_console
from specbound.files import read_text, write_text

if TYPE_CHECKING:
    from rich.progress import Progress

    from specbound.proofs_checks.sweep.results import Row
    from specbound.report import Section
    from specbound.theory.prefix_tree import PrefixTree

Fields = dict[str, tuple[type, ...]]
FINDING_FIELDS: Fields = dict.fromkeys(("id", "source", "claim", "tested", "verdict", "evidence"), (str,))
FINDING_FIELDS |= {"counterexample": (str, type(None)), "recorded": (bool,)}
DECODING_FIELDS: Fields = {"method": (str,), "tokens_per_second": (int, float), "speedup": (int, float)}
LARGEST = 1e12
OPTIONAL_FIELDS: Fields = {"block_efficiency": (int, float), "paper": (str,), "kind": (str,)}
CURVE_LENGTHS, CURVE_PATHS = range(1, 5), range(1, 5)
FIXED_LENGTH, FIXED_PATHS = 3, 2


@click.command(
    short_help="Write one HTML page with all results.",
    epilog="""\b
    Example:
      specbound report out.html

    \b
    With results you already have, or those of a sweep:
      specbound report out.html --findings check.json --decoding demo.json
      specbound report sweep.html --sweep sweep""",
)
@click.argument("out", type=OutputFile())
@click.option(
    "--findings", type=click.Path(dir_okay=False), help="Output of `check --json`; checked anew if not given."
)
@click.option("--decoding", type=click.Path(dir_okay=False), help="Output of `demo --json` or `bench --json`.")
@click.option(
    "--experiment",
    "experiments",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="A JSON file of `experiment`; may be repeated.",
)
@click.option(
    "--random", "random_count", type=click.IntRange(min=1), default=60, show_default=True, help="Random trees."
)
@click.option(
    "--contexts", type=click.IntRange(min=0), default=12, show_default=True, help="Trees of the shipped pair."
)
@click.option(
    "--sweep", "folder", type=click.Path(file_okay=False), help="A folder of `sweep`: its figures instead of the above."
)
@click.pass_context
def report(
    context: click.Context,
    out: str,
    findings: str | None,
    decoding: str | None,
    experiments: tuple[str, ...],
    random_count: int,
    contexts: int,
    folder: str | None,
) -> int:
    """Write OUT, a self-contained HTML page: claims, curves, optimality gaps, a prefix tree, decoding results.

    With --experiment: an experiment's picture and tables. With --sweep: the figures and the table of a sweep, finished
    or not, and what --findings, --decoding and --experiment hold.
    Exit code 3 if a verdict on the page is undecided.
    """
    from rich.progress import Progress

    from specbound.proofs_checks.sweep.results import by_method
    from specbound.report import decoding_section, page, sweep_sections

    measured = [section for file in experiments for section in _experiment(file)]

    decoded = None if decoding is None else _read_json("--decoding", decoding, "decoding", DECODING_FIELDS)
    known = None if findings is None else _read_json("--findings", findings, "findings", FINDING_FIELDS)["findings"]
    swept: list[str] = []
    if folder is not None:
        known, rows, planned = known or [], *_sweep(context, folder)
        sections = sweep_sections(rows, planned)
        swept = [entry["method"] for entry in by_method(rows) if entry["undecided"]]
    else:
        with Progress(console=progress_console(), transient=True) as progress:
            known = _findings(progress) if known is None else known
            sections = [_curves(progress), *_gaps(progress, random_count, contexts)]
    if decoded is not None:
        sections.append(decoding_section(decoded))
    sections += measured
    write_text(out, page(known, sections))
    click.echo(f"wrote {out}")
    undecided = [finding["id"] for finding in known if finding["verdict"] == "undecided"] + swept
    if undecided:
        click.echo(f"specbound: undecided: {', '.join(undecided)}; the page says why", err=True)
    return 3 if undecided else 0


def _sweep(context: click.Context, folder: str) -> tuple[list[Row], int]:
    """The rows of a sweep, and how many cases it has.

    Raises:
        ValueError: there is none in the folder, or an option says how to make what is left out.
    """
    from click.core import ParameterSource

    from specbound.proofs_checks.sweep.design import cases
    from specbound.proofs_checks.sweep.store import read

    for name, option in (("random_count", "--random"), ("contexts", "--contexts")):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise ValueError(f"{option} belongs to a report without --sweep; leave it out")
    design, rows = read(folder)
    if not rows:
        raise ValueError(f"--sweep {folder}: no case is finished yet")
    return rows, len(cases(design))


def _experiment(file: str) -> list[Section]:
    """The sections of an experiment's file.

    Raises:
        ValueError: it is none.
    """
    from specbound.report import experiment_sections
    from specbound.theory.json_objects import parse_json

    data = parse_json(f"--experiment {file}", read_text("--experiment", file))
    about = data.get("experiment") if isinstance(data, dict) else None
    lists = isinstance(data, dict) and all(isinstance(data.get(name), list) for name in ("tables", "records"))
    if not isinstance(about, dict) or not isinstance(about.get("name"), str) or not lists:
        raise ValueError(
            f'--experiment {file}: want the file that `experiment NAME` writes, "tables" and "records" in it'
        )
    try:
        return experiment_sections(data)
    except ValueError as error:
        raise ValueError(f"--experiment {file}: {error}") from None


def _read_json(option: str, file: str, field: str, wanted: Fields) -> dict[str, Any]:
    """A JSON object whose `field` is a list of objects with the wanted fields, each of one of its types.

    Raises:
        ValueError: naming the option, the entry and what it lacks.
    """
    from specbound.theory.json_objects import parse_json

    data = parse_json(f"{option} {file}", read_text(option, file))
    if not isinstance(data, dict) or not isinstance(data.get(field), list):
        raise ValueError(f'{option} {file}: want a JSON object with a list "{field}"')
    for place, entry in enumerate(data[field]):
        if not isinstance(entry, dict) or not {*wanted} <= {*entry}:
            raise ValueError(f"{option} {file}: {field}[{place}] wants the fields {', '.join(wanted)}")
        for name, types in (wanted | OPTIONAL_FIELDS).items():
            if name not in entry:
                continue
            if type(entry[name]) not in types or (float in types and not abs(entry[name]) < LARGEST):
                kind = f"a number below {LARGEST:g}" if float in types else types[0].__name__
                raise ValueError(f"{option} {file}: {field}[{place}] has {name} {entry[name]!r}; want {kind}")
    if not isinstance(data.get("settings", {}), dict):
        raise ValueError(f'{option} {file}: "settings" is {data["settings"]!r}; want an object')
    return data


def _findings(progress: Progress) -> list[dict[str, Any]]:
    from specbound.proofs_checks.claims import ledger

    entries = ledger.select([])
    task = progress.add_task("checking claims", total=len(entries))
    found = []
    for finding in ledger.run(entries):
        found.append(finding.to_dict())
        progress.advance(task)
    return found


def _values(tree: PrefixTree, paths: int, by_law: Iterable[str] = ()) -> dict[str, float]:
    """Acceptance length of each lossless stateless verifier, then the lossless optimum."""
    from specbound.proofs_checks.laws.law import exact_law
    from specbound.runtime.verifiers import of_closed_form
    from specbound.theory.known_values import known_values
    from specbound.theory.optima import certified_optimum

    values = {name: exact_law(name, tree, paths).acceptance_length for name in by_law}
    known = [(of_closed_form(value.name), value.value) for value in known_values(tree, paths)]
    values |= {verifier.name: value for verifier, value in known if not verifier.stateful}
    return values | {"lossless optimum": certified_optimum(tree, paths).value}


def _curves(progress: Progress) -> Section:
    """The published example against K and against L."""
    from fractions import Fraction

    from specbound.report import curves_section
    from specbound.theory.prefix_tree import PrefixTree

    third = Fraction(1, 3)
    task = progress.add_task("curves", total=len(CURVE_PATHS) + len(CURVE_LENGTHS))

    def values(length: int, paths: int) -> dict[str, float]:
        tree = PrefixTree.iid([third, 2 * third], [2 * third, third], length)
        found = _values(tree, paths, by_law=("traversal", "single-step-optimal"))
        progress.advance(task)
        return found

    over_paths = {paths: values(FIXED_LENGTH, paths) for paths in CURVE_PATHS}
    over_lengths = {length: values(length, FIXED_PATHS) for length in CURVE_LENGTHS}
    name = "V = 2, target (1/3, 2/3), draft (2/3, 1/3)"
    return curves_section(name, over_paths, over_lengths, FIXED_LENGTH, FIXED_PATHS)


def _gaps(progress: Progress, random_count: int, contexts: int) -> list[Section]:
    """Fractions of the optimum on random trees and on trees of the shipped pair, and one such tree drawn."""
    from specbound.proofs_checks.claims.instances import random_instances
    from specbound.report import gaps_section, tree_section
    from specbound.theory import single_path

    task = progress.add_task("random trees", total=random_count)
    fractions = _fractions(progress, task, random_instances(random_count))
    text = "Unrelated random models, V 2..3, L 1..3, two drafted paths."
    sections = [gaps_section("Optimality gaps, random trees", "random", text, fractions)]
    if contexts:
        trees = _model_trees(contexts)
        task = progress.add_task("trees of the shipped pair", total=contexts)
        text = "The shipped pair at held-out prompts, top-k 3, draft length 3, two drafted paths."
        fractions = _fractions(progress, task, iter(trees))
        sections.append(gaps_section("Optimality gaps, real models", "models", text, fractions))
        drawn = min(trees, key=lambda tree: tree.size)
        sections.append(tree_section("The shipped pair at a held-out prompt", drawn, single_path.optimum(drawn).phi))
    return sections


def _fractions(progress: Progress, task: Any, trees: Iterable[PrefixTree]) -> dict[str, list[float]]:
    fractions: dict[str, list[float]] = {}
    for tree in trees:
        values = _values(tree, 2)
        best = values.pop("lossless optimum")
        for name, value in values.items():
            fractions.setdefault(name, []).append(value / best if best > 0 else 1.0)
        progress.advance(task)
    count = max(map(len, fractions.values()))
    return {name: values for name, values in fractions.items() if len(values) == count}


def _model_trees(count: int) -> list[PrefixTree]:
    from specbound.commands.pair import read_pair
    from specbound.proofs_checks.laws.model_trees import from_models
    from specbound.shipped_pair import prompts

    pair = read_pair()

    def name_of(token: int) -> str:
        return str(pair.tokenizer.decode([token]))

    trees = []
    for entry in prompts()[:count]:
        context = pair.tokenizer(entry["text"], return_tensors="pt")["input_ids"][0]
        trees.append(from_models(pair.target, pair.draft, context, length=3, top_k=3, decode=name_of))
    return trees
