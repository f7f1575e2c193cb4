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
    import torch
    from rich.console import Console
    from torch import Tensor

    from specbound.runtime.decode import Generation
    from specbound.runtime.drafting.tree import Drafter
    from specbound.runtime.lengths import LengthPolicy
    from specbound.runtime.models import Pair
    from specbound.runtime.tree_registry import TreeVerifier
    from specbound.runtime.verdict import Batch, Verdict
    from specbound.runtime.verifiers import Verifier

INTERRUPTED = 130
ADAPTIVE = ("head", "entropy", "confidence", "speed")
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
@click.option(
    "--adaptive", type=click.Choice(ADAPTIVE), help="Length by head, entropy, confidence, or the speed measured."
)
@click.option("--min-length", type=click.IntRange(min=1), help="Least draft length of --adaptive; 1 if not given.")
@click.option("--threshold", type=Number(0, 1), help="Of --adaptive, or tau of --verifier mjsd.")
@click.option(
    "--correction",
    type=click.Choice(("sample", "argmax")),
    help="The token after the kept ones, of --verifier mjsd; argmax if greedy.",
)
@click.option("--deviation", type=Number(0, 1), help="Budget per call of --verifier budgeted, a total variation.")
@click.option("--setting", multiple=True, metavar="NAME=NUMBER", help="Of the verifier, e.g. floor=0.2 of typical.")
@click.option(
    "--head",
    type=click.Path(dir_okay=False),
    help="Acceptance head (safetensors) of --adaptive head; the shipped pair has one.",
)
@click.option("--beams", type=click.IntRange(min=1), help="Beam width of the draft, for --verifier mjsd.")
@click.option("--sample-beams", is_flag=True, help="Draw the beams instead of taking the best ones.")
@click.option("--prompt", multiple=True, help="A prompt; may be repeated. Standard input if none is given.")
@click.option(
    "--prompts", "prompts_file", type=click.Path(dir_okay=False), help="File of prompts: JSON list, or lines."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Prompts decoded together."
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
    min_length: int | None,
    threshold: float | None,
    correction: str | None,
    deviation: float | None,
    setting: tuple[str, ...],
    head: str | None,
    beams: int | None,
    sample_beams: bool,
    prompt: tuple[str, ...],
    prompts_file: str | None,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    as_json: bool,
) -> int:
    """Continue prompts with a target model; drafted tokens that were kept are green, the verifier's own magenta.

    Prompt number i (from 0) is decoded with seed + i, a batch with the seed of its first prompt. Under torchrun every
    process decodes its share of the prompts, in batches of its own; with a tensor-parallel plan all of them decode
    every prompt together. Greedy decoding with --verifier mjsd drafts by beam search and compares joint probabilities.
    After Ctrl-C: what there is so far, and exit code 130.
    """
    prompts = read_prompts(prompt, prompts_file)

    import torch

    from specbound.runtime.drafting.spec import read_drafts
    from specbound.runtime.lengths import AcceptanceHeadLength
    from specbound.runtime.processes import is_first
    from specbound.runtime.registry import Verifier

    settings = read_settings(setting)
    if threshold is not None and adaptive is None:
        settings["threshold"] = threshold
    if correction is not None:
        settings["token"] = correction
    if deviation is not None:
        verifier, settings["deviation"] = verifier or "budgeted", deviation
    spec = None if drafts is None else read_drafts(drafts)
    if sample_beams and beams is None:
        raise ValueError("--sample-beams wants a number of beams; give --beams too")
    if spec is not None and (paths > 1 or beams or adaptive):
        raise ValueError(f"--drafts is {drafts}; it says what is drafted, leave out --paths, --beams and --adaptive")
    paths = paths if spec is None else spec.paths
    tree = spec.grow(length) if spec is not None and spec.tree else None
    entry = _verifier(verifier, paths, settings) if tree is None else _tree_verifier(verifier, tree, settings)
    if (
        adaptive
        and threshold is not None
        and "threshold" in getattr(entry, "options", ())
        and "threshold" not in settings
    ):
        raise ValueError(
            f"--threshold is {threshold}; --adaptive {adaptive} and --verifier {entry.name} both have one; it is that "
            f"of --adaptive, give the verifier's too, as --setting threshold={threshold}"
        )
    if beams is not None and isinstance(entry, Verifier) and entry.drafts != "any":
        takers = _names(lambda other: other.drafts == "any")
        raise ValueError(f"--beams is {beams}; only --verifier {takers} takes a beam draft")
    if adaptive == "head":
        head = head or shipped_head(models)
    policy = read_length(length, adaptive, threshold, head, min_length)
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
    chosen |= {"sample_beams": sample_beams}
    chosen |= sampling | {"max_new_tokens": max_new_tokens}
    outputs = _decode_all(pair, prompts, chosen, seed, batch_size, as_json)
    if as_json and is_first():
        shown = models | {"device": str(pair.device), "threads": torch.get_num_threads()}
        shown |= {
            "verifier": entry.name,
            "verifier_settings": settings,
            "paths": paths,
            "length": length,
            "drafts": drafts,
            "adaptive": adaptive,
            "min_length": min_length,
            "threshold": threshold,
            "head": head,
            "beams": beams,
            "sample_beams": sample_beams,
            "batch_size": batch_size,
        }
        shown |= {"do_sample": temperature > 0, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        shown |= {"seed": seed, "max_new_tokens": max_new_tokens, "versions": _versions()}
        print_json({"settings": shown, "outputs": outputs, "total": _total(outputs)})
    return INTERRUPTED if any(output["interrupted"] for output in outputs) else 0


def _decode_all(
    pair: Pair, prompts: list[str], chosen: dict[str, Any], seed: int, batch_size: int, as_json: bool
) -> list[dict[str, Any]]:
    """Decode the prompts in batches, as many as there are processes at a time unless these hold one model together.

    Process 0 prints, and gets the outputs in the order of the prompts.
    """
    from rich.console import Console

    from specbound.runtime.models import is_cut
    from specbound.runtime.processes import is_first, process_count

    console = Console(highlight=False, quiet=as_json or not is_first())
    numbered = list(enumerate(prompts, start=seed))
    if process_count() == 1 or is_cut(pair.target) or is_cut(pair.draft):
        outputs = _decode_in_turn(pair, numbered, chosen, batch_size, console)
    else:
        outputs = _decode_shares(pair, numbered, chosen, batch_size, console)
    if len(outputs) > 1:
        _print_total(console, _total(outputs))
    return outputs


def _decode_shares(
    pair: Pair, numbered: list[tuple[int, str]], chosen: dict[str, Any], batch_size: int, console: Console
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
        outputs = _decode_in_turn(pair, mine, chosen, batch_size, own)
    for text in gather_object([page.getvalue()]):
        console.out(text, end="", highlight=False)
    return gather_object(outputs)


def _decode_in_turn(
    pair: Pair, numbered: list[tuple[int, str]], chosen: dict[str, Any], batch_size: int, console: Console
) -> list[dict[str, Any]]:
    """Decode (seed, prompt) batch after batch, a single prompt printed as it grows; an interrupt ends the list."""
    outputs: list[dict[str, Any]] = []
    for start in range(0, len(numbered), batch_size):
        batch = numbered[start : start + batch_size]
        outputs += _decode_batch(pair, batch, chosen, console)
        if outputs[-1]["interrupted"]:
            break
    return outputs


def _decode_batch(
    pair: Pair, numbered: list[tuple[int, str]], chosen: dict[str, Any], console: Console
) -> list[dict[str, Any]]:
    """Decode some prompts together, with the seed of the first, and say what became of each."""
    import torch

    from specbound.runtime.decode import generate, perplexity

    texts = [text for _, text in numbered]
    marked = [MarkedStream(pair.tokenizer, console) for _ in texts]
    alone = len(texts) == 1
    inputs = encoded(pair, texts)
    output = generate(
        pair.target,
        **inputs,
        **chosen,
        streamer=marked[0] if alone else None,
        on_call=marked[0].on_call if alone else None,
        generator=torch.Generator(pair.device).manual_seed(numbered[0][0]),
    )
    given, statistics = inputs["input_ids"].shape[1], output.statistics
    lengths = (statistics.emitted * statistics.active).sum(dim=0)
    complete = bool(lengths.all())
    perplexities = (
        perplexity(pair.target, output.sequences, given, lengths, inputs["attention_mask"]) if complete else None
    )
    found: list[dict[str, Any]] = []
    for row, (text, stream) in enumerate(zip(texts, marked, strict=True)):
        if not alone:
            stream.replay(output, row, inputs)
        found.append(_described(text, stream, output, row))
        if perplexities is not None:
            found[-1]["perplexity"] = float(perplexities[row])
            if not chosen["verifier"].lossless and _solvable(pair, chosen):
                sampled = (chosen["length"], chosen["top_k"], chosen["temperature"])
                text_ids, begin = stream.text_ids(pair.device)
                found[-1]["deviation"] = measured_deviation(pair, chosen["verifier"], text_ids, begin, *sampled)
        _print_summary(console, found[-1])
    return found


def encoded(pair: Pair, texts: list[str]) -> Any:
    """Token ids and mask [B, n], padded on the left."""
    tokenizer = pair.tokenizer
    if len(texts) > 1 and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    padding: dict[str, Any] = {"padding": True, "padding_side": "left"} if len(texts) > 1 else {}
    return tokenizer(texts, return_tensors="pt", return_token_type_ids=False, **padding).to(pair.device)


def _versions() -> dict[str, str]:
    """Of what decides which tokens come out."""
    from importlib.metadata import version

    return {name: version(name) for name in ("specbound", "torch", "transformers")}


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

    def replay(self, output: Generation, row: int, inputs: Any) -> None:
        """Show a row of a batch that was decoded without a streamer."""
        statistics, given = output.statistics, inputs["input_ids"].shape[1]
        self.put(inputs["input_ids"][row][inputs["attention_mask"][row].bool()])
        for call in statistics.active[:, row].nonzero()[:, 0].tolist():
            self.kept, stop = int(statistics.accepted[call, row]), given + int(statistics.emitted[call, row])
            self.put(output.sequences[row, given:stop])
            given = stop
        self.end()

    def text_ids(self, device: torch.device) -> tuple[Tensor, int]:
        """The prompt and the tokens after it [T], and how many tokens the prompt has."""
        import torch

        assert self.prompt is not None
        return torch.tensor([*self.prompt, *self.tokens], device=device), len(self.prompt)

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
    for option, setting, belongs in (
        ("threshold", "threshold", "--adaptive and to --verifier"),
        ("deviation", "deviation", "--verifier"),
        ("correction", "token", "--verifier"),
    ):
        if setting in settings and setting not in entry.options:
            takers = _names(partial(_takes, setting))
            raise ValueError(f"--{option} is {settings[setting]}; it belongs to {belongs} {takers}")
    return entry.configured(**settings) if settings else entry


def _tree_verifier(name: str | None, drafter: Drafter, settings: dict[str, Any]) -> TreeVerifier:
    """The tree registry's entry, by default that for any tree."""
    from specbound.runtime import tree_registry

    if settings:
        raise ValueError(f"{min(settings)} is given; verifiers of drafted trees have no settings")
    entry = tree_registry.default(drafter) if name is None else tree_registry.get(name)
    entry.check(drafter)
    return entry


def _takes(option: str, entry: Verifier) -> bool:
    return option in entry.options


def _names(takes: Callable[[Verifier], bool]) -> str:
    """The verifiers of which that is true, for an error."""
    from specbound.runtime.verifiers import entries

    return ", ".join(entry.name for entry in entries() if takes(entry))


def shipped_head(models: dict[str, Any]) -> str | None:
    """The file of the shipped pair's acceptance head, if that is the pair."""
    from specbound.shipped_pair import HEAD

    return None if models["target"] is not None else str(HEAD)


def read_length(
    length: int, adaptive: str | None, threshold: float | None, head: str | None, minimum: int | None = None
) -> int | LengthPolicy:
    """The draft length, or the policy that stops drafts early.

    Raises:
        ValueError: an option of an adaptive length without one, or no file of a head.
    """
    from specbound.runtime import lengths
    from specbound.runtime.acceptance_head import AcceptanceHead

    if head is not None and adaptive != "head":
        raise ValueError(f"--head is {head}; it belongs to --adaptive head")
    if adaptive is None:
        if minimum is not None:
            raise ValueError(f"--min-length is {minimum}; it belongs to --adaptive")
        return length
    if adaptive == "speed":
        for name, value in (("--threshold", threshold), ("--min-length", minimum)):
            if value is not None:
                raise ValueError(f"{name} is {value}; --adaptive speed has none, leave it out")
        return lengths.MeasuredLength(length)
    bounds: dict[str, Any] = {"maximum": length}
    bounds |= {name: value for name, value in (("minimum", minimum), ("threshold", threshold)) if value is not None}
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


def _described(prompt: str, marked: MarkedStream, output: Generation, row: int) -> dict[str, Any]:
    """What became of one prompt; the seconds are those of its whole batch."""
    statistics = output.statistics
    seconds = sum(statistics.seconds.values())
    active = statistics.active[:, row]
    accepted = statistics.accepted[active, row]
    drafted = int(statistics.drafted[active, row].sum()) * statistics.paths
    return {
        "prompt": prompt,
        "text": marked.tokenizer.decode(marked.tokens),
        "tokens": len(marked.tokens),
        "origins": marked.origins,
        "calls": len(accepted),
        "accepted": accepted.tolist(),
        "drafted": drafted,
        "discarded": drafted - int(accepted.sum()),
        "block_efficiency": float((accepted + 1).double().mean()) if len(accepted) else 0.0,
        "batch": output.sequences.shape[0],
        "tokens_per_second": len(marked.tokens) / seconds,
        "seconds": statistics.seconds,
        "interrupted": statistics.interrupted,
    }


def _total(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all prompts together, with the 95 % interval of the block efficiency."""
    from specbound.proofs_checks.laws.prediction import mean_interval

    per_call = [kept + 1 for output in outputs for kept in output["accepted"]]
    sums = {name: sum(output[name] for output in outputs) for name in ("tokens", "calls", "drafted", "discarded")}
    seconds = sum(sum(output["seconds"].values()) / output["batch"] for output in outputs)
    return {
        "prompts": len(outputs),
        **sums,
        "tokens_per_second": sums["tokens"] / seconds,
        "block_efficiency": sum(per_call) / len(per_call) if per_call else 0.0,
        "interval": list(mean_interval(per_call)) if len(per_call) > 1 else None,
        "interrupted": any(output["interrupted"] for output in outputs),
    }


def _print_total(console: Console, total: dict[str, Any]) -> None:
    interval = "[{:.2f}, {:.2f}]".format(*total["interval"]) if total["interval"] else ""
    console.print(
        f"{total['prompts']} prompts: {total['tokens']} tokens in {total['calls']} target calls: "
        f"{total['block_efficiency']:.2f} {interval} per call, {total['tokens_per_second']:.1f} tokens/s; "
        f"{total['discarded']} of {total['drafted']} drafted tokens discarded",
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
