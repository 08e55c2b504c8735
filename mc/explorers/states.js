// The states explorer: what does each cached memory hold, and what does it answer to a key of the sequence?
// A panel is { el, draw(now) }; `now` holds what is picked: { token, memory, head, change, cell }.

// The sequence as all memories have seen it, with every question that the panels ask of its states.
function readStates(data) {
  const v = readSequence(data), { memories: N, heads, asks } = v, A = asks.length;
  const variants = data.variants.map((variant) => {
    const [norm, change, closeness, nearest] = ["norm", "change", "closeness", "nearest"].map((name) => unpack(variant[name]));
    const parts = variant.parts.map((part) => {
      const values = unpack(part.values), singular = unpack(part.singular), size = part.shape[0] * part.shape[1];
      if (values.length !== heads.length * N * size) throw new Error(`${part.name} holds ${values.length} numbers, expected ${heads.length} × ${N} × ${size}.`);
      const state = (head, i) => values.subarray((head * N + i) * size, (head * N + i + 1) * size);
      const step = (head, i) => {
        const before = i ? state(head, i - 1) : [];
        return state(head, i).map((x, j) => x - (before[j] ?? 0));
      };
      const rank = singular.length / (heads.length * N);
      const spectrum = (head, i) => singular.subarray((head * N + i) * rank, (head * N + i + 1) * rank);
      const matrix = (now, i) => (now.change ? step : state)(now.head, i);
      return { ...part, matrix, spectrum, scales: {} };
    });
    const at = (table, head, i, ask) => table[(head * N + i) * A + ask];
    return { ...variant, parts, norm: (head, i) => norm[head * N + i], change: (head, i) => change[head * N + i],
      closeness: (head, i, ask) => at(closeness, head, i, ask), nearest: (head, i, ask) => Math.round(at(nearest, head, i, ask)) };
  });
  const index = new Map(asks.map(([t], a) => [t, a]));
  const askOf = (t) => index.get(t) ?? (v.roles[t] === "key" ? index.get(t + 1) : undefined);
  const valueOf = (t) => (askOf(t) === undefined ? null : asks[askOf(t)][1]);
  const trueSegment = (t) => (valueOf(t) === null ? null : v.segmentOf[valueOf(t)]);
  const truePair = (t) => (valueOf(t) === null ? [] : [valueOf(t) - 1, valueOf(t)].filter((i) => i >= 0));
  const phase = (s) => (s < N ? "closed" : "future"); // all is read, whatever token is picked
  return { ...v, variants, N, askOf, valueOf, trueSegment, truePair, phase };
}

// Whether memory i of a variant was written with what stands in segment s.
const holds = (variant, i, s) => s !== null && (variant.init === "checkpoint" ? i >= s : i === s);
const withSign = (x) => (x < 0 ? "−" : "") + short(Math.abs(x));
const digits = (size) => (size >= 100 ? size.toFixed(0) : size >= 0.01 ? size.toPrecision(3) : `${+size.toFixed(4)}`);
const figure = (x) => (x < 0 ? "−" : "") + digits(Math.abs(x));

// The value with full colour: 1 in 200 numbers of the row is larger.
function scaleOf(v, part, now) {
  return (part.scales[`${now.head} ${now.change}`] ??= (() => {
    const sizes = Float32Array.from(range(v.N, (i) => [...part.matrix(now, i)]).flat(), Math.abs).sort();
    return sizes[Math.floor(0.995 * (sizes.length - 1))] || 1;
  })());
}

const heatMap = ({ shape: [rows, columns] }) => matrix(rows, columns, { style: `aspect-ratio:${columns} / ${rows}` });

function controls(v, { head, change }) {
  const heads = choice("head", v.heads.map((n) => `${n + 1}`), (i) => head(+i));
  const views = choice("show", ["memory", "change since the last one"], (i) => change(+i));
  const el = h("div", { class: "controls" }, ...(v.heads.length > 1 ? [heads.el] : []), views.el);
  return { el, draw: (now) => { heads.draw(now.head); views.draw(+now.change); } };
}

function question(v) {
  const el = h("p", { class: "story" });
  const tell = (t) => {
    if (v.askOf(t) === undefined) return ["Nothing to ask here: pick a key, a value or a question."];
    const pair = v.truePair(t).flatMap((i) => [" → ", word(v.tokens[i])]).slice(1), home = v.trueSegment(t) + 1;
    const lead = v.roles[t] === "query" ? ["Asked with the question ", word(v.tokens[t]), `, token ${t + 1}: `] : ["Asked with the stored key: "];
    return [...lead, h("b", { class: "truth" }, "◆ ", ...pair), ` was written in segment ${home}. Which memory knows the value?`];
  };
  return { el, draw: (now) => el.replaceChildren(...tell(now.token)) };
}

// One memory: its heat maps, and how close its answer is to the true value.
function memoryCell(v, variant, i) {
  const maps = variant.parts.map(heatMap);
  const name = h("span", { class: "name" }), length = h("span", { class: "length" });
  const number = h("span", { class: "number" }), reply = h("bdi", { class: "reply" });
  const el = h("div", { role: "option", "data-memory": i }, name, h("span", { class: "maps" }, ...maps.map((map) => map.el)), h("span", { class: "track" }, length), number, reply);
  const draw = (now, repaint) => {
    const home = v.trueSegment(now.token), ask = v.askOf(now.token), truth = i === home;
    setClass(el, "memory", truth && "true", holds(variant, i, home) && "holds", i === now.memory && "shown");
    setText(name, truth ? `◆ ${i + 1}` : `${i + 1}`);
    if (repaint) variant.parts.forEach((part, p) => maps[p].draw(part.matrix(now, i), scaleOf(v, part, now)));
    el.setAttribute("aria-selected", i === now.held);
    el.tabIndex = i === now.held ? 0 : -1;
    el.ariaLabel = `memory ${i + 1}${truth ? ", holds the true pair" : ""}`;
    if (ask === undefined) {
      el.dataset.value = "";
      [number, reply].forEach((part) => setText(part, ""));
      return length.style.setProperty("--value", 0);
    }
    const close = variant.closeness(now.head, i, ask), value = visible(v.tokens[variant.nearest(now.head, i, ask)]);
    const right = value === visible(v.tokens[v.valueOf(now.token)]);
    el.dataset.value = close.toFixed(5);
    length.style.setProperty("--value", el.dataset.value);
    setClass(length, "length", close < 0 && "below");
    setText(number, withSign(close));
    setClass(reply, "reply", right && "right");
    setText(reply, right ? `✓${value}` : value);
    el.ariaLabel += `: closeness ${close.toFixed(2)}, answers ${value}${right ? ", right" : ""}`;
  };
  return { el, draw };
}

function scaleBar(v, variant) {
  const ends = variant.parts.map(() => [h("span"), h("span")]);
  const el = h("span", { class: "scale" }, ...variant.parts.flatMap((part, p) => [h("span", {}, `${part.name}: `, ends[p][0], " ", h("i", { class: "values" }), " ", ends[p][1])]));
  const draw = (now) => variant.parts.forEach((part, p) => {
    const scale = figure(scaleOf(v, part, now));
    setText(ends[p][0], `≤ −${scale}`);
    setText(ends[p][1], `≥ ${scale}`);
  });
  return { el, draw };
}

const INITS = { independent: "each memory starts empty", checkpoint: "each memory goes on from the one before" };

function shelf(v, variant, { look, hold }) {
  const cells = range(v.N, (i) => memoryCell(v, variant, i)), scale = scaleBar(v, variant);
  const list = h("div", { class: "shelf", role: "listbox", "aria-label": `cached memories, ${variant.name}`, "aria-orientation": "horizontal", style: `--memories:${Math.min(v.N, 16)}` }, ...cells.map((cell) => cell.el));
  const el = h("div", { class: "variant" }, h("div", { class: "caption" }, h("b", {}, variant.name), h("span", { class: "how" }, INITS[variant.init]), scale.el), list);
  const at = (event) => event.target.closest("[data-memory]");
  let held = 0, painted = "";
  const go = (i) => { hold(clamp(i, v.N - 1)); cells[held].el.focus(); };
  // Only a pointer that moved is pointing: keys scroll the page under a resting one.
  list.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch" && at(event) && (event.movementX || event.movementY)) look(+at(event).dataset.memory); });
  list.addEventListener("pointerleave", () => look(null));
  list.addEventListener("click", (event) => { if (at(event)) go(+at(event).dataset.memory); });
  onKeys(list, { ArrowLeft: () => go(held - 1), ArrowRight: () => go(held + 1), Home: () => go(0), End: () => go(v.N - 1) });
  const draw = (now) => {
    const wanted = `${now.head} ${now.change}`;
    cells.forEach((cell) => cell.draw(now, wanted !== painted));
    held = now.held;
    painted = wanted;
    scale.draw(now);
  };
  return { el, draw };
}

// A memory large: its numbers under a pointer that all variants share.
function largePart(v, variant, p, { point }) {
  const part = variant.parts[p], [rows, columns] = part.shape, map = heatMap(part);
  const mark = h("span", { class: "mark", style: `width:${100 / columns}%;height:${100 / rows}%` });
  const box = h("div", { class: "map", tabindex: 0, role: "img", "data-part": p }, map.el, mark), read = h("p", { class: "reading" });
  const bars = h("div", { class: "bars", role: "img" });
  const top = Math.max(...range(v.heads.length * v.N, (j) => part.spectrum(Math.floor(j / v.N), j % v.N)[0])) || 1;
  const spectrumText = h("p", { class: "how" });
  const el = h("div", { class: "part" }, h("p", { class: "how" }, `${part.name} · rows: ${part.rows}, columns: ${part.columns}`), box,
    h("div", { class: "side" }, read, bars, spectrumText));
  let cell = [0, 0];
  const move = (row, column) => () => point(p, [clamp(cell[0] + row, rows - 1), clamp(cell[1] + column, columns - 1)]);
  box.addEventListener("pointermove", (event) => {
    const { left, top, width, height } = map.el.getBoundingClientRect();
    const share = [(event.clientY - top) / height * rows, (event.clientX - left) / width * columns];
    point(p, [clamp(Math.floor(share[0]), rows - 1), clamp(Math.floor(share[1]), columns - 1)]);
  });
  box.addEventListener("focus", () => point(p, cell));
  for (const leave of ["pointerleave", "blur"]) box.addEventListener(leave, () => point(p, null));
  onKeys(box, { ArrowLeft: move(0, -1), ArrowRight: move(0, 1), ArrowUp: move(-1, 0), ArrowDown: move(1, 0) });
  const draw = (now) => {
    const values = part.matrix(now, now.memory), spectrum = [...part.spectrum(now.head, now.memory)];
    map.draw(values, scaleOf(v, part, now));
    box.ariaLabel = `${part.name} of memory ${now.memory + 1}, ${variant.name}, ${rows} × ${columns} numbers; arrow keys read them`;
    if (now.cell?.part === p) cell = now.cell.at;
    mark.hidden = now.cell?.part !== p;
    Object.assign(mark.style, { top: `${100 * cell[0] / rows}%`, left: `${100 * cell[1] / columns}%` });
    const value = values[cell[0] * columns + cell[1]];
    read.replaceChildren(...(mark.hidden ? ["point at the map to read its numbers"] : [`${part.rows} ${cell[0] + 1}, ${part.columns} ${cell[1] + 1}: `, h("b", { "data-number": value.toFixed(5) }, figure(value))]));
    bars.replaceChildren(...spectrum.map((x) => h("i", { style: `height:${Math.max(100 * x / top, 2)}%`, title: figure(x) })));
    setText(spectrumText, `singular values: ${figure(spectrum[0])} to ${figure(spectrum[spectrum.length - 1])}`);
    bars.ariaLabel = `singular values ${spectrum.map(figure).join(", ")}`;
    bars.dataset.values = spectrum.map((x) => x.toFixed(5)).join(" ");
  };
  return { el, draw };
}

function large(v, variant, acts) {
  const title = h("p", { class: "title" }), facts = h("p", { class: "facts" });
  const parts = variant.parts.map((_, p) => largePart(v, variant, p, acts));
  const el = h("div", { class: "large", role: "group", "aria-label": `one memory, ${variant.name}` }, title, h("div", { class: "parts" }, ...parts.map((part) => part.el)), facts);
  const draw = (now) => {
    const i = now.memory, norm = variant.norm(now.head, i), change = variant.change(now.head, i);
    title.replaceChildren(h("b", {}, `memory ${i + 1}, ${variant.name}`), now.change ? (i ? `, less memory ${i}` : ", less its start") : "");
    parts.forEach((part) => part.draw(now));
    Object.assign(facts.dataset, { norm: norm.toFixed(5), change: change.toFixed(5) });
    const since = i ? `from memory ${i}` : "from the start";
    facts.replaceChildren("norm ", h("b", {}, figure(norm)), `, change ${since} `, h("b", {}, figure(change)));
  };
  return { el, draw };
}

// For a screen reader: the number under the mark, or who knows the value.
function told(v, now) {
  if (now.cell) {
    const { part: p, at: [row, column] } = now.cell, number = ({ parts: { [p]: part } }) => figure(part.matrix(now, now.memory)[row * part.shape[1] + column]);
    return `Row ${row + 1}, column ${column + 1}. ${v.variants.map((variant) => `${variant.name} ${number(variant)}.`).join(" ")}`;
  }
  const ask = v.askOf(now.token), where = `Token ${now.token + 1}, ${v.roles[now.token]} ${visible(v.tokens[now.token])}. `;
  if (ask === undefined) return `${where}Nothing to ask.`;
  const best = (variant) => {
    const values = range(v.N, (i) => Math.abs(variant.closeness(now.head, i, ask))), i = values.indexOf(Math.max(...values));
    return `${variant.name}: memory ${i + 1} is closest, ${variant.closeness(now.head, i, ask).toFixed(2)}.`;
  };
  return `${where}The pair is in segment ${v.trueSegment(now.token) + 1}. ${v.variants.map(best).join(" ")}`;
}

// Opens on the pair in the middle, and on the memory that was written with it.
function opening(v, token, memory) {
  const stored = v.asks.filter(([t, s]) => t === s && v.segmentOf[s] < v.N), middle = stored[stored.length >> 1]?.[0] ?? 0;
  const inside = (i, count) => Number.isInteger(i) && i >= 0 && i < count;
  const t = inside(token, v.T) ? token : middle;
  return { token: t, memory: inside(memory, v.N) ? memory : Math.min(v.trueSegment(t) ?? 0, v.N - 1) };
}

function explorer(model, root) {
  const v = readStates(model.get("data"));
  let held = { ...opening(v, model.get("token"), model.get("memory")), head: 0, change: false }, seen = {};
  const draw = () => {
    const now = { ...held, ...seen, held: held.memory };
    Object.assign(root.dataset, { token: now.token, memory: now.memory });
    setClass(root, "mc-explorer", "mc-states", seen.token !== undefined && "previewing");
    panels.forEach((panel) => panel.draw(now));
    strips.draw(now.token, held.token);
    spoken.say(told(v, { ...held, cell: seen.cell }));
  };
  const set = (change) => { held = { ...held, ...change }; seen = {}; draw(); };
  const keep = (trait) => (i) => { set({ [trait]: i }); model.set(trait, i); model.save_changes(); };
  const look = (trait) => (i) => { if (i !== (seen[trait] ?? null)) { seen = i === null ? {} : { [trait]: i }; draw(); } };
  const point = (part, at) => { seen = at ? { cell: { part, at } } : {}; draw(); };
  const { walk } = walker(v, () => held.token, keep("token"));
  onKeys(root, walk); // also when a button has the focus
  const strips = strip(v, { preview: look("token"), hold: keep("token"), walk }), spoken = announcer();
  const buttons = controls(v, { head: (head) => set({ head }), change: (i) => set({ change: i === 1 }) }), asked = question(v);
  const shelves = v.variants.map((variant) => shelf(v, variant, { look: look("memory"), hold: keep("memory") }));
  const larges = v.variants.map((variant) => large(v, variant, { point }));
  const panels = [buttons, asked, ...shelves, ...larges];
  const how = "Point at a token to ask every memory for its value, click to hold it. Point at a memory to see it large.", keys = "n and p jump between questions.";
  const legend = h("p", { class: "how" }, "Under each memory: how close its answer is to the true value (1: the same direction, 0: nothing of it), then the value that it points at. Orange: the pair was written into it.");
  root.replaceChildren(heading(v.title, how, keys), spoken.el, strips.el, buttons.el, asked.el, legend, ...shelves.map((panel) => panel.el),
    h("div", { class: "larges" }, ...larges.map((panel) => panel.el)));
  draw();
  const follow = (trait, count) => (i) => { if (i !== held[trait] && Number.isInteger(i) && i >= 0 && i < count) set({ [trait]: i }); };
  return { token: follow("token", v.T), memory: follow("memory", v.N) };
}

export default family("states", ["token", "memory"], explorer);
