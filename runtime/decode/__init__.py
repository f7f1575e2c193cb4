"""Decoding with a draft: the loop of drafting, one target pass, verification; as a function and inside transformers.

B rows (requests), K drafted paths of L tokens per call, V vocabulary. One *call* is one pass of the target over the
drafts: row b keeps accepted_b drafted tokens and one more token, the correction (the bonus token if all were kept).

The drafted row is the sampled row: verification sees exactly the laws that the tokens were drawn from, both models'
after the same logits processors. Everything random is asked of one `Draws`. Any draft length and any number of
calls gives the law of the target for a lossless verifier: a call's later rows only need to be laws of the prefix.

Read in this order: `entry` (what users call), `settings` (what transformers' settings are honoured), `method` (the
decoding method that transformers calls, and its checks), `loop` (one generation), `sources` (where its drafts come
from), `tree_loop` (its call where the draft is a tree), `rows` (the text so far),
`short_rows` (rows whose drafts are shorter than others), `results`.
"""

from .entry import generate, speculative
from .method import OnCall
from .results import Generation, Statistics, perplexity
from .settings import check_settings
from .short_rows import pad_rows

__all__ = [
    "Generation",
    "OnCall",
    "Statistics",
    "check_settings",
    "generate",
    "pad_rows",
    "perplexity",
    "speculative",
]
