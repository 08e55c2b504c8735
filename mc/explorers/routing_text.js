// What a token of a text reads, in words: its passages are shaded, and those that it reads most are quoted.

const QUOTED = 4; // passages

// Of each memory that token t can read its share, the mean gate over the heads of a layer, the largest first.
function sharesOf(v, w, layer, t) {
  const there = range(w.slots, (slot) => slot).filter((slot) => w.sees(t, slot)), equal = 1 / (there.length || 1);
  return there.map((slot) => ({ slot, gate: w.gated ? w.mean(layer, t, slot) : equal })).sort((a, b) => b.gate - a.gate || a.slot - b.slot);
}

// The places of a memory in the strip, and its words.
const placesOf = (v, w, slot, t) => (slot === w.online ? [v.column(v.segmentOf[t]), v.column(v.segmentOf[t])] : w.segments(slot));

function wordsOf(v, w, slot, t) {
  if (slot !== w.online && w.folded(slot)) return `${plural(v.past, "earlier segment")}, not shown`;
  const [first, last] = placesOf(v, w, slot, t).map((column) => column - Math.min(v.past, 1));
  const upTo = slot === w.online ? v.tokens.slice(v.starts[last], t + 1).join("") : null;
  return upTo ?? range(last - first + 1, (i) => v.passage(first + i)).join("");
}

const nameOf = (v, w, slot, t) => (slot === w.online ? "the running segment" : w.slotName(slot));

// The token at which a cached memory stands out most: the first frame of a text.
function tellingToken(v, w) {
  let best = v.T - 1, most = 0;
  if (w.gated && !w.diverged) for (let t = Math.floor(v.T / 2); t < v.T; t++) for (let slot = 0; slot < w.online; slot++) {
    const times = w.sees(t, slot) && !w.folded(slot) ? w.mean(0, t, slot) / w.even(t, slot) : 0;
    if (times > most) [best, most] = [t, times];
  }
  return best;
}

function passages(v, view, sequence) {
  const title = h("p", { class: "how" }), list = h("ol", { class: "quotes" }), el = h("div", { class: "story" }, title, list);
  const row = (w, { slot, gate }, t) => {
    const item = h("li", {}, h("span", { class: "where" }, nameOf(v, w, slot, t)), h("span", { class: "track" }, h("span", { class: "length", style: `width:${percent(gate)}` })),
      h("span", { class: "mass" }, percent(gate)), h("bdi", { class: "quote" }, `“${quoted(wordsOf(v, w, slot, t))}”`));
    item.addEventListener("pointerenter", () => sequence.light(...placesOf(v, w, slot, t)));
    item.addEventListener("pointerleave", () => sequence.light(null));
    return item;
  };
  const draw = (t) => {
    const w = v.variants[view.variant], shares = sharesOf(v, w, view.layer, t), levels = range(v.column(v.lengths.length), () => [0, ""]);
    for (const { slot, gate } of shares) {
      if (!gate) continue;
      const [first, last] = placesOf(v, w, slot, t), level = w.gated ? shade(w, gate, t, slot) : 1 / FULL;
      for (let i = first; i <= last; i++) levels[i] = [level, w.gated ? percent(gate) : "read"];
    }
    sequence.shade(levels);
    const read = shares.filter(({ gate }) => gate > 0), several = read.length > 1;
    title.replaceChildren(h("b", { class: "now" }, "“", word(v.tokens[t]), "”"), w.diverged ? " is read." : !several ? " reads the running segment only; there is no memory before it." :
      w.gated ? ` reads most from (mean over heads, ${layerName(w, view.layer)})` : ` reads all of ${plural(read.length, "memory").replace("memorys", "memories")} alike`);
    list.replaceChildren(...(w.gated && several ? read.slice(0, QUOTED).map((share) => row(w, share, t)) : []));
  };
  return { el, draw };
}

// The same for those who listen.
function heard(v, w, layer, t) {
  const [top] = sharesOf(v, w, layer, t).filter(({ slot }) => slot !== w.online);
  const reads = !w.gated || !top?.gate ? "" : ` Of the earlier segments it reads ${w.slotName(top.slot)} most, ${percent(top.gate)}: ${quoted(wordsOf(v, w, top.slot, t))}.`;
  return `Token ${v.number(t)}, ${visible(v.tokens[t])}, segment ${v.segment(v.segmentOf[t])}.${reads} ${w.diverged ? "" : "Expected next: "}${answered(v, w, t)}.`;
}
