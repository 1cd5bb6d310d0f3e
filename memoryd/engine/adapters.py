"""The adapters on the base model: none or the reader, switched between steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memoryd.engine.base_model import BaseModel
from memoryd.errors import FailedPrecondition

NONE = ""
READER = "reader"


class Adapters:
    """Puts the reader's LoRA layers into the base model, in place, and switches them on and off.

    Nothing is merged: with the adapter off, the base model computes exactly what it did before.
    """

    def __init__(self, base: BaseModel, reader: Path | None) -> None:
        self._peft: Any = None
        if reader is not None:
            from peft import PeftModel  # seconds to import, for nothing where there is no reader

            # Same dtype as the base model: casting each layer's input to float32 and back costs more than it gives.
            self._peft = PeftModel.from_pretrained(base.model, reader, READER, autocast_adapter_dtype=False)
            self._peft.to(base.model.dtype).eval().requires_grad_(False)
        self._active = READER if self._peft else NONE
        self.use(NONE)

    def check(self, name: str) -> None:
        """Raises FailedPrecondition where there is no adapter of that name."""
        if name == READER and self._peft is None:
            raise FailedPrecondition("no reader fits the base model in use", reason="NO_READER")

    def use(self, name: str) -> None:
        """Make the base model compute with this adapter; `NONE` for the base model alone."""
        if name == self._active or self._peft is None:
            return
        if name == READER:
            self._peft.base_model.enable_adapter_layers()
        else:
            self._peft.base_model.disable_adapter_layers()
        self._active = name
