"""Running one decoder block with the arguments that its model calls it with."""

from collections import UserDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pruner_zero.devices import is_out_of_memory
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.matrices import find_blocks
from pruner_zero.models.next_token import fast_products, in_float32

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Activations(Protocol):
    """One (1, tokens, width) tensor for each window: a list, or a file on disk."""

    def append(self, tensor: Tensor, /) -> None:
        """Add the tensor of the next window."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...

    def __iter__(self) -> Iterator[Tensor]: ...


# How many tokens of one window `check_block_calls` runs, and the largest difference it allows, as a
# share of the largest value.
_CHECKED_TOKENS, _TOLERANCE = 16, 1e-2
# How many tokens a fast run of a block takes at once: weights are cast for each call.
_FAST_TOKENS = 1024

# Discards every appended tensor.
DISCARDED: Activations = deque[Tensor](maxlen=0)


class _StopForwardError(Exception):
    """Ends a forward pass before the rest of the model is computed."""


@dataclass(frozen=True)
class BlockCalls:
    """The arguments with which a model calls its blocks.

    hidden: the input of the first block, a (1, tokens, width) tensor for each window. arguments: by
    block and window, the others. as_tuple: whether blocks return their output inside a tuple.
    """

    hidden: Activations
    arguments: list[list[Arguments]]
    as_tuple: bool = False


def record_block_calls(
    model: nn.Module, windows: Tensor, hidden: Activations | None = None
) -> BlockCalls:
    """Record how `model` calls its blocks on `windows` (n, tokens) int64.

    hidden: where the inputs of the first block are appended; a new list where None. Only the
    first block is computed, once; the others are replaced by the identity, so this costs little
    more than the embedding. Arguments equal in all windows (masks, positions) are stored once.
    """
    blocks = find_blocks(model)
    first = blocks[0].forward
    as_tuple: bool | None = None
    hidden = [] if hidden is None else hidden
    arguments: list[list[Arguments]] = [[] for _ in blocks]

    def bypass(index: int, *args: Any, **kwargs: Any) -> Any:
        nonlocal as_tuple
        incoming, rest = split_arguments(args, kwargs)
        if index == 0:
            hidden.append(incoming)
        if as_tuple is None:
            as_tuple = isinstance(first(*args, **kwargs), tuple | list)
        earlier = arguments[index][0] if arguments[index] else arguments[max(index - 1, 0)]
        arguments[index].append(_share(rest, earlier))
        if index == len(blocks) - 1:
            raise _StopForwardError
        return (incoming, None) if as_tuple else incoming

    device = next(model.parameters()).device
    replaced = forwards_replaced(blocks, lambda index: partial(bypass, index))
    with torch.no_grad(), in_float32(model), replaced:
        for window in windows:
            with suppress(_StopForwardError):
                model(window[None].to(device), use_cache=False)
    return BlockCalls(hidden, arguments, bool(as_tuple))


@torch.no_grad()
def check_block_calls(model: PreTrainedModel, windows: Tensor) -> None:
    """Raise PrunerZeroError where `model` does more with its blocks than run each after the other.

    Statistics are collected block by block, so that they would be wrong where blocks pass on a
    second value, or run twice. Compared is the last block's output for the first tokens of
    `windows` (n, tokens).
    """
    if not len(windows):
        return
    tokens = windows[:1, :_CHECKED_TOKENS].to(next(model.parameters()).device)
    try:
        with in_float32(model):
            expected, _ = run_blocks(model, tokens)
            calls = record_block_calls(model, tokens)
            hidden = calls.hidden[0]
            for block, arguments in zip(find_blocks(model), calls.arguments, strict=True):
                hidden = run_block(block, hidden, arguments[0])
        worst = (hidden - expected.to(hidden.device)).abs().max()
        # Outputs that are not finite are found, and named, elsewhere.
        alike = not bool(worst > _TOLERANCE * hidden.abs().max())
    except PrunerZeroError:
        raise
    # A model's own code can raise anything where its blocks are called apart.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        alike = False
    if not alike:
        raise PrunerZeroError(
            f"blocks of the {model.config.model_type} family cannot be run one after the other, as "
            "calibration does: choose --metric magnitude, which needs no calibration"
        )


def shares_state(calls: BlockCalls) -> bool:
    """Whether blocks get an object through which one passes keys and values on to later ones."""
    of_window = (arguments[0] for arguments in calls.arguments if arguments)
    given = (value for args, kwargs in of_window for value in (*args, *kwargs.values()))
    return any(isinstance(value, UserDict) for value in given)


def blocks_replaced(
    model: nn.Module, hidden: Tensor, as_tuple: bool
) -> AbstractContextManager[None]:
    """Within the context, `model` computes no block; every block returns `hidden`.

    So the model computes its last norm and its head from `hidden`. as_tuple: as in `BlockCalls`.
    """

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return (hidden, None) if as_tuple else hidden

    return forwards_replaced(find_blocks(model), lambda _index: forward)


def run_blocks(model: PreTrainedModel, windows: Tensor) -> tuple[Tensor, bool]:
    """The last block's output (n, tokens, width) for `windows` (n, tokens); no head is computed.

    The second value is `as_tuple` as in `BlockCalls`.
    """
    outputs: list[Any] = []

    def note(_block: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output)

    def stop(_head: nn.Module, _inputs: Any) -> None:
        raise _StopForwardError

    with (
        find_blocks(model)[-1].register_forward_hook(note),
        # Not at the last block, which may run more than once.
        model.get_output_embeddings().register_forward_pre_hook(stop),
        suppress(_StopForwardError),
    ):
        model(windows, use_cache=False)
    return hidden_of(outputs[-1]), isinstance(outputs[-1], tuple | list)


def blocks_recomputed(model: nn.Module) -> AbstractContextManager[None]:
    """Within the context, a forward pass keeps of each block only the input for a backward pass.

    That computes each block again before its gradients, so that the activations of one block at a
    time are in memory.
    """
    blocks = find_blocks(model)
    once: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return forwards_replaced(
        blocks, lambda index: partial(checkpoint, blocks[index].forward, **once)
    )


@contextmanager
def first_token_apart(model: nn.Module) -> Iterator[None]:
    """Outputs (n, tokens, width) of blocks in the context have no gradient for the first token.

    Later tokens attend to it where they have nothing else to attend to, so that it gets gradients
    of all of them (attention sinks induce gradient sinks, 2603.17771), in one direction at every
    step. Within 40 steps of an optimizer that ignores their size they halve that token's massive
    activations (2402.17762), which the kept weights rely on (benchmarks/why.md).
    """

    def without_first(gradient: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(gradient[:, :1]), gradient[:, 1:]], 1)

    def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = hidden_of(output)
        if hidden.requires_grad:
            hidden.register_hook(without_first)

    with ExitStack() as stack:
        for block in find_blocks(model):
            stack.enter_context(block.register_forward_hook(hook))
        yield


def run_block(block: nn.Module, hidden: Tensor, arguments: Arguments) -> Tensor:
    """The output (1, tokens, width) of `block` for `hidden` and recorded `arguments`.

    All of them are moved to the device of the block.
    """
    args, kwargs = take_inputs(block, (hidden, *arguments[0]), arguments[1])
    with in_float32(block):
        return hidden_of(block(*args, **kwargs))


def run_batch(block: nn.Module, hidden: Sequence[Tensor], arguments: Sequence[Arguments]) -> Tensor:
    """The outputs (n, tokens, width) of `block` for n windows of the same length.

    In one call where their `arguments` are the same, and have a first dimension that any number of
    windows share; else window by window.
    """
    if len(hidden) > 1 and _hold_for_all(arguments):
        return run_block(block, torch.cat(list(hidden)), arguments[0])
    return torch.cat([run_block(block, *call) for call in zip(hidden, arguments, strict=True)])


def _hold_for_all(arguments: Sequence[Arguments]) -> bool:
    first, *others = (pytree.tree_leaves(of_window) for of_window in arguments)
    return all([*map(id, leaves)] == [*map(id, first)] for leaves in others) and all(
        leaf.ndim < 2 or len(leaf) == 1 for leaf in _tensors(arguments[0])
    )


def run_windows(
    block: nn.Module,
    hidden: Activations,
    arguments: Sequence[Arguments],
    outputs: Activations | None = None,
    *,
    fast: bool = False,
) -> Activations:
    """The outputs of `block` for each window of `hidden`, appended to `outputs` if given.

    arguments: of each window, as for `run_block`. fast: products in bfloat16 where that is fast,
    and several windows in one call; the activations that blocks add to are in float32 all the same.
    """
    outputs = [] if outputs is None else outputs
    together = max(1, _FAST_TOKENS // hidden[0].shape[1]) if fast else 1
    device = next(block.parameters()).device
    products = fast_products(block, device) if fast else nullcontext()
    with products, in_float32(block):
        for start in range(0, len(hidden), together):
            rows = range(start, min(start + together, len(hidden)))
            inputs = [hidden[row] for row in rows]
            for output in run_batch(block, inputs, [arguments[row] for row in rows]).split(1):
                outputs.append(output)
    return outputs


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returns."""
    result = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(result, Tensor)
    return result


def take_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of `module`, moved to its device; usable as a forward pre-hook."""
    # A cache of keys and values is no tensor; it stays as it is and moves its tensors itself.
    moved: tuple[tuple[Any, ...], dict[str, Any]] = send_to_device(
        (args, kwargs), next(module.parameters()).device
    )
    return moved


def split_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Arguments]:
    """The hidden states that a block is called with, and its other arguments."""
    if args:
        return args[0], (args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), ((), rest)


def _share(arguments: Arguments, earlier: Any) -> Arguments:
    """`arguments` with every tensor that equals one in `earlier` replaced by that one."""
    pool = _tensors(earlier)

    def shared(leaf: Any) -> Any:
        alike = (
            tensor
            for tensor in pool
            if isinstance(leaf, Tensor)
            and (tensor.dtype, tensor.device) == (leaf.dtype, leaf.device)
            and torch.equal(tensor, leaf)
        )
        return next(alike, leaf)

    result: Arguments = pytree.tree_map(shared, arguments)
    return result


def _tensors(arguments: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]


@contextmanager
def forwards_replaced(
    blocks: Sequence[nn.Module], forward: Callable[[int], Callable[..., Any]]
) -> Iterator[None]:
    """Within the context, `forward(index)` is called in the place of each block."""
    # On the instances, where earlier replacements may be, and not on their classes.
    before = [vars(block).get("forward") for block in blocks]
    for index, block in enumerate(blocks):
        vars(block)["forward"] = forward(index)
    try:
        yield
    finally:
        for block, earlier in zip(blocks, before, strict=True):
            vars(block).pop("forward", None)
            vars(block).update({} if earlier is None else {"forward": earlier})
