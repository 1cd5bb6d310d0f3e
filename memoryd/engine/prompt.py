"""From the segments of a prompt to the vectors that the base model reads, and what makes a prompt impossible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from memoryd.compress.base import Compressor, check_chunks
from memoryd.engine.base_model import BaseModel
from memoryd.engine.request import Generation, TokenIds
from memoryd.errors import FingerprintMismatch, InvalidArgument


class PromptReader:
    """Checks requests and embeds prompts for one base model and one compressor."""

    def __init__(self, base: BaseModel, compressor: Compressor) -> None:
        model = cast(Any, base.model)  # transformers types its models' attributes loosely
        self._embed = model.get_input_embeddings()
        self._table_VD: Tensor = self._embed.weight
        self._compressor = compressor
        self.max_positions = int(model.config.max_position_embeddings)

    def length(self, request: Generation) -> int:
        """Positions of the prompt, once everything about the request is known to be good.

        Raises InvalidArgument where it can never work, FingerprintMismatch where its soft segments are another compressor's.
        """
        d_model, prompt = self._table_VD.shape[1], 0
        for segment in request.segments:
            if isinstance(segment, TokenIds):
                if segment.ids and not (min(segment.ids) >= 0 and max(segment.ids) < self._table_VD.shape[0]):
                    raise InvalidArgument("the prompt has an id that is no token of the base model")
                prompt += len(segment.ids)
                continue
            self.check_compressor(request.compressor_fingerprint)
            if len(segment.embeddings.data) != 2 * segment.embeddings.k * d_model:
                raise InvalidArgument(f"compressed embeddings of the prompt are not [k, {d_model}] bfloat16")
            prompt += segment.embeddings.k
        if prompt == 0:
            raise InvalidArgument("the prompt is empty")
        if request.max_tokens < 1:
            raise InvalidArgument(f"max_tokens is {request.max_tokens}, at least 1 is needed")
        if not 0 <= request.temperature < float("inf"):
            raise InvalidArgument(f"temperature is {request.temperature}, it must be 0 or more")
        if not 0 <= request.repeat_penalty < float("inf"):
            raise InvalidArgument(f"repeat_penalty is {request.repeat_penalty}, it must be 0 or more")
        if prompt + request.max_tokens > self.max_positions:
            raise InvalidArgument(
                f"the prompt takes {prompt} positions and max_tokens is {request.max_tokens}: together they may be at "
                f"most the {self.max_positions} of the base model",
                reason="PROMPT_TOO_LONG",
            )
        return prompt

    def check_chunks(self, chunks: Sequence[Sequence[int]]) -> None:
        """Raises InvalidArgument where a chunk can't be compressed."""
        check_chunks(chunks, self.max_positions, self._table_VD.shape[0])

    def check_compressor(self, fingerprint: str) -> None:
        if fingerprint != self._compressor.fingerprint:
            raise FingerprintMismatch(
                f"asked for compressor {fingerprint or '(none)'}, loaded is {self._compressor.fingerprint}",
                details={"asked": fingerprint, "loaded": self._compressor.fingerprint},
            )

    def embed(self, request: Generation) -> Tensor:
        """The prompt as [T, d_model] in the base model's dtype."""
        device, dtype = self._table_VD.device, self._table_VD.dtype
        pieces_TD: list[Tensor] = []
        for segment in request.segments:
            if isinstance(segment, TokenIds):
                pieces_TD.append(self._embed(torch.tensor(list(segment.ids), dtype=torch.long, device=device)))
            else:
                pieces_TD.append(torch.from_numpy(segment.embeddings.to_float32()).to(device, dtype))
        return torch.cat(pieces_TD)
