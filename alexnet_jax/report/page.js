"use strict";
// Draws the charts at the width of the page, and shows the values under the pointer or, with the arrow keys, at each epoch.

const MARGIN = { top: 8, right: 12, bottom: 34, left: 56 };

function make(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.appendChild(element);
  return element;
}

function text(parent, content, attributes) {
  make("text", attributes, parent).textContent = content;
}

function format(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? Number(value.toPrecision(2)).toExponential() : String(Number(value.toPrecision(4)));
}

function linearTicks(low, high) {
  const rough = (high - low) / 5 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) found.push(Number(tick.toPrecision(6)));
  return found;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low), found = [];
  const every = Math.max(1, Math.ceil(decades / 6)), between = decades < 1.5 ? [1, 2, 5] : [1];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += every)
    found.push(...between.map((factor) => factor * 10 ** power).filter((tick) => tick >= low && tick <= high));
  return found;
}

function scales(chart, width, height) {
  const points = chart.series.flatMap((series) => series.points);
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  const least = (values) => values.reduce((a, b) => Math.min(a, b)), most = (values) => values.reduce((a, b) => Math.max(a, b));
  const right = most(xs) || 1;
  const bounds = chart.log ? [least(ys) / 1.15, most(ys) * 1.15] : [Math.min(0, least(ys)), most(ys) || 1];
  const yTicks = (chart.log ? logTicks : linearTicks)(...bounds);
  const place = chart.log ? Math.log10 : (value) => value;
  const [low, high] = bounds.map(place);
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  return {
    x: (value) => MARGIN.left + (value / right) * inner.width,
    y: (value) => MARGIN.top + (1 - (place(value) - low) / (high - low || 1)) * inner.height,
    xTicks: linearTicks(0, right), yTicks, inner,
  };
}

function draw(holder, chart) {
  const width = holder.clientWidth, height = Math.max(220, Math.min(320, width * 0.6));
  holder.querySelector("svg.plot")?.remove();
  const viewBox = `0 0 ${width} ${height}`;
  const svg = make("svg", { class: "plot", width, height, viewBox, role: "img", tabindex: 0, "aria-label": chart.title });
  holder.insertBefore(svg, holder.querySelector(".legend"));
  if (!chart.series.some((series) => series.points.length)) {
    text(svg, "nothing recorded", { x: MARGIN.left, y: height / 2 });
    return;
  }
  const { x, y, xTicks, yTicks, inner } = scales(chart, width, height);
  const bottom = MARGIN.top + inner.height;
  for (const tick of yTicks) {
    make("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick), stroke: "#e5e5e5" }, svg);
    text(svg, format(tick), { x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" });
  }
  for (const tick of xTicks) text(svg, format(tick), { x: x(tick), y: bottom + 16, "text-anchor": "middle" });
  text(svg, "epoch", { x: MARGIN.left + inner.width / 2, y: height - 3, "text-anchor": "middle" });
  make("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom, stroke: "#555" }, svg);
  for (const series of chart.series) {
    const path = series.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
    make("polyline", { points: path, fill: "none", stroke: series.colour, "stroke-width": 1.8, "stroke-dasharray": series.dash }, svg);
    if (series.points.length === 1)
      make("circle", { cx: x(series.points[0][0]), cy: y(series.points[0][1]), r: 3, fill: series.colour }, svg);
  }
  hover(holder, svg, chart, x, y);
}

function closest(points, epoch) {
  return points.reduce((best, point) => (Math.abs(point[0] - epoch) < Math.abs(best[0] - epoch) ? point : best));
}

function hover(holder, svg, chart, x, y) {
  const filled = chart.series.filter((series) => series.points.length);
  const epochs = [...new Set(filled.flatMap((series) => series.points.map((point) => point[0])))].sort((a, b) => a - b);
  const cursor = make("g", {}, svg);
  let shown = -1;
  holder.querySelector(".tip")?.remove();
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  holder.appendChild(tip);

  function show(number) {
    shown = Math.max(0, Math.min(epochs.length - 1, number));
    const epoch = epochs[shown], at = x(epoch);
    cursor.replaceChildren();
    make("line", { x1: at, x2: at, y1: MARGIN.top, y2: svg.clientHeight - MARGIN.bottom, stroke: "#888" }, cursor);
    tip.replaceChildren(`epoch ${format(epoch)}`);
    for (const series of filled) {
      const [when, value] = closest(series.points, epoch);
      if (Math.abs(x(when) - at) > svg.clientWidth / 8) continue; // the curve has no point near here
      make("circle", { cx: x(when), cy: y(value), r: 3.5, fill: series.colour }, cursor);
      const line = document.createElement("div"), swatch = document.createElement("i");
      swatch.style.background = series.colour;
      line.append(swatch, `${series.name}: ${format(value)}`);
      tip.appendChild(line);
    }
    tip.hidden = false;
    const left = at > holder.clientWidth / 2 ? at - tip.offsetWidth - 10 : at + 10;
    tip.style.left = `${Math.max(0, Math.min(holder.clientWidth - tip.offsetWidth, left))}px`;
  }

  function hide() {
    tip.hidden = true;
    cursor.replaceChildren();
  }

  function follow(event) {
    const at = event.clientX - svg.getBoundingClientRect().left;
    let best = 0;
    epochs.forEach((epoch, number) => { if (Math.abs(x(epoch) - at) < Math.abs(x(epochs[best]) - at)) best = number; });
    show(best);
  }

  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { show(shown + step); event.preventDefault(); }
  });
}

function legend(holder, chart) {
  const box = document.createElement("div");
  box.className = "legend";
  for (const series of chart.series) {
    const entry = document.createElement("span");
    const line = make("svg", { width: 26, height: 8 });
    make("line", { x1: 0, x2: 26, y1: 4, y2: 4, stroke: series.colour, "stroke-width": 2.5, "stroke-dasharray": series.dash }, line);
    entry.append(line, series.name);
    box.appendChild(entry);
  }
  holder.appendChild(box);
}

const charts = JSON.parse(document.getElementById("charts").textContent);
for (const holder of document.querySelectorAll(".chart")) {
  const chart = charts[Number(holder.dataset.chart)];
  legend(holder, chart);
  let width = holder.clientWidth;
  draw(holder, chart);
  new ResizeObserver(() => {
    if (holder.clientWidth === width) return;
    width = holder.clientWidth;
    requestAnimationFrame(() => draw(holder, chart)); // drawing inside the observer would trigger it again
  }).observe(holder);
}
