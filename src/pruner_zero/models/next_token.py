"""The loss of a language model, its gradients, and models in half precision computed in float32."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruner_zero.devices import emulated_dtypes, has_fast_bfloat16

# The number of logits that are float32 at a time. Larger temporary tensors are slower, because
# their memory is asked of the system anew each time, and of 1024 tokens with a vocabulary of
# 262,144 each of them would take a gigabyte.
LOGITS_AT_ONCE = 2**22


def positions_at_once(logits: Tensor) -> int:
    """How many positions of `logits` (…, vocabulary) have `LOGITS_AT_ONCE` numbers, at least 1."""
    return max(1, LOGITS_AT_ONCE // logits.shape[-1])


def next_token_losses(model: nn.Module, windows: Tensor) -> Tensor:
    """The mean next-token cross entropy of each of `windows` (n, tokens): (n,), nats, fp32."""
    windows = windows.to(next(model.parameters()).device)
    with in_float32(model):
        logits = model(windows, use_cache=False).logits
    positions = positions_at_once(logits)
    losses = []
    for scores, window in zip(logits, windows, strict=True):
        parts = zip(scores[:-1].split(positions), window[1:].split(positions), strict=True)
        nats = [functional.cross_entropy(p.float(), goal, reduction="none") for p, goal in parts]
        losses.append(torch.cat(nats).mean())
    return torch.stack(losses)


def next_token_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """The mean next-token cross entropy of `windows` (n, tokens): a scalar, nats, fp32.

    For its gradients on any CPU, call it and `backward` within `in_float32`.
    """
    windows = windows.to(next(model.parameters()).device)
    # The model's own logits are not bound to a name: they are freed before the backward pass.
    logits = model(windows, use_cache=False).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def to_perplexity(loss: float) -> float:
    """The perplexity of a mean next-token loss in nats: `exp(loss)`, infinite on overflow."""
    return math.exp(loss) if loss < 700 else math.inf


@contextmanager
def gradients_to(
    receivers: Mapping[nn.Parameter, Callable[[Tensor], None]], module: nn.Module
) -> Iterator[None]:
    """Within the context, each backward pass through `module` gives gradients to `receivers`.

    receivers: by parameter, called with its gradient, which is freed afterwards. No other parameter
    gets a gradient.
    """

    @torch.no_grad()
    def give(parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        receivers[parameter](gradient)

    with (
        torch.enable_grad(),
        only_these_learn(module, receivers),
        in_float32(module),
        ExitStack() as stack,
    ):
        for parameter in receivers:
            stack.callback(parameter.register_post_accumulate_grad_hook(give).remove)
        yield


@contextmanager
def only_these_learn(module: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Restrict gradients to `parameters`; restore every flag and gradient afterwards."""
    before = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    chosen = {id(p) for p in parameters}
    for parameter, _, _ in before:
        parameter.requires_grad_(id(parameter) in chosen)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, learns, gradient in before:
            parameter.requires_grad_(learns)
            parameter.grad = gradient


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Within the context, tensors of `module` whose products the CPU emulates are float32.

    Emulated products take ten to hundreds of times as long (pytorch/pytorch#146508). Afterwards
    `module` has the tensors that it had before: what was written to them in between is lost. The
    float32 copies take 4 bytes a number. Contexts nest, and other devices and dtypes stay as they
    are.
    """
    emulated = emulated_dtypes()
    tensors = chain(module.parameters(), module.buffers())
    narrow = [tensor for tensor in tensors if tensor.is_cpu and tensor.dtype in emulated]
    with _cast(narrow, torch.float32):
        yield


@contextmanager
def in_bfloat16(module: nn.Module) -> Iterator[None]:
    """Within the context, parameters of `module` in float32 are bfloat16, at 2 bytes a number more.

    Buffers keep their dtype, as in a model that is loaded in bfloat16. Afterwards `module` has the
    parameters that it had before, as after `in_float32`.
    """
    with _cast([p for p in module.parameters() if p.dtype == torch.float32], torch.bfloat16):
        yield


def fast_products(model: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Matrix products in bfloat16 where `device` multiplies it natively.

    Weights that are cast are not kept. Autocast refuses operations on a float16 and a bfloat16
    tensor, so that the products of a float16 model stay as they are.
    """
    narrow = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    if narrow or not has_fast_bfloat16(device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@contextmanager
def _cast(tensors: Iterable[Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Within the context, `tensors` hold copies in `dtype`; placeholders stay as they are."""
    # Placeholders of a model on disk repeat one number.
    stored = [(tensor, tensor.data) for tensor in tensors if 0 not in tensor.stride()]
    for tensor, data in stored:
        tensor.data = data.to(dtype)
    try:
        yield
    finally:
        for tensor, data in stored:
            tensor.data = data
