// The routing explorer: which cached segment does each head of each model read at this token?
// A panel is { el, draw(shown, held) }; a new panel only has to join the list in `explorer`. `view` is what is looked at:
// { variant, layer }, the model whose gates are shown in full and the layer (null: all) where a mean over heads is shown.

function readTrace(data) {
  const v = readSequence(data), variants = v.variants.map((variant) => readVariant(v, variant));
  return { ...v, variants, asks: v.queries.length > 0 };
}

// With none chosen we open on the first model with gates.
function openingVariant(v, wanted) {
  if (wanted in v.variants) return wanted;
  return Math.max(v.variants.findIndex((w) => w.gated), 0);
}

// With no token held we open on a right answer read from a cached segment, where models without gates are wrong if there is one:
// the story in one frame.
function openingToken(v, w, wanted) {
  if (Number.isInteger(wanted) && wanted >= 0 && wanted < v.T) return wanted;
  if (v.text) return tellingToken(v, w);
  const told = v.queries.filter((t) => w.isRight(t) && w.trueSlot(t) !== null && w.trueSlot(t) !== w.online);
  if (!told.length) return v.queries[0] ?? v.T - 1;
  const near = told.filter((t) => !w.folded(w.trueSlot(t))), seen = near.length ? near : told;
  const telling = seen.filter((t) => v.variants.every((other) => other.gated || !other.isRight(t)));
  return (telling.length ? telling : seen).reduce((a, b) => (w.trueMass(b) > w.trueMass(a) ? b : a));
}

function story(v) {
  const el = h("p", { class: "story" });
  const silent = { key: "a key is being read, its value comes next.", value: "a value is being stored under the key before it." };
  const ask = (t) => {
    const lead = ["Query ", word(v.tokens[t]), " asks which value followed this key. "];
    if (v.trueSegment(t) === null) return [...lead, "No earlier pair answers it."];
    if (v.trueSegment(t) < 0) return [...lead, h("b", { class: "truth" }, "◆"), ` The pair is in one of the ${plural(v.past, "earlier segment")}, which the page does not show.`];
    const back = v.segmentOf[t] - v.trueSegment(t);
    const pair = v.truePair(t).flatMap((i) => [" → ", word(v.tokens[i])]).slice(1);
    const where = back ? `segment ${v.segment(v.trueSegment(t))}, ${plural(back, "segment")} back.` : "the running segment, in the online memory.";
    return [...lead, h("b", { class: "truth" }, "◆ ", ...pair), ` is in ${where}`];
  };
  const tell = (t) => (v.asks ? [`Nothing is asked here: ${silent[v.roles[t].split(" ").pop()] ?? "a filler, to be ignored."}`] : ["Token ", word(v.tokens[t]), " is read."]);
  const draw = (t) => el.replaceChildren(...(v.roles[t] === "query" ? ask(t) : tell(t)));
  return { el, draw };
}

function answerRow([text, p], right, note) {
  const track = h("span", { class: "track" }, h("span", { class: "length", style: `width:${percent(p)}` }));
  return h("li", { class: right ? "right" : "" }, word(text), track, h("span", { class: "mass" }, p.toFixed(2)),
    h("span", { class: "remark" }, right ? note : ""));
}

function answer(v, view) {
  const name = h("p", { class: "how" }), verdict = h("p", {}), list = h("ol");
  const judge = (w, t) => {
    if (w.diverged) return ["No answer: this model has diverged."];
    if (!v.asks) return ["Next: ", word(w.answers[t]?.[0]?.[0] ?? "")];
    if (v.roles[t] !== "query") return ["Nothing is asked at this token."];
    if (v.target[t] == null) return ["No right answer is recorded."];
    if (w.isRight(t)) return ["✓ Right: ", word(v.target[t])];
    return ["✗ Wrong: ", word(w.answers[t]?.[0]?.[0] ?? ""), ", should be ", word(v.target[t])];
  };
  const draw = (t) => {
    const w = v.variants[view.variant], top = w.answers[t] ?? [], came = v.text ? v.tokens[t + 1] : null, target = v.target[t] ?? came;
    const missed = target != null && !w.diverged && !top.some(([text]) => text === target), p = (came == null ? w.target_prob : w.next_prob)[t] ?? 0;
    setText(name, v.asks ? "the model’s answer" : "what the model expects next");
    setClass(verdict, "verdict", top.length && "asked");
    verdict.replaceChildren(...judge(w, t));
    list.replaceChildren(...top.map((row) => answerRow(row, row[0] === target, came == null ? "✓ right answer" : "✓ what comes")),
      ...(missed ? [answerRow([target, p], true, came == null ? "right answer, missed" : "what comes")] : []));
  };
  return { el: h("div", { class: "answer" }, name, verdict, list), draw };
}

// The gates of the model that is looked at; each grid is made when it is first wanted.
function detail(v, view, actions) {
  const name = h("p", { class: "shown-variant" }), place = h("div", {}), note = h("p", { class: "note" }), grids = new Map();
  const draw = (t) => {
    const w = v.variants[view.variant];
    if (w.gated && !grids.has(w)) grids.set(w, gates(v, w, actions));
    const grid = grids.get(w);
    if (place.firstChild !== (grid?.el ?? null)) place.replaceChildren(...(grid ? [grid.el] : []));
    grid?.draw(t);
    setText(name, v.variants.length > 1 ? w.name : "");
    setText(note, remark(w));
  };
  return { el: h("div", { class: "gates" }, name, place, note), draw };
}

function said(v, view, t) {
  const w = v.variants[view.variant], several = v.variants.length > 1;
  if (v.text) return heard(v, w, view.layer, t);
  const where = `Token ${v.number(t)}, ${v.roles[t]} ${visible(v.tokens[t])}, segment ${v.segment(v.segmentOf[t])}.`;
  if (v.asks && v.roles[t] !== "query") return `${where} Nothing is asked.`;
  const mass = w.gated && w.trueSlot(t) !== null ? ` ${w.share(t, w.mean(view.layer, t, w.trueSlot(t)))} of the gates, ${layerName(w, view.layer)}, on the true segment.` : "";
  const others = v.variants.filter((other) => other !== w).map((other) => `${other.name}: ${answered(v, other, t)}`);
  return `${where} ${several ? w.name : "Answer"}: ${answered(v, w, t)}.${mass}${several ? ` Beside it, ${others.join("; ")}.` : ""}`;
}

// Draws into `root` what `model` holds in its traits data, token and variant; with `inside`, as a part of another explorer.
function routing(model, root, inside = false) {
  const v = readTrace(model.get("data"));
  const view = { variant: openingVariant(v, model.get("variant")), layer: 0 };
  v.cached = (t) => v.variants[view.variant].cached(t);
  v.folded = (t) => v.variants[view.variant].addsUp(t);
  v.wrong = (t) => v.target[t] != null && !v.variants[view.variant].diverged && !v.variants[view.variant].isRight(t);
  let held = openingToken(v, v.variants[view.variant], model.get("token")), previewed = null;
  const many = Math.max(...v.variants.map((w) => w.slots)) > 20, grouped = v.variants.some((w) => w.grouped);
  const draw = () => {
    const shown = previewed ?? held;
    root.dataset.token = shown;
    setClass(root, "mc-explorer", "mc-routing", (many || grouped) && "many", grouped && "grouped", v.text && "of-text", shown !== held && "previewing");
    panels.forEach((panel) => panel.draw(shown, held));
    spoken.say(said(v, view, held));
  };
  const show = (t) => { held = t; previewed = null; draw(); };
  const hold = (t) => { show(t); model.set("token", held); model.save_changes(); };
  const preview = (t) => { if (t !== previewed) { previewed = t; draw(); } };
  const look = (change) => {
    Object.assign(view, change);
    draw();
    model.set("variant", view.variant);
    model.save_changes();
  };
  const { jump, walk } = walker(v, () => held, hold);
  const digits = Object.fromEntries(v.variants.slice(0, 9).map((_, i) => [i + 1, () => look({ variant: i })]));
  onKeys(root, { ...walk, ...digits }); // also when a button or the slider has the focus
  const time = timeBar(v, { hold, jump }), sequence = strip(v, { preview, hold, walk });
  const told = v.text ? passages(v, view, sequence) : story(v), heat = detail(v, view, sequence), verdict = answer(v, view), spoken = announcer();
  const several = v.variants.length > 1, beside = several ? [comparison(v, view, look)] : [];
  const means = layerChoice(v, view, look), map = maps(v, view, { preview, hold, light: sequence.light });
  const panels = [time, sequence, means, ...beside, told, heat, verdict, map];
  const keys = ["← → move by one token, ↑ ↓ by one segment", v.asks && "n and p jump between queries",
    several && `1 to ${Math.min(v.variants.length, 9)} choose the model whose gates are shown in full`].filter(Boolean).join(", ");
  const readout = h("div", { class: "readout" }, told.el, heat.el, verdict.el);
  const head = inside ? [] : [heading(v.title, "Point at a token to look, click to hold it.", `${keys}.`, v.notes)];
  const order = v.text ? [means.el, sequence.el, ...beside.map((panel) => panel.el), readout] : [sequence.el, ...(several ? [means.el, beside[0].el, readout] : [readout, means.el])];
  const folded = (title, ...panels) => h("details", {}, h("summary", {}, title), ...panels);
  const all = !inside ? map.el : v.text ? folded("gates of every head, and at every token", heat.el, map.el) : folded("gates at every token", map.el);
  root.replaceChildren(...head, spoken.el, time.el, ...order, all);
  draw();
  return {
    token: (t) => { if (t !== held && Number.isInteger(t) && t >= 0 && t < v.T) show(t); },
    variant: (i) => { if (i !== view.variant && i in v.variants) { view.variant = i; draw(); } },
  };
}
