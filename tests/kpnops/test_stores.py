"""No kernel writes outside its tensors, or reads what it must not use.

Stores outside a tensor change its surroundings, which the interpreter lets pass. So the operands
lie in NaN-filled buffers, and what the operator allocates lies between margins. Not seen: a load
outside that is masked later, and a store more than a margin away.
"""

import pytest
import torch

import kpnops
from tests.helpers import ON_INTERPRETER, Case, Operands, embed, run_operator

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

CASES = {
    "no channel filter": Case(channel_filter="none"),
    "filter per image, one for the batch": Case(channel_filter="image", batch=2, channel_batch=1),
    "gains per pixel": Case(batch=2),
    "add per image, one for the batch": Case(
        channel_filter="image", batch=2, channel_batch=1, combine="add", channels=5
    ),
    "groups of two channels": Case(channels=6, groups=3),
    "first size beyond the fast path": Case(kernel_size=(5, 10), size=(3, 4)),
    "strides and roundings differ": Case(stride=(2, 3), rounding=("floor", "ceil"), batch=2),
    "one pixel": Case(size=(1, 1)),
    "one column": Case(size=(9, 1), channel_filter="image"),
    "reflect, strided, per image": Case(
        padding_mode="reflect", stride=(2, 3), channel_filter="image", kernel_size=(4, 3)
    ),
    "circular, per image, even": Case(
        padding_mode="circular", channel_filter="image", kernel_size=(2, 4)
    ),
    "softmax": Case(normalize="softmax", size=(3, 4), kernel_size=(2, 3)),
    "softmax, many channels, circular": Case(
        normalize="softmax", size=(3, 4), kernel_size=(2, 3), channels=5, padding_mode="circular"
    ),
    "softmax, per image, strided": Case(
        normalize="softmax", size=(3, 5), channel_filter="image", stride=(2, 2), batch=2
    ),
    "upsampling, softmax, groups": Case(
        normalize="softmax", size=(2, 3), channels=4, groups=2, scale_factor=2, kernel_size=(2, 2)
    ),
    "mixing": Case(channel_filter="mix", output_channels=5, size=(2, 3), kernel_size=(2, 2)),
    "mixing, one matrix for the batch": Case(
        channel_filter="mix", output_channels=2, size=(2, 3), batch=2, channel_batch=1, groups=3
    ),
    "channel filter alone": Case(channel_filter="image", spatial=False, stride=(1, 2), batch=2),
}


@pytest.mark.parametrize("device", [ON_INTERPRETER], indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_no_store_goes_outside(name: str, device: str, guarded_allocations) -> None:
    case = CASES[name].with_dtype(torch.float32)
    operands = case.operands(device)
    embedded = [None if tensor is None else embed(tensor) for tensor in operands]
    buffers = [pair[1] for pair in embedded if pair is not None]
    before = [buffer.clone() for buffer in buffers]
    cotangent, _ = embed(case.cotangent(device))
    views = Operands(*(None if pair is None else pair[0] for pair in embedded))
    guarded_allocations.blocks.clear()
    actual = run_operator(kpnops.decoupled_filter, case, views, cotangent)
    guarded_allocations.check()
    sizes = {extent for _, extent in guarded_allocations.blocks}
    assert {tensor.numel() for tensor in actual.values()} <= sizes  # the results were guarded
    assert all(bool(tensor.isfinite().all()) for tensor in actual.values())
    for buffer, old in zip(buffers, before, strict=True):
        assert torch.equal(buffer.nan_to_num(), old.nan_to_num())
        assert int(buffer.isnan().sum()) == int(old.isnan().sum())
