"""Optimal multi-path verification, K independent drafts per round: three routes, certificates, executable verifiers.

`coupling` is brute force over everything a round can do, `antichain` the linear program over accepted prefixes with
an exact separation, `solver` the program over the law of one selected draft, which
`interior_point` solves on trees of a million nodes. `certificates` proves any
answer without a solver, `verifier_table` turns one into a verifier that can be executed, `automaton` bounds what no
tree can hold.
"""

from .solver import Progress, lossless_optimum, transport_optimum

__all__ = ["Progress", "lossless_optimum", "transport_optimum"]
