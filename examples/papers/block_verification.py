"""Block Verification (arXiv:2403.10444) in one screen: the paper's example, exactly, and both verifiers on models.

python examples/papers/block_verification.py
"""

from specbound import PrefixTree, exact_law, from_models, load_pair
from specbound.shipped_pair import DRAFT, TARGET
from specbound.theory import block_transport, single_path, token_level

tree = PrefixTree.iid(target=["1/3", "2/3"], draft=["2/3", "1/3"], length=2)
print("target (1/3, 2/3), draft (2/3, 1/3), two drafted tokens; kept in expectation, in fractions:")
print(f"  token verification   {token_level.optimum(tree).exact}")
print(f"  block verification   {single_path.optimum(tree).exact}, the most that a stateless lossless verifier can keep")
print(f"  full information     {block_transport.optimum(tree).exact}")

for name in ("token", "block"):
    law = exact_law(name, tree)
    distance = law.total_variation(tree.target_law())
    print(f"  the runtime's {name}: keeps {law.acceptance_length:.12f}, total variation to the target {distance:.0e}")

pair = load_pair(TARGET, DRAFT)
context = pair.tokenizer("def read_lines(path):\n", return_tensors="pt")["input_ids"][0]
print("the shipped pair after a line of Python, both models under top-k 3; tokens per target call, exactly:")
for length in (2, 3, 4):
    tree = from_models(pair.target, pair.draft, context, length, top_k=3)
    token, block = 1 + token_level.optimum(tree).value, 1 + single_path.optimum(tree).value
    print(f"  L = {length}: token {token:.4f}, block {block:.4f}, {100 * (block / token - 1):.2f} % more")
