// The time explorer: token after token is written into a memory; at the end of a segment its state drops into the cache.
// `v` is the sequence cut into segments of `v.size` tokens, with its memories (linear.js); another size replaces them.

const SPEEDS = [2, 4, 8, 16, 32]; // tokens per second

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// With no token held we open on a question that this cut answers and one segment does not.
function opening(v, wanted) {
  if (Number.isInteger(wanted) && wanted >= 0 && wanted < v.T) return wanted;
  const told = v.queries.filter((t) => v.trueSegment(t) !== v.segmentOf[t] && v.answer(v.dial, t) === v.target[t]);
  return told.find((t) => v.answer(0, t) !== v.target[t]) ?? told[0] ?? v.T >> 1;
}

function stream(v, { hold, walk }) {
  const { letters, width } = tokenSize(v), step = width + 3;
  const tokens = range(v.T, (t) => tokenBox(v, t, letters));
  const list = h("div", { class: "line", role: "listbox", "aria-label": "tokens", "aria-orientation": "horizontal" }, ...tokens.map((token) => token.el));
  const bars = h("div", { class: "line bars", "aria-hidden": true });
  const track = h("div", { class: "track", style: `--step:${step}px` }, list, bars);
  const focus = () => list.querySelector("[aria-selected=true]").focus({ preventScroll: true });
  list.addEventListener("click", ({ target }) => { if (target.dataset.index) { hold(+target.dataset.index); focus(); } });
  onKeys(list, Object.fromEntries(Object.entries(walk).map(([key, move]) => [key, () => { move(); focus(); }])));
  const recut = () => bars.replaceChildren(...v.lengths.map((n, s) =>
    h("span", { style: `width:${n * step}px` }, n * step > 70 ? `segment ${s + 1}` : n * step > 30 ? `${s + 1}` : "")));
  const draw = (t) => {
    const pair = v.truePair(t);
    tokens.forEach((token) => token.draw(t, t, pair));
    [...bars.children].forEach((bar, s) => setClass(bar, v.phase(s, t)));
    track.style.setProperty("--now", t);
  };
  return { el: h("div", { class: "sequence" }, legend(v), h("div", { class: "window" }, track)), draw, recut };
}

function online(v) {
  const norms = h("p", { class: "soft" }), low = h("span"), high = h("span");
  const named = (label) => ({ role: "img", "aria-label": label });
  const key = matrix(1, v.width, named("the key that is written")), value = matrix(v.width, 1, named("the value that is written"));
  const memory = matrix(v.width, v.width, named(""));
  const cell = (name, part) => h("div", { class: name }, part.el);
  const box = h("div", { class: "board" }, h("span", { class: "corner" }, "writes v kᵀ"), cell("k", key), cell("v", value), cell("M", memory));
  const el = h("div", { class: "online" }, h("p", { class: "what" }, h("b", {}, "online memory")), box, norms, h("p", { class: "soft", "aria-hidden": true }, low, " ", h("span", { class: "values" }), " ", high));
  const draw = (t) => {
    const s = v.segmentOf[t], M = v.online(t), gate = v.gates(t)[s];
    key.draw(v.keys[t], 1);
    value.draw(v.values[t], Math.max(...v.values[t].map(Math.abs)));
    memory.draw(M, v.strong);
    setClass(box, "board", v.trueSegment(t) === s && "true");
    memory.el.dataset.norm = norm(M).toFixed(5);
    memory.el.setAttribute("aria-label", `online memory, ${v.width} × ${v.width} numbers, after ${plural(v.position(t), "token")} of segment ${s + 1}`);
    setText(norms, `norm ${norm(M).toFixed(2)} · gate ${gate.toFixed(3)}`);
  };
  const recut = () => { setText(low, `−${v.strong.toFixed(2)}`); setText(high, v.strong.toFixed(2)); };
  return { el, draw, recut, memory: memory.el };
}

function shelfSlot(v, s) {
  const tile = matrix(v.width, v.width, { role: "presentation" }), bar = h("span", { class: "gate" });
  tile.draw(v.states[s], v.strong);
  const el = h("div", { role: "listitem", tabindex: s ? -1 : 0, "data-norm": norm(v.states[s]).toFixed(5) }, h("div", { class: "tile" }, tile.el), bar);
  const where = `segment ${s + 1}, ${v.lengths[s] === 1 ? "token" : "tokens"} ${v.starts[s] + 1}${v.lengths[s] === 1 ? "" : `–${v.starts[s] + v.lengths[s]}`}`;
  const text = (t, gate) => ({ closed: `${where}: state in the cache, norm ${norm(v.states[s]).toFixed(2)}, gate ${gate.toFixed(3)}`,
    running: `${where}: running, its state is the online memory` })[v.phase(s, t)] ?? `${where}: yet to come`;
  const draw = (t, gate, top) => {
    const phase = v.phase(s, t), closed = phase === "closed";
    setClass(el, "slot", phase, closed && v.trueSegment(t) === s && "true", closed && top && "top");
    el.dataset.gate = closed ? gate.toFixed(5) : "";
    bar.style.width = closed ? percent(gate) : "0";
  };
  return { el, draw, text };
}

function shelf(v, memory) {
  const list = h("div", { class: "slots", role: "list", "aria-label": "cached states" });
  const what = h("p", { class: "what" }), reading = h("p", { class: "soft reading" });
  let slots = [], now = null, focused = 0, gates = [];
  const read = (s) => setText(reading, s === null ? "Under each state its gate: full width is 1. Point at a state for its numbers." : slots[s].text(now, gates[s]));
  const slotAt = (event) => { const el = event.target.closest(".slot"); return el ? slots.findIndex((slot) => slot.el === el) : null; };
  const focus = (s) => { slots[focused].el.tabIndex = -1; focused = clamp(s, slots.length - 1); slots[focused].el.tabIndex = 0; slots[focused].el.focus(); };
  list.addEventListener("pointerover", (event) => read(slotAt(event)));
  list.addEventListener("focusin", (event) => read(slotAt(event)));
  for (const leave of ["pointerleave", "focusout"]) list.addEventListener(leave, () => read(null));
  onKeys(list, { ArrowLeft: () => focus(focused - 1), ArrowRight: () => focus(focused + 1), Home: () => focus(0), End: () => focus(slots.length - 1) });
  const recut = () => {
    slots = v.states.map((_, s) => shelfSlot(v, s));
    [focused, now] = [0, null];
    const fitting = (area, most) => `${clamp(Math.floor(Math.sqrt(area / slots.length)) - 5, most)}px`;
    list.style.cssText = `--large-tile: ${fitting(85000, 84)}; --small-tile: ${fitting(40000, 48)}`;
    list.replaceChildren(...slots.map((slot) => slot.el));
  };
  // From where the online memory stands to its place in the cache.
  const drop = (tile) => {
    const from = memory.getBoundingClientRect(), to = tile.getBoundingClientRect();
    const start = `translate(${from.x - to.x}px, ${from.y - to.y}px) scale(${from.width / to.width})`;
    tile.animate?.([{ transform: start, opacity: 0.4 }, { transform: "none", opacity: 1 }], { duration: 350, easing: "ease-in" });
  };
  const draw = (t) => {
    const s = v.segmentOf[t], closing = now === t - 1 && v.segmentOf[now] < s;
    gates = v.gates(t);
    now = t;
    const top = Math.max(...gates.slice(0, s));
    slots.forEach((slot, i) => slot.draw(t, gates[i], gates[i] === top));
    what.replaceChildren(h("b", {}, "cache"), ` · ${plural(s, "state")} of ${v.width} × ${v.width}`);
    read(null);
    if (closing && !still()) drop(slots[s - 1].el.querySelector("canvas"));
  };
  return { el: h("div", { class: "cache" }, what, list, reading), draw, recut };
}

function story(v) {
  const el = h("p", { class: "story" });
  const silent = { key: "A key is written, its value comes next.", value: "A value is written under the key before it.", filler: "A filler: nothing is asked, it is written all the same." };
  const ask = (t) => {
    const [key, value] = v.truePair(t).map((i) => word(v.tokens[i])), answer = v.answer(v.dial, t), s = v.trueSegment(t);
    const where = s === v.segmentOf[t] ? "in the online memory" : `in the state of segment ${s + 1}`;
    const verdict = answer === v.target[t] ? [h("b", {}, "✓ right: "), word(answer)] : [h("b", {}, "✗ wrong: "), word(answer)];
    return ["Query ", word(v.tokens[t]), ": ", h("b", { class: "truth" }, "◆ ", key, " → ", value), ` is ${where}. `,
      v.size === v.trained ? "The model’s answer is " : `Read with C = ${v.size}, the model’s answer is `, ...verdict, "."];
  };
  const draw = (t) => el.replaceChildren(...(v.roles[t] === "query" && v.source[t] != null ? ask(t) : [silent[v.roles[t]] ?? "Nothing is asked here."]));
  return { el, draw };
}

// Lines in units of the data; classes give them their looks, dots are lines of no length.
function plot(width, height, names, attrs) {
  const paths = Object.fromEntries(names.map((name) => [name, svg("path", { class: name })]));
  const el = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", ...attrs }, ...Object.values(paths));
  const line = (name, points) => paths[name].setAttribute("d", points.map(([x, y], i) => `${i ? "L" : "M"}${x} ${height - y}`).join(""));
  const dots = (name, points) => paths[name].setAttribute("d", points.map(([x, y]) => `M${x} ${height - y}h0`).join(""));
  return { el, line, dots };
}

function key(name, ...text) {
  const sample = svg("svg", { viewBox: "0 0 26 10", class: "sample", "aria-hidden": true }, svg("path", { class: name, d: name === "this" ? "M13 5h0" : "M1 5H25" }));
  return h("li", {}, sample, h("span", {}, ...text));
}

function dial(v, { resize }) {
  const n = v.sizes.length, curves = plot(n, 1, ["here", "right", "close", "this"], { role: "img" });
  const name = `mc-time-${Math.random().toString(36).slice(2)}`;
  const radio = (C) => {
    const input = h("input", { type: "radio", name, value: C, "aria-label": `segments of ${plural(C, "token")}` });
    input.addEventListener("change", () => resize(C));
    return h("label", { class: C === v.trained ? "trained" : "" }, input, h("span", {}, `${C}`));
  };
  const radios = v.sizes.map(radio), text = h("ul", {});
  const middle = (series) => series.map((y, i) => [i + 0.5, y]), asked = v.queries.length;
  curves.line("close", middle(v.closeness.map(mean)));
  curves.line("right", middle(v.right.map((r) => r / asked)));
  const group = h("div", { class: "radios", role: "radiogroup", "aria-label": "segment size C", style: `--n:${n}` }, ...radios);
  const el = h("div", { class: "dial" }, h("p", { class: "what" }, h("b", {}, "the dial"), " · tokens in a segment, C"),
    h("div", { class: "chart" }, h("div", { class: "axis", "aria-hidden": true }, h("span", {}, "1"), h("span", {}, "0")), curves.el, group,
      h("p", { class: "ends" }, h("span", {}, "one state: RNN"), h("span", {}, "a state per token"))), text);
  const draw = (t) => {
    const q = v.queries.indexOf(t), now = q < 0 ? null : v.closeness[v.dial][q];
    radios.forEach((label, i) => { label.firstChild.checked = i === v.dial; });
    curves.line("here", [[v.dial + 0.5, 0], [v.dial + 0.5, 1]]);
    curves.dots("this", q < 0 ? [] : middle(v.closeness.map((row) => Math.max(row[q], 0))));
    const average = mean(v.closeness[v.dial]);
    text.replaceChildren(key("this", "closeness of this read to the value: ", h("b", { class: "now" }, now === null ? "–" : now.toFixed(2))),
      key("close", `its mean over ${plural(asked, "question")}: `, h("b", {}, average.toFixed(2))),
      key("right", "answered right: ", h("b", {}, `${v.right[v.dial]} of ${asked}`)));
    curves.el.setAttribute("aria-label", `From C = ${v.sizes[0]} to 1 the mean closeness goes from ${mean(v.closeness[0]).toFixed(2)} to ${mean(v.closeness[n - 1]).toFixed(2)}, right answers from ${v.right[0]} to ${v.right[n - 1]} of ${asked}.`);
  };
  return { el, draw };
}

function numbers(v) {
  const kinds = ["rnn", "mc", "attention"], box = h("div", { class: "chart" }), text = h("ul", {});
  const el = h("div", { class: "numbers" }, h("p", { class: "what" }, h("b", {}, "numbers held"), ` · by one head, D = ${v.width}`), box, text);
  let curves;
  const series = (kind, last) => range(last + 1, (t) => [t, v.held(t)[kind]]);
  const recut = () => {
    const end = v.held(v.T - 1), most = Math.max(...Object.values(end));
    curves = plot(v.T - 1, most, ["here", ...kinds.map((kind) => `${kind} later`), ...kinds], { role: "img" });
    kinds.forEach((kind) => curves.line(`${kind} later`, series(kind, v.T - 1)));
    curves.most = most;
    box.replaceChildren(h("div", { class: "axis", "aria-hidden": true }, h("span", {}, whole(most)), h("span", {}, "0")), curves.el,
      h("p", { class: "ends" }, h("span", {}, "token 1"), h("span", {}, `${v.T}`)));
    curves.el.setAttribute("aria-label", `At token ${v.T}: one state ${whole(end.rnn)}, cached states ${whole(end.mc)}, attention’s keys and values ${whole(end.attention)}.`);
  };
  const draw = (t) => {
    const held = v.held(t), entry = (kind, name) => key(kind, `${name}: `, h("b", { "data-kind": kind }, whole(held[kind])));
    kinds.forEach((kind) => curves.line(kind, series(kind, t)));
    curves.line("here", [[t, 0], [t, curves.most]]);
    text.replaceChildren(entry("rnn", "one state"), entry("mc", `${plural(v.segmentOf[t], "cached state")} and the online one`), entry("attention", "attention’s keys and values"));
  };
  return { el, draw, recut };
}

// Play, pause and speed. `step()` goes on by one token, or returns false at the end.
function player({ begin, step, rest }) {
  const button = h("button", { type: "button", class: "play", "aria-keyshortcuts": "Space" });
  const speed = h("input", { type: "range", min: 0, max: SPEEDS.length - 1, value: 2 }), unit = h("span", { class: "unit" });
  let timer = null;
  const playing = () => timer !== null;
  const run = (on) => {
    clearInterval(timer);
    timer = on ? setInterval(tick, 1000 / SPEEDS[speed.value]) : null;
    setText(button, on ? "❚❚ pause" : "▶ play");
    setText(unit, `${SPEEDS[speed.value]} tokens/s`);
    speed.setAttribute("aria-valuetext", `${SPEEDS[speed.value]} tokens per second`);
  };
  const pause = () => run(false);
  const tick = () => { if (!button.isConnected) pause(); else if (!step()) { pause(); rest(); } };
  const toggle = () => { if (playing()) { pause(); rest(); } else { begin(); run(true); } };
  speed.addEventListener("input", () => run(playing()));
  button.addEventListener("click", toggle);
  pause();
  return { parts: [button, h("label", { class: "speed" }, "speed", speed, unit)], toggle, pause, playing };
}

function said(v, t) {
  const M = `Token ${t + 1}, ${v.roles[t]} ${visible(v.tokens[t])}. Segments of ${v.size}: ${plural(v.segmentOf[t], "state")} in the cache, ${whole(v.held(t).mc)} numbers held.`;
  if (v.roles[t] !== "query") return M;
  return `${M} Answer ${visible(v.answer(v.dial, t))}, ${v.answer(v.dial, t) === v.target[t] ? "right" : "wrong"}, closeness ${v.closeness[v.dial][v.queries.indexOf(t)].toFixed(2)}.`;
}

function explorer(model, root) {
  const data = readTime(model.get("data")), wanted = model.get("segment_size");
  const v = { ...data, ...cut(data, data.sizes.includes(wanted) ? wanted : data.trained) };
  let held = opening(v, model.get("token"));
  const show = (t) => {
    held = t;
    Object.assign(root.dataset, { token: held, size: v.size });
    panels.forEach((panel) => panel.draw(held, held));
    spoken.say(said(v, held), !control.playing());
  };
  const save = (name, value) => { model.set(name, value); model.save_changes(); };
  const hold = (t) => { control.pause(); show(t); save("token", t); };
  const recut = (size) => { Object.assign(v, cut(data, size)); panels.forEach((panel) => panel.recut?.()); show(held); };
  const control = player({
    begin: () => { if (held === v.T - 1) show(0); },
    step: () => { if (held < v.T - 1) show(held + 1); return held < v.T - 1; },
    rest: () => hold(held),
  });
  const { jump, walk } = walker(v, () => held, hold);
  onKeys(root, walk);
  const moves = root.onkeydown;
  root.onkeydown = (event) => {
    if (event.key !== " " || event.target.matches("button") || event.ctrlKey || event.metaKey || event.altKey) return moves(event);
    event.preventDefault();
    control.toggle();
  };
  const time = timeBar(v, { hold, jump }), flow = stream(v, { hold, walk }), told = story(v), memory = online(v), cache = shelf(v, memory.memory);
  const size = dial(v, { resize: (C) => { recut(C); save("segment_size", C); } }), cost = numbers(v), spoken = announcer();
  const panels = [time, flow, told, memory, cache, size, cost];
  time.el.querySelector(".controls").prepend(...control.parts);
  const how = "Play, or pull the time slider. Turn the dial: the weights stay, only the cut changes.";
  const keys = "Space plays and pauses. ← → move by one token, ↑ ↓ by one segment, n and p jump between queries.";
  root.replaceChildren(heading(v.title, how, keys), spoken.el, time.el, flow.el, told.el, h("div", { class: "scene" }, memory.el, cache.el),
    h("div", { class: "charts" }, size.el, cost.el));
  recut(v.size);
  return {
    token: (t) => { if (t !== held && Number.isInteger(t) && t >= 0 && t < v.T) { control.pause(); show(t); } },
    segment_size: (C) => { if (C !== v.size && v.sizes.includes(C)) recut(C); },
  };
}

export default family("timeline", ["token", "segment_size"], explorer);
