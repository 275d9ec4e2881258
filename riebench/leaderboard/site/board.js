"use strict";
// The table of entries and the trade-off plot. What is shown is a view; the view is kept in the address, behind the #.
(() => {
  const DATA = JSON.parse(document.getElementById("board-data").textContent);
  const at = (id) => document.getElementById(id);
  const heads = [...document.querySelectorAll(".board thead th")];
  const boardOf = (view) => DATA.backbones.find((board) => board.name === view.backbone);
  const metricOf = (view) => boardOf(view).metrics.find((metric) => metric.name === view.metric);

  // Where an interval is withheld, `low` is null and `high` says why.
  const between = (mean, low, high) =>
    low === null ? { mean, low, high: null, withheld: ["too few edits", "too few differ"][high] } : { mean, low, high };

  // A row holds, for each column, what is sorted by (`sort`) and what is drawn. `better` says which end comes first.
  function rowsOf(view) {
    const board = boardOf(view);
    const ranked = board.ranked[view.category][view.metric] || [];
    return board.entries.map((entry, i) => {
      const [mean, low, high, rank, first, last] = ranked[i] || [];
      const row = { entry, rank, first, last, value: ranked[i] ? between(mean, low, high) : null, columns: {} };
      for (const { key } of DATA.columns) {
        const cell = (board.columns[key][view.category] || [])[i];
        row.columns[key] = cell ? between(...cell) : null;
      }
      return row;
    });
  }

  function sortValue(row, key) {
    switch (key) {
      case "rank": return row.rank;
      case "method": return row.entry.name.toLowerCase();
      case "sees": return row.entry.sees ? "yes" : "no";
      case "value": return row.value && row.value.mean;
      case "features": return row.entry.features;
      case "planted": return row.entry.planted && row.entry.planted[0] / row.entry.planted[1];
      case "submitted": return row.entry.submitted;
      default: return row.columns[key] && row.columns[key].mean;
    }
  }

  // Which end a column shows first: the better one, and for words the beginning.
  function descendsFirst(key, view) {
    if (key === "value") return metricOf(view).better !== "lower";
    const column = DATA.columns.find((other) => other.key === key);
    return column ? column.better === "higher" : ["planted", "features", "submitted"].includes(key);
  }

  function compare(a, b, view) {
    const x = sortValue(a, view.sort), y = sortValue(b, view.sort);
    const none = (value) => value === undefined || value === null;
    if (none(x) || none(y)) return none(x) - none(y);
    const order = x < y ? -1 : x > y ? 1 : 0;
    return view.descending ? -order : order;
  }

  const isShown = (entry, view) =>
    !(view.hideControls && entry.control) &&
    `${entry.name} ${entry.method} ${entry.title}`.toLowerCase().includes(view.filter.trim().toLowerCase());

  // ---- numbers and elements
  const number = (value, signed = false) => {
    const text = value.toFixed(3).replace("-", "\u2212");
    if (!/[1-9]/.test(text)) return text.replace("\u2212", "");
    return signed && value > 0 ? `+${text}` : text;
  };
  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made) made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }
  function whisker({ mean, low, high }, [least, most]) {
    const NS = "http://www.w3.org/2000/svg";
    const x = (value) => (5 + (102 * (value - least)) / (most - least || 1)).toFixed(1);
    const svg = document.createElementNS(NS, "svg");
    for (const [name, value] of Object.entries({ class: "whisker", viewBox: "0 0 112 15", "aria-hidden": "true" }))
      svg.setAttribute(name, value);
    const line = document.createElementNS(NS, "line"), dot = document.createElementNS(NS, "circle");
    for (const [name, value] of Object.entries({ x1: x(low ?? mean), x2: x(high ?? mean), y1: 7.5, y2: 7.5 })) line.setAttribute(name, value);
    for (const [name, value] of Object.entries({ cx: x(mean), cy: 7.5, r: 4.5 })) dot.setAttribute(name, value);
    svg.append(line, dot);
    return svg;
  }
  function measured(cell, signed) {
    if (!cell) return element("div", {}, "–");
    const between = element("span", { className: "between" },
      cell.withheld || `[${number(cell.low)}, ${number(cell.high)}]`);
    return element("div", {}, number(cell.mean, signed), " ", between);
  }

  function drawRow(row, range) {
    const { entry } = row;
    const marks = [];
    if (entry.control) marks.push(element("span", { className: "mark" }, "control"));
    const cells = {
      rank: element("td", { className: "rank" }, ...(row.rank
        ? [`${row.rank} `, element("span", { className: "between" }, row.first === null ? "too few edits" : `[${row.first}–${row.last}]`)] : ["–"])),
      method: element("th", { scope: "row" }, element("a", { href: entry.page }, entry.name), ...marks),
      sees: element("td", {}, entry.sees ? element("span", { className: "mark oracle" }, "yes") : "no"),
      value: element("td", { className: "value" }, measured(row.value), ...(row.value ? [whisker(row.value, range)] : [])),
      planted: element("td", {}, entry.planted ? entry.planted.join(" of ") : "–"),
      features: element("td", { className: "number" }, entry.features === null ? "–" : String(Math.round(entry.features))),
      submitted: element("td", {}, entry.submitted),
    };
    for (const { key, signed } of DATA.columns) cells[key] = element("td", {}, measured(row.columns[key], signed));
    const line = element("tr");
    for (const head of heads) if (!head.hidden) line.append(cells[head.dataset.key]);
    line.dataset.entry = entry.name;
    return line;
  }

  // ---- the page
  function draw(view) {
    const board = boardOf(view), metric = metricOf(view);
    const direction = { higher: "higher is better", lower: "lower is better" }[metric.better];
    const all = rowsOf(view);
    for (const head of heads) {
      const key = head.dataset.key, button = head.firstElementChild;
      if (key === "value") button.textContent = metric.label;
      head.hidden = DATA.columns.some((column) => column.key === key) && all.every((row) => row.columns[key] === null)
        || key === "planted" && all.every((row) => row.entry.planted === null);
      if (key === view.sort) head.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    const valued = all.filter((row) => row.value);
    const range = [Math.min(...valued.map(({ value }) => value.low ?? value.mean)), Math.max(...valued.map(({ value }) => value.high ?? value.mean))];
    const byRank = { sort: "rank", descending: false };
    const rows = all.filter((row) => isShown(row.entry, view)).sort((a, b) => compare(a, b, view) || compare(a, b, byRank));
    at("rows").replaceChildren(...rows.map((row) => drawRow(row, range)));
    const [, category] = board.categories.find(([name]) => name === view.category);
    at("shown").textContent =
      `${rows.length} of ${all.length} ${all.length === 1 ? "entry" : "entries"} on ${board.name}, ${category}, by ${metric.label} (${direction}).`;
    at("caption").textContent = `Entries on ${board.name}, ${category}, by ${metric.label}`;
    at("meaning").textContent = `${metric.label}: ${metric.meaning}. Brackets are 95 % intervals over edits.`;
    at("entries").hidden = rows.length === 0;
    at("none").hidden = rows.length > 0;
    drawPlot(view, new Set(rows.map((row) => row.entry.name)));
  }

  let plotted = "";
  function drawPlot(view, shown) {
    const id = `plot-${DATA.backbones.indexOf(boardOf(view))}-${view.category}`;
    const template = at(id);
    if (id !== plotted) at("plot").replaceChildren(template ? template.content.cloneNode(true) : "No entry has both scores here.");
    plotted = id;
    for (const part of at("plot").querySelectorAll("[data-entry]")) part.classList.toggle("left-out", !shown.has(part.dataset.entry));
  }

  function fill(select, options, chosen) {
    const same = options.length === select.options.length && options.every(([value], i) => value === select.options[i].value);
    if (!same) select.replaceChildren(...options.map(([value, label]) => element("option", { value, textContent: label })));
    select.value = chosen;
  }
  function drawChoices(view) {
    const board = boardOf(view);
    fill(at("backbone"), DATA.backbones.map(({ name }) => [name, name]), view.backbone);
    fill(at("category"), board.categories, view.category);
    fill(at("metric"), board.metrics.map(({ name, label }) => [name, label]), view.metric);
    if (at("filter").value !== view.filter) at("filter").value = view.filter;
    at("hide-controls").checked = view.hideControls;
  }

  // ---- the view and its address
  const among = (value, names) => (names.includes(value) ? value : names[0]);
  function settled(wanted) {
    const view = { ...wanted, backbone: among(wanted.backbone, DATA.backbones.map(({ name }) => name)) };
    const board = boardOf(view);
    view.category = among(view.category, board.categories.map(([name]) => name));
    view.metric = among(view.metric, board.metrics.map(({ name }) => name));
    view.sort = among(view.sort, heads.map((head) => head.dataset.key));
    return view;
  }
  function fromAddress() {
    const words = new URLSearchParams(location.hash.slice(1));
    const sort = words.get("sort") || "";
    return settled({
      backbone: words.get("backbone"), category: words.get("category"), metric: words.get("metric"),
      filter: words.get("filter") || "", hideControls: words.get("controls") === "hidden",
      sort: sort.replace(/^-/, ""), descending: sort.startsWith("-"),
    });
  }
  function toAddress(view) {
    const words = new URLSearchParams({ backbone: view.backbone, category: view.category, metric: view.metric });
    if (view.sort !== "rank" || view.descending) words.set("sort", (view.descending ? "-" : "") + view.sort);
    if (view.filter) words.set("filter", view.filter);
    if (view.hideControls) words.set("controls", "hidden");
    history.replaceState(null, "", `#${words}`);
  }

  let view;
  function show(next) {
    view = settled(next);
    drawChoices(view);
    draw(view);
  }
  function change(part) {
    show({ ...view, ...part });
    toAddress(view);
  }

  at("choices").addEventListener("submit", (event) => event.preventDefault());
  for (const name of ["backbone", "category", "metric"]) at(name).addEventListener("change", (event) => change({ [name]: event.target.value }));
  at("filter").addEventListener("input", (event) => change({ filter: event.target.value }));
  at("hide-controls").addEventListener("change", (event) => change({ hideControls: event.target.checked }));
  at("clear").addEventListener("click", () => { change({ filter: "", hideControls: false }); at("filter").focus(); });
  for (const head of heads) {
    const key = head.dataset.key;
    head.firstElementChild.addEventListener("click", () =>
      change({ sort: key, descending: view.sort === key ? !view.descending : descendsFirst(key, view) }));
  }
  addEventListener("hashchange", () => show(fromAddress()));
  show(fromAddress());
})();
