// Runs the anywidgets whose code and state are saved in the page: no kernel, no require.js, no network.
(function () {
  "use strict";
  const HERE = document.currentScript?.src; // none where this text is in the page itself
  const VIEW = "application/vnd.jupyter.widget-view+json", STATE = "application/vnd.jupyter.widget-state+json";

  // The part of a Backbone model that anywidget promises to a front end.
  class Model {
    constructor(state) { this.state = state; this.callbacks = {}; }
    get(name) { return this.state[name]; }
    set(name, value) {
      if (typeof name === "object") return Object.entries(name).forEach(([n, v]) => this.set(n, v));
      if (this.state[name] === value) return;
      this.state[name] = value;
      this.emit("change:" + name, value);
      this.emit("change");
    }
    on(events, callback) { for (const e of events.split(/\s+/)) (this.callbacks[e] ||= []).push(callback); }
    off(event, callback) {
      if (!event) this.callbacks = {};
      else this.callbacks[event] = (this.callbacks[event] || []).filter((c) => callback && c !== callback);
    }
    emit(event, value) { for (const callback of [...(this.callbacks[event] || [])]) callback(this, value); }
    save_changes() {}    // there is no kernel to save to
    send() {}
    get page() { return { files: HERE ? new URL("../models/", HERE).href : null }; }    // so a widget knows that there is none, and where the book's files are
  }

  async function load(saved) {
    if (saved.model_name !== "AnyModel") throw new Error("it works in a live notebook only");
    if (saved.buffers && saved.buffers.length) throw new Error("its state holds binary data, which a page does not keep");
    if (saved.state._css) document.head.append(Object.assign(document.createElement("style"), { textContent: saved.state._css }));
    const url = URL.createObjectURL(new Blob([saved.state._esm], { type: "text/javascript" }));
    const module = (await import(url)).default;
    URL.revokeObjectURL(url);
    const widget = typeof module === "function" ? await module() : module, model = new Model(saved.state);
    if (widget.initialize) await widget.initialize({ model });
    return { widget, model };
  }

  async function show(script, saved, loaded) {
    const id = JSON.parse(script.textContent).model_id;
    const el = Object.assign(document.createElement("div"), { className: "mc-widget", tabIndex: 0 });
    el.setAttribute("role", "group");
    el.setAttribute("aria-label", "Interactive figure");
    script.after(el);
    try {
      if (!saved[id]) throw new Error("its state is not in this page");
      const { widget, model } = await (loaded[id] ||= load(saved[id]));
      await widget.render({ model, el });
      el.dataset.ready = "yes";
      if (script.previousElementSibling?.matches(".mc-still")) script.previousElementSibling.hidden = true;
    } catch (error) {
      el.setAttribute("role", "alert");
      el.dataset.ready = "failed";
      el.textContent = "This interactive figure could not start: " + error.message;
      console.error(error);
    }
  }

  function start() {
    const state = document.querySelector(`script[type="${STATE}"]`), loaded = {};
    const saved = state ? JSON.parse(state.textContent).state : {};
    document.querySelectorAll(`script[type="${VIEW}"]`).forEach((script) => show(script, saved, loaded));
  }
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start();
})();
