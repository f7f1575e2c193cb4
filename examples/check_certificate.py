"""Check a certificate of `specbound solve --certificate FILE` without specbound: fractions and the standard library.

    python examples/check_certificate.py FILE

The file holds an instance (target and draft conditionals of every prefix), K, and two witnesses. Letters: P, Q joints
of target and draft, p the target's next token, g(t) = 1 - (1-t)^K.

    from below   kappa, the law of one selected draft. It can be selected iff kappa(S) <= g(Q(S)) for the sets S of
                 highest kappa/Q. Then E[tau] = sum of phi is reached, with phi(root) = 1 and
                 phi(wy) = min(kappa(wy), p(y|w) phi(w))      (block transport: phi(w) = min(kappa(w), P(w)))
    from above   a potential C that grows along every path and is 0 at the root. No verifier keeps more than
                 E[max_k C(X_k)] over K drafts X_k  +  the most a target stream can earn, one token per step less C
                 (lossless: stopping one token ahead; block transport: stopping with hindsight)

Exit code 0 if both are what the file claims, 1 if not. Numbers with a decimal point are floats: then to 1e-9.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction

Number = Fraction | float


def check(data: dict) -> tuple[Number, Number]:
    """(value, bound) that the witnesses prove; ValueError if they are no witnesses or prove less than is claimed."""
    tree, paths = data["tree"], data["paths"]
    parent, target, draft = tree["parent"], numbers(tree["target"]), numbers(tree["draft"])
    kappa, potential = numbers(data["kappa"]), numbers(data["potential"])
    size = len(parent)
    depth, joint, drafted = [0] * size, [Fraction(1)] * size, [Fraction(1)] * size
    for node in range(1, size):
        depth[node] = depth[parent[node]] + 1
        joint[node], drafted[node] = joint[parent[node]] * target[node], drafted[parent[node]] * draft[node]
    leaves = [node for node in range(size) if depth[node] == tree["length"]]
    exact = all(isinstance(number, Fraction) for number in [*target, *draft, *kappa, *potential])
    slack = 0 if exact else 1e-9 * (1 + tree["length"])
    for name, row in (("target", target), ("draft", draft)):
        for node in set(parent[1:]):
            total = sum(row[child] for child in range(1, size) if parent[child] == node)
            if abs(total - 1) > slack:
                raise ValueError(f"{name} sums to {total} below node {node}")
    if len(kappa) != len(leaves) or len(potential) != size or min(kappa) < 0 or potential[0] != 0:
        raise ValueError("kappa wants one number >= 0 per full draft, the potential one per node and 0 at the root")
    if any(potential[node] < potential[parent[node]] for node in range(1, size)):
        raise ValueError("the potential falls along a path")

    def covered(mass: Number) -> Number:
        return 1 - (1 - min(mass, 1)) ** paths

    mass, reached = Fraction(0), Fraction(0)

    def density(place: int) -> tuple[bool, Number]:
        drawn = drafted[leaves[place]]
        return drawn == 0 < kappa[place], kappa[place] / (drawn or 1)

    for place in sorted(range(len(leaves)), key=density, reverse=True):
        k, leaf = kappa[place], leaves[place]
        mass, reached = mass + k, reached + drafted[leaf]
        if mass > covered(reached) + slack:
            raise ValueError(f"kappa puts {mass} on drafts that appear with probability {covered(reached)} only")

    objective = data["objective"]
    selected = [Fraction(0)] * size
    for k, leaf in zip(kappa, leaves, strict=True):
        selected[leaf] = k
    for node in range(size - 1, 0, -1):
        selected[parent[node]] += selected[node]
    phi = [Fraction(1)] * size
    for node in range(1, size):
        limit = target[node] * phi[parent[node]] if objective == "lossless" else joint[node]
        phi[node] = min(selected[node], limit)
    value = sum(phi[1:])

    order = sorted(leaves, key=lambda leaf: -potential[leaf])
    bound, reached = Fraction(0), Fraction(0)
    for leaf, following in zip(order, [*order[1:], None], strict=True):
        reached += drafted[leaf]
        bound += covered(reached) * (potential[leaf] - (potential[following] if following is not None else 0))
    earned = [1 - potential[node] + potential[parent[node]] if node else Fraction(0) for node in range(size)]
    if objective == "lossless":
        for node in range(size - 1, 0, -1):
            earned[parent[node]] += target[node] * max(earned[node], 0)
        bound += earned[0]
    else:
        best = [Fraction(0)] * size
        for node in range(1, size):
            earned[node] += earned[parent[node]]
            best[node] = max(best[parent[node]], earned[node])
            bound += joint[node] * (best[node] - best[parent[node]])
    claimed_value, claimed_bound = numbers([data["value"], data["bound"]])
    if claimed_value > value + slack or claimed_bound < bound - slack:
        raise ValueError(f"the witnesses prove [{value}, {bound}], the file claims [{claimed_value}, {claimed_bound}]")
    return value, bound


def numbers(entries: list) -> list[Number]:
    """Strings and integers as fractions, decimals as floats."""
    return [entry if isinstance(entry, float) else Fraction(entry) for entry in entries]


def main(arguments: list[str]) -> int:
    with open(arguments[0], encoding="utf-8") as file:
        data = json.load(file)
    try:
        value, bound = check(data)
    except ValueError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    paths, objective = data["paths"], data["objective"]
    answer = value if value == bound else f"in [{value}, {bound}]"
    print(f"proved: the {objective} optimum of {paths} paths is {answer}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
