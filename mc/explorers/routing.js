// The routing explorer: which cached segment does each head read at this token?
// A panel is { el, draw(shown, held) }; a new panel only has to join the list in `explorer`.

function h(tag, attrs = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs)) el.setAttribute(name, value);
  el.append(...children);
  return el;
}

const range = (n, make) => Array.from({ length: n }, (_, i) => make(i));
const clamp = (i, max) => Math.min(Math.max(i, 0), max);
const percent = (p) => `${Math.round(100 * p)}%`;
const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const short = (p) => (p >= 0.995 ? "1.0" : p.toFixed(2).slice(1));
const visible = (s) => (s === "" ? "∅" : s.replace(/\n/g, "↵").replace(/^\s+$/, "␣"));
// bdi keeps a right-to-left token from reordering the sentence around it.
const word = (s) => h("bdi", { class: "word" }, visible(s));
const setText = (el, text) => { if (el.textContent !== text) el.textContent = text; };

// Written only on change: most of the 512 tokens stay as they are from one frame to the next.
function setClass(el, ...names) {
  const wanted = names.filter(Boolean).join(" ");
  if (el.className !== wanted) el.className = wanted;
}

function onKeys(el, actions) {
  el.onkeydown = (event) => {
    const action = actions[event.key], slides = event.target.matches("input") && event.key.length > 1;
    if (!action || slides || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation(); // the book's theme turns pages on arrow keys
    action();
  };
}

function decodeGates(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return Float32Array.from({ length: bytes.length >> 1 }, (_, i) => (bytes[2 * i] + 256 * bytes[2 * i + 1]) / 65535);
}

// The trace with every question the panels ask of it.
function readTrace(data) {
  if (!data?.tokens?.length) throw new Error("there is no trace to show yet.");
  const { tokens, roles, segment_of: segmentOf, lengths, layers, heads, slots, source, target, answers } = data;
  const T = tokens.length, online = slots - 1;
  const values = decodeGates(data.gates);
  if (values.length !== layers * T * heads * slots)
    throw new Error(`gates hold ${values.length} numbers, expected ${layers} × ${T} × ${heads} × ${slots}.`);
  const starts = lengths.map((_, s) => segmentOf.indexOf(s));
  const queries = roles.flatMap((role, t) => (role === "query" ? [t] : []));
  const gate = (layer, t, head, slot) => values[((layer * T + t) * heads + head) * slots + slot];
  const trueSegment = (t) => (source[t] == null ? null : segmentOf[source[t]]);
  const trueSlot = (t) => (trueSegment(t) === segmentOf[t] ? online : trueSegment(t));
  const trueMass = (t) => range(layers * heads, (i) => gate(i % layers, t, Math.floor(i / layers), trueSlot(t)))
    .reduce((a, b) => a + b) / (layers * heads);
  const truePair = (t) => (source[t] == null ? [] : [source[t] - 1, source[t]].filter((i) => i >= 0));
  const position = (t) => t - starts[segmentOf[t]] + 1;
  const phase = (s, t) => (s < segmentOf[t] ? "closed" : s > segmentOf[t] ? "future" : "running");
  const isRight = (t) => target[t] != null && answers[t]?.[0]?.[0] === target[t];
  return { ...data, T, online, starts, segmentOf, queries, gate, trueSegment, trueSlot, trueMass, truePair, position, phase, isRight };
}

const slotName = (v, slot) => (slot === v.online ? "online memory" : `segment ${slot + 1}`);

function timeText(v, t) {
  const s = v.segmentOf[t];
  return `segment ${s + 1} is running (${v.position(t)} of ${plural(v.lengths[s], "token")}); ${plural(s, "state")} in the cache`;
}

// With no token held we open on a right answer read from a cached segment: the story in one frame.
function openingToken(v, wanted) {
  if (Number.isInteger(wanted) && wanted >= 0 && wanted < v.T) return wanted;
  const told = v.queries.filter((t) => v.isRight(t) && v.trueSegment(t) !== null && v.trueSlot(t) !== v.online);
  if (!told.length) return v.queries[0] ?? v.T - 1;
  return told.reduce((a, b) => (v.trueMass(b) > v.trueMass(a) ? b : a));
}

function heading(v) {
  const how = "Point at a token to look, click to hold it. ← → move by one token, ↑ ↓ by one segment, n and p jump between queries.";
  return { el: h("div", {}, h("p", { class: "heading" }, v.title ?? ""), h("p", { class: "how" }, how)), draw() {} };
}

function timeBar(v, { hold, jump }) {
  const slider = h("input", { class: "mc-time", type: "range", min: 0, max: v.T - 1, step: 1 });
  const status = h("p", { class: "status" });
  const previous = h("button", { type: "button", "aria-keyshortcuts": "p" }, "‹ previous query");
  const next = h("button", { type: "button", "aria-keyshortcuts": "n" }, "next query ›");
  slider.addEventListener("input", () => hold(slider.valueAsNumber));
  previous.addEventListener("click", () => jump(-1));
  next.addEventListener("click", () => jump(1));
  const draw = (t) => {
    slider.value = t;
    slider.setAttribute("aria-valuetext", `token ${t + 1} of ${v.T}, ${timeText(v, t)}`);
    status.replaceChildren(h("b", {}, `token ${t + 1}`), ` of ${v.T} · ${timeText(v, t)}`);
    // Not `disabled`: that would drop the reader's focus.
    previous.setAttribute("aria-disabled", !v.queries.some((q) => q < t));
    next.setAttribute("aria-disabled", !v.queries.some((q) => q > t));
  };
  return { el: h("div", { class: "time" }, h("div", { class: "controls" }, h("label", {}, "time", slider), previous, next), status), draw };
}

function tokenSize(v) {
  const sizes = v.tokens.map((s) => [...visible(s)].length).sort((a, b) => a - b);
  const letters = clamp(sizes[Math.floor(0.9 * (v.T - 1))], 10);
  const columns = Math.min(letters <= 4 ? 8 : 4, Math.max(...v.lengths));
  return { letters, columns, width: Math.max(20, Math.ceil(letters * 5.6 + 2)) };
}

function tokenBox(v, t, letters) {
  const text = visible(v.tokens[t]);
  const el = h("span", { "data-index": t, role: "option", dir: "auto", "aria-label": `token ${t + 1}: ${text}, ${v.roles[t]}` }, text);
  const long = [...text].length > letters && "long";
  const draw = (shown, held, pair) => {
    setClass(el, "token", v.roles[t], long, t > shown && "later", pair.includes(t) && "pair", t === shown && "shown");
    if (el.ariaSelected === String(t === held)) return;
    el.ariaSelected = String(t === held);
    el.tabIndex = t === held ? 0 : -1;
  };
  return { el, draw };
}

function segmentBox(v, s, { letters, columns }) {
  const tokens = range(v.lengths[s], (i) => tokenBox(v, v.starts[s] + i, letters));
  const remark = h("span", { class: "remark" });
  const tight = columns < 4;
  const label = h("div", { class: "label" }, h("span", {}, tight ? `${s + 1}` : `segment ${s + 1}`), remark);
  const el = h("div", { role: "group", "aria-label": `segment ${s + 1}`, "data-segment": s },
    label, h("div", { class: "tokens", role: "presentation" }, ...tokens.map((token) => token.el)));
  const draw = (t, held, pair) => {
    const phase = v.phase(s, t), truth = v.trueSegment(t) === s;
    setClass(el, "segment", phase, truth && "true");
    const state = { closed: "cached", running: `running ${v.position(t)}/${v.lengths[s]}`, future: "" }[phase];
    setText(remark, tight ? (truth ? "◆" : "") : truth ? "◆ true pair" : state);
    tokens.forEach((token) => token.draw(t, held, pair));
  };
  return { el, draw };
}

function legend(v) {
  const entry = (role) => h("span", { class: "entry" }, h("span", { class: `token ${role}` }, "12"), role);
  return h("div", { class: "legend" }, ...[...new Set(v.roles)].map(entry), h("span", { class: "entry truth" }, "◆ true pair"));
}

function strip(v, { preview, hold, walk }) {
  const size = tokenSize(v);
  const boxes = v.lengths.map((_, s) => segmentBox(v, s, size));
  const list = h("div", { class: "strip", role: "listbox", "aria-label": "tokens", "aria-orientation": "horizontal",
    style: `--columns:${size.columns};--token-width:${size.width}px` }, ...boxes.map((box) => box.el));
  const focus = () => list.querySelector("[aria-selected=true]").focus();
  const thenFocus = (move, ...args) => () => { move(...args); focus(); };
  const at = (event) => event.target.closest("[data-index]");

  // When keys scroll the page, tokens pass under a resting pointer: only a pointer that moved is pointing.
  let rest = { x: NaN, y: NaN };
  const moved = (event) => !(Math.hypot(event.clientX - rest.x, event.clientY - rest.y) < 2);
  list.addEventListener("pointermove", (event) => { rest = { x: event.clientX, y: event.clientY }; });
  list.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch" || !moved(event)) return;
    if (at(event)) preview(+at(event).dataset.index);
    else if (!event.target.closest(".tokens")) preview(null);
  });
  list.addEventListener("pointerleave", () => preview(null));
  list.addEventListener("click", (event) => { if (at(event)) thenFocus(hold, +at(event).dataset.index)(); });
  onKeys(list, Object.fromEntries(Object.entries(walk).map(([key, move]) => [key, thenFocus(move)])));
  const draw = (t, held) => { const pair = v.truePair(t); boxes.forEach((box) => box.draw(t, held, pair)); };
  const light = (s) => boxes.forEach((box, i) => box.el.classList.toggle("lit", i === s));
  return { el: h("div", { class: "sequence" }, legend(v), list), draw, light };
}

function story(v) {
  const el = h("p", { class: "story" });
  const silent = { key: "a key is being read, its value comes next.", value: "a value is being stored under the key before it." };
  const ask = (t) => {
    const lead = ["Query ", word(v.tokens[t]), " asks which value followed this key. "];
    if (v.trueSegment(t) === null) return [...lead, "No earlier pair answers it."];
    const back = v.segmentOf[t] - v.trueSegment(t);
    const pair = v.truePair(t).flatMap((i) => [" → ", word(v.tokens[i])]).slice(1);
    const where = back ? `segment ${v.trueSegment(t) + 1}, ${plural(back, "segment")} back.` : "the running segment, in the online memory.";
    return [...lead, h("b", { class: "truth" }, "◆ ", ...pair), ` is in ${where}`];
  };
  const tell = (t) => `Nothing is asked here: ${silent[v.roles[t]] ?? "a filler, to be ignored."}`;
  const draw = (t) => el.replaceChildren(...(v.roles[t] === "query" ? ask(t) : [tell(t)]));
  return { el, draw };
}

function shelfSlot(v, slot) {
  const isOnline = slot === v.online;
  const fill = h("span", { class: "fill" }), number = h("span", { class: "number" }, `${slot + 1}`);
  const el = h("div", { role: "columnheader", tabindex: isOnline ? 0 : -1, "data-slot": slot }, fill, number);
  const draw = (t) => {
    const s = v.segmentOf[t], phase = isOnline ? "online" : v.phase(slot, t);
    setClass(el, "slot", phase);
    if (isOnline) setText(number, `${s + 1}`);
    fill.style.height = { online: percent(v.position(t) / v.lengths[s]), closed: "100%" }[phase] ?? "0";
    const what = { online: `segment ${s + 1} is running`, closed: "state in the cache" }[phase] ?? "empty";
    el.setAttribute("aria-label", `${slotName(v, slot)}: ${what}${v.trueSlot(t) === slot ? ", holds the true pair" : ""}`);
  };
  return { el, draw };
}

function headRow(v, layer, head) {
  const cells = range(v.slots, (slot) => h("div", { role: "cell", "data-layer": layer, "data-head": head, "data-slot": slot }));
  const mass = h("div", { class: "mass", role: "cell" });
  const name = h("div", { class: "name", role: "rowheader", "aria-label": `layer ${layer + 1}, head ${head + 1}` }, `head ${head + 1}`);
  const draw = (t) => {
    const values = cells.map((_, slot) => v.gate(layer, t, head, slot));
    const top = values.indexOf(Math.max(...values)), truth = v.trueSlot(t);
    cells.forEach((cell, slot) => {
      const shut = slot !== v.online && slot >= v.segmentOf[t];
      setClass(cell, "gate", slot === v.online && "online", shut && "shut", slot === top && "top");
      cell.dataset.value = values[slot].toFixed(5);
      cell.style.setProperty("--gate", cell.dataset.value);
      setText(cell, shut ? "" : short(values[slot]));
    });
    setText(mass, truth === null ? "–" : percent(values[truth]));
  };
  return { el: h("div", { class: "line", role: "row" }, name, ...cells, mass), draw };
}

function layerRows(v, layer) {
  const rows = range(v.heads, (head) => headRow(v, layer, head));
  const [name, text] = v.heads > 2 ? ["layer", `layer ${layer + 1}`] : ["layer upright", `L${layer + 1}`];
  rows[0].el.prepend(h("div", { class: name, "aria-hidden": true, style: `grid-row: span ${v.heads}` }, text));
  return rows;
}

function gateGrid(v, shelf, rows) {
  const states = h("span", { class: "states" });
  const frame = h("div", { "aria-hidden": true });
  const captions = [h("span", { class: "corner" }, "cache"), ...(v.online ? [states] : []),
    h("span", { class: "online" }, "online"), h("span", { class: "mass truth" }, "on ◆")];
  const header = h("div", { class: "line", role: "row" }, h("div", { class: "corner", role: "columnheader", "aria-label": "head" }),
    ...shelf.map((slot) => slot.el), h("div", { class: "mass", role: "columnheader", "aria-label": "gate mass on the segment of the true pair" }));
  const space = () => h("div", { class: "space", role: "presentation" });
  const body = rows.flatMap((row, i) => (i && i % v.heads === 0 ? [space(), row.el] : [row.el]));
  const label = "gates of every head over the cached segments and the online memory";
  const el = h("div", { class: "grid", role: "table", "aria-label": label, style: `--slots:${v.online};${v.online ? "" : "--slot-columns: "}` }, ...captions, header, ...body, frame);
  const draw = (t) => {
    const truth = v.trueSlot(t);
    [...shelf, ...rows].forEach((part) => part.draw(t));
    setText(states, `${v.segmentOf[t]} of ${plural(v.online, "state")}`);
    setClass(frame, "frame", truth === v.online && "online", truth === null && "none");
    frame.style.gridColumn = `${truth + 3} / ${truth + 4}`;
  };
  return { el, draw };
}

function gates(v, { light }) {
  const shelf = range(v.slots, (slot) => shelfSlot(v, slot));
  const grid = gateGrid(v, shelf, range(v.layers, (layer) => layerRows(v, layer)).flat());
  const reading = h("p", { class: "reading" });
  const ramp = h("p", {}, "on ◆: gate on the true segment · gate 0 ", h("span", { class: "ramp" }), " 1");
  let now = 0, focused = v.online;
  const read = ({ layer, head, slot, value }) => `layer ${+layer + 1}, head ${+head + 1} → ${slotName(v, +slot)}: ${(+value).toFixed(4)}`;
  const largest = () => [...grid.el.querySelectorAll(".top")].reduce((a, b) => (+b.dataset.value > +a.dataset.value ? b : a));
  const pointAt = (slot, cell) => {
    grid.el.querySelectorAll("[data-slot]").forEach((el) => el.classList.toggle("lit", +el.dataset.slot === slot));
    light(slot === v.online ? v.segmentOf[now] : slot);
    setText(reading, cell ? read(cell.dataset) : slot === null ? `largest: ${read(largest().dataset)}` : shelf[slot].el.ariaLabel);
  };
  const focus = (slot) => {
    shelf[focused].el.tabIndex = -1;
    focused = clamp(slot, v.online);
    shelf[focused].el.tabIndex = 0;
    shelf[focused].el.focus();
  };
  grid.el.addEventListener("pointerover", (event) => {
    const target = event.target.closest("[data-slot]");
    pointAt(target && +target.dataset.slot, target?.dataset.value && target);
  });
  for (const leave of ["pointerleave", "focusout"]) grid.el.addEventListener(leave, () => pointAt(null));
  grid.el.addEventListener("focusin", (event) => pointAt(+event.target.dataset.slot));
  onKeys(grid.el, { ArrowLeft: () => focus(focused - 1), ArrowRight: () => focus(focused + 1), Home: () => focus(0), End: () => focus(v.online) });
  const draw = (t) => { now = t; grid.draw(t); pointAt(null); };
  return { el: h("div", { class: "gates" }, h("div", { class: "scroll" }, grid.el), h("div", { class: "foot" }, reading, ramp)), draw };
}

function answerRow([text, p], right, note) {
  const track = h("span", { class: "track" }, h("span", { class: "length", style: `width:${percent(p)}` }));
  return h("li", { class: right ? "right" : "" }, word(text), track, h("span", { class: "mass" }, p.toFixed(2)),
    h("span", { class: "remark" }, right ? note : ""));
}

function answer(v) {
  const verdict = h("p", {}), list = h("ol");
  const judge = (t) => {
    if (v.roles[t] !== "query") return ["Nothing is asked at this token."];
    if (v.target[t] == null) return ["No right answer is recorded."];
    if (v.isRight(t)) return ["✓ Right: ", word(v.target[t])];
    return ["✗ Wrong: ", word(v.answers[t]?.[0]?.[0] ?? ""), ", should be ", word(v.target[t])];
  };
  const draw = (t) => {
    const asked = v.roles[t] === "query", target = v.target[t], top = asked ? v.answers[t] ?? [] : [];
    const missed = asked && target != null && !top.some(([text]) => text === target);
    setClass(verdict, "verdict", asked && "asked");
    verdict.replaceChildren(...judge(t));
    list.replaceChildren(...top.map((row) => answerRow(row, row[0] === target, "✓ right answer")),
      ...(missed ? [answerRow([target, v.target_prob[t] ?? 0], true, "right answer, missed")] : []));
  };
  return { el: h("div", { class: "answer" }, h("p", { class: "how" }, "the model’s answer"), verdict, list), draw };
}

function announcer(v) {
  const el = h("p", { class: "spoken", "aria-live": "polite" });
  const draw = (_, t) => {
    const where = `Token ${t + 1}, ${v.roles[t]} ${visible(v.tokens[t])}, segment ${v.segmentOf[t] + 1}.`;
    if (v.roles[t] !== "query") return setText(el, `${where} Nothing is asked.`);
    const said = v.answers[t]?.[0] ? ` Answer ${visible(v.answers[t][0][0])}${v.target[t] == null ? "" : v.isRight(t) ? ", right" : ", wrong"}.` : "";
    const mass = v.trueSegment(t) === null ? "" : ` ${percent(v.trueMass(t))} of the gates on the true segment.`;
    return setText(el, where + said + mass);
  };
  return { el, draw };
}

// Draws the model's data into root; returns what to do when the token is set from outside.
function explorer(model, root) {
  const v = readTrace(model.get("data"));
  let held = openingToken(v, model.get("token")), previewed = null;
  const draw = () => {
    root.dataset.token = previewed ?? held;
    setClass(root, "mc-routing", v.slots > 20 && "many", (previewed ?? held) !== held && "previewing");
    panels.forEach((panel) => panel.draw(previewed ?? held, held));
  };
  const show = (t) => { held = t; previewed = null; draw(); };
  const actions = {
    preview: (t) => { if (t !== previewed) { previewed = t; draw(); } },
    hold: (t) => { show(clamp(t, v.T - 1)); model.set("token", held); model.save_changes(); },
    step: (tokens, segments) => {
      const s = clamp(v.segmentOf[held] + segments, v.lengths.length - 1);
      actions.hold(v.starts[s] + Math.min(v.position(held), v.lengths[s]) - 1 + tokens);
    },
    jump: (dir) => actions.hold((dir > 0 ? v.queries.find((q) => q > held) : v.queries.filter((q) => q < held).pop()) ?? held),
    light: (s) => sequence.light(s),
  };
  actions.walk = {
    ArrowLeft: () => actions.step(-1, 0), ArrowRight: () => actions.step(1, 0),
    ArrowUp: () => actions.step(0, -1), ArrowDown: () => actions.step(0, 1),
    Home: () => actions.hold(0), End: () => actions.hold(v.T - 1), n: () => actions.jump(1), p: () => actions.jump(-1),
  };
  onKeys(root, actions.walk); // also when a button or the slider has the focus
  const sequence = strip(v, actions), heat = gates(v, actions), said = answer(v);
  const above = [heading(v), timeBar(v, actions), sequence], readout = [story(v), heat, said], spoken = announcer(v);
  const panels = [...above, ...readout, spoken];
  root.replaceChildren(...above.map((panel) => panel.el), h("div", { class: "readout" }, ...readout.map((panel) => panel.el)), spoken.el);
  draw();
  return (t) => { if (t !== held && Number.isInteger(t) && t >= 0 && t < v.T) show(t); };
}

function render({ model, el }) {
  // JupyterLab's command mode would otherwise take the arrow keys.
  const root = h("div", { class: "mc-routing", "data-lm-suppress-shortcuts": "true", role: "group", "aria-label": "routing explorer" });
  let follow;
  const redraw = () => {
    try { follow = explorer(model, root); } catch (error) {
      follow = () => {};
      root.replaceChildren(h("p", { class: "error", role: "alert" }, `Routing explorer: ${error.message}`));
    }
  };
  const onToken = () => follow(model.get("token"));
  model.on("change:data", redraw);
  model.on("change:token", onToken);
  redraw();
  el.append(root);
  return () => { model.off?.("change:data", redraw); model.off?.("change:token", onToken); root.remove(); };
}

export default { render };
