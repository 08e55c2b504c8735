// A linear memory in the page: keys and values of one head are written, and gates computed, for any segment size.

const norm = (a) => Math.sqrt(dot(a, a));
const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;

function readTime(data) {
  const { T, queries } = readSequence(data), D = data.width;
  const [keys, values, connectors] = ["keys", "values", "connectors"].map((name) => {
    const numbers = unpack(data[name]);
    if (numbers.length !== T * D) throw new Error(`${name} hold ${numbers.length} numbers, expected ${T} × ${D}.`);
    return range(T, (t) => numbers.subarray(t * D, (t + 1) * D));
  });
  const all = unpack(data.closeness);
  const closeness = data.sizes.map((_, i) => all.subarray(i * queries.length, (i + 1) * queries.length));
  const answer = (i, t) => data.answers[i][queries.indexOf(t)];
  const right = data.sizes.map((_, i) => queries.filter((t) => answer(i, t) === data.target[t]).length);
  return { ...data, keys, values, connectors, closeness, answer, right };
}

// Eq. 2 for the tokens from `first` to `last`: M + v kᵀ.
function written({ keys, values, width }, start, first, last) {
  const M = Float64Array.from(start);
  for (let t = first; t <= last; t++)
    for (let i = 0; i < width; i++) for (let j = 0; j < width; j++) M[i * width + j] += values[t][i] * keys[t][j];
  return M;
}

// What depends on the segment size: the cut, the state and pool at the end of each segment, online states and gates.
function cut(data, size) {
  const T = data.tokens.length, D = data.width;
  const sequence = readSequence({ ...data, lengths: range(Math.ceil(T / size), (s) => Math.min(size, T - s * size)) });
  const { segmentOf, starts, lengths } = sequence, states = [], empty = new Float64Array(D * D);
  const before = (s) => (s && data.init === "checkpoint" ? states[s - 1] : empty);
  const pool = (first, last) => Float64Array.from({ length: D }, (_, i) => mean(range(last - first + 1, (j) => data.keys[first + j][i])));
  lengths.forEach((n, s) => states.push(written(data, before(s), starts[s], starts[s] + n - 1)));
  const pools = lengths.map((n, s) => pool(starts[s], starts[s] + n - 1));
  const online = (t) => written(data, before(segmentOf[t]), starts[segmentOf[t]], t);
  const gates = (t) => { // Eq. 10, the online memory last
    const s = segmentOf[t], scores = [...pools.slice(0, s), pool(starts[s], t)].map((p) => dot(data.connectors[t], p));
    const top = Math.max(...scores), weights = scores.map((r) => Math.exp(r - top)), total = weights.reduce((a, b) => a + b);
    return weights.map((w) => w / total);
  };
  const sizes = Float64Array.from(states.flatMap((M) => [...M].map(Math.abs))).sort();
  const strong = sizes[Math.floor(0.99 * (sizes.length - 1))]; // full colour; few numbers are larger
  const held = (t) => ({ rnn: D * D, mc: (segmentOf[t] + 1) * D * D, attention: 2 * (t + 1) * D });
  return { ...sequence, size, dial: data.sizes.indexOf(size), states, online, gates, strong, held };
}
