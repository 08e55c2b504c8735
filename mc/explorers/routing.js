// The routing explorer: which cached segment does each head read at this token?
// A panel is { el, draw(shown, held) }; a new panel only has to join the list in `explorer`.

// The sequence with every question that the panels ask of its gates.
function readTrace(data) {
  const v = readSequence(data), { layers, heads, slots, source, target, answers } = v;
  const { T, segmentOf, trueSegment } = v, online = slots - 1;
  const values = unpack(v.gates);
  if (values.length !== layers * T * heads * slots)
    throw new Error(`gates hold ${values.length} numbers, expected ${layers} × ${T} × ${heads} × ${slots}.`);
  const gate = (layer, t, head, slot) => values[((layer * T + t) * heads + head) * slots + slot];
  const trueSlot = (t) => (trueSegment(t) === segmentOf[t] ? online : trueSegment(t));
  const trueMass = (t) => range(layers * heads, (i) => gate(i % layers, t, Math.floor(i / layers), trueSlot(t)))
    .reduce((a, b) => a + b) / (layers * heads);
  const isRight = (t) => target[t] != null && answers[t]?.[0]?.[0] === target[t];
  return { ...v, online, gate, trueSlot, trueMass, isRight };
}

const slotName = (v, slot) => (slot === v.online ? "online memory" : `segment ${slot + 1}`);

// With no token held we open on a right answer read from a cached segment: the story in one frame.
function openingToken(v, wanted) {
  if (Number.isInteger(wanted) && wanted >= 0 && wanted < v.T) return wanted;
  const told = v.queries.filter((t) => v.isRight(t) && v.trueSegment(t) !== null && v.trueSlot(t) !== v.online);
  if (!told.length) return v.queries[0] ?? v.T - 1;
  return told.reduce((a, b) => (v.trueMass(b) > v.trueMass(a) ? b : a));
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

function said(v, t) {
  const where = `Token ${t + 1}, ${v.roles[t]} ${visible(v.tokens[t])}, segment ${v.segmentOf[t] + 1}.`;
  if (v.roles[t] !== "query") return `${where} Nothing is asked.`;
  const answer = v.answers[t]?.[0] ? ` Answer ${visible(v.answers[t][0][0])}${v.target[t] == null ? "" : v.isRight(t) ? ", right" : ", wrong"}.` : "";
  const mass = v.trueSegment(t) === null ? "" : ` ${percent(v.trueMass(t))} of the gates on the true segment.`;
  return where + answer + mass;
}

function explorer(model, root) {
  const v = readTrace(model.get("data"));
  let held = openingToken(v, model.get("token")), previewed = null;
  const draw = () => {
    const shown = previewed ?? held;
    root.dataset.token = shown;
    setClass(root, "mc-explorer", "mc-routing", v.slots > 20 && "many", shown !== held && "previewing");
    panels.forEach((panel) => panel.draw(shown, held));
    spoken.say(said(v, held));
  };
  const show = (t) => { held = t; previewed = null; draw(); };
  const hold = (t) => { show(t); model.set("token", held); model.save_changes(); };
  const preview = (t) => { if (t !== previewed) { previewed = t; draw(); } };
  const { jump, walk } = walker(v, () => held, hold);
  onKeys(root, walk); // also when a button or the slider has the focus
  const time = timeBar(v, { hold, jump }), sequence = strip(v, { preview, hold, walk });
  const told = story(v), heat = gates(v, { light: sequence.light }), verdict = answer(v), spoken = announcer();
  const panels = [time, sequence, told, heat, verdict];
  const how = "Point at a token to look, click to hold it. ← → move by one token, ↑ ↓ by one segment, n and p jump between queries.";
  root.replaceChildren(heading(v.title, how), time.el, sequence.el,
    h("div", { class: "readout" }, told.el, heat.el, verdict.el), spoken.el);
  draw();
  return { token: (t) => { if (t !== held && Number.isInteger(t) && t >= 0 && t < v.T) show(t); } };
}

export default family("routing", ["token"], explorer);
