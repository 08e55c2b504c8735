// The explorer of needles: models side by side at a question about a long text, from the whole text to a segment.
// `view` is what is looked at: text, question, variant, router, layer (null: all), segment, and the segments from, to that are zoomed into.

// We open on the model with gates that finds most, of equal ones the last.
function openingVariant(v, text) {
  const found = v.variants.map((_, i) => { const pass = v.pass(i, text, "learned"); return pass?.gated ? v.texts[text].asked.filter(pass.isRight).length : -1; });
  return found.lastIndexOf(Math.max(...found));
}

// We open where the last text is asked for a needle that some models find and some do not, by a head that looked at it.
function openingQuestion(v, view) {
  const asked = v.texts[view.text].asked, passes = v.variants.map((_, i) => v.pass(i, view.text, "learned")).filter(Boolean);
  const own = v.pass(view.variant, view.text, "learned");
  const telling = (q) => (own?.isRight(q) ? 100 : 0) + (own?.hits(q).flat().some(Boolean) ? 50 : 0) + passes.filter((pass) => !pass.isRight(q)).length;
  return asked.reduce((best, q, n) => (telling(q) > telling(asked[best]) ? n : best), 0);
}

function needleStory(v, view) {
  const el = h("p", { class: "story", "aria-hidden": true });
  const draw = () => {
    const text = v.texts[view.text], q = text.asked[view.question], last = Math.floor(q.at / v.size);
    const back = last - q.segment ? `${plural(last - q.segment, "segment")} back.` : "the running one.";
    el.replaceChildren("Which value followed key ", word(q.key), "? ", h("b", { class: "truth" }, "◆ ", word(q.key), " → ", word(q.target)),
      ` stands in segment ${whole(q.segment + 1)} of ${whole(text.segments)}, ${back}`);
  };
  return { el, draw };
}

function scaleLegend() {
  return h("p", { class: "scale" }, "gate over even share: ", h("span", {}, `1/${2 ** OCTAVES}`), h("span", { class: "ramp", role: "img", "aria-label": "from blue over grey to orange" }), h("span", {}, `${2 ** OCTAVES}, grey is 1; blank was not read.`),
    h("span", {}, " ", h("b", { class: "truth" }, "▌"), " the needle asked for."), h("span", {}, " ● a head that has it among its k best, ○ one that has not."));
}

function explorer(model, root) {
  const v = readNeedles(model.get("data")), given = model.get("setting") ?? {};
  const view = { text: v.texts.length - 1, router: "learned", layer: null, question: 0, segment: 0, from: 0, to: 1 };
  view.variant = given.variant ?? openingVariant(v, given.text ?? view.text);
  Object.assign(view, given);
  if (given.question == null) view.question = openingQuestion(v, view);
  const text = () => v.texts[view.text], asked = () => text().asked[view.question];
  const spoken = announcer();

  const draw = () => { root.dataset.question = view.question; root.dataset.segment = view.segment; panels.forEach((panel) => panel.draw()); };
  const told = () => {
    const q = asked(), w = v.variants[view.variant], pass = v.pass(view.variant, view.text, view.router);
    const verdict = (i) => { const p = v.pass(i, view.text, view.router); return p ? `${visible(p.answer(q)[0])}, ${p.isRight(q) ? "right" : "wrong"}` : "has diverged"; };
    const hits = pass?.hits(q).flat() ?? [], looked = hits.length ? `, hit at ${w.top_k} in ${hits.filter(Boolean).length} of ${hits.length} heads` : "";
    const others = v.variants.filter((_, i) => i !== view.variant), right = others.filter((other) => v.pass(v.variants.indexOf(other), view.text, view.router)?.isRight(q));
    return `Needle ${view.question + 1}, key ${visible(q.key)}, in segment ${q.segment + 1} of ${text().segments}; ${view.router} router. ${w.name}: ${verdict(view.variant)}${looked}.${others.length ? ` Of the ${others.length} others ${right.length ? `right: ${right.map((other) => other.name).join(", ")}` : "none is right"}.` : ""}`;
  };
  const frame = (from, count) => {
    const n = Math.min(count, text().segments);
    view.from = clamp(from, text().segments - n);
    view.to = view.from + n;
  };
  const around = (count = view.to - view.from) => frame(view.segment - Math.floor(count / 2), count);
  const go = (segment) => {
    view.segment = clamp(segment, text().segments - 1);
    if (view.segment < view.from || view.segment >= view.to) around();
    draw();
  };
  const home = () => { view.segment = asked().segment; around(); draw(); };
  const look = (change) => {
    const moved = ("question" in change && change.question !== view.question) || ("text" in change && change.text !== view.text);
    Object.assign(view, change);
    view.question = clamp(view.question, text().asked.length - 1);
    if (moved) { view.segment = asked().segment; around(); }
    draw();
    spoken.say(told());
    model.set("setting", Object.fromEntries(["text", "question", "variant", "router"].map((name) => [name, view[name]])));
    model.save_changes();
  };
  const scale = (by) => { around(Math.max(8, Math.min(128, (view.to - view.from) * by))); draw(); };
  const zoom = (from, to) => { frame(from, Math.max(8, Math.min(128, to - from))); view.segment = clamp(Math.max(view.segment, view.from), view.to - 1); draw(); };
  const reading = h("p", { class: "reading" });
  const point = (i, at, t) => {
    if (i === null) return setText(reading, " ");
    const pass = v.pass(i, view.text, view.router), s = Math.floor(t / v.size);
    if (!pass?.gated) return setText(reading, `${v.variants[i].name}: segment ${s + 1}`);
    const slot = pass.slotAt(t), share = at ? pass.share(asked(), ...at, slot) : pass.mean(asked(), view.layer, slot);
    const who = at ? `layer ${v.variants[i].blocks[at[0]]}, head ${at[1] + 1}` : `${v.variants[i].name}, mean of heads`;
    setText(reading, `${who} → segment ${s + 1}${pass.online(slot) ? " (online)" : ""}: ${timesEven(share)}`);
  };
  const actions = { look, go, zoom, scale, home, point };

  const rows = needleRows(v, view, actions);
  const options = (list, name) => Object.fromEntries(list.map((one, i) => [i, name(one)]));
  const texts = choice("text", options(v.texts, (one) => `${whole(one.T)} tokens`), (i) => look({ text: +i }));
  const router = choice("router", { learned: "learned", oracle: "oracle", random: "random" }, (name) => look({ router: name }));
  const blocks = v.variants.reduce((most, w) => (w.blocks.length > most.length ? w.blocks : most), []);
  const layers = choice("heads of layer", { null: "all", ...Object.fromEntries(blocks.map((b, i) => [`layer ${i}`, `${b}`])) }, (i) => look({ layer: i === "null" ? null : +i.slice(6) }));
  router.el.hidden = !v.variants.some((w) => w.passes[0]?.routers.oracle);
  layers.el.hidden = !blocks.length;
  const drawn = (one, name) => ({ el: one.el, draw: () => one.draw(view[name]) });
  const panels = [drawn(texts, "text"), drawn(router, "router"), { el: layers.el, draw: () => layers.draw(view.layer === null ? "null" : `layer ${view.layer}`) }, needleStory(v, view), rows, zoomMap(v, view, actions), zoomBar(v, view, actions), segmentTokens(v, view)];
  const [, , , story, , map, bar, inside] = panels;

  const next = (by) => () => look({ question: clamp(view.question + by, text().asked.length - 1) });
  const other = (by) => () => { look({ variant: clamp(view.variant + by, v.variants.length - 1) }); rows.focus(); };
  const digits = Object.fromEntries(v.variants.slice(0, 9).map((_, i) => [i + 1, () => look({ variant: i })]));
  const routers = router.el.hidden ? {} : { l: () => look({ router: "learned" }), o: () => look({ router: "oracle" }), r: () => look({ router: "random" }) };
  onKeys(root, { ArrowLeft: () => go(view.segment - 1), ArrowRight: () => go(view.segment + 1), ArrowUp: other(-1), ArrowDown: other(1), Home: () => go(0), End: () => go(Infinity),
    n: next(1), p: next(-1), "+": () => scale(0.5), "=": () => scale(0.5), "-": () => scale(2), h: home, ...routers, ...digits });

  root.replaceChildren(heading(v.title, "Choose a needle and a model. Point at a strip to read it, drag over it to zoom, click for the tokens of a segment.",
    "n and p move by one needle, ↑ ↓ by one model, ← → by one segment, + and − zoom, l, o and r choose the router.", v.notes), spoken.el,
  h("div", { class: "choices" }, texts.el, router.el, layers.el), story.el, rows.el, scaleLegend(), reading, map.el, bar.el, inside.el);
  setText(reading, " ");
  view.segment = asked().segment;
  around(32);
  draw();
  spoken.say(told(), false);
  const set = (changed) => {
    if (Object.entries(changed).every(([name, value]) => view[name] === value)) return; // what the page itself has set
    Object.assign(view, changed);
    home();
  };
  return { setting: set };
}

export default family("needles", ["setting"], explorer);
