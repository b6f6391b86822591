"""Tensors held for a while, against `torch.func.functional_call`, which does the same from scratch each time."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from stages.model.architecture import find_layers
from stages.model.held import Places
from tests import fleet


class Tied(nn.Module):
    """Two linear layers of one weight, a buffer, and a module that has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.again = self.first
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.again(x)) * self.get_buffer("scale")
        return result


def values(module: nn.Module, *names: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    own = module.state_dict()
    return {name: torch.randn(own[name].shape) for name in names}


@pytest.mark.parametrize(
    "names", [("first.weight",), ("second.weight",), ("again.bias", "scale"), ("first.weight", "first.bias", "scale")]
)
def test_tied_weights_and_buffers_are_held_as_in_a_functional_call(names: tuple[str, ...]) -> None:
    module, x = Tied(), torch.randn(4, 3)
    given = values(module, *names)
    # A copy: a functional_call does not put everything back in a module that has two names.
    expected = torch.func.functional_call(deepcopy(module), given, (x,))
    with Places(module).holding(given):
        assert torch.equal(module(x), expected)


@pytest.mark.parametrize("family", fleet.FAMILIES)
def test_a_layer_of_every_family_computes_with_what_it_holds(family: str) -> None:
    """Also where it holds what trains: LayerNorm, experts, the parameters of a state space."""
    config = fleet.config_of(family)
    layer = find_layers(AutoModel.from_config(config).eval())[1][0]
    given = values(layer, *layer.state_dict())
    places = Places(layer)
    seen: list[dict[str, Tensor]] = []
    layer.forward = lambda: seen.append(layer.state_dict())
    torch.func.functional_call(layer, given)
    with places.holding(given):
        layer()
    assert seen[0].keys() == seen[1].keys()
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def test_gradients_reach_what_is_held_and_what_arrives() -> None:
    module, x = Tied(), torch.randn(4, 3, requires_grad=True)
    given = {name: value.requires_grad_() for name, value in values(module, "first.weight", "scale").items()}
    wanted = torch.autograd.grad(torch.func.functional_call(deepcopy(module), given, (x,)).sum(), [x, *given.values()])
    with Places(module).holding(given):
        found = torch.autograd.grad(module(x).sum(), [x, *given.values()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


@pytest.mark.parametrize("wrong", [False, True])
def test_all_is_as_it_was_also_after_an_error(wrong: bool) -> None:
    module = Tied()
    before = {name: id(tensor) for name, tensor in module.named_parameters(remove_duplicate=False)}
    given = values(module, "first.weight", "scale") | ({"no such name": torch.ones(1)} if wrong else {})
    places = Places(module)
    with pytest.raises(KeyError, match="name" if wrong else "in the block"), places.holding(given):
        raise KeyError("in the block")
    assert {name: id(tensor) for name, tensor in module.named_parameters(remove_duplicate=False)} == before
    assert torch.equal(module.get_buffer("scale"), torch.ones(3))
    assert all(isinstance(parameter, nn.Parameter) for parameter in module.parameters())


def test_holding_can_be_nested() -> None:
    module, x = Tied(), torch.randn(4, 3)
    outer, inner = values(module, "scale"), {"scale": torch.zeros(3)}
    places = Places(module)
    with places.holding(outer):
        with places.holding(inner):
            assert torch.equal(module(x), torch.zeros(4, 3))
        assert torch.equal(module(x), torch.func.functional_call(deepcopy(module), outer, (x,)))
