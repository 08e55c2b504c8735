// A trained model that runs in the page: change tokens, rules or the model, and all of it is computed again (model.js, memory.js).
// What comes out is drawn by the panels of the routing explorer; below them are the states that were read.

// Everything that the panels show of one run: the data of the routing explorer, with gates as numbers.
function runOnce(net, rules, tokens, { name, label = name, vocab_size }, title) {
  const started = performance.now(), found = forward(net, tokens, rules), { logits, traces } = found, took = performance.now() - started;
  const T = tokens.length, sources = sourcesOf(tokens, vocab_size), asks = sources.some((s) => s !== null);
  const told = range(T, (t) => (!asks || sources[t] !== null ? probabilities(logits, t, vocab_size) : null));
  if (logits.some((x) => !Number.isFinite(x))) throw new Error("the logits are NaN or infinite");
  const best = (row) => choose(row, vocab_size, 3).map((i) => [`${i}`, row[i]]);
  const variant = { ...variantOf(found, rules, T, label), answers: told.map((row) => row && best(row)),
    target_prob: told.map((row, t) => (row && sources[t] !== null ? row[tokens[sources[t]]] : null)) };
  const data = { title, tokens: tokens.map(String), roles: asks ? rolesOf(sources) : tokens.map(() => "token"), source: sources,
    target: sources.map((s) => (s === null ? null : `${tokens[s]}`)), lengths: lengthsOf(traces, T), variants: [variant] };
  const asked = range(T, (t) => t).filter((t) => sources[t] !== null), right = asked.filter((t) => variant.answers[t][0][0] === data.target[t]).length;
  return { data, rules, traces, took, asked: asked.length, right };
}

const drawnFor = (entry, length, seed) =>
  drawTask({ ...entry, length, pairs: entry.task === "mqar" ? Math.min(length >> 2, (entry.vocab_size >> 1) - 1) : 8 }, seed);

// The result in a sentence; beside it what the model answers as it was trained.
function scoreLine(el, run, plain) {
  const count = run.asked ? [h("b", {}, `${run.right} of ${plural(run.asked, "question")} right`), plain === null ? "" : ` (as trained ${plain})`] : ["nothing is asked"];
  el.replaceChildren(...count, ` · ${plural(run.data.tokens.length, "token")} in ${Math.round(run.took)} ms`);
}

function live(model, root) {
  const data = model.get("data"), entries = data.models ?? [], names = ["name", "aggregation", "gate", "top_k", "size", "tokens"];
  if (!entries.length) throw new Error("there is no model to run.");
  const read = () => Object.fromEntries(names.map((name) => [name, model.get(name)])), entryOf = (name) => entries.find((entry) => entry.name === name);
  const status = h("p", { class: "status score" }), alert = h("p", { class: "leftout", role: "alert" }), view = h("div", { class: "mc-explorer mc-routing" });
  const netOf = library(model, entries);
  let s = { ...read(), seed: data.seed }, held = model.get("token"), ticket = 0, run = null, saving = false;
  const failed = ({ message }) => {
    alert.hidden = false;
    alert.textContent = `${message[0].toUpperCase()}${message.slice(1)}${/[.?]$/.test(message) ? "" : "."}${run ? " Below is still the last run." : ""}`;
    root.dataset.state = "failed";
  };
  const drawControls = () => { rules.draw(s, entryOf(s.name)); edit.draw(s, entryOf(s.name), clamp(Math.max(held, 0), s.tokens.length - 1)); };
  const hold = (t) => { held = t; model.set("token", t); model.save_changes(); drawControls(); states.draw(run, t); };
  const show = () => {
    const state = { data: run.data, token: held < s.tokens.length ? held : -1, variant: -1 };
    routing({ get: (name) => state[name], save_changes() {}, set: (name, value) => { if (name === "token" && value !== held) hold(value); } }, view, true);
    held = +view.dataset.token;
    drawControls();
    states.draw(run, held);
  };
  const go = async () => {
    const mine = ++ticket;
    root.dataset.state = "running";
    drawControls();
    try {
      const net = await netOf(s.name);
      if (mine !== ticket) return; // something was changed meanwhile
      const wanted = rulesFor(net, s), next = runOnce(net, wanted, s.tokens, entryOf(s.name), titleOf(entryOf(s.name).label ?? s.name, wanted));
      scoreLine(status, next, !next.asked || alike(wanted, net.rules) ? null : runOnce(net, net.rules, s.tokens, entryOf(s.name), "").right);
      run = next;
      alert.hidden = true;
      Object.assign(root.dataset, { right: next.right, asked: next.asked, took: next.took.toFixed(1) });
      show();
      root.dataset.state = "ready";
    } catch (error) { if (mine === ticket) failed(error); }
  };
  const set = (changes) => {
    s = { ...s, ...changes };
    saving = true;
    for (const name of names) model.set(name, s[name]);
    model.save_changes();
    saving = false;
    go();
  };
  set.model = (name) => {
    const entry = entryOf(name), before = entryOf(s.name), { aggregation, gate = "context", top_k = 4, segment_size = 16 } = entry.rules;
    const other = entry.task !== before.task || entry.vocab_size !== before.vocab_size, length = LENGTHS.includes(s.tokens.length) ? s.tokens.length : 256;
    set({ name, aggregation: aggregation === "attention" ? "none" : aggregation, gate, top_k, size: segment_size, ...(other ? { tokens: drawnFor(entry, length, s.seed) } : {}) });
  };
  set.draw = ({ length = LENGTHS.includes(s.tokens.length) ? s.tokens.length : 256, seed = s.seed }) => set({ seed, tokens: drawnFor(entryOf(s.name), length, seed) });
  set.token = (token) => set({ tokens: s.tokens.map((old, t) => (t === held ? token : old)) });
  set.text = (text) => { try { set({ tokens: parseTokens(text, entryOf(s.name).vocab_size) }); } catch (error) { failed(error); } };
  const rules = rulesPanel(entries, set), edit = tokensPanel(set), states = statesPanel();
  alert.hidden = true;
  root.replaceChildren(heading(data.title, "Choose a model and how its memories are read; click a token, or change it. All is computed where you are."),
    rules.el, edit.el, alert, status, view, states.el);
  go();
  const follow = () => { if (!saving && names.some((name) => model.get(name) !== s[name])) { s = { ...s, ...read() }; go(); } };
  return { ...Object.fromEntries(names.map((name) => [name, follow])), token: (t) => { if (t !== held && run && t >= 0 && t < s.tokens.length) { held = t; show(); } } };
}

export default family("live", ["name", "aggregation", "gate", "top_k", "size", "tokens", "token"], live);
