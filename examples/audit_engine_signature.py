"""A verifier behind vLLM V1's signature, and one with a mistake; audited as their engine calls them:

specbound audit examples.audit_engine_signature:rejection_sample --as vllm-v1 --cases 12
specbound audit examples.audit_engine_signature:forgets_the_draft --as vllm-v1 --cases 12
"""

import torch


def rejection_sample(
    draft_token_ids,
    num_draft_tokens,
    max_spec_len,
    cu_num_draft_tokens,
    draft_probs,
    target_probs,
    bonus_token_ids,
    sampling_metadata,
    subtracted=1.0,
):
    """Token verification of a ragged batch; `draft_probs` None stands for drafts that were drawn for sure."""
    out = torch.full((len(num_draft_tokens), max_spec_len + 1), -1, dtype=torch.int32)
    for b, (count, end) in enumerate(zip(num_draft_tokens, cu_num_draft_tokens.tolist(), strict=True)):
        for i in range(count):
            row = end - count + i
            token, target = draft_token_ids[row], target_probs[row]
            draft = torch.zeros_like(target) if draft_probs is None else draft_probs[row]
            if draft_probs is None:
                draft[token] = 1
            if torch.rand(()) * draft[token] > target[token]:
                rest = (target - subtracted * draft).clamp_min(0)
                out[b, i] = torch.multinomial(rest, 1)
                break
            out[b, i] = token
        else:
            out[b, count] = bonus_token_ids[b, 0]
    return out


def forgets_the_draft(**given):
    """The same with a correction from the target's row."""
    return rejection_sample(**given, subtracted=0.0)


if __name__ == "__main__":
    from specbound.testing import assert_lossless

    assert_lossless(rejection_sample, convention="vllm-v1")
    print("lossless")
