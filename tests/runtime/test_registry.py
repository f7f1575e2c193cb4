"""The registry: what an entry declares is what everybody reads."""

import pytest
import torch

from specbound.runtime import registry
from specbound.runtime.carry import Carry, Layers
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers.pooled import Offers
from specbound.runtime.verifiers.pooled_phases import Phases
from specbound.runtime.verifiers.table import Place


@pytest.mark.parametrize(("paths", "kind"), [(1, "single"), (2, "many"), (64, "many")])
def test_the_default_takes_that_many_paths_is_lossless_and_needs_nothing(paths, kind):
    entry = registry.default(paths)
    assert (entry.paths, entry.lossless, entry.stateful, entry.needs) == (kind, True, False, "")


def test_closed_forms_belong_to_one_verifier_each():
    declared = [entry.closed_form for entry in registry.entries() if entry.closed_form]
    assert len(set(declared)) == len(declared)
    assert all(registry.of_closed_form(name).closed_form == name for name in declared)
    with pytest.raises(ValueError, match="closed form 'mjsd' belongs to no registered verifier"):
        registry.of_closed_form("mjsd")


def test_settings_change_the_algorithm_and_nothing_else():
    entry = registry.get("mjsd")
    tokens = torch.zeros(1, 1, 1, dtype=torch.int64)
    draft, target = torch.tensor([0.9, 0.1]).view(1, 1, 1, 2), torch.tensor([0.3, 0.7]).expand(1, 1, 2, 2)
    kept = {
        threshold: int(entry.configured(threshold=threshold).verify(Batch(tokens, draft, target), Draws()).accepted)
        for threshold in (0.3, 0.4)
    }
    assert kept == {0.3: 1, 0.4: 0}
    assert entry.configured(threshold=0.3).lossless is entry.lossless


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="verifier 'mjsd' has no setting speed; it has threshold"):
        registry.get("mjsd").configured(speed=1)
    with pytest.raises(ValueError, match="verifier 'block' has no setting threshold; it has none"):
        registry.get("block").configured(threshold=0.5)
    with pytest.raises(ValueError, match="threshold is 2; want a number"):
        registry.get("mjsd").configured(threshold=2)


@pytest.mark.parametrize("carry", [Layers, Place, Offers, Phases])
def test_carries_have_all_that_the_protocol_asks(carry):
    asked = [name for name in vars(Carry) if not name.startswith("_")]
    assert sorted(asked) == ["joined", "numbers", "select"]
    assert all(callable(getattr(carry, name)) for name in asked)
