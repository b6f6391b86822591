"""A matrix in the dtype that it is stored in, computing in another, gives what the converted matrix gives."""

import os

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.memory.live_bytes import LiveBytes
from stages.model import stored
from stages.model.held import Places
from stages.model.stored import BLOCK_MULTIPLE, StoredMatrices, StoredMatrix, block_bytes, linear, times

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the smallest size: 64 rows or columns."""
    monkeypatch.setattr(stored, "BLOCK_BYTES", 1)


def with_gradient(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


@given(
    outputs=st.sampled_from([0, 1, 63, 64, 65, 128, 192, 200, 256, 1000]),
    inputs=st.sampled_from([0, 8, 64, 127, 128, 200, 384]),
    tokens=st.integers(1, 40),
    biased=st.booleans(),
    dtype=st.sampled_from(HALVES),
    seed=st.integers(0, 2**31),
)
@fast(deadline=None, max_examples=150)
def test_products_by_blocks_are_those_of_the_converted_matrix(
    outputs: int, inputs: int, tokens: int, biased: bool, dtype: torch.dtype, seed: int
) -> None:
    """Output and gradient to the bit: no sum is split."""
    draw = torch.Generator().manual_seed(seed)
    weight_NK = torch.randn(outputs, inputs, generator=draw).to(dtype)
    bias_N = torch.randn(outputs, generator=draw) if biased else None
    x_TK, gradient_TN = torch.randn(2, tokens, inputs, generator=draw), torch.randn(2, tokens, outputs, generator=draw)
    left, right = with_gradient(x_TK), with_gradient(x_TK)
    expected, found = F.linear(left, weight_NK.float(), bias_N), linear(right, weight_NK, bias_N, threads=1)
    assert torch.equal(found, expected)
    expected.backward(gradient_TN)
    found.backward(gradient_TN)
    assert left.grad is not None
    assert right.grad is not None
    assert torch.equal(right.grad, left.grad)
    flat_TN = gradient_TN.view(2 * tokens, outputs)
    assert torch.equal(times(flat_TN, weight_NK, threads=1), flat_TN @ weight_NK.float())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("tokens", [1, 7, 200])
def test_a_module_with_a_stored_matrix_is_the_module_in_float32(kind: str, dtype: torch.dtype, tokens: int) -> None:
    torch.manual_seed(0)
    module = nn.Linear(192, 320) if kind == "linear" else Conv1D(320, 192)
    module.requires_grad_(False)
    kept = {name: value.to(dtype) for name, value in module.state_dict().items()}
    for name, value in kept.items():
        module.get_parameter(name).data = value.float()
    x_TK, gradient_TN = torch.randn(2, tokens, 192), torch.randn(2, tokens, 320)
    left, right = with_gradient(x_TK), with_gradient(x_TK)
    expected = module(left)
    weights = StoredMatrices(module).computing(kept | {"bias": kept["bias"].float()}, torch.float32, 1)
    assert isinstance(weights["weight"], StoredMatrix)
    with Places(module).holding(weights):
        found = module(right)
    expected.backward(gradient_TN)
    found.backward(gradient_TN)
    assert torch.equal(found, expected)
    assert left.grad is not None
    assert right.grad is not None
    assert torch.equal(right.grad, left.grad)


def test_other_operations_see_the_converted_matrix() -> None:
    kept = torch.randn(6, 4).bfloat16()
    matrix, single = StoredMatrix(kept, torch.float32, 1), kept.float()
    assert (matrix.dtype, matrix.shape, matrix.device, matrix.ndim) == (torch.float32, single.shape, single.device, 2)
    assert matrix.stored().data_ptr() == kept.data_ptr()
    x = torch.randn(3, 4)
    for found, expected in (
        (x @ matrix.t(), x @ single.t()),
        (matrix[2], single[2]),
        (matrix * 2, single * 2),
        (torch.cat([matrix, single]), torch.cat([single, single])),
        (F.embedding(torch.tensor([1, 5]), matrix), single[[1, 5]]),
    ):
        assert type(found) is Tensor
        assert torch.equal(found, expected)


def test_weights_that_compute_as_they_are_stored_are_left_alone() -> None:
    module = nn.Linear(4, 4)
    weights = module.state_dict()
    assert StoredMatrices(module).computing(weights, torch.float32, 1) is weights


def test_nothing_is_kept_for_the_backward_pass_and_one_block_is_converted_at_a_time() -> None:
    weight_NK = torch.zeros(1024, 512, dtype=torch.bfloat16)
    x_TK = torch.zeros(2, 512, requires_grad=True)
    block, output = block_bytes(1024, 512, torch.float32, 1), 2 * 1024 * 4
    assert block == BLOCK_MULTIPLE * 1024 * 4
    live = LiveBytes([weight_NK, x_TK])
    with live:
        result = linear(x_TK, weight_NK, threads=1)
        assert live.now - live.packed == output
        result.sum().backward()
    assert live.peak - live.packed <= 2 * block + 4 * output


# Of TinyLlama, LLaMA 2 7B, BERT-large and SmolLM2, and two odd ones; blocks of the real size.
REAL_SHAPES = ((5632, 2048), (2048, 5632), (256, 2048), (1024, 4096), (1024, 14336), (1536, 576), (1000, 5000))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", REAL_SHAPES, ids=str)
def test_products_at_real_shapes_on_several_threads(
    shape: tuple[int, int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, but where MKL is bounded to its compatible mode: there it splits sums (ADR 9)."""
    monkeypatch.setattr(stored, "BLOCK_BYTES", 4 * 2**20)
    before, compatible = torch.get_num_threads(), os.environ.get("MKL_CBWR") == "COMPATIBLE"
    torch.set_num_threads(threads)
    try:
        weight_NK = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        for tokens in (4, 17):
            x_TK, gradient_TN = torch.randn(tokens, shape[1]), torch.randn(tokens, shape[0])
            for found, expected in (
                (linear(x_TK, weight_NK, threads=threads), F.linear(x_TK, weight_NK.float())),
                (times(gradient_TN, weight_NK, threads=threads), gradient_TN @ weight_NK.float()),
            ):
                assert (
                    torch.allclose(found, expected, rtol=1e-4, atol=1e-2)
                    if compatible
                    else torch.equal(found, expected)
                )
    finally:
        torch.set_num_threads(before)


def test_a_bias_that_trains_gets_its_gradient() -> None:
    weight_NK, gradient_TN = torch.randn(128, 64).bfloat16(), torch.randn(7, 128)
    left, right = with_gradient(torch.zeros(128)), with_gradient(torch.zeros(128))
    x_TK = torch.randn(7, 64)
    F.linear(x_TK, weight_NK.float(), left).backward(gradient_TN)
    linear(x_TK, weight_NK, right, threads=1).backward(gradient_TN)
    assert left.grad is not None
    assert right.grad is not None
    assert torch.equal(right.grad, left.grad)


def test_a_weight_that_trains_is_converted_and_gets_its_gradient() -> None:
    """What a tuning makes of a weight, such as W + B A, is never taken for frozen."""
    module, trained = nn.Linear(4, 4), with_gradient(torch.randn(4, 4).bfloat16())
    weights = StoredMatrices(module).computing({"weight": trained}, torch.float32, 1)
    with Places(module).holding(weights):
        module(torch.randn(2, 4)).sum().backward()
    assert trained.grad is not None


def test_only_frozen_floating_matrices_stay_as_stored() -> None:
    for value in (torch.zeros(2, 2, dtype=torch.int8), torch.zeros(2, 2, requires_grad=True)):
        with pytest.raises(ValueError, match="frozen matrix of floating-point"):
            StoredMatrix(value, torch.float32, 1)


def test_arguments_of_a_product_by_their_names() -> None:
    kept, x_TK, bias_N = torch.randn(6, 4).bfloat16(), torch.randn(3, 4), torch.randn(6)
    matrix = StoredMatrix(kept, torch.float32, 1)
    expected = F.linear(x_TK, kept.float(), bias_N)
    assert torch.equal(F.linear(x_TK, weight=matrix, bias=bias_N), expected)
    assert torch.equal(F.linear(input=x_TK, weight=matrix, bias=bias_N), expected)
    assert torch.equal(F.linear(matrix, kept.float()[:, :4]), F.linear(kept.float(), kept.float()))


@pytest.mark.parametrize("change", ["add_", "__setitem__", "__iadd__", "zero_"])
def test_a_frozen_matrix_cannot_be_changed_in_place(change: str) -> None:
    matrix = StoredMatrix(torch.ones(2, 2).bfloat16(), torch.float32, 1)
    arguments = {"__setitem__": (0, 1.0), "zero_": ()}.get(change, (1.0,))
    with pytest.raises(RuntimeError, match="would change a frozen matrix"):
        getattr(matrix, change)(*arguments)
    assert bool((matrix.stored() == 1).all())


def test_a_frozen_matrix_is_not_written_to_as_an_output() -> None:
    matrix = StoredMatrix(torch.ones(2, 2).bfloat16(), torch.float32, 1)
    with pytest.raises(RuntimeError, match="would change a frozen matrix"):
        torch.mul(torch.ones(2, 2), 2, out=matrix)
    with pytest.raises(RuntimeError, match="would change a frozen matrix"):
        torch.relu_(input=matrix)
    assert torch.equal(~(matrix > 0), torch.zeros(2, 2, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(200,), (1,), (7, 200), (1, 200)])
def test_a_sum_with_a_product_takes_any_first_term(shape: tuple[int, ...]) -> None:
    kept, x_TK, first = torch.randn(64, 200).bfloat16(), torch.randn(7, 64), torch.randn(shape)
    found = torch.addmm(first, x_TK, StoredMatrix(kept, torch.float32, 1))
    assert torch.equal(found, torch.addmm(first, x_TK, kept.float()))


@given(
    outputs=st.integers(0, 3000), inputs=st.integers(0, 3000), threads=st.integers(1, 16), size=st.integers(1, 2**22)
)
@fast(deadline=None, max_examples=200)
def test_the_largest_block_is_what_is_predicted(outputs: int, inputs: int, threads: int, size: int) -> None:
    before, stored.BLOCK_BYTES = stored.BLOCK_BYTES, size
    try:
        found = block_bytes(outputs, inputs, torch.float32, threads)
        for across, along in ((inputs, outputs), (outputs, inputs)):
            height = stored._block_size(across, along, torch.float32, threads)
            parts = list(stored._blocks(along, height, threads)) if along else []
            assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
            assert max((4 * across * (part.stop - part.start) for part in parts), default=0) <= found
    finally:
        stored.BLOCK_BYTES = before
