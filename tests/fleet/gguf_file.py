"""A tiny GGUF file, as llama.cpp's converter writes one: LLaMA, random weights, a byte-level tokenizer, a template."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 3
SPECIAL = ("<|end|>", "<|pad|>")
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), "he", "ll", "hell", "Ġw"]
MERGES = ["h e", "l l", "he ll", "Ġ w"]


def tensors(*, tied: bool = True) -> dict[str, np.ndarray]:
    """Random weights by their GGUF names."""
    draw = np.random.default_rng(0)
    width = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    if not tied:
        shapes["output"] = (len(TOKENS), HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {block + "attn_q": (HIDDEN, HIDDEN), block + "attn_output": (HIDDEN, HIDDEN)}
        shapes |= {block + name: (width, HIDDEN) for name in ("attn_k", "attn_v")}
        shapes |= {block + name: (INNER, HIDDEN) for name in ("ffn_gate", "ffn_up")}
        shapes |= {block + "ffn_down": (HIDDEN, INNER)}
        shapes |= {block + name: (HIDDEN,) for name in ("attn_norm", "ffn_norm")}
    return {f"{name}.weight": draw.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    weights: dict[str, np.ndarray] | None = None,
    *,
    template: str | None = TEMPLATE,
    splitting: str = "smollm",
    scaling: str = "",
    parts: int = 1,
    quantized: bool = True,
) -> Path:
    """Write the file; matrices as Q8_0 where `quantized`."""
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    if scaling:
        writer.add_string("llama.rope.scaling.type", scaling)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
    if template is not None:
        writer.add_chat_template(template)
    for name, values in (tensors() if weights is None else weights).items():
        if quantized and values.ndim > 1:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
