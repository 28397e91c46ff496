"""Placing a model: all of it on one device, or its blocks one after the other on several."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import nn

from pruner_zero.devices import Devices, free_bytes
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import take_inputs
from pruner_zero.models.matrices import find_blocks

# The share of a device's free memory that weights may take before another device is used:
# statistics, activations and gradients need as much again.
_SHARE = 0.5


def place_model(
    model: nn.Module, devices: Devices, free: Callable[[torch.device], int] = free_bytes
) -> None:
    """Move `model` to `devices`, in place: to one, or its blocks to several, in their order.

    Modules outside the blocks go to the first device. Forward hooks move the inputs of every part
    to its device. free: gives the free bytes of a device. Raises PrunerZeroError where several
    devices together are too small.
    """
    if len(devices.every) == 1:
        model.to(devices.first)
        return
    blocks = find_blocks(model)
    sizes = [_bytes(block) for block in blocks]
    outside = _bytes(model) - sum(sizes)
    room = [free(device) + _bytes(model, device) for device in devices.every]
    if not devices.spread:
        room = room[: devices_needed(outside + sum(sizes), room)]
    homes = [devices.every[index] for index in spread_blocks(sizes, room, outside)]
    inside = {id(module) for block in blocks for module in block.modules()}
    for block, home in zip(blocks, homes, strict=True):
        block.to(home)
    for module in model.modules():
        apart = id(module) not in inside
        if apart:
            # As `Module.to`, without its submodules; tied parameters stay tied.
            module._apply(lambda tensor: tensor.to(devices.first), recurse=False)
        takes = module in blocks or (apart and list(module.parameters(recurse=False)))
        if takes and take_inputs not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(take_inputs, with_kwargs=True)


def devices_needed(total: int, free: Sequence[int]) -> int:
    """How many devices, from the first on, hold `total` bytes in half of their free memory.

    All of them where they do not suffice.
    """
    sums = enumerate(accumulate(free), start=1)
    return next((count for count, held in sums if total <= _SHARE * held), len(free))


def spread_blocks(blocks: Sequence[int], free: Sequence[int], outside: int = 0) -> list[int]:
    """The index of the device of each block: contiguous ranges that leave the most room.

    blocks, free, outside: bytes of each block, of each device, and of the modules outside the
    blocks, which are on the first device. The largest share of a device that is filled is as small
    as possible, to a percent. Raises PrunerZeroError where the devices cannot hold it all.
    """
    rooms = ([percent / 100 * room for room in free] for percent in range(101))
    placed = (_fill(blocks, room, outside) for room in rooms)
    chosen = next((homes for homes in placed if homes is not None), None)
    if chosen is None:
        raise PrunerZeroError(
            f"the model takes {(outside + sum(blocks)) / 2**30:.1f} GiB and the devices have "
            f"{sum(free) / 2**30:.1f} GiB free: give --device more of them, or prune with --offload"
        )
    return chosen


def _fill(blocks: Sequence[int], room: Sequence[float], outside: int) -> list[int] | None:
    """Fill one device after the other; None where blocks are left over."""
    chosen: list[int] = []
    device, left = 0, room[0] - outside
    for size in blocks:
        while size > left:
            device += 1
            if device == len(room):
                return None
            left = room[device]
        left -= size
        chosen.append(device)
    return chosen if outside <= room[0] else None


def _bytes(module: nn.Module, device: torch.device | None = None) -> int:
    """The bytes of the parameters of `module`, only those on `device` where one is given."""
    return sum(p.nbytes for p in module.parameters() if device in (None, p.device))
