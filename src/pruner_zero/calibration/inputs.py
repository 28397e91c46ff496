"""What enters each weight matrix of one decoder block: the statistics X and XᵀX."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruner_zero.calibration.input_sums import InputSums
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Activations, Arguments, Matrix, run_block


def collect_inputs(
    block: nn.Module,
    matrices: Sequence[Matrix],
    hidden: Iterable[Tensor],
    arguments: Sequence[Arguments],
    *,
    gram: bool = False,
    outputs: Activations | None = None,
    dense: Iterable[Tensor] | None = None,
    dense_outputs: Activations | None = None,
) -> tuple[InputSums, Activations]:
    """Run `block` over all windows once; return the sums over what enters, and its outputs.

    hidden, arguments: one a window, as `record_block_calls` gives them. outputs: where the
    outputs are appended, a new list where None. dense: what the dense model hands to the
    block, which is run on it too, for `cross`; its outputs go to `dense_outputs`.
    Raises PrunerZeroError where the inputs of a mixture's experts cannot be observed.
    """
    recorder = _Recorder(InputSums(gram))
    outputs = [] if outputs is None else outputs
    dense_outputs = [] if dense_outputs is None else dense_outputs
    count = len(arguments)
    with torch.no_grad(), _recording(block, matrices, recorder):
        aims = [None] * count if dense is None else dense
        windows = zip(hidden, aims, arguments, strict=True)
        for incoming, aimed, rest in windows:
            if aimed is not None:
                with recorder.keeping():
                    dense_outputs.append(run_block(block, aimed, rest))
            outputs.append(run_block(block, incoming, rest))
            recorder.forget_inputs()
    _check_followed(matrices, recorder)
    return recorder.sums, outputs


@dataclass
class _Recorder:
    """Sums over tokens. Matrices that are fed the very same tensor share one sum."""

    sums: InputSums
    last: tuple[Tensor, str] | None = None
    kept: dict[str, Tensor] | None = None
    keeps: bool = False

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep the inputs that are seen meanwhile, to be set beside the next ones."""
        self.kept, self.keeps = {}, True
        yield
        self.keeps, self.last = False, None

    def add(self, name: str, inputs: Tensor) -> None:
        """inputs: (…, in), any dtype."""
        sums = self.sums
        if name not in sums.owner:
            shared = self.last is not None and self.last[0] is inputs
            sums.owner[name] = sums.owner[self.last[1]] if shared and self.last else name
        self.last = (inputs, name)
        if sums.owner[name] != name:
            return
        tokens = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if self.keeps and self.kept is not None:
            self.kept[name] = tokens
            return
        if name not in sums.squares:
            width = tokens.shape[1]
            sums.squares[name] = tokens.new_zeros(1, width)
            if sums.gram:
                sums.grams[name] = tokens.new_zeros(width, width)
        sums.squares[name] += tokens.square().sum(0, keepdim=True)
        if sums.gram:
            sums.grams[name].addmm_(tokens.T, tokens)
        if self.kept is not None:
            self._cross(name, tokens)

    def _cross(self, name: str, tokens: Tensor) -> None:
        aimed = self.kept.pop(name, None) if self.kept else None
        if aimed is None or aimed.shape != tokens.shape:
            self.sums.uncrossed.add(name)
            return
        if name not in self.sums.crosses:
            self.sums.crosses[name] = tokens.new_zeros(tokens.shape[1], tokens.shape[1])
        self.sums.crosses[name].addmm_(aimed.T, tokens)

    def forget_inputs(self) -> None:
        self.last = self.kept = None


@contextmanager
def _recording(block: nn.Module, matrices: Sequence[Matrix], recorder: _Recorder) -> Iterator[None]:
    modules = dict(block.named_modules(prefix=""))
    with ExitStack() as stack:
        for matrix in matrices:
            if matrix.expert is None:
                module = modules[matrix.kind]
                handle = module.register_forward_pre_hook(_pre_hook(matrix.name, recorder))
                stack.callback(handle.remove)
        stacked = [matrix for matrix in matrices if matrix.expert is not None]
        if stacked:
            stack.enter_context(_experts_one_by_one(block))
            stack.enter_context(_StackedInputs(stacked, recorder))
        yield


def _pre_hook(name: str, recorder: _Recorder) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        recorder.add(name, inputs[0])

    return hook


class _StackedInputs(TorchFunctionMode):
    """Sees every product with a slice of a parameter that stacks the experts of a mixture.

    Experts kept in one 3-D parameter have no module of their own to hook, so the slice is
    recognised by where it lies in memory.
    """

    _products = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul)
    _stacked_products = (torch.bmm, torch.Tensor.bmm)

    def __init__(self, matrices: Sequence[Matrix], recorder: _Recorder) -> None:
        super().__init__()
        self.names = {matrix.weight.data_ptr(): matrix.name for matrix in matrices}
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if len(args) > 1:
            if func in self._stacked_products:
                for inputs, weight in zip(args[0], args[1], strict=True):
                    self._see(inputs, weight)
            elif func in self._products or getattr(func, "__name__", "") == "__matmul__":
                self._see(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _see(self, inputs: Tensor, weight: Tensor) -> None:
        name = self.names.get(weight.data_ptr())
        if name is not None:
            self.recorder.add(name, inputs)


def _check_followed(matrices: Sequence[Matrix], recorder: _Recorder) -> None:
    """Every mixture sends each token to some expert; a stack that saw none was not understood."""
    stacks: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        if matrix.expert is not None:
            stacks.setdefault(matrix.parameter_name, []).append(matrix)
    for name, experts in stacks.items():
        whole = len(experts) == experts[0].parameter.shape[0]
        if whole and not any(matrix.name in recorder.sums.owner for matrix in experts):
            raise PrunerZeroError(
                f"the inputs of {name} cannot be observed, its model multiplies it in a way that "
                "is not known here: choose a metric without X and without D, and no update"
            )


@contextmanager
def _experts_one_by_one(block: nn.Module) -> Iterator[None]:
    """Have mixtures run expert by expert, so that each product can be seen."""
    configs = {
        id(config): config
        for module in block.modules()
        if (config := getattr(module, "config", None)) is not None
        and hasattr(config, "_experts_implementation")
    }
    before = {key: config._experts_implementation for key, config in configs.items()}
    for config in configs.values():
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation = before[key]
