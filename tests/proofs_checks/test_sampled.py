"""The sampled audit: enough draws for what it promises, and not more than it saw."""

import math

import numpy as np
import pytest

from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.sampled import LOOKS, plan, sample_law
from specbound.theory.prefix_tree import PrefixTree
from tests.support import zoo


def test_the_number_of_draws_meets_both_error_rates_exactly():
    """The bounds of the module's opening, put in again: 2^m exp(-2 n t^2) and exp(-2 n (resolution - t)^2)."""
    planned = plan(3, 2, resolution=0.05, false_alarm=1e-6, miss=1e-4, instances=5)
    n, comparisons = planned.draws, 5 * len(LOOKS) * 3
    t = planned.threshold(3, n)
    assert math.log(2) * 27 - 2 * n * t**2 == pytest.approx(math.log(1e-6 / comparisons))
    assert -2 * n * (0.05 - t) ** 2 <= math.log(1e-4)
    one_less = math.sqrt((27 * math.log(2) - math.log(1e-6 / comparisons)) / (2 * (n - 1)))
    assert -2 * (n - 1) * (0.05 - one_less) ** 2 > math.log(1e-4)


@pytest.mark.parametrize("name, value", [("resolution", 0.0), ("false_alarm", 1.0), ("miss", -0.1)])
def test_impossible_rates_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        plan(2, 1, **{"resolution": 0.1, "false_alarm": 1e-6, "miss": 1e-6, name: value})
    with pytest.raises(ValueError, match="coarser"):
        plan(10, 5, 0.01)


def exact_draw(law, seed):
    def draw(count, step):
        rng = np.random.default_rng([seed, step])
        counts = rng.multinomial(count, list(law.values()))
        return {block: int(number) for block, number in zip(law, counts, strict=True) if number}

    return draw


def test_the_target_itself_never_raises_an_alarm_and_a_deviation_of_the_resolution_always_does():
    """Rates of 1e-3 and 1e-3 over 200 runs each; the bounds are far from tight, so not one may fail."""
    tree = PrefixTree.iid([0.5, 0.5], [0.25, 0.75], 1)
    planned = plan(2, 1, resolution=0.1, false_alarm=1e-3, miss=1e-3)
    right = tree.target_law()
    wrong = {(0, 0): 0.35, (0, 1): 0.25, (1, 0): 0.15, (1, 1): 0.25}
    assert all(sample_law(exact_draw(right, seed), tree, planned).deviation is None for seed in range(200))
    found = [sample_law(exact_draw(wrong, seed), tree, planned).deviation for seed in range(200)]
    assert all(deviation is not None for deviation in found)
    late = {(0, 0): 0.35, (0, 1): 0.15, (1, 0): 0.25, (1, 1): 0.25}
    assert sample_law(exact_draw(late, 0), tree, planned).deviation.position == 2


def test_gross_errors_stop_at_the_first_look_and_impossible_blocks_too():
    tree = PrefixTree.iid([1.0, 0.0], [0.5, 0.5], 1)
    planned = plan(2, 1, resolution=0.02)
    found = sample_law(exact_draw({(0, 0): 0.5, (1, 0): 0.5}, 0), tree, planned)
    assert found.draws == math.ceil(planned.draws / LOOKS[0])
    assert (found.deviation.position, found.deviation.token, found.deviation.wanted) == (1, 1, 0.0)
    rare = sample_law(exact_draw({(0, 0): 0.998, (1, 0): 0.002}, 0), tree, planned)
    assert rare.deviation is not None
    assert rare.draws < planned.draws


CORRECT = {"block": "block", "tensors": zoo.correct_tensors, "python": zoo.correct_python}


@pytest.mark.parametrize("verifier", CORRECT.values(), ids=CORRECT.keys())
def test_correct_code_is_not_rejected_and_the_report_says_what_may_be_unseen(verifier):
    report = audit(verifier, vocab=range(2, 3), length=range(1, 2), paths=range(1, 2), cases=3, resolution=0.08)
    assert (report.verdict, report.lossless, report.exit_code) == ("not rejected", None, 0)
    assert report.details["draws"] == [plan(2, 1, 0.08, instances=3).draws] * 3
    for words in ("0.08", "1e-06", "1e-09", "unseen"):
        assert words in report_text(report).plain


@pytest.mark.parametrize(
    "verifier", [zoo.target_instead_of_residual, zoo.hidden_generator, zoo.token_with_bonus_from_last_drafted_row]
)
def test_broken_code_is_found_by_sampling_too(verifier):
    report = audit(verifier, vocab=range(2, 3), length=range(1, 2), paths=range(1, 2), cases=6, resolution=0.08)
    assert (report.verdict, report.exit_code, report.way) == ("not lossless", 1, "sampled")
    assert report.position == (2 if "bonus" in verifier.__name__ else 1)
    assert len(report.counterexample.story) == 5


def test_sampling_is_reproducible_and_runs_in_a_sandbox():
    size = {"vocab": range(2, 3), "length": range(1, 2), "resolution": 0.15, "cases": 2}
    reports = [audit(target, **size) for target in ("tests.support.zoo:correct_numpy", zoo.correct_numpy)]
    assert reports[0].verdict == "not rejected"
    assert reports[0].acceptance == reports[1].acceptance
    broken = audit("tests.support.zoo:segfault", **size)
    assert (broken.verdict, broken.breakdowns[0].kind) == ("broken", "crash")


def test_a_stateful_verifier_is_not_sampled():
    with pytest.raises(ValueError, match="exact audit"):
        audit("greedy-block", cases=1, resolution=0.1)
