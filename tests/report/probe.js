// Runs in the page and tells the frame around it what a reader finds there (test_browser.py).
const wrong = [];
addEventListener("error", event => wrong.push(event.message || "a resource did not load"), true);
console.error = (...page) => wrong.push(page.join(" "));
const rgb = (element, name) => getComputedStyle(element)[name].match(/[\d.]+/g).map(Number);
const press = (plot, key) => plot.dispatchEvent(new KeyboardEvent("keydown", {key}));
const visibleNames = name => [...new Set([...document.querySelectorAll(`#${name} svg text`)].map(one => one.textContent))];

function looked(figure) { // what a reader finds in a figure
  const one = drawn.get(figure.id), hidden = figure.hidden, plot = one.plot, tip = document.getElementById("tip");
  figure.hidden = false;
  one.draw();
  const svg = one.svg, box = svg.getBoundingClientRect(), axes = one.sets[0];
  const pointer = (type, i, j, buttons) => {
    const at = new DOMPoint(axes.box[0] + axes.box[2] * i, axes.box[1] + axes.box[3] * j).matrixTransform(one.svg.getScreenCTM());
    one.svg.dispatchEvent(new PointerEvent(type, {clientX: at.x, clientY: at.y, bubbles: true, pointerId: 1, buttons}));
  };
  let seen = "";
  for (let i = 1; i < 40 && !seen; i++) for (let j = 1; j < 40 && !seen; j++) {
    pointer("pointermove", i / 40, j / 40);
    if (!tip.hidden) seen = tip.textContent;
  }
  plot.dispatchEvent(new PointerEvent("pointerleave"));
  const left = tip.hidden;
  press(plot, "ArrowLeft");
  const keyed = tip.hidden ? "" : tip.textContent;
  press(plot, "Escape");
  const escaped = tip.hidden, texts = [...svg.querySelectorAll("text")];
  const cut = texts.filter(text => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1;
  }).map(text => text.textContent);
  const small = Math.min(...texts.map(text => parseFloat(getComputedStyle(text).fontSize) * box.width / svg.viewBox.baseVal.width));
  const ink = getComputedStyle(svg.querySelector("g[fill='var(--ink)'] text")).fill, paths = svg.querySelectorAll("path").length;
  const zoomed = {};
  plot.setPointerCapture = () => {};
  zoomed.before = [...one.sets[0].x];
  pointer("pointerdown", 0.25, 0.5, 1);
  pointer("pointermove", 0.75, 0.5, 1);
  pointer("pointerup", 0.75, 0.5, 0);
  zoomed.after = [...one.sets[0].x];
  zoomed.log = one.sets[0].x[2];
  figure.querySelector(".tools button:nth-child(3)").click();
  zoomed.reset = [...one.sets[0].x];
  const file = one.file(), parsed = new DOMParser().parseFromString(file, "image/svg+xml");
  const found = {left, keyed, escaped, cut, zoomed, width: box.width, height: box.height, tip: seen,
    small, ink, paths,
    file: {good: !parsed.querySelector("parsererror"), variables: file.includes("var("), dark: file.includes("#e6edf3")}};
  figure.hidden = hidden;
  return found;
}
addEventListener("load", () => {
  const page = {figures: {}, wrong, loaded: performance.getEntriesByType("resource").map(one => one.name)};
  page.paper = rgb(document.body, "backgroundColor"); page.ink = rgb(document.body, "color");
  page.inner = innerWidth; page.scroll = document.documentElement.scrollWidth;
  page.summary = [document.querySelector("#summary").scrollWidth, document.querySelector("main").clientWidth];
  for (const figure of document.querySelectorAll("figure")) page.figures[figure.id] = looked(figure);

  document.querySelector("#chips input[value=plain]").click();
  const rows = [...document.querySelectorAll("tbody tr")].filter(row => !row.closest(".settings"));
  page.hidden = {
    rows: rows.filter(row => !row.hidden && (row.dataset.arm ?? row.cells[0].textContent) === "plain").length,
    others: rows.filter(row => row.hidden && (row.dataset.arm ?? row.cells[0].textContent) !== "plain").length,
    series: [...drawn.values()].flatMap(one => one.sets ?? []).flatMap(axes => axes.series).filter(one => (one.arm ?? one.label) === "plain").length,
    names: [...drawn.keys()].filter(name => visibleNames(name).includes("plain")),
  };
  document.querySelector("#chips button").click();
  page.back = rows.filter(row => row.hidden).length + [...drawn.keys()].filter(name => visibleNames(name).includes("plain")).length * 100;

  [...document.querySelectorAll("#details th")].find(one => one.textContent === "final loss").click();
  page.sorted = [...document.querySelectorAll("#details tbody b")].map(one => one.textContent);
  [...document.querySelectorAll("#summary th")].find(one => one.textContent === "FLOPs").click();
  page.costs = [...document.querySelectorAll("#summary tbody b")].map(one => one.textContent);
  document.querySelector("input[value=loss-flops]").click();
  page.switched = [document.getElementById("loss-tokens").hidden, document.getElementById("loss-flops").hidden];
  document.getElementById("log").click();
  page.log = [...document.querySelectorAll(".switched figure")].filter(one => !one.hidden).map(one => one.id);
  dispatchEvent(new Event("beforeprint"));
  page.printed = [drawn.get("answer").svg.viewBox.baseVal.width, rgb(document.body, "backgroundColor")[0]];
  dispatchEvent(new Event("afterprint"));
  page.again = drawn.get("answer").svg.viewBox.baseVal.width;
  document.getElementById("theme").click();
  page.other = rgb(document.body, "backgroundColor");
  parent.postMessage(JSON.stringify(page), "*");
});
