// From the whole text to a stretch of segments, and to the tokens of one: the gates of every head of the model that is looked at.

const ROW = 15;

function headTrack(v, view, layer, head, actions) {
  const cells = svg("g", {}), home = svg("path", { class: "home" }), cursor = svg("path", { class: "cursor" });
  const row = track(ROW, cells, cursor, home), share = h("span", { class: "mass" }), name = h("span", { class: "name" });
  const el = h("div", { class: "head-row" }, name, row.el, share);
  const draw = () => {
    const text = v.texts[view.text], pass = v.pass(view.variant, view.text, view.router), q = text.asked[view.question];
    const from = text.start(view.from), to = text.end(view.to - 1);
    row.cover(from, to);
    cells.replaceChildren(...pass.spans.flatMap(([first, end], slot) => {
      const here = pass.share(q, layer, head, slot);
      if (end <= from || first >= to || !here) return [];
      const part = Math.round(100 * Math.abs(level(here)));
      return [svg("path", { d: box(Math.max(first, from), Math.min(end, to), 0, ROW), "data-slot": slot, "data-value": here.toFixed(4),
        style: `fill:color-mix(in oklab, var(--${here < 1 ? "negative" : "positive"}) ${part}%, var(--even))` })];
    }));
    const hit = pass.hits(q)[layer][head], onHome = pass.share(q, layer, head, pass.slotAt(q.source));
    home.setAttribute("d", box(text.start(q.segment), text.end(q.segment), 0, ROW));
    cursor.setAttribute("d", box(text.start(view.segment), text.end(view.segment), 0, ROW));
    name.replaceChildren(h("span", { class: "long" }, "layer "), `${v.variants[view.variant].blocks[layer]}, `, h("span", { class: "long" }, "head "), `${head + 1}`);
    setText(share, `${hit ? "●" : "○"} ${onHome ? `${times(onHome)}×` : "0×"}`);
  };
  row.el.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") actions.point(view.variant, [layer, head], row.at(event)); });
  row.el.addEventListener("pointerleave", () => actions.point(null));
  row.el.addEventListener("click", (event) => actions.go(Math.floor(row.at(event) / v.size)));
  return { el, draw };
}

function zoomMap(v, view, actions) {
  const title = h("p", { class: "how" }), note = h("p", { class: "note" }), place = h("div", { class: "heads" });
  const needles = svg("path", { class: "needle" }), home = svg("path", { class: "home" }), top = track(8, needles, home);
  const axis = h("div", { class: "head-row" }, h("span", { class: "name" }, h("span", { class: "short" }, "l, h")), top.el, h("span", { class: "mass" }, "◆ × even"));
  const labels = h("div", { class: "head-row" }, h("span", { class: "name" }), h("span", { class: "ends" }), h("span", { class: "mass" }));
  const grids = new Map();
  const draw = () => {
    const w = v.variants[view.variant], text = v.texts[view.text], pass = v.pass(view.variant, view.text, view.router);
    setText(title, `${w.name}, every head, segments ${whole(view.from + 1)} to ${whole(view.to)} of ${whole(text.segments)}`);
    setText(note, !pass ? w.diverged : pass.gated ? "" : w.kind === "residual" ? "Residual: every cached memory is read with weight one." : "No caching: one memory holds the whole text, so there is nothing to choose. Choose a model that has a choice.");
    place.hidden = !pass?.gated;
    if (place.hidden) return;
    if (!grids.has(w)) grids.set(w, w.blocks.flatMap((_, layer) => range(w.heads, (head) => headTrack(v, view, layer, head, actions))));
    const rows = grids.get(w), q = text.asked[view.question];
    place.replaceChildren(axis, ...rows.map((row) => row.el), labels);
    top.cover(text.start(view.from), text.end(view.to - 1));
    needles.setAttribute("d", text.asked.map((each) => box(text.start(each.segment), text.end(each.segment), 2, 8)).join(""));
    home.setAttribute("d", box(text.start(q.segment), text.end(q.segment), 0, 8));
    labels.children[1].replaceChildren(h("span", {}, `segment ${whole(view.from + 1)}`), h("span", {}, whole(view.to)));
    rows.forEach((row) => row.draw());
  };
  return { el: h("div", { class: "map" }, title, note, place), draw };
}

// The slider for the segment, and buttons for how many are shown.
function zoomBar(v, view, { go, scale, home }) {
  const slider = h("input", { class: "mc-segment", type: "range", min: 0, step: 1 });
  const button = (text, label, act) => { const el = h("button", { type: "button", "aria-label": label }, text); el.addEventListener("click", act); return el; };
  const out = button("−", "zoom out", () => scale(2)), into = button("+", "zoom in", () => scale(0.5));
  slider.addEventListener("input", () => go(slider.valueAsNumber));
  const draw = () => {
    const text = v.texts[view.text];
    slider.max = text.segments - 1;
    slider.value = view.segment;
    slider.setAttribute("aria-valuetext", `segment ${view.segment + 1} of ${text.segments}`);
    into.setAttribute("aria-disabled", view.to - view.from <= 8);
    out.setAttribute("aria-disabled", view.to - view.from >= Math.min(128, text.segments));
  };
  return { el: h("div", { class: "controls" }, h("label", {}, "segment", slider), out, into, button("◆ to the needle", "to the needle", home)), draw };
}

function segmentTokens(v, view) {
  const title = h("p", { class: "how" }), list = h("div", { class: "tokens", role: "list", "aria-label": "tokens of the segment" });
  const token = (text, t, pair) => h("span", { class: `token ${text.role(t)}${pair.includes(t) ? " pair" : ""}`, role: "listitem", "aria-label": `token ${t + 1}: ${visible(text.word(t))}, ${text.role(t)}` }, visible(text.word(t)));
  const draw = () => {
    const text = v.texts[view.text], s = view.segment, pass = v.pass(view.variant, view.text, view.router), q = text.asked[view.question];
    const first = text.start(s), end = text.end(s);
    list.replaceChildren(...range(end - first, (i) => token(text, first + i, [q.source - 1, q.source])));
    const slot = pass?.gated ? pass.slotAt(first) : null;
    const heads = slot === null ? 0 : v.variants[view.variant].blocks.flatMap((_, l) => range(v.variants[view.variant].heads, (head) => pass.share(q, l, head, slot))).filter((x) => x > 0).length;
    const reads = slot === null ? "" : ` · read by ${heads} of ${v.variants[view.variant].blocks.length * v.variants[view.variant].heads} heads, in the mean ${timesEven(pass.mean(q, view.layer, slot))}`;
    setText(title, `segment ${whole(s + 1)}, tokens ${whole(first + 1)} to ${whole(end)}${reads}`);
  };
  return { el: h("div", { class: "inside" }, title, list), draw };
}
