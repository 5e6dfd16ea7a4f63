"use strict";
// Draws a figure from its numbers at the width that there is, so that its text has the same size on every screen.
const TEXT = 12, NARROW = 560; // pixels
const ruler = document.createElement("canvas").getContext("2d");

function widthOf(text, size = TEXT) {
  ruler.font = `${size}px sans-serif`;
  return ruler.measureText(text).width * 1.05;
}
function shortened(text, room) {
  if (widthOf(text) <= room) return text;
  while (text.length > 1 && widthOf(text + "…") > room) text = text.slice(0, -1);
  return text + "…";
}
function make(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== "" && value !== null) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}
const UNITS = [[1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]];
function show(value) {
  if (value === 0) return "0";
  for (const [unit, letter] of UNITS)
    if (Math.abs(value) >= unit) return Number((value / (unit === 1e4 ? 1e3 : unit)).toPrecision(4)) + letter;
  return String(Number(value.toPrecision(5)));
}
const scale = (v, [low, high, log]) => log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
const unscale = (s, [low, high, log]) => log ? low * Math.pow(high / low, s) : low + s * (high - low);

function ticks([low, high, log], room, base, fixed) { // [value, text] of marks, at most about `room` of them
  const inside = values => values.filter(v => scale(v, [low, high, log]) > -1e-9 && scale(v, [low, high, log]) < 1 + 1e-9);
  if (fixed) {
    const kept = inside(fixed), every = Math.ceil(kept.length / Math.max(1, room));
    return kept.filter((_, i) => i % every === 0).map(v => [v, show(v)]);
  }
  if (log && high / low > 3) {
    const powers = [], first = Math.floor(Math.log(low) / Math.log(base)), last = Math.ceil(Math.log(high) / Math.log(base));
    const within = base === 10 && last - first <= 3 ? [1, 2, 5] : [1], every = Math.ceil((last - first) / Math.max(1, room));
    for (let i = first; i <= last; i += every) powers.push(...within.map(part => part * Math.pow(base, i)));
    return inside(powers).map(v => [v, show(v)]);
  }
  const rough = (high - low) / Math.max(1, room), power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = power * [1, 2, 2.5, 5, 10].find(part => part * power >= rough * 0.999), values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step);
  const [unit, letter] = (([size, sign]) => sign === "k" ? [1e3, "k"] : [size, sign])(
    UNITS.find(([size]) => Math.max(Math.abs(low), Math.abs(high)) >= size) ?? [1, ""]);
  let digits = 0;
  while (digits < 8 && Math.abs(step / unit * 10 ** digits - Math.round(step / unit * 10 ** digits)) > 1e-6) digits++;
  return values.map(v => [v, Math.abs(v) < step / 2 ? "0" : (v / unit).toFixed(digits) + letter]);
}

function apart(heights, low, high, gap) { // ascending heights, moved as little as needed until they are `gap` apart
  const moved = [];
  for (const height of heights) moved.push(Math.max(Math.min(Math.max(height, low), high), moved.length ? moved[moved.length - 1] + gap : low));
  for (let i = moved.length - 1, limit = high; i >= 0; limit = moved[i--] - gap) moved[i] = Math.min(moved[i], limit);
  return moved;
}

function visible(axes, view, shown) { // the axes with what is shown of them, in the part that is looked at
  const rows = axes.rows.filter(shown);
  const place = row => axes.rows.length ? rows.indexOf(axes.rows[row]) : row;
  const own = one => shown(one.arm ?? one.label);
  const series = axes.series.filter(own).map(one => axes.rows.length ? {...one, y: one.y.map(place)} : one);
  const notes = axes.notes.filter(one => !one.arm || shown(one.arm)).map(one =>
    ({...one, row: place(one.row), below: one.kind === "words" && series.some(other => other.label === one.arm)}));
  const y = axes.rows.length ? [-0.6, Math.max(rows.length, 1) - 0.4, false] : view?.y ?? axes.y;
  return {...axes, rows, series, notes, x: view?.x ?? axes.x, y};
}

function layout(axes, width, height, narrow) { // margins around the box, marks, and the lines of a legend
  const names = [...new Map(axes.series.filter(one => one.kind !== "quiet").map(one => [one.label, one])).values()];
  const legend = [];
  if ((narrow || !axes.named) && !axes.rows.length && (narrow || axes.alone)) {
    let at = Infinity;
    for (const one of names) {
      const needed = widthOf(one.label) + 34;
      if (at + needed > width) { legend.push([]); at = 0; }
      legend[legend.length - 1].push([at, one]);
      at += needed;
    }
  }
  const [xTitle, yTitle] = axes.labels, rows = axes.rows.length;
  const yTicks = rows ? axes.rows.map((name, i) => [i, shortened(name, 0.36 * width)])
    : ticks(axes.y, Math.max(2, Math.floor(height / 48)), 10, null);
  const left = Math.max(...yTicks.map(([, text]) => widthOf(text)), 10) + 8 + (yTitle ? 20 : 0);
  const right = axes.named && !narrow ? Math.max(...names.map(one => widthOf(one.label)), 0) + 14 : 16;
  const inner = width - left - right;
  let xTicks = ticks(axes.x, Math.max(2, Math.floor(inner / 68)), axes.base, axes.ticks), turned = 0;
  if (axes.names.length) {
    xTicks = axes.names.map((name, i) => [i, name]).filter(([i]) => i >= axes.x[0] && i <= axes.x[1]);
    const widest = Math.max(...xTicks.map(([, name]) => widthOf(name)), 0);
    if (widest > inner / Math.max(1, xTicks.length) - 8) turned = 0.6 * widest;
  }
  const top = (axes.title ? 22 : 8) + 20 * legend.length;
  return {legend, left, right, top, bottom: 22 + turned + (xTitle ? 20 : 0), xTicks, yTicks, turned};
}

function path(points) {
  return points.map(([x, y], i) => `${i && points[i - 1][1] !== null ? "L" : "M"}${x.toFixed(1)} ${y === null ? 0 : y.toFixed(1)}`)
    .filter((_, i) => points[i][1] !== null).join("");
}

function series(group, axes, one, at) { // at(x, y): where a point lies
  const color = one.color, points = one.x.map((x, i) => one.y[i] === null ? [0, null] : at(x, one.y[i]));
  if (one.kind === "line" && one.low) {
    const outline = [...one.x.map((x, i) => at(x, one.high[i])), ...one.x.map((x, i) => at(x, one.low[i])).reverse()];
    make("path", {d: path(outline) + "Z", fill: color, "fill-opacity": 0.18, class: "band"}, group);
  }
  if (one.kind === "line" || one.kind === "quiet")
    make("path", {d: path(points), fill: "none", stroke: color, "stroke-width": one.kind === "quiet" ? 1.2 : 2, "data-label": one.label,
      "stroke-dasharray": one.dash ?? "", "stroke-opacity": one.opacity ?? "", "stroke-linejoin": "round", class: one.kind}, group);
  if (one.kind === "points" || one.mark)
    for (const [x, y] of points)
      if (y !== null) make("circle", {cx: x.toFixed(1), cy: y.toFixed(1), r: one.mark ? 2.6 : 4, fill: color, "fill-opacity": one.mark ? "" : 0.75}, group);
}

function bars(group, axes, at) { // groups of bars, with a point for each seed
  const shown = axes.series.filter(one => one.kind === "bars"), width = 0.8 / Math.max(1, shown.length);
  shown.forEach((one, number) => one.y.forEach((value, name) => {
    if (value === null) return;
    const start = name - 0.4 + width * number, [x, y] = at(start + 0.05 * width, value);
    const [end, floor] = at(start + 0.95 * width, Math.max(0, axes.y[0])), middle = (x + end) / 2;
    make("rect", {x, y: Math.min(y, floor), width: end - x, height: Math.abs(floor - y), fill: one.color, "fill-opacity": 0.6}, group);
    for (const seed of one.seeds[name]) make("circle", {cx: middle, cy: at(0, seed)[1], r: 2.4, fill: one.color}, group);
  }));
}

function note(group, box, one, at) {
  const [left, top, width, height] = box;
  if (one.kind === "rule") {
    const [x, y] = one.across ? at(null, one.at) : at(one.at, null);
    make("path", {d: one.across ? `M${left} ${y}h${width}` : `M${x} ${top}v${height}`, stroke: one.color, "stroke-dasharray": one.dash}, group);
  } else if (one.kind === "median") {
    const [x, y] = at(one.x, one.row);
    make("path", {d: `M${x} ${y - 9}v18`, stroke: one.color, "stroke-width": 3}, group);
  } else if (one.kind === "words") {
    make("text", {x: left + width - 4, y: at(null, one.row)[1] + (one.below ? 18 : 4), "text-anchor": "end", fill: one.color, "font-size": 11}, group, one.text);
  } else if (one.kind === "span") {
    const [[x, y], [end, floor]] = [at(one.x[0], one.y[0]), at(one.x[1], one.y[1])], long = Math.hypot(end - x, floor - y) || 1;
    const [along, down] = [(end - x) / long, (floor - y) / long], size = Math.min(7, long / 2);
    const head = (px, py, way) => `M${px + way * size * along - size / 2 * down} ${py + way * size * down + size / 2 * along}L${px} ${py}` +
      `L${px + way * size * along + size / 2 * down} ${py + way * size * down - size / 2 * along}`;
    make("path", {d: `M${x} ${y}L${end} ${floor}${head(x, y, 1)}${head(end, floor, -1)}`, fill: "none", stroke: "var(--ink)", "stroke-width": 1.6}, group);
    const upright = Math.abs(end - x) < 1, half = widthOf(one.text, 16) / 2, middle = (x + end) / 2 - (upright ? half + 8 : 0);
    make("text", {x: Math.min(left + width - half, Math.max(left + half, middle)), y: upright ? (y + floor) / 2 + 5 : y + 19,
      "text-anchor": "middle", fill: "var(--ink)", "font-size": 16, "font-weight": 700}, group, one.text);
  }
}

function ends(svg, axes, box, at) { // names beside the ends of lines, pushed apart where they would overlap
  const [left, top, width, height] = box, columns = [], known = [];
  for (const one of axes.series) {
    if (one.kind === "quiet" || (one.kind === "points" && axes.series.some(other => other.kind === "line"))) continue;
    const inside = one.x.map((x, i) => [x, one.y[i]]).filter(([x, y]) => y !== null && x <= axes.x[1] && x >= axes.x[0]);
    if (!inside.some(([, y]) => y >= axes.y[0] && y <= axes.y[1])) continue;
    const heights = inside.map(([, y]) => y).sort((a, b) => a - b);
    const value = one.kind === "line" ? inside[inside.length - 1][1]
      : one.kind === "bars" ? heights.reduce((sum, y) => sum + y, 0) / heights.length : heights[Math.floor(heights.length / 2)];
    const [x, y] = at(one.kind === "bars" ? axes.x[1] : inside[inside.length - 1][0], value);
    known.push([x > left + 0.85 * width ? left + width : x, y, one]);
  }
  for (const one of known.sort((a, b) => a[0] - b[0])) {
    if (!columns.length || one[0] - columns[columns.length - 1][0][0] > 60) columns.push([]);
    columns[columns.length - 1].push(one);
  }
  for (const column of columns) {
    column.sort((a, b) => a[1] - b[1]);
    const heights = apart(column.map(one => one[1]), top, top + height, TEXT + 2), across = Math.max(...column.map(one => one[0]));
    column.forEach(([, , one], i) => make("text", {x: across + 7, y: heights[i] + 4, fill: one.color}, svg, one.label));
  }
}

function drawAxes(svg, axes, left, top, width, height, narrow, id) { // returns the axes with the box that they got
  const room = layout(axes, width, height, narrow), box = [left + room.left, top + room.top, width - room.left - room.right, height];
  const [x0, y0, w, h] = box;
  const at = (x, y) => [x === null ? x0 : x0 + scale(x, axes.x) * w, y === null ? y0 : y0 + (1 - scale(y, axes.y)) * h];
  room.legend.forEach((line, number) => line.forEach(([from, one]) => {
    const y = top + (axes.title ? 22 : 8) + 20 * number;
    make("path", {d: `M${left + from} ${y}h18`, stroke: one.color, "stroke-width": 3, "stroke-dasharray": one.dash ?? "", "stroke-opacity": one.opacity ?? ""}, svg);
    make("text", {x: left + from + 23, y: y + 4, fill: "var(--ink)"}, svg, one.label);
  }));
  if (axes.title) make("text", {x: x0, y: top + 12, fill: "var(--ink)"}, svg, axes.title);
  const grid = make("g", {stroke: "var(--grid)"}, svg), words = make("g", {fill: "var(--ink)"}, svg);
  for (const [value, text] of room.xTicks) {
    const [x] = at(value, null), y = y0 + h + 17;
    if (!axes.names.length) make("path", {d: `M${x} ${y0}v${h}`}, grid);
    make("text", room.turned ? {x, y, "text-anchor": "end", transform: `rotate(-35 ${x} ${y})`} : {x, y, "text-anchor": "middle"}, words, text);
  }
  for (const [value, text] of room.yTicks) {
    const [, y] = at(null, value), own = axes.rows.length ? axes.series.find(one => one.label === axes.rows[value]) : null;
    make("path", {d: `M${x0} ${y}h${w}`}, grid);
    make("text", {x: x0 - 7, y: y + 4, "text-anchor": "end", fill: own ? own.color : ""}, words, text);
  }
  make("path", {d: `M${x0} ${y0}v${h}h${w}`, fill: "none", stroke: "var(--ink)"}, svg);
  const [xTitle, yTitle] = axes.labels, middle = y0 + h / 2;
  if (xTitle) make("text", {x: x0 + w / 2, y: y0 + h + room.bottom - 4, "text-anchor": "middle"}, words, xTitle);
  if (yTitle) make("text", {x: left + 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 ${left + 11} ${middle})`,
    "font-size": Math.min(TEXT, TEXT * (h + 20) / widthOf(yTitle))}, words, yTitle);
  const clip = make("clipPath", {id}, svg);
  make("rect", {x: x0 - 4, y: y0 - 4, width: w + 8, height: h + 8}, clip);
  const inside = make("g", {"clip-path": `url(#${id})`}, svg);
  for (const one of axes.notes) if (one.kind === "rule") note(inside, box, one, at);
  bars(inside, axes, at);
  for (const one of axes.series) series(inside, axes, one, at);
  for (const one of axes.notes) if (one.kind !== "rule") note(inside, box, one, at);
  if (axes.named && !narrow && !axes.rows.length) ends(svg, axes, box, at);
  return {...axes, box, series: axes.series.filter(one => one.kind !== "quiet"), bottom: y0 + h + room.bottom};
}

// Draws into `place` and returns the axes with their boxes; views: what is looked at of each, null for all of it.
function drawFigure(place, id, figure, views, width, shown) {
  const narrow = width < NARROW, svg = make("svg", {width, "font-size": TEXT, "font-family": "sans-serif", class: "drawn"}, place);
  const whole = figure.widths.reduce((sum, one) => sum + one, 0), sets = [];
  let left = 0, top = 0, bottom = 0;
  figure.axes.forEach((axes, number) => {
    const now = {...visible(axes, views[number], shown), alone: figure.axes.length === 1};
    const own = narrow ? width : width * figure.widths[number] / whole - (number < figure.axes.length - 1 ? 16 : 0);
    const height = axes.rows.length ? (now.notes.some(one => one.below) ? 42 : 30) * Math.max(now.rows.length, 1) + 8 : narrow ? 240 : Math.max(200, 95 * figure.height - 60);
    const drawn = drawAxes(svg, now, left, top, own, height, narrow, `${id}-clip-${number}`);
    sets.push(drawn);
    bottom = Math.max(bottom, drawn.bottom);
    if (narrow) top = drawn.bottom + 12; else left += own + 16;
  });
  svg.setAttribute("viewBox", `0 0 ${width} ${Math.ceil(bottom + 4)}`);
  return sets;
}
