"use strict";
const root = document.documentElement;
const views = new Map();
const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

// Text and lines take the page's colour (currentColor), so that a change of theme and print need no new drawing.
const config = {
  background: "transparent", font: "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif",
  view: { stroke: null },
  axis: { labelColor: "currentColor", titleColor: "currentColor", titleOpacity: 0.75, gridColor: "currentColor",
          gridOpacity: 0.13, domainColor: "currentColor", domainOpacity: 0.35, tickColor: "currentColor", tickOpacity: 0.35,
          labelFontSize: 11.5, titleFontSize: 12, titleFontWeight: 500, titlePadding: 10 },
  axisX: { labelSeparation: 8 },
  legend: { labelColor: "currentColor", titleColor: "currentColor", labelFontSize: 11.5, titleFontSize: 12 },
  rule: { color: "currentColor" },
};

async function draw(box) {
  const spec = JSON.parse(document.querySelector(`[data-spec="${box.id}"]`).textContent);
  // Fewer legend entries fit on one line of a narrow screen.
  config.legend.columns = box.clientWidth < 520 ? 2 : 4;
  const result = await vegaEmbed(box, spec, {
    config, renderer: "svg", tooltip: { theme: "custom" }, logLevel: 1,
    actions: { export: true, source: false, compiled: false, editor: false },
  });
  views.set(box.id, result.view);
}

async function drawAll() {
  for (const box of document.querySelectorAll(".chart")) await draw(box);
  root.dataset.drawn = views.size;
}

for (const list of document.querySelectorAll("select[data-chart]")) {
  list.addEventListener("change", () => {
    const view = views.get(list.dataset.chart);
    if (view) view.signal(list.dataset.parameter, list.value).runAsync();
  });
}

document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("prompt-transfer-theme", root.dataset.theme); } catch { /* no storage for local files */ }
});
try {
  const kept = localStorage.getItem("prompt-transfer-theme");
  if (kept) root.dataset.theme = kept;
} catch { /* no storage for local files */ }

// Sorting: numbers by data-v or their text, missing values last in both directions.
const valueOf = (cell) => {
  if (cell.title) return null;
  const value = Number(cell.dataset.v ?? (cell.classList.contains("n") ? cell.textContent.replaceAll(",", "").replace("−", "-") : NaN));
  return Number.isNaN(value) ? cell.textContent.toLowerCase() : value;
};
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const place = head.cellIndex, down = head.ariaSort === "ascending";
    for (const other of head.parentElement.cells) other.ariaSort = "none";
    head.ariaSort = down ? "descending" : "ascending";
    const rows = [...body.rows].map((row) => [valueOf(row.cells[place]), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  });
}

// Every word of the filter must occur in a row.
for (const input of document.querySelectorAll("[data-filter]")) {
  input.addEventListener("input", () => {
    const rows = document.getElementById(input.dataset.filter).tBodies[0].rows;
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    const count = document.querySelector(`[data-count="${input.dataset.filter}"]`);
    count.textContent = words.length ? `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows` : `${rows.length.toLocaleString("en")} rows`;
  });
}

// Closed tables cannot be opened on it.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.card")) details.open = true;
});

drawAll();
