"""Export a trained trial for the transformers library: a folder with a GPT-2, GPT-NeoX, Llama or Qwen3 model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tinyscale.errors import ResultsError
from tinyscale.inference.trained import Trained
from tinyscale.spec.config import ModelConfig
from tinyscale.training.parametrization import scales

END_OF_TEXT = "<|endoftext|>"
ARCHITECTURES = {
    ("learned", "layernorm", "gelu"): "GPT-2",
    ("rotary", "layernorm", "gelu"): "GPT-NeoX",
    ("rotary", "rmsnorm", "swiglu"): "Llama",
}

Tensors = dict[str, Tensor]


def export(trained: Trained, folder: Path) -> list[Path]:
    """Write model.safetensors (fp32), config.json and the tokenizer; returns the paths.

    ResultsError if transformers has no such architecture.
    """
    model = trained.config.model
    if model.code is not None:
        raise ResultsError(f"trial {trained.identity} is a model of your own, which transformers does not have")
    architecture = _architecture(model)
    state = _folded({name: tensor.detach().float() for name, tensor in trained.gpt.state_dict().items()}, model)
    named, describe = {
        "GPT-2": (_gpt2_tensors, _gpt2_config),
        "GPT-NeoX": (_neox_tensors, _neox_config),
        "Llama": (_llama_tensors, _llama_config),
    }[architecture]
    eot = trained.tokenizer.eot
    special = {"bos_token_id": eot, "eos_token_id": eot, "vocab_size": trained.tokenizer.vocab_size}
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.contiguous() for name, tensor in named(state, model).items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", {**describe(model), **special, "tie_word_embeddings": model.tie_embeddings})
    _write(folder / "tokenizer.json", _tokenizer(trained))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "model_max_length": model.context_length,
            "clean_up_tokenization_spaces": False,
        },
    )
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))


def _architecture(model: ModelConfig) -> str:
    """Which model of transformers it is; with qk_norm, Llama is called Qwen3. ResultsError if it is none."""
    found = ARCHITECTURES.get((model.positions, model.norm, model.activation))
    if found is None:
        raise ResultsError(
            f"transformers has no model with {model.positions} positions, {model.norm} and {model.activation}; "
            f"it has models with {' and with '.join(', '.join(parts) for parts in ARCHITECTURES)}"
        )
    if found != "Llama" and (model.qk_norm or model.n_kv_heads):
        raise ResultsError(
            f"{found} of transformers has neither qk_norm nor n_kv_heads; models with rotary, rmsnorm, swiglu do"
        )
    if model.qk_norm and model.bias:
        raise ResultsError(
            "Qwen3, the model of transformers with qk_norm, has no biases in its MLP; train without bias"
        )
    return found


def _folded(state: Tensors, model: ModelConfig) -> Tensors:
    """The weights of the same function without the scales of its parametrization."""
    by = scales(model)

    def factor(name: str) -> float:
        if name.startswith(("embedding.", "positions.")):
            return by.embedding
        if name.startswith("norm."):  # the last one, before the head; a tied head has the factor of the embedding
            return by.logits / (by.embedding if model.tie_embeddings else 1.0)
        return by.branch if ".out." in name else 1.0

    return {name: factor(name) * tensor for name, tensor in state.items()}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")


def _tokenizer(trained: Trained) -> dict[str, Any]:
    """The content of the tokenizer's file, with the end-of-text token added, which our tokenizers store separately."""
    content: dict[str, Any] = json.loads(trained.tokenizer.hf.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": trained.tokenizer.eot, "content": END_OF_TEXT, **flags}]
    return content


def _gpt2_config(model: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": model.d_model,
        "n_layer": model.n_layers,
        "n_head": model.n_heads,
        "n_inner": model.d_ff,
        "n_positions": model.context_length,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }


def _neox_config(model: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.d_ff,
        "max_position_embeddings": model.context_length,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": False,
        "attention_bias": True,
    }


def _llama_config(model: ModelConfig) -> dict[str, Any]:
    qwen3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": model.bias}
    return {
        **(qwen3 if model.qk_norm else llama),
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.d_ff,
        "max_position_embeddings": model.context_length,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_bias": model.bias,
    }


def _with_biases(state: Tensors, model: ModelConfig, names: dict[str, str], last_norm: str) -> Tensors:
    """Weights and biases by their names, those of a block's parts with {} for its number; zeros for biases not ours."""
    parts = {f"blocks.{layer}.{ours}": theirs.format(layer)
             for layer in range(model.n_layers) for ours, theirs in names.items()}  # fmt: skip
    tensors = {}
    for ours, theirs in {**parts, "norm": last_norm}.items():
        weight = state[f"{ours}.weight"]
        tensors[f"{theirs}.weight"] = weight
        tensors[f"{theirs}.bias"] = state.get(f"{ours}.bias", torch.zeros(len(weight)))
    return tensors


def _gpt2_tensors(state: Tensors, model: ModelConfig) -> Tensors:
    """Tensors by GPT-2's names. Its matrices are [inputs, outputs], and it always has biases."""
    names = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj"}
    names |= {"mlp_norm": "ln_2", "mlp.into": "mlp.c_fc", "mlp.out": "mlp.c_proj"}
    named = {ours: f"transformer.h.{{}}.{theirs}" for ours, theirs in names.items()}
    tensors = {name: tensor.T if tensor.dim() == 2 else tensor
               for name, tensor in _with_biases(state, model, named, "transformer.ln_f").items()}  # fmt: skip
    tensors |= {
        "transformer.wte.weight": state["embedding.weight"],
        "transformer.wpe.weight": state["positions.weight"],
    }
    return tensors if model.tie_embeddings else {**tensors, "lm_head.weight": state["head.weight"]}


def _neox_tensors(state: Tensors, model: ModelConfig) -> Tensors:
    """Tensors by GPT-NeoX's names. It always has biases, and holds q, k and v of a head next to each other."""
    qkv = "attention.query_key_value"
    names = {"attention_norm": "input_layernorm", "attention.qkv": qkv, "attention.out": "attention.dense"}
    names |= {"mlp_norm": "post_attention_layernorm", "mlp.into": "mlp.dense_h_to_4h", "mlp.out": "mlp.dense_4h_to_h"}
    named = {ours: f"gpt_neox.layers.{{}}.{theirs}" for ours, theirs in names.items()}
    tensors = _with_biases(state, model, named, "gpt_neox.final_layer_norm")
    for name, part in tensors.items():
        if qkv in name:
            by_part = part.reshape(3, model.n_heads, model.head_dim, *part.shape[1:])
            tensors[name] = by_part.transpose(0, 1).reshape(part.shape)
    tensors["gpt_neox.embed_in.weight"] = state["embedding.weight"]
    return tensors if model.tie_embeddings else {**tensors, "embed_out.weight": state["head.weight"]}


def _llama_tensors(state: Tensors, model: ModelConfig) -> Tensors:
    """Tensors by the names of Llama and Qwen3, which have a matrix each for q, k, v, the MLP's gate and its value."""
    heads = [model.d_model, *[model.kv_heads * model.head_dim] * 2]  # outputs of q, k, v
    tensors = {"model.embed_tokens.weight": state["embedding.weight"], "model.norm.weight": state["norm.weight"]}
    for layer in range(model.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        tensors[f"{theirs}.input_layernorm.weight"] = state[f"{ours}.attention_norm.weight"]
        tensors[f"{theirs}.post_attention_layernorm.weight"] = state[f"{ours}.mlp_norm.weight"]
        for name in ("q_norm", "k_norm") if model.qk_norm else ():
            tensors[f"{theirs}.self_attn.{name}.weight"] = state[f"{ours}.attention.{name}.weight"]
        for kind in ("weight", "bias") if model.bias else ("weight",):
            for name, part in zip("qkv", torch.split(state[f"{ours}.attention.qkv.{kind}"], heads), strict=True):
                tensors[f"{theirs}.self_attn.{name}_proj.{kind}"] = part
            gate, value = state[f"{ours}.mlp.into.{kind}"].chunk(2)
            tensors[f"{theirs}.mlp.gate_proj.{kind}"], tensors[f"{theirs}.mlp.up_proj.{kind}"] = gate, value
            tensors[f"{theirs}.mlp.down_proj.{kind}"] = state[f"{ours}.mlp.out.{kind}"]
            tensors[f"{theirs}.self_attn.o_proj.{kind}"] = state[f"{ours}.attention.out.{kind}"]
    return tensors if model.tie_embeddings else {**tensors, "lm_head.weight": state["head.weight"]}
