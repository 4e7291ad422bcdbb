"use strict";
// Where the values of a chart stand on its axes.

const MARGIN = { top: 20, right: 12, bottom: 34, left: 56 };
const data = JSON.parse(document.getElementById("curves").textContent);
const settings = { axis: "epoch", smoothing: 0 };
const logarithmic = new Set(data.charts.filter((chart) => chart.log));

function format(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? Number(value.toPrecision(2)).toExponential() : String(Number(value.toPrecision(4)));
}

// The unit of the x axis: its name, its size in recorded units, and a place on it in words.
function xUnit() {
  if (settings.axis !== "seconds") return { name: settings.axis, size: 1, words: (x) => `${settings.axis} ${format(x)}` };
  const longest = Math.max(0, ...data.tracks.map((track) => track.seconds?.at(-1) ?? 0));
  const [name, size] = [["h", 3600], ["min", 60], ["s", 1]].find(([, seconds]) => longest >= 2 * seconds || seconds === 1);
  return { name: `training time (${name})`, size, words: (x) => `${format(x)} ${name}` };
}

// The points of a curve: x, y as drawn, the value as recorded, and its place along the track.
function pointsOf(series, chart) {
  const track = data.tracks[series.track], xs = track[settings.axis], unit = xUnit();
  const weight = chart.noisy && track.split === "train" ? settings.smoothing : 0;
  const found = [];
  let sum = 0, weights = 0;
  series.values.forEach((raw, place) => {
    if (raw === null || !xs) return;
    sum = weight * sum + (1 - weight) * raw;
    weights = weight * weights + (1 - weight);
    const y = weight ? sum / weights : raw;
    if (raw > 0 || !logarithmic.has(chart)) found.push({ x: xs[place] / unit.size, y, raw, place });
  });
  return found;
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

// The axes of a chart at a size in pixels; undefined if there is nothing to draw. Charts with the same title have the same axes.
function scalesOf(chart, width, height) {
  const alike = data.charts.filter((one) => one.title === chart.title);
  const points = alike.flatMap((one) => one.series.flatMap((series) => pointsOf(series, chart)));
  if (!points.length) return undefined;
  const least = (values) => values.reduce((a, b) => Math.min(a, b)), most = (values) => values.reduce((a, b) => Math.max(a, b));
  const ys = points.flatMap((point) => [point.y, point.raw]), right = most(points.map((point) => point.x)) || 1;
  const log = logarithmic.has(chart), place = log ? Math.log10 : (value) => value;
  const bounds = log ? [least(ys) / 1.15, most(ys) * 1.15] : [Math.min(0, least(ys)), most(ys) > 0 ? most(ys) : 1];
  const [low, high] = bounds.map(place);
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  return {
    x: (value) => MARGIN.left + (value / right) * inner.width,
    y: (value) => MARGIN.top + (1 - (place(value) - low) / (high - low)) * inner.height,
    xTicks: linearTicks(0, right), yTicks: (log ? logTicks : linearTicks)(...bounds), right, inner,
  };
}
