"""What a diagnosis cannot be made of."""

from __future__ import annotations

from temper.errors import TemperError


class DiagnoseError(TemperError):
    """The images, the checkpoint, the answers or the served model do not fit together; one line says which."""
