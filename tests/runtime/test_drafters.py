"""Drafters in the decoder: trees, tokens given without a model, early exit, transformers' own settings."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.generation.candidate_generator import AssistedCandidateGenerator, PromptLookupCandidateGenerator

from specbound import generate, speculative
from specbound.runtime import tree_registry
from specbound.runtime.drafting.dynamic import Dynamic
from specbound.runtime.drafting.early_exit import early_exit
from specbound.runtime.drafting.given import Candidates, PromptLookup
from specbound.runtime.drafting.other_tokenizer import OtherTokenizer
from specbound.runtime.drafting.prompt_lookup import look_up
from specbound.runtime.drafting.shapes import FixedShape
from specbound.runtime.drafting.spec import read_drafts
from specbound.runtime.drafting.tree import TreeDraft, TreeVerdict
from tests.runtime.test_decode import loop_distance
from tests.support.tiny_models import EXACT, tiny

TREES = [
    FixedShape((2, 1)),
    FixedShape((1, 2), "iid"),
    FixedShape((2, 1), "top"),
    FixedShape((2,), "top-and-sampled"),
    Dynamic(2, 2, 3),
]
BRANCHES = tree_registry.get("tree-score-race")


@pytest.fixture(scope="module")
def pair():
    return tiny("llama", 0, vocab=2, layers=2), tiny("llama", 1, vocab=2)


# ---------------------------------------------------------------------- trees


@pytest.mark.parametrize("verifier", [name for name in tree_registry.names() if name != BRANCHES.name])
@pytest.mark.parametrize("shape", TREES, ids=repr)
def test_the_whole_loop_with_a_drafted_tree_has_the_law_of_the_target(pair, shape, verifier):
    models = pair[0], TreeDraft(pair[1], shape)
    assert loop_distance(models, 3, verifier=verifier, rows_per_pass=1024) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "rows"), [(FixedShape((1, 1)), 64), (FixedShape((1, 2), "iid"), 1)], ids=repr)
def test_the_whole_loop_with_a_race_behind_a_stem_has_the_law_of_the_target(pair, shape, rows):
    """Branches race in rows that are done, too, so replay row by row where there are two."""
    models = pair[0], TreeDraft(pair[1], shape)
    assert loop_distance(models, 2, verifier=BRANCHES, rows_per_pass=rows) < 1e-12


def test_the_default_verifier_depends_on_the_tree():
    names = {shape: tree_registry.default(shape).name for shape in (*TREES, FixedShape((1, 1)))}
    assert list(names.values()) == [
        "tree-traversal",
        "tree-score-race",
        "tree-match",
        "tree-univer",
        "tree-match",
        "tree-score-race",
    ]
    for shape, name in names.items():
        tree_registry.get(name).check(shape)


def test_the_loop_rejects_a_verifier_that_keeps_every_child(pair):
    def first_child(batch, draws):
        token = draws.choose(batch.target_row(torch.zeros_like(batch.tree.tokens[:, 0])))
        return TreeVerdict(torch.zeros_like(token), torch.ones_like(token), token)

    wrong = replace(tree_registry.get("tree-match"), name="greedy", verify=first_child)
    assert loop_distance((pair[0], TreeDraft(pair[1], FixedShape((2,)))), 3, verifier=wrong, rows_per_pass=64) > 1e-2


@pytest.mark.parametrize("shape", [FixedShape((3, 2, 1)), FixedShape((2, 2), "top"), Dynamic(4, 3, 7)], ids=repr)
def test_greedy_trees_of_padded_rows_decode_what_the_target_decodes_alone(shape):
    target, draft = tiny("llama", 2, vocab=11, layers=2), tiny("qwen2", 3, vocab=11)
    prompts = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6], [0, 7, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    wanted = target.generate(prompts, attention_mask=mask, do_sample=False, max_new_tokens=12, pad_token_id=0)
    found = generate(target, TreeDraft(draft, shape), prompts, mask, do_sample=False, max_new_tokens=12, pad_token_id=0)
    assert found.sequences.equal(wanted)
    assert found.statistics.block_efficiency > 1


def test_the_law_at_every_node_is_that_of_a_plain_pass(pair):
    batches = []

    def watching(batch, draws):
        batches.append(batch)
        return tree_registry.get("tree-traversal").verify(batch, draws)

    target, draft = tiny("llama", 2, vocab=11, layers=2), tiny("qwen2", 3, vocab=11)
    entry = replace(tree_registry.get("tree-traversal"), verify=watching)
    prompt = torch.tensor([[1, 2, 3]])
    generator = torch.Generator().manual_seed(0)
    found = generate(
        target,
        TreeDraft(draft, FixedShape((2, 2, 1))),
        prompt,
        verifier=entry,
        generator=generator,
        max_new_tokens=9,
        **EXACT,
    )
    assert len(batches) > 1
    for batch, start in zip(batches, found.statistics.start[:, 0].tolist(), strict=True):
        for node in range(batch.tree.tokens.shape[1]):
            line = batch.tree.tokens[0][batch.tree.sees[0, node]]
            text = torch.cat([found.sequences[0, :start], line])[None]
            law = target(text).logits[0, -1].double().softmax(dim=-1)
            assert (batch.target_probs[0, node + 1] - law).abs().max() < 1e-5
            if batch.tree.draft_probs[0, node + 1].sum() > 0:
                law = draft(text).logits[0, -1].double().softmax(dim=-1)
                assert (batch.tree.draft_probs[0, node + 1] - law).abs().max() < 1e-5


def test_what_a_tree_cannot_honour_is_refused(pair):
    tree, prompt = TreeDraft(pair[1], FixedShape((2,))), torch.tensor([[0, 1], [1, 1]])
    for settings, text in (
        ({"paths": 2}, "paths is 2"),
        ({"verifier": "block"}, "tree verifier is 'block'; known are tree-match"),
        ({"verifier": BRANCHES.name}, "wants a stem, then independent paths"),
        ({"repetition_penalty": 1.3}, "one by one"),
    ):
        with pytest.raises(ValueError, match=text):
            generate(pair[0], tree, prompt, max_new_tokens=2, **settings)
    with pytest.raises(ValueError, match="verifier is 'tree-match'"):
        generate(*pair, prompt, verifier="tree-match", max_new_tokens=2)


def test_processors_that_read_the_tokens_see_the_path_of_a_node():
    target, draft = tiny("llama", 2, vocab=11, layers=2), tiny("qwen2", 3, vocab=11)
    settings = {"repetition_penalty": 1.5, "do_sample": False, "max_new_tokens": 14, "pad_token_id": 0}
    prompt = torch.tensor([[1, 2, 3]])
    wanted = target.generate(prompt, **settings)
    assert generate(target, TreeDraft(draft, FixedShape((2, 1))), prompt, **settings).sequences.equal(wanted)


# ---------------------------------------------------------------------- given tokens


def test_look_up_finds_the_last_place_of_the_longest_end():
    known = torch.tensor([1, 2, 3, 9, 2, 3, 4, 5, 2, 3])
    assert look_up(known, 2).tolist() == [4, 5]
    assert look_up(torch.tensor([1, 2, 3, 7, 2, 8, 1, 2]), 3, longest=2).tolist() == [3, 7, 2]
    assert look_up(torch.tensor([4, 1, 2, 1, 2]), 5).tolist() == [1, 2, 1, 2, 1]
    assert look_up(torch.tensor([7, 7]), 3).tolist() == [7, 7, 7]
    assert look_up(torch.tensor([1, 2, 3]), 3).tolist() == []
    assert look_up(torch.tensor([5]), 3).tolist() == []
    with pytest.raises(ValueError, match="length is 0"):
        look_up(known, 0)


class Repeat:
    """Gives the last token again, as if looked up."""

    def __call__(self, known, length):
        return known[-1:].repeat(min(2, length)), None


class Nothing:
    """Gives no tokens."""

    def __call__(self, known, length):
        return known[:0], None


class Sometimes:
    """Gives a token after texts of odd length."""

    def __call__(self, known, length):
        return known[-1:][: len(known) % 2], None


@pytest.mark.parametrize("verifier", ["token", "block"])
@pytest.mark.parametrize(
    "given",
    [Repeat(), PromptLookup(), PromptLookup(1), Candidates(PromptLookupCandidateGenerator(num_output_tokens=2))],
    ids=["repeat", "lookup 3", "lookup 1", "transformers"],
)
def test_the_whole_loop_with_given_tokens_has_the_law_of_the_target(pair, given, verifier):
    assert loop_distance((pair[0], given), 4, verifier=verifier, length=3) < 1e-12


def test_a_given_law_that_is_not_the_one_drawn_from_is_seen(pair):
    class Certain:
        def __call__(self, known, length):
            return known.new_zeros(length), torch.tensor([[0.2, 0.8]]).expand(length, -1)

    assert loop_distance((pair[0], Certain()), 3, verifier="block", length=2) > 1e-3


def test_given_tokens_want_one_path_and_a_stateless_verifier(pair):
    for settings in ({"paths": 2}, {"verifier": "greedy-block"}):
        with pytest.raises(ValueError, match="gives one path of tokens"):
            generate(pair[0], PromptLookup(), torch.tensor([[0, 1]]), max_new_tokens=2, **settings)
    with pytest.raises(ValueError, match="longest is 0"):
        PromptLookup(0)


def test_calls_without_a_draft_are_those_of_plain_decoding():
    target, prompt = tiny("llama", 2, vocab=11, layers=2), torch.tensor([[1, 2, 3]])
    settings = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    read = []
    target.register_forward_pre_hook(lambda model, _, given: read.append(given["input_ids"].shape[1]), with_kwargs=True)
    found = generate(target, Nothing(), prompt, check=False, **settings)
    assert read == [3, 1, 1, 1, 1, 1]
    assert found.statistics.drafted.sum() == 0
    assert found.sequences.equal(target.generate(prompt, **settings))


@pytest.mark.parametrize("given", [Nothing(), Sometimes()])
def test_the_whole_loop_with_empty_drafts_has_the_law_of_the_target(pair, given):
    assert loop_distance((pair[0], given), 3, verifier="block", length=2) < 1e-12


# ---------------------------------------------------------------------- transformers' own ways


def test_candidate_generators_of_transformers_draft():
    target, draft = tiny("llama", 2, vocab=11, layers=2), tiny("llama", 3, vocab=11)
    prompt = torch.tensor([[1, 2, 3, 1, 2, 3, 1]])
    settings = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    wanted = target.generate(prompt, **settings)
    lookup = PromptLookupCandidateGenerator(
        num_output_tokens=4, max_matching_ngram_size=2, max_length=99, vocab_size=11
    )
    assert generate(target, Candidates(lookup), prompt, **settings).sequences.equal(wanted)
    config = GenerationConfig(do_sample=False, max_length=40, min_length=0, pad_token_id=0)
    assisted = AssistedCandidateGenerator(prompt, draft, generation_config=config, model_kwargs={})
    assert generate(target, Candidates(assisted), prompt, **settings).sequences.equal(wanted)


def test_candidates_that_do_not_follow_the_text_are_refused(pair):
    class Wrong:
        def get_candidates(self, input_ids):
            return input_ids[:, 1:], None

    with pytest.raises(ValueError, match="Wrong gave candidates of shape"):
        generate(pair[0], Candidates(Wrong()), torch.tensor([[0, 1]]), max_new_tokens=2)


@pytest.mark.parametrize("settings", [{"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 1}], ids=str)
def test_settings_of_transformers_choose_the_drafter(settings):
    target = tiny("llama", 2, vocab=11, layers=2)
    prompt = torch.tensor([[1, 2, 3, 1, 2]])
    plain = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    wanted = target.generate(prompt, **plain)
    assert target.generate(prompt, custom_generate=speculative(), **plain, **settings).equal(wanted)
    assert generate(target, None, prompt, **plain, **settings).sequences.equal(wanted)


def test_two_drafts_or_none_are_refused(pair):
    for draft, settings, text in (
        (None, {}, "nothing is given to draft with"),
        (pair[1], {"prompt_lookup_num_tokens": 3}, "draft and prompt_lookup_num_tokens is given"),
    ):
        with pytest.raises(ValueError, match=text):
            generate(pair[0], draft, torch.tensor([[0, 1]]), max_new_tokens=2, **settings)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_early_exit_is_the_target_without_its_last_layers(family):
    target = tiny(family, 2, vocab=11, layers=3)
    short = early_exit(target, 1)
    ids = torch.tensor([[1, 2, 3]])
    hidden = target(ids, output_hidden_states=True).hidden_states[1]
    norm = next(part for name, part in target.base_model.named_children() if name in ("norm", "ln_f"))
    assert (short(ids).logits - target.get_output_embeddings()(norm(hidden))).abs().max() < 1e-6
    assert short.get_output_embeddings().weight is target.get_output_embeddings().weight
    assert (target.config.num_hidden_layers, short.config.num_hidden_layers) == (3, 1)
    for layers in (0, 3, 1.0):
        with pytest.raises(ValueError, match="layers is"):
            early_exit(target, layers)


@pytest.mark.parametrize("verifier", ["token", "block"])
def test_the_whole_loop_with_an_early_exit_has_the_law_of_the_target(pair, verifier):
    assert loop_distance((pair[0], early_exit(pair[0], 1)), 3, verifier=verifier, length=2) < 1e-12


# ---------------------------------------------------------------------- another tokenizer


def tokenizer_of(words, unknown):
    """Splits at single characters, or at words and the spaces before them."""
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("." if max(map(len, words)) == 1 else " ?[a-c]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.fixture(scope="module")
def translated():
    """A target of characters; a draft of other numbers for letters, some with the space before them."""
    letters, pieces = tokenizer_of("abc ", "a"), tokenizer_of(["c", "b", "a", " a", " b", " c"], "c")
    assert letters("ab c")["input_ids"] != pieces("ab c")["input_ids"]
    target, draft = tiny("llama", 2, vocab=4, layers=2), tiny("llama", 3, vocab=6)
    return target, OtherTokenizer(draft, pieces, letters)


def test_a_draft_with_another_tokenizer_drafts_what_its_text_says(translated):
    _, drafter = translated
    known = torch.tensor([0, 1, 3, 2])
    tokens, laws = drafter(known, 3)
    assert laws is None
    text = drafter.target_tokenizer.decode(known)
    own = drafter.tokenizer(text, return_tensors="pt")["input_ids"]
    longer = drafter.model.generate(own, do_sample=False, max_new_tokens=3, pad_token_id=0)
    wanted = drafter.target_tokenizer(drafter.tokenizer.decode(longer[0]))["input_ids"][len(known) :][:3]
    assert tokens.tolist() == wanted[: len(tokens)]
    assert len(tokens) > 0


def test_the_whole_loop_with_another_tokenizer_has_the_law_of_the_target(translated):
    assert loop_distance(translated, 2, verifier="block", length=2, rows_per_pass=1) < 1e-12


def test_one_drafter_with_another_tokenizer_serves_text_after_text(translated):
    target, drafter = translated
    settings = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    for prompt in ([[0, 1, 3]], [[2, 2]], [[0, 1, 3, 1]]):
        ids = torch.tensor(prompt)
        found = generate(target, drafter, ids, length=3, **settings)
        assert found.sequences.equal(target.generate(ids, **settings))
        assert found.statistics.drafted.sum() > 0


# ---------------------------------------------------------------------- scores and logits


def compared(found, wanted):
    for name in ("scores", "logits"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert len(ours) == len(theirs)
        for here, there in zip(ours, theirs, strict=True):
            assert (here.shape, here.dtype) == (there.shape, there.dtype)
            torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-6)


ASKED = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}


@pytest.mark.parametrize("way", ["paths", "one path", "tree", "look-up"])
def test_scores_and_logits_are_those_of_plain_decoding(way):
    target, draft = tiny("llama", 2, vocab=11, layers=2), tiny("qwen2", 3, vocab=13)
    prompt = torch.tensor([[1, 2, 3, 1, 2]])
    plain = {"do_sample": False, "repetition_penalty": 1.2, "max_new_tokens": 9, "pad_token_id": 0}
    drafter, own = {
        "paths": (draft, {"paths": 2, "length": 3}),
        "one path": (draft, {"length": 3}),
        "tree": (TreeDraft(draft, FixedShape((2, 1))), {}),
        "look-up": (PromptLookup(1), {"length": 3}),
    }[way]
    wanted = target.generate(prompt, **plain, **ASKED)
    compared(generate(target, drafter, prompt, **plain, **own, **ASKED), wanted)
    compared(target.generate(prompt, custom_generate=speculative(drafter, **own), **plain, **ASKED), wanted)


def test_scores_and_logits_are_those_of_the_path_that_won():
    target, draft = tiny("llama", 2, vocab=11, layers=2), tiny("qwen2", 3, vocab=11)
    prompt, sampling = torch.tensor([[1, 2, 3]]), EXACT | {"temperature": 2.0, "max_new_tokens": 12, "pad_token_id": 0}
    generator = torch.Generator().manual_seed(0)
    found = generate(target, draft, prompt, paths=2, length=3, generator=generator, **sampling, **ASKED)
    assert bool((found.statistics.path * found.statistics.accepted > 0).any())
    wanted = target(found.sequences).logits[0, 2:-1].float()
    torch.testing.assert_close(torch.cat(found.logits), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat(found.scores), wanted / 2, rtol=1e-6, atol=1e-6)


def test_scores_and_logits_end_with_their_row():
    target, draft = tiny("llama", 2, vocab=11, layers=2), tiny("qwen2", 3, vocab=11)
    prompts = torch.tensor([[1, 2], [3, 4]])
    alone = [generate(target, draft, row[None], do_sample=False, max_new_tokens=8, pad_token_id=0) for row in prompts]
    end = int(alone[0].sequences[0, 4])
    found = generate(
        target, draft, prompts, do_sample=False, max_new_tokens=8, eos_token_id=end, pad_token_id=0, **ASKED
    )
    ended = (found.sequences[:, 2:] == end).long().argmax(dim=1)
    assert ended[0] <= 2
    for place, (scores, logits) in enumerate(zip(found.scores, found.logits, strict=True)):
        assert scores.equal(logits)
        assert bool(scores[0].any()) == (place <= int(ended[0]))
    assert generate(target, draft, prompts, do_sample=False, max_new_tokens=2).scores is None


# ---------------------------------------------------------------------- the grammar


@pytest.mark.parametrize(
    "text",
    ["iid:2", "without-replacement:3,1", "top:2", "top-and-sampled:2,2", "stem:1,2", "dynamic:3,5", "early-exit:1"],
)
def test_every_way_to_draft_is_read_bound_and_decodes_what_the_target_decodes(text):
    target, draft = tiny("llama", 2, vocab=11, layers=2), tiny("qwen2", 3, vocab=11)
    spec = read_drafts(text)
    assert str(spec) == text
    prompt, settings = torch.tensor([[1, 2, 3]]), {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    wanted = target.generate(prompt, **settings)
    bound = spec.bind(target, draft, 3)
    assert isinstance(bound, TreeDraft) == spec.tree
    assert generate(target, bound, prompt, paths=spec.paths, length=3, **settings).sequences.equal(wanted)


def test_only_a_tree_grows():
    assert read_drafts("dynamic:3,5").grow(4) == Dynamic(4, 3, 5)
    with pytest.raises(ValueError, match="iid:2, which is no tree"):
        read_drafts("iid:2").grow(4)


def test_look_up_is_read_and_a_stem_wants_a_longer_draft(pair):
    assert read_drafts("prompt-lookup:2").bind(*pair, 3) == PromptLookup(2)
    assert read_drafts("stem:2,3").bind(*pair, 4).grow == FixedShape((1, 1, 3, 1), "iid")
    with pytest.raises(ValueError, match="shorter than the draft length 2"):
        read_drafts("stem:2,3").bind(*pair, 2)


@pytest.mark.parametrize(
    "text", ["", "iid", "iid:", "iid:0", "iid:2,2", "tree:2", "top:", "top:2,0", "top:²", "stem:2"]
)
def test_what_the_grammar_lacks_is_refused(text):
    with pytest.raises(ValueError, match="drafts is"):
        read_drafts(text)
