"""A model that you have, with attention in its blocks: put Memory Caching in its place and train on.

python examples/mc_in_an_existing_block.py
"""
import torch
from torch import nn
from torch.nn import functional as F

import mc


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def trained(model, steps=80):
    "Losses of learning texts that repeat themselves after four tokens."
    optimiser, draw, losses = torch.optim.AdamW(model.parameters(), 1e-2), torch.Generator().manual_seed(0), []
    for _ in range(steps):
        text = torch.randint(8, (32, 4), generator=draw).repeat(1, 6)
        loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(8, 32), Block(32, 2), Block(32, 2), nn.LayerNorm(32), nn.Linear(32, 8))
for block in model:
    if isinstance(block, Block):
        block.attn = mc.MemoryCachingLayer(mc.MCConfig(32, 2, segment_size=8))  # the only change

losses = trained(model)
print(f"loss {losses[0]:.2f}, after {len(losses)} steps {losses[-1]:.2f}")
