"""Early exit: the target's own first layers, its last norm and its head, as a draft model. No weight is copied.

Source: layer skipping with self-speculation (Draft & Verify, arXiv:2309.08168; LayerSkip, arXiv:2404.16710), as in
transformers' `assistant_early_exit`.
"""

from __future__ import annotations

import copy

from torch import nn
from transformers import PreTrainedModel


def early_exit(target: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A model that shares the target's weights and leaves out all but its first `layers` layers.

    Raises:
        ValueError: the target has no list of layers that can be cut, or `layers` is not among 1..its number - 1.
    """
    config = copy.deepcopy(target.config)
    text = config.get_text_config()
    depth = int(text.num_hidden_layers)
    if type(layers) is not int or not 1 <= layers < depth:
        raise ValueError(f"layers is {layers!r}; want 1..{depth - 1}, the target has {depth} layers")
    lists = [name for name, part in target.named_modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if len(lists) != 1:
        raise ValueError(f"{type(target).__name__} has {len(lists)} lists of {depth} layers; want exactly one to cut")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = list(text.layer_types)[:layers]
    model = _own(target)
    model.config = config
    part: nn.Module = model
    *path, last = lists[0].split(".")
    for name in path:
        child = _own(part.get_submodule(name))
        if getattr(child, "config", None) is not None:
            child.config = config if child.config is target.config else text
        part._modules[name] = child
        part = child
    part._modules[last] = nn.ModuleList(list(part.get_submodule(last).children())[:layers])
    return model


def _own(module: nn.Module) -> nn.Module:
    """The same module with a dictionary of children of its own."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
