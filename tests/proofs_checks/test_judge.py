"""The judge is never wrong about "lossless": nothing looked at, state, late failures and contradictions are no pass."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from specbound import __version__, cli
from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.laboratory import Laboratory
from specbound.proofs_checks.claims import ledger
from specbound.proofs_checks.laws import judge as judging
from specbound.proofs_checks.laws.deviation import find_deviation
from specbound.proofs_checks.laws.judge import (
    Evidence,
    Judgement,
    combined,
    contradiction,
    evidence,
    judge,
    looped_pair,
    optimum,
    verdict,
)
from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.measured import measure, measuring_trees
from specbound.proofs_checks.laws.replay import InvalidResult, TooLarge
from specbound.proofs_checks.laws.stream import stream_law
from specbound.proofs_checks.sweep.case import measure as measure_case
from specbound.proofs_checks.sweep.design import Design, cases
from specbound.proofs_checks.sweep.results import by_method, method_cells, row_of, with_fractions
from specbound.proofs_checks.sweep.store import Store
from specbound.runtime import registry
from specbound.runtime.verifiers import get
from specbound.theory.prefix_tree import PrefixTree
from tests.support import zoo
from tests.support.strategies import PUBLISHED

ONE = {"vocab": range(2, 3), "length": range(2, 3), "paths": range(1, 2)}


@pytest.fixture
def run(capsys):
    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(list(arguments))
        shown = capsys.readouterr()
        return stopped.value.code, shown.out, shown.err

    return command


# ---------------------------------------------------------------------- nothing looked at


def test_an_audit_that_looked_at_nothing_is_undecided_and_says_what_to_change(run):
    arguments = ("audit", "block", "--vocab", "10", "--length", "4", "--paths", "1", "--cases", "1")
    code, out, _ = run(*arguments, "--json")
    report = json.loads(out)
    assert (code, report["verdict"], report["lossless"], report["cases"]) == (3, "undecided", None, 0)
    assert "--vocab" in report["advice"]
    few = audit("block", range(5, 6), range(4, 5), range(1, 2), 1)
    assert "undecided" in report_text(few).plain
    assert "To decide it: take instances small enough" in report_text(few).plain


def test_nothing_is_no_verdict():
    assert judge("block", []).verdict == combined([]).verdict == verdict([], [], 1e-9) == "undecided"
    assert judge("block", []).reason == judging.NOTHING


@pytest.mark.parametrize(
    "distances, troubles, word",
    [
        ([0.0], [], "lossless"),
        ([0.0, 0.1], [], "not lossless"),
        ([float("nan")], [], "not lossless"),
        ([0.1], ["exception"], "not lossless"),
        ([0.0], ["exception"], "broken"),
        ([0.0], ["hang", "not exact"], "broken"),
        *(([0.0], [kind], "undecided") for kind in ("not exact", "too large", "stateful", "contradiction")),
        ([], ["too large"], "undecided"),
    ],
)
def test_one_rule_makes_every_verdict(distances, troubles, word):
    assert verdict(distances, troubles, 1e-9) == word


def test_the_worst_part_decides():
    parts = [Judgement("lossless", 0.0), Judgement("undecided", None, "why"), Judgement("lossless", 1e-16)]
    assert combined(parts) == Judgement("undecided", 1e-16, "why")
    assert combined([*parts, Judgement("not lossless", 0.1)]) == Judgement("not lossless", 0.1)
    assert combined([*parts, Judgement("broken", None, "x")]).lossless is False


# ---------------------------------------------------------------------- state


STATEFUL = (
    zoo.greedy_block_that_ignores_the_carry_it_is_given,
    zoo.greedy_block_that_forgets_its_carry,
    zoo.greedy_block_that_carries_only_behind_a_rejection,
)


@pytest.mark.parametrize("verify", STATEFUL)
def test_a_verifier_that_breaks_its_stream_is_not_lossless_wherever_it_is_judged(verify):
    assert judge(verify, [(PUBLISHED, 1)]).verdict == "not lossless"
    assert measure(replace(get("greedy-block"), verify=verify)).verdict == "not lossless"


def test_greedy_block_that_ignores_its_carry_is_one_ninth_off_over_four_tokens():
    found = evidence(zoo.greedy_block_that_ignores_the_carry_it_is_given, PUBLISHED)
    assert found.stateful
    assert len(next(iter(found.blocks))) == 4
    assert found.total_variation == pytest.approx(1 / 9, abs=1e-12)
    assert evidence("greedy-block", PUBLISHED).total_variation < 1e-12


def test_the_law_of_one_call_of_a_stateful_verifier_is_not_compared_with_the_targets():
    law = exact_law("greedy-block", PUBLISHED)
    assert law.stateful
    assert sum(law.blocks.values()) == pytest.approx(1, abs=1e-12)
    assert {len(block) for block in law.blocks} == {1, 3}
    with pytest.raises(ValueError, match="says nothing about its stream"):
        law.total_variation(PUBLISHED.target_law())
    assert not exact_law("block", PUBLISHED).stateful


def test_a_verifier_that_raises_where_a_probe_would_look_is_still_seen_to_be_stateful():
    verify = zoo.greedy_block_that_forgets_its_carry_and_raises_below_three_tokens
    report = audit(verify, range(3, 4), range(2, 3), range(1, 2), 1)
    assert (report.verdict, report.lossless, report.optimum) == ("not lossless", False, "block-transport")
    small = audit(verify, range(2, 4), range(2, 3), range(1, 2), 4)
    assert {breakdown.kind for breakdown in small.breakdowns} == {"exception"}
    assert small.exit_code == 1


def test_a_carry_on_one_instance_makes_a_verifier_stateful_on_all():
    """Without zeros nothing is carried here, and the first instance alone would be judged by one call."""
    sound = get("greedy-block").verify

    def carries_on_zeros_only(batch, draws):
        verdict = sound(batch, draws)
        return verdict if bool((batch.target_probs == 0).any()) else replace(verdict, carry=None)

    smooth, zeros = PUBLISHED, PrefixTree.iid([0.5, 0.5, 0], [0.2, 0.3, 0.5], 1)
    asked = []

    def spy(verify, tree, paths, stateful):
        asked.append(stateful)
        return evidence(verify, tree, paths, stateful)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "evidence", spy)
        judge(carries_on_zeros_only, [(smooth, 1), (zeros, 1)])
    assert asked == [False, False, True, True]


def test_streams_with_and_without_a_carry_are_followed_side_by_side():
    """Block verification that carries something useless behind a rejection only is lossless all the same."""
    block, greedy = get("block").verify, get("greedy-block").verify

    def verify(batch, draws):
        verdict = block(replace(batch, carry=None), draws)
        carry = greedy(replace(batch, carry=None), torch_first(draws)).carry
        return replace(verdict, carry=None if bool((verdict.accepted == 2).all()) else carry)

    class torch_first:
        def __init__(self, draws):
            self.draws = draws

        def accept_last(self, probability):
            return torch.zeros(len(probability), dtype=torch.int64)

        def choose(self, weights):
            return weights.argmax(dim=-1)

    found = evidence(verify, PUBLISHED)
    assert found.stateful
    assert found.total_variation < 1e-12


def test_a_carry_that_is_none_is_an_invalid_result():
    with pytest.raises(InvalidResult, match=r"carry is .*calls.*, without select\(\)"):
        exact_law(zoo.carries_nothing_of_use, PUBLISHED)
    assert judge(zoo.carries_nothing_of_use, [(PUBLISHED, 1)]).verdict == "broken"

    class Short:
        select = joined = numbers = staticmethod(lambda *_: torch.zeros(1, 1))

    def one_state_for_all(batch, draws):
        return replace(zoo.correct_tensors(batch, draws), carry=Short())

    with pytest.raises(InvalidResult, match=r"gives \(1, 1\); want a tensor of shape \(4, any\)"):
        exact_law(one_state_for_all, PUBLISHED)


def test_a_stream_too_large_to_enumerate_is_undecided_and_keeps_its_acceptance_length(monkeypatch):
    monkeypatch.setattr("specbound.proofs_checks.laws.stream.MAX_ROWS", 10)
    with pytest.raises(TooLarge) as refused:
        evidence("greedy-block", PUBLISHED)
    assert refused.value.acceptance_length == pytest.approx(4 / 3)
    found = judge("greedy-block", [(PUBLISHED, 1)])
    assert (found.verdict, found.lossless) == ("undecided", None)
    assert "lower length or paths" in found.reason
    assert judge("block", [(PUBLISHED, 1)]).lossless
    report = audit("greedy-block", **ONE, cases=2)
    assert (report.verdict, report.exit_code, report.cases) == ("undecided", 3, 0)


def test_a_tree_becomes_two_models_for_an_endless_stream():
    tree = PrefixTree.random(2, 3, seed=3)
    pair = looped_pair(tree)
    assert pair.target_law(3).keys() == {block[:3] for block in tree.target_law()}
    assert stream_law("block", pair, 3, 5).total_variation(pair.target_law(5)) < 1e-12
    thin = PrefixTree.from_conditionals(lambda w: [1, 0], lambda w: [1, 0], 2, 2)
    assert looped_pair(thin).target.successor.min() >= 0


# ---------------------------------------------------------------------- contradictions


def test_a_lossless_verdict_above_the_certified_optimum_is_a_contradiction():
    best = optimum(PUBLISHED, 1)
    assert contradiction(best.value, best.bound) is None
    assert contradiction(best.bound + 1e-12, best.bound) is None
    assert "not lossless over several calls" in contradiction(best.bound + 1e-6, best.bound)


def forged(tree, paths, stateful=False, thorough=False):
    """Evidence that cannot be: the target's law, and more tokens kept than any lossless verifier can keep."""
    wanted = {block: float(probability) for block, probability in tree.target_law().items()}
    return Evidence(wanted, wanted, optimum(tree, paths).bound + 0.01, 4, False)


def test_an_audit_reports_a_contradiction_instead_of_a_ratio_above_one(monkeypatch):
    monkeypatch.setattr(Laboratory, "evidence", lambda self, *arguments, **options: forged(*arguments, **options))
    report = audit("block", **ONE, cases=3)
    assert (report.verdict, report.lossless, report.exit_code) == ("undecided", None, 3)
    assert report.breakdowns[0].kind == "contradiction"
    assert report.acceptance == {}
    assert "no lossless verifier keeps more" in report_text(report).plain
    assert "ratio" not in report_text(report).plain


def test_the_judge_and_a_sweep_report_a_contradiction_too(monkeypatch):
    monkeypatch.setattr(judging, "evidence", lambda verify, tree, paths, stateful: forged(tree, paths))
    assert judge("block", [(PUBLISHED, 1)]).verdict == "undecided"
    row = dict.fromkeys(("number", "id", "instance", "vocab", "length", "concentration", "replicate", "instance_seed"))
    row |= dict.fromkeys(("context", "top_k", "temperature", "draft_temperature", "paths", "bound", "error"))
    row |= {"status": "done", "total_variation": 0.0, "seconds": 0.0}
    rows = [
        row | {"method": "lossless-optimum", "value": 0.5, "bound": 0.5, "verdict": None, "lossless": True},
        row | {"method": "honest", "value": 0.5, "verdict": "lossless", "lossless": True},
        row | {"method": "forged", "value": 0.6, "verdict": "lossless", "lossless": True},
        row | {"method": "stateful", "value": 0.6, "verdict": "lossless", "lossless": True, "stateful": True},
    ]
    checked = {found["method"]: found for found in with_fractions([{"stateful": None, **entry} for entry in rows])}
    assert (checked["honest"]["verdict"], checked["honest"]["fraction"]) == ("lossless", 1.0)
    assert (checked["forged"]["verdict"], checked["forged"]["lossless"]) == ("undecided", None)
    assert checked["forged"]["fraction"] is None
    assert "no lossless verifier keeps more" in checked["forged"]["error"]
    assert checked["stateful"]["verdict"] == "lossless"
    summary = {entry["method"]: entry for entry in by_method(list(checked.values()))}
    assert (summary["forged"]["lossless"], summary["forged"]["undecided"]) == (None, 1)
    assert any("undecided" in cell for cells in method_cells(list(summary.values())) for cell in cells)


# ---------------------------------------------------------------------- failures on the way to the counterexample


@pytest.mark.parametrize("then, kind", [(zoo.raises, "exception"), (zoo.out_of_range, "invalid result")])
@pytest.mark.parametrize("late", [1, 4])
def test_code_that_breaks_down_while_it_is_shrunk_is_a_finding(then, kind, late):
    counted = zoo.Late(10**9, then)
    assert audit(with_signature(counted), range(3, 4), range(1, 2), range(1, 2), 1).verdict == "not lossless"
    report = audit(with_signature(zoo.Late(counted.asked - late, then)), range(3, 4), range(1, 2), range(1, 2), 1)
    assert (report.verdict, report.exit_code) == ("not lossless", 1)
    assert kind in {breakdown.kind for breakdown in report.breakdowns}
    assert len(report.counterexample.story) == 5


def with_signature(late):
    return lambda batch, draws: late(batch, draws)


@pytest.mark.parametrize("calls", range(1, 12, 2))
def test_wherever_it_starts_to_raise_the_audit_ends_with_a_report(calls):
    report = audit(with_signature(zoo.Late(calls, zoo.raises)), range(3, 4), range(1, 2), range(1, 2), 2)
    assert report.verdict in ("not lossless", "broken")
    assert report.breakdowns
    assert report.counterexample is not None


def test_what_breaks_on_smaller_instances_only_is_told_with_the_counterexample():
    report = audit(zoo.breaks_on_smaller_instances, range(3, 4), range(1, 2), range(1, 2), 2)
    assert report.verdict == "not lossless"
    assert PrefixTree.from_json(report.counterexample.instance).vocab == 3
    assert {breakdown.kind for breakdown in report.breakdowns} == {"invalid result"}
    assert "made from one where its law is wrong" in report.breakdowns[0].message


def test_a_hang_while_shrinking_ends_the_search_and_is_told():
    name = "tests.support.zoo:hangs_on_smaller_instances"
    report = audit(name, range(3, 4), range(1, 2), range(1, 2), 1, seconds=5.0)
    assert report.verdict == "not lossless"
    assert [breakdown.kind for breakdown in report.breakdowns] == ["hang"]
    assert report.counterexample is not None
    assert report.seconds < 60


# ---------------------------------------------------------------------- what is told of a failure


def test_rounding_does_not_hide_the_mistake_behind_it():
    tree = PrefixTree.iid([0.25, 0.75], [0.5, 0.5], 1)
    found = evidence(zoo.rounding_in_front_of_a_mistake, tree)
    assert find_deviation(found.blocks, found.wanted, 1e-9).position == 1
    report = audit(zoo.rounding_in_front_of_a_mistake, range(2, 3), range(1, 3), range(1, 2), 4)
    assert (report.verdict, report.position) == ("not lossless", 2)
    assert report.counterexample.deviation.position == 2


def test_one_maximum_and_the_kinds_of_instances_that_fail_are_told():
    report = audit(zoo.correction_from_the_target_row, range(2, 4), range(1, 2), range(1, 2), 12)
    assert report.largest_total_variation >= report.counterexample.deviation.total_variation
    assert report.worst.total_variation == report.largest_total_variation
    assert all(0 < wrong <= looked for wrong, looked in report.failed.values())
    assert sum(wrong for wrong, _ in report.failed.values()) <= report.cases
    assert json.loads(json.dumps(report.to_dict()))["failed"]["independent"][1] >= 1
    assert "instances fail: " in report_text(report).plain
    assert audit("block", **ONE, cases=2).failed == {}


# ---------------------------------------------------------------------- the registry and sweeps


@pytest.fixture
def registered(monkeypatch):
    """Enter a verifier for one test."""

    def enter(verify, **facts):
        entry = replace(get("token"), name="entered", verify=verify, **facts)
        monkeypatch.setattr(registry, "_VERIFIERS", {"token": get("token"), "entered": entry})

    return enter


@pytest.mark.parametrize(
    "verify, verdict, code, words",
    [
        (zoo.correct_tensors, "lossless", 0, ""),
        (zoo.out_of_range, "broken", 1, "broken: entered: InvalidResult: the verdict's token is"),
        (zoo.raises, "broken", 1, "broken: entered: RuntimeError: late"),
        (zoo.block_with_token_residual, "not lossless", 1, "measured otherwise than declared: entered"),
        (zoo.greedy_block_that_ignores_the_carry_it_is_given, "not lossless", 1, "measured otherwise"),
    ],
)
def test_the_registry_is_measured_by_the_judge(run, registered, verify, verdict, code, words):
    registered(verify)
    found, out, err = run("verifiers", "--json")
    entry = json.loads(out)["verifiers"][1]
    assert (found, entry["verdict"], entry["measured_lossless"]) == (
        code,
        verdict,
        {"lossless": True}.get(verdict, False),
    )
    assert words in err
    assert run("verifiers")[0] == code


def test_a_registered_verifier_that_cannot_be_decided_is_exit_code_3(run, registered, monkeypatch):
    monkeypatch.setattr("specbound.proofs_checks.laws.stream.MAX_ROWS", 1)
    registered(get("greedy-block").verify, stateful=True)
    code, out, err = run("verifiers", "--json")
    entry = json.loads(out)["verifiers"][1]
    assert (code, entry["verdict"], entry["measured_lossless"]) == (3, "undecided", None)
    assert "lower length or paths" in entry["note"]
    assert "undecided: entered" in err


def test_a_sweep_judges_a_stateful_verifier_by_its_stream(monkeypatch):
    name = "tests.support.zoo:greedy_block_that_ignores_the_carry_it_is_given"
    wrong, right = (measure_case(PUBLISHED, 1, method, 1e-6) for method in (name, "greedy-block"))
    assert (wrong["verdict"], wrong["lossless"], wrong["stateful"]) == ("not lossless", False, True)
    assert (right["verdict"], right["lossless"], right["stateful"]) == ("lossless", True, True)
    assert right["value"] == wrong["value"] == pytest.approx(4 / 3)
    monkeypatch.setattr("specbound.proofs_checks.laws.stream.MAX_ROWS", 1)
    large = measure_case(PUBLISHED, 1, "greedy-block", 1e-6)
    assert large["value"] == pytest.approx(4 / 3)
    assert large["verdict"] == "undecided"
    assert "lossless" not in large
    assert "lower length or paths" in large["error"]


def test_every_measuring_tree_of_a_stateful_verifier_is_followed():
    assert sum(len(tree.bonus) ** 2 <= 30 for tree in measuring_trees()) >= 4


def test_check_says_which_finding_is_undecided_and_exits_with_3(run, monkeypatch):
    sound = next(iter(ledger.run(ledger.select(["BV-example"]))))
    assert sound.recorded
    for changes, code in (({}, 0), ({"verdict": "undecided"}, 3), ({"verdict": "undecided", "recorded": False}, 1)):
        found = [replace(sound, **changes)]
        monkeypatch.setattr(ledger, "run", lambda *_, found=found: iter(found))
        assert run("check", "--only", "BV-example", "--json")[0] == code
    assert "specbound: undecided: BV-example" in run("check", "--only", "BV-example")[2]


@pytest.mark.parametrize("undecided", [False, True])
def test_a_sweep_and_its_report_exit_with_3_if_a_verdict_is_undecided(run, tmp_path, undecided):
    design = Design(version=__version__, methods=("greedy-block",), vocab=(2,), length=(1,), paths=(1,), replicates=1)
    (case,) = cases(design)
    facts = {"verdict": "lossless", "lossless": True, "total_variation": 0.0}
    facts = {"verdict": "undecided", "error": "too many to enumerate"} if undecided else facts
    with Store(tmp_path / "sweep", design) as store:
        store.append(row_of(case, value=0.5, stateful=True, status="done", seconds=0.1, nodes=3, **facts))
    code, out, err = run("sweep", "--out", str(tmp_path / "sweep"), "--json")
    (method,) = json.loads(out)["methods"]
    assert (code, method["verdict"], method["lossless"]) == (
        (3, "undecided", None) if undecided else (0, "lossless", True)
    )
    assert ("undecided on some instances: greedy-block" in err) == undecided
    assert run("report", str(tmp_path / "out.html"), "--sweep", str(tmp_path / "sweep"))[0] == code
