"""The adapters on the base model: none, the reader, or the compressor's own; switched between steps.

Adapters come in PEFT's on-disk format and compute what PEFT computes, in layers of our own: PEFT takes 3.6 CPU seconds to
import, and its layers made a decode step of one sequence half as long again (113 ms against 75, SmolLM2 on one core).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from memoryd.engine.base_model import BaseModel
from memoryd.errors import DataLoss, FailedPrecondition

NONE = ""
READER = "reader"
ENCODER = "encoder"
"""The compressor's: it turns the base model into what encodes chunks."""
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_UNSERVED = ("modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")


class Lora(NamedTuple):
    """What one adapter adds to one linear layer: scale · B A x."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float


class _Switch:
    """Which adapter all layers compute with."""

    active = NONE


class LoraLinear(nn.Module):
    """W x + b, and + scale · B A x of the active adapter where it changes this layer. The base layer is not touched."""

    def __init__(self, base: nn.Linear, switch: _Switch) -> None:
        super().__init__()
        self.base = base
        self.loras: dict[str, Lora] = {}
        self._switch = switch

    def forward(self, x_BTI: Tensor) -> Tensor:
        y_BTO: Tensor = self.base(x_BTI)
        lora = self.loras.get(self._switch.active)
        if lora is None:
            return y_BTO
        added_BTO = linear(linear(x_BTI, lora.a_RI.to(x_BTI.dtype)), lora.b_OR.to(x_BTI.dtype))
        return y_BTO + (added_BTO if lora.scale == 1 else lora.scale * added_BTO)


class Adapters:
    """Puts the adapters' layers into the base model, in place, and switches them on and off.

    Nothing is merged: with all adapters off, the base model computes exactly what it did before. A base model has one
    `Adapters` at a time.
    """

    def __init__(self, base: BaseModel, reader: Path | None = None) -> None:
        self._model: nn.Module = base.model
        self._switch = _Switch()
        self._layers: dict[str, dict[str, LoraLinear]] = {NONE: {}}
        if reader is not None:
            self.load(READER, reader)

    def has(self, name: str) -> bool:
        """Whether there is an adapter of that name."""
        return name in self._layers

    def check(self, name: str) -> None:
        """Raises FailedPrecondition where there is no adapter of that name."""
        if name not in self._layers:
            raise FailedPrecondition("no reader fits the base model in use", reason="NO_READER")

    def use(self, name: str) -> None:
        """Make the base model compute with this adapter; `NONE` for the base model alone."""
        self._switch.active = name

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """`use` for as long as the block lasts; the base model alone where there is no such adapter."""
        before = self._switch.active
        self._switch.active = name
        try:
            yield
        finally:
            self._switch.active = before

    def load(self, name: str, directory: Path) -> None:
        """Read an adapter in PEFT's format.

        Raises DataLoss where its files can't be read or don't fit the model, FailedPrecondition where it is more than a LoRA
        of linear layers.
        """
        try:
            config = json.loads((directory / _CONFIG).read_text())
            weights = load_file(directory / _WEIGHTS)
            rank, alpha = int(config["r"]), float(config["lora_alpha"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataLoss(f"adapter in {directory} cannot be read: {error}") from error
        odd = [k for k, v in config.items() if v and (k in _UNSERVED or (k.startswith("use_") and k != "use_rslora"))]
        odd += [key for key in weights if not key.endswith((_A, _B))]
        if config.get("peft_type") != "LORA" or odd:
            what = odd[0] if odd else config.get("peft_type")
            raise FailedPrecondition(f"adapter in {directory} has {what}: only LoRA of linear layers is served")
        self.install(name, weights, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), directory)

    def install(self, name: str, weights: Mapping[str, Tensor], scale: float, source: Path) -> None:
        """Take an adapter's weights under PEFT's names. DataLoss, naming `source`, where they do not fit the base model."""
        layers: dict[str, LoraLinear] = {}
        for key in [key for key in weights if key.endswith(_A)]:
            stem = key.removesuffix(_A)
            path = stem.removeprefix(_PREFIX)
            try:
                layer = self._layer(path)
                a_RI, b_OR = weights[key], weights[stem + _B].float() * scale
            except (AttributeError, KeyError) as error:
                raise DataLoss(f"adapter in {source} does not fit the base model: {error}") from error
            if layer is None or torch.Size([b_OR.shape[0], a_RI.shape[1]]) != layer.base.weight.shape:
                raise DataLoss(f"adapter in {source} does not fit the base model's {path}")
            layer.loras[name] = Lora(a_RI.to(layer.base.weight), b_OR.to(layer.base.weight), 1.0)
            layers[path] = layer
        self._layers[name] = layers

    def create(self, name: str, rank: int, alpha: float, targets: Sequence[str] = ALL_LINEAR) -> list[nn.Parameter]:
        """A new adapter on the linear layers called `targets`, to be trained; its weights, float32, with gradients.

        It changes nothing yet: B is zero. A is uniform as in PEFT (Kaiming, a=√5), from torch's generator.
        """
        layers: dict[str, LoraLinear] = {}
        paths = [p for p, m in self._model.named_modules() if isinstance(m, nn.Linear | LoraLinear) and _last(p) in targets]
        for path in paths:
            layer = self._layer(path)
            assert layer is not None
            out, into = layer.base.weight.shape
            a_RI, b_OR = torch.empty(rank, into), torch.zeros(out, rank)
            nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5))
            device = layer.base.weight.device
            layer.loras[name] = Lora(nn.Parameter(a_RI.to(device)), nn.Parameter(b_OR.to(device)), alpha / rank)
            layers[path] = layer
        self._layers[name] = layers
        return [p for layer in layers.values() for p in layer.loras[name][:2] if isinstance(p, nn.Parameter)]

    def state(self, name: str) -> dict[str, Tensor]:
        """Its weights under PEFT's names, float32 on the CPU, with the scale not folded in."""
        out: dict[str, Tensor] = {}
        for path, layer in self._layers[name].items():
            a_RI, b_OR, _ = layer.loras[name]
            out[f"{_PREFIX}{path}{_A}"] = a_RI.detach().float().cpu().contiguous()
            out[f"{_PREFIX}{path}{_B}"] = b_OR.detach().float().cpu().contiguous()
        return dict(sorted(out.items()))

    @torch.no_grad()
    def load_state(self, name: str, state: dict[str, Tensor]) -> None:
        """Set the weights of an adapter that `create` made. Raises KeyError where one is missing."""
        for path, layer in self._layers[name].items():
            layer.loras[name].a_RI.copy_(state[f"{_PREFIX}{path}{_A}"])
            layer.loras[name].b_OR.copy_(state[f"{_PREFIX}{path}{_B}"])

    def save(self, name: str, directory: Path, base_model: str, dtype: torch.dtype = torch.float16) -> None:
        """Write it in PEFT's format. `base_model` is what its configuration names."""
        layers = self._layers[name]
        lora = next(iter(layers.values())).loras[name]
        rank = lora.a_RI.shape[0]
        directory.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": lora.scale * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted({_last(path) for path in layers}),
        }
        (directory / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        weights = {key: value.to(dtype) for key, value in self.state(name).items()}
        save_file(weights, directory / _WEIGHTS, metadata={"format": "pt"})

    def _layer(self, path: str) -> LoraLinear | None:
        """The layer at `path`, made ready for adapters; None where it is not linear. AttributeError where there is none."""
        layer = self._model.get_submodule(path)
        if isinstance(layer, nn.Linear):
            layer = LoraLinear(layer, self._switch)
            self._model.set_submodule(path, layer)
        return layer if isinstance(layer, LoraLinear) and layer._switch is self._switch else None


def _last(path: str) -> str:
    return path.rpartition(".")[2]
