"""The adapters of memories that are on the device: loaded when first needed, the least recently used dropped for others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from memoryd.engine.adapters import Adapters
from memoryd.engine.lora import Blend
from memoryd.errors import FailedPrecondition, ResourceExhausted

CAPACITY_BYTES = 256 << 20
_PREFIX = "memory/"  # so that no memory's adapter can be mistaken for the reader or the encoder


class Bank:
    """Holds as many as fit into `capacity` bytes. Ids name immutable weights: one that is loaded is never loaded anew."""

    def __init__(self, adapters: Adapters, capacity: int = CAPACITY_BYTES) -> None:
        self._adapters = adapters
        self._capacity = capacity
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def load(self, adapter: str, config: bytes, weights: bytes, in_use: Collection[str] = ()) -> None:
        """Take an adapter in PEFT's format: adapter_config.json and adapter_model.safetensors. `in_use` are the names, as
        blends have them, that stay.

        DataLoss where it can't be read or does not fit the base model, FailedPrecondition where it is more than a LoRA of
        linear layers or larger than the bank, ResourceExhausted where those in use leave no room for it.
        """
        if adapter in self._sizes:
            self._sizes.move_to_end(adapter)
            return
        name = _PREFIX + adapter
        self._adapters.load_bytes(name, config, weights, f"adapter {adapter}")
        size = self._adapters.size(name)
        if size > self._capacity:
            self._adapters.remove(name)
            raise FailedPrecondition(
                f"adapter {adapter} takes {size >> 20} MiB, all of them together have {self._capacity >> 20}: learn with a "
                "lower learn_rank or fewer learn_targets",
                reason="ADAPTER_TOO_LARGE",
            )
        self._sizes[adapter] = size
        idle = [other for other in self._sizes if other != adapter and _PREFIX + other not in in_use]
        while sum(self._sizes.values()) > self._capacity:
            if not idle:
                self.unload(adapter)
                raise ResourceExhausted(
                    f"the adapters in use leave no room for adapter {adapter}: try again when an answer has ended",
                    reason="ADAPTERS_IN_USE",
                )
            self.unload(idle.pop(0))

    def unload(self, adapter: str) -> None:
        """Forget it, at once. Nothing may be generated with it any more. Unknown ones are fine."""
        self._adapters.remove(_PREFIX + adapter)
        self._sizes.pop(adapter, None)

    def blend(self, adapters: Sequence[tuple[str, float]]) -> Blend:
        """What (id, weight) pairs are for the layers. FailedPrecondition (ADAPTER_NOT_LOADED) where one is
        not there."""
        missing = [adapter for adapter, _ in adapters if adapter not in self._sizes]
        if missing:
            raise FailedPrecondition(
                f"adapters not loaded: {', '.join(missing)}",
                reason="ADAPTER_NOT_LOADED",
                details={"adapters": ",".join(missing)},
            )
        for adapter, _ in adapters:
            self._sizes.move_to_end(adapter)
        return tuple((_PREFIX + adapter, weight) for adapter, weight in adapters)
