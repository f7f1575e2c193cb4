"""Calling conventions: right verifiers behind each signature are lossless, wrong ones found, mismatches told."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from specbound.adapters import flashinfer, sglang, tensorrt_llm, transformers, vllm
from specbound.commands.audit import audit as command
from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.foreign.adapters import Call, enumerated
from specbound.proofs_checks.audit.foreign.conventions import CONVENTIONS, subject
from specbound.proofs_checks.audit.foreign.drafting import joint_law
from specbound.proofs_checks.audit.foreign.engines import tree_of
from specbound.proofs_checks.audit.foreign.lazy import NotExact
from specbound.proofs_checks.laws.instances import instances
from specbound.proofs_checks.laws.replay import InvalidResult
from specbound.testing import assert_lossless
from specbound.theory.prefix_tree import PrefixTree
from tests.support import stand_ins

SMALL = {"vocab": range(2, 3), "length": range(1, 2), "paths": range(1, 2), "cases": 3}
TREE = PrefixTree.iid([0.5, 0.25, 0.25], [0.125, 0.25, 0.625], 1)
LONGER = PrefixTree.iid([0.5, 0.5], [0.25, 0.75], 2)
POINT_MASS = PrefixTree.iid([0.5, 0.25, 0.25], [0.0, 1.0, 0.0], 1)


def distance(function, name, tree=TREE, dtype="float32", paths=1):
    of = joint_law if name == "gpt-fast" else enumerated
    found = of(subject(function, name, dtype), tree, paths)
    return found.law.total_variation(found.wanted), found


# ---------------------------------------------------------------------- right

RIGHT = [
    (vllm.rejection_sample, "vllm-v1", 1),
    (stand_ins.vllm, "vllm-v1", 1),
    (stand_ins.mrv2, "vllm-mrv2", 1),
    (flashinfer.chain_speculative_sampling, "flashinfer-chain", 1),
    (stand_ins.flash, "flashinfer-chain", 1),
    (tensorrt_llm.rejection_sampling_one_model, "tensorrt-llm", 1),
    (stand_ins.kernel_of_a_seed, "tensorrt-llm", 1),
    (transformers.speculative_sampling, "transformers", 1),
    (sglang.tree_speculative_sampling_target_only, "sglang-chain", 1),
    (sglang.tree_speculative_sampling_target_only, "sglang-tree", 1),
    (stand_ins.tree_walk, "sglang-tree", 2),
    (stand_ins.eagle, "eagle-posterior", 2),
    (stand_ins.speculative_decode, "gpt-fast", 1),
]


@pytest.mark.parametrize("function, name, paths", RIGHT)
def test_right_verifiers_behind_every_signature_are_lossless(function, name, paths):
    far, found = distance(function, name, paths=paths)
    assert far < found.resolution < 1e-5, found.notes
    assert f"Called as {name}, with rows in float32; (L+1)(4V+8) 2^-24 counts as rounding." in found.notes


@pytest.mark.parametrize("function, name", [(stand_ins.vllm, "vllm-v1"), (stand_ins.mrv2, "vllm-mrv2")])
@pytest.mark.parametrize("tree", [POINT_MASS, LONGER])
def test_ragged_batches_and_drafts_without_rows(function, name, tree):
    far, found = distance(function, name, tree)
    assert far < found.resolution


# ---------------------------------------------------------------------- wrong


def last_request_forgets_its_draft(**arguments):
    arguments["draft_probs"] = arguments["draft_probs"].roll(1, dims=-1)
    return vllm.rejection_sample(**arguments)


def final_coin_is_the_first(**arguments):
    arguments["uniform_samples_for_final_sampling"] = arguments["uniform_samples"][:, 0]
    sglang.tree_speculative_sampling_target_only(**arguments)


def same_row_everywhere(candidate_input_ids, candidate_logits, candidate_length, new_logits):
    return transformers.speculative_sampling(
        candidate_input_ids,
        candidate_logits,
        candidate_length,
        new_logits[:, :1].expand_as(new_logits).contiguous() * 0.5,
    )


WRONG = [
    (last_request_forgets_its_draft, "vllm-v1", 1, TREE),
    (partial(stand_ins.vllm, wrong=True), "vllm-v1", 1, TREE),
    (partial(stand_ins.vllm, wrong_without_rows=True), "vllm-v1", 1, POINT_MASS),
    (partial(stand_ins.mrv2, early=True), "vllm-mrv2", 1, TREE),
    (partial(stand_ins.mrv2, states=False), "vllm-mrv2", 1, TREE),
    (partial(stand_ins.flash, verify=stand_ins.target_as_residual), "flashinfer-chain", 1, TREE),
    (final_coin_is_the_first, "sglang-chain", 1, TREE),
    (partial(stand_ins.tree_walk, forget=True), "sglang-tree", 2, TREE),
    (partial(stand_ins.tree_walk, coin_per_child=False), "sglang-tree", 2, TREE),
    (same_row_everywhere, "transformers", 1, TREE),
    (partial(stand_ins.eagle, forget=True), "eagle-posterior", 2, TREE),
    (partial(stand_ins.speculative_decode, bonus_row=0), "gpt-fast", 1, PrefixTree.random(2, 1, seed=3)),
]


@pytest.mark.parametrize("function, name, paths, tree", WRONG)
def test_wrong_verifiers_are_found(function, name, paths, tree):
    far, found = distance(function, name, tree, paths=paths)
    assert far > 100 * found.resolution


def test_every_convention_has_a_right_and_a_wrong_stand_in():
    assert {*CONVENTIONS} == {name for _, name, _ in RIGHT}
    assert {*CONVENTIONS} == {name for _, name, _, _ in WRONG} | {"tensorrt-llm"}


def test_a_stream_started_twice_is_not_called_lossless():
    with pytest.raises(NotExact, match="set twice with the seed"):
        distance(partial(stand_ins.kernel_of_a_seed, streams=2), "tensorrt-llm")


@pytest.mark.parametrize(
    "function, name, words",
    [
        (partial(stand_ins.flash, row_of=lambda b: 2), "flashinfer-chain", "request 0 of 3 has one-hot rows at token"),
        (partial(stand_ins.flash, row_of=lambda b: b % 2), "flashinfer-chain", None),
        (partial(stand_ins.flash, add=False), "flashinfer-chain", "adds to the counters"),
        (lambda **_: torch.zeros(1, 2), "vllm-v1", r"wants a tensor of shape \(3, 2\)"),
        (lambda **_: [0], "flashinfer-chain", "returned list; flashinfer-chain wants"),
        (lambda **_: [0], "gpt-fast", "returned list; gpt-fast wants"),
    ],
)
def test_what_comes_back_wrong_is_told_with_both_sides(function, name, words):
    if words is None:
        assert distance(function, name)[0] > 1e-3
    else:
        with pytest.raises(InvalidResult, match=words):
            distance(function, name)


def test_common_beginnings_of_paths_are_one_node():
    rows = np.arange(24).reshape(3, 2, 4).repeat(2, axis=1)[:, :3]
    tree = tree_of(Call(np.array([[1, 2], [3, 0], [1, 3]]), rows[:, :2], rows))
    assert tree.tokens.tolist() == [0, 1, 3, 2, 0, 3]
    assert tree.child.tolist() == [1, 3, 4, -1, -1, -1]
    assert tree.sibling.tolist() == [-1, 2, -1, 5, -1, -1]
    assert torch.equal(tree.target[5], torch.from_numpy(rows[2, 2]))


def test_an_audit_by_convention_holds_drafts_without_rows():
    cases = list(instances(range(2, 4), range(1, 3), range(1, 2), 12, families=CONVENTIONS["vllm-v1"].families))
    assert {case.size for case in cases} == {case.size for case in cases if case.family == "one-hot draft"}
    sizes = {**SMALL, "length": range(1, 2), "cases": 1}
    report = audit(partial(stand_ins.vllm, wrong_without_rows=True), **sizes, convention="vllm-v1")
    assert report.verdict == "not lossless"


@pytest.mark.parametrize(
    "function, words",
    [
        (
            lambda draft_token_ids: None,
            r"takes \(draft_token_ids\), vllm-v1 passes .*target_probs.* is not on both sides",
        ),
        (lambda logits, more, **_: None, None),
    ],
)
def test_parameters_that_do_not_fit_name_both_sides(function, words):
    if words is None:
        subject(function, "vllm-v1")
    else:
        with pytest.raises(ValueError, match=words):
            subject(function, "vllm-v1")


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="known are transformers"):
        subject(stand_ins.eagle, "nothing")
    with pytest.raises(ValueError, match="want one of float32"):
        subject(stand_ins.eagle, "eagle-posterior", "float8")


# ---------------------------------------------------------------------- the ways in


def test_an_audit_by_convention_and_the_assertion_for_test_suites():
    assert_lossless(stand_ins.eagle, convention="eagle-posterior", **SMALL)
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(partial(stand_ins.eagle, forget=True), convention="eagle-posterior", **SMALL)
    report = audit("token", **SMALL, convention="ours")
    assert report.verdict == "lossless", report_text(report).plain
    with pytest.raises(ValueError, match="for a function"):
        audit("token", **SMALL, convention="vllm-v1")


@pytest.mark.parametrize(
    "function, name",
    [
        (stand_ins.kernel_of_a_seed, "tensorrt-llm"),
        (stand_ins.mrv2, "vllm-mrv2"),
        (stand_ins.speculative_decode, "gpt-fast"),
        (partial(stand_ins.flash, verify=stand_ins.token_verification), "flashinfer-chain"),
    ],
)
def test_whole_audits_agree_with_real_calls(function, name):
    """A seed that is handed over is another one in every real call."""
    report = audit(function, **{**SMALL, "cases": 1}, convention=name)
    assert report.verdict == "lossless", report_text(report).plain
    assert report.target == f"tests.support.stand_ins:{getattr(function, 'func', function).__name__}"


def test_the_command_lists_the_conventions():
    listed = json.loads(CliRunner().invoke(command, ["--conventions", "--json"]).output)
    assert set(listed) == {*CONVENTIONS, "ours"}
    assert len(listed) == 10
    assert listed["vllm-v1"]["signature"].startswith("(draft_token_ids, num_draft_tokens, max_spec_len")
    assert "vllm-v1(draft_token_ids" in CliRunner().invoke(command, ["--conventions"]).output


def test_the_command_writes_junit(tmp_path):
    path = tmp_path / "audit.xml"
    small = ["--vocab", "2", "--length", "1", "--paths", "1", "--cases", "2"]
    CliRunner().invoke(command, ["token", *small, "--junit", str(path)])
    text = path.read_text()
    assert 'tests="1"' in text
    assert 'failures="0"' in text
