"""A memory of your own: three functions, and every way to read works on it.

python examples/your_own_memory.py
"""
import warnings

import torch
from torch import nn

import mc

warnings.filterwarnings("ignore", message=".*token by token.*")  # three functions are slow: write `scan` to be fast


class Fading:
    "One matrix that forgets by the share `alpha` a token: M = alpha M + v kᵀ."

    def start(self, k, v):
        return {"m": v.new_zeros(*v.shape, k.shape[-1])}

    def write(self, state, k, v, alpha):
        return {"m": alpha[..., None, None] * state["m"] + v[..., :, None] * k[..., None, :]}

    def read(self, state, q):
        return (state["m"] @ q[..., None])[..., 0]


class FadingBackend(nn.Module):
    "What is learned about it: `alpha` of every token and head, from the layer's input."

    def __init__(self, d_model, num_heads):
        super().__init__()
        self.alpha = nn.Linear(d_model, num_heads)
        nn.init.constant_(self.alpha.bias, 4.0)         # begins with little forgetting

    def forward(self, x):
        return Fading(), {"alpha": self.alpha(x).sigmoid()}


torch.manual_seed(0)
q, k, v, u = torch.randn(4, 1, 24, 2, 8)                # (B, T, H, D)
alpha = torch.full((1, 24, 2), 0.9)
for way in ("residual", "grm", "ssc"):
    y = mc.memory_caching(q, k, v, u, Fading(), aggregation=way, segments=8, coefficients={"alpha": alpha})
    print(f"{way}: {tuple(y.shape)}")

layer = mc.MemoryCachingLayer(mc.MCConfig(16, 2, segment_size=8), backend=FadingBackend(16, 2))
x = torch.randn(1, 24, 16)
y, cache = layer.forward_with_cache(x)
y.sum().backward()
print(f"in a layer: {tuple(y.shape)}, {len(cache)} cached states, gradient of alpha {layer.backend.alpha.weight.grad.norm():.3f}")
