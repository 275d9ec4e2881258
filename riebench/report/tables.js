// Sortable tables: the heads of each table.sortable become buttons. A cell sorts by its data-value as a number where it
// has one, else by its text; cells without a value stay last in both directions; equal cells keep their order.
"use strict";

/** What a cell sorts by: a number, a text, or null for an empty one. */
function sortKey(cell) {
  if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "" || text === "–" ? null : text;
}

function compareKeys(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

/** Sorts the body's rows by a column; direction is "ascending" or "descending". */
function sortRows(table, column, direction) {
  const sign = direction === "descending" ? -1 : 1;
  const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, key: sortKey(row.cells[column]) }));
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return sign * compareKeys(a.key, b.key);
  });
  table.tBodies[0].append(...rows.map(({ row }) => row));
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", direction);
}

function makeSortable(table) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") === "ascending";
      sortRows(table, head.cellIndex, ascending ? "descending" : "ascending");
    });
  }
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
