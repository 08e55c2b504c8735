"""What did each token read? Scores, gates and choices of a layer, as rows.

python examples/inspect_a_layer.py
"""
import torch

import mc

torch.manual_seed(0)
config = mc.MCConfig(d_model=32, num_heads=2, aggregation="ssc", top_k=1, segment_size=8)
layer = mc.MemoryCachingLayer(config)
x = torch.randn(1, 30, 32)

trace = layer.inspect(x)
print("cached memories, first token and one past the last:", trace.bounds)
print("gates (batch, tokens, heads, memories):", tuple(trace.gates.shape))

token = 29
print(f"token {token} read")
for row in trace.rows:                                  # trace.to_frame() is the same as a pandas table
    if row["token"] == token:
        mark = "read" if row["chosen"] else "left out"
        print(f"  head {row['head']}, memory {row['memory']}: score {row['score']:+.2f}, gate {row['gate']:.2f}, {mark}")

total = trace.gates[0, token].sum(-1)
print("gates of each head add up to", [round(share, 3) for share in total.tolist()])
