// The gate by hand: a linear memory of 24 tokens, cached, scored, gated and read in the page itself (Eq. 8-10, 16-17).
// `work` computes; every panel is { el, draw(s, w) } of the settings s and what was worked out from them, w.

const sum = (rows) => rows.reduce((a, b) => a.map((x, i) => x + b[i]));
const scaled = (c, a) => a.map((x) => c * x);
const times = (M, q) => M.map((row) => dot(row, q));
const outer = (v, k) => v.map((x) => scaled(x, k));
const written = (v, k) => v.map((_, j) => outer(v[j], k[j])).reduce((A, B) => A.map((row, i) => sum([row, B[i]])));
const closeness = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));

// Tokens: noise, with the pair put in at `position`; the last one asks with the key of the pair.
function work(data, s) {
  const draw = data.draws[s.draw], T = draw.keys.length;
  const order = [...range(s.position, (j) => j), T - 1, ...range(T - 1 - s.position, (j) => s.position + j)];
  const k = order.map((j) => draw.keys[j]), v = order.map((j) => draw.values[j]);
  const q = draw.keys[T - 1], u = scaled(data.strength, q), target = draw.values[T - 1];
  const online = Math.floor((T - 1) / s.size), truth = Math.floor(s.position / s.size);
  const memories = range(online + 1, (i) => {
    const first = i * s.size, end = Math.min(first + s.size, T), from = s.init === "checkpoint" ? 0 : first;
    const M = written(v.slice(from, end), k.slice(from, end));
    const pool = scaled(s.pool === "mean" ? 1 / (end - first) : 1, sum(k.slice(first, end)));
    return { i, first, end, from, M, pool, score: s.scale * dot(u, pool), read: times(M, q) };
  });
  const scores = memories.map((m) => m.score), all = s.top_k === null || s.top_k >= online;
  const best = range(online, (i) => i).sort((a, b) => scores[b] - scores[a]).slice(0, all ? online : s.top_k);
  const chosen = [...best.sort((a, b) => a - b), online];
  const top = Math.max(...chosen.map((i) => scores[i]));
  const norm = chosen.reduce((total, i) => total + Math.exp(scores[i] - top), 0);
  for (const m of memories) m.gate = chosen.includes(m.i) ? Math.exp(m.score - top) / norm : 0;
  const y = sum(memories.map((m) => scaled(m.gate, m.read)));
  return { k, v, q, u, target, T, strength: data.strength, online, truth, memories, chosen, all, y,
    close: closeness(y, target), plain: closeness(times(written(v, k), q), target), alone: closeness(memories[truth].read, target) };
}

// Numbers and formulas, as one writes them by hand.
const number = (x, digits = 2) => {
  const text = Math.abs(x).toFixed(digits).replace(/^0(?=\.)/, "");
  return (x < 0 && +text ? "−" : "") + text;
};
const factor = (x, digits) => (x < 0 ? `(${number(x, digits)})` : number(x, digits));
const row = (a, digits) => `(${a.map((x) => number(x, digits)).join(", ")})`;
const few = (terms) => (terms.length > 8 ? [...terms.slice(0, 4), ["…"], terms.at(-1)] : terms).flatMap((term, i) => [i ? " + " : "", ...term]);
const products = (a, b, digits) => few(a.map((x, i) => [`${factor(x)}·${factor(b[i], digits)}`]));
const power = (x) => ["e", h("sup", {}, number(x))];
const sup = (m, name) => [name, h("sup", {}, `(${m.i + 1})`)];
const sub = (name, text) => [name, h("sub", {}, `${text}`)];
const span = (first, end) => (end - first > 1 ? `tokens ${first + 1}–${end}` : `token ${end}`);
const place = (m, w) => `${m.i === w.online ? "running segment" : "segment"} ${m.i + 1}`;

function vector(values, label) {
  const cells = values.map((x) => h("span", { class: x < 0 ? "minus" : "plus", style: `--size:${Math.min(Math.abs(x), 1).toFixed(3)}` }, number(x)));
  return h("span", { class: "vector", role: "img", "aria-label": `${label}: ${values.map((x) => number(x)).join(", ")}`, "data-value": values.map((x) => x.toFixed(9)).join(" ") }, ...cells);
}

// What the settings did, in a sentence.
function verdict(s, w) {
  const m = w.memories[w.truth], gate = number(m.gate), largest = w.memories.reduce((a, b) => (b.gate > a.gate ? b : a));
  if (!w.online) return "One segment, so one memory and one gate, 1.00: nothing to choose from.";
  if (!w.chosen.includes(w.truth)) return `Missed: ${place(m, w)}, which holds the pair, scores ${number(m.score)} and is not among the k = ${s.top_k} read.`;
  if (s.scale === 0) return `With g = 0 all scores are 0 and every gate is ${gate}: nobody chooses.`;
  if (largest === m) return `Found: the largest of ${w.chosen.length} gates, ${gate}, is on ${place(m, w)}, which holds the pair.`;
  return `Fooled: the largest gate, ${number(largest.gate)}, is on ${place(largest, w)}; ${place(m, w)}, which holds the pair, gets ${gate}.`;
}

function slider(name, label, min, max, step, pick) {
  const input = h("input", { type: "range", "data-name": name, min, max, step }), value = h("output", {});
  input.addEventListener("input", () => pick(input.valueAsNumber, +input.max));
  const draw = (x, text, most = max) => {
    input.max = most;
    input.value = x;
    input.disabled = +input.max <= min;
    input.setAttribute("aria-valuetext", text);
    setText(value, text);
  };
  return { el: h("label", {}, h("span", {}, label), value, input), draw };
}

function controls(data, set) {
  const T = data.draws[0].keys.length;
  const position = slider("position", "pair ◆", 1, T - 1, 1, (x) => set({ position: x - 1 }));
  const size = slider("size", "segment length C", 1, T, 1, (x) => set({ size: x }));
  const top = slider("top_k", "memories read k", 1, T, 1, (x, most) => set({ top_k: x === most ? null : x }));
  const scale = slider("scale", "gate scale g", 0, 4, 0.1, (x) => set({ scale: x }));
  const pool = choice("pool", { mean: "mean", sum: "sum" }, (pool) => set({ pool }));
  const init = choice("initialisation", { independent: "independent", checkpoint: "checkpoint" }, (init) => set({ init }));
  const noise = h("button", { type: "button" }, "other noise"), again = h("button", { type: "button" }, "start again");
  noise.addEventListener("click", () => set({ draw: (s) => (s.draw + 1) % data.draws.length }));
  again.addEventListener("click", () => set(data.settings));
  const draw = (s, w) => {
    const temperature = s.scale ? number(1 / s.scale) : "∞", most = Math.max(w.online, 1);
    position.draw(s.position + 1, `token ${s.position + 1}`);
    size.draw(s.size, plural(s.size, "token"));
    top.draw(w.all ? most : s.top_k, w.all ? "all (GRM)" : `${s.top_k} of ${w.online} (SSC)`, most);
    scale.draw(s.scale, `${s.scale.toFixed(1)} (temperature ${temperature})`);
    pool.draw(s.pool);
    init.draw(s.init);
  };
  const sliders = h("div", { class: "sliders" }, ...[position, size, top, scale].map((control) => control.el));
  return { el: h("div", { class: "controls" }, sliders, pool.el, init.el, noise, again), draw };
}

// Pointing only: the slider "pair" does the same with keys, and the table says the rest.
function strip(set) {
  const el = h("div", { class: "strip", "aria-hidden": true });
  let drag = false;
  const move = (event) => {
    const token = drag && document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-index]");
    if (token && el.contains(token) && !token.matches(".query")) set({ position: +token.dataset.index });
  };
  el.addEventListener("pointerdown", (event) => {
    drag = Boolean(event.target.closest("[data-index]"));
    if (!drag) return;
    el.setPointerCapture(event.pointerId);
    move(event);
  });
  el.addEventListener("pointermove", move);
  for (const end of ["pointerup", "pointercancel"]) el.addEventListener(end, () => { drag = false; });
  const draw = (s, w) => {
    el.style.cssText = `--columns:${Math.min(s.size, 8)};--token-width:24px`;
    el.replaceChildren(...w.memories.map((m) => {
      const tokens = range(m.end - m.first, (j) => {
        const t = m.first + j, [role, text] = t === s.position ? ["pair", "◆"] : t === w.T - 1 ? ["query", "?"] : ["filler", t + 1];
        return h("span", { class: `token ${role}`, "data-index": t }, `${text}`);
      });
      const tight = s.size < 4, gate = number(m.gate);
      const label = [h("span", {}, tight ? `${m.i + 1}` : place(m, w).replace(" segment", "")), h("span", { class: "remark" }, tight ? gate : `γ ${gate}`)];
      const states = [m.i === w.online ? "running" : "closed", m.i === w.truth && "true"].filter(Boolean);
      return h("div", { class: `segment ${states.join(" ")}` }, h("div", { class: "label" }, ...label), h("div", { class: "tokens" }, ...tokens),
        h("div", { class: "bar", style: `--gate:${m.gate.toFixed(4)}` }));
    }));
  };
  return { el, draw };
}

function story(spoken) {
  const said = h("p", { class: "story" }), bars = h("ol", { class: "bars" });
  const bar = (kind, name, x) => h("li", { class: kind, "data-value": x.toFixed(9) }, h("span", {}, name),
    h("span", { class: "track" }, h("span", { class: "length", style: `width:${percent(Math.max(x, 0))}` })), h("b", {}, number(x)));
  const draw = (s, w) => {
    const text = verdict(s, w), [lead, rest] = text.split(/(?<=^\w+[:])/);
    said.replaceChildren(...(rest ? [h("b", {}, lead), rest] : [text]));
    spoken.say(`${text} Closeness to the true value ${number(w.close)}.`);
    bars.replaceChildren(bar("gates", "through the gates", w.close), bar("plain", "one memory, no cache", w.plain), bar("alone", "the memory of ◆ alone", w.alone));
  };
  const how = h("p", { class: "how" }, "closeness of the answer to the true value (cosine; 1: the same direction)");
  return { el: h("div", {}, said, how, bars), draw };
}

function table(pick) {
  const el = h("div", { class: "memories", role: "grid", "aria-label": "memories: score, gate and answer" });
  let picked = null, rows = [];
  const step = (i) => { pick(clamp(i, rows.length - 1)); rows[picked].focus(); };
  onKeys(el, { ArrowUp: () => step(picked - 1), ArrowDown: () => step(picked + 1), Home: () => step(0), End: () => step(rows.length - 1) });
  const cell = (name, ...children) => h("span", { class: name, role: "gridcell" }, ...children);
  const draw = (s, w, i) => {
    const focused = el.contains(document.activeElement);
    const head = h("div", { class: "line head", role: "row" }, ...[["name", "memory"], ["score", "score r"], ["gate", "gate γ"], ["answer", "its answer M q"]]
      .map(([name, text]) => h("span", { class: name, role: "columnheader" }, text)));
    picked = i;
    rows = w.memories.map((m) => {
      const read = w.chosen.includes(m.i), where = `${span(m.first, m.end)}${m.i === w.online ? ", online" : ""}`;
      const gate = h("span", { role: "gridcell", class: `gate${read ? "" : " shut"}`, "data-gate": m.gate.toFixed(9), style: `--gate:${m.gate.toFixed(4)}` }, read ? number(m.gate) : "not read");
      const line = h("div", { class: `line${m.i === w.truth ? " true" : ""}${read ? "" : " unread"}`, role: "row", tabindex: m.i === picked ? 0 : -1, "aria-selected": m.i === picked },
        cell("name", h("b", {}, ...sup(m, "M")), h("small", {}, m.i === w.truth ? "◆ " : "", where)), cell("score", number(m.score)), gate,
        cell("answer", vector(m.read, `answer of memory ${m.i + 1}`)));
      line.addEventListener("click", () => step(m.i));
      return line;
    });
    const total = (kind, name, note, values) => h("div", { class: `line total ${kind}`, role: "row" },
      cell("name", h("b", {}, name), h("small", {}, note)), cell("answer", vector(values, note)));
    el.replaceChildren(head, ...rows, total("y", "y = Σ γ M q", "the answer", w.y), total("v", "v◆", "the true value", w.target));
    if (focused) rows[picked].focus();
  };
  return { el, draw };
}

function state(M) {
  const cells = M.flat().map((x) => h("span", { class: x < 0 ? "minus" : "plus", style: `--size:${Math.min(Math.abs(x), 1).toFixed(3)}` }));
  return h("span", { class: "matrix", "aria-hidden": true, style: `--columns:${M.length}` }, ...cells);
}

// Every step of the picked memory, with its numbers filled in.
function steps(s, w, m) {
  const keys = range(m.end - m.first, (j) => m.first + j), tokens = range(m.end - m.from, (j) => m.from + j);
  const list = few(keys.map((j) => sub("k", j + 1))), [pooling, ssc] = [s.pool === "mean" ? "MeanPooling" : "sum of keys", !w.all];
  const exps = few(w.chosen.map((i) => power(w.memories[i].score))), read = w.chosen.includes(m.i);
  const entry = [...sub("M", "11")], first = (a) => tokens.map((j) => a[j][0]);
  const reads = w.chosen.map((i) => w.memories[i]);
  return [
    ["write", "Eq. 8", [...sup(m, "M"), " = Σ ", ...sub("v", "j"), ...sub("k", "j"), h("sup", {}, "⊤"), `, ${span(m.from, m.end)}`, s.init === "checkpoint" && m.i ? " (it started from the checkpoint before)" : ""],
      [...entry, " = ", ...products(first(w.v), first(w.k)), ` = ${number(m.M[0][0])}`, state(m.M)]],
    ["pool", ssc ? "before Eq. 16" : "Eq. 10", [`${pooling} = `, ...(s.pool === "mean" ? ["(", ...list, `) / ${keys.length}`] : list)], [row(m.pool, 3)]],
    ["score", ssc ? "Eq. 16" : "Eq. 10", [...sup(m, "r"), ` = g ⟨u, pool⟩, u = ${number(w.strength, 0)} q`], [`${number(s.scale, 1)} × (`, ...products(w.u, m.pool, 3), `) = ${number(m.score)}`]],
    ...(ssc ? [["choose", "Eq. 17", [`the ${s.top_k} highest cached scores, and the online memory`], [`read: ${w.chosen.map((i) => i + 1).join(", ")}`]]] : []),
    ["gate", "softmax", [...sup(m, "γ"), " = ", ...(read ? [...power(m.score), " / (", ...exps, ")"] : ["0, because it was not chosen"])], [read ? number(m.gate) : ""]],
    ["read", "M q", [...sub("(M q)", "1"), " = ", ...products(m.M[0], w.q), ` = ${number(m.read[0])}`], [row(m.read)]],
    ["answer", ssc ? "Eq. 17" : "Eq. 9", ["y = ", ...few(reads.map((r) => [`${number(r.gate)} `, ...sup(r, "M"), "q"]))],
      [...sub("y", "1"), " = ", ...products(reads.map((r) => r.gate), reads.map((r) => r.read[0])), ` = ${number(w.y[0])}`]],
    ["compare", "cosine", ["⟨y, v◆⟩ / (|y| |v◆|)"], [`${number(dot(w.y, w.target))} / (${number(Math.hypot(...w.y))} · ${number(Math.hypot(...w.target))}) = ${number(w.close)}`]],
  ];
}

function formulas() {
  const title = h("p", { class: "how" }), list = h("ol", { class: "steps" });
  const draw = (s, w, i) => {
    const m = w.memories[i];
    title.replaceChildren("every step for ", h("b", {}, place(m, w)), " (click another row above", h("span", { class: "keys" }, ", or ↑ ↓"), "), rounded; the page computes with all digits");
    list.replaceChildren(...steps(s, w, m).map(([name, where, formula, filled]) => h("li", { "data-step": name },
      h("span", { class: "title" }, h("b", {}, name), ` ${where}`), h("span", { class: "formula" }, ...formula), h("span", { class: "filled" }, ...filled))));
  };
  return { el: h("div", { class: "by-steps" }, title, list), draw };
}

function explorer(model, root) {
  const data = model.get("data");
  if (!data?.draws?.length) throw new Error("there are no tokens to compute with yet.");
  let s = { ...data.settings, ...model.get("settings") }, picked = null;
  const draw = () => {
    const w = work(data, s), shown = picked === null || picked > w.online ? w.truth : picked;
    panels.forEach((panel) => panel.draw(s, w, shown));
  };
  const show = (changes) => {
    if ("position" in changes || "size" in changes) picked = null; // back to the memory of the pair
    s = { ...s, ...changes };
    draw();
  };
  const set = (changes) => {
    if (typeof changes.draw === "function") changes = { draw: changes.draw(s) };
    show(changes);
    model.set("settings", { ...s });
    model.save_changes();
  };
  const dials = controls(data, set), tokens = strip(set), spoken = announcer(), told = story(spoken), rows = table((i) => { picked = i; draw(); }), filled = formulas();
  const panels = [dials, tokens, told, rows, filled];
  const how = "One pair ◆ (key, value) among noise; the last token ? asks for its value. Drag ◆, or move any slider: all of it is computed here, in this page.";
  const hint = "Try: longer segments, until the pair drowns in the pool; g = 0, and nobody chooses; k = 1; sums of keys; checkpoints.";
  root.replaceChildren(heading(data.title, how), spoken.el, dials.el, tokens.el,
    h("div", { class: "readout" }, told.el, h("p", { class: "hint" }, hint), rows.el, filled.el));
  draw();
  return { settings: (given) => { if (Object.keys(given).some((name) => given[name] !== s[name])) show(given); } };
}

export default family("by-hand", ["settings"], explorer);
