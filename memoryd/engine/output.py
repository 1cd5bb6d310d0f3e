"""What steps give out, and how errors are told. No torch here, which takes seconds to import: the worker listens before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memoryd.compress.codec import CompressedEmbeddings
from memoryd.engine.request import GenerateEvent, LearnEvent
from memoryd.errors import MemorydError, ResourceExhausted

Value = GenerateEvent | LearnEvent | CompressedEmbeddings | npt.NDArray[np.float32] | MemorydError | None


@dataclass(frozen=True, slots=True)
class Output:
    """Something for the call `call`: an event, the `index`-th of its results, or the error that ended it."""

    call: int
    value: Value
    index: int = 0

    @property
    def ends(self) -> bool:
        """Whether nothing follows for this call, by an error, a finished text or a trained adapter."""
        return isinstance(self.value, MemorydError) or bool(getattr(self.value, "finish_reason", ""))


def told(error: Exception) -> MemorydError:
    """The error as a caller may see it."""
    if isinstance(error, MemorydError):
        return error
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return ResourceExhausted("the device has no memory left for this", reason="DEVICE_MEMORY")
    told = MemorydError(f"a step failed: {type(error).__name__}")  # the type only: a message may quote a text
    told.__cause__ = error
    return told
