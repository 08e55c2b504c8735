// The dial: what a recurrent memory, a cached one and attention cost, while sliders turn.

// The counts of mc.costs, for one head.
const memorySizes = (memory, D) => (memory === "linear" ? [D * D, D * D, D * D] : [8 * D * D, 16 * D * D, 16 * D * D]);

function seen(T, C, most) {
  const steps = Math.min(most, Math.floor(T / C));
  return steps - (C * steps * (steps + 1)) / 2 / T;
}

function costs(way, s, T = s.tokens) {
  const { segment_size: C, head_size: D, memory, top_k } = s;
  const [P, R, W] = memorySizes(memory, D), N = Math.floor(T / C);
  if (way === "attention") return { operations: D * (T + 1), carried: 2 * D * T, fetched: 2 * D * T };
  if (way === "none") return { operations: W + P, carried: R + D, fetched: R + D };
  const most = way === "ssc" ? top_k : way === "residual" && memory === "linear" ? 1 : N;
  const gated = way !== "residual", read = way === "ssc" ? Math.min(N, top_k) : N;
  return {
    operations: W + P + seen(T, C, most) * P + (gated ? D * (seen(T, C, N) + 1) : 0),
    carried: N * (P + D) + R + D,
    fetched: read * P + (gated ? N * D : 0) + R + D,
  };
}

const WAYS = { residual: "residual", grm: "GRM", soup: "Soup", ssc: "SSC", top_p: "top-p" };
const MEMORIES = { linear: "linear, D × D", deep: "deep, two layers" };
const BYTES = 4; // float32
const SLIDERS = { // [name, symbol, smallest and largest power of two]
  tokens: ["text", "T", 5, 18, "tokens"], segment_size: ["segments", "C", 2, 12, "tokens"], head_size: ["head size", "D", 3, 8, ""],
  num_heads: ["heads", "H", 0, 5, ""], top_k: ["SSC reads", "k", 0, 4, "memories"],
};
const COUNTS = {
  operations: ["operations", "multiply-adds per token", 1, "", "takes fewer operations than"],
  carried: ["kept", "bytes kept after the text, float32", BYTES, "B", "keeps less than"],
  fetched: ["decode traffic", "bytes that the next token reads", BYTES, "B", "fetches less than"],
};
const GRID = range(105, (i) => Math.round(2 ** (5 + i / 8)));

const log10 = Math.log10, log2 = Math.log2;
const nameOf = (way) => ({ none: "RNN", attention: "attention", ...WAYS }[way]);

// Three digits and a prefix: 13.5 K, 1.09 MB.
function amount(x, unit = "") {
  const power = Math.max(0, Math.min(4, Math.floor(log10(x) / 3 + 1e-9)));
  const prefix = ["", unit ? "k" : "K", "M", "G", "T"][power], scaled = x / 1000 ** power;
  const text = scaled >= 100 || (!power && Number.isInteger(x)) ? scaled.toFixed(0) : scaled.toPrecision(3);
  return `${text}${prefix || unit ? " " : ""}${prefix}${unit}`;
}

// From which length of text on a curve over GRID stays below another; null where it does not.
const below = (curve, other) => GRID[curve.findLastIndex((value, i) => value >= other[i]) + 1] ?? null;

// A plot of 320 × 206: powers of two from left to right; [low, high] from bottom to top.
function plot(label, [from, to], ticksX, nameX) {
  const box = { left: 50, right: 276, top: 6, bottom: 170 };
  const x = (value) => box.left + ((log2(value) - from) / (to - from)) * (box.right - box.left);
  const line = () => svg("path", { class: "line" }), axisY = svg("g", {}), marks = svg("g", {});
  const cursor = svg("line", { class: "cursor", y1: box.top, y2: box.bottom });
  const axisX = ticksX.flatMap((t) => [svg("line", { class: "tick", x1: x(t), x2: x(t), y1: box.bottom, y2: box.bottom + 4 }),
    svg("text", { x: x(t), y: box.bottom + 16, "text-anchor": "middle" }, t >= 1024 ? `${t / 1024}K` : `${t}`)]);
  const lines = { attention: line(), none: line(), way: line() };
  for (const [name, el] of Object.entries(lines)) el.classList.add(name);
  const frame = svg("rect", { class: "frame", x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top });
  const el = svg("svg", { viewBox: "0 0 320 206", role: "img", "aria-label": label }, frame, axisY, ...axisX,
    svg("text", { x: (box.left + box.right) / 2, y: 202, "text-anchor": "middle" }, nameX), cursor, ...Object.values(lines), marks);
  const exponent = (event) => {
    const area = el.getBoundingClientRect(), inside = ((event.clientX - area.left) / area.width) * 320;
    return from + ((inside - box.left) / (box.right - box.left)) * (to - from);
  };
  const point = (name, px, py) => svg("circle", { class: name, cx: px.toFixed(1), cy: py.toFixed(1), r: 4 });
  const path = (points, y) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  const ticksY = (ticks, y) => ticks.flatMap(([value, text]) => [
    svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
    svg("text", { x: box.left - 5, y: y(value) + 4, "text-anchor": "end" }, text)]);
  const place = (value) => { for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(value)); };
  return { el, box, x, lines, axisY, marks, cursor, exponent, point, path, ticksY, place };
}

// What was measured at this setting: points {way, segment_size, tokens, seconds, bytes}.
function measuredAt(data, s) {
  const { head_size, num_heads, top_k } = data.measured;
  if (s.memory !== "linear" || s.head_size !== head_size || s.num_heads !== num_heads) return [];
  return data.points.filter((p) => p.way === "attention" || p.way === "none" ||
    (p.way === s.way && p.segment_size === s.segment_size && (p.way !== "ssc" || s.top_k === top_k)));
}

// Seconds per multiply-add: the longest measured text under attention lies on its line.
function pace(data) {
  const longest = data.points.filter((p) => p.way === "attention").reduce((a, b) => (b.tokens > a.tokens ? b : a));
  const each = costs("attention", { ...data.measured, memory: "linear", segment_size: 1 }, longest.tokens).operations;
  return longest.seconds / longest.tokens / (each * data.measured.num_heads);
}

function countPanel(data, count, actions) {
  const [title, meaning, scale, unit, less] = COUNTS[count];
  const p = plot(`${title}: ${meaning}, against the length of the text`, [5, 18], [64, 1024, 16384, 262144], "tokens in the text, T");
  const right = svg("g", {}), caption = h("p", { class: "caption" });
  const pointed = (event) => 2 ** (5 + clamp(Math.round(p.exponent(event)) - 5, 13));
  p.el.insertBefore(right, p.cursor);
  p.el.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") actions.preview(pointed(event)); });
  p.el.addEventListener("pointerleave", () => actions.preview(null));
  p.el.addEventListener("click", (event) => actions.set({ tokens: pointed(event) }));
  const of = (way, s, T) => costs(way, s, T)[count] * scale * s.num_heads;
  const words = (name, from) => {
    if (from === GRID[0]) return `${name} ${less} attention at every length shown.`;
    return from ? `${name} ${less} attention from about ${whole(from)} tokens on.` : `${name} never ${less} attention up to ${whole(GRID.at(-1))} tokens.`;
  };
  const draw = (s, T) => {
    const ways = { attention: "attention", none: "none", way: s.way };
    const curves = Object.fromEntries(Object.entries(ways).map(([line, way]) => [line, GRID.map((t) => of(way, s, t))]));
    const from = { none: below(curves.none, curves.attention), way: below(curves.way, curves.attention) };
    const found = count === "fetched" ? [] : measuredAt(data, s);
    const value = (m) => (count === "carried" ? m.bytes : m.seconds / m.tokens / pace(data));
    const values = [...Object.values(curves).flat(), ...found.map(value)].map(log10);
    const low = Math.floor(Math.min(...values)), high = Math.ceil(Math.max(...values));
    const y = (value) => p.box.bottom - ((log10(value) - low) / (high - low)) * (p.box.bottom - p.box.top);
    const decades = range(high - low + 1, (i) => 10 ** (low + i)).filter((_, i) => high - low < 6 || i % 2 === 0);
    p.axisY.replaceChildren(...p.ticksY(decades.map((d) => [d, amount(d, unit).replace(/\.0+/, "")]), y));
    for (const [line, curve] of Object.entries(curves)) p.lines[line].setAttribute("d", p.path(GRID.map((t, i) => [t, curve[i]]), y));
    const rings = Object.values(from).filter((t) => t > GRID[0])
      .map((t) => svg("path", { class: "ring", d: `M${p.x(t)} ${y(of("attention", s, t))}m0 -7l7 7l-7 7l-7 -7z` }));
    const dots = found.map((m) => p.point(`dot ${m.way === s.way ? "way" : m.way}`, p.x(m.tokens), y(value(m))));
    p.marks.replaceChildren(...Object.entries(ways).map(([line, way]) => p.point(`at ${line}`, p.x(T), y(of(way, s, T)))), ...rings, ...dots);
    p.place(T);
    const micro = count === "operations" && found.length ? range(9, (i) => [10 ** (i - 3), y((10 ** (i - 9)) / pace(data))]) : [];
    right.replaceChildren(...micro.filter(([, at]) => at > p.box.top && at < p.box.bottom)
      .map(([us, at]) => svg("text", { x: p.box.right + 4, y: at + 4 }, us < 1000 ? `${us} µs` : `${us / 1000} ms`)));
    const told = {
      operations: ` ● CPU time per token, right axis: ${(1e9 * pace(data)).toPrecision(2)} ns a multiply-add, as attention takes in its longest text. A dot above its line is slower than that.`,
      carried: " ● bytes of the caches themselves.",
    };
    setText(caption, `${words(nameOf(s.way), from.way)} ${words("RNN", from.none)}${found.length ? told[count] ?? "" : ""}`);
  };
  return { el: h("div", { class: "panel", "data-count": count }, h("p", { class: "title" }, h("b", {}, title), ` · ${meaning}`), p.el, caption), draw };
}

function recallPanel(data, actions) {
  const sizes = data.recall.map((r) => r.segment_size), shares = [...data.recall.map((r) => r.accuracy), ...Object.values(data.reference)];
  const low = Math.max(0, Math.floor(10 * Math.min(...shares) - 0.2) / 10), from = log2(sizes[0]) - 0.4, to = log2(sizes.at(-1)) + 0.4;
  const p = plot("MQAR accuracy of gated reading against the length of its segments", [from, to], sizes, "tokens in a segment, C");
  const y = (share) => p.box.bottom - ((share - low) / (1.02 - low)) * (p.box.bottom - p.box.top);
  const caption = h("p", { class: "caption" });
  p.axisY.replaceChildren(...p.ticksY(range(Math.round((1 - low) * 10) + 1, (i) => [low + i / 10, (low + i / 10).toFixed(1)]), y));
  for (const way of ["attention", "none"]) p.lines[way].setAttribute("d", p.path([[2 ** from, data.reference[way]], [2 ** to, data.reference[way]]], y));
  p.lines.way.setAttribute("d", p.path(data.recall.map((r) => [r.segment_size, r.accuracy]), y));
  p.el.addEventListener("click", (event) => {
    const wanted = p.exponent(event);
    actions.set({ segment_size: sizes.reduce((a, b) => (Math.abs(log2(b) - wanted) < Math.abs(log2(a) - wanted) ? b : a)) });
  });
  const draw = (s) => {
    const here = data.recall.find((r) => r.segment_size === s.segment_size);
    p.marks.replaceChildren(...data.recall.map((r) => p.point("dot way", p.x(r.segment_size), y(r.accuracy))),
      ...(here ? [p.point("at way", p.x(here.segment_size), y(here.accuracy))] : []));
    p.cursor.classList.toggle("none", !here);
    p.place(here ? here.segment_size : sizes[0]);
    const found = here ? `C = ${s.segment_size}: ${percent(here.accuracy)} right.` : `Not measured at C = ${whole(s.segment_size)}.`;
    setText(caption, `${found} RNN ${percent(data.reference.none)}, attention ${percent(data.reference.attention)}. ${data.recall_at}`);
  };
  return { el: h("div", { class: "panel", "data-count": "recall" }, h("p", { class: "title" }, h("b", {}, "recall"), " · MQAR questions answered right, GRM"), p.el, caption), draw };
}

function slider(name, actions) {
  const [text, symbol, low, high, unit] = SLIDERS[name];
  const input = h("input", { type: "range", min: low, max: high, step: 1, "data-name": name, "aria-label": `${text}, ${symbol}` });
  const value = h("output", {});
  const also = name === "top_k" ? { way: "ssc" } : {}; // only SSC has a k
  input.addEventListener("input", () => actions.set({ ...also, [name]: 2 ** input.valueAsNumber }));
  const draw = (s) => {
    input.value = log2(s[name]);
    setText(value, whole(s[name]));
    input.setAttribute("aria-valuetext", `${s[name]} ${unit}`.trim());
  };
  const el = h("label", {}, h("span", {}, `${text} `, h("i", {}, symbol)), input, value);
  return { el, draw };
}

function table(data) {
  const columns = ["none", "way", "attention"], rows = [...Object.keys(COUNTS), "time"];
  const cells = Object.fromEntries(rows.map((row) => [row, columns.map((column) => h("td", { "data-count": row, "data-column": column }))]));
  const heads = columns.map((column) => h("th", { scope: "col" }, h("span", { class: `swatch ${column}` }), h("span", {})));
  const titles = { operations: "operations per token", carried: "kept after T tokens", fetched: "read by the next token", time: "CPU time per token, measured" };
  const lines = rows.map((row) => h("tr", {}, h("th", { scope: "row" }, titles[row]), ...cells[row]));
  const el = h("table", {}, h("thead", {}, h("tr", {}, h("td", {}), ...heads)), h("tbody", {}, ...lines));
  const fill = (row, values, show) => cells[row].forEach((cell, i) => {
    const value = values[i], attention = values[2];
    cell.dataset.value = value ?? "";
    const share = i < 2 && value && attention ? `${+(value / attention).toPrecision(2)} ×` : "";
    cell.replaceChildren(value == null ? "–" : show(value), h("small", {}, share));
  });
  const draw = (s, T) => {
    const ways = ["none", s.way, "attention"], all = ways.map((way) => costs(way, s, T)), found = measuredAt(data, s);
    heads.forEach((head, i) => setText(head.lastChild, i === 1 ? `MC, ${nameOf(s.way)}` : nameOf(ways[i])));
    for (const [count, [, , scale, unit]] of Object.entries(COUNTS))
      fill(count, all.map((c) => c[count] * scale * s.num_heads), (x) => amount(x, unit));
    const times = ways.map((way) => found.find((m) => m.way === way && m.tokens === T));
    fill("time", times.map((m) => m && m.seconds / m.tokens), (x) => `${(1e6 * x).toPrecision(3)} µs`);
  };
  return { el: h("div", { class: "scroll" }, el), draw };
}

function verdict() {
  const el = h("p", { class: "verdict" });
  const draw = (s) => {
    const [P] = memorySizes(s.memory, s.head_size), D = s.head_size, even = (P + D) / (2 * D), C = s.segment_size;
    const formula = s.memory === "linear" ? "(D + 1) / 2" : "4D + ½";
    el.dataset.even = even;
    const all = s.way === "grm" || s.way === "soup" ? ` With shorter segments, ${nameOf(s.way)} reads cost more than attention’s.` : "";
    el.replaceChildren("A cached memory weighs as much as the keys and values of ", h("b", {}, `${formula} = ${even} tokens`), `.${all} Here it stands for C = ${whole(C)}: `,
      h("b", {}, C > even ? `in long texts the cache is ${(C / even).toPrecision(2)} times smaller than attention’s.` : "the cache is larger than attention’s, in texts of any length."));
  };
  return { el, draw };
}

function explorer(model, root) {
  const data = model.get("data");
  if (!data?.points?.length || !data?.recall?.length) throw new Error("there are no measurements to show yet.");
  const first = { ...data.measured, memory: "linear", way: "grm", tokens: 8192, segment_size: 64 };
  let s = { ...first, ...model.get("setting") }, previewed = null;
  const spoken = announcer();
  const draw = () => {
    const T = previewed ?? s.tokens;
    Object.assign(root.dataset, { way: s.way, tokens: T });
    panels.forEach((panel) => panel.draw(s, T));
  };
  const show = (setting) => {
    s = setting;
    previewed = null;
    draw();
    const share = (count) => (costs(s.way, s)[count] / costs("attention", s)[count]).toPrecision(2);
    spoken.say(`${whole(s.tokens)} tokens, segments of ${s.segment_size}: ${nameOf(s.way)} takes ${share("operations")} of attention’s operations, keeps ${share("carried")} and reads ${share("fetched")} of its bytes.`);
  };
  const set = (some) => { show({ ...s, ...some }); model.set("setting", s); model.save_changes(); };
  const preview = (T) => { if (T !== previewed) { previewed = T; draw(); } };
  const actions = { set, preview };
  const sliders = Object.keys(SLIDERS).map((name) => slider(name, actions));
  const choices = ["memory", "way"].map((name) => {
    const one = choice(name === "way" ? "read by" : name, name === "way" ? WAYS : MEMORIES, (value) => set({ [name]: value }));
    return { el: one.el, draw: (s) => one.draw(s[name]) };
  });
  const back = h("button", { type: "button", class: "back" }, "measured setting");
  back.addEventListener("click", () => set(first));
  const told = verdict(), numbers = table(data);
  const plots = [...Object.keys(COUNTS).map((count) => countPanel(data, count, actions)), recallPanel(data, actions)];
  const panels = [...sliders, ...choices, told, numbers, ...plots];
  root.replaceChildren(heading(data.title, "Turn the sliders. Point at a plot to look at another length of text, click to keep it."),
    spoken.el, h("div", { class: "sliders" }, ...sliders.map((one) => one.el), back), h("div", { class: "choices" }, ...choices.map((one) => one.el)),
    told.el, numbers.el, h("p", { class: "legend" }, h("span", { class: "entry" }, "◇ from here on attention costs more"), h("span", { class: "entry" }, "● measured"), h("span", { class: "entry" }, "○ the chosen setting")),
    h("div", { class: "plots" }, ...plots.map((one) => one.el)));
  show(s);
  return { setting: (given) => show({ ...first, ...given }) };
}

export default family("dial", ["setting"], explorer);
