"""One text, cut over two processes: each writes its own segments, only their end states travel.

python examples/two_processes.py      (with more machines: torchrun, and without the spawn)
"""
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import mc
from mc.distributed import context_parallel, shard, sum_gradients, unshard

RANKS, SIZE = 2, 16


def work(rank, meeting):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    torch.manual_seed(0)                                # the same layer and text in both
    layer = mc.MemoryCachingLayer(mc.MCConfig(32, 2, segment_size=SIZE))
    x = torch.randn(1, 100, 32)

    over = context_parallel(layer)                      # the same weights, a part of the text
    mine = shard(x, rank, RANKS, SIZE)
    y = over(mine)
    y.square().sum().backward()
    sum_gradients(over)
    grads = [p.grad.clone() for p in layer.parameters()]
    whole = unshard(y)

    layer.zero_grad()
    alone = layer(x)                                    # what one process would do
    alone.square().sum().backward()
    gap = max((a - p.grad).abs().max().item() for a, p in zip(grads, layer.parameters()))
    print(f"rank {rank}: {mine.shape[1]} tokens; outputs differ by {(whole - alone).abs().max().item():.0e}, gradients by {gap:.0e}", flush=True)
    assert torch.allclose(whole, alone, atol=1e-5) and gap < 1e-3
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (Path(folder, "meeting"),), nprocs=RANKS)
