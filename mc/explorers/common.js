// What every explorer is made of: elements, words, keys, packed numbers, and the frame that draws one into its page.

function h(tag, attrs = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs)) el.setAttribute(name, value);
  el.append(...children);
  return el;
}

function svg(tag, attrs = {}, ...children) {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attrs)) el.setAttribute(name, value);
  el.append(...children);
  return el;
}

const range = (n, make) => Array.from({ length: n }, (_, i) => make(i));
const clamp = (i, max) => Math.min(Math.max(i, 0), max);
const percent = (p) => `${Math.round(100 * p)}%`;
const whole = (n) => n.toLocaleString("en-US");
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const short = (p) => (p >= 0.995 ? "1.0" : p.toFixed(2).slice(1));
// What cannot be seen gets a sign: line breaks, tabs, control characters, and spaces at the ends.
const SIGNS = { "\n": "↵", "\t": "⇥", "\r": "␍" };
const signed = (s) => s.replace(/[\x00-\x1f\x7f]/g, (c) => SIGNS[c] ?? `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
const visible = (s) => (s === "" ? "∅" : signed(s).replace(/^\s+|\s+$/g, (spaces) => "␣".repeat(spaces.length)));
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

// `keys` is only for those who have some; `notes` say what the page leaves out.
function heading(title, how, keys = "", notes = []) {
  return h("div", {}, h("p", { class: "heading" }, h("bdi", {}, title ?? "")), ...notes.map((note) => h("p", { class: "leftout" }, note)),
    h("p", { class: "how" }, how, h("span", { class: "keys" }, keys && ` ${keys}`)));
}

// Buttons of which one is pressed. `options`: what is picked, and its text.
function choice(label, options, pick) {
  const buttons = Object.entries(options).map(([value, text]) => h("button", { type: "button", "data-value": value }, text));
  for (const button of buttons) button.addEventListener("click", () => pick(button.dataset.value));
  const draw = (picked) => buttons.forEach((button) => button.setAttribute("aria-pressed", button.dataset.value === `${picked}`));
  return { el: h("div", { class: "choice", role: "group", "aria-label": label }, h("span", {}, label), ...buttons), draw };
}

// A matrix of numbers. Colour says the sign and opacity the size, so that zero is the page itself, light or dark.
const NEGATIVE = [38, 132, 214], POSITIVE = [224, 108, 20]; // also --negative and --positive
function matrix(rows, columns, attrs = {}) {
  const el = h("canvas", { width: columns, height: rows, ...attrs });
  const draw = (numbers, largest) => {
    const image = new ImageData(columns, rows);
    numbers.forEach((x, i) => image.data.set([...(x < 0 ? NEGATIVE : POSITIVE), 255 * Math.min(Math.abs(x) / (largest || 1), 1)], 4 * i));
    el.getContext("2d").putImageData(image, 0, 0);
  };
  return { el, draw };
}

// The text that a screen reader is told whenever it changes; on a phone the read-out that stays in sight.
function announcer() {
  const el = h("p", { class: "spoken", "aria-live": "polite" });
  const say = (text, aloud = true) => { el.ariaLive = aloud ? "polite" : "off"; setText(el, text); };
  return { el, say };
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
