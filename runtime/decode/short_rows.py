"""Rows of a batch whose drafts are shorter than those of others, verified beside them."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_rows(target_probs: Tensor, lengths: Tensor, done: list[bool]) -> Tensor:
    """Target laws [B, K, L+1, V] under which a row's drafts count as no longer than its own length.

    Beyond it the draft holds token 0 for sure, and so does the target here: such tokens are always kept, and the
    token after them, at place L, is drawn from the law after the row's own draft. So the verdict's law is that of
    the shorter draft, with `accepted` cut at the length. A row that is done has token 0 everywhere.

    Args:
        target_probs [B, K, L+1, V] along the drafts; lengths [B] int64: of the row's drafts, 0..L.
    """
    length = target_probs.shape[2] - 1
    places = torch.arange(length + 1, device=lengths.device)
    last = target_probs.gather(2, lengths[:, None, None, None].expand_as(target_probs[:, :, :1]))
    sure = torch.zeros_like(last)
    sure[..., 0] = 1.0
    beyond = ((places >= lengths[:, None]) & (places < length))[:, None, :, None]
    finished = torch.tensor(done, device=lengths.device)[:, None, None, None]
    padded = torch.where(beyond | finished, sure, target_probs)
    padded[:, :, -1:] = torch.where(finished, sure, last)
    return padded
