// Draws the figures stored in the page, in the theme's colours, and again when the theme or the room for them changes.
(function () {
  "use strict";
  const NARROW = 520;    // px: below it titles wrap, letters shrink and legends go under the figure

  function colours() {
    const css = getComputedStyle(document.documentElement), of = (name) => css.getPropertyValue("--pst-color-" + name).trim();
    return { text: of("text-base"), muted: of("text-muted"), line: of("border"), surface: of("surface") };
  }

  // A template holds defaults only: what a figure sets itself stays.
  function template(given, narrow) {
    const c = colours(), clear = "rgba(0,0,0,0)", base = (given && given.layout) || {};
    const axis = { gridcolor: c.line, linecolor: c.line, zerolinecolor: c.line, tickcolor: c.line, automargin: true };
    const over = {
      font: { color: c.text, size: narrow ? 11 : 13, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: c.surface, bordercolor: c.line, font: { color: c.text } },
      legend: { bgcolor: clear }, xaxis: axis, yaxis: axis,
      updatemenudefaults: { bgcolor: c.surface, bordercolor: c.line },
      sliderdefaults: { bgcolor: c.line, bordercolor: c.line, tickcolor: c.muted },
    };
    if (narrow) over.margin = { l: 10, r: 10 };
    const layout = Object.assign({}, base, { paper_bgcolor: clear, plot_bgcolor: clear });
    for (const name in over) layout[name] = Object.assign({}, base[name], over[name]);
    return Object.assign({}, given, { layout: layout });
  }

  function wrap(text, width) {
    const lines = [""];
    for (const word of text.split(" ")) {
      if (lines.at(-1) && lines.at(-1).length + word.length >= width) lines.push("");
      lines.push((lines.pop() + " " + word).trim());
    }
    return lines.join("<br>");
  }

  function layoutFor(given, width) {
    const narrow = width < NARROW;
    const layout = Object.assign({ uirevision: "kept", height: 400 }, given, { autosize: true, template: template(given.template, narrow) });
    delete layout.width;
    // Rooms of fixed size: where plotly measures a title itself and draws again meanwhile, it takes the whole figure for the title's.
    const title = typeof given.title === "string" ? { text: given.title } : given.title;
    if (title && title.text) layout.title = Object.assign({}, title, { automargin: false });
    const below = { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom" };
    if (!narrow) {
      if (!given.legend || given.legend.y === undefined) layout.legend = Object.assign(below, given.legend);
      return layout;
    }
    if (title && title.text) {
      const text = wrap(title.text, Math.floor(width / 8)), lines = text.split("<br>").length;
      const top = 9 * lines;    // plotly centres the lines where one line would be
      layout.margin = Object.assign({ t: Math.max(60, 22 + 19 * lines) }, given.margin);
      layout.title = Object.assign(layout.title, { text: text, font: Object.assign({}, title.font, { size: 14 }), yref: "container", y: 1, yanchor: "top", pad: { t: top } });
    }
    const small = (font) => Object.assign({}, font, { size: Math.min(11, (font && font.size) || 11) });
    layout.annotations = (given.annotations || []).map((a) => Object.assign({}, a, { font: small(a.font) }));
    layout.legend = Object.assign({}, given.legend, below);
    return layout;
  }

  async function draw(holder) {
    const spec = JSON.parse(holder.querySelector("script").textContent), plot = document.createElement("div");
    holder.append(plot);
    const config = Object.assign({ displaylogo: false }, spec.config);
    let width = holder.clientWidth;
    await Plotly.newPlot(plot, { data: spec.data, layout: layoutFor(spec.layout, width), frames: spec.frames, config: config });
    holder.redraw = () => Plotly.react(plot, plot.data, layoutFor(spec.layout, width), config);
    new ResizeObserver(() => {    // the window's size, a sidebar, or what it stands in opens; where it is folded it has no width
      const before = width, now = holder.clientWidth;
      if (!now || now === before) return;
      width = now;
      (before < NARROW) === (now < NARROW) ? Plotly.Plots.resize(plot).catch(() => {}) : holder.redraw();
    }).observe(holder);
    holder.dataset.ready = "yes";
  }

  async function start() {
    const holders = [...document.querySelectorAll(".mc-plotly")];
    for (const holder of holders) {
      try {
        await draw(holder);
      } catch (error) {
        holder.dataset.ready = "failed";
        holder.textContent = "This figure could not be drawn: " + error.message;
        console.error(error);
      }
    }
    new MutationObserver(() => holders.forEach((h) => h.redraw && h.redraw()))
      .observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  }
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start();
})();
