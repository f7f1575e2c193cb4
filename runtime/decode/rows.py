"""The rows of a batch as text: prompts, what has been generated, and when a row is done.

B rows; row b's text is its prompt without padding and the tokens after it. All rows stand in one tensor, prompts
left-padded, so that row b's text takes columns padding_b .. end_b - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from ..states import Held


class Rows:
    """Attributes:
    given [B, n]: the prompts as they came; columns: n.
    order: which of the B rows are still held; what follows is about these.
    ids [count, ...]: prompts left-padded, then the tokens after them; what lies behind `end` is void.
    padding, end: for each row, its first column and the one behind its text.
    done: rows that have ended.
    limit: columns a row may fill.
    """

    def __init__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        device: torch.device,
        ahead: int,
    ) -> None:
        """Args:
            ahead: columns beyond the limit that a block may be written to.

        Raises:
            ValueError: a row without a token.
        """
        self.device = device
        self.given = input_ids.to(device)
        ids, self.padding = left_padded(self.given, attention_mask)
        self.count, self.columns = ids.shape
        self.limit = int(config.max_length)
        self.ids = torch.cat([ids, ids.new_zeros(self.count, self.limit - self.columns + ahead)], dim=1)
        self.order = list(range(self.count))
        self.end = [self.columns] * self.count
        self.every, self.ends, self.known_at_last = self.ids, list(self.end), self.known
        self.done = [False] * self.count
        eos = config.eos_token_id
        self.eos = set() if eos is None else {eos} if isinstance(eos, int) else set(map(int, eos))
        self.pad = config.pad_token_id if config.pad_token_id is not None else min(self.eos, default=0)
        self.criteria = [c for c in criteria if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)]

    def check_tokens(self, vocab: int) -> None:
        """Raise ValueError unless the prompts hold tokens 0..V-1."""
        columns = torch.arange(self.columns, device=self.device)
        real = columns >= torch.tensor(self.padding, device=self.device)[:, None]
        least, most = (int(end) for end in self.ids[:, : self.columns][real].aminmax())
        if least < 0 or most >= vocab:
            raise ValueError(f"input_ids lie in {least}..{most}; want 0..{vocab - 1}, the target's tokens")

    @property
    def known(self) -> list[int]:
        """For each row the number of its tokens."""
        return [end - padding for end, padding in zip(self.end, self.padding, strict=True)]

    def texts(self) -> list[Tensor]:
        """Each row's padded prompt and the tokens after it."""
        return [self.ids[row, :end] for row, end in enumerate(self.end)]

    def prompts(self, count: int) -> Tensor:
        """[B, count]: the first tokens of each row; rows with fewer are filled up behind them."""
        place = torch.arange(count, device=self.device)
        shift = torch.tensor(self.padding, device=self.device)[:, None]
        return self.ids.gather(1, (shift + place).clamp_max(self.columns - 1))

    def last(self, count: int) -> Tensor:
        """[B, count]: the last known tokens of each row."""
        if min(self.end) == max(self.end):
            first = max(self.end[0] - count, 0)
            return self.ids.narrow(1, first, self.end[0] - first)
        columns = torch.tensor(self.end, device=self.device)[:, None] + torch.arange(-count, 0, device=self.device)
        return self.ids.gather(1, columns.clamp_min(0))

    def unread(self, model: Held, starts: list[int]) -> Tensor:
        """Known tokens [B, n] the model has not read, n that of the row with most; others read some again.

        What rows that are done read is void.
        """
        rows = list(zip(starts, model.base, self.done, strict=True))
        count = max(start - base for start, base, done in rows if not done)
        model.forget_tail([base if done else start - count for start, base, done in rows])
        return self.last(count)

    def write(self, block: Tensor) -> None:
        """Write each row's block [B, m] behind its text; `count_in` says how much of it counts."""
        if min(self.end) == max(self.end):
            self.ids.narrow(1, self.end[0], block.shape[1]).copy_(block)
            return
        end = torch.tensor(self.end, device=self.device)[:, None]
        self.ids.scatter_(1, end + torch.arange(block.shape[1], device=self.device), block)

    def count_in(self, row: int, block: list[int]) -> list[int]:
        """Count the block that was written as text, up to the row's end; the tokens that count."""
        if self.done[row]:
            return []
        start = self.end[row]
        block = block[: self.limit - start]
        if self.eos:
            ends = [i for i, token in enumerate(block) if token in self.eos]
            block = block[: ends[0] + 1] if ends else block
            self.done[row] = bool(ends)
        for criterion in self.criteria:
            for count in range(1, len(block) + 1):
                if _meets(criterion, self.ids[row : row + 1, : start + count]):
                    block, self.done[row] = block[:count], True
                    break
        self.end[row] = start + len(block)
        self.done[row] |= self.end[row] >= self.limit
        return block

    def drop_done(self) -> list[int]:
        """Hold rows that are done no longer; places of the others among those held so far."""
        self._put_back()
        kept = [row for row, done in enumerate(self.done) if not done]
        self.ids = self.ids[kept]
        self.order, self.padding, self.end = (
            [values[row] for row in kept] for values in (self.order, self.padding, self.end)
        )
        self.count, self.done = len(kept), [False] * len(kept)
        return kept

    def of_all(self, values: list[int], others: list[int] | int = 0) -> list[int]:
        """For each of the B rows its value, `others` (of each of the B rows, or of all) for those not held."""
        if len(values) == len(self.given):
            return list(values)
        found = list(others) if isinstance(others, list) else [others] * len(self.given)
        for row, value in zip(self.order, values, strict=True):
            found[row] = value
        return found

    def _put_back(self) -> None:
        if self.every is not self.ids:
            self.every[self.order] = self.ids
        self.ends, self.known_at_last = self.of_all(self.end, self.ends), self.of_all(self.known, self.known_at_last)

    def sequences(self) -> Tensor:
        """[B, T]: prompts as given, then the generated tokens, padded on the right."""
        self._put_back()
        found = self.every[:, : max(self.ends)]
        columns = torch.arange(found.shape[1], device=self.device)
        found = found.masked_fill(columns >= torch.tensor(self.ends, device=self.device)[:, None], self.pad)
        return torch.cat([self.given, found[:, self.columns :]], dim=1)


def _meets(criterion: StoppingCriteria, ids: Tensor) -> bool:
    """Whether the text [1, n] meets a criterion.

    Raises:
        ValueError: the criterion reads scores, which plain generation gives only with output_scores.
    """
    try:
        return bool(criterion(ids, None).all())
    except (TypeError, AttributeError) as error:
        if "NoneType" not in str(error):
            raise
        raise ValueError(
            f"{type(criterion).__name__} wants scores, which speculative decoding does not have ({error}); "
            "use a criterion that reads tokens only"
        ) from error


def left_padded(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, list[int]]:
    """The prompts [B, n] with all padding moved to the left, wherever the mask has it, and how much each row has.

    Raises:
        ValueError: a row has no token.
    """
    if attention_mask is None:
        return input_ids, [0] * len(input_ids)
    real = attention_mask.to(input_ids.device).bool()
    padding = (~real).sum(dim=1).tolist()
    for row, count in enumerate(padding):
        if count == input_ids.shape[1]:
            raise ValueError(f"row {row} of input_ids is empty; give at least one token")
    order = real.to(torch.int8).argsort(dim=1, stable=True)
    return input_ids.gather(1, order), padding
