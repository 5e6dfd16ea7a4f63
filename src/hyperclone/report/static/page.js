"use strict";
// Values under the pointer (or at the position of the arrow keys), the switch of the loss figure, light and dark.
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");

function show(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]])
    if (size >= unit) return Number((value / (unit === 1e4 ? 1e3 : unit)).toPrecision(4)) + letter;
  return String(Number(value.toPrecision(5)));
}
const scale = (v, [low, high, log]) => log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
const unscale = (s, [low, high, log]) => log ? low * Math.pow(high / low, s) : low + s * (high - low);

function values(axes, px, py) { // [series, what to show], highest first; px, py: within the box, in the SVG's own units
  const [, , width, height] = axes.box, x = unscale(px / width, axes.x), found = [];
  for (const one of axes.series) {
    if (one.kind === "line") { // its height there
      const start = one.x[0], end = one.x[one.x.length - 1], at = Math.min(end, Math.max(start, x));
      if (px < scale(start, axes.x) * width - 1 || px > scale(end, axes.x) * width + 1) continue;
      const i = one.x.findIndex(v => v >= at), last = Math.max(0, i - 1);
      const share = i === last ? 0 : (at - one.x[last]) / (one.x[i] - one.x[last]);
      const value = one.y[last] + share * (one.y[i] - one.y[last]);
      if (one.y[last] !== null && one.y[i] !== null) found.push([one, show(value), value]);
    } else if (one.kind === "bars") {
      const value = one.y[Math.round(x)];
      if (value !== null && value !== undefined) found.push([one, show(value), value]);
    } else { // the nearest point, if it is near
      const far = one.x.map((v, i) => Math.hypot(scale(v, axes.x) * width - px, (1 - scale(one.y[i], axes.y)) * height - py));
      const i = far.indexOf(Math.min(...far));
      if (i >= 0 && far[i] < 9)
        found.push([one, one.shown === "both" ? show(one.x[i]) + ", " + show(one.y[i]) : show(one[one.shown][i]), one.y[i]]);
    }
  }
  const kind = axes.series.length ? axes.series[0].kind : "";
  const title = kind === "line" ? show(x) : kind === "bars" ? axes.names[Math.round(x)] : "";
  return [title, found.sort((a, b) => b[2] - a[2])];
}

function point(svg, sets, px, py, clientX, clientY) { // px, py: in the SVG's own units
  const axes = sets.find(({box: [left, top, width, height]}) =>
    px >= left && px <= left + width && py >= top && py <= top + height);
  svg.querySelectorAll(".cross").forEach(line => line.remove());
  if (!axes) { tip.hidden = true; return; }
  const [left, top, , height] = axes.box, [title, found] = values(axes, px - left, py - top);
  if (!found.length) { tip.hidden = true; return; }
  if (axes.series[0].kind === "line") {
    const cross = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of Object.entries({x1: px, x2: px, y1: top, y2: top + height, class: "cross"}))
      cross.setAttribute(name, value);
    svg.append(cross);
  }
  tip.replaceChildren();
  if (title) {
    const head = document.createElement("b");
    head.textContent = title;
    tip.append(head);
  }
  for (const [one, shown] of found) {
    const row = document.createElement("div"), mark = document.createElement("i");
    const name = document.createElement("span"), number = document.createElement("span");
    mark.style.background = one.color;
    name.textContent = one.label;
    number.textContent = shown;
    row.append(mark, name, number);
    tip.append(row);
  }
  tip.hidden = false;
  tip.style.left = Math.min(clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.max(8, Math.min(clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
}

function stops(sets) { // where the arrow keys go: hundredths from the first to the last point of lines; names; points
  return sets.flatMap(axes => {
    const [left, top, width, height] = axes.box, first = axes.series[0];
    if (!first) return [];
    if (first.kind === "line") {
      const all = axes.series.flatMap(one => one.x).map(v => scale(v, axes.x)), start = Math.min(...all), end = Math.max(...all);
      return Array.from({length: 101}, (_, i) => [left + width * (start + (end - start) * i / 100), top + height / 2]);
    }
    if (first.kind === "bars") return first.x.map(v => [left + width * scale(v, axes.x), top + height / 2]);
    return axes.series.flatMap(one => one.x.map((v, i) =>
      [left + width * scale(v, axes.x), top + height * (1 - scale(one.y[i], axes.y))]));
  });
}

for (const figure of document.querySelectorAll("figure")) {
  const sets = data[figure.id], plot = figure.querySelector(".plot"), svg = plot && plot.querySelector("svg");
  if (!sets || !svg) continue;
  const positions = stops(sets);
  let key = null;
  plot.addEventListener("pointermove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    point(svg, sets, at.x, at.y, event.clientX, event.clientY);
  });
  const leave = () => { tip.hidden = true; svg.querySelectorAll(".cross").forEach(line => line.remove()); };
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", event => {
    if (event.key === "Escape") leave();
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const step = event.key === "ArrowLeft" ? -1 : 1;
    key = Math.min(positions.length - 1, Math.max(0, (key ?? (step > 0 ? -1 : positions.length)) + step));
    const at = new DOMPoint(...positions[key]).matrixTransform(svg.getScreenCTM());
    point(svg, sets, ...positions[key], at.x, at.y);
  });
}
for (const head of document.querySelectorAll("#arms th")) { // a click sorts by the column, another one the other way
  head.tabIndex = 0;
  const sort = () => {
    const body = head.closest("table").tBodies[0], down = head.getAttribute("aria-sort") !== "descending";
    const number = row => { const value = parseFloat(row.cells[head.cellIndex].textContent); return isNaN(value) ? -Infinity : value; };
    const text = row => row.cells[0].textContent;
    const rows = [...body.rows].sort((a, b) => head.cellIndex ? number(b) - number(a) || 0 : text(b).localeCompare(text(a)));
    head.parentNode.querySelectorAll("th").forEach(one => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...(down ? rows : rows.reverse()));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}
for (const choice of document.querySelectorAll(".choices input"))
  choice.addEventListener("change", () => {
    const cost = document.querySelector("input[name=cost]:checked").value;
    const shown = document.getElementById("log").checked ? cost + "-log" : cost;
    for (const figure of document.querySelectorAll(".switched figure")) figure.hidden = figure.id !== shown;
  });
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
let before = null; // paper is white
addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme || ""; document.documentElement.dataset.theme = "light"; });
addEventListener("afterprint", () => { if (before) document.documentElement.dataset.theme = before; else delete document.documentElement.dataset.theme; });
