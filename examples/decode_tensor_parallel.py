"""Decode with a target that is cut over several processes, one device each (tensor parallelism under torchrun).

    torchrun --nproc-per-node 2 examples/decode_tensor_parallel.py                       # the shipped pair, on CPUs too
    torchrun --nproc-per-node 4 examples/decode_tensor_parallel.py Qwen/Qwen3-32B Qwen/Qwen3-0.6B "Prove that ..."

    # Two nodes of eight GPUs, the same command on both; node0 is the name or address of the first.
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node0:29500 --rdzv-id decode \\
        examples/decode_tensor_parallel.py meta-llama/Llama-3.1-405B-Instruct meta-llama/Llama-3.1-8B-Instruct "..."

Every process runs the same lines and holds a part of the target and the whole draft; process 0 draws and decides, so
the output is the same everywhere and has the law of a single process. `draft_tp_plan="auto"` cuts the draft as well.
"""

import gc
import os
import sys

import torch
import torch.distributed as dist

from specbound import generate, load_pair
from specbound.shipped_pair import DRAFT, TARGET

target, draft, prompt = sys.argv[1:] if len(sys.argv) == 4 else (TARGET, DRAFT, "def read_lines(path):\n")
pair = load_pair(target, draft, target_tp_plan="auto")
inputs = pair.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(pair.device)
output = generate(
    pair.target,
    pair.draft,
    **inputs,
    verifier="block",
    length=5,
    do_sample=True,
    temperature=0.8,
    max_new_tokens=64,
    generator=torch.Generator(pair.device).manual_seed(0),
)
if os.environ["RANK"] == "0":
    statistics = output.statistics
    print(pair.tokenizer.decode(output.sequences[0]))
    print(
        f"--- {os.environ['WORLD_SIZE']} processes, {statistics.calls} target calls, "
        f"{statistics.block_efficiency:.2f} tokens per call"
    )
del pair, inputs, output  # models that outlive the group can abort the interpreter at its end
gc.collect()
dist.destroy_process_group()
