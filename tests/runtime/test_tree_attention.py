"""The merged prefix tree: by hand, against a plain trie, and one pass over it against separate passes."""

from __future__ import annotations

import pytest
import torch

from specbound.runtime.cache import CachedModel
from specbound.runtime.tree_attention import merge_paths
from tests.support.tiny_models import FAMILIES, tiny


def test_two_paths_share_the_slots_of_their_common_prefix():
    merged = merge_paths(torch.tensor([9]), torch.tensor([[[5, 6, 7], [5, 8, 7]]]))
    assert merged.tokens.tolist() == [[9, 5, 6, 7, 8, 7]]
    assert merged.depth.tolist() == [[0, 1, 2, 3, 2, 3]]
    assert merged.place.tolist() == [[[0, 1, 2, 3], [0, 1, 4, 5]]]
    assert merged.sees[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    in_place = [(path, kept) for path in (0, 1) for kept in range(4) if merged.in_order([path], [kept])]
    assert in_place == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]


@pytest.mark.parametrize(("paths", "length", "vocab"), [(1, 4, 2), (5, 3, 2), (8, 4, 3), (64, 2, 5), (2, 1, 1)])
def test_slots_are_the_distinct_prefixes_of_each_row(paths, length, vocab):
    tokens = torch.randint(vocab, (3, paths, length), generator=torch.Generator().manual_seed(paths))
    merged = merge_paths(torch.full((3,), 9), tokens)
    for row in range(3):
        drafts = [tuple(path) for path in tokens[row].tolist()]
        prefixes = {path[:i] for path in drafts for i in range(length + 1)}
        slot_of = {path[:i]: merged.place[row, k, i].item() for k, path in enumerate(drafts) for i in range(length + 1)}
        assert sorted(slot_of.values()) == list(range(len(prefixes)))
        for prefix, slot in slot_of.items():
            assert merged.depth[row, slot] == len(prefix)
            assert merged.tokens[row, slot] == (prefix[-1] if prefix else 9)
            seen = set(merged.sees[row, slot].nonzero()[:, 0].tolist())
            assert seen == {slot_of[prefix[:i]] for i in range(len(prefix) + 1)}
    assert merged.tokens.shape[1] == max(len({p[:i] for p in row for i in range(length + 1)})
                                         for row in [[tuple(p) for p in r] for r in tokens.tolist()])  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_over_the_tree_gives_the_rows_of_separate_passes(family):
    model = tiny(family, 3, vocab=7, layers=2)
    prompts = [[1, 2, 3, 4], [5, 6]]
    tokens = torch.randint(7, (2, 4, 3), generator=torch.Generator().manual_seed(1))
    cached = CachedModel(model, 2)
    with torch.no_grad():
        padded = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
        cached.read(padded)
        cached.forget_tail([3, 1])
        merged = merge_paths(torch.tensor([4, 6]), tokens)
        logits = cached.extend(merged.tokens, torch.tensor([[3], [1]]) + merged.depth, merged.sees)
        for row, prompt in enumerate(prompts):
            for k, path in enumerate(tokens[row].tolist()):
                alone = model(torch.tensor([prompt + path])).logits[0, len(prompt) - 1 :]
                torch.testing.assert_close(logits[row, merged.place[row, k]], alone, rtol=0, atol=1e-12)
