"""Tiny random base models, with a real tokenizer and chat template, made in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3's opens the answer with an empty thought when thinking is switched off.
_THINKING = _PLAIN.removesuffix("{% endif %}") + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
# Mistral's knows no system role, and insists on user and assistant by turns.
_INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
_TEMPLATES = {"llama": _PLAIN, "qwen3": _THINKING, "mistral": _INST}
_WORDS = (
    "the a of to and in is was who what when where which memory answer below briefly say know from nothing "
    "Caroline moved Lisbon May river mountain city blue green seven eight document passage question system user assistant"
)


def make_tiny_model(kind: str, path: Path, seed: int = 0, **settings: Any) -> Path:
    """A random causal LM of two layers with d_model 64 in ``path``; ``kind`` is llama, qwen3 or mistral. ``settings`` go
    into its configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _make_tokenizer(kind, path)
    torch.manual_seed(seed)
    usual: dict[str, Any] = {
        "vocab_size": 600,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(kind, **usual | settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def _make_tokenizer(kind: str, path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([f" {word} {word}" for word in _WORDS.split()] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<pad>"
    )
    wrapped.chat_template = _TEMPLATES[kind]
    wrapped.save_pretrained(path)
