"""What a text is for; the parts of a corpus serve one role each."""

from typing import Literal, get_args

Role = Literal["calibration", "search", "test"]
ROLES: tuple[Role, ...] = get_args(Role)
