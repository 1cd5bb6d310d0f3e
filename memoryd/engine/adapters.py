"""The adapters on the base model: the reader, those of memories, the compressor's own; switched between steps.

Adapters come in PEFT's on-disk format and compute what PEFT computes, in layers of our own (`lora.py`): PEFT takes 3.6 CPU
seconds to import, and its layers made a decode step of one sequence half as long again (113 ms against 75, SmolLM2 on one
core).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from memoryd.engine.base_model import BaseModel
from memoryd.engine.lora import Blend, Lora, LoraLinear, Plan, Switch
from memoryd.engine.reader import NO_READERS, Readers
from memoryd.errors import DataLoss, FailedPrecondition

NONE = ""
READER = "reader"
SOFT_READER = "soft-reader"
"""Reads prompts with compressed embeddings in place of READER, where there is one."""
ENCODER = "encoder"
"""The compressor's: it turns the base model into what encodes chunks."""
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_LARGEST = 1e3  # of a weight: trained ones are below 10
_UNSERVED = ("modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")


class Adapters:
    """Puts the adapters' layers into the base model, in place, and switches them on and off.

    Nothing is merged: with all adapters off, the base model computes exactly what it did before. A base model has one
    `Adapters` at a time.
    """

    def __init__(self, base: BaseModel, readers: Readers = NO_READERS) -> None:
        self._model: nn.Module = base.model
        self._switch = Switch()
        self._layers: dict[str, dict[str, LoraLinear]] = {NONE: {}}
        self._rslora: set[str] = set()  # those that were created so: their files say it
        for name, directory in ((READER, readers.text), (SOFT_READER, readers.soft)):
            if directory is not None:
                self.load(name, directory)

    def has(self, name: str) -> bool:
        """Whether there is an adapter of that name."""
        return name in self._layers

    def trained(self, name: str) -> bool:
        """Whether it changes anything: as one begins, its second matrices are zero. There need be none."""
        return self.has(name) and any(bool(lora.b_OR.any()) for lora in self._loras(name).values())

    def idle(self, name: str) -> bool:
        """Whether nothing is lost by computing without it: it changes nothing, and does not learn now. There need be none."""
        learns = torch.is_grad_enabled() and self.has(name)
        return not self.trained(name) and not (learns and any(x.b_OR.requires_grad for x in self._loras(name).values()))

    def reader(self, soft: bool) -> str:
        """The name of the reader of prompts with compressed embeddings (`soft`), or without. FailedPrecondition where there is
        none."""
        if READER not in self._layers:
            raise FailedPrecondition("no reader fits the base model in use", reason="NO_READER")
        return SOFT_READER if soft and SOFT_READER in self._layers else READER

    def use(self, *blends: Blend) -> None:
        """Make the base model compute with this blend, or with one for each row of the batch."""
        self._switch.plan = Plan.of(blends or [()])

    @contextlib.contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """With the sum of these adapters for as long as the block lasts; names that there are not, like `NONE`, add nothing."""
        before = self._switch.plan
        self.use(tuple((name, 1.0) for name in names))
        try:
            yield
        finally:
            self._switch.plan = before

    def load(self, name: str, directory: Path) -> None:
        """Read an adapter in PEFT's format.

        Raises DataLoss where its files can't be read or don't fit the model, FailedPrecondition where it is more than a LoRA
        of linear layers.
        """
        self.load_bytes(name, *_read(directory), f"adapter in {directory}")

    def load_bytes(self, name: str, config: bytes, weights: bytes, source: str) -> None:
        """As `load`, of the files' contents; `source` is what errors call it."""
        self.install(name, *_parse(config, weights, source), source)

    def install(self, name: str, weights: Mapping[str, Tensor], scale: float, source: str) -> None:
        """Take an adapter's weights under PEFT's names. DataLoss, naming `source`, where they do not fit the base model, or
        are not finite: in a batch they would reach the rows of others too, since 0 · inf is not 0."""
        layers: dict[str, LoraLinear] = {}
        parts: dict[LoraLinear, Lora] = {}
        for key in [key for key in weights if key.endswith(_A)]:
            stem = key.removesuffix(_A)
            path = stem.removeprefix(_PREFIX)
            try:
                layer = self._layer(path)
                a_RI, b_OR = weights[key], weights[stem + _B]
            except (AttributeError, KeyError) as error:
                raise DataLoss(f"{source} does not fit the base model: {error}") from error
            rank = a_RI.shape[0] if a_RI.ndim else 0
            if layer is None or rank < 1 or [b_OR.shape, a_RI.shape] != _shapes(layer, rank):
                raise DataLoss(f"{source} does not fit the base model's {path}")
            lora = Lora(a_RI.to(layer.base.weight), (b_OR.float() * scale).to(layer.base.weight), 1.0)
            # NaN compares as False. What overflows in one row of a batch would be NaN in the others: 0 times infinity.
            if not all((part.abs() <= _LARGEST).all() for part in (lora.a_RI, lora.b_OR)):
                raise DataLoss(f"{source} has weights at {path} that are not finite, or beyond {_LARGEST:g}")
            parts[layer] = lora
            layers[path] = layer
        self.remove(name)  # only now: what does not fit leaves things as they were
        for layer, lora in parts.items():
            layer.put(name, lora)
        self._layers[name] = layers

    def remove(self, name: str) -> None:
        """Forget an adapter; unknown ones are fine."""
        for layer in self._layers.pop(name, {}).values():
            layer.drop(name)
        self._rslora.discard(name)

    def size(self, name: str) -> int:
        """Bytes of its weights as they are held."""
        return sum(x.nbytes for lora in self._loras(name).values() for x in (lora.a_RI, lora.b_OR))

    def create(
        self,
        name: str,
        rank: int,
        alpha: float,
        targets: Sequence[str] = ALL_LINEAR,
        *,
        dropout: float = 0.0,
        rslora: bool = False,
    ) -> list[nn.Parameter]:
        """A new adapter on the linear layers called `targets`, to be trained; its weights, float32, with gradients.

        It changes nothing yet: B is zero. A is uniform as in PEFT (Kaiming, a=√5), from torch's generator, from which
        `dropout`, a share of its input from 0 to below 1, takes its draws too. `rslora` scales it by alpha/√rank.
        """
        layers = self._layers[name] = dict[str, LoraLinear]()  # filled below: what fails half-way can be removed
        if rslora:
            self._rslora.add(name)
        paths = [p for p, m in self._model.named_modules() if isinstance(m, nn.Linear | LoraLinear) and _last(p) in targets]
        for path in paths:
            if self._is_inner(path):
                continue
            layer = self._layer(path)
            assert layer is not None
            out, into = layer.base.weight.shape
            a_RI, b_OR = torch.empty(rank, into), torch.zeros(out, rank)
            nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5))
            device = layer.base.weight.device
            a, b = nn.Parameter(a_RI.to(device)), nn.Parameter(b_OR.to(device))
            layer.put(name, Lora(a, b, alpha / _divisor(rank, rslora), dropout))
            layers[path] = layer
        return [p for lora in self._loras(name).values() for p in lora[:2] if isinstance(p, nn.Parameter)]

    def state(self, name: str) -> dict[str, Tensor]:
        """Its weights under PEFT's names, float32 on the CPU, with the scale not folded in."""
        out: dict[str, Tensor] = {}
        for path, (a_RI, b_OR, *_) in self._loras(name).items():
            out[f"{_PREFIX}{path}{_A}"] = a_RI.detach().float().cpu().contiguous()
            out[f"{_PREFIX}{path}{_B}"] = b_OR.detach().float().cpu().contiguous()
        return dict(sorted(out.items()))

    @torch.no_grad()
    def load_state(self, name: str, state: dict[str, Tensor]) -> None:
        """Set the weights of an adapter that `create` made. Raises KeyError where one is missing, ValueError where one has
        another shape: copying alone would repeat those of rank 1."""
        for path, lora in self._loras(name).items():
            for key, into in ((f"{_PREFIX}{path}{_A}", lora.a_RI), (f"{_PREFIX}{path}{_B}", lora.b_OR)):
                if state[key].shape != into.shape:
                    raise ValueError(f"{key} is {tuple(state[key].shape)}, not {tuple(into.shape)}")
                into.copy_(state[key])

    def save(self, name: str, directory: Path, base_model: str, dtype: torch.dtype = torch.float16) -> None:
        """Write it in PEFT's format. `base_model` is what its configuration names."""
        directory.mkdir(parents=True, exist_ok=True)
        for file, data in self.files(name, base_model, dtype).items():
            (directory / file).write_bytes(data)

    def files(self, name: str, base_model: str, dtype: torch.dtype = torch.float16) -> dict[str, bytes]:
        """What `save` writes, by the files' names."""
        loras = self._loras(name)
        lora = next(iter(loras.values()))
        rank, rslora = lora.a_RI.shape[0], name in self._rslora
        config: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": lora.scale * _divisor(rank, rslora),
            "lora_dropout": lora.dropout,
            "use_rslora": rslora,
            "bias": "none",
            "target_modules": sorted({_last(path) for path in loras}),
        }
        weights = {key: value.to(dtype) for key, value in self.state(name).items()}
        return {
            _CONFIG: (json.dumps(config, indent=1, sort_keys=True) + "\n").encode(),
            ADAPTER_WEIGHTS: to_safetensors(weights, metadata={"format": "pt"}),
        }

    def _loras(self, name: str) -> dict[str, Lora]:
        """Its part in each layer that it changes, by the layer's path."""
        return {path: lora for path, layer in self._layers[name].items() if (lora := layer.get(name))}

    def _layer(self, path: str) -> LoraLinear | None:
        """The layer at `path`, made ready for adapters; None where it is not linear. AttributeError where there is none."""
        layer = self._model.get_submodule(path)
        if self._is_inner(path):
            return None
        if isinstance(layer, nn.Linear):
            layer = LoraLinear(layer, self._switch)
            self._model.set_submodule(path, layer)
        return layer if isinstance(layer, LoraLinear) and layer.switch is self._switch else None

    def _is_inner(self, path: str) -> bool:
        """Whether `path` is within a layer made ready for adapters, and so no layer of the base model's own."""
        return isinstance(self._model.get_submodule(path.rpartition(".")[0]), LoraLinear)


def stored(directory: Path) -> dict[str, Tensor]:
    """The weights of an adapter as its files have them: `folded`, and so the same whatever dtype a base model has. Raises as
    `Adapters.load`."""
    return folded(*_parse(*_read(directory), f"adapter in {directory}"))


def folded(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """An adapter's weights under PEFT's names, float32 on the CPU, the scale in B."""
    out = {_PREFIX + key.removeprefix(_PREFIX): weight.float().cpu() for key, weight in sorted(weights.items())}
    return {key: weight * scale if key.endswith(_B) else weight for key, weight in out.items()}


def _read(directory: Path) -> tuple[bytes, bytes]:
    """Its configuration and its weights."""
    try:
        return (directory / _CONFIG).read_bytes(), (directory / ADAPTER_WEIGHTS).read_bytes()
    except OSError as error:
        raise DataLoss(f"adapter in {directory} cannot be read: {error}") from error


def _parse(config: bytes, weights: bytes, source: str) -> tuple[dict[str, Tensor], float]:
    """Its weights and its scale."""
    try:
        settings: dict[str, Any] = json.loads(config)
        tensors = load_safetensors(weights)
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
        if rank < 1 or not math.isfinite(alpha):
            raise ValueError(f"its rank is {rank}, its alpha {alpha}")
        scale = alpha / _divisor(rank, bool(settings.get("use_rslora")))
    except (ValueError, KeyError, TypeError, OverflowError, SafetensorError) as error:
        raise DataLoss(f"{source} cannot be read: {error}") from error
    odd = [k for k, v in settings.items() if v and (k in _UNSERVED or (k.startswith("use_") and k != "use_rslora"))]
    odd += [key for key in tensors if not key.endswith((_A, _B))]
    if settings.get("peft_type") != "LORA" or odd:
        what = odd[0] if odd else settings.get("peft_type")
        raise FailedPrecondition(f"{source} has {what}: only LoRA of linear layers is served")
    return tensors, scale


def _divisor(rank: int, rslora: bool) -> float:
    """What alpha is divided by, to be the scale."""
    return math.sqrt(rank) if rslora else rank


def _shapes(layer: LoraLinear, rank: int) -> list[torch.Size]:
    """Of B and A, for this layer."""
    out, into = layer.base.weight.shape
    return [torch.Size([out, rank]), torch.Size([rank, into])]


def _last(path: str) -> str:
    return path.rpartition(".")[2]
