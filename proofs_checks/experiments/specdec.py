"""SpecDec++ (arXiv:2405.19715): how long to draft. Constant lengths, thresholds on the draft's doubt, and the head.

Per method: the share of drafted tokens that is discarded, target calls per token (the verification rate), and the
speed-up, measured and modelled. On contexts small enough to solve: the optimal stopping rule beside the simple ones.
Ablations: acceptance heads trained with other class weights, depths and mixtures of target and draft tokens.
The acceptance head that decodes is the one shipped with the shipped pair; with other models it is left out.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specbound import shipped_pair
from specbound.runtime.acceptance_head import AcceptanceHead, prediction_figures, train_head, training_examples
from specbound.runtime.lengths import AcceptanceHeadLength, ConfidenceLength, EntropyLength, LengthPolicy
from specbound.runtime.models import Pair
from specbound.theory import stopping

from ..laws.model_trees import from_models
from ..laws.stopping_models import stopping_instance
from .decoding import Method, Quantity, decode_jobs, groups, mean, method_table, per_turn, share, temperatures
from .experiment import Experiment, Job, Record, Settings, Table, Workplace, choose
from .tasks import Prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 12
DEPTH, TOP_K = 4, 2
GIVEN, WRITTEN, REPEATS = 16, 64, 8
TARGET_SHARE = 0.85


def jobs(settings: Settings) -> list[Job]:
    """Block verification with every rule for stopping the draft; solved contexts; heads."""
    lengths = choose(settings.lengths, settings.quick, (2, 6), (2, 4, 6, 8, 12))
    doubts = (0.3,) if settings.quick else (0.2, 0.3, 0.5, 0.7)
    rules: dict[str, int | LengthPolicy] = {f"constant L={length}": length for length in lengths}
    rules |= {f"confidence {doubt:g}": ConfidenceLength(doubt, maximum=MOST) for doubt in doubts}
    rules |= {f"entropy {doubt:g}": EntropyLength(doubt, maximum=MOST) for doubt in doubts}
    if settings.shipped:
        head = AcceptanceHead.load(shipped_pair.HEAD)
        rules |= {f"head {doubt:g}": AcceptanceHeadLength(head, doubt, maximum=MOST) for doubt in doubts}
    methods = [Method("plain", "plain"), *(Method(label, "block", length=rule) for label, rule in rules.items())]
    first = [prompt for prompt in settings.prompts if prompt.number == 0]
    ratios = (5,) if settings.quick else (3, 5, 10)
    solved = [stopping_job(prompt, ratio) for prompt in first for ratio in ratios]
    several = len(settings.prompts) > 1
    heads = [head_job(settings.prompts, *shape) for shape in shapes(settings.quick) if several]
    return [*solved, *heads, *decode_jobs(settings, methods, temperatures(settings, (1.0,)), kind="decoded")]


def shapes(quick: bool) -> list[tuple[float, int, float]]:
    """(class weight, residual blocks, share of target tokens) of the heads: one varied at a time."""
    weights, depths, shares = ((1, 6), (2,), (0.85,)) if quick else ((1, 3, 6, 12), (0, 1, 2, 3), (0.0, 0.5, 0.85))
    found = [(weight, 2, TARGET_SHARE) for weight in weights]
    found += [(6, depth, TARGET_SHARE) for depth in depths] + [(6, 2, mixed) for mixed in shares]
    return list(dict.fromkeys(found))


def stopping_job(prompt: Prompt, ratio: int) -> Job:
    """The optimal rule and the simple ones at a prompt's end, a target pass worth `ratio` drafted tokens."""

    def run(place: Workplace) -> Record:
        pair = place.pair
        ids = pair.tokenizer(prompt.text, return_tensors="pt")["input_ids"][0]
        tree = from_models(pair.target, pair.draft, ids, DEPTH, TOP_K)
        instance = stopping_instance(tree, float(ratio), 1.0, DEPTH)
        solution = stopping.solve(instance)
        length, constant = stopping.best_of(stopping.constant_length_rates(instance))
        theta, threshold = stopping.best_of(stopping.threshold_rates(instance))
        ahead = stopping.evaluate(instance, stopping.one_step_rule(instance, solution.gamma)).eta
        about = {"kind": "stopping", "task": prompt.task, "ratio": ratio, "contexts": instance.contexts}
        about |= {"optimum": float(solution.eta), "constant": float(constant), "length": int(length)}
        return about | {"threshold": float(threshold), "theta": float(theta), "one_step": float(ahead)}

    return Job(f"stopping/{prompt.task}/{prompt.number}/{ratio}", run)


def head_job(prompts: tuple[Prompt, ...], class_weight: float, blocks: int, target_share: float) -> Job:
    """A head trained on what the target writes after half of the prompts, judged on what it writes after the others."""

    def run(place: Workplace) -> Record:
        hidden, labels = _examples(place.pair, prompts[::2], target_share)
        head = train_head(hidden, labels, blocks=blocks, class_weight=class_weight, epochs=8)
        found = prediction_figures(head, *_examples(place.pair, prompts[1::2], TARGET_SHARE))
        about = {"kind": "head", "class_weight": class_weight, "blocks": blocks, "target_share": target_share}
        return about | {"trained_on": len(labels)} | found

    return Job(f"head/{class_weight:g}/{blocks}/{target_share:g}", run)


@cache
def _examples(pair: Pair, prompts: tuple[Prompt, ...], target_share: float) -> tuple[Tensor, Tensor]:
    """Hidden states and labels from what the target writes after the prompts, drawn `REPEATS` times."""
    texts = [pair.tokenizer(prompt.text)["input_ids"][:GIVEN] for prompt in prompts]
    long_enough = [text for text in texts if len(text) == GIVEN]
    if not long_enough:
        raise ValueError(
            f"no prompt of {len(prompts)} has {GIVEN} tokens to train or judge a head on; give longer ones"
        )
    given = torch.tensor(long_enough, device=pair.device)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"min_new_tokens": WRITTEN, "max_new_tokens": WRITTEN}
        written = pair.target.generate(given, attention_mask=torch.ones_like(given), **settings, **sizes)
        parts = [training_examples(pair.target, pair.draft, written, GIVEN, target_share) for _ in range(REPEATS)]
    hidden, labels = zip(*parts, strict=True)
    return torch.cat(hidden).float(), torch.cat(labels)


def tables(found: list[Record]) -> list[Table]:
    """Rates and speed of the rules; the optimal rule beside simple ones; heads by what they were trained with."""
    decoded = [record for record in found if record["kind"] == "decoded"]
    quantities = {
        "discard rate": share("discarded", "drafted"),
        "verification rate": share("calls", "tokens"),
        "tokens per call": per_turn("block_efficiency"),
        "x plain, modelled": modelled(decoded),
    }
    note = "modelled: tokens per call / (1 + drafted per call t_d / t_T), t_d and t_T pooled over all rules"
    rules = method_table(decoded, "Rules for stopping the draft, block verification", quantities, note=note)
    solved, heads = ([record for record in found if record["kind"] == kind] for kind in ("stopping", "head"))
    return [rules, _solved(solved), _heads(heads)]


def modelled(decoded: list[Record]) -> Quantity:
    """Speed-up over the target alone if a drafted token costs t_d, a call t_T, and nothing else costs anything."""
    drafting = [record for record in decoded if "drafted" in record]
    drafted, calls = (sum(record[name] for record in drafting) for name in ("drafted", "calls"))
    per_token = sum(record["draft_seconds"] for record in drafting) / max(1, drafted)
    per_call = sum(record["target_seconds"] for record in drafting) / max(1, calls)

    def quantity(own: list[Record]) -> str:
        if "drafted" not in own[0]:
            return ""
        tokens, drafts, passes = (sum(record[name] for record in own) for name in ("tokens", "drafted", "calls"))
        return f"{tokens / passes / (1 + drafts / passes * per_token / per_call):.3f}"

    return quantity


def _solved(found: list[Record]) -> Table:
    rows: list[tuple[object, ...]] = []
    for (ratio,), own in groups(found, "ratio").items():
        shares = [str(mean(record[rule] / record["optimum"] for record in own)) for rule in RULES]
        rows.append((ratio, len(own), str(mean(record["optimum"] for record in own)), *shares))
    columns = ("t_T / t_d", "contexts", "optimal rule, tokens per t_d", *RULES.values())
    note = f"shares of the optimal rate; prefix trees of depth {DEPTH} under top-k {TOP_K}, exact"
    return Table("Optimal stopping on small contexts", columns, rows, note)


RULES = {"constant": "best constant length", "threshold": "best threshold on R", "one_step": "one-step look-ahead"}


def _heads(found: list[Record]) -> Table:
    names = ("class_weight", "blocks", "target_share", "trained_on", "squared_error", "correlation", "mean_predicted")
    rows = [tuple(record[name] for name in (*names, "mean_label")) for record in found]
    columns = (
        "class weight",
        "blocks",
        "target share",
        "examples",
        "squared error",
        "correlation",
        "said",
        "kept",
    )
    return Table("Acceptance heads, ablations", columns, rows, "on texts of the target after prompts not trained on")


def draw(found: list[Record], figure: Figure) -> None:
    """The paper's Pareto picture: verification rate against discard rate, a line for each kind of rule."""
    place = figure.subplots()
    kinds: dict[str, list[tuple[float, float, str]]] = {}
    for (method,), own in groups([r for r in found if "drafted" in r], "method").items():
        discard = sum(r["discarded"] for r in own) / max(1, sum(r["drafted"] for r in own))
        verify = sum(r["calls"] for r in own) / sum(r["tokens"] for r in own)
        kind, _, setting = str(method).partition(" ")
        kinds.setdefault(kind, []).append((discard, verify, setting))
    for kind, points in kinds.items():
        place.plot(*zip(*((discard, verify) for discard, verify, _ in points), strict=True), "o-", label=kind)
        for discard, verify, setting in points:
            place.annotate(setting, (discard, verify), (3, 3), textcoords="offset points", fontsize=8)
    place.margins(0.08)
    place.legend()
    place.set_xlabel("discard rate: drafted tokens not kept")
    place.set_ylabel("verification rate: target calls per token")


EXPERIMENT = Experiment(
    "specdec++", "2405.19715", "rules for stopping the draft: discard rate, verification rate, speed",
    jobs, tables, draw,
)  # fmt: skip
