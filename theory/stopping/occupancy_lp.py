"""The optimal stopping rule as a linear program over occupancy measures, in CVXPY.

Variables u_stop(s, w), u_cont(s, w) >= 0: long-run rate, per unit of time, of standing at drafted block w of a
round started in s and sending it to the target, or drafting on.
    maximise   sum u_stop(s, w) E[tau + 1 | s, w]
    subject to u_stop(s, root) + u_cont(s, root) = sum over (s', w') of u_stop(s', w') D(s', w'; s)
               u_stop(s, wy) + u_cont(s, wy)     = q(y | w) u_cont(s, w)
               sum u_stop(s, w) (t_T + |w| t_d)  = 1
with D the leaf-level law of the next start (`leaves`). Randomised stops are allowed; none is needed.
It shares only the instance and the leaf law with policy iteration: the independent second route.
"""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
from scipy.sparse import lil_array

from .instance import StoppingInstance
from .leaves import Block, leaf_law

LP_NODE_LIMIT = 10_000
_ADVICE = "bring draft_time / target_time nearer to 1"


def solve_by_lp(instance: StoppingInstance) -> float:
    """The optimal rate eta, by HiGHS; float64.

    Raises:
        ValueError: more than 10,000 nodes (start context, drafted block).
        RuntimeError: the solver did not report an optimum.
    """
    unit = instance.target_time
    problem = occupancy_problem(replace(instance, target_time=1, draft_time=instance.draft_time / unit))
    try:
        problem.solve(solver=cp.SCIPY, scipy_options={"method": "highs"})
    except cp.error.SolverError as error:
        raise RuntimeError(f"the occupancy LP failed ({error}); {_ADVICE}") from None
    if problem.status != cp.OPTIMAL:
        raise RuntimeError(f"the occupancy LP ended {problem.status}; {_ADVICE}")
    return float(problem.value / unit)


def occupancy_problem(instance: StoppingInstance) -> cp.Problem:
    """The linear program of this module's opening, with variables `stop` and `draft_on` indexed by node.

    Raises:
        ValueError: more than 10,000 nodes.
    """
    if count_nodes(instance) > LP_NODE_LIMIT:
        raise ValueError(
            f"max_length is {instance.max_length}: the occupancy LP has more than {LP_NODE_LIMIT:,} nodes; lower it"
        )
    nodes = [(s, w) for s in range(instance.contexts) for w in _blocks(instance, s)]
    index = {node: i for i, node in enumerate(nodes)}
    stop = cp.Variable(len(nodes), nonneg=True, name="stop")
    draft_on = cp.Variable(len(nodes), nonneg=True, name="draft_on")
    may_stop = np.array([len(w) >= instance.min_length for _, w in nodes])
    may_draft = np.array([len(w) < instance.max_length for _, w in nodes])

    restarts = lil_array((len(nodes), len(nodes)))
    branching = lil_array((len(nodes), len(nodes)))
    tokens, times = np.zeros(len(nodes)), np.zeros(len(nodes))
    for i, (s, w) in enumerate(nodes):
        times[i] = float(instance.target_time) + len(w) * float(instance.draft_time)
        for accepted, after, probability in leaf_law(instance, s, w):
            tokens[i] += (accepted + 1) * float(probability)
            restarts[index[(after, ())], i] += float(probability)
        if w:
            branching[i, index[(s, w[:-1])]] = float(_last_draft(instance, s, w))
    constraints = [
        stop + draft_on == restarts.tocsr() @ stop + branching.tocsr() @ draft_on,
        times @ stop == 1,
        stop[np.flatnonzero(~may_stop)] == 0,
        draft_on[np.flatnonzero(~may_draft)] == 0,
    ]
    return cp.Problem(cp.Maximize(tokens @ stop), constraints)


def count_nodes(instance: StoppingInstance) -> int:
    """Nodes (start context, drafted block) of the program."""
    total = 0
    for start in range(instance.contexts):
        layer = {start: 1}
        for _ in range(instance.max_length + 1):
            total += sum(layer.values())
            deeper: dict[int, int] = {}
            for context, blocks in layer.items():
                for after, _, _ in instance.branches[context]:
                    deeper[after] = deeper.get(after, 0) + blocks
            layer = deeper
    return total


def _blocks(instance: StoppingInstance, start: int) -> list[Block]:
    """Every block of positive draft probability and length at most K from `start`, shortest first."""
    layer: dict[Block, int] = {(): start}
    blocks: list[Block] = []
    for _ in range(instance.max_length + 1):
        blocks += layer
        layer = {
            (*w, z): instance.next_contexts[c][z]
            for w, c in layer.items()
            for z in range(instance.vocab)
            if instance.draft[c][z] > 0
        }
    return blocks


def _last_draft(instance: StoppingInstance, start: int, block: Block) -> float:
    """q(last token | the block before it)."""
    context = start
    for token in block[:-1]:
        context = instance.next_contexts[context][token]
    return float(instance.draft[context][block[-1]])
