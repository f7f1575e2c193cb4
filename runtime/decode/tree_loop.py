"""One generation with drafted trees: the loop of `loop`, its call on a tree of nodes.

B rows, N drafted nodes, D depth of the tree, V vocabulary. The draft's tail holds the nodes whose rows were read, in
that order; the target's holds the last known token, then all nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..drafting.tree import ROOT, DraftedTree, TreeBatch, TreeDraft, TreeVerdict
from ..sampling import check_rows
from ..states import Held
from .loop import Call, Decoding


class TreeReader:
    """Reads the draft's laws after nodes of the tree that grows: each level one pass."""

    def __init__(self, decoding: TreeDecoding, model: Held, starts: list[int]) -> None:
        self.decoding, self.model = decoding, model
        self.place = torch.tensor(starts, device=decoding.device)[:, None] - 1
        self.recent = decoding.rows.unread(model, starts)
        self.read: list[Tensor] = []

    def __call__(self, tree: DraftedTree, nodes: Tensor) -> Tensor:
        """Laws [B, n, V] after `nodes` [B, n], all of one depth; the first call asks for the root's."""
        if not self.read and bool((nodes == ROOT).all()):
            logits = self.model.read(self.recent, last=1)
            self.model.forget_tail([base + self.recent.shape[1] for base in self.model.base])
            return self.decoding.laws(self.decoding.scores(logits, tree, nodes))
        self.read.append(nodes)
        known = torch.cat(self.read, dim=1)
        row = torch.arange(len(nodes), device=nodes.device)[:, None]
        sees = tree.sees[row, nodes].gather(2, known[:, None, :].expand(-1, nodes.shape[1], -1))
        positions = self.place + tree.depth.gather(1, nodes)
        logits = self.model.extend(tree.tokens.gather(1, nodes), positions, sees)
        return self.decoding.laws(self.decoding.scores(logits, tree, nodes))

    def keep(self, path: Tensor, accepted: list[int]) -> list[int]:
        """Bring the nodes of `path` [B, D] that were read to the front of the tail; how many of each row's stay.

        A kept node whose row was not read ends what the draft knows of the path.
        """
        if not self.read:
            return [0] * len(accepted)
        known = torch.cat(self.read, dim=1)
        found = known[:, None, :] == path[:, :, None]
        self.model.keep_path(found.long().argmax(dim=2))
        reached = found.any(dim=2).long().cumprod(dim=1).sum(dim=1).tolist()
        return [min(kept, count) for kept, count in zip(accepted, reached, strict=True)]


class TreeDecoding(Decoding):
    """Drafts a tree, verifies it, keeps one of its paths."""

    def _one_call(self, starts: list[int]) -> Call:
        draft, verifier, model = self.method.draft, self.method.tree_verifier, self.source.model
        assert isinstance(draft, TreeDraft)
        assert verifier is not None
        assert model is not None
        reader = TreeReader(self, model, starts)
        tree = draft.grow(reader, self.draws, self.rows.count, self.device)
        self.tick("draft")
        batch = TreeBatch(tree, self._tree_laws(tree, starts))
        self.tick("target")
        verdict = verifier.verify(batch, self.draws)
        accepted = verdict.accepted.tolist()
        path = path_to(tree, verdict)
        block = torch.nn.functional.pad(tree.tokens.gather(1, path), (0, 1))
        block = block.scatter_(1, verdict.accepted[:, None], verdict.token[:, None])
        emitted = [row[: kept + 1] for row, kept in zip(block.tolist(), accepted, strict=True)]
        self.tick("verify")
        if self.method.on_call is not None:
            self.method.on_call(batch, verdict, starts)
        places = torch.nn.functional.pad(path + 1, (1, 0))
        self.target.keep_path(places)
        drafted = reader.keep(path, accepted)
        sizes = tree.present.sum(dim=1).tolist()

        def commit(known: list[int]) -> None:
            ends = zip(known, starts, drafted, strict=True)
            model.forget_tail([min(count - 1, start + kept) for count, start, kept in ends])

        return Call(block, emitted, [0] * len(accepted), sizes, lambda: places, commit)

    def _tree_laws(self, tree: DraftedTree, starts: list[int]) -> Tensor:
        """The target's laws [B, N+1, V] after the last known token and after every node, in one pass."""
        known = self.rows.unread(self.target, starts)
        tokens = torch.cat([known[:, -1:], tree.tokens], dim=1)
        place = torch.tensor(starts, device=self.device)[:, None] - 1
        positions = torch.cat([place, place + tree.depth], dim=1)
        sees = torch.nn.functional.pad(tree.sees, (1, 0), value=True)
        root = torch.zeros_like(sees[:, :1])
        root[:, :, 0] = True
        logits = self.target.extend(tokens, positions, torch.cat([root, sees], dim=1)).to(self.device)
        nodes = torch.arange(ROOT, tree.tokens.shape[1], device=self.device).expand(len(starts), -1)
        scores = self.scores(logits, tree, nodes)
        self.asked.read(logits, scores)
        return self.laws(scores)

    def scores(self, logits: Tensor, tree: DraftedTree, nodes: Tensor) -> Tensor:
        """Processed `logits` [B, n, V or fewer] after `nodes` [B, n].

        Raises:
            ValueError: a processor reads the tokens, and there is more than one row.
        """
        if not self.sampler.reads_tokens:
            return self.sampler.next_scores(logits, [], tree.tokens[:, :0])
        if len(nodes) > 1:
            raise ValueError("a logits processor reads the tokens so far; decode the rows of a drafted tree one by one")
        lines = [tree.sees[0, node] if node != ROOT else tree.tokens[0] < 0 for node in nodes[0].tolist()]
        drafted = [tree.tokens[:, line][:, None] for line in lines]
        each = zip(logits.unbind(dim=1), drafted, strict=True)
        return torch.cat([self.sampler.next_scores(row[:, None], self._known(), path) for row, path in each], dim=1)

    def laws(self, scores: Tensor) -> Tensor:
        """Laws [B, n, V] of processed logits; token 0 for sure in rows done."""
        found = self.sampler.law(scores)
        check_rows(found)
        if any(self.rows.done):
            sure = torch.zeros_like(found)
            sure[..., 0] = 1.0
            found = torch.where(torch.tensor(self.rows.done, device=found.device)[:, None, None], sure, found)
        return found


def path_to(tree: DraftedTree, verdict: TreeVerdict) -> Tensor:
    """int64 [B, D]: the nodes on the way to the verdict's node, the first kept one first; node 0 behind them."""
    depth = tree.depth
    row = torch.arange(len(depth), device=depth.device)
    path = torch.zeros(len(depth), int(depth.max()), dtype=torch.int64, device=depth.device)
    node = verdict.node
    for _ in range(path.shape[1]):
        here = node != ROOT
        at = node.clamp_min(0)
        level = (depth[row, at] - 1).clamp_min(0)
        path[row, level] = torch.where(here, at, path[row, level])
        node = torch.where(here, tree.parent[row, at], node)
    return path
