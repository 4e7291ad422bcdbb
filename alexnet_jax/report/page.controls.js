// What a reader can change: the axis, the smoothing, logarithmic scales and the colours. And the shown data as CSV.

const holders = [...document.querySelectorAll(".chart")];
const chartOf = (holder) => data.charts[Number(holder.dataset.chart)];
const drawAll = () => holders.forEach((holder) => draw(holder, chartOf(holder)));

function csv(chart) {
  const layered = chart.series.some((series) => series.layer), smoothed = settings.smoothing > 0;
  const quoted = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
  const head = ["run", "split", ...(layered ? ["layer"] : []), "step", "epoch", "seconds", chart.title, ...(smoothed ? ["smoothed"] : [])];
  const lines = chart.series.flatMap((series) => {
    const track = data.tracks[series.track];
    return pointsOf(series, chart).map(({ y, raw, place }) => [
      track.run, track.split, ...(layered ? [series.layer] : []), track.step[place], track.epoch[place], track.seconds?.[place], raw,
      ...(smoothed ? [y] : []),
    ]);
  });
  return [head, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
}

function download(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A box for the logarithmic scale of a chart and of those alike, and a button for its data.
function addControls(holder) {
  const chart = chartOf(holder), label = document.createElement("label"), box = document.createElement("input");
  box.type = "checkbox";
  box.checked = logarithmic.has(chart);
  box.addEventListener("change", () => {
    for (const other of holders.filter((one) => chartOf(one).title === chart.title)) {
      logarithmic[box.checked ? "add" : "delete"](chartOf(other));
      other.querySelector("input").checked = box.checked;
      draw(other, chartOf(other));
    }
  });
  label.append(box, " logarithmic");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "CSV";
  button.setAttribute("aria-label", `${chart.title} as CSV`);
  button.addEventListener("click", () => download(`${chart.title.replace(/[^a-z0-9]+/gi, "_")}.csv`, csv(chart)));
  holder.querySelector("figcaption").append(label, button);
}

function start() {
  const axis = document.getElementById("axis"), smoothing = document.getElementById("smoothing");
  const timeless = [...new Set(data.tracks.filter((track) => !track.seconds).map((track) => track.run))];
  if (data.tracks.every((track) => !track.seconds)) axis.querySelector("[value=seconds]").remove();
  axis.addEventListener("change", () => {
    settings.axis = axis.value;
    document.getElementById("timeless").textContent =
      axis.value === "seconds" && timeless.length ? `recorded no time: ${timeless.join(", ")}` : "";
    drawAll();
  });
  smoothing.addEventListener("input", () => {
    settings.smoothing = Number(smoothing.value);
    document.querySelector("output").textContent = smoothing.value;
    drawAll();
  });
  const scheme = document.getElementById("scheme");
  scheme.addEventListener("change", () => { document.documentElement.style.colorScheme = scheme.value; });
  document.documentElement.classList.add("live");
  for (const holder of holders) {
    addControls(holder);
    let width = holder.clientWidth;
    draw(holder, chartOf(holder));
    new ResizeObserver(() => {
      if (holder.clientWidth === width) return;
      width = holder.clientWidth;
      requestAnimationFrame(() => draw(holder, chartOf(holder))); // drawing inside the observer would trigger it again
    }).observe(holder);
  }
}

start();
