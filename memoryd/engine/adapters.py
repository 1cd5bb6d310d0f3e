"""The adapters on the base model: none or the reader, switched between steps.

Adapters come in PEFT's on-disk format and compute what PEFT computes, in layers of our own: PEFT takes 3.6 CPU seconds to
import, and its layers made a decode step of one sequence half as long again (113 ms against 75, SmolLM2 on one core).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear

from memoryd.engine.base_model import BaseModel
from memoryd.errors import DataLoss, FailedPrecondition

NONE = ""
READER = "reader"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_UNSERVED = ("modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")


class _Switch:
    """Which adapter all layers compute with."""

    active = NONE


class LoraLinear(nn.Module):
    """W x + b, and + (alpha/r) B A x while its adapter is the active one. The base layer itself is not touched."""

    def __init__(self, base: nn.Linear, a_RI: Tensor, b_OR: Tensor, switch: _Switch, adapter: str) -> None:
        super().__init__()
        self.base, self.a_RI, self.b_OR = base, a_RI.to(base.weight), b_OR.to(base.weight)
        self._switch, self._adapter = switch, adapter

    def forward(self, x_BTI: Tensor) -> Tensor:
        y_BTO: Tensor = self.base(x_BTI)
        if self._switch.active != self._adapter:
            return y_BTO
        return y_BTO + linear(linear(x_BTI, self.a_RI), self.b_OR)


class Adapters:
    """Puts the reader's layers into the base model, in place, and switches them on and off.

    Nothing is merged: with the adapter off, the base model computes exactly what it did before.
    """

    def __init__(self, base: BaseModel, reader: Path | None) -> None:
        self._switch = _Switch()
        self._names = {NONE}
        if reader is not None:
            _install(base.model, reader, self._switch, READER)
            self._names.add(READER)

    def check(self, name: str) -> None:
        """Raises FailedPrecondition where there is no adapter of that name."""
        if name not in self._names:
            raise FailedPrecondition("no reader fits the base model in use", reason="NO_READER")

    def use(self, name: str) -> None:
        """Make the base model compute with this adapter; `NONE` for the base model alone."""
        self._switch.active = name


def _install(model: nn.Module, directory: Path, switch: _Switch, adapter: str) -> None:
    """Wrap each linear layer that the adapter changes.

    Raises DataLoss where its files can't be read or don't fit the model, FailedPrecondition where it is more than a LoRA of
    linear layers.
    """
    try:
        config = json.loads((directory / "adapter_config.json").read_text())
        weights = load_file(directory / "adapter_model.safetensors")
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataLoss(f"adapter in {directory} cannot be read: {error}") from error
    odd = [k for k, v in config.items() if v and (k in _UNSERVED or (k.startswith("use_") and k != "use_rslora"))]
    odd += [name for name in weights if not name.endswith((_A, _B))]
    if config.get("peft_type") != "LORA" or odd:
        what = odd[0] if odd else config.get("peft_type")
        raise FailedPrecondition(f"adapter in {directory} has {what}: only LoRA of linear layers is served")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    for name in [name for name in weights if name.endswith(_A)]:
        stem = name.removesuffix(_A)
        path = stem.removeprefix(_PREFIX)
        try:
            layer = model.get_submodule(path)
            a_RI, b_OR = weights[name], weights[stem + _B].float() * scale
        except (AttributeError, KeyError) as error:
            raise DataLoss(f"adapter in {directory} does not fit the base model: {error}") from error
        if not isinstance(layer, nn.Linear) or torch.Size([b_OR.shape[0], a_RI.shape[1]]) != layer.weight.shape:
            raise DataLoss(f"adapter in {directory} does not fit the base model's {path}")
        model.set_submodule(path, LoraLinear(layer, a_RI, b_OR, switch, adapter))
