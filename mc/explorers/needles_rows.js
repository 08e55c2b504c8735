// Models side by side: which needles each finds, where it looked for the chosen one, and whether it looked in the right place.

// A stretch of the text in one row. Bars stand on the even share: above it what is read more, below what is read less.
function track(height, ...marks) {
  const el = svg("svg", { class: "track", preserveAspectRatio: "none", "aria-hidden": true }, ...marks);
  el.style.height = `${height}px`;
  const cover = (from, to) => el.setAttribute("viewBox", `${from} 0 ${to - from} ${height}`);
  const at = (event) => {
    const box = el.getBoundingClientRect(), [from, , width] = el.getAttribute("viewBox").split(" ").map(Number);
    return Math.floor(from + clamp((event.clientX - box.left) / box.width, 0.999999) * width);
  };
  return { el, cover, at };
}

const STRIP = 34, BLANK = 20; // heights
const box = (first, end, top, bottom) => `M${first} ${top}H${end}V${bottom}H${first}Z`;

function bars(pass, q, layer) {
  const middle = STRIP / 2, drawn = { above: "", below: "" };
  if (pass?.gated) pass.spans.forEach(([first, end], slot) => {
    const share = pass.mean(q, layer, slot);
    if (share > 0) drawn[share < 1 ? "below" : "above"] += box(first, end, middle, middle - level(share) * (middle - 1));
  });
  return drawn;
}

const REMARKS = { none: "one memory, nothing to choose", residual: "all memories are read with weight one" };
const dots = (hits) => hits.map((layer) => layer.map((hit) => (hit ? "●" : "○")).join("")).join(" ");

function needleRow(v, i, view, actions) {
  const variant = v.variants[i];
  const above = svg("path", { class: "above" }), below = svg("path", { class: "below" }), truth = svg("path", { class: "home" }), frame = svg("path", { class: "window" });
  const strip = track(STRIP, svg("path", { class: "even", d: `M0 ${STRIP / 2}H9e9` }), truth, below, above, frame);
  const remark = h("span", { class: "nothing" }), place = h("div", { class: "place" }, strip.el, remark);
  const marks = h("span", { class: "marks", "aria-hidden": true }), said = h("span", { class: "said" }), mass = h("span", { class: "mass" }), hits = h("span", { class: "hits" });
  const el = h("div", { class: "variant", role: "radio", "data-variant": i }, h("span", { class: "name" }, i < 9 ? h("kbd", {}, `${i + 1}`) : "", " ", h("bdi", {}, variant.name)), marks, place, said, mass, hits);
  let shown = "";
  const mark = (text, pass, q, n) => {
    const right = pass?.isRight(q), el = h("span", { class: `found ${right ? "right" : "wrong"}${n === view.question ? " picked" : ""}`, "data-question": n }, pass ? (right ? "✓" : "✗") : "–");
    return el;
  };
  const draw = () => {
    const text = v.texts[view.text], pass = v.pass(i, view.text, view.router), q = text.asked[view.question];
    el.setAttribute("aria-checked", view.variant === i);
    el.tabIndex = view.variant === i ? 0 : -1;
    frame.setAttribute("d", box(text.start(view.from), text.end(view.to - 1), 0.5, STRIP - 0.5));
    const what = [view.text, view.question, view.router, view.layer].join();
    if (what === shown) return;
    shown = what;
    strip.cover(0, text.T);
    const drawn = bars(pass, q, view.layer);
    above.setAttribute("d", drawn.above);
    below.setAttribute("d", drawn.below);
    truth.setAttribute("d", box(text.start(q.segment), text.end(q.segment), 0, STRIP));
    marks.replaceChildren(...text.asked.map((each, n) => mark(text, pass, each, n)));
    el.classList.toggle("blank", !pass?.gated);
    strip.el.style.height = `${pass?.gated ? STRIP : BLANK}px`;
    setText(remark, pass?.gated ? "" : !pass ? "has diverged" : REMARKS[variant.kind] ?? "");
    said.replaceChildren(...(pass ? [pass.isRight(q) ? "✓ " : "✗ ", word(pass.answer(q)[0])] : ["–"]));
    setClass(said, "said", pass?.isRight(q) && "right");
    const found = pass?.hits(q) ?? [], share = pass?.gated ? pass.mean(q, view.layer, pass.slotAt(q.source)) : null;
    setText(mass, share === null ? "" : share ? `${times(share)}×` : "0×");
    setText(hits, dots(found));
    const flat = found.flat();
    el.setAttribute("aria-label", [variant.name, pass ? `${pass.answer(q)[0]}, ${pass.isRight(q) ? "right" : "wrong"}` : "has diverged",
      flat.length ? `hit in ${flat.filter(Boolean).length} of ${flat.length} heads` : "", share === null ? "" : `gate on the needle ${timesEven(share)}`,
      `${text.asked.filter((each) => pass?.isRight(each)).length} of ${text.asked.length} needles found`].filter(Boolean).join(", "));
  };
  marks.addEventListener("click", (event) => { const n = event.target.closest("[data-question]"); if (n) actions.look({ question: +n.dataset.question }); });
  el.addEventListener("click", (event) => { if (!event.target.closest(".place")) actions.look({ variant: i }); });
  brush(strip, i, v, view, actions);
  return { el, draw };
}

// Point at a strip to read it, click for the segment, drag for the stretch that is zoomed into.
function brush(strip, i, v, view, { point, go, zoom, look }) {
  let from = null;
  const segment = (event) => Math.floor(strip.at(event) / v.size);
  strip.el.addEventListener("pointerdown", (event) => { from = segment(event); strip.el.setPointerCapture(event.pointerId); });
  strip.el.addEventListener("pointermove", (event) => {
    if (from !== null && Math.abs(segment(event) - from) > 1) zoom(Math.min(from, segment(event)), Math.max(from, segment(event)) + 1);
    else if (event.pointerType !== "touch") point(i, null, strip.at(event));
  });
  strip.el.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const clicked = Math.abs(segment(event) - from) <= 1;
    from = null;
    look({ variant: i });
    if (clicked) go(segment(event));
  });
  strip.el.addEventListener("pointercancel", () => { from = null; });
  strip.el.addEventListener("pointerleave", () => point(null));
}

const depths = (v) => [...new Set(v.variants.filter((w) => w.blocks.length).map((w) => w.top_k))].join(", ");

// Above the rows: the needles as buttons, and where they lie in the text.
function needleHead(v, view, actions) {
  const buttons = h("span", { class: "marks", role: "group", "aria-label": "needle" }), lines = svg("path", { class: "needle" }), picked = svg("path", { class: "home" });
  const axis = track(14, lines, picked), length = h("span", {});
  const el = h("div", { class: "variant head" }, h("span", { class: "name" }, "needle"), buttons,
    h("div", { class: "place" }, axis.el, h("span", { class: "ends" }, h("span", {}, "token 1"), length)), h("span", { class: "said" }, "answer"),
    h("span", { class: "mass", title: "gate on the needle’s memory over even share" }, "× even"),
    h("span", { class: "hits", title: "for each head of each layer: is the needle’s memory among the k that it scores highest?" }, `hit@${depths(v)}`));
  let made = null;
  const draw = () => {
    const text = v.texts[view.text];
    if (made !== view.text) {
      buttons.replaceChildren(...text.asked.map((q, n) => {
        const button = h("button", { type: "button", "data-question": n, "aria-label": `needle ${n + 1}, key ${q.key}, segment ${q.segment + 1}` }, `${n + 1}`);
        button.addEventListener("click", () => actions.look({ question: n }));
        return button;
      }));
      axis.cover(0, text.T);
      lines.setAttribute("d", text.asked.map((q) => box(text.start(q.segment), text.end(q.segment), 5, 14)).join(""));
      setText(length, whole(text.T));
      made = view.text;
    }
    const q = text.asked[view.question];
    picked.setAttribute("d", box(text.start(q.segment), text.end(q.segment), 0, 14));
    [...buttons.children].forEach((button, n) => button.setAttribute("aria-pressed", n === view.question));
  };
  brush(axis, view.variant, v, view, { ...actions, point() {}, look() {} });
  return { el, draw };
}

function needleRows(v, view, actions) {
  const head = needleHead(v, view, actions), rows = v.variants.map((_, i) => needleRow(v, i, view, actions));
  const group = h("div", { role: "radiogroup", "aria-label": "model" }, ...rows.map((row) => row.el));
  const el = h("div", { class: "variants" }, head.el, group);
  const draw = () => { head.draw(); rows.forEach((row) => row.draw()); };
  const focus = () => rows[view.variant].el.focus();
  return { el, draw, focus };
}
