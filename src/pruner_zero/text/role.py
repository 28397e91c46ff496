"""The roles of texts; each part of a corpus has one."""

from typing import Literal, get_args

Role = Literal["calibration", "search", "test"]
ROLES: tuple[Role, ...] = get_args(Role)
