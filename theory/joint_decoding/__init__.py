"""Joint decoding (MJGD, MJSD), exactly: its output laws and target calls (`decoding`), its promises (`guarantees`).

Both are computed on `contexts.ContextModel`, a language model with finitely many contexts.
"""

from .decoding import (
    DecodingLaw,
    JointSpeculation,
    accepted_length,
    beam_block,
    beam_sampling_law,
    committed_per_call,
    greedy,
    joint_greedy,
    mjsd,
    most_probable_block,
    speculative_sampling,
)

__all__ = [
    "DecodingLaw",
    "JointSpeculation",
    "accepted_length",
    "beam_block",
    "beam_sampling_law",
    "committed_per_call",
    "greedy",
    "joint_greedy",
    "mjsd",
    "most_probable_block",
    "speculative_sampling",
]
