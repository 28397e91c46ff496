"""Settings of all commands that load a model: the model, its dtype and its device."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from pruner_zero.choices import Dtype
from pruner_zero.settings.base import Cli, Settings

TEXT_HELP = (
    "a corpus (wikitext2, c4, ptb, builtin:pydoc) or a .txt, .raw, .md, .jsonl or .parquet file."
)


def _check_device(asked: str) -> str:
    # Imported here, because it asks torch what this machine has.
    from pruner_zero.devices import find_devices

    find_devices(asked)
    return asked


# A device that this machine has.
Device = Annotated[str, AfterValidator(_check_device), Cli(metavar="DEVICE")]


class ModelSettings(Settings):
    """Which model, and how it is loaded."""

    panel: ClassVar[str] = "Machine"

    model: Annotated[str, Cli(panel="Options", metavar="MODEL", argument=True)] = Field(
        description="A hub id, a folder, a .gguf file or builtin:smollm2-135m. May be given in "
        "--config instead."
    )
    dtype: Dtype = Field("auto", description="Type of the weights; auto keeps the checkpoint's.")
    device: Device = Field(
        "auto",
        description="auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, a list such as "
        "cuda:0,cuda:1 over which the blocks are spread, or mps, which is untried.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a model from the hub.")
    attn_implementation: Annotated[
        str | None, Cli(metavar="NAME", default="as transformers chooses")
    ] = Field(
        None, description="Implementation of attention, such as eager, sdpa or flash_attention_2."
    )
    threads: Annotated[int | None, Cli(default="as many as torch chooses")] = Field(
        None, ge=1, le=1024, description="CPU threads that torch computes with."
    )

    @property
    def loading(self) -> dict[str, Any]:
        """The keyword arguments of `load_model`."""
        names = ("dtype", "device", "revision", "attn_implementation")
        return {name: getattr(self, name) for name in names}
