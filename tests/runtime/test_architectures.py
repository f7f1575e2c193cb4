"""Every decoder that transformers can build: its laws over caches and trees are right, or it is refused in one line."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from specbound.runtime.decode import generate
from specbound.runtime.layers import reaches
from specbound.runtime.models import check_model, has_slots, tolerance
from specbound.runtime.self_check import Checked, check_laws
from tests.support.architectures import VOCAB, WINDOW, model_types, toy

pytestmark = pytest.mark.slow

OFF = r"over caches and trees its laws are [\d.e-]+ off"
NO_CACHE = "its forward takes no cache"
REFUSED = {
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie", "gpt_neo",
         "megatron-bert", "moshi", "prophetnet", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
         "xlm-roberta", "xlm-roberta-xl"), OFF
    ),
    **dict.fromkeys(("openai-gpt", "rwkv", "xlm", "xlnet"), NO_CACHE),
    "recurrent_gemma": "over caches and trees it fails",
}  # fmt: skip
NOT_BUILT = {
    "bailing_hybrid", "bamba", "blenderbot", "blt", "cohere_compass_text", "dbrx", "dots3_note", "dots3_note_text",
    "emu3", "falcon_h1", "fuyu", "gemma3", "gemma3n", "gemma3n_text", "gemma4", "gemma4_assistant", "gemma4_unified",
    "gemma4_unified_assistant", "git", "got_ocr2", "granitemoehybrid", "inkling2_text", "jamba", "kimi_linear",
    "lfm2_moe", "llama4", "mamba2", "mllama", "moss_transcribe_diarize", "musicgen", "musicgen_melody",
    "phi4_multimodal", "plbart", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "qwen4_exp_text", "reformer", "whisper",
    "xlstm", "xmod", "zamba", "zamba2", "zaya",
}  # fmt: skip
"""Families with no model at this size: too large, of several parts, or wanting settings that belong together."""


def check(model: PreTrainedModel) -> Checked:
    check_model("target", model)
    return check_laws("target", model)


@pytest.mark.parametrize("family", [name for name in model_types() if name not in NOT_BUILT])
def test_a_family_has_the_laws_of_a_plain_pass_or_is_refused(family):
    model = toy(family)
    if family in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[family]) as refusal:
            check(model)
        assert "\n" not in str(refusal.value)
        return
    found = check(model)
    assert found.deviation < tolerance(model)
    texts = torch.tensor([[first, *range(3, 10)] for first in (10, 11)])
    with torch.no_grad():
        laws = model(input_ids=texts).logits[:, -1].softmax(dim=-1)
    assert (laws[0] - laws[1]).abs().sum() > 1e-3, "the law does not depend on the text"
    windowed = has_slots(model) and any(
        reach.kind != "all" for reach in reaches(model.config.get_text_config()).values()
    )
    assert (found.windows is not None) == windowed
    if not windowed:
        return
    assert found.windows < tolerance(model)
    ids = torch.randint(3, VOCAB, (2, WINDOW + 2), generator=torch.Generator().manual_seed(0))
    settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}
    ours = generate(model, toy(family, seed=1), ids, verifier="traversal", paths=2, length=3, **settings)
    assert ours.sequences.tolist() == model.generate(ids, **settings).tolist()
