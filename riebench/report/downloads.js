// Buttons that save what the page shows: each table[data-file] as CSV; each figure[data-file] as SVG, and as CSV where a
// table of its numbers stands in it. Needs no network: the files are made in the page.
"use strict";

/** Of the browser's own styles, those that a drawing needs to look the same outside the page. */
const DRAWN = ["fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-linejoin", "paint-order",
  "font-family", "font-size", "font-weight", "font-variant-numeric", "text-anchor"];

/** As `riebench.core.csv_tables`: a number, and where a spreadsheet would begin to calculate in a text. */
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const FORMULA = /(?:^|(?<=[;\t\r\n|]))(?=\s*[=+\-@＝＋－＠])|^(?=[\t\r\n])/g;

function quoted(text) {
  const inert = NUMBER.test(text) ? text : text.replaceAll(FORMULA, "'");
  return /[",\n\r]/.test(inert) ? `"${inert.replaceAll('"', '""')}"` : inert;
}

/** A table as CSV. A cell with a data-value gives that number; a column with intervals gives two more, low and high, which say why where an
 * interval is withheld. */
function tableAsCsv(table) {
  const rows = Array.from(table.tBodies[0].rows);
  const columns = [];
  Array.from(table.tHead.rows[0].cells, (head, i) => {
    const name = head.textContent.trim();
    columns.push({ name, read: (cell) => cell.dataset.value ?? cell.textContent.trim(), i });
    if (rows.some(({ cells }) => cells[i].dataset.low !== undefined || cells[i].dataset.withheld)) {
      for (const end of ["low", "high"]) columns.push({ name: `${name} ${end}`, read: (cell) => cell.dataset[end] ?? cell.dataset.withheld ?? "", i });
    }
  });
  const lines = [columns.map(({ name }) => name)];
  for (const row of rows) lines.push(columns.map(({ read, i }) => read(row.cells[i])));
  return lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n";
}

/** A drawing as a file of its own: what the page's style sheet says of it is written into it. */
function drawingAsSvg(drawing) {
  const copy = drawing.cloneNode(true);
  const originals = [drawing, ...drawing.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((element, i) => {
    const style = getComputedStyle(originals[i]);
    for (const name of DRAWN) element.setAttribute(name, style.getPropertyValue(name));
    element.removeAttribute("class");
  });
  const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  paper.setAttribute("width", "100%");
  paper.setAttribute("height", "100%");
  paper.setAttribute("fill", getComputedStyle(document.body).backgroundColor);
  copy.prepend(paper);
  return '<?xml version="1.0" encoding="UTF-8"?>\n' + new XMLSerializer().serializeToString(copy);
}

function save(text, type, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function downloadButton(kind, what, action) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = kind;
  button.setAttribute("aria-label", `Download as ${kind}: ${what}`);
  button.addEventListener("click", action);
  return button;
}

function saveTable(table, name) {
  return downloadButton("CSV", table.caption.textContent, () => save(tableAsCsv(table), "text/csv", `${name}.csv`));
}

function addDownloads(buttons, place) {
  const bar = document.createElement("div");
  bar.className = "downloads";
  bar.append(...buttons);
  place.after(bar);
}

for (const figure of document.querySelectorAll("figure[data-file]")) {
  const drawing = figure.querySelector("svg");
  const name = figure.dataset.file;
  const buttons = [downloadButton("SVG", drawing.getAttribute("aria-label"),
    () => save(drawingAsSvg(drawing), "image/svg+xml", `${name}.svg`))];
  const table = figure.querySelector("table");
  if (table) buttons.push(saveTable(table, name));
  addDownloads(buttons, figure.querySelector("figcaption"));
}
for (const table of document.querySelectorAll("table[data-file]")) {
  addDownloads([saveTable(table, table.dataset.file)], table.closest(".scroll"));
}
