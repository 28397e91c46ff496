"""The result of pruning: settings, records, and the files written beside the model."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruner_zero.files import write_atomic, write_json
from pruner_zero.metric.metric import Metric
from pruner_zero.models.block_sizes import has_code
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.saving import save_model
from pruner_zero.provenance import Cost
from pruner_zero.pruning.matrix import MatrixRecord, PrunedMatrices, total_sparsity
from pruner_zero.pruning.race import Entry
from pruner_zero.pruning.recipe import Recipe
from pruner_zero.result_folder import (
    NOT_RETRAINED,
    build_folder,
    check_output,
    license_of,
    title_of,
)
from pruner_zero.settings.prune_settings import PruneSettings
from pruner_zero.text.scripts import describe_shares
from pruner_zero.training.train import Point


@dataclass(frozen=True, repr=False)
class PruneResult(PrunedMatrices):
    """A pruned model, and everything that is needed to repeat the run.

    `parameters` are those of the dense and of the pruned model, fewer where `settings.structure`
    names units that were removed; `language_model` is then the smaller model, and the records count
    the weights that were set to zero and then cut out. `calibration` describes the windows, empty
    where there were none, `cost` the wall time and memory of this process; `distillation` is the
    learning curve of the training after the mask, empty where there was none; `output` is the
    folder, None where nothing was saved; `raced` are the masks of the race, the best first.
    """

    shown = ("name", "shape", "zeros", "sparsity", "damping", "note")

    language_model: LanguageModel
    settings: PruneSettings
    recipe: Recipe
    mode: str
    records: Sequence[MatrixRecord]
    parameters: tuple[int, int]
    calibration: dict[str, Any]
    provenance: dict[str, Any]
    cost: Cost
    distillation: Sequence[Point] = ()
    output: Path | None = None
    raced: Sequence[Entry] = ()

    def caption(self) -> str:
        """How much of the model is zero or removed, by which metric, and where it is."""
        where = f"{self.output}: " if self.output else ""
        return f"{where}{self.share()}, by {self.chosen_by}"

    @property
    def chosen_by(self) -> str:
        """The metric, or the rule that chose the units instead."""
        rule = self.recipe.cut.rule if self.recipe.cut else None
        return rule.partition(",")[0] if rule else str(self.metric)

    @property
    def metric(self) -> Metric:
        """The metric of the masks. Raises ValueError where a rule chose the units."""
        if self.recipe.metric is None:
            raise ValueError("no metric chose the units")
        return self.recipe.metric

    def share(self) -> str:
        """How much of the model is zero or removed, as a sentence without its stop."""
        if not self.recipe.cut:
            return super().share()
        before, after = self.parameters
        gone = f"{self.sparsity:.2%} of the weights of {len(self.records)} matrices"
        if not self.records:
            gone = str(self.recipe.removed())
        return f"{gone} are removed, {after:,} of {before:,} parameters are left"

    @property
    def sparsity(self) -> float:
        """The share of zeros over all pruned matrices; that of the units where there are none."""
        return super().sparsity if self.records else self.recipe.removed().sparsity

    def to_json(self) -> dict[str, Any]:
        """All but the cost, as JSON values: the same for the same run, interrupted or not.

        `prune` with these settings gives this result again.
        """
        recipe, given = self.recipe, self.settings.model_dump(mode="json")
        return {
            "settings": {name: value for name, value in given.items() if value is not None},
            "expression": None if recipe.metric is None else str(recipe.metric.expression),
            "mode": self.mode,
            **(recipe.cut.describe() if recipe.cut else {}),
            **recipe.to_json(),
            "sparsity": round(self.sparsity, 6),
            "parameters": list(self.parameters),
            "calibration": self.calibration,
            "distillation": [
                {"step": point.step, "validation_loss": point.validation_loss}
                for point in self.distillation
            ],
            "race": [entry.to_json() for entry in self.raced],
            "provenance": self.provenance,
            "matrices": [record.to_json() for record in self.records],
        }

    def save(self, output: str | Path, overwrite: bool = False) -> Path:
        """Save the model and what describes it to the folder `output`, as `prune` does.

        For a model that was pruned in memory, without an output. Raises PrunerZeroError as `prune`
        does for an output.
        """

        def write(_result: object, _journal: object, staged: Path) -> Cost:
            save_model(self.language_model, staged)
            self.write(staged)
            return self.cost

        folder = check_output(output, overwrite, [self.settings.model])
        build_folder(folder, overwrite, "block", {}, lambda _: self, write)
        return folder

    def write(self, folder: Path) -> None:
        """Write pruning.json, the model card README.md and a metric's metric.json to `folder`."""
        if self.recipe.metric:
            tree = self.recipe.metric.to_tree()
            if self.recipe.pattern and self.recipe.pattern.scope:
                tree["scope"] = self.recipe.pattern.scope
            write_json(folder / "metric.json", tree)
        write_atomic(
            folder / "pruning.json", json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        )
        write_atomic(folder / "README.md", model_card(self))


def model_card(result: PruneResult) -> str:
    """The model card of a pruned model, in Markdown with the hub's header."""
    settings, recipe = result.settings, result.recipe
    # base_model must be a name on the hub, so a local path is left out.
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", settings.model) and not Path(settings.model).exists()
    head = f"base_model: {settings.model}\n" if on_hub else ""
    head += license_of(result.language_model.model.name_or_path)
    title, kind, recorded = f"pruned to {result.sparsity:.1%} zeros", "zeros", "zeros"
    stored = (
        "The weights are stored densely with exact zeros: the model loads with plain "
        "`AutoModelForCausalLM.from_pretrained`, and is as large and as fast as before unless your "
        "runtime makes use of the zeros."
    )
    if recipe.cut:
        before, after = result.parameters
        title, kind, recorded = (
            f"{1 - after / before:.1%} of its parameters removed",
            "removed",
            "share",
        )
        stored = (
            f"It has {after:,} of {before:,} parameters: a smaller model of the same kind, which "
            "loads with plain `AutoModelForCausalLM.from_pretrained`."
        )
        if has_code(result.language_model.model.config):
            stored = (
                f"It has {after:,} of {before:,} parameters, and its blocks have different sizes: "
                "it loads with `AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True)`, "
                "by the few lines of code beside the weights."
            )
    by_name: dict[str, list[MatrixRecord]] = defaultdict(list)
    for record in result.records:
        by_name[record.local_name].append(record)
    rows = [
        f"| `{name}` | {len(records)} | {total_sparsity(records):.2%} |"
        for name, records in by_name.items()
    ]
    units = _units(recipe.cut.describe()) if recipe.cut else []
    table = [f"| matrices | count | {kind} |", "|---|---|---|", *rows, ""] if rows else []
    remarks = [f"- `{record.name}`: {record.note}" for record in result.records if record.note]
    calibrated = "The metric looks at the weights alone: there was no calibration."
    if result.calibration:
        calibrated = f"Calibrated on {_windows(result.calibration)}, seed {settings.seed}."
        sources = result.calibration.get("sources") or [result.calibration]
        calibrated += "".join(map(_written, sources))
    parts = (
        f"Settings, versions and the {recorded} of every matrix"
        if rows
        else "Settings and versions"
    )
    lines = [
        *("---", f"{head}library_name: transformers", "tags: [pruned, pruner-zero]", "---", ""),
        *(f"# {title_of(settings.model)}, {title}", "", stored, ""),
        *("## What was done", "", *(f"- {line}" for line in recipe.lines()), ""),
        *(_outcome(result), "", *units, *table),
        *(["## Remarks", "", *remarks, ""] if remarks else []),
        *("## Provenance", ""),
        f"{calibrated} {parts} are in `pruning.json`"
        + (", the metric in `metric.json`." if recipe.metric else "."),
    ]
    return "\n".join(lines) + "\n"


def _units(described: Mapping[str, Any]) -> list[str]:
    """A table of the units that stay in each block, where their numbers differ."""
    kept: Mapping[str, Mapping[str, int]] = described.get("kept", {})
    if not kept:
        return []
    blocks = sorted({block for of_kind in kept.values() for block in of_kind}, key=int)
    rows = [
        f"| {block} | {' | '.join(str(of_kind.get(block, '')) for of_kind in kept.values())} |"
        for block in blocks
    ]
    head = f"| block | {' | '.join(f'{kind} left' for kind in kept)} |"
    return [head, "|---" * (1 + len(kept)) + "|", *rows, ""]


def _outcome(result: PruneResult) -> str:
    """What the race of masks and the distillation measured."""
    sentences = []
    if result.raced:
        shown = ", ".join(f"`{e.metric}` ({e.pattern}) {e.divergence:.3f}" for e in result.raced)
        sentences.append(
            "The mask left the least divergence from the dense model on the last windows of the "
            f"calibration, in nats per token: {shown}."
        )
    if result.distillation:
        first, last = result.distillation[0], result.distillation[-1]
        sentences.append(
            "In the training of the whole, the divergence from the dense model's predictions on "
            f"windows kept apart went from {first.validation_loss:.3f} to "
            f"{last.validation_loss:.3f} nats per token"
            + (
                ", so that the weights before it were kept."
                if last.validation_loss > first.validation_loss
                else "."
            )
        )
    elif not result.recipe.reconstruct:
        sentences.append(NOT_RETRAINED)
    return " ".join(sentences)


def _windows(described: Mapping[str, Any]) -> str:
    """Windows in words, as `Windows.describe` has them."""
    counted = f"{described['windows']} windows of {described['seqlen']} tokens"
    sources = [f"{source['windows']} {_origin(source)}" for source in described.get("sources", ())]
    return f"{counted}: {', '.join(sources)}" if sources else f"{counted} {_origin(described)}"


def _written(described: Mapping[str, Any]) -> str:
    """What text that the dense model wrote is like; nothing for other text."""
    if "sample" not in described:
        return ""
    sample = described["sample"].replace("`", "'")
    scripts = describe_shares(described["scripts"])
    return (
        f" The text that the dense model wrote begins `{sample}` "
        f"(letters: {scripts}; {described['repeated']:.0%} of it repeats itself)."
    )


def _origin(described: Mapping[str, Any]) -> str:
    if described["selection"] == "sampled":
        return "that the dense model wrote itself"
    return f"of `{described['text']}`"
