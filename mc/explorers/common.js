// What every explorer is made of: elements, words, keys, packed numbers, and the frame that draws one into its page.

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

// Numbers packed by mc.explorers.base.pack: 16-bit fractions of the way from low to high.
function unpack({ base64, low, high }) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const fraction = (i) => (bytes[2 * i] + 256 * bytes[2 * i + 1]) / 65535;
  return Float32Array.from({ length: bytes.length >> 1 }, (_, i) => low + fraction(i) * (high - low));
}

// `notes` say what the page leaves out.
function heading(title, how, notes = []) {
  return h("div", {}, h("p", { class: "heading" }, h("bdi", {}, title ?? "")), ...notes.map((note) => h("p", { class: "leftout" }, note)), h("p", { class: "how" }, how));
}

// The text that a screen reader is told whenever it changes.
function announcer() {
  const el = h("p", { class: "spoken", "aria-live": "polite" });
  return { el, say: (text) => setText(el, text) };
}

// An explorer: `draw(model, root)` fills root from the model's data and returns { trait: what to do when it is set from outside }.
function family(name, traits, draw) {
  return { render({ model, el }) {
    // JupyterLab's command mode would otherwise take the arrow keys.
    const root = h("div", { class: `mc-explorer mc-${name}`, "data-lm-suppress-shortcuts": "true", role: "group", "aria-label": `${name} explorer` });
    let follow;
    const redraw = () => {
      try { follow = draw(model, root); } catch (error) {
        follow = {};
        root.replaceChildren(h("p", { class: "error", role: "alert" }, `The ${name} explorer: ${error.message}`));
      }
    };
    const listeners = { "change:data": redraw };
    for (const trait of traits) listeners[`change:${trait}`] = () => follow[trait]?.(model.get(trait));
    for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);
    redraw();
    el.append(root);
    return () => { for (const [event, listener] of Object.entries(listeners)) model.off?.(event, listener); root.remove(); };
  } };
}
