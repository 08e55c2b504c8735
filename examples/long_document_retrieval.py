"""Read a document of 2,048 tokens once, then ask it eight questions; each goes on from the same cache.

The model is one that this repository trained on documents of 128 tokens (benchmark extrapolation: pairs of key and value hidden in hay).

python examples/long_document_retrieval.py
"""
from pathlib import Path

import torch

import mc
from mc.tasks.needles import Needles

shipped = Path(__file__).resolve().parents[1] / "results/extrapolation/cpu/models/ssc.safetensors"
model = mc.LanguageModel.load(shipped)
mixer, pairs = model.config.mixer, 8
batch = Needles(model.config.vocab_size, length=2048, pairs=pairs).sample(1, torch.Generator().manual_seed(1))
document, questions = batch.tokens[:, :-pairs], batch.tokens[0, -pairs:]
answers, places = batch.labels[0, -pairs:], batch.source[0, -pairs:]

with torch.no_grad():
    _, cache = model.forward_with_cache(document, last=True)
    print(f"{document.shape[1]} tokens read into {len(cache[0])} states a layer, {cache.nbytes / 1024:.0f} KiB")
    _, traces = model.inspect(batch.tokens)             # which segments the questions chose
    found = looked = 0
    for i, (key, value, place) in enumerate(zip(questions, answers, places)):
        logits, _ = model.forward_with_cache(key.view(1, 1), cache)     # the cache itself stays as it is
        said = logits[0, -1].argmax()
        at = document.shape[1] + i
        segment = place.item() // mixer.segment_size
        chosen = any(trace.chosen[0, at, :, segment].any() for trace in traces)
        found, looked = found + int(said == value), looked + int(chosen)
        print(f"key {key.item():3}: {said.item()}, {'right' if said == value else f'not {value.item()}'}; "
              f"segment {segment} {'read' if chosen else 'not read'}")
print(f"{found} of {pairs} right, each reading at most {mixer.top_k} of {len(cache[0])} segments in a head; {looked} looked where the answer is")
