"""`pruner-zero recover`: fine-tuning after pruning that keeps every zero."""

import json
from typing import Any

from pruner_zero.cli import options
from pruner_zero.cli.from_settings import with_settings
from pruner_zero.cli.progress import progress
from pruner_zero.settings import RecoverSettings


@with_settings(RecoverSettings)
def recover(
    settings: dict[str, Any],
    output: options.OutputFolder,
    overwrite: options.Overwrite = False,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune the pruned MODEL, keeping its zeros. The same command continues a stopped run."""
    from pruner_zero.recovery import recover as run

    result = run(
        output=output, overwrite=overwrite, config=config, progress=progress(quiet), **settings
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
        return
    zeros = f", {result.sparsity_after:.2%} of the weights still zero" if result.has_zeros else ""
    print(
        f"{result.output}: validation loss {result.loss_before:.4f} before, "
        f"{result.loss_after:.4f} after {result.kept_step} steps{zeros} "
        f"({result.cost.seconds:.0f} s)"
    )
