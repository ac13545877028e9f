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

async function draw(box, columns = box.clientWidth < 520 ? 2 : 4) {
  const spec = JSON.parse(document.querySelector(`[data-spec="${box.id}"]`).textContent);
  // Fewer legend entries fit on one line of a narrow screen.
  config.legend.columns = columns;
  config.legend.labelLimit = box.clientWidth < 520 ? 150 : 180;
  const result = await vegaEmbed(box, spec, {
    config, renderer: "svg", tooltip: { theme: "custom" }, logLevel: 1,
    actions: { export: true, source: false, compiled: false, editor: false },
  });
  const end = (name) => Math.max(...[...box.querySelectorAll(name)].map((part) => part.getBoundingClientRect().right));
  if (columns > 1 && end(".role-legend text") > end("svg.marks")) {
    result.finalize();
    return draw(box, columns - 1);
  }
  views.set(box.id, result.view);
  makeFocusable(box);
}

// One mark of a chart is in the tab order; arrow keys go to the nearest one in their direction and show its numbers.
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const centre = (mark) => { const at = mark.getBoundingClientRect(); return [at.x + at.width / 2, at.y + at.height / 2]; };

// The marks with numbers: the cells of a heat map (the first layer of rectangles), else the points.
function marksOf(box) {
  for (const kind of ["rect", "symbol"]) {
    const layer = box.querySelector(`.mark-${kind}.role-mark [aria-roledescription]`);
    if (layer) {
      const all = kind === "rect" ? layer.parentElement : box;
      return [...all.querySelectorAll(`.mark-symbol.role-mark [aria-roledescription], :scope > [aria-roledescription]`)];
    }
  }
  return [];
}

function nearest(marks, from, [right, down]) {
  const [x, y] = centre(from);
  let best = null, least = Infinity;
  for (const mark of marks) {
    const [dx, dy] = centre(mark).map((value, place) => value - [x, y][place]);
    const ahead = dx * right + dy * down, aside = Math.abs(dx * down) + Math.abs(dy * right);
    // Marks right ahead come first; 0.5: rounding.
    const distance = ahead + 3 * aside;
    if (ahead > 0.5 && distance < least) [best, least] = [mark, distance];
  }
  return best;
}

function point(mark, kinds) {
  const [clientX, clientY] = centre(mark);
  for (const kind of kinds) mark.dispatchEvent(new MouseEvent(kind, { bubbles: true, clientX, clientY, view: window }));
}

function makeFocusable(box) {
  const [first] = marksOf(box);
  if (!first) return;
  first.setAttribute("tabindex", "0");
  first.setAttribute("aria-describedby", "keys");
  box.addEventListener("focusin", ({ target }) => { if (target.matches("[aria-roledescription]")) point(target, ["pointerover", "pointermove", "mouseover", "mousemove"]); });
  box.addEventListener("focusout", ({ target }) => { if (target.matches("[aria-roledescription]")) point(target, ["pointerout", "mouseout"]); });
  box.addEventListener("keydown", (event) => {
    const from = event.target, marks = marksOf(box);
    if (!marks.includes(from)) return;
    if (event.key === "Escape") point(from, ["pointerout", "mouseout"]);
    const to = event.key in ARROWS ? nearest(marks, from, ARROWS[event.key])
      : event.key === "Home" ? marks[0] : event.key === "End" ? marks.at(-1) : null;
    if (!to) return;
    event.preventDefault();
    from.setAttribute("tabindex", "-1");
    to.setAttribute("tabindex", "0");
    to.focus();
  });
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

// A hint where columns are hidden at the right.
const watch = new ResizeObserver((entries) => { for (const { target } of entries) hint(target.closest(".scroll")); });
function hint(box) {
  const more = box.scrollWidth - box.clientWidth > 1;
  box.parentElement.querySelector(".more").hidden = !more;
  box.toggleAttribute("data-more", more && box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
}
for (const box of document.querySelectorAll(".scroll")) {
  watch.observe(box);
  watch.observe(box.firstElementChild);
  box.addEventListener("scroll", () => hint(box), { passive: true });
}

// Closed tables cannot be opened on it.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.card")) details.open = true;
});

drawAll();
