"""`pruner-zero prune`: half of the weights gone, a folder that loads anywhere."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pruner_zero.cli import options
from pruner_zero.cli.progress import progress


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
    gradient_norm: options.GradientNormText = None,
    damping: options.Damping = None,
    calibration_workers: options.CalibrationWorkers = None,
    pruning_workers: options.PruningWorkers = None,
    ray_address: options.RayAddress = None,
    ray_resources: options.RayResources = None,
    offload: Annotated[
        bool | None,
        typer.Option(
            "--offload",
            help="Leave the model on disk and read it block by block.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="What an offloaded run may take, such as 6GiB; its plan is printed.",
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

    result = run(
        model,
        metric,
        calibration=calibration,
        output=output,
        overwrite=overwrite,
        cache=cache,
        config=config,
        progress=progress(),
        sparsity=sparsity,
        pattern=pattern,
        scope=scope,
        refine=refine,
        update=update,
        asymmetric=asymmetric,
        allocation=allocation,
        windows=windows,
        seqlen=seqlen,
        seed=seed,
        mode=mode,
        include=include,
        exclude=exclude,
        dtype=dtype,
        gradient_norm=gradient_norm,
        damping=damping,
        calibration_workers=calibration_workers,
        pruning_workers=pruning_workers,
        ray_address=ray_address,
        ray_resources=ray_resources,
        offload=offload,
        memory=memory,
    )
    if as_json:
        summary = {
            "output": str(result.output),
            "sparsity": result.sparsity,
            "seconds": result.cost.seconds,
            "peak_rss_bytes": result.cost.peak_rss_bytes,
            "settings": result.settings.model_dump(mode="json"),
        }
        print(json.dumps(summary))
    else:
        print(
            f"{result.output}: {result.sparsity:.2%} of the weights of {len(result.records)} "
            f"matrices are zero ({result.cost.seconds:.0f} s)"
        )
