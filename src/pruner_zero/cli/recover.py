"""`pruner-zero recover`: fine-tuning after pruning, every zero kept."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pruner_zero.cli import options
from pruner_zero.cli.progress import progress


def recover(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the result.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="The pruned model: the folder that prune wrote. Or named in --config.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help=f"Text to learn from; its last tenth is held out. {options.TEXT}"),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop after so many minutes. [default: 10, where no --steps are given]"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Stop after so many steps; such a run can be repeated.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="full: all weights that pruning left; lora: low-rank adapters under the mask, "
            "merged in the end. [default: full]"
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The dense model, to learn from its predictions too.")
    ] = None,
    teacher_share: Annotated[
        float | None, typer.Option(help="The teacher's share of the loss. [default: 0.5]")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="The highest one. [default: 2e-4 for full, 1e-3 for lora]"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="How the rate falls to 0: cosine or linear. [default: cosine]"),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(help="Share of the budget in which the rate rises. [default: 0.05]"),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's. [default: 0]")] = None,
    clip: Annotated[
        float | None, typer.Option(help="Longest gradient of a step. [default: 1]")
    ] = None,
    norms: Annotated[
        bool | None,
        typer.Option("--norms", help="Norms and biases learn too.", show_default=False),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of LoRA. [default: 16]")] = None,
    alpha: Annotated[float | None, typer.Option(help="Of LoRA. [default: 32]")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows in a step. [default: 2]")] = None,
    seqlen: Annotated[int | None, typer.Option(help="Tokens in a window. [default: 512]")] = None,
    validations: Annotated[
        int | None, typer.Option(help="How often the budget is judged. [default: 10]")
    ] = None,
    validation_windows: Annotated[
        int | None, typer.Option(help="Held-out windows to judge by. [default: 8]")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="best: the weights of the lowest validation loss; last. [default: best]"),
    ] = None,
    seed: options.Seed = None,
    dtype: options.DtypeText = None,
    device: options.DeviceText = None,
    compute_dtype: Annotated[
        str | None,
        typer.Option(
            help="auto, float32 or bfloat16: what matrices are multiplied in; weights learn in "
            "float32. [default: auto, bfloat16 where it is native]"
        ),
    ] = None,
    checkpoint_minutes: Annotated[
        float | None, typer.Option(help="Between two checkpoints. [default: 2]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is in the output folder.")
    ] = False,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune the pruned MODEL, its zeros kept. Interrupted, the same command goes on."""
    from pruner_zero.recovery import recover as run

    result = run(
        model,
        text=text,
        output=output,
        overwrite=overwrite,
        teacher=teacher,
        config=config,
        progress=progress(),
        minutes=minutes,
        steps=steps,
        mode=mode,
        teacher_share=teacher_share,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        norms=norms,
        rank=rank,
        alpha=alpha,
        batch=batch,
        seqlen=seqlen,
        validations=validations,
        validation_windows=validation_windows,
        keep=keep,
        seed=seed,
        dtype=dtype,
        device=device,
        compute_dtype=compute_dtype,
        checkpoint_minutes=checkpoint_minutes,
    )
    if as_json:
        summary = {
            "output": str(result.output),
            "sparsity": result.sparsity_after,
            "loss_before": result.loss_before,
            "loss_after": result.loss_after,
            "kept_step": result.kept_step,
            "steps": result.curve[-1].step,
            **result.cost.to_json(),
            "settings": result.settings.model_dump(mode="json"),
        }
        print(json.dumps(summary))
    else:
        print(
            f"{result.output}: validation loss {result.loss_before:.4f} before, "
            f"{result.loss_after:.4f} after {result.kept_step} steps, "
            f"{result.sparsity_after:.2%} of the weights still zero ({result.cost.seconds:.0f} s)"
        )
