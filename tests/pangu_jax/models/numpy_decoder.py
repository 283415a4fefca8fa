"""The decoder written naively in NumPy float64: one document at a time, one head at a time.

Independent of the package: weights come in as a plain dict of arrays in the tree's layout.
"""

from __future__ import annotations

import math

import numpy as np


def rms_norm(x, scale, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale


def frequencies(config):
    values = []
    for i in range(config.head_dim // 2):
        f = config.rope_base ** (-2 * i / config.head_dim)
        s = config.rope_scaling
        if s is not None:
            wavelength = 2 * math.pi / f
            if wavelength > s.original_length / s.low_freq_factor:
                f = f / s.factor
            elif wavelength >= s.original_length / s.high_freq_factor:
                smooth = (s.original_length / wavelength - s.low_freq_factor) / (
                    s.high_freq_factor - s.low_freq_factor
                )
                f = (1 - smooth) * f / s.factor + smooth * f
        values.append(f)
    return values


def rotate(x, position, config):
    """One head vector (H,) turned by its position."""
    out = np.empty_like(x)
    half = len(x) // 2
    for i, f in enumerate(frequencies(config)):
        a, b = (i, i + half) if config.rope_layout == "half" else (2 * i, 2 * i + 1)
        c, s = math.cos(position * f), math.sin(position * f)
        out[a], out[b] = x[a] * c - x[b] * s, x[a] * s + x[b] * c
    return out


def attention(x, p, config):
    length = len(x)
    share = config.num_heads // config.num_kv_heads
    heads = {}
    for name in "qkv":
        y = np.einsum("td,dnh->tnh", x, p[name]["kernel"])
        if "bias" in p[name]:
            y = y + p[name]["bias"]
        if config.qk_norm and name in "qk":
            y = rms_norm(y, p[f"{name}_norm"]["scale"], config.norm_eps)
        if name in "qk":
            for t in range(length):
                for n in range(y.shape[1]):
                    y[t, n] = rotate(y[t, n], t, config)
        heads[name] = y
    out = np.zeros((length, config.hidden_dim))
    for n in range(config.num_heads):
        q, k, v = heads["q"][:, n], heads["k"][:, n // share], heads["v"][:, n // share]
        for t in range(length):
            logits = k[: t + 1] @ q[t] / math.sqrt(config.head_dim)
            weights = np.exp(logits - logits.max())
            out[t] += weights @ v[: t + 1] / weights.sum() @ p["o"]["kernel"][n]
    return out + p["o"].get("bias", 0)


def mlp(x, p):
    gate = x @ p["gate"]["kernel"]
    return (gate / (1 + np.exp(-gate)) * (x @ p["up"]["kernel"])) @ p["down"]["kernel"]


def document_logits(tokens, params, config):
    """Logits (T, V) of one document; `params` is the tree as NumPy float64."""
    eps = config.norm_eps
    x = params["embed"]["embedding"][tokens]
    for layer in range(config.num_layers):
        p = _layer(params["layers"], layer)
        branch = attention(rms_norm(x, p["attn_norm"]["scale"], eps), p["attn"], config)
        if config.norm_scheme != "pre_ln":
            branch = rms_norm(branch, p["post_attn_norm"]["scale"], eps)
        x = x + branch
        branch = mlp(rms_norm(x, p["mlp_norm"]["scale"], eps), p["mlp"])
        if config.norm_scheme != "pre_ln":
            branch = rms_norm(branch, p["post_mlp_norm"]["scale"], eps)
        x = x + branch
    x = rms_norm(x, params["final_norm"]["scale"], eps)
    head = params["embed"]["embedding"].T if config.tie_embeddings else params["head"]["kernel"]
    return x @ head


def _layer(tree, index):
    if isinstance(tree, dict):
        return {name: _layer(value, index) for name, value in tree.items()}
    return tree[index]
