"""`pruner-zero evaluate`: the perplexity of a model."""

import json
from typing import Annotated

import typer

from pruner_zero.cli import options
from pruner_zero.cli.progress import progress


def evaluate(
    model: options.Model,
    text: Annotated[str, typer.Option(help=options.TEXT)],
    seqlen: Annotated[int, typer.Option(help="Tokens in a window.")] = 1024,
    windows: Annotated[
        int | None, typer.Option(help="Only the first windows. [default: all]", show_default=False)
    ] = None,
    dtype: options.DtypeText = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure the perplexity of MODEL per token over non-overlapping windows of a text."""
    from pruner_zero.evaluation import evaluate as run
    from pruner_zero.models import check_dtype

    result = run(
        model,
        text,
        seqlen=seqlen,
        windows=windows,
        dtype=check_dtype(dtype or "auto"),
        progress=progress(),
    )
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        described = result.text
        print(
            f"perplexity {result.perplexity:.2f} per token on {described['windows']} windows of "
            f"{described['seqlen']} tokens of {described['text']} "
            f"({described['joined']}, sha256 {described['text_sha256'][:12]})"
        )
