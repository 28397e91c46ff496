"""Forward: the statistics of one decoder block, from its inputs, outputs and experts.

Products with matrices that have no module of their own, as the experts in one parameter, are
observed here for the backward pass too.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from pruner_zero.calibration.statistics import (
    BlockStatistic,
    ExpertStatistic,
    InputStatistic,
    Kind,
    MatrixStatistics,
    select,
)
from pruner_zero.devices import bfloat16_products
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import Activations, Arguments, run_block
from pruner_zero.models.matrices import Matrix
from pruner_zero.models.next_token import in_float32
from pruner_zero.models.transformers_private import experts_one_by_one

# Called with the names of matrices, their inputs and the product, whose first dimension enumerates
# the matrices where they are several. Its result replaces the product. The name of a matrix that is
# not observed is None.
See = Callable[[Sequence[str | None], Tensor, Tensor], Tensor]
# Called before, with the names and the inputs. Its result replaces the inputs.
Give = Callable[[Sequence[str | None], Tensor], Tensor]


@contextmanager
def products_observed(
    module: nn.Module, matrices: Sequence[Matrix], see: See | None = None, give: Give | None = None
) -> Iterator[None]:
    """Within the context, `give` and `see` are called at each product with one of `matrices`.

    Mixtures run expert by expert meanwhile.
    """
    with in_float32(module), experts_one_by_one(module), _Products(matrices, see, give):
        yield


@contextmanager
def outputs_observed(module: nn.Module, matrices: Sequence[Matrix], see: See) -> Iterator[None]:
    """Within the context, `see` is called at every output of `matrices`, of linear maps too."""
    linears, products = split_products(module, matrices)
    with ExitStack() as stack:
        for name, part in linears:
            handle = part.register_forward_hook(
                lambda _part, inputs, output, name=name: see([name], inputs[0], output)
            )
            stack.callback(handle.remove)
        if products:
            stack.enter_context(products_observed(module, products, see))
        yield


def with_gradient(output: Tensor) -> Tensor:
    """An output at which a backward pass gives a gradient: `output`, or a copy of it."""
    if output.requires_grad:
        return output
    # Nothing before it needs a gradient, so the backward pass ends here. A copy, because the model
    # may write to its activations, and must not write to a leaf of the graph.
    return output.requires_grad_().clone()


def split_products(
    module: nn.Module, matrices: Sequence[Matrix]
) -> tuple[list[tuple[str, nn.Module]], list[Matrix]]:
    """The names of matrices in `module` that are a linear map of their own, with it; and the rest.

    Other forward methods, such as a router's, do not return the plain product.
    """
    of_parameter = {
        id(parameter): part
        for part in module.modules()
        for parameter in part.parameters(recurse=False)
    }
    linears, products = [], []
    for matrix in matrices:
        part = of_parameter[id(matrix.parameter)]
        if type(part).forward in (nn.Linear.forward, Conv1D.forward):
            linears.append((matrix.name, part))
        else:
            products.append(matrix)
    return linears, products


class _Products(TorchFunctionMode):
    """Observes every product with a parameter, or with a slice of one that stacks experts.

    Experts kept in one 3-D parameter have no module of their own to hook, so a matrix is
    recognised by its address in memory.
    """

    _products = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul)
    _stacked_products = (torch.bmm, torch.Tensor.bmm)

    def __init__(self, matrices: Sequence[Matrix], see: See | None, give: Give | None) -> None:
        super().__init__()
        self.names = {matrix.weight.data_ptr(): matrix.name for matrix in matrices}
        self.see, self.give = see, give

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        names: list[str | None] = []
        if len(args) > 1:
            if func in self._stacked_products:
                names = [self.names.get(weight.data_ptr()) for weight in args[1]]
            elif func in self._products or getattr(func, "__name__", "") == "__matmul__":
                names = [self.names.get(args[1].data_ptr())]
        observed = any(name is not None for name in names)
        if observed and self.give:
            args = (self.give(names, args[0]), *args[1:])
        result = func(*args, **(kwargs or {}))
        return self.see(names, args[0], result) if observed and self.see else result


def check_observed(
    matrices: Sequence[Matrix], seen: Container[str], what: str, instead: str
) -> None:
    """Raise PrunerZeroError for a stack of experts without any expert name in `seen`.

    Every mixture sends each token to some expert, so the products with this stack were missed.
    what: the values to be observed. instead: the metric to choose.
    """
    stacks: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        if matrix.expert is not None:
            stacks.setdefault(matrix.parameter_name, []).append(matrix)
    for name, experts in stacks.items():
        whole = len(experts) == experts[0].parameter.shape[0]
        if whole and not any(matrix.name in seen for matrix in experts):
            raise PrunerZeroError(
                f"the {what} of {name} cannot be observed, its model multiplies it in a way that "
                f"is not known here: choose a metric {instead}"
            )


def collect_inputs(
    block: nn.Module,
    matrices: Sequence[Matrix],
    hidden: Iterable[Tensor],
    arguments: Sequence[Arguments],
    kinds: Iterable[Kind] = (),
    *,
    outputs: Activations | None = None,
) -> tuple[dict[str, MatrixStatistics], Activations]:
    """Run `block` over all windows once; return statistics by matrix name, and its outputs.

    hidden, arguments: one for each window, as `record_block_calls` gives them. kinds: the
    statistics to collect; X always comes along, since it costs next to nothing. outputs: where the
    outputs are appended, a new list where None.
    Raises PrunerZeroError where the inputs of a mixture's experts cannot be observed, and where a
    statistic of a block or an expert is not finite.
    """
    wanted = {"X", *kinds}
    sums = InputSums(select(InputStatistic, wanted))
    block_statistics = select(BlockStatistic, wanted)
    block_values: dict[Kind, list[Tensor]] = {kind: [] for kind in block_statistics}
    expert_means = ExpertMeans(select(ExpertStatistic, wanted), sums)
    outputs = [] if outputs is None else outputs
    with (
        torch.no_grad(),
        in_float32(block),
        _observing(block, matrices, sums),
        expert_means.observing(block, matrices),
    ):
        for window, rest in zip(hidden, arguments, strict=True):
            output = run_block(block, window, rest)
            for kind, statistic in block_statistics.items():
                value = statistic.of(window.to(output.device).float(), output.float())
                block_values[kind].append(value)
            outputs.append(output)
            sums.end_window()
    check_observed(matrices, sums.owner, "inputs", "without X and without D, and no update")
    results = sums.result(matrices, len(arguments))
    for matrix in matrices:
        for kind, values in block_values.items():
            mean = torch.stack(values).mean()
            results[matrix.name][kind] = _judged(mean, f"block {matrix.block}")
        results[matrix.name] |= expert_means.of(matrix)
    return results, outputs


@dataclass
class InputSums:
    """Sums over the windows seen so far, fp32.

    statistics: what is collected, by kind. owner: for each matrix that a token reached, the name of
    the matrix that holds its sums: matrices with the very same input tensor share them. sums: by
    kind and owner. paused: whether inputs are left out, as those of an expert that is run once
    more.
    """

    statistics: Mapping[Kind, InputStatistic]
    owner: dict[str, str] = field(default_factory=dict)
    sums: dict[Kind, dict[str, Tensor]] = field(default_factory=dict)
    paused: bool = False
    _last: tuple[Tensor, str] | None = None

    def add(self, name: str, inputs: Tensor) -> None:
        """Add the inputs (…, in), of any dtype, of the matrix `name` to its sums."""
        if self.paused:
            return
        if name not in self.owner:
            shared = self._last is not None and self._last[0] is inputs
            self.owner[name] = self.owner[self._last[1]] if shared and self._last else name
        self._last = (inputs, name)
        if self.owner[name] != name:
            return
        tokens = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        for kind, statistic in self.statistics.items():
            sums = self.sums.setdefault(kind, {})
            if name not in sums:
                sums[name] = tokens.new_zeros(statistic.shape(tokens.shape[1]))
            with bfloat16_products() if inputs.dtype == torch.bfloat16 else nullcontext():
                statistic.add(sums[name], tokens)

    def end_window(self) -> None:
        """Release the inputs of the window; the next window has other tensors."""
        self._last = None

    def result(self, matrices: Sequence[Matrix], windows: int) -> dict[str, MatrixStatistics]:
        """The statistics by matrix name over that many `windows`; the sums are used up.

        A matrix that no token reached (an expert that was never chosen) has zeros.
        """
        by_owner: dict[str, MatrixStatistics] = {}
        results = {}
        for matrix in matrices:
            owner = self.owner.get(matrix.name, matrix.name)
            if owner not in by_owner:
                by_owner[owner] = self._values(owner, matrix, windows)
            results[matrix.name] = by_owner[owner]
        return results

    def _values(self, owner: str, matrix: Matrix, windows: int) -> MatrixStatistics:
        width, device = matrix.weight.shape[1], matrix.weight.device
        values = {}
        for kind, statistic in self.statistics.items():
            total = self.sums.get(kind, {}).pop(owner, None)
            if total is None:
                total = torch.zeros(statistic.shape(width), device=device)
            values[kind] = statistic.value(total, windows)
        return values


@dataclass
class ExpertMeans:
    """Sums over the tokens of every expert of one block, of which the statistics are the means.

    inputs: the sums that leave out the passes made here. sums, counts: by the name of the module
    of the experts, kind and expert.
    """

    statistics: Mapping[Kind, ExpertStatistic]
    inputs: InputSums
    sums: dict[tuple[str, Kind, int], float] = field(default_factory=dict)
    counts: dict[tuple[str, Kind, int], int] = field(default_factory=dict)

    @contextmanager
    def observing(self, block: nn.Module, matrices: Sequence[Matrix]) -> Iterator[None]:
        """Within the context, add the tokens of every call of the experts of `block`."""
        owners = {_owner(matrix) for matrix in matrices if matrix.expert is not None}
        with ExitStack() as stack:
            for owner in owners if self.statistics else ():
                # The local name, as in `Matrix.local_name`.
                module = block.get_submodule(owner.split(f".{matrices[0].block}.", 1)[1])
                add = partial(self._add, owner)
                hook = module.register_forward_pre_hook(add, with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def of(self, matrix: Matrix) -> MatrixStatistics:
        """The statistics (1, 1) of the expert of `matrix`. Raises PrunerZeroError."""
        values: MatrixStatistics = {}
        for kind in self.statistics if matrix.expert is not None else ():
            key = (_owner(matrix), kind, matrix.expert or 0)
            mean = self.sums[key] / self.counts[key] if key in self.counts else -torch.inf
            values[kind] = torch.tensor([[mean]])
            if key in self.counts:
                _judged(values[kind], f"the experts of block {matrix.block}")
        return values

    def _add(
        self, owner: str, experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """The pre-hook of a module called with hidden states (tokens, width), the numbers of the
        experts chosen for each token and their router weights, both (tokens, chosen)."""
        bound = signature(experts.forward).bind(*args, **kwargs).arguments
        hidden, chosen, weights = bound.values()
        self.inputs.paused = True
        for expert in chosen.unique().tolist():
            token, slot = torch.where(chosen == expert)
            # Called alone and with weight 1, an expert gives its own outputs.
            alone = chosen[token, slot][:, None]
            outputs = experts.forward(hidden[token], alone, torch.ones_like(weights[token, :1]))
            for kind, statistic in self.statistics.items():
                key = (owner, kind, expert)
                values = statistic.of(weights[token, slot].float(), outputs.float())
                self.sums[key] = self.sums.get(key, 0.0) + float(values.sum())
                self.counts[key] = self.counts.get(key, 0) + len(token)
        self.inputs.paused = False


def _owner(matrix: Matrix) -> str:
    """The name of the module that holds the parameter of `matrix`."""
    return matrix.parameter_name.rpartition(".")[0]


def _judged(value: Tensor, what: str) -> Tensor:
    """`value` as (1, 1). Raises PrunerZeroError where it is not finite, as activations overflow."""
    if not value.isfinite().all():
        raise PrunerZeroError(
            f"{what} cannot be scored, since the outputs are not finite: choose --dtype bfloat16 "
            "or float32, or repair the checkpoint"
        )
    return value.reshape(1, 1)


@contextmanager
def _observing(block: nn.Module, matrices: Sequence[Matrix], sums: InputSums) -> Iterator[None]:
    modules = dict(block.named_modules(prefix=""))

    def see(names: Sequence[str | None], inputs: Tensor, output: Tensor) -> Tensor:
        for name, of_matrix in zip(names, [inputs] if len(names) == 1 else inputs, strict=True):
            if name is not None:
                sums.add(name, of_matrix)
        return output

    with ExitStack() as stack:
        # Also where no expert is observed, so that outputs do not depend on `matrices`.
        stack.enter_context(experts_one_by_one(block))
        for matrix in matrices:
            if matrix.expert is None:
                module = modules[matrix.local_name]
                handle = module.register_forward_pre_hook(
                    lambda _module, inputs, name=matrix.name: sums.add(name, inputs[0])
                )
                stack.callback(handle.remove)
        stacked = [matrix for matrix in matrices if matrix.expert is not None]
        if stacked:
            stack.enter_context(products_observed(block, stacked, see))
        yield
