"""From a text file to a model that writes: tokenizer, corpus, training, generation. Needs the extra text.

python examples/train_on_your_text.py [FILE.txt]
"""
import sys
import tempfile
from pathlib import Path

import mc
from mc.text import BPETokenizer
from mc.text.corpora import prepare
from mc.train.runs import train_text

with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    text = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "book.txt"
    if len(sys.argv) == 1:
        text.write_text("".join(f"Segment {i} is kept, and can be read again.\n" for i in range(300)))

    tokenizer = BPETokenizer.train([text.read_text(encoding="utf-8")], 280)
    corpus = prepare([text], tokenizer, folder / "corpus")
    settings = dict(mixer="grm", d_model=32, num_heads=2, num_layers=1, segment_size=16)
    settings |= dict(length=64, batch_size=8, steps=60, warmup=5, learning_rate=1e-2, tensorboard=False)
    record = train_text(settings, corpus, folder / "run", progress=False)
    print(f"{record['tokens']:,} tokens, {record['bits_per_byte']:.2f} bits per byte of held-out text")

    model = mc.LanguageModel.load(folder / "run" / "model.safetensors")
    prompt = tokenizer.encode("Segment 1")
    made = model.generate([prompt], 24, temperature=0.0).all()[0]
    print(repr(tokenizer.decode(prompt + made)))
