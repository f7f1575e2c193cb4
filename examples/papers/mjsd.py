"""MJSD (arXiv:2407.09722) in one screen: joint greedy decoding and joint verification, exactly and on models.

python examples/papers/mjsd.py
"""

from specbound import generate, load_pair
from specbound.runtime.decode import perplexity
from specbound.runtime.verifiers import get
from specbound.shipped_pair import DRAFT, TARGET
from specbound.theory.contexts import ContextModel
from specbound.theory.joint_decoding import DecodingLaw, JointSpeculation, joint_greedy, mjsd

target = ContextModel.markov([["1/10", "2/5", "1/2"], ["1/10", "7/10", "1/5"], ["3/5", "3/10", "1/10"]])
draft = ContextModel.markov([["3/10", "1/2", "1/5"], ["1/10", "3/5", "3/10"], ["2/5", "3/10", "3/10"]])
print("joint greedy decoding of six tokens, a chain of three tokens:")
for window in (1, 2, 3):
    tokens = joint_greedy(target, 6, window)
    found = DecodingLaw({tokens: target.one}, 6, target).perplexity_of_mean
    print(f"  k = {window}: {tokens}, perplexity {found:.4f}")
print("joint verification, three tokens drafted by a beam of two, greedy:")
for tau in ("0", "1/2", "1"):
    law = mjsd(JointSpeculation(target, draft, 3, 2, tau), 6, "greedy")
    print(f"  tau = {tau}: {law.tokens}, perplexity {law.perplexity_of_mean:.4f}, {law.calls} target calls")

pair = load_pair(TARGET, DRAFT)
prompt = pair.tokenizer("def read_lines(path):\n", return_tensors="pt", return_token_type_ids=False)
for tau in (0.0, 0.3, 1.0):
    verifier = get("mjsd").configured(threshold=tau)
    output = generate(pair.target, pair.draft, **prompt, verifier=verifier, beams=2, length=4, temperature=0,
                      max_new_tokens=48)  # fmt: skip
    found = perplexity(pair.target, output.sequences, prompt["input_ids"].shape[1])
    calls = output.statistics.calls
    print(f"shipped pair, greedy, tau = {tau:g}: 48 tokens in {calls} calls, perplexity {float(found[0]):.2f}")
