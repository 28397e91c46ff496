"""`pruner-zero recover`: train what is left of a pruned model."""

import json
from typing import Any

from pruner_zero.cli import options
from pruner_zero.settings.recover_settings import RecoverSettings


@options.with_settings(RecoverSettings)
def recover(
    settings: dict[str, Any],
    output: options.OutputModel,
    overwrite: options.Overwrite = False,
    cache: options.Cache = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune the pruned MODEL, keeping its zeros. The same command continues a stopped run."""
    from pruner_zero.recovery.recover import recover as run

    result = run(output=output, overwrite=overwrite, cache=cache, config=config, **settings)
    summary = {"output": str(result.output), **result.cost.to_json(), **result.to_json()}
    print(json.dumps(summary) if as_json else result.caption())
