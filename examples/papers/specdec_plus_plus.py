"""SpecDec++ (arXiv:2405.19715) in one screen: the best moment to stop the draft, exactly and with a trained head.

python examples/papers/specdec_plus_plus.py
"""

from pathlib import Path

import torch

from specbound import generate, load_pair, shipped_pair
from specbound.runtime.acceptance_head import AcceptanceHead
from specbound.runtime.lengths import AcceptanceHeadLength
from specbound.theory.stopping import (
    StoppingInstance,
    best_of,
    constant_length_rates,
    solve,
    theorem_3_1,
    threshold_rates,
)

instance = StoppingInstance.from_json((Path(__file__).parents[1] / "stopping.json").read_text())
solution = solve(instance)
print(f"two contexts, a target pass costs {instance.target_time} drafted tokens; committed tokens per unit of time:")
print(f"  optimal rule                 {solution.eta} = {float(solution.eta):.6f}")
length, rate = best_of(constant_length_rates(instance))
print(f"  best constant length {length}       {float(rate):.6f}")
theta, rate = best_of(threshold_rates(instance))
print(f"  stop once R > {float(theta):.4f}         {float(rate):.6f}")
print(f"  {theorem_3_1(instance, solution.gamma).statement}: {theorem_3_1(instance, solution.gamma).holds}")

pair = load_pair(shipped_pair.TARGET, shipped_pair.DRAFT)
prompt = pair.tokenizer("def read_lines(path):\n", return_tensors="pt", return_token_type_ids=False)
head = AcceptanceHead.load(shipped_pair.HEAD)
rules = {"constant 4": 4, "constant 8": 8} | {
    f"head, R > {theta}": AcceptanceHeadLength(head, theta, maximum=8) for theta in (0.3, 0.7)
}
for name, rule in rules.items():
    generator = torch.Generator().manual_seed(0)
    found = generate(pair.target, pair.draft, **prompt, length=rule, max_new_tokens=96, do_sample=True,
                     generator=generator).statistics  # fmt: skip
    drafted = int(found.drafted[found.active].sum())
    print(f"{name}: {found.calls} target calls for 96 tokens, {found.discarded} of {drafted} drafted tokens discarded")
