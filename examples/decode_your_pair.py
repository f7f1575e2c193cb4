"""Decode with a pair of your own, in one screen. Needs the models on disk or a network that reaches their hub.

    python examples/decode_your_pair.py Qwen/Qwen3-8B Qwen/Qwen3-0.6B "Write a haiku about proofs."
    python examples/decode_your_pair.py meta-llama/Llama-3.1-8B-Instruct meta-llama/Llama-3.2-1B-Instruct "..."

Without arguments it uses the pair that ships with specbound. Both models must read the same token ids.
"""

import sys

import torch

from specbound import load_pair, speculative
from specbound.shipped_pair import DRAFT, TARGET

target, draft, prompt = sys.argv[1:] if len(sys.argv) == 4 else (TARGET, DRAFT, "def read_lines(path):\n")
pair = load_pair(target, draft)
inputs = pair.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(pair.target.device)

for verifier, paths in (("token", 1), ("block", 1), ("score-race", 4)):
    generator = torch.Generator(pair.target.device).manual_seed(0)
    decoding = speculative(pair.draft, verifier=verifier, paths=paths, length=5, generator=generator)
    output = pair.target.generate(
        **inputs,
        custom_generate=decoding,
        do_sample=True,
        temperature=0.8,
        max_new_tokens=64,
        return_dict_in_generate=True,
    )
    text = pair.tokenizer.decode(output.sequences[0, inputs["input_ids"].shape[1] :])
    print(f"--- {verifier}, {paths} path(s): {output.statistics.block_efficiency:.2f} tokens per target call\n{text}\n")
