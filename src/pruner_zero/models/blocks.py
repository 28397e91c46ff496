"""Running one decoder block with the real arguments that its model gives it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruner_zero.models.structure import find_blocks

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Activations(Protocol):
    """One (1, tokens, width) tensor a window, appended in turn: a list, or a file on disk."""

    def append(self, tensor: Tensor, /) -> None:
        """The tensor of the next window."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...

    def __iter__(self) -> Iterator[Tensor]: ...


class _StopForwardError(Exception):
    """Ends a forward pass early, once what was wanted from it has been seen."""


@dataclass(frozen=True)
class BlockCalls:
    """What the model hands to its blocks, window by window.

    hidden: the input of the first block, one (1, tokens, width) tensor a window.
    arguments: for each block, for each window, everything else it is called with.
    as_tuple: whether blocks give their output inside a tuple.
    """

    hidden: Activations
    arguments: list[list[Arguments]]
    as_tuple: bool = False


def record_block_calls(
    model: nn.Module, windows: Tensor, hidden: Activations | None = None
) -> BlockCalls:
    """Learn how `model` calls its blocks, without computing any but the first one.

    windows: (n, tokens) int64. hidden: where the first block's inputs are appended, a new
    list where None. Blocks are bypassed, so this costs little more than the
    embedding. Arguments that are the same for every window (masks, positions) are kept once.
    """
    blocks = find_blocks(model)
    as_tuple = _returns_tuple(model, blocks[0], windows[:1])
    hidden = [] if hidden is None else hidden
    arguments: list[list[Arguments]] = [[] for _ in blocks]

    def bypass(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            incoming, rest = _split(args, kwargs)
            if index == 0:
                hidden.append(incoming)
            known = arguments[index][0] if arguments[index] else arguments[max(index - 1, 0)]
            arguments[index].append(_share(rest, known))
            if index == len(blocks) - 1:
                raise _StopForwardError
            return (incoming, None) if as_tuple else incoming

        return forward

    with torch.no_grad(), ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.enter_context(_forward_replaced(block, bypass(index)))
        for window in windows:
            _run_until_stop(model, window[None])
    return BlockCalls(hidden, arguments, as_tuple)


@contextmanager
def blocks_replaced(model: nn.Module, hidden: Tensor, as_tuple: bool) -> Iterator[None]:
    """Let `model` run as though its last block gave `hidden`, computing no block.

    as_tuple: as in `BlockCalls`.
    """

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return (hidden, None) if as_tuple else hidden

    with ExitStack() as stack:
        for block in find_blocks(model):
            stack.enter_context(_forward_replaced(block, forward))
        yield


def run_block(block: nn.Module, hidden: Tensor, arguments: Arguments) -> Tensor:
    """The output (1, tokens, width) of `block` for `hidden`, its other arguments replayed.

    All of them are taken to where the block is.
    """
    args, kwargs = take_inputs(block, (hidden, *arguments[0]), arguments[1])
    output = block(*args, **kwargs)
    result = output[0] if isinstance(output, tuple) else output
    assert isinstance(result, Tensor)
    return result


def take_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Everything that `module` is called with, on its device: a hook, and what it does."""
    device = next(module.parameters()).device
    # A cache of keys stays as it is: it sees to where they are itself.
    moved: tuple[tuple[Any, ...], dict[str, Any]] = send_to_device((args, kwargs), device)
    return moved


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Arguments]:
    if args:
        return args[0], (args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), ((), rest)


def _share(arguments: Arguments, known: Any) -> Arguments:
    """`arguments` with every tensor that equals one in `known` replaced by that one."""
    pool = [leaf for leaf in pytree.tree_leaves(known) if isinstance(leaf, Tensor)]

    def shared(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return next(
            (
                other
                for other in pool
                if other is leaf
                or (
                    other.shape == leaf.shape
                    and other.dtype == leaf.dtype
                    and other.device == leaf.device
                    and torch.equal(other, leaf)
                )
            ),
            leaf,
        )

    result: Arguments = pytree.tree_map(shared, arguments)
    return result


def _returns_tuple(model: nn.Module, block: nn.Module, window: Tensor) -> bool:
    seen: list[bool] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(isinstance(output, tuple))
        raise _StopForwardError

    handle = block.register_forward_hook(hook)
    try:
        with torch.no_grad():
            _run_until_stop(model, window)
    finally:
        handle.remove()
    return seen[0]


def _run_until_stop(model: nn.Module, window: Tensor) -> None:
    try:
        model(window.to(next(model.parameters()).device), use_cache=False)
    except _StopForwardError:
        return
    raise RuntimeError(f"{type(model).__name__} finished without calling its blocks")


@contextmanager
def _forward_replaced(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(block).get("forward")
    vars(block)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(block)["forward"]
        else:
            vars(block)["forward"] = own
