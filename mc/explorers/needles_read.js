// What the page holds of models on long texts. x is a token; a slot is a memory, the cached ones first, the online memory last.

const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const OCTAVES = 5; // of the scale, to each side of the even share
const times = (share) => (share < 0.01 ? "under .01" : share < 0.1 ? share.toFixed(2).slice(1) : share < 9.95 ? share.toFixed(1) : share.toFixed(0));
const timesEven = (share) => (share === 0 ? "not read" : `${times(share)} × even`);
const level = (share) => Math.max(-1, Math.min(1, Math.log2(share) / OCTAVES));

// Tokens, their segments, and the questions in the order of their needles.
function readLongText(data, { tokens, questions }) {
  const bytes = bytesOf(tokens), T = bytes.length / 2, size = data.size, segments = Math.ceil(T / size);
  const ids = range(T, (t) => bytes[2 * t] + 256 * bytes[2 * t + 1]);
  const order = questions.map((_, i) => i).sort((a, b) => questions[a].source - questions[b].source);
  const asked = order.map((i) => ({ ...questions[i], index: i, key: data.words[ids[questions[i].at]], segment: Math.floor(questions[i].source / size) }));
  const roles = {};
  asked.forEach((q) => { roles[q.source - 1] = "key"; roles[q.source] = "value"; roles[q.at] = "query"; });
  return { T, size, segments, asked, word: (t) => data.words[ids[t]], role: (t) => roles[t] ?? "filler", start: (s) => s * size, end: (s) => Math.min(T, (s + 1) * size) };
}

// Of a model, a text and a router: what it answers to question `q` of `asked`, and the shares of its gates.
function readPass(text, variant, { bounds, routers }, router) {
  const data = routers[router] ?? routers.learned, { heads, blocks } = variant, layers = blocks.length;
  const slots = bounds.length + 1, spans = [...bounds, [bounds.length ? bounds.at(-1)[1] : 0, text.T]];
  const answer = (q) => data.answers[q.index], isRight = (q) => answer(q)[0] === q.target;
  if (!data.shares) return { routed: router in routers, gated: false, answer, isRight, spans, hits: () => [] };
  const { read, base64, low, high } = data.shares, bits = bytesOf(read), values = bytesOf(base64);
  const count = data.answers.length * layers * heads * slots, shares = new Float32Array(count);
  let stored = 0;
  for (let i = 0; i < count; i++) if ((bits[i >> 3] >> (i & 7)) & 1) shares[i] = 2 ** (low + (values[stored++] / 255) * (high - low));
  if (stored !== values.length) throw new Error(`the shares of ${variant.name} are ${values.length} numbers, expected ${stored}.`);
  const share = (q, layer, head, slot) => shares[((q.index * layers + layer) * heads + head) * slots + slot];
  const mean = (q, layer, slot) => {
    const chosen = layer === null ? range(layers, (l) => l) : [Math.min(layer, layers - 1)];
    return chosen.reduce((sum, l) => sum + range(heads, (head) => share(q, l, head, slot)).reduce((a, b) => a + b), 0) / chosen.length / heads;
  };
  const slotAt = (t) => { const i = spans.findIndex(([first, end]) => t >= first && t < end); return i < 0 ? slots - 1 : i; };
  const hits = (q) => range(layers, (layer) => [...data.hit[q.index].slice(layer * heads, (layer + 1) * heads)].map((c) => c === "1"));
  const online = (slot) => slot === slots - 1;
  return { routed: router in routers, gated: true, answer, isRight, spans, slots, share, mean, slotAt, online, hits, seen: (q) => data.seen[q.index] };
}

function readNeedles(data) {
  if (!data?.texts?.length || !data?.variants?.length) throw new Error("there is no text to show yet.");
  const texts = data.texts.map((text) => readLongText(data, text)), known = new Map();
  const pass = (i, text, router) => {
    const variant = data.variants[i], key = [i, text, router].join();
    if (variant.diverged) return null;
    if (!known.has(key)) known.set(key, readPass(texts[text], variant, variant.passes[text], router));
    return known.get(key);
  };
  return { ...data, texts, pass };
}
