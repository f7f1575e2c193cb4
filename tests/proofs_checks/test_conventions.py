"""Calling conventions: right verifiers behind each signature are lossless, wrong ones found, mismatches told."""

import json
from functools import partial

import pytest
import torch
from click.testing import CliRunner

from specbound.adapters import flashinfer, sglang, tensorrt_llm, transformers, vllm
from specbound.commands.audit import audit as command
from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.foreign.adapters import enumerated
from specbound.proofs_checks.audit.foreign.conventions import CONVENTIONS, subject
from specbound.proofs_checks.audit.foreign.lazy import NotExact
from specbound.proofs_checks.laws.replay import InvalidResult
from specbound.testing import assert_lossless
from specbound.theory.prefix_tree import PrefixTree

SMALL = {"vocab": range(2, 3), "length": range(1, 2), "paths": range(1, 2), "cases": 3}
TREE = PrefixTree.iid([0.5, 0.25, 0.25], [0.125, 0.25, 0.625], 1)
LONGER = PrefixTree.iid([0.5, 0.5], [0.25, 0.75], 2)


def distance(function, name, tree=TREE, dtype="float32"):
    found = enumerated(subject(function, name, dtype), tree)
    return found.law.total_variation(tree.target_law()), found


# ---------------------------------------------------------------------- stand-ins: one request at a time


def token_verification(tokens, draft, target, draw=torch.rand):
    """Kept tokens and the one behind them; right."""
    for i, x in enumerate(tokens.tolist()):
        if draw(()) * draft[i, x] > target[i, x]:
            rest = (target[i] - draft[i]).clamp_min(0)
            return [*tokens[:i].tolist(), int((draw(()) * rest.sum() > rest.cumsum(0)).sum())]
    last = target[len(tokens)]
    return [*tokens.tolist(), int((draw(()) * last.sum() > last.cumsum(0)).sum())]


def flash(
    draft_probs, draft_token_ids, target_probs, verify=token_verification, row_of=lambda b: b, add=True, **counts
):
    blocks = [
        verify(draft_token_ids[row_of(b)], draft_probs[row_of(b)], target_probs[row_of(b)])
        for b in range(len(draft_probs))
    ]
    width = draft_token_ids.shape[1] + 1
    ids = torch.tensor([[*block, *[-1] * (width - len(block))] for block in blocks])
    kept = torch.tensor([len(block) - 1 for block in blocks])
    given = counts["maybe_output_emitted_draft_token_num"]
    emitted = given + kept if add else kept
    return ids, emitted, emitted


def target_as_residual(tokens, draft, target):
    for i, x in enumerate(tokens.tolist()):
        if torch.rand(()) * draft[i, x] > target[i, x]:
            return [*tokens[:i].tolist(), int(torch.multinomial(target[i], 1))]
    return [*tokens.tolist(), int(torch.multinomial(target[len(tokens)], 1))]


def kernel_of_a_seed(draft_probs, draft_token_ids, target_probs, deterministic, seed, offset, streams=1):
    """Each request has the stream of seed + b; with two streams the final draw starts the stream again."""
    tokens = torch.zeros(len(draft_probs), draft_token_ids.shape[1] + 1, dtype=torch.int32)
    counts = torch.zeros(len(draft_probs), dtype=torch.int32)
    for b in range(len(draft_probs)):
        first = torch.Generator().manual_seed(seed + b)

        def draw(shape, first=first, b=b, calls=[0]):  # noqa: B006 - a counter of this request's draws
            calls[0] += 1
            again = streams == 2 and calls[0] > 1
            return torch.rand(shape, generator=torch.Generator().manual_seed(seed + b) if again else first)

        block = token_verification(draft_token_ids[b], draft_probs[b], target_probs[b], draw)
        tokens[b, : len(block)] = torch.tensor(block)
        counts[b] = len(block)
    return tokens, counts


def eagle(logits, candidates, logits_processor, forget=False):
    """Walks one candidate; a refused child is taken out of the row, or, wrongly, left in."""
    rows = logits.softmax(-1)
    for i, x in enumerate(candidates[0, 1:].tolist()):
        row = rows[0, i].clone()
        if torch.rand(()) > row[x]:
            if not forget:
                row[x] = 0
            return 0, i, row / row.sum()
    return 0, candidates.shape[1] - 1, rows[0, -1]


# ---------------------------------------------------------------------- right


@pytest.mark.parametrize(
    "function, name",
    [
        (vllm.rejection_sample, "vllm-v1"),
        (partial(vllm.rejection_sample, verifier="token"), "vllm-v1"),
        (flashinfer.chain_speculative_sampling, "flashinfer-chain"),
        (flash, "flashinfer-chain"),
        (tensorrt_llm.rejection_sampling_one_model, "tensorrt-llm"),
        (kernel_of_a_seed, "tensorrt-llm"),
        (transformers.speculative_sampling, "transformers"),
        (sglang.tree_speculative_sampling_target_only, "sglang-chain"),
        (sglang.tree_speculative_sampling_target_only, "sglang-tree"),
        (eagle, "eagle-posterior"),
    ],
)
def test_right_verifiers_behind_every_signature_are_lossless(function, name):
    far, found = distance(function, name)
    assert far < max(found.resolution, 1e-9), found.notes
    assert f"Called as {name}, in float32." in found.notes


def test_every_convention_has_a_right_and_a_wrong_stand_in():
    assert set(CONVENTIONS) == {
        "transformers",
        "vllm-v1",
        "sglang-tree",
        "sglang-chain",
        "flashinfer-chain",
        "tensorrt-llm",
        "eagle-posterior",
    }


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


@pytest.mark.parametrize(
    "function, name",
    [
        (last_request_forgets_its_draft, "vllm-v1"),
        (partial(flash, verify=target_as_residual), "flashinfer-chain"),
        (final_coin_is_the_first, "sglang-chain"),
        (same_row_everywhere, "transformers"),
        (partial(eagle, forget=True), "eagle-posterior"),
    ],
)
def test_wrong_verifiers_are_found(function, name):
    far, found = distance(function, name)
    assert far > 100 * found.resolution


def test_a_stream_started_twice_is_not_called_lossless():
    with pytest.raises(NotExact, match="set twice with the seed"):
        distance(partial(kernel_of_a_seed, streams=2), "tensorrt-llm")


@pytest.mark.parametrize(
    "function, name, words",
    [
        (partial(flash, row_of=lambda b: 0), "flashinfer-chain", None),
        (partial(flash, row_of=lambda b: 1), "flashinfer-chain", "one-hot at token 0"),
        (partial(flash, add=False), "flashinfer-chain", "adds to the counters"),
        (lambda **_: torch.zeros(1, 2), "vllm-v1", r"wants a tensor of shape \(2, 2\)"),
        (lambda **_: [0], "flashinfer-chain", "returned list; flashinfer-chain wants"),
    ],
)
def test_what_comes_back_wrong_is_told_with_both_sides(function, name, words):
    if words is None:
        assert distance(function, name)[0] > 1e-3
    else:
        with pytest.raises(InvalidResult, match=words):
            distance(function, name)


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
        subject(eagle, "nothing")
    with pytest.raises(ValueError, match="want one of float32"):
        subject(eagle, "eagle-posterior", "float8")


# ---------------------------------------------------------------------- the ways in


def test_an_audit_by_convention_and_the_assertion_for_test_suites():
    assert_lossless(eagle, convention="eagle-posterior", **SMALL)
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(partial(eagle, forget=True), convention="eagle-posterior", **SMALL)
    report = audit("token", **SMALL, convention="ours")
    assert report.verdict == "lossless", report_text(report).plain
    with pytest.raises(ValueError, match="for a function"):
        audit("token", **SMALL, convention="vllm-v1")


def test_the_command_lists_the_conventions():
    listed = json.loads(CliRunner().invoke(command, ["--conventions", "--json"]).output)
    assert set(listed) == {*CONVENTIONS, "ours"}
    assert listed["vllm-v1"]["signature"].startswith("(draft_token_ids, num_draft_tokens, max_spec_len")
    assert "vllm-v1(draft_token_ids" in CliRunner().invoke(command, ["--conventions"]).output


def test_the_command_writes_junit(tmp_path):
    path = tmp_path / "audit.xml"
    small = ["--vocab", "2", "--length", "1", "--paths", "1", "--cases", "2"]
    CliRunner().invoke(command, ["token", *small, "--junit", str(path)])
    text = path.read_text()
    assert 'tests="1"' in text
    assert 'failures="0"' in text
