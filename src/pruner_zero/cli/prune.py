"""`pruner-zero prune`: set a share of a model's weights to zero and save a folder that loads."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pruner_zero.cli import options
from pruner_zero.cli.from_settings import with_settings
from pruner_zero.cli.progress import progress
from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings import ModelSettings, PruneSettings, options_of, read_settings

if TYPE_CHECKING:
    from pruner_zero.pruning import MaskedResult, PruneResult

# The figures are of benchmarks/updates.md.
IMPROVEMENT = (
    "a plain mask: add --refine, or --refine --asymmetric --update exact, for a lower perplexity "
    "(SmolLM2-135M at 50 %, wanda: 56.5, refined 45.8, with all three 37.3)"
)
# Settings that can be combined with --mask.
_BESIDE_MASK = {"model", "dtype"}


@with_settings(PruneSettings)
def prune(
    settings: dict[str, Any],
    output: options.OutputFolder,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a pruned model: its zeros are written into MODEL, without metric or "
            "calibration.",
            show_default=False,
            rich_help_panel="What is pruned",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    cache: options.Cache = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune MODEL by a metric and save it. After an interruption, the same command continues."""
    from pruner_zero.pruning import prune as run
    from pruner_zero.pruning import prune_by_masks

    if mask is not None:
        beside = [options_of(PruneSettings)[name].flag for name in settings.keys() - _BESIDE_MASK]
        beside += ["--config"] if config else []
        if beside:
            raise PrunerZeroError(
                f"--mask decides which weights are pruned: leave out {min(beside)}"
            )
        if "model" not in settings:
            raise PrunerZeroError("give the MODEL that --mask is applied to")
        checked = read_settings(ModelSettings, settings)
        masked = prune_by_masks(
            checked.model, mask, output, overwrite=overwrite, dtype=checked.dtype
        )
        _print(masked, {"masks": str(mask)} if as_json else None)
        return
    result = run(
        output=output,
        overwrite=overwrite,
        cache=cache,
        config=config,
        progress=progress(quiet),
        **settings,
    )
    _print(result, {"settings": result.settings.model_dump(mode="json")} if as_json else None)
    changed = result.method.steps or result.method.distill or result.settings.structure
    if not changed and not quiet:
        print(IMPROVEMENT, file=sys.stderr)


def _print(result: "PruneResult | MaskedResult", origin: dict[str, Any] | None) -> None:
    """Print one line; with `origin`, a JSON value of which it is a part."""
    if origin is None:
        print(f"{result.output}: {result.share()} ({result.cost.seconds:.0f} s)")
        return
    summary = {"output": str(result.output), "sparsity": result.sparsity, **result.cost.to_json()}
    print(json.dumps({**summary, **origin}))
