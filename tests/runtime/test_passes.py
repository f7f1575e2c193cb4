"""How often the selection rules that work on histograms read the rows, counted from the operations they run."""

from __future__ import annotations

import pytest
import torch

from specbound.runtime.draws import Draws
from specbound.runtime.parts import ratio_knots
from specbound.runtime.parts.ratio_knots import LAST
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get, many_level, two_level
from tests.support.reads import Reads

pytestmark = pytest.mark.usefixtures("arrays")  # what compiled loops read is counted in test_compiled.py
PATHS = 4
MODULES = {"score-race": ratio_knots, "two-level": two_level, "many-level": many_level}
# The score race looks at every row for its histogram (7 numbers per entry: ratio, bits, index, masses, sums), the
# others at those of one path in four; each looks again at one path's rows for block verification.
MOST_READ = {"score-race": 10, "two-level": 5, "many-level": 4.5}


def reads(name: str, length: int, vocab: int, dtype: torch.dtype = torch.float32) -> Reads:
    """What one request's verification reads."""
    generator = torch.Generator().manual_seed(vocab)
    logits = 3 * torch.randn(1, PATHS, length + 1, vocab, generator=generator)
    target = torch.softmax(logits, dim=-1)
    draft = torch.softmax(logits + torch.randn(logits.shape, generator=generator), dim=-1)[:, :, :-1]
    tokens = torch.multinomial(draft.flatten(0, 2), 1, generator=generator).view(1, PATHS, length)
    with Reads(vocab // 2) as counted:
        get(name).verify(Batch(tokens, draft.to(dtype), target.to(dtype)), Draws(generator))
    return counted


def per_row(name: str, length: int, vocab: int) -> float:
    """Numbers read per entry of the rows of a request: PATHS length pairs of rows, and one after each path."""
    return reads(name, length, vocab).numbers / (PATHS * (2 * length + 1) * vocab)


@pytest.mark.parametrize("name", MODULES)
def test_rows_are_looked_at_a_fixed_number_of_times(monkeypatch, name):
    """However long the drafts, however many the tokens and the levels, where the rows do not fit in the cache."""
    monkeypatch.setattr(ratio_knots, "IN_CACHE", 0)
    found = [per_row(name, length, vocab) for length in (2, 5) for vocab in (6_000, 12_000)]
    assert max(found) < MOST_READ[name]
    seen = ratio_knots._sums
    monkeypatch.setattr(ratio_knots, "_sums", lambda *rows: 0 * seen(*rows) + seen(*rows))
    assert per_row(name, 2, 6_000) > MOST_READ[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODULES)
def test_nothing_of_the_size_of_the_rows_is_in_double_precision(monkeypatch, name, dtype):
    """But the one row from which the token is drawn, and the histograms."""
    length, vocab = 2, 6_000
    most = max(vocab, 2 * PATHS * length * (LAST + 2))
    assert reads(name, length, vocab, dtype).doubles <= most
    rows = ratio_knots.drafted_rows
    monkeypatch.setattr(MODULES[name], "drafted_rows", lambda batch: tuple(part.double() for part in rows(batch)))
    assert reads(name, length, vocab, dtype).doubles > most
