"""The audit finds every animal of the zoo, at its place, and clears every correct verifier."""

import itertools
import json
import random
from fractions import Fraction

import pytest
import torch

from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.foreign.adapters import (
    Call,
    InvalidResult,
    emitted_tokens,
    foreign,
    foreign_law,
    hugging_face,
)
from specbound.proofs_checks.audit.laboratory import laboratory
from specbound.proofs_checks.audit.mistakes import MISTAKES
from specbound.proofs_checks.audit.report import Case
from specbound.proofs_checks.audit.subject import load
from specbound.proofs_checks.laws.deviation import distance, find_deviation, marginal
from specbound.proofs_checks.laws.instances import instances
from specbound.proofs_checks.laws.judge import optimum
from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime import registry
from specbound.theory.prefix_tree import PrefixTree
from tests.support import zoo

HUGGING_FACE = "transformers.generation.utils:_speculative_sampling"
SMALL = {"vocab": range(2, 4), "length": range(1, 3)}


def name_of(value):
    return getattr(getattr(value, "verify", value), "__name__", None)


@pytest.mark.slow
@pytest.mark.parametrize("animal", zoo.BROKEN, ids=name_of)
def test_every_broken_verifier_is_found_at_its_position_and_its_cause_named(animal):
    report = audit(animal.verify, **SMALL, paths=range(1, animal.paths + 1), cases=24 * animal.paths)
    assert (report.verdict, report.lossless, report.exit_code) == ("not lossless", False, 1)
    assert report.position == animal.position
    if animal.cause is None:
        assert report.causes == ()
    else:
        assert len(report.causes) == 1
        assert animal.cause in report.causes[0]
    assert_counterexample_is_minimal_and_exact(report, animal)


def assert_counterexample_is_minimal_and_exact(report, animal):
    """The printed fractions are those of the law on the printed instance, computed again."""
    found = report.counterexample
    tree = PrefixTree.from_json(found.instance)
    assert len(found.story) == 5
    assert tree.exact
    assert (tree.vocab, tree.length, found.paths) <= (3, 2, animal.paths)
    with laboratory(animal.verify, 10, 1000) as lab:
        evidence = lab.evidence(tree, found.paths)
    deviation = find_deviation(evidence.blocks, tree.target_law(), 1e-9)
    assert deviation == found.deviation
    assert deviation.position == min(report.position, tree.length + 1)
    block = (*deviation.prefix, deviation.token)
    assert found.wanted == marginal(tree.target_law(), deviation.position).get(block, 0)
    if found.emitted is not None:
        assert abs(float(found.emitted) - marginal(evidence.blocks, deviation.position)[block]) < 1e-13
        assert str(found.emitted - found.wanted) in found.story[3]


@pytest.mark.parametrize("verifier", zoo.CORRECT, ids=name_of)
def test_every_correct_verifier_is_cleared(verifier):
    report = audit(verifier, **SMALL, paths=range(1, 3), cases=28)
    assert (report.verdict, report.exit_code, report.position) == ("lossless", 0, None), report.to_dict()
    assert report.counterexample is None
    assert report.cases == 28


def test_shrinking_keeps_to_the_first_mistake_where_another_would_be_smaller():
    report = audit(zoo.two_mistakes, vocab=range(3, 4), length=range(1, 2), cases=4)
    assert report.position == 1
    assert report.counterexample.deviation.position == 1
    assert PrefixTree.from_json(report.counterexample.instance).vocab == 3


def test_a_stateful_verifier_is_followed_over_several_calls():
    """Its first call is that of greedy block verification; the second call ignores the carry."""
    broken = zoo.greedy_block_that_ignores_the_carry_it_is_given
    tree = PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2)
    assert exact_law(broken, tree).stateful
    report = audit(broken, vocab=range(2, 3), length=range(2, 3), paths=range(1, 2), cases=8)
    assert (report.verdict, report.position) == ("not lossless", 2)
    assert len(report.counterexample.story) == 5
    assert report.counterexample.emitted > report.counterexample.wanted
    sound = audit("greedy-block", vocab=range(2, 3), length=range(2, 3), cases=8)
    assert sound.verdict == "lossless"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_forty_instances_of_four_sizes_show_what_only_the_largest_size_can(seed):
    report = audit(zoo.duplicates_skipped, range(2, 4), range(1, 2), range(1, 3), cases=40, seed=seed)
    assert report.verdict == "not lossless"


def test_the_zoo_is_large_enough_and_speaks_for_itself():
    assert len(zoo.BROKEN) >= 15
    assert {animal.position for animal in zoo.BROKEN} == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in registry.names() if name != "table"])
def test_registered_verifiers_are_what_they_declare(name):
    stateful = registry.get(name).stateful
    length = range(2, 3) if stateful else range(1, 3)
    report = audit(name, vocab=range(2, 3) if stateful else range(2, 4), length=length, cases=6 if stateful else 12)
    assert report.lossless == registry.get(name).lossless, report_text(report).plain
    assert report.declared == registry.get(name).lossless


def test_transformers_own_verifier_is_audited_unchanged_in_a_sandbox():
    report = audit(HUGGING_FACE, vocab=range(2, 4), length=range(1, 3), cases=6)
    assert report.verdict == "lossless", report_text(report).plain
    assert report.way == "interception"


def test_transformers_own_verifier_has_exactly_the_law_of_token_verification():
    from transformers.generation.utils import _speculative_sampling

    tree = PrefixTree.random(3, 2, seed=5)
    law, token = foreign_law(hugging_face(_speculative_sampling), tree), exact_law("token", tree)
    assert law.total_variation(token.blocks) < 1e-12
    assert abs(law.acceptance_length - token.acceptance_length) < 1e-12
    assert all(abs(law.kept[prefix] - token.kept[prefix]) < 1e-12 for prefix in token.kept)


def test_a_biased_mode_of_transformers_is_caught():
    """Ensemble verification relaxes the target's law on purpose; a lossless audit must say so."""
    from transformers.generation.utils import _speculative_sampling

    def ensemble(candidate_input_ids, candidate_logits, candidate_length, new_logits):
        return _speculative_sampling(candidate_input_ids, candidate_logits, candidate_length, new_logits, 0.5)

    report = audit(hugging_face(ensemble), vocab=range(2, 3), length=range(1, 2), paths=range(1, 2), cases=8)
    assert (report.verdict, report.position) == ("not lossless", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "verifier, kind, words",
    [
        ("segfault", "crash", "SIGSEGV"),
        ("dies", "exit", "code 7"),
        ("hungry", "memory", "MiB"),
        ("endless", "hang", "1 seconds"),
    ],
)
def test_code_that_takes_its_process_down_is_a_finding(verifier, kind, words):
    report = audit(f"tests.support.zoo:{verifier}", vocab=range(2, 3), length=range(1, 2), cases=1, seconds=1)
    assert (report.verdict, report.exit_code) == ("broken", 1)
    assert report.breakdowns[0].kind == kind
    assert words in report.breakdowns[0].message
    assert report.lossless is False


@pytest.mark.parametrize(
    "verifier, kind, words",
    [
        (zoo.token_out_of_range, "invalid result", "tokens are 0..1"),
        (zoo.divides_by_zero, "exception", "ZeroDivisionError"),
        (zoo.token_cut_to_the_shortest_of_the_batch, "invalid result", "other requests in its batch"),
    ],
    ids=name_of,
)
def test_code_that_returns_nonsense_is_a_finding_with_the_smallest_instance(verifier, kind, words):
    report = audit(verifier, vocab=range(2, 3), length=range(1, 3), paths=range(1, 2), cases=24)
    assert report.verdict in ("broken", "not lossless")
    assert report.breakdowns[0].kind == kind
    assert words in report.breakdowns[0].message
    if report.verdict == "broken":
        assert PrefixTree.from_json(report.counterexample.instance).length == 1
        assert len(report.counterexample.story) == 5


@pytest.mark.parametrize("verifier", [zoo.hidden_generator, zoo.looks_at_the_number], ids=name_of)
def test_what_cannot_be_enumerated_is_undecided_and_sent_to_the_sampled_audit(verifier):
    report = audit(verifier, vocab=range(2, 3), length=range(1, 2), cases=2)
    assert (report.verdict, report.lossless, report.exit_code) == ("undecided", None, 3)
    assert "sampled audit" in report.breakdowns[0].message
    assert "--resolution" in report.advice


@pytest.mark.parametrize("resolution", [None, 0.7])
def test_progress_is_told_before_each_instance(resolution):
    told = []
    audit(
        "token", range(2, 3), range(1, 2), range(1, 2), 3, resolution=resolution, progress=lambda *at: told.append(at)
    )
    assert told == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("device", ["", "meta", "nowhere", "cuda:99"])
def test_a_device_that_cannot_be_used_is_not_the_verifiers_fault(device):
    with pytest.raises(ValueError, match=f"device is '{device}', which"):
        audit("token", range(2, 3), range(1, 2), range(1, 2), 1, resolution=0.7, device=device)


def test_acceptance_is_measured_against_the_lossless_optimum():
    report = audit("token", vocab=range(2, 3), length=range(2, 3), cases=26)
    block = audit("block", vocab=range(2, 3), length=range(2, 3), cases=26)
    assert report.acceptance["mean_length"] < report.acceptance["mean_optimum"]
    assert abs(block.acceptance["smallest_ratio"] - 1) < 1e-9
    assert report.acceptance["mean_optimum"] == block.acceptance["mean_optimum"]
    assert optimum(PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2), 1).value == pytest.approx(11 / 9)
    assert optimum(PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2), 2).value == pytest.approx(131 / 81)
    greedy = audit(zoo.greedy_block_that_forgets_its_carry, vocab=range(2, 3), length=range(2, 3), cases=13)
    assert greedy.acceptance["largest_excess"] > 1e-3
    assert "more than any lossless verifier could" in report_text(greedy).plain


def test_the_report_is_json_and_text_and_says_what_was_not_looked_at():
    report = audit(zoo.target_instead_of_residual, vocab=range(2, 3), length=range(1, 2), cases=4)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["lossless"] is False
    assert Fraction(data["counterexample"]["emitted"]) > Fraction(data["counterexample"]["wanted"])
    assert PrefixTree.from_json(data["counterexample"]["instance"]).vocab == 2
    text = report_text(report).plain
    for words in ("not lossless", "position 1", "Likely cause", "Not looked at", *report.counterexample.story):
        assert words in text


@pytest.mark.parametrize("paths", [1, 2])
def test_known_mistakes_are_lossy_and_can_be_told_apart(paths):
    trees = [PrefixTree.random(3, 2, seed=seed, concentration=1.0) for seed in (1, 4)]
    trees.append(PrefixTree.iid([0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], 1))
    firsts = {mistake.group: mistake for mistake in reversed(MISTAKES.values())}
    mistakes = [mistake for mistake in firsts.values() if (mistake.paths == "single") == (paths == 1)]
    laws = {mistake.name: [mistake.law(tree, paths).blocks for tree in trees] for mistake in mistakes}
    laws["none"] = [tree.target_law() for tree in trees]
    for one, other in itertools.combinations(laws, 2):
        assert max(map(distance, laws[one], laws[other])) > 1e-6, (one, other)
    assert all(abs(sum(law.values()) - 1) < 1e-12 for pair in laws.values() for law in pair)


@pytest.mark.parametrize(
    "target, message",
    [
        ("no-such-verifier", "known are"),
        ("no.such.module:verify", "No module named"),
        ("tests.support.zoo:no_such_function", "no_such_function"),
        ("tests.support.zoo:SECRET", "want a function"),
        ("tests.support.zoo:pick", "unknown meaning"),
    ],
)
def test_targets_that_cannot_be_audited_are_bad_input(target, message):
    with pytest.raises(ValueError, match=message):
        load(target)


def test_bad_input_is_told_through_the_sandbox_too():
    with pytest.raises(ValueError, match="No module named"):
        audit("no.such.module:verify", cases=1)


def test_adapters_read_the_usual_results_and_layouts():
    import numpy as np
    import torch

    call = Call(np.array([[2, 1]]), np.full((1, 2, 3), 1 / 3), np.full((1, 3, 3), 1 / 3))
    assert emitted_tokens([2, 0], call) == [2, 0]
    assert emitted_tokens(torch.tensor([[2, 1, 0, -1]]), call) == [2, 1, 0]
    assert emitted_tokens((torch.tensor([[2, 1]]), torch.tensor(1)), call) == [2, 1]
    assert emitted_tokens((1, 0), call) == [2, 0]
    seen = {}

    def takes(draft_token_ids: torch.Tensor, q_logits, my_p, gamma, rng=None, other=3):
        seen.update(locals())
        return [0]

    adapter = foreign(takes, target_probs="my_p", batched=True)
    assert adapter(call) == (0,)
    assert seen["draft_token_ids"].tolist() == [[2, 1]]
    assert seen["q_logits"].shape == (1, 2, 3)
    assert seen["my_p"].dtype == torch.float64
    assert (seen["gamma"], seen["other"]) == (2, 3)
    assert isinstance(seen["rng"], np.random.Generator)
    with pytest.raises(ValueError, match="unknown meaning"):
        foreign(takes)
    with pytest.raises(ValueError, match="drafted tokens"):
        foreign(lambda q, p: [0])
    with pytest.raises(ValueError, match="parameter of the function"):
        foreign(takes, tokens="nothing")
    with pytest.raises(InvalidResult, match=r"1 to L\+1"):
        foreign(lambda tokens: [])(call)
    with pytest.raises(InvalidResult, match="returned 1000000000 entries"):
        foreign(lambda tokens: range(10**9))(call)


def test_the_probability_of_a_branch_that_raises_is_told():
    report = audit(zoo.divides_by_zero, vocab=range(2, 3), length=range(1, 2), paths=range(1, 2), cases=4)
    said = [breakdown.message for breakdown in report.breakdowns]
    assert all("ZeroDivisionError" in message for message in said)

    def rarely(draft_tokens: list[int], q: list, p: list):
        if random.random() < 0.25:
            raise KeyError("rare")
        return [0]

    report = audit(rarely, vocab=range(2, 3), length=range(1, 2), paths=range(1, 2), cases=1)
    assert report.breakdowns[0].message == "KeyError: 'rare', on a branch of probability 0.25 of this call"


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise KeyError("no words")


def test_an_exception_without_words_is_a_finding_like_any_other():
    def verify(draft_tokens, q, p):
        raise Unspeakable

    report = audit(verify, range(2, 3), range(1, 2), range(1, 2), 1)
    assert report.breakdowns[0].message == "Unspeakable: <its message cannot be shown>"


def test_a_verifier_that_returns_no_verdict_is_blamed_itself():
    from specbound.runtime.verdict import Verdict

    whole, none = torch.zeros(1, dtype=torch.int64), None
    for returned, words in (
        (none, "the verifier returned None; want a Verdict with the tensor 'path'"),
        ((whole, whole, whole), "the verifier returned (tensor([0])"),
        (Verdict(whole, whole, torch.tensor([float("nan")])), "the verdict's token is torch.float32 of shape (1,)"),
        (Verdict(whole, whole, torch.zeros(2, dtype=torch.int64)), "of shape (2,) on cpu; want int64 of shape (1,)"),
        (Verdict(whole, whole + 9, whole), "the verdict's accepted is [9]; want 1 values in 0..1"),
    ):
        report = audit(lambda batch, draws, r=returned: r, vocab=range(1, 2), length=range(1, 2), cases=1)
        assert report.verdict == "broken"
        assert report.breakdowns[0].kind == "invalid result"
        assert words in report.breakdowns[0].message


def test_a_stateful_verifier_is_compared_with_the_block_transport_optimum():
    sizes = {"vocab": range(2, 3), "length": range(2, 3), "paths": range(1, 2), "cases": 5}
    greedy, block = audit("greedy-block", **sizes), audit("block", **sizes)
    assert (greedy.optimum, block.optimum) == ("block-transport", "lossless")
    assert abs(greedy.acceptance["smallest_ratio"] - 1) < 1e-9
    assert greedy.acceptance["largest_excess"] < 1e-9
    assert greedy.acceptance["mean_optimum"] > block.acceptance["mean_optimum"] + 1e-3
    assert "block-transport optimum" in report_text(greedy).plain
    many = audit("spectr-gbv", **sizes | {"paths": range(2, 3), "cases": 2})
    assert many.acceptance["largest_excess"] < 1e-6


@pytest.mark.parametrize(("body", "kind", "seconds"), [("os._exit(3)", "exit", 8.0), ("time.sleep(600)", "hang", 2.0)])
def test_code_that_ends_or_hangs_its_process_at_the_first_call_is_a_finding(tmp_path, monkeypatch, body, kind, seconds):
    (tmp_path / "fatal_verifier.py").write_text(f"import os, time\n\n\ndef verify(batch, draws):\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    report = audit("fatal_verifier:verify", cases=3, seconds=seconds)
    assert report.exit_code == 1
    assert {breakdown.kind for breakdown in report.breakdowns} == {kind}


def test_the_share_of_an_optimum_smaller_than_its_certified_gap_is_not_above_one():
    report = audit("two-level", range(2, 4), range(1, 2), range(2, 3), 6)
    assert 0 < report.acceptance["smallest_ratio"] <= report.acceptance["mean_ratio"] <= 1
    instance = next(instances(range(2, 3), range(1, 2), range(2, 3), 1, 0))
    shares = [Case(instance, None, length, 1e-6, 2e-6).share for length in (5e-7, 1.4e-6, 4e-6)]
    assert shares == pytest.approx([0.5, 1, 4])
