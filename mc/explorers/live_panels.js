// What one can turn and change in the live explorer, and the states that it shows.

const READINGS = { none: "no caching", residual: "residual", grm: "GRM", soup: "Soup", ssc: "SSC" };
const CONNECTORS = { context: "u = x W", shared: "u = q", uniform: "none: equal" };
const SIZES = [2, 4, 8, 16, 32, 64, 128], LENGTHS = [64, 128, 256, 512];
const weighs = (way) => ["grm", "soup", "ssc", "attention"].includes(way);

function menu(label, pick) {
  const select = h("select", { "data-name": label }), el = h("label", {}, label, select);
  select.addEventListener("change", () => pick(select.value));
  const option = ([value, text]) => h("option", { value }, text);
  // `groups`: titles and what is under them; one without a title is not grouped.
  const fill = (groups) => select.replaceChildren(...Object.entries(groups).flatMap(([title, options]) => {
    const under = Object.entries(options).map(option);
    return title ? [h("optgroup", { label: title }, ...under)] : under;
  }));
  const draw = (value, disabled = false) => { select.value = value; select.disabled = disabled; };
  return { el, fill, draw };
}

function ladder(label, steps, unit, pick) {
  const input = h("input", { type: "range", min: 0, max: steps.length - 1, step: 1, "data-name": label }), value = h("output", {});
  input.addEventListener("input", () => pick(steps[input.valueAsNumber]));
  const draw = (x, disabled) => {
    input.value = steps.findLastIndex((step) => step <= x);
    input.disabled = disabled;
    setText(value, `${x} ${unit}`);
    input.setAttribute("aria-valuetext", value.textContent);
  };
  return { el: h("label", {}, label, input, value), draw };
}

function rulesPanel(entries, set) {
  const model = menu("model", (name) => set.model(name)), way = menu("read by", (aggregation) => set({ aggregation }));
  const gate = menu("connector", (value) => set({ gate: value })), back = h("button", { type: "button" }, "as trained");
  const k = ladder("k", range(16, (i) => i + 1), "memories", (top_k) => set({ top_k })), size = ladder("segments", SIZES, "tokens", (value) => set({ size: value }));
  model.fill({ "": Object.fromEntries(["mqar", "needles", "text"].flatMap((task) => entries.filter((entry) => entry.task === task).map(({ name, label }) => [name, label]))) });
  way.fill({ "": READINGS });
  gate.fill({ "": CONNECTORS });
  back.addEventListener("click", () => set.model(model.el.querySelector("select").value));
  const draw = (s, entry) => {
    const attends = entry.rules.aggregation === "attention";
    model.draw(s.name);
    way.draw(s.aggregation, attends);
    gate.draw(s.gate, attends || !weighs(s.aggregation));
    k.draw(s.top_k, s.aggregation !== "ssc");
    size.draw(s.size, s.aggregation === "none");
  };
  return { el: h("div", { class: "controls rules" }, model.el, way.el, gate.el, k.el, size.el, back), draw };
}

function tokensPanel(set) {
  const change = menu("token", (token) => set.token(+token)), next = h("button", { type: "button" }, "another sequence");
  const length = menu("tokens", (value) => set.draw({ length: +value })), seed = h("input", { type: "number", min: 0, max: 2 ** 31 - 1, "aria-label": "seed" });
  const text = h("textarea", { rows: 5, "aria-label": "tokens as numbers", spellcheck: "false" }), use = h("button", { type: "button" }, "run these tokens");
  const typed = h("details", {}, h("summary", {}, "type the tokens"), text, use), label = change.el.firstChild;
  next.addEventListener("click", () => set.draw({ seed: +seed.value + 1 }));
  seed.addEventListener("change", () => set.draw({ seed: Math.max(0, Math.floor(+seed.value) || 0) }));
  use.addEventListener("click", () => set.text(text.value));
  text.addEventListener("keydown", (event) => event.stopPropagation());
  const draw = (s, entry, held) => {
    const half = entry.vocab_size >> 1, here = s.tokens[held], sources = sourcesOf(s.tokens, entry.vocab_size);
    const shown = [...new Set(sources.flatMap((from) => (from === null ? [] : [s.tokens[from - 1]])))], all = range(entry.vocab_size, (i) => i);
    const named = (numbers) => Object.fromEntries(numbers.map((i) => [`${i}`, `${i}`]));
    change.fill({ "keys of a pair": named(shown), values: named(all.slice(half)), "other keys, fillers": named(all.slice(0, half).filter((i) => !shown.includes(i))) });
    change.draw(`${here}`);
    label.textContent = `token ${held + 1}: change ${here} to`;
    seed.value = s.seed;
    length.fill({ "": Object.fromEntries([...new Set([...LENGTHS, s.tokens.length])].sort((a, b) => a - b).map((n) => [n, `${n}`])) });
    length.draw(s.tokens.length);
    if (document.activeElement !== text) text.value = s.tokens.join(" ");
  };
  return { el: h("div", { class: "controls edit" }, change.el, h("label", { class: "seed" }, "seed", seed), next, length.el, typed), draw };
}

// The states that a token can read, of one head; gates beneath.
function statesPanel() {
  const now = { layer: 0, head: 0 }, place = h("div", { class: "choices" }), tiles = h("div", { class: "tiles" }), how = h("p", { class: "how" });
  const el = h("div", { class: "states-read" }, place, how, tiles);
  let run, held, built = "";
  const tile = (D, name) => { const map = matrix(D, D, { role: "presentation" }), text = h("span", {}); return { el: h("div", { class: "state", title: name }, map.el, text), map, text }; };
  const draw = (given, t) => {
    [run, held] = [given, t];
    const { traces, rules } = run, { H, D, N, size } = traces[0];
    el.hidden = rules.aggregation === "attention";
    if (el.hidden) return;
    Object.assign(now, { layer: clamp(now.layer, traces.length - 1), head: clamp(now.head, H - 1) });
    const pick = (name, count) => { const one = choice(name, range(count, (i) => `${i + 1}`), (i) => { now[name] = +i; draw(run, held); }); one.draw(now[name]); return one.el; };
    if (built !== `${traces.length} ${H}`) place.replaceChildren(pick("layer", traces.length), pick("head", H));
    built = `${traces.length} ${H}`;
    [...place.children].forEach((group, i) => [...group.querySelectorAll("button")].forEach((button, j) => button.setAttribute("aria-pressed", j === now[["layer", "head"][i]])));
    const trace = traces[now.layer], there = rules.aggregation === "none" ? 0 : Math.floor(t / size);
    const states = [...trace.states[now.head].slice(0, there), onlineState(trace, rules, now.head, t)];
    const sizes = Float64Array.from(states.flatMap((M) => Array.from(M, Math.abs))).sort(), strong = sizes[Math.floor(0.99 * (sizes.length - 1))];
    const gate = (slot) => trace.gates[(t * H + now.head) * (N + 1) + (slot === there ? N : slot)];
    const source = run.data.source[t], home = source === null ? -1 : Math.min(Math.floor(source / size), there);
    tiles.replaceChildren(...states.map((M, slot) => {
      const one = tile(D, slot === there ? "online memory" : `segment ${slot + 1}`);
      setClass(one.el, "state", slot === there && "online", slot === home && "true", !gate(slot) && "unread");
      one.el.dataset.norm = Math.sqrt(dot(M, M)).toFixed(5);
      one.map.draw(M, strong);
      setText(one.text, `${slot === there ? "online" : slot + 1}${weighs(rules.aggregation) ? ` · ${gate(slot) ? short(gate(slot)) : "–"}` : ""}`);
      return one.el;
    }));
    setText(how, `The states that token ${t + 1} can read, ${D} × ${D} numbers each${weighs(rules.aggregation) ? ", and their gates" : ""}; blue is below zero, full colour ${strong.toFixed(2)}.`);
  };
  return { el, draw };
}
