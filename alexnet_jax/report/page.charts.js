// Draws the charts at the width of the page, and shows the values under the pointer or, with the arrow keys, from point to point.

const APART = 70; // labels of drops that are nearer to each other than this are left out

function make(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.appendChild(element);
  return element;
}

function text(parent, content, attributes) {
  make("text", attributes, parent).textContent = content;
}

function draw(holder, chart) {
  const width = holder.clientWidth, height = Math.max(220, Math.min(320, width * 0.6));
  const old = holder.querySelector("svg.plot");
  const label = `${chart.title}: the left and right arrow keys read the values`;
  const svg = make("svg", { class: "plot", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": label });
  old.replaceWith(svg);
  holder.querySelector(".tip")?.remove();
  const scales = scalesOf(chart, width, height);
  if (!scales) {
    text(svg, "nothing recorded", { x: MARGIN.left, y: height / 2 });
    return;
  }
  frame(svg, scales, width, height);
  if (chart.drops) drops(svg, scales);
  for (const series of chart.series) curve(svg, series, pointsOf(series, chart), scales);
  read(holder, svg, chart, scales);
}

function frame(svg, { x, y, xTicks, yTicks, inner }, width, height) {
  const bottom = MARGIN.top + inner.height, ends = { x1: MARGIN.left, x2: width - MARGIN.right };
  for (const tick of yTicks) {
    make("line", { class: "grid", ...ends, y1: y(tick), y2: y(tick) }, svg);
    text(svg, format(tick), { x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" });
  }
  for (const tick of xTicks) text(svg, format(tick), { x: x(tick), y: bottom + 16, "text-anchor": "middle" });
  text(svg, xUnit().name, { x: MARGIN.left + inner.width / 2, y: height - 3, "text-anchor": "middle" });
  make("line", { class: "axis", ...ends, y1: bottom, y2: bottom }, svg);
}

function drops(svg, { x, right, inner }) {
  let labelled = -APART;
  const places = data.drops.filter((drop) => drop[settings.axis] !== null);
  for (const drop of places.sort((a, b) => a[settings.axis] - b[settings.axis])) {
    const at = x(drop[settings.axis] / xUnit().size);
    if (at > x(right)) continue;
    make("line", { class: `drop c${drop.colour}`, x1: at, x2: at, y1: MARGIN.top, y2: MARGIN.top + inner.height }, svg);
    if (at - labelled < APART) continue;
    text(svg, `rate ${format(drop.rate)}`, { x: at, y: MARGIN.top - 6, "text-anchor": "middle" });
    labelled = at;
  }
}

function curve(svg, series, points, { x, y }) {
  const line = (kind, places) => {
    const path = places.map(([left, value]) => `${x(left).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    make("polyline", { class: `line ${kind} c${series.colour}`, points: path, "stroke-dasharray": series.dash }, svg);
  };
  if (points.some((point) => point.raw !== point.y)) line("raw", points.map((point) => [point.x, point.raw]));
  line("", points.map((point) => [point.x, point.y]));
  if (points.length <= 12) for (const point of points) dot(svg, series, point, { x, y }, 2.5);
}

function dot(parent, series, point, { x, y }, r) {
  make("circle", { class: `dot c${series.colour}`, cx: x(point.x), cy: y(point.y), r }, parent);
}

function closest(points, at) {
  return points.reduce((best, point) => (Math.abs(point.x - at) < Math.abs(best.x - at) ? point : best));
}

// Shows the values nearest to the pointer, each with its own place on the axis.
function read(holder, svg, chart, scales) {
  const { x } = scales, unit = xUnit();
  const curves = chart.series.map((series) => [series, pointsOf(series, chart)]).filter(([, points]) => points.length);
  const stops = [...new Set(curves.flatMap(([, points]) => points.map((point) => point.x)))].sort((a, b) => a - b);
  const cursor = make("g", {}, svg), tip = document.createElement("div");
  let shown = -1;
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  holder.appendChild(tip);

  function show(number) {
    shown = Math.max(0, Math.min(stops.length - 1, number));
    const at = x(stops[shown]);
    cursor.replaceChildren();
    tip.replaceChildren();
    make("line", { class: "cursor", x1: at, x2: at, y1: MARGIN.top, y2: MARGIN.top + scales.inner.height }, cursor);
    for (const [series, points] of curves) {
      const point = closest(points, stops[shown]);
      if (Math.abs(x(point.x) - at) > svg.clientWidth / 8) continue; // the curve has no point near here
      dot(cursor, series, point, scales, 3.5);
      const line = document.createElement("div"), swatch = document.createElement("span");
      swatch.className = `swatch c${series.colour}`;
      const recorded = point.raw === point.y ? "" : ` (smoothed from ${format(point.raw)})`;
      line.append(swatch, `${series.name}: ${format(point.y)}${recorded} at ${unit.words(point.x)}`);
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
    show(stops.reduce((best, stop, number) => (Math.abs(x(stop) - at) < Math.abs(x(stops[best]) - at) ? number : best), 0));
  }

  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const target = { ArrowLeft: shown - 1, ArrowRight: shown + 1, Home: 0, End: stops.length - 1 }[event.key];
    if (target === undefined) return;
    show(target);
    event.preventDefault();
  });
}
