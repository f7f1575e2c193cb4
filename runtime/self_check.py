"""Before a model decodes: does it give, over cached rows and drafted trees, the laws of a plain pass?

Some models ignore a 4D mask, the positions, or the cache they are given, and would decode a wrong law without a word.
The check feeds two rows of a few tokens of different length, a tree of two paths to each, keeps one path and goes on,
and compares all laws with those of a plain pass over the same texts: no cache, no positions, no mask of ours. If the
model has windows, it does so again with windows shrunk below these few tokens, for the plain pass too.

It costs some passes over a dozen tokens, once for each (model class, attention implementation, configuration).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .layers import SIZES, reaches
from .models import ADVICE, has_slots, input_device, tolerance, vocabulary
from .states import hold
from .tree_attention import merge_paths

PROMPTS, PATHS, DRAFTED, AFTER = (5, 3), 2, 2, 2
SMALL_WINDOW = 3


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        deviation: largest total variation between a law over caches and trees and the plain one.
        windows: the same with windows shrunk; None without windows; infinite if the model cannot be asked.
    """

    deviation: float
    windows: float | None


_FOUND: dict[tuple[type, str, str], Checked] = {}
_SEEN: WeakKeyDictionary[PreTrainedModel, tuple[str, Checked]] = WeakKeyDictionary()


def check_laws(name: str, model: PreTrainedModel) -> Checked:
    """The check's result for that model, found now or before.

    Args:
        name: "target" or "draft", for errors.

    Raises:
        ValueError: the laws differ by more than rounding, or the model fails.
    """
    attention = str(model.config.get_text_config()._attn_implementation)
    if model in _SEEN and _SEEN[model][0] == attention:
        return _SEEN[model][1]
    key = (type(model), attention, f"{model.dtype} {model.config.to_json_string()}")
    if key not in _FOUND:
        _FOUND[key] = _check(name, model)
    _SEEN[model] = (attention, _FOUND[key])
    return _FOUND[key]


def _check(name: str, model: PreTrainedModel) -> Checked:
    kind = type(model).__name__
    try:
        found = deviation(model)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{name} ({kind}) cannot verify drafts: over caches and trees it fails ({reason})") from error
    if not found <= tolerance(model):
        raise ValueError(
            f"{name} ({kind}) cannot verify drafts: over caches and trees its laws are {found:.2g} off those of a "
            f"plain pass (total variation; rounding stays below {tolerance(model):g}); {ADVICE}"
        )
    return Checked(found, _windows(model))


def _windows(model: PreTrainedModel) -> float | None:
    """The deviation with windows shrunk below the texts of the check, None without windows."""
    if not has_slots(model) or all(reach.kind == "all" for reach in reaches(model.config.get_text_config()).values()):
        return None
    try:
        with shrunk(model.config.get_text_config()):
            return deviation(model)
    except Exception:
        return math.inf


@contextmanager
def shrunk(config: Any) -> Iterator[None]:
    """Windows and chunks of SMALL_WINDOW tokens; the model reads them from its configuration in every pass."""
    kept = {name: getattr(config, name) for name in SIZES if getattr(config, name, None)}
    try:
        for name in kept:
            setattr(config, name, SMALL_WINDOW)
        yield
    finally:
        for name, value in kept.items():
            setattr(config, name, value)


@torch.inference_mode()
def deviation(model: PreTrainedModel) -> float:
    """Largest total variation between the model's laws over caches and trees and those of a plain pass."""
    texts = _texts(model)
    plain = model(input_ids=texts.flatten(0, 1), use_cache=False, return_dict=True).logits
    plain = plain.view(*texts.shape[:2], *plain.shape[1:])
    cached = hold(model, len(PROMPTS))
    rows = torch.arange(len(PROMPTS), device=texts.device)
    count = torch.tensor(PROMPTS, device=texts.device)

    prompts = cached.read(texts[:, 0, : max(PROMPTS)])
    off = [_distance(prompts[row, :end], plain[row, 0, :end]) for row, end in enumerate(PROMPTS)]

    cached.forget_tail([end - 1 for end in PROMPTS])
    drafts = torch.stack([texts[row, :, end : end + DRAFTED] for row, end in enumerate(PROMPTS)])
    tree = merge_paths(texts[rows, 0, count - 1], drafts)
    along = cached.extend(tree.tokens, count[:, None] - 1 + tree.depth, tree.sees)[rows[:, None, None], tree.place]
    off += [_distance(along[row], plain[row, :, end - 1 : end + DRAFTED]) for row, end in enumerate(PROMPTS)]

    cached.keep_path(tree.place[:, -1])
    now = [end + DRAFTED for end in PROMPTS]
    cached.forget_tail(now)
    after = cached.read(torch.stack([texts[row, -1, end : end + AFTER] for row, end in enumerate(now)]))
    off += [_distance(after[row], plain[row, -1, end : end + AFTER]) for row, end in enumerate(now)]
    return max(off)


def _distance(logits: Tensor, others: Tensor) -> float:
    """Largest total variation between the laws of two sets of rows; infinite if there is no law."""
    laws, wanted = (rows.double().softmax(dim=-1) for rows in (logits, others))
    found = float((laws - wanted).abs().sum(dim=-1).max()) / 2
    return found if math.isfinite(found) else math.inf


def _texts(model: PreTrainedModel) -> Tensor:
    """[rows, paths, tokens] int64: arbitrary texts; those of a row share its prompt. Special tokens are left out."""
    vocab, config = vocabulary(model), model.config.get_text_config()
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    every = range(min(vocab, 4096))
    usable = [token for token in every if token not in special]
    usable = usable if len(usable) > 1 else list(every)
    generator = torch.Generator().manual_seed(0)
    size = max(PROMPTS) + DRAFTED + AFTER
    texts = torch.tensor(usable)[torch.randint(len(usable), (len(PROMPTS), PATHS, size), generator=generator)]
    for row, count in enumerate(PROMPTS):
        texts[row, :, :count] = texts[row, :1, :count]
    return texts.to(input_device(model))
