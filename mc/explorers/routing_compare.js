// Models side by side at one token, and the map of all gates of the one that is looked at.

// Where there are many memories all gates are small: the colour says how many times the even share a gate is, and is darkest from here on.
const FULL = 4;
const shade = (w, gate, t, slot) => (w.gated ? clamp(gate / w.even(t, slot) / FULL, 1) : 1);
const timesEven = (w, gate, t, slot) => `${(gate / w.even(t, slot)).toFixed(1)} × even`;

// A choice of layer for what shows means over heads: null is all of them.
function layerChoice(v, view, look) {
  const layers = Math.max(...v.variants.map((w) => w.layers)), deepest = v.variants.find((w) => w.layers === layers);
  const buttons = [null, ...range(layers, (i) => i)].map((layer) => {
    const el = h("button", { type: "button" }, layer === null ? "all" : `${deepest.block(layer)}`);
    el.addEventListener("click", () => look({ layer }));
    return { el, layer };
  });
  const el = h("div", { class: "controls layers", role: "group", "aria-label": "layer" }, h("span", { class: "how" }, "gates, mean over the heads of layer"), ...buttons.map((b) => b.el),
    h("span", { class: "how" }, "even share × 0 ", h("span", { class: "ramp" }), ` ${FULL} or more`));
  el.hidden = !v.variants.some((w) => w.gated);
  const draw = () => buttons.forEach((b) => b.el.setAttribute("aria-pressed", b.layer === view.layer));
  return { el, draw };
}

const layerName = (w, layer) => (layer === null ? "all layers" : `layer ${w.block(layer)}`);

// What a model answers, in words: "213, right", or only the answer where nothing is right or wrong.
function answered(v, w, t) {
  const best = w.answers[t]?.[0];
  if (w.diverged) return "no answer, it has diverged";
  if (!best) return "";
  return visible(best[0]) + (v.target[t] == null ? "" : w.isRight(t) ? ", right" : ", wrong");
}

function variantRow(v, w, i, view) {
  const columns = v.column(v.lengths.length); // the last is for the online memory
  const cells = range(w.slots, (slot) => {
    const [first, last] = slot === w.online ? [columns - 1, columns - 1] : w.segments(slot);
    return h("span", { class: slot === w.online ? "gate online" : "gate", style: `grid-column:${first + 1}/${last + 2}` });
  });
  const frame = h("span", {}), verdict = h("span", { class: "said" });
  const length = h("span", { class: "length" }), mass = h("span", { class: "mass" }), sure = h("span", { class: "mass" });
  const el = h("div", { class: "variant", role: "radio" },
    h("span", { class: "name" }, h("kbd", {}, `${i + 1}`), ` ${w.name}`), verdict,
    h("span", { class: "track" }, length), sure,
    h("div", { class: "band", style: `--segments:${columns - 1}` }, ...cells, frame), mass);
  const draw = (t) => {
    const { layer, variant } = view, truth = w.trueSlot(t), right = v.target[t] != null && w.isRight(t), best = w.answers[t]?.[0];
    const p = v.target[t] == null ? best?.[1] : w.target_prob[t];
    el.setAttribute("aria-checked", variant === i);
    el.tabIndex = variant === i ? 0 : -1;
    setClass(verdict, "said", right && "right");
    verdict.replaceChildren(...(best ? [v.target[t] == null ? "→ " : right ? "✓ " : "✗ ", word(best[0])] : [w.diverged ? "diverged" : "–"]));
    length.hidden = p == null;
    length.style.width = percent(p ?? 0);
    setText(sure, p == null ? "" : p.toFixed(2));
    cells.forEach((cell, slot) => {
      cell.hidden = !w.sees(t, slot);
      const mean = w.mean(layer, t, slot);
      cell.style.setProperty("--gate", (cell.hidden ? 0 : shade(w, mean, t, slot)).toFixed(3));
      cell.dataset.value = mean.toFixed(5);
    });
    setClass(frame, "frame", truth === null && "none", truth === w.online && "online");
    if (truth !== null) frame.style.gridColumn = cells[truth].style.gridColumn;
    const share = truth === null || !w.gated ? null : w.mean(layer, t, truth);
    setText(mass, share !== null ? w.share(t, share) : v.asks ? "–" : "");
    el.setAttribute("aria-label", [w.name, answered(v, w, t), p == null ? "" : `probability ${p.toFixed(2)}`,
      share === null ? "" : `gate on the true segment ${w.share(t, share)}`].filter(Boolean).join(", "));
  };
  el.dataset.variant = i;
  return { el, draw };
}

function comparison(v, view, look) {
  const rows = v.variants.map((w, i) => variantRow(v, w, i, view));
  const p = v.asks ? "p of the right one" : "probability";
  const head = h("div", { class: "variant head", "aria-hidden": true }, h("span", {}, "model"), h("span", {}, v.asks ? "answer" : "next"),
    h("span", { class: "wide" }, p), h("span", { class: "band" }, "gates over the segments, the online memory last"), h("span", { class: "mass truth" }, v.asks ? "on ◆" : ""));
  const list = h("div", { role: "radiogroup", "aria-label": "models side by side" }, ...rows.map((row) => row.el));
  const choose = (i) => { look({ variant: clamp(i, rows.length - 1) }); list.querySelector("[aria-checked=true]").focus(); };
  list.addEventListener("click", (event) => { const row = event.target.closest(".variant"); if (row) choose(+row.dataset.variant); });
  onKeys(list, { ArrowUp: () => choose(Math.max(view.variant - 1, 0)), ArrowDown: () => choose(view.variant + 1) });
  const draw = (t) => rows.forEach((row) => row.draw(t));
  return { el: h("div", { class: "compare" }, head, list), draw };
}

// One pixel for every token and memory: a mask, so that the colours are those of the theme.
function mask(width, height, opacity) {
  const canvas = h("canvas", { width, height }), context = canvas.getContext("2d"), image = context.createImageData(width, height);
  range(width * height, (i) => { image.data[4 * i + 3] = Math.round(255 * opacity(i % width, Math.floor(i / width))); });
  context.putImageData(image, 0, 0);
  return `mask-image:url(${canvas.toDataURL()})`;
}

function gateMap(v, w, layer) {
  const means = range(w.slots, (slot) => Float32Array.from({ length: v.T }, (_, t) => w.mean(layer, t, slot)));
  const gate = (t, slot) => (w.sees(t, slot) ? shade(w, means[slot][t], t, slot) : 0);
  const truth = (t, y) => (v.roles[t] === "query" && y % 4 === 3 && w.trueSlot(t) === Math.floor(y / 4) ? 1 : 0);
  const high = clamp(w.slots * 10, 210);
  const el = h("div", { class: "map", style: `height:${high}px` },
    h("div", { class: "ink", style: mask(v.T, w.slots, gate) }), h("div", { class: "ink truth", style: mask(v.T, 4 * w.slots, truth) }));
  return { el, means };
}

function maps(v, view, { preview, hold, light }) {
  const plate = h("div", { class: "plate", role: "slider", tabindex: 0, "aria-label": "map of gates, token by token", "aria-valuemin": v.number(0), "aria-valuemax": v.number(v.T - 1) });
  const cursor = h("div", { class: "cursor" }), home = h("div", {});
  const rows = h("div", { class: "rows", "aria-hidden": true }), caption = h("p", { class: "reading" }), scale = h("p", {});
  const el = h("div", { class: "maps" }, h("p", { class: "how" }, `Gates at every token, divided by the even share, 1 / number of memories that can be read. Tokens from left to right, memories from top to bottom.${v.asks ? " ▂ orange: the memory that holds the answer." : ""}`),
    h("div", { class: "chart" }, rows, plate), h("div", { class: "foot" }, caption, scale));
  const drawn = new Map();
  let now, map, slot = null;
  const shown = () => v.variants[view.variant];
  const find = () => {
    const name = `${view.variant} ${view.layer}`;
    if (!drawn.has(name)) drawn.set(name, gateMap(v, shown(), view.layer));
    return drawn.get(name);
  };
  const read = (t, w, slot) => `token ${v.number(t)} → ${w.slotName(slot)}: ${w.sees(t, slot) ? `${map.means[slot][t].toFixed(3)}, ${timesEven(w, map.means[slot][t], t, slot)}` : "not there"}`;
  const draw = (t) => {
    const w = shown(), truth = w.trueSlot(t);
    el.hidden = !w.gated;
    if (!w.gated) return;
    if (find() !== map) {
      map = find();
      plate.replaceChildren(map.el, home, cursor);
      rows.replaceChildren(h("span", {}, !w.online ? "" : w.folded(0) ? "earlier" : w.slotName(0)), h("span", {}, "online"));
      setText(scale, `${w.name}, ${layerName(w, view.layer)}`);
    }
    now = t;
    const place = (el, slot) => { el.style.left = `${(100 * t) / v.T}%`; el.style.top = `${(100 * slot) / w.slots}%`; el.style.height = `${100 / w.slots}%`; };
    cursor.style.left = `${(100 * (t + 0.5)) / v.T}%`;
    setClass(home, "home", truth === null && "none");
    if (truth !== null) place(home, truth);
    const top = range(w.slots, (s) => map.means[s][t]).reduce((best, g, s, all) => (g > all[best] ? s : best), 0);
    const words = [read(t, w, slot ?? top), slot === null && top !== truth && truth !== null ? `true: ${map.means[truth][t].toFixed(3)}` : ""];
    if (v.text && w.sees(t, slot ?? top)) words.push(`“${quoted(wordsOf(v, w, slot ?? top, t), 50)}”`);
    setText(caption, words.filter(Boolean).join(" · "));
    plate.setAttribute("aria-valuenow", v.number(t));
    plate.setAttribute("aria-valuetext", `${caption.textContent}, ${layerName(w, view.layer)}`);
  };
  const at = (event) => {
    const box = plate.getBoundingClientRect(), w = shown();
    slot = clamp(Math.floor((w.slots * (event.clientY - box.top)) / box.height), w.online);
    return clamp(Math.floor((v.T * (event.clientX - box.left)) / box.width), v.T - 1);
  };
  plate.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const t = at(event), w = shown();
    preview(t);
    draw(t);
    light(...(slot === w.online ? [v.column(v.segmentOf[t])] : w.segments(slot)));
  });
  plate.addEventListener("pointerleave", () => { slot = null; preview(null); draw(now); light(null); });
  plate.addEventListener("click", (event) => { hold(at(event)); plate.focus(); });
  return { el, draw };
}
