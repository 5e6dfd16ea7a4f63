"use strict";
// Values under the pointer (or at the place of the arrow keys), the switch of the loss figure, light and dark.
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

function values(axes, x, y) { // of each series: its value on the line at x, or its point nearest to the pointer
  const found = [];
  for (const one of axes.series) {
    const sorted = one.x.every((v, i) => i === 0 || v >= one.x[i - 1]) && one.x[0] < one.x[one.x.length - 1];
    if (sorted && x >= one.x[0] && x <= one.x[one.x.length - 1]) {
      const i = Math.max(1, one.x.findIndex(v => v >= x)), before = one.y[i - 1], after = one.y[i];
      if (before === null || after === null) continue;
      const share = (x - one.x[i - 1]) / (one.x[i] - one.x[i - 1] || 1);
      found.push([one, null, before + share * (after - before)]);
    } else if (!sorted) {
      let best = null, least = .02;
      one.x.forEach((v, i) => {
        const far = Math.hypot(scale(v, axes.x) - scale(x, axes.x), scale(one.y[i], axes.y) - scale(y, axes.y));
        if (far < least) { least = far; best = i; }
      });
      if (best !== null) found.push([one, one.x[best], one.y[best]]);
    }
  }
  return found;
}

function point(svg, sets, px, py, clientX, clientY) { // px, py: in the SVG's own units
  const axes = sets.find(({box: [left, top, width, height]}) =>
    px >= left && px <= left + width && py >= top && py <= top + height);
  svg.querySelectorAll(".cross").forEach(line => line.remove());
  if (!axes) { tip.hidden = true; return; }
  const [left, top, width, height] = axes.box;
  const x = unscale((px - left) / width, axes.x), y = unscale(1 - (py - top) / height, axes.y);
  const found = values(axes, x, y);
  if (!found.length) { tip.hidden = true; return; }
  const cross = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({x1: px, x2: px, y1: top, y2: top + height, class: "cross"}))
    cross.setAttribute(name, value);
  svg.append(cross);
  const lines = found.some(([, own]) => own === null);
  tip.replaceChildren();
  const head = document.createElement("b");
  head.textContent = lines ? show(x) : "";
  if (lines) tip.append(head);
  for (const [one, own, value] of found.sort((a, b) => b[2] - a[2])) {
    const row = document.createElement("div"), mark = document.createElement("i");
    const name = document.createElement("span"), number = document.createElement("span");
    mark.style.background = one.colour;
    name.textContent = one.label;
    number.textContent = own === null ? show(value) : show(own) + (lines || Number.isInteger(value) ? "" : ", " + show(value));
    row.append(mark, name, number);
    tip.append(row);
  }
  tip.hidden = false;
  tip.style.left = Math.min(clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.max(8, Math.min(clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
}

for (const figure of document.querySelectorAll("figure")) {
  const sets = data[figure.id], plot = figure.querySelector(".plot"), svg = plot && plot.querySelector("svg");
  if (!sets || !svg) continue;
  let key = null;
  plot.addEventListener("pointermove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    point(svg, sets, at.x, at.y, event.clientX, event.clientY);
  });
  const leave = () => { tip.hidden = true; svg.querySelectorAll(".cross").forEach(line => line.remove()); };
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", event => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const [left, top, width, height] = sets[0].box, step = event.key === "ArrowLeft" ? -1 : 1;
    key = Math.min(100, Math.max(0, (key ?? (step > 0 ? -1 : 101)) + step));
    const px = left + width * key / 100, py = top + height / 2;
    const at = new DOMPoint(px, py).matrixTransform(svg.getScreenCTM());
    point(svg, sets, px, py, at.x, at.y);
  });
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
