// A sequence of tokens in segments: what it is, a strip to point at, and a bar for time.

// The sequence with every question that panels ask of it. `source` is where the answer to a question stands; below zero, before the
// window that is shown. `column(s)`: the place of segment s beside the box of all that were closed before the window, if there is one.
function readSequence(data) {
  if (!data?.tokens?.length) throw new Error("there is no sequence to show yet.");
  const { tokens, roles, lengths, source } = data, T = tokens.length;
  const { before = 0, segments: past = 0, skipped = 0, of = T } = data.window ?? {};
  const segmentOf = lengths.flatMap((n, s) => Array(n).fill(s));
  if (segmentOf.length !== T) throw new Error(`segments hold ${segmentOf.length} tokens, the sequence has ${T}.`);
  const starts = lengths.map((_, s) => segmentOf.indexOf(s));
  const queries = roles.flatMap((role, t) => (role === "query" ? [t] : []));
  const trueSegment = (t) => (source[t] == null ? null : segmentOf[source[t]] ?? -1);
  const truePair = (t) => (source[t] == null ? [] : [source[t] - 1, source[t]].filter((i) => i >= 0));
  const number = (t) => before + t + 1, segment = (s) => past + s + 1, column = (s) => s + Math.min(past, 1);
  const position = (t) => t - starts[segmentOf[t]] + 1 + (segmentOf[t] ? 0 : skipped);
  const length = (s) => lengths[s] + (s ? 0 : skipped);
  const goesOn = (s) => s === lengths.length - 1 && before + T < of; // after the window
  const progress = (t) => (goesOn(segmentOf[t]) ? `${plural(position(t), "token")} so far` : `${position(t)} of ${plural(length(segmentOf[t]), "token")}`);
  const folded = () => false;
  const passage = (s) => tokens.slice(starts[s], starts[s] + lengths[s]).join("");
  const cached = (t) => segmentOf[t]; // memories, not tokens; an explorer that knows better replaces it
  const phase = (s, t) => (s < segmentOf[t] ? "closed" : s > segmentOf[t] ? "future" : "running");
  return { ...data, T, of, past, before, skipped, starts, segmentOf, queries, number, segment, column, trueSegment, truePair, position, length, goesOn, progress, passage, cached, folded, phase };
}

function timeText(v, t) {
  const s = v.segmentOf[t];
  const earlier = v.folded(t) ? ", and those of earlier segments" : "";
  return `segment ${v.segment(s)} is running (${v.progress(t)}); ${plural(v.cached(t), "state")} in the cache${earlier}`;
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
    slider.setAttribute("aria-valuetext", `token ${v.number(t)} of ${v.of}, ${timeText(v, t)}`);
    status.replaceChildren(h("b", {}, `token ${v.number(t)}`), ` of ${v.of} · ${timeText(v, t)}`);
    // Not `disabled`: that would drop the reader's focus.
    previous.setAttribute("aria-disabled", !v.queries.some((q) => q < t));
    next.setAttribute("aria-disabled", !v.queries.some((q) => q > t));
  };
  return { el: h("div", { class: "time" }, h("div", { class: "controls" }, h("label", {}, "time", slider), ...(v.queries.length ? [previous, next] : [])), status), draw };
}

function tokenSize(v) {
  const sizes = v.tokens.map((s) => [...visible(s)].length).sort((a, b) => a - b);
  const letters = clamp(sizes[Math.floor(0.9 * (v.T - 1))], 10);
  const columns = Math.min(letters <= 4 ? 8 : 4, Math.max(...v.lengths));
  return { letters, columns, width: Math.max(20, Math.ceil(letters * 5.6 + 2)) };
}

// A token of a text keeps the space before its word, so that a passage reads as it was written.
const spelled = (s) => (s.trim() ? signed(s) : visible(s));

// A passage in one line, its line breaks as slashes; of a long one the first and the last words.
function quoted(text, letters = 76) {
  const line = signed(text.replace(/\s*\n\s*/g, " / ")).trim(), all = [...line];
  return all.length <= letters ? line : `${all.slice(0, letters * 0.6).join("")} … ${all.slice(letters * -0.3).join("")}`;
}

function tokenBox(v, t, letters) {
  const text = v.text ? spelled(v.tokens[t]) : visible(v.tokens[t]);
  const el = h("span", { "data-index": t, role: "option", dir: "auto", "aria-label": `token ${v.number(t)}: ${visible(v.tokens[t])}${v.text ? "" : `, ${v.roles[t]}`}` }, text);
  const long = !v.text && [...text].length > letters && "long";
  const draw = (shown, held, pair) => {
    setClass(el, "token", v.roles[t], long, v.phase(v.segmentOf[t], shown) !== "closed" && t > shown && "later", v.wrong?.(t) && "wrong", pair.includes(t) && "pair", t === shown && "shown");
    if (el.ariaSelected === String(t === held)) return;
    el.ariaSelected = String(t === held);
    el.tabIndex = t === held ? 0 : -1;
  };
  return { el, draw };
}

// Of a text: how dark a passage is, from 0 to 1, and what its label says of it.
const shading = (el, remark) => (level, note) => {
  el.style.setProperty("--read", level.toFixed(3));
  el.classList.toggle("read", note !== "");
  setText(remark, note);
};

function segmentBox(v, s, { letters, columns }) {
  const tokens = range(v.lengths[s], (i) => tokenBox(v, v.starts[s] + i, letters));
  const remark = h("span", { class: "remark" });
  const tight = columns < 4;
  const label = h("div", { class: "label" }, h("span", {}, tight ? `${v.segment(s)}` : `segment ${v.segment(s)}`), remark);
  const el = h("div", { role: "group", "aria-label": `segment ${v.segment(s)}`, "data-segment": s },
    label, h("div", { class: "tokens", role: "presentation" }, ...tokens.map((token) => token.el)));
  const draw = (t, held, pair) => {
    const phase = v.phase(s, t), truth = v.trueSegment(t) === s;
    setClass(el, "segment", phase, truth && "true");
    const state = { closed: v.cached(t) ? "cached" : "", running: `running ${v.position(t)}${v.goesOn(s) ? "" : `/${v.length(s)}`}`, future: "" }[phase];
    setText(remark, tight ? (truth ? "◆" : "") : truth ? "◆ true pair" : state);
    tokens.forEach((token) => token.draw(t, held, pair));
  };
  return { el, draw, shade: shading(el, remark) };
}

// All segments that were closed before the window.
function earlierBox(v, { columns }) {
  const remark = h("span", { class: "remark" });
  const name = columns < 4 ? `1–${v.past}` : plural(v.past, "earlier segment");
  const el = h("div", { role: "presentation", title: `the first ${plural(v.before - v.skipped, "token")}, not shown` }, h("div", { class: "label" }, h("span", {}, name), remark));
  const draw = (t) => {
    const truth = v.trueSegment(t) === -1;
    setClass(el, "segment", "closed", "earlier", truth && "true");
    setText(remark, truth ? "◆" : "");
  };
  return { el, draw, shade: shading(el, remark) };
}

function legend(v) {
  if (v.text) return h("div", { class: "legend" }, "A box is a segment; the stronger its colour, the more the token under the pointer reads it. ↵ is a new line.");
  const entry = (role) => h("span", { class: "entry" }, h("span", { class: `token ${role}` }, "12"), role);
  const truth = v.source.some((i) => i != null) ? [h("span", { class: "entry truth" }, "◆ true pair")] : [];
  const wrong = v.wrong && v.queries.length ? [h("span", { class: "entry" }, h("span", { class: "token query wrong" }, "12"), "answered wrong")] : [];
  return h("div", { class: "legend" }, ...[...new Set(v.roles)].map(entry), ...wrong, ...truth);
}

function strip(v, { preview, hold, walk }) {
  const size = tokenSize(v);
  const boxes = [...(v.past ? [earlierBox(v, size)] : []), ...v.lengths.map((_, s) => segmentBox(v, s, size))];
  const list = h("div", { class: v.text ? "strip words" : "strip", role: "listbox", "aria-label": "tokens", "aria-orientation": "horizontal",
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
  const light = (first, last = first) => boxes.forEach((box, i) => box.el.classList.toggle("lit", first !== null && i >= first && i <= last));
  const shade = (levels) => levels.forEach(([level, note], i) => boxes[i].shade(level, note));
  return { el: h("div", { class: "sequence" }, legend(v), list), draw, light, shade };
}

// Moves of the held token. `hold(t)` is called with a token that exists.
function walker(v, held, hold) {
  const step = (tokens, segments) => {
    const s = clamp(v.segmentOf[held()] + segments, v.lengths.length - 1);
    const place = held() - v.starts[v.segmentOf[held()]];
    hold(clamp(v.starts[s] + Math.min(place, v.lengths[s] - 1) + tokens, v.T - 1));
  };
  const jump = (dir) => hold((dir > 0 ? v.queries.find((q) => q > held()) : v.queries.filter((q) => q < held()).pop()) ?? held());
  const walk = {
    ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
    Home: () => hold(0), End: () => hold(v.T - 1), n: () => jump(1), p: () => jump(-1),
  };
  return { jump, walk };
}
