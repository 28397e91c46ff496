"""`pruner-zero prune`: half of the weights gone, a folder that loads anywhere."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pruner_zero.cli import options
from pruner_zero.cli.progress import progress
from pruner_zero.errors import PrunerZeroError

if TYPE_CHECKING:
    from pruner_zero.pruning import MaskedResult, PruneResult


def prune(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the result.", show_default=False)
    ],
    model: options.ModelOrConfig = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="A name, an expression, or a .json tree file, as "
            "METRIC[@SCOPE][@ALLOCATION][+STEPS]; `sparsegpt` is the classic. [default: wanda]",
            show_default=False,
        ),
    ] = None,
    calibration: options.Calibration = None,
    sparsity: options.Sparsity = None,
    pattern: options.PatternText = None,
    scope: options.ScopeText = None,
    refine: options.Refine = None,
    update: options.UpdateText = None,
    asymmetric: options.Asymmetric = None,
    allocation: options.AllocationText = None,
    windows: options.Windows = None,
    seqlen: options.Seqlen = None,
    seed: options.Seed = None,
    mode: options.ModeText = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    dtype: options.DtypeText = None,
    device: options.DeviceText = None,
    gradient_seqlen: options.GradientSeqlen = None,
    damping: options.Damping = None,
    offload: Annotated[
        bool | None,
        typer.Option(
            "--offload",
            help="Leave the model on disk and read it block by block.",
            show_default=False,
        ),
    ] = None,
    save_mask: Annotated[
        bool | None,
        typer.Option(
            "--save-mask",
            help="Also save which weights were kept, a bit each, to `masks` in the output.",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Folder of masks that --save-mask wrote: apply them, without metric or "
            "calibration.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is in the output folder.")
    ] = False,
    cache: options.Cache = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Prune MODEL by a metric and save it. Interrupted, the same command goes on."""
    from pruner_zero.pruning import prune as run

    settings: dict[str, Any] = {
        "sparsity": sparsity,
        "pattern": pattern,
        "scope": scope,
        "refine": refine,
        "update": update,
        "asymmetric": asymmetric,
        "allocation": allocation,
        "windows": windows,
        "seqlen": seqlen,
        "seed": seed,
        "mode": mode,
        "include": include,
        "exclude": exclude,
        "dtype": dtype,
        "device": device,
        "gradient_seqlen": gradient_seqlen,
        "damping": damping,
        "offload": offload,
        "save_mask": save_mask,
    }
    if mask is not None:
        beside = {"metric": metric, "calibration": calibration, "config": config, **settings}
        _apply(mask, model, output, overwrite, beside, as_json)
        return
    result = run(
        model,
        metric,
        calibration=calibration,
        output=output,
        overwrite=overwrite,
        cache=cache,
        config=config,
        progress=progress(),
        **settings,
    )
    _print(result, {"settings": result.settings.model_dump(mode="json")} if as_json else None)


def _apply(
    mask: Path,
    model: str | None,
    output: Path,
    overwrite: bool,
    beside: dict[str, Any],
    as_json: bool,
) -> None:
    """Prune by masks; `beside` are the options that then say nothing."""
    from pruner_zero.models import check_dtype
    from pruner_zero.pruning import prune_by_masks

    dtype = check_dtype(beside.pop("dtype") or "auto")
    said = next((name for name, value in beside.items() if value not in (None, [])), None)
    if said is not None:
        raise PrunerZeroError(f"--mask says which weights go: leave out --{said.replace('_', '-')}")
    if model is None:
        raise PrunerZeroError("give the MODEL that --mask is applied to")
    result = prune_by_masks(model, mask, output, overwrite=overwrite, dtype=dtype)
    _print(result, {"masks": str(mask)} if as_json else None)


def _print(result: "PruneResult | MaskedResult", origin: dict[str, Any] | None) -> None:
    """One line, or with its origin a JSON value."""
    if origin is None:
        print(
            f"{result.output}: {result.sparsity:.2%} of the weights of {len(result.records)} "
            f"matrices are zero ({result.cost.seconds:.0f} s)"
        )
        return
    summary = {
        "output": str(result.output),
        "sparsity": result.sparsity,
        **result.cost.to_json(),
    }
    print(json.dumps({**summary, **origin}))
