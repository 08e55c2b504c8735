// Sequences of the tasks by the rules of mc.tasks, from a seed of the page's own, and the questions that are in any sequence.

const LONGEST = 512; // tokens

// Numbers from 0 to 1, the same for the same seed (mulberry32).
function randomNumbers(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let x = Math.imul(a ^ (a >>> 15), a | 1);
    x = (x + Math.imul(x ^ (x >>> 7), x | 61)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(n, random) {
  const order = range(n, (i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

// Keys from the lower half of the vocabulary, values from the upper one; fillers are keys that no pair has.
function drawTask({ task, vocab_size, length, pairs }, seed) {
  const random = randomNumbers(seed), half = vocab_size >> 1, lower = shuffled(half, random), keys = lower.slice(0, pairs), unused = lower.slice(pairs);
  const values = keys.map(() => half + Math.floor(random() * (vocab_size - half)));
  const filler = () => unused[Math.floor(random() * unused.length)];
  if (task === "mqar") {
    const asked = range(length - 2 * pairs, filler), places = shuffled(asked.length, random);
    keys.forEach((key, i) => { asked[places[i]] = key; });
    return [...keys.flatMap((key, i) => [key, values[i]]), ...asked];
  }
  const hay = length - pairs, text = range(hay, filler);
  // Every pair moves on by one for each pair before it, so that none overlap.
  shuffled(hay - pairs, random).slice(0, pairs).sort((a, b) => a - b).forEach((place, i) => text.splice(place + i, 2, keys[i], values[i]));
  return [...text, ...shuffled(pairs, random).map((i) => keys[i])];
}

// A key that a value followed before, and that none follows now, asks for the latest such value: the position of its value, or null.
function sourcesOf(tokens, vocab_size) {
  const half = vocab_size >> 1, latest = new Map();
  return tokens.map((token, t) => {
    if (token < half && (tokens[t + 1] ?? 0) >= half) { latest.set(token, t + 1); return null; }
    return latest.get(token) ?? null;
  });
}

// What each token is; pairs that hide in fillers are needles.
function rolesOf(sources) {
  const roles = sources.map(() => "filler");
  for (const s of sources) if (s !== null) Object.assign(roles, { [s - 1]: "key", [s]: "value" });
  sources.forEach((s, t) => { if (s !== null) roles[t] = "query"; });
  const hidden = roles.slice(0, roles.lastIndexOf("value")).includes("filler");
  return roles.map((role) => (hidden && (role === "key" || role === "value") ? `needle ${role}` : role));
}

// The tokens in a text of numbers, or an error that names the first word that is none.
function parseTokens(text, vocab_size) {
  const words = text.split(/[\s,]+/).filter(Boolean);
  words.forEach((one, i) => {
    if (!/^\d{1,9}$/.test(one) || +one >= vocab_size)
      throw new Error(`tokens must be whole numbers from 0 to ${vocab_size - 1}, separated by spaces or commas; number ${i + 1} is '${one.slice(0, 20)}'`);
  });
  if (!words.length || words.length > LONGEST) throw new Error(`tokens must be 1 to ${LONGEST} numbers; got ${words.length}`);
  return words.map(Number);
}
