"""A layer whose rows have each their own adapters: none of them hears of another's."""

from __future__ import annotations

import torch
from torch import nn

from memoryd.engine.lora import Blend, Lora, LoraLinear, Plan, Switch

LOUD, QUIET, NONE = (("loud", 1.0),), (("quiet", 0.5),), ()


def test_what_overflows_with_one_adapter_is_not_heard_of_in_the_rows_of_others() -> None:
    """float16 ends at 65504, and every row of a batch goes through the A of every adapter in it."""
    torch.manual_seed(7)
    switch = Switch()
    layer = LoraLinear(nn.Linear(8, 4).half(), switch)
    layer.put("loud", Lora(torch.full((2, 8), 1e3).half(), torch.ones(4, 2).half(), 1.0))
    layer.put("quiet", Lora(torch.randn(3, 8).half(), torch.randn(4, 3).half(), 1.0))
    x_BTI = torch.full((4, 2, 8), 100.0).half()

    @torch.inference_mode()
    def computed(*blends: Blend) -> torch.Tensor:
        switch.plan = Plan.of(blends)
        made: torch.Tensor = layer(x_BTI[: len(blends)])
        return made

    loud, quiet, none, both = computed(LOUD, QUIET, NONE, (*LOUD, *QUIET))
    assert not loud.isfinite().any(), "it must overflow here"
    assert not both.isfinite().any()
    torch.testing.assert_close(quiet, computed(QUIET)[0])
    torch.testing.assert_close(none, computed(NONE)[0])
