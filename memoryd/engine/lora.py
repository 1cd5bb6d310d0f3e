"""A linear layer with adapters: of each row of a batch its own, and of several adapters their weighted sum.

A blend is what one row computes with: (adapter, weight) pairs, whose LoRA updates are added,

    y = W x + Σ weight · scale · B A x,

so that one adapter is the special case, and a question across memories is another. Where all rows have the same blend its
adapters are computed one after the other. Where they differ, the layer's matrices of all adapters in the batch are stacked
along their ranks: two products for the whole batch, with a factor for each row and rank between them. What a row does not use
is set to zero, and not only multiplied by it: A x is computed for that row too, and where it overflows, as float16 soon does,
zero times it is NaN. The sum is exact in either case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

Blend = tuple[tuple[str, float], ...]
"""(adapter, weight) pairs; empty for the base model alone."""


class Lora(NamedTuple):
    """What one adapter adds to one linear layer: scale · B A x."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    dropout: float = 0.0
    """Share of x that it does not see, at random; only where there are gradients, so while it is trained."""


@dataclass(slots=True)
class Plan:
    """What the rows of the next passes compute with: one blend for all of them, or one for each."""

    blends: Sequence[Blend] = ((),)
    names: tuple[str, ...] = ()
    """Where rows differ: all adapters among them."""
    _factors: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, blends: Sequence[Blend]) -> Plan:
        distinct = set(blends)
        if len(distinct) == 1:
            return cls([blends[0]])
        return cls(blends, tuple(sorted({name for blend in distinct for name, _ in blend})))

    def factors(self, ranks: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, ΣR]: each row's weight of each adapter, for each of its ranks; and whether it uses it."""
        if ranks not in self._factors:
            weight_BN = torch.tensor([[dict(blend).get(name, 0.0) for name in self.names] for blend in self.blends])
            made_BR = weight_BN.repeat_interleave(torch.tensor(ranks), dim=1)
            made_B1R = made_BR[:, None].to(like.device, like.dtype)
            self._factors[ranks] = made_B1R, made_B1R != 0
        return self._factors[ranks]


class Switch:
    """Which plan all layers of a model compute with."""

    plan = Plan()


class _Stack(NamedTuple):
    names: tuple[str, ...]
    ranks: tuple[int, ...]
    a_RI: Tensor
    b_OR: Tensor


class LoraLinear(nn.Module):
    """W x + b, and what the plan's adapters add. The base layer is not touched."""

    def __init__(self, base: nn.Linear, switch: Switch) -> None:
        super().__init__()
        self.base = base
        self.switch = switch
        self._loras: dict[str, Lora] = {}
        self._stack: _Stack | None = None  # of the last batch whose rows differed: the next decode step has the same

    def get(self, name: str) -> Lora | None:
        """What an adapter adds here; None where it does not change this layer."""
        return self._loras.get(name)

    def put(self, name: str, lora: Lora) -> None:
        """Take an adapter's part, in place of one of that name."""
        self._loras[name], self._stack = lora, None

    def drop(self, name: str) -> None:
        """Forget an adapter's part."""
        self._loras.pop(name, None)
        self._stack = None

    def forward(self, x_BTI: Tensor) -> Tensor:
        plan, y_BTO = self.switch.plan, self.base(x_BTI)
        if plan.names:
            stack = self._stacked(plan.names, x_BTI)
            if not any(stack.ranks):
                return y_BTO
            factor_B1R, used_B1R = plan.factors(stack.ranks, x_BTI)
            inner_BTR = torch.where(used_B1R, linear(x_BTI, stack.a_RI) * factor_B1R, 0)
            return y_BTO + linear(inner_BTR, stack.b_OR)
        for name, weight in plan.blends[0]:
            if lora := self._loras.get(name):
                seen_BTI = dropout(x_BTI, lora.dropout, training=torch.is_grad_enabled()) if lora.dropout else x_BTI
                added_BTO = linear(linear(seen_BTI, lora.a_RI.to(x_BTI.dtype)), lora.b_OR.to(x_BTI.dtype))
                factor = weight * lora.scale
                y_BTO = y_BTO + (added_BTO if factor == 1 else factor * added_BTO)
        return y_BTO

    def _stacked(self, names: tuple[str, ...], like: Tensor) -> _Stack:
        if self._stack is None or self._stack.names != names:
            out, into = self.base.weight.shape
            nothing = Lora(like.new_zeros(0, into), like.new_zeros(out, 0), 1.0)
            loras = [self._loras.get(name, nothing) for name in names]
            a_RI = torch.cat([lora.a_RI.to(like.dtype) for lora in loras])
            b_OR = torch.cat([lora.scale * lora.b_OR.to(like.dtype) for lora in loras], dim=1)
            self._stack = _Stack(names, tuple(lora.a_RI.shape[0] for lora in loras), a_RI, b_OR)
        return self._stack
