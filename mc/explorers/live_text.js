// A model of text that runs in the page: type, and see which earlier passages each word reads and what is expected next.

const MOST_TOKENS = 512, MOST_LETTERS = 8000, GO_ON = 24, LIKELIEST = 40;
const TEMPERATURES = { "0.0": "0: the likeliest", 0.5: "0.5", 0.8: "0.8", "1.0": "1" };

// Everything that the panels show of one run.
function readOnce(net, rules, tokens, tokenizer, { vocab_size, label }, title) {
  const started = performance.now(), found = forward(net, tokens, rules), { logits, traces } = found, T = tokens.length;
  if (logits.some((x) => !Number.isFinite(x))) throw new Error("the logits are NaN or infinite");
  const pieces = tokenizer.pieces(tokens), none = pieces.map(() => null), rows = range(T, (t) => probabilities(logits, t, vocab_size));
  const named = (row) => choose(row, vocab_size, 3).map((i) => [tokenizer.pieces([i])[0], row[i]]);
  const next_prob = rows.map((row, t) => (t + 1 < T ? row[tokens[t + 1]] : null)), took = performance.now() - started;
  const variant = { ...variantOf(found, rules, T, label), answers: rows.map(named), target_prob: none, next_prob };
  const data = { title, text: true, tokens: pieces, roles: pieces.map(() => "token"), source: none, target: none, lengths: lengthsOf(traces, T), variants: [variant] };
  const nats = next_prob.slice(0, -1).reduce((sum, p) => sum - Math.log(p), 0);
  return { data, took, perplexity: T > 1 ? Math.exp(nats / (T - 1)) : null };
}

// The next token: the likeliest at temperature 0, else drawn from the `LIKELIEST`.
function drawNext(logits, size, temperature, random) {
  const row = Float64Array.from(logits.subarray(logits.length - size)), best = choose(row, size, LIKELIEST);
  if (!temperature) return best[0];
  const weights = Float64Array.from(best, (i) => row[i] / temperature);
  softmax(weights, weights.length);
  let left = random();
  return best[weights.findIndex((p) => (left -= p) < 0)] ?? best[0];
}

// The tokens of a text, no more than the page reads, and a sentence where it reads not all.
function tokensOf(text, tokenizer) {
  const tokens = tokenizer.encode(text.slice(0, MOST_LETTERS)), more = text.length > MOST_LETTERS || tokens.length > MOST_TOKENS;
  if (!tokens.length) throw new Error("type some text: the model needs one token or more");
  return { tokens: tokens.slice(0, MOST_TOKENS), note: more ? `The page reads ${MOST_TOKENS} tokens; the text goes on after them and is not read.` : "" };
}

// Where one types: the text, texts that are prepared, and the model's own words.
function textPanel(data, set) {
  const box = h("textarea", { rows: 5, "aria-label": "text", maxlength: 4 * MOST_LETTERS, spellcheck: "false", dir: "auto" }), passage = menu("text", (title) => title && set.text(data.passages[title]));
  const go = h("button", { type: "button" }), warmth = menu("temperature", (value) => set.draws({ temperature: +value })), seed = h("input", { type: "number", min: 0, max: 2 ** 31 - 1, "aria-label": "seed" });
  let waiting;
  passage.fill({ "": { "": "your own", ...Object.fromEntries(Object.keys(data.passages).map((title) => [title, title])) } });
  warmth.fill({ "": TEMPERATURES });
  box.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => set.text(box.value), 200); });
  box.addEventListener("keydown", (event) => event.stopPropagation()); // the book's theme turns pages on arrow keys
  go.addEventListener("click", () => set.goOn());
  seed.addEventListener("change", () => set.draws({ seed: Math.max(0, Math.floor(+seed.value) || 0) }));
  // At its end one types on.
  const draw = (s, writing) => {
    if (box.value !== s.text) { box.value = s.text; requestAnimationFrame(() => { box.scrollTop = box.scrollHeight; }); }
    passage.draw(Object.keys(data.passages).find((title) => data.passages[title] === s.text) ?? "");
    warmth.draw(s.temperature.toFixed(1));
    seed.value = s.seed;
    setText(go, writing ? "stop" : `go on for ${GO_ON} tokens`);
  };
  const el = h("div", {}, h("label", { class: "typed" }, "type, or paste a text", box),
    h("div", { class: "controls edit" }, passage.el, go, warmth.el, h("label", { class: "seed" }, "seed", seed)));
  return { el, draw };
}

function liveText(model, root) {
  const data = model.get("data"), entries = data.models ?? [], names = ["name", "aggregation", "gate", "top_k", "size", "text"];
  if (!entries.length) throw new Error("there is no model to run.");
  const read = () => Object.fromEntries(names.map((name) => [name, model.get(name)])), entryOf = (name) => entries.find((entry) => entry.name === name);
  const tokenizer = readTokenizer(data.tokenizer), netOf = library(model, entries);
  const status = h("p", { class: "status score" }), alert = h("p", { class: "leftout", role: "alert" }), note = h("p", { class: "leftout" }), view = h("div", { class: "mc-explorer mc-routing" });
  let s = { ...read(), seed: data.seed, temperature: 0.8 }, held = model.get("token"), ticket = 0, run = null, saving = false, writing = 0;
  const failed = ({ message }) => {
    alert.hidden = false;
    alert.textContent = `${message[0].toUpperCase()}${message.slice(1)}${/[.?]$/.test(message) ? "" : "."}${run ? " Below is still the last run." : ""}`;
    root.dataset.state = "failed";
  };
  const drawControls = () => { rules.draw(s, entryOf(s.name)); panel.draw(s, writing); };
  const show = () => {
    const state = { data: run.data, token: held < 0 ? run.data.tokens.length - 1 : Math.min(held, run.data.tokens.length - 1), variant: -1 };
    const hold = (name, value) => { if (name === "token" && value !== held) { held = value; model.set("token", value); model.save_changes(); } };
    routing({ get: (name) => state[name], save_changes() {}, set: hold }, view, true);
  };
  const score = (next, plain) => status.replaceChildren(h("b", {}, plural(next.data.tokens.length, "token")), ` in ${plural(next.data.lengths.length, "segment")}`,
    next.perplexity === null ? "" : ` · perplexity ${next.perplexity.toFixed(1)}${plain === null ? "" : ` (as trained ${plain.toFixed(1)})`}`, ` · ${Math.round(next.took)} ms`);
  const go = async () => {
    const mine = ++ticket;
    root.dataset.state = "running";
    drawControls();
    try {
      const { tokens, note: cut } = tokensOf(s.text, tokenizer), net = await netOf(s.name), entry = entryOf(s.name);
      if (mine !== ticket) return; // something was changed meanwhile
      const wanted = rulesFor(net, s), next = readOnce(net, wanted, tokens, tokenizer, entry, titleOf(entry.label, wanted));
      score(next, alike(wanted, net.rules) || next.perplexity === null ? null : readOnce(net, net.rules, tokens, tokenizer, entry, "").perplexity);
      run = next;
      alert.hidden = true;
      note.hidden = !cut;
      setText(note, cut);
      Object.assign(root.dataset, { took: next.took.toFixed(1) });
      show();
      root.dataset.state = "ready";
    } catch (error) { if (mine === ticket) failed(error); }
  };
  const save = (changes) => {
    s = { ...s, ...changes };
    saving = true;
    for (const name of names) model.set(name, s[name]);
    model.save_changes();
    saving = false;
  };
  const set = (changes) => { writing = 0; save(changes); go(); };
  set.text = (text) => { held = -1; set({ text }); };
  set.draws = (changes) => { s = { ...s, ...changes }; };
  set.model = (name) => {
    const { aggregation, gate = "context", top_k = 4, segment_size = 16 } = entryOf(name).rules;
    set({ name, aggregation, gate, top_k, size: segment_size });
  };
  // One token after the other, each drawn where the text then ends; anything that is changed meanwhile stops it.
  set.goOn = async () => {
    if (writing) { writing = 0; return go(); }
    const mine = (writing = ++ticket), random = randomNumbers(s.seed);
    try {
      const { tokens, note: cut } = tokensOf(s.text, tokenizer), net = await netOf(s.name), wanted = rulesFor(net, s), text = s.text, added = [];
      if (cut || tokens.length >= MOST_TOKENS) throw new Error(`the page reads ${MOST_TOKENS} tokens, and this text has them; shorten it and the model goes on`);
      while (writing === mine && added.length < GO_ON && tokens.length < MOST_TOKENS) {
        const next = drawNext(forward(net, tokens, wanted).logits, entryOf(s.name).vocab_size, s.temperature, random);
        tokens.push(next);
        added.push(next);
        s = { ...s, text: text + tokenizer.decode(added) };
        drawControls();
        await new Promise((done) => setTimeout(done));
      }
      if (writing === mine) set.text(s.text);
    } catch (error) { writing = 0; drawControls(); failed(error); }
  };
  const rules = rulesPanel(entries, set), panel = textPanel(data, set);
  alert.hidden = note.hidden = true;
  root.replaceChildren(heading(data.title, "Type or change the text, and point at a word to see which earlier passages it reads. All is computed in this page."),
    panel.el, h("details", {}, h("summary", {}, "read the same weights in another way"), rules.el), alert, note, status, view);
  go();
  const follow = () => { if (!saving && names.some((name) => model.get(name) !== s[name])) { held = -1; writing = 0; s = { ...s, ...read() }; go(); } };
  return { ...Object.fromEntries(names.map((name) => [name, follow])), token: (t) => { if (t !== held && run) { held = t; show(); } } };
}

export default family("text", ["name", "aggregation", "gate", "top_k", "size", "text", "token"], liveText);
