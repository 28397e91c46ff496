"""`pruner-zero prune`: prune a model."""

import json
import sys
from typing import Any

from pruner_zero.cli import options
from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.prune_settings import PruneSettings

IMPROVEMENT = (
    "a plain mask: leave out --metric, or give the .json file of a metric that a search found, for "
    "a better model (docs/choosing.md)"
)


@options.with_settings(PruneSettings)
def prune(
    settings: dict[str, Any],
    output: options.OutputUnlessDry = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    cache: options.Cache = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Prune MODEL by a metric and save it. After an interruption, the same command continues."""
    from pruner_zero.pruning.prune import plan
    from pruner_zero.pruning.prune import prune as run

    if dry_run:
        made = plan(output=output, overwrite=overwrite, config=config, **settings)
        shapes = [
            f"  {name}: {len(group)} of {group[0][0]} x {group[0][1]}"
            for name, group in made.shapes.items()
        ]
        lines = [*made.lines(), *(["matrices:", *shapes] if shapes else [])]
        print(json.dumps(made.to_json()) if as_json else "\n".join(lines))
        return
    if output is None:
        raise PrunerZeroError("give the place of the result as --output, or add --dry-run")
    result = run(output=output, overwrite=overwrite, cache=cache, config=config, **settings)
    if as_json:
        summary = {"output": str(result.output), "sparsity": result.sparsity}
        settings = result.settings.model_dump(mode="json")
        print(json.dumps({**summary, **result.cost.to_json(), "settings": settings}))
    else:
        print(f"{result.output}: {result.share()} ({result.cost.seconds:.0f} s)")
    recipe = result.recipe
    changed = recipe.update or recipe.reconstruct or recipe.distill or recipe.cut
    if not changed:
        print(IMPROVEMENT, file=sys.stderr)
