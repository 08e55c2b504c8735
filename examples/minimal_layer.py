"""The layer in a dozen lines: train it, stream with it, keep what it has read.

python examples/minimal_layer.py
"""
import torch

import mc

torch.manual_seed(0)
config = mc.MCConfig(d_model=64, num_heads=4, aggregation="grm", segment_size=16)
layer = mc.MemoryCachingLayer(config)
x = torch.randn(2, 100, 64)                             # batch, tokens, width

y = layer(x)                                            # all tokens at once, causal: to train
y.square().mean().backward()
print("all at once:", tuple(y.shape))

with torch.no_grad():
    prompt, cache = layer.forward_with_cache(x[:, :90])     # a prompt, and what it leaves
    print(f"after 90 tokens: {len(cache)} states, {cache.nbytes / 1024:.0f} KiB")
    steps = []
    for t in range(90, 100):                            # then token by token
        y_t, cache = layer.step(x[:, t], cache)
        steps.append(y_t)

same = torch.cat([prompt, torch.stack(steps, 1)], 1)
print(f"largest difference from all at once: {(same - y).abs().max().item():.0e}")
