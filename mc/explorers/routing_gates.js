// The gates of one model: what can be asked of them, and the grid that shows them at one token.
// A slot is a memory: the cached ones in the order in which they were closed, the online memory last.

// Packed by numpy: eight to a byte, the first in the lowest bit.
function unpackBits(base64) {
  const bytes = atob(base64);
  return (i) => (bytes.charCodeAt(i >> 3) >> (i & 7)) & 1;
}

// Of a sparse model only the chosen gates are stored, the others are zero.
function spread(stored, bits, length) {
  if (!bits) return stored;
  let i = 0;
  return Float32Array.from({ length }, (_, at) => (bits(at) ? stored[i++] : 0));
}

function readVariant(v, data) {
  const { layers, heads, memories } = data, { T, segmentOf, source, target } = v, online = memories.length;
  // First token and one past the last: of the memory, then of its readers. What ends before the window is the sum of all such memories.
  const spans = [...memories, [0, T, 0, T]], folded = (slot) => spans[slot][1] <= 0;
  let count = 0;
  const offsets = spans.map(([, , from, until]) => { count += until - from; return count - until; });
  // Gates that the page has computed itself are numbers already, memory by memory as they would be packed.
  const bits = data.chosen && unpackBits(data.chosen), sparse = Boolean(data.chosen) || data.kind === "ssc";
  const values = ArrayBuffer.isView(data.gates) ? data.gates : data.gates && spread(unpack(data.gates), bits, count * layers * heads);
  if (values && values.length !== count * layers * heads)
    throw new Error(`the gates of ${data.name} are ${values.length} numbers, expected ${count} × ${layers} × ${heads}.`);
  const index = (layer, t, head, slot) => ((offsets[slot] + t) * layers + layer) * heads + head;
  const sees = (t, slot) => !data.diverged && t >= spans[slot][2] && t < spans[slot][3];
  const gate = (...at) => (!sees(at[1], at[3]) ? 0 : values ? values[index(...at)] : 1);
  const chosen = (...at) => sees(at[1], at[3]) && (!sparse || (bits ? bits(index(...at)) === 1 : gate(...at) > 0));
  // Over the heads of a layer; with layer null, over those of all layers.
  const mean = (layer, t, slot) => {
    const from = layer === null ? 0 : Math.min(layer, layers - 1), until = layer === null ? layers : from + 1;
    let sum = 0;
    for (let l = from; l < until; l++) for (let head = 0; head < heads; head++) sum += gate(l, t, head, slot);
    return sum / (until - from) / heads;
  };
  const cached = (t) => memories.filter((_, slot) => !folded(slot) && sees(t, slot)).length;
  const trueSlot = (t) => {
    if (source[t] == null || data.diverged) return null;
    const slot = memories.findIndex(([first, end], i) => sees(t, i) && source[t] >= first && source[t] < end);
    return slot < 0 ? online : slot;
  };
  // How many memories can be read, and the share of them that a slot stands for: what equal gates would give it.
  const standsFor = (slot) => (!folded(slot) ? 1 : grouped ? [...v.past.toString(2)].filter((digit) => digit === "1").length : v.past);
  const readable = [];
  const even = (t, slot) => standsFor(slot) / (readable[t] ??= spans.reduce((sum, _, s) => sum + (sees(t, s) ? standsFor(s) : 0), 0));
  const trueMass = (t) => mean(null, t, trueSlot(t));
  // Columns of the sequence, the first and the last; numbers of segments come with a memory that begins before the window.
  const segments = ([first, end]) => [first < -v.skipped ? 0 : v.column(segmentOf[Math.max(first, 0)]), end <= 0 ? 0 : v.column(segmentOf[end - 1])];
  const ends = ([first, end, , , name]) => name?.split("–") ?? [first, end - 1].map((t) => `${v.segment(segmentOf[t])}`);
  const number = (slot) => [...new Set(ends(spans[slot]))].join("–");
  const slotName = (slot) => (slot === online ? "online memory" : `segment${number(slot).includes("–") ? "s" : ""} ${number(slot)}${folded(slot) ? ", added up" : ""}`);
  const isRight = (t) => target[t] != null && data.answers[t]?.[0]?.[0] === target[t];
  // The gate on the true segment; of a sum no more than that is known.
  const share = (t, gate) => `${folded(trueSlot(t)) ? "≤" : ""}${percent(gate)}`;
  const addsUp = (t) => memories.some((_, slot) => folded(slot) && sees(t, slot));
  const longest = Math.max(0, ...memories.map((_, slot) => (folded(slot) ? 0 : number(slot).length)));
  const slots = online + 1, grouped = memories.some((_, slot) => !folded(slot) && number(slot).includes("–"));
  const block = (layer) => data.blocks?.[layer] ?? layer + 1; // of a hybrid only some blocks have memories
  return { ...data, block, gated: Boolean(values), sparse, grouped, online, slots, spans, gate, chosen, mean, even, sees, cached,
    folded, addsUp, longest, share, trueSlot, trueMass, segments: (slot) => segments(spans[slot]), number, slotName, isRight };
}

// What the grid cannot say by itself.
function remark(w) {
  if (w.diverged) return "This model has diverged: it has no gates and no answers.";
  if (w.kind === "attention") return "Attention has no memories. Shown are its weights, added up over the tokens of each segment.";
  if (w.kind === "none") return "No caching: one online memory holds the whole past, so there is nothing to choose.";
  const later = w.init === "checkpoint" ? " Each state is a checkpoint: it holds all tokens up to the end of its segment, so later states hold the true pair too." : "";
  return ({ residual: "Residual: every cached memory is read with weight one, so there is nothing to choose.",
    soup: "Soup: the gates mix the cached memories into one memory, which is then read.",
    ssc: `Sparse: each head reads the ${w.top_k} cached memories that it scores highest, outlined here; the others stay shut.`,
    top_p: `Top-p: each head reads the fewest memories whose gates exceed the share ${w.top_p}, outlined here; the others stay shut.` }[w.kind] ?? "") + later;
}

function shelfSlot(v, w, slot) {
  const isOnline = slot === w.online;
  const fill = h("span", { class: "fill" }), number = h("span", { class: "number" }, isOnline ? "" : w.folded(slot) ? "…" : w.number(slot));
  const el = h("div", { role: "columnheader", tabindex: isOnline ? 0 : -1, "data-slot": slot }, fill, number);
  const draw = (t) => {
    const s = v.segmentOf[t], phase = isOnline ? "online" : w.sees(t, slot) ? "closed" : t < w.spans[slot][2] ? "future" : "merged";
    setClass(el, "slot", phase);
    if (isOnline) setText(number, `${v.segment(s)}`);
    fill.style.height = { online: percent(v.position(t) / v.length(s)), closed: "100%" }[phase] ?? "0";
    const what = { online: `segment ${v.segment(s)} is running`, closed: "state in the cache", merged: "merged into a larger group" }[phase] ?? "empty";
    el.setAttribute("aria-label", `${w.slotName(slot)}: ${what}${w.trueSlot(t) === slot ? ", holds the true pair" : ""}`);
  };
  return { el, draw };
}

function headRow(v, w, layer, head) {
  const cells = range(w.slots, (slot) => h("div", { role: "cell", "data-layer": layer, "data-head": head, "data-slot": slot }));
  const mass = h("div", { class: "mass", role: "cell" });
  const name = h("div", { class: "name", role: "rowheader", "aria-label": `layer ${w.block(layer)}, head ${head + 1}` }, `head ${head + 1}`);
  const draw = (t) => {
    const values = cells.map((_, slot) => w.gate(layer, t, head, slot));
    const top = values.indexOf(Math.max(...values)), truth = w.trueSlot(t);
    cells.forEach((cell, slot) => {
      const shut = !w.chosen(layer, t, head, slot);
      const picked = w.sparse && slot !== w.online && !shut;
      setClass(cell, "gate", slot === w.online && "online", shut && "shut", shut && w.sees(t, slot) && "passed", picked && "chosen", slot === top && "top");
      cell.dataset.value = values[slot].toFixed(5);
      cell.style.setProperty("--gate", cell.dataset.value);
      setText(cell, shut ? "" : short(values[slot]));
    });
    setClass(mass, "mass", truth !== null && w.folded(truth) && "most");
    setText(mass, truth !== null ? w.share(t, values[truth]) : v.asks ? "–" : "");
  };
  return { el: h("div", { class: "line", role: "row" }, name, ...cells, mass), draw };
}

function layerRows(v, w, layer) {
  const rows = range(w.heads, (head) => headRow(v, w, layer, head));
  const [name, text] = w.heads > 2 ? ["layer", `layer ${w.block(layer)}`] : ["layer upright", `L${w.block(layer)}`];
  rows[0].el.prepend(h("div", { class: name, "aria-hidden": true, style: `grid-row: span ${w.heads}` }, text));
  return rows;
}

function gateGrid(v, w, shelf, rows) {
  const states = h("span", { class: "states" });
  const frame = h("div", { "aria-hidden": true });
  const captions = [h("span", { class: "corner" }, "cache"), ...(w.online ? [states] : []),
    h("span", { class: "online" }, "online"), h("span", { class: "mass truth" }, v.asks ? "on ◆" : "")];
  const header = h("div", { class: "line", role: "row" }, h("div", { class: "corner", role: "columnheader", "aria-label": "head" }),
    ...shelf.map((slot) => slot.el), h("div", { class: "mass", role: "columnheader", "aria-label": "gate mass on the segment of the true pair" }));
  const space = () => h("div", { class: "space", role: "presentation" });
  const body = rows.flatMap((row, i) => (i && i % w.heads === 0 ? [space(), row.el] : [row.el]));
  const wide = w.longest > (w.grouped ? 5 : 2) ? `--slot-width:${6 * w.longest + 6}px` : ""; // segment 100 and on
  const label = "gates of every head over the cached segments and the online memory";
  const el = h("div", { class: "grid", role: "table", "aria-label": label, style: `--slots:${w.online};${w.online ? "" : "--slot-columns: "}${wide}` }, ...captions, header, ...body, frame);
  const draw = (t) => {
    const truth = w.trueSlot(t);
    [...shelf, ...rows].forEach((part) => part.draw(t));
    const later = w.spans.filter((_, slot) => slot !== w.online && !w.folded(slot)).length;
    setText(states, `${w.cached(t)} of ${plural(later, "state")}${later < w.online ? ", the earlier ones first" : ""}`);
    setClass(frame, "frame", truth === w.online && "online", truth === null && "none");
    frame.style.gridColumn = `${truth + 3} / ${truth + 4}`;
  };
  return { el, draw };
}

function gates(v, w, { light }) {
  const shelf = range(w.slots, (slot) => shelfSlot(v, w, slot));
  const grid = gateGrid(v, w, shelf, range(w.layers, (layer) => layerRows(v, w, layer)).flat());
  const reading = h("p", { class: "reading" });
  const ramp = h("p", {}, `${v.asks ? "on ◆: gate on the true segment · " : ""}gate 0 `, h("span", { class: "ramp" }), " 1");
  let now = 0, focused = w.online;
  const read = ({ layer, head, slot, value }) => `layer ${w.block(+layer)}, head ${+head + 1} → ${w.slotName(+slot)}: ${(+value).toFixed(4)}`;
  const quote = (slot) => (v.text && w.sees(now, slot) ? ` “${quoted(wordsOf(v, w, slot, now), 60)}”` : "");
  const largest = () => [...grid.el.querySelectorAll(".top")].reduce((a, b) => (+b.dataset.value > +a.dataset.value ? b : a));
  const pointAt = (slot, cell) => {
    grid.el.querySelectorAll("[data-slot]").forEach((el) => el.classList.toggle("lit", +el.dataset.slot === slot));
    light(...(slot === null ? [null] : slot === w.online ? [v.column(v.segmentOf[now])] : w.segments(slot)));
    setText(reading, cell ? read(cell.dataset) + quote(slot) : slot === null ? `largest: ${read(largest().dataset)}` : shelf[slot].el.ariaLabel + quote(slot));
  };
  const focus = (slot) => {
    shelf[focused].el.tabIndex = -1;
    focused = clamp(slot, w.online);
    shelf[focused].el.tabIndex = 0;
    shelf[focused].el.focus();
  };
  grid.el.addEventListener("pointerover", (event) => {
    const target = event.target.closest("[data-slot]");
    pointAt(target && +target.dataset.slot, target?.dataset.value && target);
  });
  for (const leave of ["pointerleave", "focusout"]) grid.el.addEventListener(leave, () => pointAt(null));
  grid.el.addEventListener("focusin", (event) => pointAt(+event.target.dataset.slot));
  onKeys(grid.el, { ArrowLeft: () => focus(focused - 1), ArrowRight: () => focus(focused + 1), Home: () => focus(0), End: () => focus(w.online) });
  const draw = (t) => { now = t; grid.draw(t); pointAt(null); };
  return { el: h("div", {}, h("div", { class: "scroll" }, grid.el), h("div", { class: "foot" }, reading, ramp)), draw };
}
