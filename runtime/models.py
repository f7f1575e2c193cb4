"""Loading a target and a draft, and what they must have in common.

Both models must read the same token ids. Vocabularies of different size are allowed where the larger one only adds
padding rows at its end (as in families whose embedding is rounded up differently): the missing logits count as -inf.

Each model has a place of its own: one device; a `device_map`, by which accelerate spreads its layers over the devices
of this process (or leaves them in memory or on disk until they run); or a `tp_plan`, by which transformers cuts its
matrices over all processes of a torchrun.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any
from weakref import WeakKeyDictionary

import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_accelerate_available

PADDING_ROWS = 1024
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
ATTENTION = ("sdpa", "eager")
KINDS_OF_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
ADVICE = "use a decoder like Llama, Qwen or GPT-2"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
_PARAMETERS: WeakKeyDictionary[Callable[..., Any], frozenset[str]] = WeakKeyDictionary()
DeviceMap = str | dict[str, int | str]
TensorParallelPlan = str | dict[str, str]


@dataclass(frozen=True)
class Pair:
    """A target, a draft and their tokenizer."""

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Where prompts, the generator and verification belong: the device on which the target reads its tokens."""
        return input_device(self.target)


def load_pair(
    target: str | PathLike[str],
    draft: str | PathLike[str],
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    safetensors_only: bool = True,
    target_device_map: DeviceMap | None = None,
    draft_device_map: DeviceMap | None = None,
    target_tp_plan: TensorParallelPlan | None = None,
    draft_tp_plan: TensorParallelPlan | None = None,
) -> Pair:
    """Load two causal language models by name or local path, ready to decode.

    Args:
        dtype: of both models; None for float32 on a CPU and the checkpoints' own elsewhere.
        device: of a model without device map or plan; None for CUDA if there is one (under torchrun the GPU of this
            process), else the CPU.
        safetensors_only: False also reads pickled checkpoints (which can run code); code of repositories never runs.
        target_device_map, draft_device_map: as `device_map` of transformers: "auto", a device, or a dict from module
            names to devices, "cpu" or "disk". Wants accelerate.
        target_tp_plan, draft_tp_plan: as `tp_plan` of transformers: "auto", or a dict from module names to styles.
            The model is cut over all processes of a torchrun. "auto" leaves attention whole where the number of heads
            does not divide by that of processes.

    Raises:
        ValueError: a folder is not there, the tokenizers differ, a model cannot be used (see `check_model`) or put
            where it was asked to be.
        OSError: a model is not found.
    """
    for role, name in (("target", target), ("draft", draft)):
        check_name(role, name)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if kind == "cuda" else kind))
    wanted: Any = dtype or (torch.float32 if device.type == "cpu" else "auto")
    options = {"dtype": wanted, "use_safetensors": safetensors_only or None, "trust_remote_code": False}
    places = (("target", target_device_map, target_tp_plan), ("draft", draft_device_map, draft_tp_plan))
    for role, device_map, plan in places:
        check_place(role, device, device_map, plan)
    tokenizers = [AutoTokenizer.from_pretrained(name, trust_remote_code=False) for name in (target, draft)]
    check_tokenizers(*tokenizers)
    models = []
    for name, (_, device_map, plan) in zip((target, draft), places, strict=True):
        if plan is not None:
            model = AutoModelForCausalLM.from_pretrained(name, **options, **_cut(name, plan))
        elif device_map is not None:
            model = AutoModelForCausalLM.from_pretrained(name, **options, device_map=device_map)
        else:
            model = AutoModelForCausalLM.from_pretrained(name, **options).to(device)
        models.append(model.eval())
    check_pair(models[0], models[1])
    return Pair(models[0], models[1], tokenizers[0])


def check_name(role: str, name: str | PathLike[str]) -> None:
    """Raise ValueError for a folder that is not there, or holds no model, instead of asking a hub for it.

    A name on a hub is one or two words of letters, digits, ".", "-" and "_"; everything else can only be a folder. So
    is models/name where there is a folder models here, unless a model of that name was downloaded before; and offline
    every model is in a folder or was downloaded.
    """
    path = os.fspath(name)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise ValueError(f"{role} is {path}; want the folder of a model, with a config.json")
        return
    if isinstance(name, PathLike) or not HUB_NAME.fullmatch(path):
        raise ValueError(f"{role} is {path}; there is no such folder")
    if isinstance(try_to_load_from_cache(path, "config.json"), str):
        return
    folder, _, own = path.rpartition("/")
    if folder and os.path.isdir(folder):
        raise ValueError(
            f"{role} is {path}; there is no {own} in the folder {folder} (a model of that name on a hub: download it "
            f"first, hf download {path}, or start elsewhere)"
        )
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{role} is {path}; there is no such folder, none was downloaded, and HF_HUB_OFFLINE is set")


def check_place(role: str, device: torch.device, device_map: DeviceMap | None, plan: TensorParallelPlan | None) -> None:
    """Raise ValueError unless a model can be put there: accelerate for a device map, several processes for a plan."""
    if device_map is not None and plan is not None:
        raise ValueError(
            f"{role}_device_map is {device_map!r} and {role}_tp_plan {plan!r}; give one of them: a map spreads layers "
            "inside this process, a plan cuts matrices over all processes"
        )
    for name, value, kinds in (("device_map", device_map, (str, int)), ("tp_plan", plan, str)):
        if isinstance(value, dict) and not (value and all(isinstance(place, kinds) for place in value.values())):
            raise ValueError(f"{role}_{name} is {value!r}; want at least one module name and a place for each")
    if device_map is not None and not is_accelerate_available():
        raise ValueError(
            f"{role}_device_map is {device_map!r}, which wants accelerate; pip install 'specbound[multi-device]'"
        )
    if plan is None:
        return
    if plan != "auto" and not isinstance(plan, dict):
        raise ValueError(f"{role}_tp_plan is {plan!r}; want 'auto', or a dict from module names to styles")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise ValueError(
            f"{role}_tp_plan is {plan!r}, but this is a single process; start it with "
            "torchrun --nproc-per-node N, N the number of devices"
        )
    if device.type == "cpu" and torch.cuda.is_available():
        raise ValueError(
            f"device is 'cpu' and {role}_tp_plan {plan!r}, but transformers puts the parts on the GPUs of this "
            "machine; hide them with CUDA_VISIBLE_DEVICES= to stay on CPUs"
        )


def _cut(name: str | PathLike[str], plan: TensorParallelPlan) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a model cut over all processes."""
    from transformers.distributed.configuration_utils import DistributedConfig

    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if plan == "auto":
        whole_heads(config, int(os.environ["WORLD_SIZE"]))
    return {"config": config, "distributed_config": DistributedConfig(tp_plan=plan)}


def whole_heads(config: PreTrainedConfig, processes: int) -> None:
    """Take the attention out of the configuration's plan if a process would get a part of a head."""
    text = config.get_text_config()
    heads = [text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads]
    if text.base_model_tp_plan and any(count % processes for count in heads):
        rules = text.base_model_tp_plan.items()
        text.base_model_tp_plan = {rule: style for rule, style in rules if "attn" not in rule}


def check_tokenizers(target: Any, draft: Any) -> None:
    """Raise ValueError unless both tokenizers give the same tokens the same ids."""
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours == theirs:
        return
    different = sorted(token for token in ours.keys() & theirs.keys() if ours[token] != theirs[token])
    alone = sorted(ours.keys() ^ theirs.keys())
    example = (different or alone)[0]
    raise ValueError(
        f"target and draft have different tokenizers: {len(alone)} tokens are in one only, {len(different)} have "
        f"different ids (e.g. {example!r}: {ours.get(example)} and {theirs.get(example)}); choose a draft of the "
        "target's family"
    )


def check_pair(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    """Raise ValueError unless both models can be used, and together."""
    check_model("target", target)
    check_model("draft", draft)
    sizes = vocabulary(target), vocabulary(draft)
    if abs(sizes[0] - sizes[1]) > PADDING_ROWS:
        raise ValueError(
            f"target has {sizes[0]} and draft {sizes[1]} tokens, which is more than padding (up to {PADDING_ROWS} "
            "rows); both need the same tokenizer"
        )


def check_model(name: str, model: PreTrainedModel) -> None:
    """Raise ValueError unless the model is a decoder with a cache, in evaluation mode, with attention that takes masks.

    Whether its laws over that cache are right is measured: see `specbound.runtime.self_check`.
    """
    original = uncompiled(model)
    kind = type(original).__name__
    if model.training:
        raise ValueError(f"{name} is in training mode, where dropout changes its law; call {name}.eval()")
    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} ({kind}) cannot verify drafts: it is an encoder-decoder; {ADVICE}")
    if state_argument(model) is None:
        raise ValueError(f"{name} ({kind}) cannot verify drafts: its forward takes no cache; {ADVICE}")
    if has_slots(model) and config._attn_implementation not in ATTENTION:
        raise ValueError(
            f"{name} ({kind}) uses attn_implementation={config._attn_implementation!r}, which takes no 4D mask; "
            "load it with attn_implementation='sdpa'"
        )


def has_slots(model: PreTrainedModel) -> bool:
    """Whether the model keeps plain keys and values, and takes a mask and positions: then a tree is one pass.

    Else it keeps a state that only its own code understands (`specbound.runtime.recurrent`).
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    takes = {"position_ids", "attention_mask", "past_key_values"} <= parameters(model)
    return takes and kinds <= KINDS_OF_LAYERS and not getattr(uncompiled(model), "_is_stateful", False)


def state_argument(model: PreTrainedModel) -> str | None:
    """What the model calls the cache that it takes and returns; None if it has none."""
    return next((name for name in ("past_key_values", "cache_params") if name in parameters(model)), None)


def parameters(model: PreTrainedModel) -> frozenset[str]:
    """What the model's forward takes; looked up once for each kind of model."""
    forward = uncompiled(model).forward
    function = getattr(forward, "__func__", forward)
    if function not in _PARAMETERS:
        _PARAMETERS[function] = frozenset(inspect.signature(forward).parameters)
    return _PARAMETERS[function]


def tolerance(model: PreTrainedModel) -> float:
    """The largest total variation between two ways to one law that counts as rounding for the model's dtype."""
    return TOLERANCE.get(model.dtype, max(TOLERANCE.values()))


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the model reads tokens and, spread or not, hands out logits; weights that rest elsewhere run there."""
    embedding = model.get_input_embeddings()
    runs_on = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return embedding.weight.device if runs_on is None else torch.device(runs_on)


def is_cut(model: PreTrainedModel) -> bool:
    """Whether the model is cut over several processes (tensor parallelism)."""
    return (getattr(model, "tp_size", None) or 1) > 1


def uncompiled(model: PreTrainedModel) -> PreTrainedModel:
    """The model that `torch.compile` was given, or the model itself."""
    original: PreTrainedModel = getattr(model, "_orig_mod", model)
    return original


def vocabulary(model: PreTrainedModel) -> int:
    """Number of logits of the model."""
    head = model.get_output_embeddings()
    return int(head.weight.shape[0] if isinstance(head.weight, Tensor) else head.out_features)


def context_limit(model: PreTrainedModel) -> int | None:
    """Tokens that the model has positions for; None if unlimited."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None
