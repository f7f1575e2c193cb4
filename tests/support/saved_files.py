"""Documents that specbound writes or reads: certificates, verifier tables, stopping problems; fuzzers alter them."""

from __future__ import annotations

import json
from pathlib import Path

from specbound.theory import multi_path
from specbound.theory.multi_path.certificates import certificate_to_json, verify_certificate
from specbound.theory.multi_path.verifier_table import verifier_table
from specbound.theory.prefix_tree import PrefixTree

OBJECTIVES = ("lossless", "block-transport")


def solved(tree: PrefixTree, paths: int, objective: str):
    solver = multi_path.lossless_optimum if objective == "lossless" else multi_path.transport_optimum
    return solver(tree, paths, 1e-4)


SOLVED = [
    (tree, paths, objective, solved(tree, paths, objective))
    for tree in (PrefixTree.random(2, 2, 1), PrefixTree.iid([0.25, 0.75], [0.5, 0.5], 1), PrefixTree.random(3, 1, 2))
    for paths in (1, 2, 3)
    for objective in OBJECTIVES
]
CERTIFICATES = [
    json.loads(certificate_to_json(tree, verify_certificate(tree, paths, found.kappa, found.potential, objective)))
    for tree, paths, objective, found in SOLVED
]
TABLES = [
    json.loads(verifier_table(tree, paths, found.kappa, objective).to_json())
    for tree, paths, objective, found in SOLVED
]


STOPPING = [
    json.loads(Path("examples/stopping.json").read_text(encoding="utf-8")),
    {"version": 1, "target": [["1/3", "2/3"], [0, 1]], "draft": [["1/2", "1/2"], [1, 0]], "target_time": 1}
    | {"draft_time": "1/10", "max_length": 3, "min_length": 1, "verifier": "block"},
    {"version": 1, "target": [[0.25, 0.75]], "draft": [[0.5, 0.5]], "target_time": 1.5, "draft_time": 0.1}
    | {"max_length": 2, "successor": [[0, 0]]},
    {"version": 1, "target": [[1]], "draft": [[1]], "target_time": 1, "draft_time": 0, "max_length": 0},
]
