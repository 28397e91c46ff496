"""One budget: units of every kind compete, and those that cost the least per parameter go."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.choices import SOLD, Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_sizes import COUNTS, block_sizes, set_block_sizes
from pruner_zero.models.couplings import Coupling, find_couplings
from pruner_zero.models.gguf_source import GgufSource, why_alike
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import size_of
from pruner_zero.structure.experts import has_experts
from pruner_zero.structure.removal import most_parameters, without_weights
from pruner_zero.structure.selling import Good, sell
from pruner_zero.structure.units import WORDS, CoupledUnits, totals_of
from pruner_zero.structure.vocabulary import Vocabulary
from pruner_zero.text.token_windows import Windows
from pruner_zero.text.translation import Translation

# The families whose blocks were saved and loaded with sizes that differ.
_TRIED = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"})
# The least share of the channels of a block that stays.
_LEAST = 0.25


@dataclass(frozen=True)
class Budget(CoupledUnits):
    """Units of several kinds, in numbers that differ between blocks, by their price per parameter.

    The price of a channel or a head is the sum of the squared scores of its columns: with the
    metric `fisher`, by how many nats per token the predictions diverge without it. That of a token
    is how often it is expected, times what its pieces cost more.

    kinds: of the units that compete; those that the model has where `every`. equal: whether all
    blocks lose the same number of a kind. vocabulary: of the tokens that go.
    price: of all units that go, estimated, in nats per token.
    Source: prices of units by Fisher information, and a budget of cost for them, Kwon et al. 2022
    (2204.09656) for masks of one encoder; widths that differ between blocks, FLAP (An et al. 2024,
    2312.11983). Here tokens stand in the same budget.
    """

    unit: str = "units"
    kinds: tuple[Structure, ...] = SOLD
    every: bool = False
    equal: bool = False
    vocabulary: Vocabulary | None = field(default=None, repr=False)
    kept_tokens: tuple[int, ...] = field(default=(), repr=False)
    price: float | None = None

    # Their prices need a backward pass.
    compares = 2**14

    def fit(self, language_model: LanguageModel) -> Self:
        """As for `Cut`. Raises PrunerZeroError where the model lacks a kind that was asked for."""
        model = language_model.model
        couplings: list[Coupling] = []
        vocabulary, kinds = None, list(self.kinds)
        for kind in self.kinds:
            try:
                if kind == "vocabulary":
                    vocabulary = Vocabulary(0.0).fit(language_model)
                else:
                    couplings += find_couplings(model, kind)
            except PrunerZeroError:
                if not self.every or kinds == [kind]:
                    raise
                kinds.remove(kind)
        if not couplings:
            raise PrunerZeroError(
                f"the {model.config.model_type} family has no channels and heads that could "
                "compete: choose --structure vocabulary"
                f"{', experts' * has_experts(model)} or blocks"
            )
        whole = (coupling.count for coupling in couplings)
        fitted = replace(
            self,
            kinds=tuple(kinds),
            couplings=tuple(couplings),
            kept=tuple(whole),
            vocabulary=vocabulary,
        )
        dense, asked = size_of(model)[0], self.parameters
        if asked is None:
            units = replace(fitted, kept=(0,) * len(couplings)).size(model)[0]
            asked = 1 - self.sparsity * (dense - units) / dense
        goods = fitted._goods(model)
        free = sum(good.free for good in goods)
        least = min(good.first * good.parameters for good in goods)
        if vocabulary:
            free += vocabulary.each(model) * (vocabulary.rows(model) - 1)
        reachable = dense - free, dense - least
        most = most_parameters(model, asked, reachable, fitted._words(model))
        return replace(fitted, parameters=asked, sparsity=1 - most / dense)

    def decide(
        self, language_model: LanguageModel, windows: Windows, scores: Mapping[str, Tensor]
    ) -> Self:
        """Sell units until the model has as few parameters as asked for.

        Raises PrunerZeroError where calibration reached no unit of a block, and where too many
        would have to go.
        """
        model = language_model.model
        goods = self._goods(model, scores)
        vocabulary = self.vocabulary
        if vocabulary:
            vocabulary, tokens_on_offer = vocabulary.offer(language_model, windows)
            goods.append(tokens_on_offer)
        dense = size_of(model)[0]
        assert self.parameters is not None
        reachable = dense - sum(good.free for good in goods), dense
        most = most_parameters(model, self.parameters, reachable, self._words(model))
        gone, price = sell(goods, dense - most)
        number = {name: at for at, group in enumerate(self._groups()) for name in group}
        kept = tuple(c.count - gone[number[c]] for c in self.couplings)
        smaller = replace(self, kept=kept, price=price)
        smaller.check_described(model)
        if vocabulary and gone[-1]:
            stay = vocabulary.rows(model) - gone[-1]
            cut = replace(vocabulary, tokens=stay).decide(language_model, windows, {})
            smaller = replace(smaller, vocabulary=cut, kept_tokens=cut.kept_tokens)
        return replace(smaller, sparsity=1 - smaller.size(model)[0] / dense)

    def _words(self, model: PreTrainedModel) -> str:
        """The kinds of units, for a message."""
        others = " (experts go by --structure experts)" * has_experts(model)
        return " and ".join(self.kinds) + others

    def _groups(self) -> list[list[Coupling]]:
        """The couplings of which the same number of units goes."""
        if not self.equal:
            return [[coupling] for coupling in self.couplings]
        kinds = dict.fromkeys(coupling.structure for coupling in self.couplings)
        return [[c for c in self.couplings if c.structure == kind] for kind in kinds]

    def _goods(self, model: Any, scores: Mapping[str, Tensor] | None = None) -> list[Good]:
        """The units of each group that may go; their prices are 0 without `scores`."""
        goods = []
        for group in self._groups():
            count, channels = group[0].count, group[0].structure == "channels"
            step = self.multiple if channels else 1
            least = max(step, step * round(count * _LEAST / step)) if channels else 1
            prices = torch.zeros(count, dtype=torch.float64)
            if scores is not None:
                prices = torch.stack([_prices(coupling, scores) for coupling in group]).sum(0)
            parameters = sum(
                parameter.numel() // count
                for coupling in group
                for _, parameter, _ in coupling.tensors(model)
            )
            cheapest = prices[: max(0, count - least)]
            goods.append(Good(cheapest, parameters, count % step or step, step))
        return goods

    @property
    def reads(self) -> int:
        return self.vocabulary.reads if self.vocabulary else 0

    @property
    def translation(self) -> Translation | None:
        return self.vocabulary.translation if self.kept_tokens and self.vocabulary else None

    def lost(self, model: PreTrainedModel) -> Iterator[tuple[nn.Parameter, int]]:
        yield from super().lost(model)
        if self.kept_tokens and self.vocabulary:
            yield from self.vocabulary.lost(model)

    def cut(self, model: PreTrainedModel) -> None:
        super().cut(model)
        if self.kept_tokens and self.vocabulary:
            self.vocabulary.cut(model)

    def describe(self) -> dict[str, Any]:
        """The units that stay in each block by kind, the tokens, and the estimated loss."""
        kept: dict[str, dict[str, int]] = {}
        for coupling, stay in zip(self.couplings, self.kept, strict=True):
            kept.setdefault(coupling.structure, {})[str(coupling.block)] = stay
        tokens = {"tokens": len(self.kept_tokens)} if self.kept_tokens else {}
        return {"kept": kept, **tokens, "price": self.price}

    def __str__(self) -> str:
        share = f"{100 * self.sparsity:.3g}% of the parameters"
        if self.price is None:
            return f"{share}, of {', '.join(self.kinds)}"
        parts = []
        for kind in self.kinds:
            mine = [
                (coupling.count, stay)
                for coupling, stay in zip(self.couplings, self.kept, strict=True)
                if coupling.structure == kind
            ]
            if mine:
                left = sum(stay for _, stay in mine) / sum(count for count, _ in mine)
                parts.append(f"{100 * (1 - left):.3g}% of the {WORDS[kind]}")
            elif self.kept_tokens:
                parts.append(str(self.vocabulary))
        return (
            f"{share}: {', '.join(parts)}, which cost about {self.price:.2f} nats per token before "
            "the rest is trained"
        )


def _prices(coupling: Coupling, scores: Mapping[str, Tensor]) -> Tensor:
    """The prices of the units of `coupling`, ascending."""
    if coupling.consumer not in scores:
        raise PrunerZeroError(
            f"calibration left statistics of {coupling.consumer} zero: give more text"
        )
    return totals_of(scores[coupling.consumer], coupling).cpu().sort()[0]


def why_equal(model: PreTrainedModel, kinds: Sequence[Structure], source: GgufSource | None) -> str:
    """Why blocks of `model` cannot have their own numbers of `kinds`; empty where they can.

    source: the file after which a GGUF file is made; None for a folder. A model that the
    configuration of such blocks describes is built without its weights.
    """
    family, fields = model.config.model_type, [f for k in kinds for f in COUNTS.get(k, ())]
    if source and (why := why_alike(source, fields)):
        return why
    config = deepcopy(model.config)
    sizes = block_sizes(config)
    tried = family in _TRIED and all(name in sizes[0] for name in fields)
    if tried:
        sizes[0].update({name: 2 * sizes[0][name] for name in fields})
        set_block_sizes(config, sizes)
    if fields and (not tried or without_weights(model, config) is None):
        return f"blocks of the {family} family cannot have their own numbers of units"
    return ""
