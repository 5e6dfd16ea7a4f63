// What can be done with the page: values under the pointer or by keys, zoom, hidden arms, downloads, sorting, themes.
const {figures, trunks} = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement, tip = document.getElementById("tip"), hidden = new Set(), drawn = new Map();
const shown = arm => !hidden.has(trunks[arm] ?? arm);
let printed = 0; // width on paper, while it is printed

function values(axes, px, py) { // [title, [series, what to show]], highest first; px, py: within the box
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
      if (i >= 0 && far[i] < 12)
        found.push([one, one.shown ? show(one[one.shown][i]) : show(one.x[i]) + ", " + show(one.y[i]), one.y[i]]);
    }
  }
  const kind = axes.series.length ? axes.series[0].kind : "";
  const title = kind === "line" ? show(x) : kind === "bars" ? axes.names[Math.round(x)] : "";
  return [title, found.sort((a, b) => b[2] - a[2])];
}
const axesAt = (sets, px, py) => sets.findIndex(({box: [left, top, width, height]}) =>
  px >= left && px <= left + width && py >= top && py <= top + height);

function leave(svg) {
  tip.hidden = true;
  svg.querySelectorAll(".cross").forEach(line => line.remove());
}
function point(svg, sets, px, py, clientX, clientY) { // px, py: in the SVG's own units
  leave(svg);
  const axes = sets[axesAt(sets, px, py)];
  if (!axes) return;
  const [left, top, , height] = axes.box, [title, found] = values(axes, px - left, py - top);
  if (!found.length) return;
  if (axes.series[0].kind === "line") make("path", {d: `M${px} ${top}v${height}`, class: "cross"}, svg);
  tip.replaceChildren();
  if (title) tip.append(Object.assign(document.createElement("b"), {textContent: title}));
  for (const [one, value] of found) {
    const row = document.createElement("div"), mark = document.createElement("i");
    mark.style.background = one.color;
    row.append(mark, ...[one.label, value].map(text => Object.assign(document.createElement("span"), {textContent: text})));
    tip.append(row);
  }
  tip.hidden = false;
  tip.style.left = Math.max(8, Math.min(clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(8, Math.min(clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
}

function stops(sets) { // where the arrow keys go: hundredths from the first to the last point of lines; names; points
  return sets.flatMap(axes => {
    const [left, top, width, height] = axes.box, first = axes.series[0], inside = at => at >= 0 && at <= 1;
    if (!first) return [];
    if (first.kind === "line") {
      const all = axes.series.flatMap(one => one.x).map(v => scale(v, axes.x)).map(at => Math.min(1, Math.max(0, at)));
      const start = Math.min(...all), end = Math.max(...all);
      return Array.from({length: 101}, (_, i) => [left + width * (start + (end - start) * i / 100), top + height / 2]);
    }
    if (first.kind === "bars") return first.x.map(v => scale(v, axes.x)).filter(inside).map(at => [left + width * at, top + height / 2]);
    return axes.series.flatMap(one => one.x.map((v, i) => [scale(v, axes.x), 1 - scale(one.y[i], axes.y)]))
      .filter(at => at.every(inside)).map(([x, y]) => [left + width * x, top + height * y]);
  });
}

class Shown { // a figure on the page
  constructor(element) {
    this.element = element;
    this.figure = figures[element.id];
    this.plot = element.querySelector(".plot");
    this.views = this.figure.axes.map(() => null);
    this.key = this.near = this.from = null;
    this.plot.replaceChildren();
    this.tools();
    this.listen();
  }
  draw() {
    this.plot.replaceChildren();
    this.svg = null;
    this.sets = [];
    if (this.element.hidden) return;
    const width = printed || this.plot.clientWidth;
    this.sets = drawFigure(this.plot, this.element.id, this.figure, this.views, width, shown);
    this.svg = this.plot.firstChild;
    const zoomed = this.views.some(Boolean);
    this.reset.disabled = !zoomed;
    this.plot.classList.toggle("zoomed", zoomed);
    this.key = null;
  }
  tools() {
    const bar = Object.assign(document.createElement("div"), {className: "tools"});
    const button = (text, label, act) => {
      const made = Object.assign(document.createElement("button"), {type: "button", textContent: text, title: label, onclick: act});
      made.setAttribute("aria-label", label);
      bar.append(made);
      return made;
    };
    button("+", "zoom in, around the last point that was touched", () => this.zoom(1 / 1.6));
    button("−", "zoom out", () => this.zoom(1.6));
    this.reset = button("reset", "the whole figure", () => this.whole());
    button("SVG", "download this figure", () => this.download());
    this.plot.before(bar);
  }
  whole() {
    this.views.fill(null);
    this.draw();
  }
  look(number, x, y) { // shares of the box as it is, from the left and from below
    const axes = this.sets[number], part = (range, [low, high]) => [unscale(low, range), unscale(high, range), range[2]];
    this.views[number] = {x: part(axes.x, x), y: axes.rows.length ? axes.y : part(axes.y, y)};
    this.draw();
  }
  zoom(by) {
    const near = this.near, around = at => [at - by * at, at + by * (1 - at)];
    this.sets.forEach((_, number) => {
      if (near && near.number !== number) return;
      const [x, y] = near ? near.at : [0.5, 0.5];
      this.look(number, around(x), around(y));
    });
    if (near) near.at = near.at.map(at => Math.min(1, Math.max(0, at)));
    const wide = ({x: [low, high, log]}) => log ? Math.log(high / low) : high - low;
    if (by > 1 && this.views.every((view, i) => !view || wide(view) > 0.99 * wide(this.figure.axes[i]))) this.whole();
  }
  units(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    return [at.x, at.y];
  }
  share(number, [px, py]) {
    const [left, top, width, height] = this.sets[number].box, within = at => Math.min(1, Math.max(0, at));
    return [within((px - left) / width), within(1 - (py - top) / height)];
  }
  listen() {
    const plot = this.plot, gone = () => { if (this.svg) leave(this.svg); };
    plot.addEventListener("pointermove", event => {
      const at = this.units(event);
      if (this.from) return this.drag(at, event);
      point(this.svg, this.sets, ...at, event.clientX, event.clientY);
    });
    plot.addEventListener("pointerdown", event => {
      const at = this.units(event), number = axesAt(this.sets, ...at);
      if (event.button || number < 0) return;
      this.near = {number, at: this.share(number, at)};
      const touch = event.pointerType === "touch";
      if (!touch || this.views[number]) this.from = {at, number, touch, moved: false};
      point(this.svg, this.sets, ...at, event.clientX, event.clientY);
    });
    plot.addEventListener("pointerup", event => {
      const from = this.from, to = this.units(event);
      this.from = null;
      this.svg.querySelector(".rubber")?.remove();
      if (!from || from.touch || !from.moved) return;
      const shares = [this.share(from.number, from.at), this.share(from.number, to)];
      const [x, y] = [0, 1].map(i => shares.map(at => at[i]).sort((a, b) => a - b));
      this.near = null;
      if (x[1] - x[0] > 0.02) this.look(from.number, x, y[1] - y[0] > 0.05 ? y : [0, 1]);
    });
    plot.addEventListener("pointercancel", () => { this.from = null; });
    plot.addEventListener("pointerleave", event => { // what a finger touched stays until the next touch
      if (event.pointerType !== "touch") gone();
      if (!this.from?.moved) this.from = null;
    });
    plot.addEventListener("blur", gone);
    plot.addEventListener("dblclick", () => this.whole());
    plot.addEventListener("keydown", event => this.press(event));
  }
  drag(at, event) { // a mouse draws the part to look at; a finger moves the part that is looked at
    const from = this.from, [dx, dy] = [at[0] - from.at[0], at[1] - from.at[1]];
    if (!from.moved && Math.hypot(dx, dy) < 5) return;
    from.moved = true;
    leave(this.svg);
    if (from.touch) {
      const moved = -dx / this.sets[from.number].box[2];
      from.at = at;
      return this.look(from.number, [moved, 1 + moved], [0, 1]);
    }
    this.plot.setPointerCapture(event.pointerId);
    const [left, top, width, height] = this.sets[from.number].box, [a, b] = [this.share(from.number, from.at), this.share(from.number, at)];
    const low = Math.abs(a[1] - b[1]) > 0.05 ? [Math.max(a[1], b[1]), Math.min(a[1], b[1])] : [1, 0];
    this.svg.querySelector(".rubber")?.remove();
    make("rect", {x: left + Math.min(a[0], b[0]) * width, y: top + (1 - low[0]) * height, width: Math.abs(a[0] - b[0]) * width,
      height: (low[0] - low[1]) * height, class: "rubber"}, this.svg);
  }
  press(event) {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (event.key === "Escape") leave(this.svg);
    if (event.key === "+") this.zoom(1 / 1.6);
    if (event.key === "-") this.zoom(1.6);
    if (event.key === "0") this.whole();
    if (!step) return;
    event.preventDefault();
    const positions = stops(this.sets);
    if (!positions.length) return;
    this.key = Math.min(positions.length - 1, Math.max(0, (this.key ?? (step > 0 ? -1 : positions.length)) + step));
    const at = new DOMPoint(...positions[this.key]).matrixTransform(this.svg.getScreenCTM());
    const number = axesAt(this.sets, ...positions[this.key]);
    if (number >= 0) this.near = {number, at: this.share(number, positions[this.key])};
    point(this.svg, this.sets, ...positions[this.key], at.x, at.y);
  }
  file() { // dark on white, with the colors as such
    const svg = this.svg.cloneNode(true), before = root.dataset.theme ?? "";
    svg.querySelectorAll(".cross, .rubber").forEach(one => one.remove());
    svg.setAttribute("height", svg.getAttribute("viewBox").split(" ")[3]);
    svg.setAttribute("font-family", "Arial, Helvetica, 'Liberation Sans', sans-serif");
    svg.prepend(make("title", {}, svg, this.figure.title), make("rect", {width: "100%", height: "100%", fill: "#ffffff"}, svg));
    root.dataset.theme = "light";
    const colors = getComputedStyle(root), text = new XMLSerializer().serializeToString(svg)
      .replace(/var\((--\w+)\)/g, (_, name) => colors.getPropertyValue(name).trim());
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    return text;
  }
  download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([this.file()], {type: "image/svg+xml"}));
    link.download = this.element.id + ".svg";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}
for (const element of document.querySelectorAll("figure")) drawn.set(element.id, new Shown(element));
const drawAll = () => drawn.forEach(one => one.draw());
let width = 0;
new ResizeObserver(() => {
  const now = document.querySelector("main").clientWidth;
  if (now !== width && !printed) { width = now; drawAll(); }
}).observe(document.querySelector("main"));
drawAll();

document.addEventListener("pointerdown", event => {
  for (const one of drawn.values()) if (one.svg && !one.plot.contains(event.target)) leave(one.svg);
}, true);
const boxes = [...document.querySelectorAll("#chips input")];
function hide() {
  hidden.clear();
  for (const box of boxes) if (!box.checked) hidden.add(box.value);
  for (const row of document.querySelectorAll("table tbody tr"))
    if (!row.closest(".settings")) row.hidden = !shown(row.dataset.arm ?? row.cells[0].textContent);
  drawAll();
}
for (const box of boxes) box.addEventListener("change", hide);
document.querySelector("#chips button")?.addEventListener("click", () => { boxes.forEach(box => { box.checked = true; }); hide(); });

for (const head of document.querySelectorAll(".sortable th")) { // a click sorts by the column, another one the other way
  head.tabIndex = 0;
  const sort = () => {
    const body = head.closest("table").tBodies[0], down = head.getAttribute("aria-sort") !== "descending";
    const number = row => {
      const [, value, unit] = /^([-+−]?[\d.]+)([kMBTPEZ]?)/.exec(row.cells[head.cellIndex].textContent) ?? [];
      return value === undefined ? -Infinity : parseFloat(value.replace("−", "-")) * 1e3 ** " kMBTPEZ".indexOf(unit || " ");
    };
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
    const now = document.getElementById("log").checked ? cost + "-log" : cost;
    for (const figure of document.querySelectorAll(".switched figure")) figure.hidden = figure.id !== now;
    drawn.get(now).draw();
  });
document.getElementById("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
let before = null; // paper is white
addEventListener("beforeprint", () => { before = root.dataset.theme || ""; root.dataset.theme = "light"; printed = 680; drawAll(); });
addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; printed = 0; drawAll(); });
