"""Python's garbage collector, and what lives as long as the process: modules, models, and all that they are made of.

A full collection looks at every object there is. With what the worker has loaded that is 0.2 s or more, for which every answer
that streams stands still; and while things load, which only adds objects, there are half a dozen of them.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """No collections inside. What there is at the end stays, and is not looked at again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    keep()


def keep() -> None:
    """All objects that there are by now, but for garbage, are not looked at again: to be called when all has been started."""
    gc.collect()
    gc.freeze()
