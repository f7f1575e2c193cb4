"""The part of `specbound solve` that answers how long the draft should be (`--mdp FILE`)."""

from __future__ import annotations

from typing import Any

from specbound.commands.instance import print_json
from specbound.commands.terminal import print_table
from specbound.files import read_text


def solve_draft_length(file: str, as_json: bool) -> None:
    """Solve the stopping problem in a JSON file, and print the report of `theory.stopping.solve_report`.

    Raises:
        ValueError: the file is not such an instance; the message names field, value and fix.
    """
    from specbound.theory.stopping import StoppingInstance, solve_report

    text = read_text("--mdp", file)
    try:
        instance = StoppingInstance.from_json(text)
    except ValueError as error:
        raise ValueError(f"--mdp {file}: {error}") from None
    report = solve_report(instance)
    if as_json:
        print_json(report)
    else:
        _print_tables(report)


def _print_tables(report: dict[str, Any]) -> None:
    from rich.table import Table

    instance = report["instance"]
    rates = Table(
        title=f"{instance['verifier']} verification, {instance['contexts']} contexts, target pass "
        f"{instance['target_time']['value']:g}, drafted token {instance['draft_time']['value']:g}, "
        f"at most {instance['max_length']} drafted",
        caption="committed tokens per unit of time, in the long run",
    )
    rates.add_column("rule for stopping the draft")
    for column in ("tokens per time", "exact", "of the optimum"):
        rates.add_column(column, justify="right")

    def add(rule: str, rate: dict[str, Any]) -> None:
        rates.add_row(rule, f"{rate['value']:.6f}", rate["exact"] or "", f"{100 * rate.get('share', 1):.2f} %")

    add("optimal", report["eta"])
    theta, lagged = (report[key]["theta"]["value"] for key in ("best_threshold", "best_lagged_threshold"))
    add(f"best global threshold, R > {theta:.4g}", report["best_threshold"]["eta"])
    add(f"the same one token late, R > {lagged:.4g}", report["best_lagged_threshold"]["eta"])
    add("one-step look-ahead", report["one_step_look_ahead"]["eta"])
    for entry in report["constant_lengths"]:
        add(f"always {entry['length']} tokens", entry["eta"])
    print_table(rates)
    if report["stop_thresholds"] is None:
        return
    stops = Table(caption="R: probability that the draft so far contains a rejection")
    stops.add_column("context", justify="right")
    stops.add_column("drafts left", justify="right")
    stops.add_column("stop if R >=", justify="right")
    for entry in report["stop_thresholds"]:
        threshold = entry["stop_if_rejection_at_least"]["value"]
        stops.add_row(str(entry["context"]), str(entry["remaining"]), f"{threshold:.4f}")
    print_table(stops)
