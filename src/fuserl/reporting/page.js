// What a page does in the browser: draws its figures, sorts its tables, filters methods. Texts are only ever set as text.
"use strict";

const rows = (table) => [...table.tBodies[0].rows];

let shown = null; // which methods the filter lets through; null: all

// One figure after the other, so that the page can be used before the last is drawn.
function drawFigures(places) {
  if (!places.length) return;
  const [place, ...others] = places;
  const figure = JSON.parse(place.nextElementSibling.textContent);
  const bar = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  Plotly.newPlot(place, figure.data, figure.layout, bar);
  hideTraces(place);
  setTimeout(() => drawFigures(others));
}

// A cell's number, "0.512 [0.40, 0.62]" is 0.512; NaN where it begins with none.
function numberOf(text) {
  const found = /^[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?(?=$|[\s%[])/i.exec(text.trim());
  return found ? Number(found[0].replaceAll(",", "")) : NaN;
}

function compareCells(left, right) {
  const [a, b] = [numberOf(left), numberOf(right)];
  if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
  if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
  return left.localeCompare(right, "en", { numeric: true });
}

function sortBy(header) {
  const table = header.closest("table");
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const text = (row) => row.cells[header.cellIndex].textContent.trim();
  const sorted = rows(table).sort((one, other) => {
    const [a, b] = [text(one), text(other)];
    if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1); // empty cells stay at the end
    return ascending ? compareCells(a, b) : compareCells(b, a);
  });
  table.tBodies[0].append(...sorted);
}

// Every word of the filter must stand in a method's name.
function matching(labels, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return labels.map((label) => words.every((word) => label.toLowerCase().includes(word)));
}

function hideTraces(place) {
  if (!shown || !place.data) return;
  const own = [...place.data.keys()].filter((index) => place.data[index].meta && "method" in place.data[index].meta);
  if (own.length) Plotly.restyle(place, { visible: own.map((index) => shown[place.data[index].meta.method]) }, own);
}

function filterBy(labels, text, told) {
  shown = matching(labels, text);
  for (const row of document.querySelectorAll("[data-method]")) row.hidden = !shown[Number(row.dataset.method)];
  document.querySelectorAll("div.figure").forEach(hideTraces);
  told.textContent = `${shown.filter(Boolean).length} of ${labels.length} methods`;
}

for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sortBy(button.closest("th")));
const field = document.querySelector(".filter input");
if (field) {
  const labels = JSON.parse(document.querySelector(".filter script").textContent);
  const told = document.querySelector(".filter output");
  field.addEventListener("input", () => filterBy(labels, field.value, told));
  if (field.value) filterBy(labels, field.value, told);
  else told.textContent = `${labels.length} methods`;
}
drawFigures([...document.querySelectorAll("div.figure")]);
