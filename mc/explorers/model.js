// A trained language model in the page: its weights from a safetensors file, and its forward pass as mc.nn computes it, with a linear
// memory or with attention in its blocks. Weights are 16 or 32 bits wide, all that is computed from them 64.

// Of MCConfig.
const DEFAULTS = { backend: "linear", aggregation: "grm", segmentation: "constant", segment_size: 64, init: "independent", gate: "context",
  top_k: 4, pool: "mean", pool_blocks: 1, gate_scale: 1, softmax: "chosen", conv_size: 2 };

// The numbers of 16 bits (binary16) in `bytes`, which 32 bits hold exactly.
function halves(bytes) {
  const all = new Uint16Array(bytes);
  return Float32Array.from(all, (x) => {
    const sign = x >> 15 ? -1 : 1, power = (x >> 10) & 31, part = (x & 1023) / 1024;
    return power === 31 ? (part ? NaN : sign * Infinity) : sign * (power ? (1 + part) * 2 ** (power - 15) : part * 2 ** -14);
  });
}

// { config, weights: { name: { data, shape } } } of the bytes of a file that LanguageModel.save wrote.
function readModel(bytes, name = "the file") {
  const broken = (why) => new Error(`${name} is not a complete model of ours: ${why}.`), view = new DataView(bytes);
  const end = bytes.byteLength > 8 ? 8 + Number(view.getBigUint64(0, true)) : Infinity;
  if (end > bytes.byteLength) throw broken("it ends within its header");
  let header, about;
  try {
    header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, end - 8)));
    about = JSON.parse(header.__metadata__.about).model;
  } catch { throw broken("its header cannot be read"); }
  const weights = {};
  delete header.__metadata__;
  for (const [key, { dtype, shape, data_offsets: [from, until] }] of Object.entries(header)) {
    if (dtype !== "F32" && dtype !== "F16") throw broken(`${key} is ${dtype}, not F32 or F16`);
    if (end + until > bytes.byteLength) throw broken(`${key} is cut off`);
    const own = bytes.slice(end + from, end + until);
    weights[key] = { shape, data: dtype === "F16" ? halves(own) : new Float32Array(own) };
    if (!weights[key].data.every(Number.isFinite)) throw new Error(`${name} has diverged: ${key} holds NaN or infinity.`);
  }
  const { mixer, ...config } = about, attends = mixer.kind === "AttentionConfig";
  const rules = attends ? { ...mixer, aggregation: "attention", segment_size: 16 } : { ...DEFAULTS, ...mixer };
  const known = attends || (rules.backend === "linear" && rules.segmentation === "constant" && rules.pool === "mean" && rules.pool_blocks === 1 && rules.softmax === "chosen" && rules.gate !== "position");
  if (!known) throw new Error(`${name} is a model that the page cannot run: only linear memories in segments of one length.`);
  return { config, rules, weights, connected: "blocks.0.mixer.connector.weight" in weights };
}

// y = x Wᵀ: x holds T rows of n numbers, W is (m, n). Four rows of W at a time, so that no sum waits for the one before.
function linear(x, { data, shape: [m, n] }, T) {
  const y = new Float64Array(T * m);
  for (let t = 0; t < T; t++) {
    const row = x.subarray(t * n, t * n + n);
    for (let o = 0; o < m; o += 4) {
      const [i0, i1, i2, i3] = [o * n, Math.min(o + 1, m - 1) * n, Math.min(o + 2, m - 1) * n, Math.min(o + 3, m - 1) * n];
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0; i < n; i++) {
        const value = row[i];
        a += data[i0 + i] * value;
        b += data[i1 + i] * value;
        c += data[i2 + i] * value;
        d += data[i3 + i] * value;
      }
      const at = t * m + o, left = m - o;
      y[at] = a;
      if (left > 1) y[at + 1] = b;
      if (left > 2) y[at + 2] = c;
      if (left > 3) y[at + 3] = d;
    }
  }
  return y;
}

// w x / sqrt(mean x² + 1e-6), for every row as long as w.
function rmsNorm(x, { data: w }) {
  const y = new Float64Array(x.length), n = w.length;
  for (let at = 0; at < x.length; at += n) {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += x[at + i] ** 2;
    const scale = 1 / Math.sqrt(sum / n + 1e-6);
    for (let i = 0; i < n; i++) y[at + i] = x[at + i] * scale * w[i];
  }
  return y;
}

// Rows of length one; shorter than that only where they are shorter than 1e-3.
function unit(x, n) {
  for (let at = 0; at < x.length; at += n) {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += x[at + i] ** 2;
    const scale = 1 / Math.max(Math.sqrt(sum), 1e-3);
    for (let i = 0; i < n; i++) x[at + i] *= scale;
  }
  return x;
}

const silu = (x) => x / (1 + Math.exp(-x));

function add(x, y) { for (let i = 0; i < x.length; i++) x[i] += y[i]; }

// W [x_{t-K+1}; ...; x_t]: a window of K inputs, zeros before the first, the index of the input outermost (CausalConv).
function convolution(x, weight, T, width, K) {
  const windows = new Float64Array(T * width * K);
  for (let t = 0; t < T; t++) for (let i = 0; i < width; i++) for (let j = 0; j < K; j++) {
    const from = t - K + 1 + j;
    if (from >= 0) windows[(t * width + i) * K + j] = x[from * width + i];
  }
  return linear(windows, weight, T);
}

// q, k and v of all tokens, each T rows of `width`, q and k of length one in every head.
function projections(x, model, weights, T, width) {
  const { rules: { num_heads, conv_size } } = model, all = convolution(x, weights("conv.proj.weight"), T, width, conv_size);
  const [q, k, v] = [0, 1, 2].map((part) => {
    const rows = new Float64Array(T * width);
    for (let t = 0; t < T; t++) rows.set(all.subarray((3 * t + part) * width, (3 * t + part + 1) * width), t * width);
    return rows;
  });
  const D = width / num_heads;
  return { q: unit(q, D), k: unit(k, D), v };
}

// Behind the mixer: norm of every head, gate, projection.
function closing(y, x, weights, T) {
  const normed = rmsNorm(y, weights("norm.weight")), gate = linear(x, weights("gate.weight"), T);
  for (let i = 0; i < normed.length; i++) normed[i] *= silu(gate[i]);
  return linear(normed, weights("out.weight"), T);
}

// Logits (T, vocabulary) of `tokens`, and for every block what its mixer did: { gates (T, H, N + 1), states, ... }.
function forward(model, tokens, rules = model.rules) {
  const { config, weights } = model, T = tokens.length, embedding = weights["embedding.weight"], width = embedding.shape[1];
  const x = new Float64Array(T * width), traces = [];
  tokens.forEach((token, t) => x.set(embedding.data.subarray(token * width, (token + 1) * width), t * width));
  for (let b = 0; b < config.num_layers; b++) {
    const own = (name) => weights[`blocks.${b}.${name}`], mixers = (name) => own(`mixer.${name}`);
    const input = rmsNorm(x, own("mixer_norm.weight")), { q, k, v } = projections(input, model, mixers, T, width);
    const mix = rules.aggregation === "attention" ? attend : cache;
    const u = mix === cache && rules.gate === "context" && mixers("connector.weight") ? linear(input, mixers("connector.weight"), T) : q;
    const trace = mix({ q, k, v, u, T, width, scale: mixers("log_scale") }, rules);
    add(x, closing(trace.y, input, mixers, T));
    const up = linear(rmsNorm(x, own("mlp_norm.weight")), own("up.weight"), T), inner = own("down.weight").shape[1], hidden = new Float64Array(T * inner);
    for (let t = 0; t < T; t++) for (let i = 0; i < inner; i++) hidden[t * inner + i] = silu(up[2 * t * inner + i]) * up[(2 * t + 1) * inner + i];
    add(x, linear(hidden, own("down.weight"), T));
    traces.push(trace);
  }
  return { logits: linear(rmsNorm(x, weights["norm.weight"]), embedding, T), traces };
}
