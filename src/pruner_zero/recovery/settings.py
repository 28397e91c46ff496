"""What `recover` can be told."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pruner_zero.devices import Device
from pruner_zero.models import Dtype
from pruner_zero.settings import Settings

TuningMode = Literal["full", "lora"]
Schedule = Literal["cosine", "linear"]
Keep = Literal["best", "last"]

DEFAULT_MINUTES = 10.0
DEFAULT_LEARNING_RATE = {"full": 2e-4, "lora": 1e-3}


class RecoverSettings(Settings):
    """All that decides the result of `recover`.

    minutes, steps: the budget, whichever ends first; ten minutes where neither is given. A run
    of so many steps repeats byte for byte (on one thread), one of so many minutes does not.
    learning_rate: the highest one, by mode where not given. warmup: the share of the budget in
    which it is reached. norms: one-dimensional parameters (norms, biases) learn too.
    teacher_share: how much of the loss is the divergence from the teacher, where there is one.
    dtype: what the weights are loaded and saved in; they are trained in float32 whatever it is.
    compute_dtype: what matrices are multiplied in. device: what `find_devices` takes.
    """

    model: str
    text: str
    mode: TuningMode = "full"
    minutes: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 2
    seqlen: Annotated[int, Field(ge=2)] = 512
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Schedule = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0
    norms: bool = False
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    teacher: str | None = None
    teacher_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    validations: Annotated[int, Field(ge=1)] = 10
    validation_windows: Annotated[int, Field(ge=1)] = 8
    keep: Keep = "best"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    dtype: Dtype = "auto"
    device: Device = "auto"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 2.0

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        resolved = {key: value for key, value in given.items() if value is not None}
        if "minutes" not in resolved and "steps" not in resolved:
            resolved["minutes"] = DEFAULT_MINUTES
        rate = DEFAULT_LEARNING_RATE.get(str(resolved.get("mode", "full")), 1.0)
        return {"learning_rate": rate, **resolved}
