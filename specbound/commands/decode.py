"""`specbound decode`: text from a target model, sped up by a draft, its tokens marked by origin."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specbound.commands.deviation import deviation_line, measured_deviation
from specbound.commands.instance import print_json
from specbound.commands.options import SEED, Number
from specbound.commands.pair import pair_options, read_pair
from specbound.files import read_text

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from specbound.runtime.decode import Generation
    from specbound.runtime.lengths import LengthPolicy
    from specbound.runtime.models import Pair
    from specbound.runtime.tree_registry import TreeVerifier
    from specbound.runtime.verdict import Batch, Verdict
    from specbound.runtime.verifiers import Verifier

INTERRUPTED = 130
ADAPTIVE = ("head", "entropy", "confidence")
DRAFTED, CORRECTED = "green", "bold magenta"


@click.command(
    short_help="Continue prompts with a target and a draft.",
    epilog="""\b
    Example:
      specbound decode --prompt "def main(" --verifier block --max-new-tokens 60

    \b
    With models of your own:
      specbound decode --target Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B ...

    \b
    A target over 4 GPUs; without a plan, prompts dealt out to 4 processes:
      torchrun --nproc-per-node 4 --no-python specbound decode \\
          --target-tp-plan auto ...""",
)
@pair_options
@click.option("--verifier", default=None, help="Name of a verifier; if not given, the best for --paths.")
@click.option("--paths", type=click.IntRange(min=1), default=1, show_default=True, help="Drafted paths K per call.")
@click.option("--length", type=click.IntRange(min=1), default=4, show_default=True, help="Draft length L, or the most.")
@click.option("--drafts", metavar="SPEC", help="What is drafted instead: a tree, prompt look-up, .. (see the guide).")
@click.option("--adaptive", type=click.Choice(ADAPTIVE), help="Stop a draft early: by the head, entropy or confidence.")
@click.option("--threshold", type=Number(0, 1), help="Of --adaptive, or tau of --verifier mjsd.")
@click.option("--deviation", type=Number(0, 1), help="Budget per call of --verifier budgeted, a total variation.")
@click.option("--setting", multiple=True, metavar="NAME=NUMBER", help="Of the verifier, e.g. floor=0.2 of typical.")
@click.option(
    "--head",
    type=click.Path(dir_okay=False),
    help="Acceptance head (safetensors) of --adaptive head; the shipped pair has one.",
)
@click.option("--beams", type=click.IntRange(min=1), help="Beam width of the draft, for --verifier mjsd.")
@click.option("--prompt", multiple=True, help="A prompt; may be repeated. Standard input if none is given.")
@click.option(
    "--prompts", "prompts_file", type=click.Path(dir_okay=False), help="File of prompts: JSON list, or lines."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=Number(min=0), default=1.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="0 keeps all tokens.")
@click.option("--top-p", type=Number(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def decode(
    models: dict[str, Any],
    verifier: str | None,
    paths: int,
    length: int,
    drafts: str | None,
    adaptive: str | None,
    threshold: float | None,
    deviation: float | None,
    setting: tuple[str, ...],
    head: str | None,
    beams: int | None,
    prompt: tuple[str, ...],
    prompts_file: str | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    as_json: bool,
) -> int:
    """Continue prompts with a target model; drafted tokens that were kept are green, the verifier's own magenta.

    Prompt number i (from 0) is decoded with seed + i. Under torchrun every process decodes its share of the prompts,
    with the same output as one process; with a tensor-parallel plan all of them decode every prompt together.
    After Ctrl-C: what there is so far, and exit code 130.
    """
    prompts = read_prompts(prompt, prompts_file)

    from specbound.runtime.drafting.spec import read_drafts
    from specbound.runtime.lengths import AcceptanceHeadLength
    from specbound.runtime.processes import is_first
    from specbound.runtime.registry import Verifier

    settings = read_settings(setting)
    if adaptive is None and threshold is not None:
        settings["threshold"] = threshold
    if deviation is not None:
        verifier, settings["deviation"] = verifier or "budgeted", deviation
    spec = None if drafts is None else read_drafts(drafts)
    if spec is not None and (paths > 1 or beams or adaptive):
        raise ValueError(f"--drafts is {drafts}; it says what is drafted, leave out --paths, --beams and --adaptive")
    paths = paths if spec is None else spec.paths
    tree = spec is not None and spec.tree
    entry = _tree_verifier(verifier, settings) if tree else _verifier(verifier, paths, settings)
    if beams is not None and isinstance(entry, Verifier) and entry.drafts != "any":
        takers = _names(lambda other: other.drafts == "any")
        raise ValueError(f"--beams is {beams}; only --verifier {takers} takes a beam draft")
    if adaptive == "head" and head is None and models["target"] is None:
        from specbound.shipped_pair import HEAD

        head = str(HEAD)
    policy = _length(length, adaptive, threshold, head)
    sampling: dict[str, Any] = (
        {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature}
    )
    if temperature:
        sampling |= {"top_k": top_k, "top_p": top_p}
    pair = read_pair(**models)
    if isinstance(policy, AcceptanceHeadLength):
        policy.head.to(pair.device)
    draft: Any = pair.draft if spec is None else spec.bind(pair.target, pair.draft, length)
    chosen = {"draft": draft, "verifier": entry, "paths": paths, "length": policy, "beams": beams or 0}
    chosen |= sampling | {"max_new_tokens": max_new_tokens}
    outputs = _decode_all(pair, prompts, chosen, seed, as_json)
    if as_json and is_first():
        shown = {
            "verifier": entry.name,
            "verifier_settings": settings,
            "paths": paths,
            "length": length,
            "drafts": drafts,
            "adaptive": adaptive,
            "threshold": threshold,
        }
        shown |= sampling | {"seed": seed, "max_new_tokens": max_new_tokens}
        print_json({"settings": shown, "outputs": outputs, "total": _total(outputs)})
    return INTERRUPTED if any(output["interrupted"] for output in outputs) else 0


def _decode_all(
    pair: Pair, prompts: list[str], chosen: dict[str, Any], seed: int, as_json: bool
) -> list[dict[str, Any]]:
    """Decode the prompts, as many as there are processes at a time unless these hold one model together.

    Process 0 prints, and gets the outputs in the order of the prompts.
    """
    from rich.console import Console

    from specbound.runtime.models import is_cut
    from specbound.runtime.processes import is_first, process_count

    console = Console(highlight=False, quiet=as_json or not is_first())
    numbered = list(enumerate(prompts, start=seed))
    if process_count() == 1 or is_cut(pair.target) or is_cut(pair.draft):
        outputs = _decode_in_turn(pair, numbered, chosen, console)
    else:
        outputs = _decode_shares(pair, numbered, chosen, console)
    if len(outputs) > 1:
        _print_total(console, _total(outputs))
    return outputs


def _decode_shares(
    pair: Pair, numbered: list[tuple[int, str]], chosen: dict[str, Any], console: Console
) -> list[dict[str, Any]]:
    """Decode this process's share of the prompts; gather what the others printed and found."""
    from rich.console import Console
    from transformers.utils import is_accelerate_available

    if not is_accelerate_available():
        raise ValueError("dealing prompts out to processes wants accelerate; pip install 'specbound[multi-device]'")
    from accelerate import PartialState
    from accelerate.utils import gather_object

    page = io.StringIO()
    own = Console(highlight=False, file=page, force_terminal=console.is_terminal, width=console.width)
    with PartialState(cpu=pair.device.type == "cpu").split_between_processes(numbered) as mine:
        outputs = _decode_in_turn(pair, mine, chosen, own)
    for text in gather_object([page.getvalue()]):
        console.out(text, end="", highlight=False)
    return gather_object(outputs)


def _decode_in_turn(
    pair: Pair, numbered: list[tuple[int, str]], chosen: dict[str, Any], console: Console
) -> list[dict[str, Any]]:
    """Decode (seed, prompt) one after the other, each printed as it grows; an interrupt ends the list."""
    import torch

    from specbound.runtime.decode import generate, perplexity

    outputs: list[dict[str, Any]] = []
    for seed, text in numbered:
        inputs = pair.tokenizer(text, return_tensors="pt", return_token_type_ids=False).to(pair.device)
        marked = MarkedStream(pair.tokenizer, console)
        output = generate(
            pair.target,
            **inputs,
            **chosen,
            streamer=marked,
            on_call=marked.on_call,
            generator=torch.Generator(pair.device).manual_seed(seed),
        )
        outputs.append(_described(text, marked, output))
        if not chosen["verifier"].lossless and marked.tokens:
            begin = inputs["input_ids"].shape[1]
            outputs[-1]["perplexity"] = float(perplexity(pair.target, output.sequences, begin))
            if _solvable(pair, chosen):
                sampled = (chosen["length"], chosen["top_k"], chosen["temperature"])
                found = measured_deviation(pair, chosen["verifier"], output.sequences[0], begin, *sampled)
                outputs[-1]["deviation"] = found
        _print_summary(console, outputs[-1])
        if output.statistics.interrupted:
            break
    return outputs


class MarkedStream:
    """A streamer that prints each token in the colour of its origin, holding back incomplete characters.

    Args:
        tokenizer: of the target.
        console: a quiet one prints nothing.
    """

    def __init__(self, tokenizer: Any, console: Console) -> None:
        self.tokenizer, self.console = tokenizer, console
        self.prompt: list[int] | None = None
        self.tokens: list[int] = []
        self.origins: list[str] = []
        self.kept = 0
        self.printed = 0

    def on_call(self, batch: Batch, verdict: Verdict, starts: list[int]) -> None:
        """Remember how many tokens of the block that comes next were drafted."""
        self.kept = int(verdict.accepted[0])

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then one block per call."""
        tokens = value.reshape(-1).tolist()
        if self.prompt is None:
            self.prompt = tokens
            self._print(self.tokenizer.decode(tokens), "dim")
            return
        for place, token in enumerate(tokens):
            self.tokens.append(token)
            self.origins.append("draft" if place < self.kept else "correction")
            text = self.tokenizer.decode(self.tokens)
            if not text.endswith("\ufffd"):
                self._print(text[self.printed :], DRAFTED if place < self.kept else CORRECTED)
                self.printed = len(text)

    def end(self) -> None:
        """Close the line."""
        self._print("\n", "")

    def _print(self, text: str, style: str) -> None:
        self.console.print(text, style=style, end="", markup=False, soft_wrap=True)


def _solvable(pair: Pair, chosen: dict[str, Any]) -> bool:
    """Whether a call of this run can be solved on a tree: one sampled path of fixed length, no nucleus, not cut."""
    from specbound.runtime.models import is_cut

    plain = chosen["do_sample"] and chosen["top_p"] == 1 and not chosen["beams"] and isinstance(chosen["length"], int)
    return plain and chosen["verifier"].paths == "single" and not is_cut(pair.target) and not is_cut(pair.draft)


def read_settings(given: tuple[str, ...]) -> dict[str, Any]:
    """Settings of a verifier, "name=number" each.

    Raises:
        ValueError: one is not of that form.
    """
    settings: dict[str, Any] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            settings[name] = int(number) if number.lstrip("-").isdecimal() else float(number)
        except ValueError:
            raise ValueError(f"--setting is {text!r}; want NAME=NUMBER, e.g. floor=0.2") from None
    return settings


def _verifier(name: str | None, paths: int, settings: dict[str, Any]) -> Verifier:
    """The registry's entry, by default that for so many paths, with other settings if it has them."""
    from specbound.runtime.verifiers import default, get

    entry = get(name) if name else default(paths)
    if entry.needs:
        raise ValueError(f"--verifier is {entry.name!r}, which needs {entry.needs}; choose another verifier")
    for option, belongs in (("threshold", "--adaptive and to --verifier"), ("deviation", "--verifier")):
        if option in settings and option not in entry.options:
            takers = _names(partial(_takes, option))
            raise ValueError(f"--{option} is {settings[option]}; it belongs to {belongs} {takers}")
    return entry.configured(**settings) if settings else entry


def _tree_verifier(name: str | None, settings: dict[str, Any]) -> TreeVerifier:
    """The tree registry's entry, by default that for any tree."""
    from specbound.runtime import tree_registry

    if settings:
        raise ValueError(f"{min(settings)} is given; verifiers of drafted trees have no settings")
    return tree_registry.get(name or tree_registry.DEFAULT)


def _takes(option: str, entry: Verifier) -> bool:
    return option in entry.options


def _names(takes: Callable[[Verifier], bool]) -> str:
    """The verifiers of which that is true, for an error."""
    from specbound.runtime.verifiers import entries

    return ", ".join(entry.name for entry in entries() if takes(entry))


def _length(length: int, adaptive: str | None, threshold: float | None, head: str | None) -> int | LengthPolicy:
    """The draft length, or the policy that stops drafts early."""
    from specbound.runtime import lengths
    from specbound.runtime.acceptance_head import AcceptanceHead

    if head is not None and adaptive != "head":
        raise ValueError(f"--head is {head}; it belongs to --adaptive head")
    if adaptive is None:
        return length
    bounds: dict[str, Any] = {"maximum": length} if threshold is None else {"maximum": length, "threshold": threshold}
    if adaptive == "entropy":
        return lengths.EntropyLength(**bounds)
    if adaptive == "confidence":
        return lengths.ConfidenceLength(**bounds)
    if head is None:
        raise ValueError("--head is missing; --adaptive head wants the file of a trained acceptance head")
    if not Path(head).is_file():
        raise ValueError(f"--head is {head}; there is no such file")
    return lengths.AcceptanceHeadLength(AcceptanceHead.load(head), **bounds)


def read_prompts(given: tuple[str, ...], file: str | None) -> list[str]:
    """The prompts given, those of a file (JSON list, or one a line), or standard input as one prompt.

    Raises:
        ValueError: two sources, an empty prompt, or a file that holds no prompts.
    """
    if given and file:
        raise ValueError("--prompt and --prompts are both given; use one of them")
    if file:
        text = read_text("--prompts", file)
        if not file.endswith(".json"):
            if lines := [line for line in text.splitlines() if line.strip()]:
                return lines
            raise ValueError(f"--prompts {file}: the file is empty; want one prompt a line")
        from specbound.theory.json_objects import parse_json

        entries = parse_json(f"--prompts {file}", text)
        listed = entries if isinstance(entries, list) else [None]
        found = [entry.get("text") if isinstance(entry, dict) else entry for entry in listed]
        prompts = [entry for entry in found if isinstance(entry, str) and entry]
        if not found or len(prompts) < len(found):
            raise ValueError(f'--prompts {file}: want a JSON list of strings, or of objects with a "text"')
        return prompts
    if given:
        if not all(given):
            raise ValueError("--prompt is empty; give some text")
        return list(given)
    if sys.stdin.isatty():
        click.echo("specbound: reading the prompt from standard input (end with Ctrl-D)", err=True)
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input: not {error.encoding} text ({error.reason} at byte {error.start})") from None
    if not text:
        raise ValueError("the prompt is empty; give --prompt, --prompts or text on standard input")
    return [text]


def _described(prompt: str, marked: MarkedStream, output: Generation) -> dict[str, Any]:
    statistics = output.statistics
    seconds = sum(statistics.seconds.values())
    return {
        "prompt": prompt,
        "text": marked.tokenizer.decode(marked.tokens),
        "tokens": len(marked.tokens),
        "origins": marked.origins,
        "calls": statistics.calls,
        "accepted": statistics.accepted[:, 0].tolist() if statistics.calls else [],
        "drafted": statistics.discarded + int(statistics.accepted.sum()),
        "discarded": statistics.discarded,
        "block_efficiency": statistics.block_efficiency,
        "tokens_per_second": len(marked.tokens) / seconds,
        "seconds": statistics.seconds,
        "interrupted": statistics.interrupted,
    }


def _total(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all prompts together, with the 95 % interval of the block efficiency."""
    from specbound.proofs_checks.laws.prediction import mean_interval

    per_call = [kept + 1 for output in outputs for kept in output["accepted"]]
    sums = {name: sum(output[name] for output in outputs) for name in ("tokens", "calls", "drafted", "discarded")}
    return {
        "prompts": len(outputs),
        **sums,
        "block_efficiency": sum(per_call) / len(per_call) if per_call else 0.0,
        "interval": list(mean_interval(per_call)) if len(per_call) > 1 else None,
        "interrupted": any(output["interrupted"] for output in outputs),
    }


def _print_total(console: Console, total: dict[str, Any]) -> None:
    interval = "[{:.2f}, {:.2f}]".format(*total["interval"]) if total["interval"] else ""
    console.print(
        f"{total['prompts']} prompts: {total['tokens']} tokens in {total['calls']} target calls: "
        f"{total['block_efficiency']:.2f} {interval} per call; {total['discarded']} of {total['drafted']} drafted "
        "tokens discarded",
        style="dim",
        markup=False,
    )


def _print_summary(console: Console, output: dict[str, Any]) -> None:
    parts = ", ".join(
        f"{name} {100 * value / sum(output['seconds'].values()):.0f} %" for name, value in output["seconds"].items()
    )
    perplexity = f"; perplexity {output['perplexity']:.2f}" if "perplexity" in output else ""
    deviation = f"\n{deviation_line(output['deviation'])}" if "deviation" in output else ""
    console.print(
        f"{output['tokens']} tokens in {output['calls']} target calls: {output['block_efficiency']:.2f} per call, "
        f"{output['tokens_per_second']:.1f} tokens/s ({parts}); {output['discarded']} of {output['drafted']} drafted "
        f"tokens discarded{perplexity}{'; interrupted' if output['interrupted'] else ''}{deviation}",
        style="dim",
    )
