// Makes the tables of mc.evidence.tables sort, filter and plot. What it does not reach stays a plain table.
(function () {
  "use strict";
  const make = (name, attributes, ...children) => {
    const e = Object.assign(document.createElement(name), attributes);
    e.append(...children);
    return e;
  };
  const number = (n) => n.toLocaleString("en");

  // A menu of a column's values; the others' choices narrow what it offers no further, so every combination can be undone.
  function menu(dt, texts, column, name, chosen) {
    const select = make("select", { ariaLabel: name }, make("option", { value: "" }, "all"));
    for (const value of new Set(texts.map((row) => row[column]))) select.append(make("option", { value: value }, value || "none"));
    select.value = chosen || "";
    const apply = () => {
      const wanted = select.value;
      dt.column(column).search.fixed("menu", wanted ? (text, data, row) => texts[row][column] === wanted : null);
    };
    select.addEventListener("change", () => { apply(); dt.draw(); });
    apply();
    return { select: select, clear: () => { select.value = ""; apply(); }, element: make("label", {}, make("span", {}, name), select) };
  }

  // One dot a row, over the labels of its group.
  function plotter(dt, texts, orders, names, plot, holder) {
    const select = make("select", { ariaLabel: "plotted" }, ...plot.x.map((c) => make("option", { value: c }, names[c])));
    const area = make("div", { className: "mc-table-area" });
    const many = make("p", { className: "mc-table-note" });
    holder.append(make("label", {}, make("span", {}, "plotted"), select), many, area);
    function draw() {
      const css = getComputedStyle(document.documentElement), of = (name) => css.getPropertyValue("--pst-color-" + name).trim();
      const column = Number(select.value), groups = new Map(), labels = new Set();
      for (const row of dt.rows({ search: "applied", order: "index" }).indexes().toArray()) {
        const x = orders[row][column], text = texts[row];
        if (x === null) continue;
        const label = plot.y.map((c) => text[c]).join(", "), key = text[plot.colour];
        if (!groups.has(key)) groups.set(key, { x: [], y: [], hover: [] });
        const group = groups.get(key);
        group.x.push(x); group.y.push(label); labels.add(label);
        group.hover.push(names.map((name, c) => name + ": " + text[c]).join("<br>"));
      }
      many.textContent = labels.size ? "" : "None of the rows has a number in this column.";
      area.hidden = !labels.size;
      if (!labels.size) return;
      const narrow = area.clientWidth < 520, order = [...labels].reverse(), height = 110 + 24 * order.length;
      area.style.height = height + "px";
      const axis = { gridcolor: of("border"), zerolinecolor: of("text-muted"), automargin: true };
      Plotly.react(area, [...groups].map(([key, g]) => ({
        type: "scatter", mode: "markers", name: key, x: g.x, y: g.y, text: g.hover, hovertemplate: "%{text}<extra></extra>",
        marker: { size: 8, opacity: 0.75, color: plot.colours[key] || of("text-muted") } })), {
        height: height, margin: { l: 10, r: 10, t: 10, b: 40 }, showlegend: false, hovermode: "closest",
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: of("text-base"), size: narrow ? 10 : 12, family: getComputedStyle(document.body).fontFamily },
        hoverlabel: { bgcolor: of("surface"), bordercolor: of("border"), font: { color: of("text-base") } },
        xaxis: Object.assign({ title: { text: names[column] } }, axis),
        yaxis: Object.assign({ type: "category", categoryorder: "array", categoryarray: order }, axis) },
        { responsive: true, displaylogo: false, displayModeBar: false });
    }
    select.addEventListener("change", draw);
    new MutationObserver(draw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return draw;
  }

  function show(holder) {
    const options = JSON.parse(holder.dataset.options), table = holder.querySelector("table");
    const names = [...table.querySelectorAll("thead th")].map((th) => th.textContent), total = table.tBodies[0].rows.length;
    const caption = table.caption.textContent;
    table.caption.remove();
    const bar = make("div", { className: "mc-table-bar" });
    holder.before(make("p", { className: "mc-table-caption" }, caption), bar);
    if (options.stack) {
      table.classList.add("mc-stack");
      for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, i) => { cell.dataset.label = names[i]; });
    }
    for (const cell of table.querySelectorAll("td.command:not(:empty)")) {    // a click takes the command along
      const text = cell.textContent.trim();
      if (!text) { cell.replaceChildren(); continue; }
      const button = make("button", { type: "button", title: "copy: " + text, ariaLabel: "copy " + text }, "copy");
      const words = text.split(" ").flatMap((w) => [" ", w.startsWith("--") ? make("span", {}, w) : w]).slice(1);
      cell.replaceChildren(make("code", {}, ...words), button);
      button.addEventListener("click", async () => {
        try { await navigator.clipboard.writeText(text); button.textContent = "copied"; } catch { getSelection().selectAllChildren(cell.firstChild); }
        setTimeout(() => { button.textContent = "copy"; }, 1500);
      });
    }
    const rows = [...table.tBodies[0].rows].map((row) => [...row.cells]), texts = rows.map((row) => row.map((c) => c.textContent));
    const orders = rows.map((row) => row.map((c) => (c.dataset.order ? Number(c.dataset.order) : null)));
    for (const i of names.keys()) {    // a column of numbers sorts as such only if every cell has one, or nothing
      const cells = rows.map((row) => row[i]);
      if (cells.some((c) => c.dataset.order)) cells.forEach((c) => { c.dataset.order ||= ""; });
    }
    const paged = total > options.page;
    const dt = new window.mcDataTable(table, {
      order: [], autoWidth: false, pageLength: options.page, paging: paged, info: false, lengthChange: false,
      layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: paged ? "paging" : null },
    });
    table.setAttribute("aria-label", caption);
    const menus = options.filters.map((c) => menu(dt, texts, c, names[c], options.chosen[c]));
    const search = make("input", { type: "search", ariaLabel: "search in all columns" });
    search.addEventListener("input", () => dt.search(search.value).draw());
    const count = make("output", { className: "mc-table-count" });
    const all = make("button", { type: "button" }, "show all");
    all.addEventListener("click", () => { menus.forEach((m) => m.clear()); search.value = ""; dt.search("").draw(); });
    bar.append(...menus.map((m) => m.element), make("label", {}, make("span", {}, "search"), search), all, count);
    let plot = () => {};
    if (options.plot && window.Plotly) {
      const place = make("div", { className: "mc-table-plot" });
      holder.before(place);
      plot = plotter(dt, texts, orders, names, options.plot, place);
    }
    dt.on("draw", () => { count.textContent = number(dt.rows({ search: "applied" }).count()) + " of " + number(total) + " rows"; });
    let before = "";
    dt.on("draw", () => {    // turning a page changes nothing in the plot
      const rows = dt.rows({ search: "applied", order: "index" }).indexes().toArray().join();
      if (rows !== before) { before = rows; plot(); }
    });
    dt.draw();
    holder.dataset.ready = "yes";
  }

  function start() {
    for (const holder of document.querySelectorAll(".mc-table")) {
      try { show(holder); } catch (error) { console.error(error); }
    }
  }
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start();
})();
