"""`pruner-zero prune`: set a share of a model's weights to zero and save a folder that loads."""

import json
import sys
from typing import Any

from pruner_zero.cli import options
from pruner_zero.cli.from_settings import with_settings
from pruner_zero.cli.terminal import progress
from pruner_zero.progress import reported_to
from pruner_zero.settings.prune import PruneSettings

# The figures are of benchmarks/updates.md.
IMPROVEMENT = (
    "a plain mask: add --refine, or --refine --asymmetric --update exact, for a lower perplexity "
    "(SmolLM2-135M at 50 %, wanda: 56.5, refined 45.8, with all three 37.3)"
)


@with_settings(PruneSettings)
def prune(
    settings: dict[str, Any],
    output: options.OutputFolder,
    overwrite: options.Overwrite = False,
    cache: options.Cache = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune MODEL by a metric and save it. After an interruption, the same command continues."""
    from pruner_zero.pruning.prune import prune as run

    with reported_to(progress(quiet)):
        result = run(
            output=output,
            overwrite=overwrite,
            cache=cache,
            config=config,
            **settings,
        )
    if as_json:
        summary = {"output": str(result.output), "sparsity": result.sparsity}
        settings = result.settings.model_dump(mode="json")
        print(json.dumps({**summary, **result.cost.to_json(), "settings": settings}))
    else:
        print(f"{result.output}: {result.share()} ({result.cost.seconds:.0f} s)")
    changed = result.method.steps or result.method.distill or result.settings.structure
    if not changed and not quiet:
        print(IMPROVEMENT, file=sys.stderr)
