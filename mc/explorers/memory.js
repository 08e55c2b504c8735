// Memory Caching with a linear memory, and attention in its place: what a mixer of model.js does between its projections.

// Eq. 2: M + v kᵀ, in place. `at`: where the token's key and value of this head begin.
function write(M, k, v, at, D) {
  for (let i = 0; i < D; i++) for (let j = 0; j < D; j++) M[i * D + j] += v[at + i] * k[at + j];
}

// y += g M q, two rows at a time.
function read(y, M, q, at, D, g) {
  for (let i = 0; i < D; i += 2) {
    const row = i * D, next = i + 1 < D ? row + D : row;
    let a = 0, b = 0;
    for (let j = 0; j < D; j++) { const x = q[at + j]; a += M[row + j] * x; b += M[next + j] * x; }
    y[at + i] += g * a;
    if (next > row) y[at + i + 1] += g * b;
  }
}

function softmax(scores, n) {
  let top = -Infinity, total = 0;
  for (let i = 0; i < n; i++) if (scores[i] > top) top = scores[i];
  for (let i = 0; i < n; i++) total += scores[i] = Math.exp(scores[i] - top);
  for (let i = 0; i < n; i++) scores[i] /= total;
}

// The highest k of the first n scores; of equal ones the earlier (mc.read.sparse.choose).
function choose(scores, n, k) {
  const order = Array.from({ length: n }, (_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
  return order.slice(0, k);
}

// Gates of one token over n cached memories and the online one, in place; those that are not read get none (Eq. 10, 16-17).
function gateOf(scores, n, rules) {
  if (rules.aggregation === "residual" || rules.aggregation === "none") return scores.fill(1, 0, n + 1);
  if (rules.aggregation === "ssc" && rules.top_k < n) {
    const chosen = new Set(choose(scores, n, rules.top_k));
    for (let i = 0; i < n; i++) if (!chosen.has(i)) scores[i] = -Infinity;
  }
  return softmax(scores, n + 1);
}

// Eq. 4-5 for all T tokens: write, score, gate, read, and at the end of a segment cache state and pool. `states[head]` and `gates`
// (T, H, N + 1) are those of the N memories that some token reads; the online one is the last, and a memory that is not there has gate 0.
function cache({ q, k, v, u, T, width }, rules) {
  const H = rules.num_heads, D = width / H, size = rules.aggregation === "none" ? T : rules.segment_size;
  const N = Math.ceil(T / size) - 1, gates = new Float64Array(T * H * (N + 1)), y = new Float64Array(T * width);
  const gated = rules.aggregation !== "none" && rules.aggregation !== "residual", mute = rules.gate === "uniform";
  const states = Array.from({ length: H }, (_, head) => {
    const cached = [], pools = new Float64Array((N + 1) * D), scores = new Float64Array(N + 1), sum = new Float64Array(D);
    let M = new Float64Array(D * D), all = new Float64Array(D * D), seen = 0; // `all`: the sum of what is cached (Eq. 13)
    for (let t = 0; t < T; t++) {
      const at = t * width + head * D, n = cached.length;
      write(M, k, v, at, D);
      seen++;
      for (let i = 0; i < D; i++) { sum[i] += k[at + i]; pools[n * D + i] = sum[i] / seen; }
      if (gated) for (let s = 0; s <= n; s++) {
        let score = 0;
        for (let i = 0; i < D; i++) score += u[at + i] * pools[s * D + i];
        scores[s] = mute ? 0 : rules.gate_scale * score;
      }
      gateOf(scores, n, rules);
      if (gated) for (let s = 0; s < n; s++) { if (scores[s]) read(y, cached[s], q, at, D, scores[s]); }
      else if (n) read(y, all, q, at, D, 1);
      read(y, M, q, at, D, scores[n]);
      const row = (t * H + head) * (N + 1);
      for (let s = 0; s < n; s++) gates[row + s] = scores[s];
      gates[row + N] = scores[n];
      if (seen === size && n < N) {
        cached.push(M);
        for (let i = 0; i < D * D; i++) all[i] += M[i];
        M = rules.init === "checkpoint" ? M.slice() : new Float64Array(D * D);
        sum.fill(0);
        seen = 0;
      }
    }
    return cached;
  });
  return { y, gates, states, k, v, N, H, D, size };
}

// The online memory of a head just after token t.
function onlineState({ states, k, v, D, H, size }, rules, head, t) {
  const s = Math.floor(t / size), M = rules.init === "checkpoint" && s ? states[head][s - 1].slice() : new Float64Array(D * D);
  for (let i = s * size; i <= t; i++) write(M, k, v, i * H * D + head * D, D);
  return M;
}

// Eq. 1. Its gates are the weights of the tokens, added up over segments as long as those that a memory would have.
function attend({ q, k, v, T, width, scale }, rules) {
  const H = rules.num_heads, D = width / H, size = rules.segment_size, N = Math.ceil(T / size) - 1;
  const gates = new Float64Array(T * H * (N + 1)), y = new Float64Array(T * width), weights = new Float64Array(T);
  const rows = (x, head) => { const own = new Float64Array(T * D); for (let t = 0; t < T; t++) own.set(x.subarray(t * width + head * D, t * width + head * D + D), t * D); return own; };
  for (let head = 0; head < H; head++) {
    const [Q, K, V] = [q, k, v].map((x) => rows(x, head)), sharp = Math.exp(scale.data[head]);
    for (let t = 0; t < T; t++) {
      const at = t * width + head * D, row = (t * H + head) * (N + 1), running = Math.floor(t / size);
      for (let s = 0; s <= t; s++) {
        let a = 0, b = 0;
        for (let i = 0; i < D; i += 2) { a += Q[t * D + i] * K[s * D + i]; if (i + 1 < D) b += Q[t * D + i + 1] * K[s * D + i + 1]; }
        weights[s] = sharp * (a + b);
      }
      softmax(weights, t + 1);
      for (let segment = 0, s = 0; segment <= running; segment++) {
        let sum = 0;
        for (const end = Math.min((segment + 1) * size, t + 1); s < end; s++) sum += weights[s];
        gates[row + (segment === running ? N : segment)] = sum;
      }
      for (let i = 0; i < D; i++) {
        let sum = 0;
        for (let s = 0; s <= t; s++) sum += weights[s] * V[s * D + i];
        y[at + i] = sum;
      }
    }
  }
  return { y, gates, states: [], N, H, D, size };
}
