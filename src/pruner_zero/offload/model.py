"""A language model that stays on disk: weights are read block by block, and saved from files."""

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruner_zero.calibration.calibrate import StatisticsStore
from pruner_zero.calibration.statistics import GradientStatistic, Kind, by_loss
from pruner_zero.choices import Dtype
from pruner_zero.devices import CPU, available_bytes, find_devices
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import is_gguf, writing
from pruner_zero.models.block_calls import (
    Activations,
    BlockCalls,
    check_block_calls,
    forwards_replaced,
    record_block_calls,
    shares_state,
    take_inputs,
)
from pruner_zero.models.block_sizes import copy_code
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import PREFIX, cast_weights, locate_model
from pruner_zero.models.matrices import Matrix, find_blocks, set_tensor
from pruner_zero.models.next_token import in_float32
from pruner_zero.models.quiet import quiet
from pruner_zero.models.reading import read_model
from pruner_zero.models.saving import copy_license
from pruner_zero.models.transformers_private import as_stored, built_like, copy_conversions
from pruner_zero.offload.gradients_on_disk import OffloadedGradients
from pruner_zero.offload.shards import Shards, link_shards


@dataclass(frozen=True, eq=False)
class OffloadedModel(LanguageModel):
    """A language model whose weights are in memory only within the contexts of its methods.

    Elsewhere, each parameter of `model` is a placeholder with its shape and dtype that takes no
    memory: all elements are one NaN, so that a use by mistake shows in the result. stored: the
    name in `shards` by the name of a parameter; tied parameters have the same. home: the device
    that weights are read to. loaded: the ids of the parameters that are in memory. checked: not
    empty once `check_block_calls` passed.
    """

    on_disk: ClassVar[bool] = True

    shards: Shards
    stored: dict[str, str]
    home: torch.device = CPU
    loaded: set[int] = field(default_factory=set, repr=False)
    checked: list[bool] = field(default_factory=list, repr=False)

    @property
    def device(self) -> torch.device:
        """The device that weights are read to."""
        return self.home

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters and buffers with their names, read one after the other."""
        for name, tensor in self.model.state_dict().items():
            if name in self.stored:
                [(_, tensor)] = self.shards.read([self.stored[name]])
            yield name, tensor

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """One decoder block, its weights in memory within the context; changes to them are lost.

        Within another context of the same block, its weights are left as they are.
        """
        block = find_blocks(self.model)[index]
        with self._loaded(block.parameters()):
            yield block

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Within the context, the parameters outside all blocks are in memory."""
        with self._loaded(self._outside()):
            yield

    def block_calls(self, windows: Tensor, hidden: Activations | None = None) -> BlockCalls:
        """What `record_block_calls` records of this model; the head is not read for it.

        Raises PrunerZeroError as `check_block_calls` does, and for families whose blocks pass on
        more than their output: that is in no file from which an interrupted run could continue.
        """
        head = self.model.get_output_embeddings()
        unused = set() if head is None else set(map(id, head.parameters()))
        unused -= set(map(id, self.model.get_input_embeddings().parameters()))
        needed = [parameter for parameter in self._outside() if id(parameter) not in unused]
        with self._loaded(needed), self._blocks_read_when_called():
            if not self.checked:
                check_block_calls(self.model, windows)
                self.checked.append(True)
            first = record_block_calls(self.model, windows[:1])
            if shares_state(first) or any(len(states) != 1 for states in first.hidden):
                raise PrunerZeroError(
                    f"blocks of the {self.model.config.model_type} family pass on more than their "
                    "output: leave out --offload"
                )
            return record_block_calls(self.model, windows, hidden)

    def changed(self, index: int, matrices: Sequence[Matrix]) -> dict[str, Tensor]:
        """All of a loaded block, under the names and in the layout in which it is saved."""
        del matrices
        return self._as_stored(_tensor_ids([find_blocks(self.model)[index]]))

    def rest(self) -> dict[str, Tensor]:
        """The tensors outside all blocks, as from `changed`; used within the `outside` context."""
        inside = _tensor_ids(find_blocks(self.model))
        return self._as_stored(_tensor_ids([self.model]) - inside)

    def collect_gradients(
        self, windows: Tensor, statistics: Mapping[Kind, GradientStatistic], store: StatisticsStore
    ) -> bool:
        for group in by_loss(statistics):
            passage = OffloadedGradients(self, windows, group, store)
            store.commit(passage.run())
            passage.journal.discard()
        return True

    def save_blocks(
        self, blocks: Sequence[Path], folder: Path, config: PreTrainedConfig | None = None
    ) -> None:
        model, config = self.model, config or self.model.config
        with writing(folder), quiet():
            folder.mkdir(parents=True, exist_ok=True)
            with self.outside():
                link_shards(blocks, folder, self.rest())
            config.dtype = str(model.dtype).removeprefix("torch.")
            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
            copy_code(config, folder)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
            copy_license(model, folder)

    @contextmanager
    def whole(self, blocks: Sequence[Path], folder: Path) -> Iterator["OffloadedModel"]:
        """The model with its blocks from the files `blocks`, all in memory within the context.

        It is saved to the new `folder` and read from there.
        """
        self.save_blocks(blocks, folder)
        model = load_offloaded(folder, device=str(self.home))
        with model._loaded(model.model.parameters()):
            yield model

    def release(self) -> None:
        give_back()

    def fits(self, dtype: torch.dtype) -> bool:
        numbers = sum(parameter.numel() for parameter in self.model.parameters())
        available = available_bytes(self.home)
        return available is None or 1.25 * numbers * dtype.itemsize < available

    @contextmanager
    def in_memory(self, dtype: torch.dtype) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.outside())
            for index, block in enumerate(find_blocks(self.model)):
                stack.enter_context(self.block(index))
                cast_weights(block, dtype)
            cast_weights(self.model, dtype)
            yield

    def _as_stored(self, chosen: set[int]) -> dict[str, Tensor]:
        # Of tied parameters, the first name alone, as transformers saves them.
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        tensors = {name: tensor.data for name, tensor in named if id(tensor) in chosen}
        return as_stored(self.model, tensors)

    def _blocks_read_when_called(self) -> AbstractContextManager[None]:
        """Within the context, the weights of each block are in memory while it is called."""
        blocks = find_blocks(self.model)

        def forward(index: int, before: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with self.block(index) as block, in_float32(block):
                # A caller may have taken them to where the placeholders of the block are.
                taken, named = take_inputs(block, args, kwargs)
                return before(*taken, **named)

        return forwards_replaced(
            blocks, lambda index: partial(forward, index, blocks[index].forward)
        )

    def _outside(self) -> list[nn.Parameter]:
        inside = _tensor_ids(find_blocks(self.model))
        return [parameter for parameter in self.model.parameters() if id(parameter) not in inside]

    @contextmanager
    def _loaded(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Within the context, `parameters` hold their weights; afterwards placeholders."""
        names = {id(held): self.stored[name] for name, held in self.model.named_parameters()}
        absent = [parameter for parameter in parameters if id(parameter) not in self.loaded]
        wanted = {names[id(parameter)]: parameter for parameter in absent}
        placeholders = [(parameter, parameter.data) for parameter in absent]
        self.loaded.update(map(id, absent))
        del absent
        try:
            for name, tensor in self.shards.read(wanted):
                wanted[name].data = tensor.to(self.home)
            yield
        finally:
            for parameter, empty in placeholders:
                parameter.data = empty
                parameter.grad = None
                self.loaded.discard(id(parameter))
            wanted.clear()
            give_back()


def load_offloaded(
    source: str | Path,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> OffloadedModel:
    """The model `source` with its weights left on disk, to be read block by block.

    device: where a block is read to, the first that `find_devices` gives. The rest is as in
    `load_model`. Raises PrunerZeroError as that does, and for a GGUF file or a quantized
    checkpoint, whose weights cannot be read one by one.
    """
    home, name = find_devices(device).first, str(source)
    path = locate_model(name)
    if is_gguf(path):
        instead = "give the folder of a model saved as safetensors"
        if name.startswith(PREFIX):
            instead = "set $PRUNER_ZERO_CACHE to a folder that its copy can be written to"
        raise PrunerZeroError(
            f"{name} is one GGUF file, which --offload cannot read block by block: {instead}, or "
            "leave out --offload"
        )
    with quiet():
        checked = read_model(path, name, dtype, weights=False)
        bare = checked.model
        shards = Shards(path, bare)
        with init_empty_weights(include_buffers=False):
            model = built_like(bare)
    model.generation_config = bare.generation_config
    copy_conversions(bare, model)
    stored = _place(model, bare, shards)
    for path, buffer in list(model.named_buffers(remove_duplicate=False)):
        set_tensor(model, path, buffer.to(home))
    return OffloadedModel(model.eval(), checked.tokenizer, name, shards, stored, home)


def _place(model: PreTrainedModel, bare: PreTrainedModel, shards: Shards) -> dict[str, str]:
    """Set placeholders and the saved buffers in `model`; return the names in `shards` by name."""
    tied: dict[int, list[str]] = {}
    for name, parameter in bare.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    stored = {}
    for names in tied.values():
        like = bare.get_parameter(names[0])
        empty = nn.Parameter(placeholder(like), requires_grad=like.requires_grad)
        present = next(name for name in names if name in shards)
        for name in names:
            set_tensor(model, name, empty)
            stored[name] = present
    for name, buffer in model.named_buffers():
        if name in shards:
            [(_, buffer.data)] = shards.read([name])
    return stored


def give_back() -> None:
    """Return freed memory to the system; glibc's allocator keeps blocks below 32 MiB otherwise."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _tensor_ids(modules: Iterable[nn.Module]) -> set[int]:
    """The ids of all parameters and buffers of `modules`."""
    return {
        id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())
    }


def placeholder(like: Tensor) -> Tensor:
    """A tensor of the dtype and shape of `like` that takes no memory."""
    return torch.full((), torch.nan, dtype=like.dtype).expand(like.shape)
