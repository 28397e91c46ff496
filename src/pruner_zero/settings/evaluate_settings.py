"""The settings of `evaluate`."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.base import MAIN, TEXT_HELP, Cli, CommaSeparated, ModelSettings, PathText

# Settings without effect where no task is named.
_OF_TASKS = ("num_fewshot", "limit", "include_path", "apply_chat_template")
# Names, of which one may stand without a list.
_Names = Annotated[
    tuple[PathText, ...], BeforeValidator(lambda n: (n,) if isinstance(n, str | Path) else n)
]


class EvaluateSettings(ModelSettings):
    """All that decides the result of `evaluate`; names of tasks' settings are lm-eval's."""

    panel: ClassVar[str] = "Tasks"

    text: Annotated[_Names, Cli(panel="Options", metavar="TEXT")] = Field(
        (), description=f"Text that perplexity is measured on: {TEXT_HELP}"
    )
    seqlen: Annotated[int, MAIN] = Field(1024, ge=2, description="Tokens in a window of the text.")
    windows: Annotated[int | None, Cli(panel="Options", default="all")] = Field(
        None,
        ge=1,
        description="Only the first windows of the text. They hold more or less of it where the "
        "tokenizer is another one: bits per byte compare over the whole text alone.",
    )
    batch_size: Annotated[int, MAIN] = Field(
        1, ge=1, description="Windows of the text, or requests of tasks, in a forward pass."
    )
    tasks: Annotated[CommaSeparated | None, Cli(panel="Options", metavar="TASK,…")] = Field(
        None, description="Tasks of lm-eval with commas between them, such as arc_easy,boolq."
    )
    speed: Annotated[bool, MAIN] = Field(
        False,
        description="Measure tokens a second, batch 1: in a pass over --seqlen tokens (prefill) "
        "and for 32 more tokens one by one (decode); medians of 5 turns after a warm-up.",
    )
    beside: Annotated[_Names, Cli(panel="Options", metavar="MODEL")] = Field(
        (),
        description="Another model, such as the dense one: the divergence of the predictions of "
        "MODEL from its own is measured on --text, or its bits per byte where its tokens are "
        "others; its answers to --tasks are compared with those of MODEL, question by question, "
        "and its --speed is measured in turn with that of MODEL.",
    )
    num_fewshot: Annotated[int | None, Cli(default="the task's own")] = Field(
        None, ge=0, description="Examples before each question."
    )
    limit: Annotated[int | None, Cli(default="all")] = Field(
        None, ge=1, description="Only the first questions of each task."
    )
    include_path: Annotated[PathText | None, Cli(metavar="FOLDER")] = Field(
        None, description="Folder of task files (.yaml), which override lm-eval's own."
    )
    apply_chat_template: bool = Field(
        False, description="Ask the questions in the tokenizer's chat format."
    )

    @model_validator(mode="after")
    def _check(self) -> "EvaluateSettings":
        if not self.text and self.tasks is None and not self.speed:
            raise PrunerZeroError("give --text to measure perplexity on, --tasks or --speed")
        if self.tasks is None:
            self.refuse(_OF_TASKS, "--tasks")
        if not self.text:
            self.refuse(("windows",), "--text")
        if not self.text and self.tasks is None:
            self.refuse(("batch_size",), "--text or --tasks")
        for option, given in (("--text", self.text), ("--tasks", self.tasks)):
            if len(self.beside) > 1 and given:
                raise PrunerZeroError(f"{option} compares with one model: give one --beside")
        return self
