"""Small verifiers of ours behind the engines' signatures: right ones, and wrong ones by a switch."""

from __future__ import annotations

import itertools

import torch


def token_verification(tokens, draft, target, draw=torch.rand):
    """Kept tokens and the one behind them; `draft` None stands for rows of 1 at the drafted tokens."""
    if draft is None:
        draft = torch.nn.functional.one_hot(tokens.long(), target.shape[-1]).to(target.dtype)
    for i, x in enumerate(tokens.tolist()):
        if draw(()) * draft[i, x] > target[i, x]:
            return [*tokens[:i].tolist(), picked((target[i] - draft[i]).clamp_min(0), draw)]
    return [*tokens.tolist(), picked(target[len(tokens)], draw)]


def picked(weights, draw):
    """Inverse transform."""
    return int((draw(()) * weights.sum() > weights.cumsum(0)).sum())


def target_as_residual(tokens, draft, target):
    """Wrong: the correction comes from the target's row."""
    for i, x in enumerate(tokens.tolist()):
        if torch.rand(()) * (1 if draft is None else draft[i, x]) > target[i, x]:
            return [*tokens[:i].tolist(), int(torch.multinomial(target[i], 1))]
    return [*tokens.tolist(), int(torch.multinomial(target[len(tokens)], 1))]


def vllm(wrong=False, wrong_without_rows=False, **given):
    """vLLM V1, a ragged batch."""
    ends = given["cu_num_draft_tokens"].tolist()
    out = torch.full((len(ends), given["max_spec_len"] + 1), -1, dtype=torch.int32)
    for b, (count, end) in enumerate(zip(given["num_draft_tokens"], ends, strict=True)):
        mine = slice(end - count, end)
        draft = None if given["draft_probs"] is None else given["draft_probs"][mine]
        bonus = torch.nn.functional.one_hot(given["bonus_token_ids"][b].long(), given["target_probs"].shape[-1])
        rows = torch.cat([given["target_probs"][mine], bonus.to(given["target_probs"].dtype)])
        lossy = wrong or (wrong_without_rows and draft is None)
        block = (target_as_residual if lossy else token_verification)(given["draft_token_ids"][mine], draft, rows)
        out[b, : len(block)] = torch.tensor(block)
    return out


def mrv2(states=True, early=False, **given):
    """vLLM's model runner 2; wrong if it takes the batch's order for the states', or reads the drafted tokens one
    place early."""
    starts = given["cu_num_logits"].tolist()
    steps = given["num_speculative_steps"]
    sampled = torch.full((len(starts) - 1, steps + 1), -7)
    counts = torch.zeros(len(starts) - 1, dtype=torch.int32)
    for b, (first, end) in enumerate(itertools.pairwise(starts)):
        state = int(given["idx_mapping"][b]) if states else b
        target = given["target_logits"][first:end].softmax(-1)
        tokens = given["draft_sampled"][first + 1 - early : end - early]
        draft = None if given["draft_logits"] is None else given["draft_logits"][state].softmax(-1)
        stream = torch.Generator().manual_seed(int(given["seed"][state] + given["pos"][first]))
        block = token_verification(tokens, draft, target, lambda shape, g=stream: torch.rand(shape, generator=g))
        sampled[b, : len(block)] = torch.tensor(block)
        counts[b] = len(block)
    return sampled, counts


def flash(
    draft_probs, draft_token_ids, target_probs, verify=token_verification, row_of=lambda b: b, add=True, **counts
):
    """flashinfer's chain; wrong if it reads one row for all requests, or does not add to the counters."""
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


def kernel_of_a_seed(draft_probs, draft_token_ids, target_probs, deterministic, seed, offset, streams=1):
    """TensorRT-LLM; each request has the stream of seed + b; with two streams the final draw starts it again."""
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


def tree_walk(forget=False, coin_per_child=True, **given):
    """SGLang's tree: children in turn, each against the mass of those refused before it and its own.

    Wrong if it forgets the refused children's mass in the final draw, or asks one child with another's coin anew.
    """
    for b in range(len(given["candidates"])):
        nodes, left = [0], given["target_probs"][b, 0].clone()
        child, coin = int(given["retrive_next_token"][b, 0]), given["uniform_samples"][b, 0]
        mass = 0.0
        while child >= 0:
            token = int(given["candidates"][b, child])
            p = given["target_probs"][b, nodes[-1], token]
            mass = mass + p
            if coin <= (mass if coin_per_child else p):
                nodes.append(child)
                left, mass = given["target_probs"][b, child].clone(), 0.0
                coin = given["uniform_samples"][b, child]
                child = int(given["retrive_next_token"][b, child])
                continue
            if not forget:
                left[token] = 0
            child = int(given["retrive_next_sibling"][b, child])
        places = given["retrive_index"][b, nodes]
        given["accept_index"][b, : len(nodes)] = places.int()
        given["accept_token_num"][b] = len(nodes) - 1
        sums = left.cumsum(0)
        last = int((given["uniform_samples_for_final_sampling"][b] * sums[-1] > sums).sum())
        tokens = [*given["candidates"][b, nodes[1:]].tolist(), last]
        given["predicts"][places] = torch.tensor(tokens, dtype=torch.int32)


def eagle(logits, candidates, logits_processor, forget=False):
    """Walks the candidates; a refused child is taken out of the row, or, wrongly, left in."""
    rows = logits.softmax(-1)
    best, left = list(range(len(candidates))), rows[0, 0].clone()
    for i in range(1, candidates.shape[1]):
        for x in dict.fromkeys(candidates[best, i].tolist()):
            if torch.rand(()) * left.sum() <= left[x]:
                best = [k for k in best if candidates[k, i] == x]
                left = rows[best[0], i].clone()
                break
            if not forget:
                left[x] = 0
        else:
            return best[0], i - 1, left / left.sum()
    return best[0], candidates.shape[1] - 1, left


def speculative_decode(model, draft_model, cur_token, input_pos, speculate_k, bonus_row=-1):
    """gpt-fast: drafts, asks the model once, keeps and corrects; wrong with another row for the bonus token."""
    token, tokens, draft = cur_token, [], []
    for i in range(speculate_k):
        draft.append(draft_model(token.view(1, 1), torch.tensor([input_pos + i]))[0, -1].softmax(-1))
        token = torch.multinomial(draft[-1], 1)
        tokens.append(token.view(()))
    places = torch.arange(input_pos, input_pos + speculate_k + 1)
    target = model(torch.stack([cur_token, *tokens])[None], places)[0].softmax(-1)
    if bonus_row != -1:
        target = torch.cat([target[:-1], target[bonus_row][None]])
    draft_model(tokens[-1].view(1, 1), torch.tensor([input_pos + speculate_k]))
    return torch.tensor(token_verification(torch.stack(tokens), torch.stack(draft), target))
