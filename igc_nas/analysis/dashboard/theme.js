// Elements, colours, number formats, and what all plots share.

const COLOURS = ["#3b82f6", "#f59e0b", "#10b981", "#8b5cf6", "#06b6d4", "#a16207", "#84cc16", "#94a3b8"];
const ACCENT = "#e11d48", QUIET = "#8b93a1";
const SCALE = [[0, "#2563eb"], [0.5, "#c026d3"], [1, "#f59e0b"]];
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const touched = matchMedia("(pointer: coarse)").matches;  // on touch screens a drag scrolls the page
const isNarrow = () => innerWidth < 640;

const part = name => document.getElementById("igc-" + name);

// An element with its attributes and children. Children that are text become text nodes and are never parsed as HTML.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(child => child != null));
  return node;
}

// Let the browser save a text as a file.
function saveFile(name, type, text) {
  const link = el("a", {href: URL.createObjectURL(new Blob([text], {type})), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const named = text => el("bdi", {}, text);

// Text for plotly, which interprets some HTML tags in its labels.
const escaped = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function countText(value) {
  for (const [suffix, scale] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= scale) return Number((value / scale).toPrecision(4)) + suffix;
  }
  return String(value);
}

const exactText = value => value.toLocaleString("en-US");
const msText = value => value.toFixed(Math.min(9, Math.max(0, 2 - Math.floor(Math.log10(value))))) + " ms";
const percentText = value => (100 * value).toFixed(2) + " %";
const shareText = value => (100 * value).toFixed(0) + " %";
const plural = (count, word) => `${exactText(count)} ${word}${count === 1 ? "" : "s"}`;

function valueText(name, value) {
  if (value == null) return "";
  return name === "error" ? percentText(value) : name === "latency" ? msText(value) : countText(value);
}

function secondsText(value) {
  const seconds = Math.round(value), minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  return hours ? `${hours} h ${minutes % 60} min` : minutes ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
}

function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A layout in the page's colours, light or dark.
function themed(layout) {
  const [ink, line, card] = ["--ink", "--line", "--card"].map(colourOf);
  const out = {
    template: {}, margin: {l: 10, r: 10, t: 10, b: 10}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "closest", font: {family: FONT, size: 13, color: ink},
    showlegend: false,
    hoverlabel: {align: "left", bgcolor: card, bordercolor: line, font: {family: FONT, color: ink}},
    ...layout,
  };
  if (touched && !out.scene) out.dragmode = false;
  for (const axes of [out, out.scene ?? {}]) for (const [name, axis] of Object.entries(axes)) {
    if (/^[xyz]axis/.test(name)) Object.assign(axis, {gridcolor: line, zerolinecolor: line, linecolor: line});
  }
  return out;
}

// An objective's axis for `values`: a logarithmic one has ticks at 1, 2, 5, or at decades if the range is wide; within a
// decade, where few of these lie or none, plotly's own.
function axisOf(name, values = []) {
  const {label, log} = OBJECTIVES.get(name);
  const axis = {title: {text: label}, automargin: true};
  if (!log) return {...axis, type: "linear", tickformat: ".0%"};
  const [low, high] = extent(values), decades = Math.log10(high / low);
  const dtick = decades < 1 ? undefined : decades < (isNarrow() ? 2 : 4) ? "D2" : 1;
  return {...axis, type: "log", dtick, tickformat: name === "latency" ? "~g" : "~s"};
}

// Minimum and maximum of some numbers; null is ignored.
const extent = values => values.reduce(
  ([low, high], value) => value == null ? [low, high] : [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

const CONFIG = {responsive: true, displayModeBar: false};

function draw(name, traces, layout, label) {
  const place = part(name);
  place.setAttribute("aria-label", label);
  const known = traces.filter(trace => trace.x.length);
  drawKey(place, known);
  const drawn = Plotly.react(place, known, themed({uirevision: name, ...layout}), CONFIG);
  place.removeAllListeners("plotly_click");
  place.on("plotly_click", choose);
  return drawn;
}

const hidden = new Map();  // trace names that are hidden, by plot
const SYMBOLS = {
  circle: "M3 8a5 5 0 1 0 10 0a5 5 0 1 0 -10 0", square: "M4 4h8v8h-8z", diamond: "M8 2l6 6l-6 6l-6 -6z",
  triangle: "M3 4h10l-5 9z", x: "M4 4l8 8m0 -8l-8 8", cross: "M8 3v10m-5 -5h10", line: "M0 8h16",
};

// A plot's legend above it, usable by touch and keyboard, which plotly's own legend is not.
function drawKey(place, traces) {
  let key = place.previousElementSibling;
  if (!key?.classList.contains("legend")) {
    key = el("div", {class: "legend", role: "group", "aria-label": "What is drawn"});
    place.before(key);
  }
  if (!hidden.has(place.id)) hidden.set(place.id, new Set());
  const off = hidden.get(place.id);
  for (const trace of traces) trace.visible = off.has(trace.name) ? "legendonly" : true;
  const shown = traces.filter((trace, i) => trace.name && trace.showlegend !== false && traces.findIndex(
    other => other.name === trace.name && other.showlegend !== false) === i);
  key.hidden = shown.length < 2;
  key.replaceChildren(...shown.map(trace => el("button", {type: "button", "aria-pressed": String(!off.has(trace.name)), onclick: event => {
    if (!off.delete(trace.name)) off.add(trace.name);
    event.currentTarget.setAttribute("aria-pressed", String(!off.has(trace.name)));
    const rows = traces.flatMap((other, i) => other.name === trace.name ? [i] : []);
    Plotly.restyle(place, {visible: off.has(trace.name) ? "legendonly" : true}, rows);
  }}, swatch(trace), unescaped(trace.name))));
}

function swatch({mode, marker = {}, line = {}}) {
  const isLine = mode.includes("lines"), [shape, ...kind] = (isLine ? "line" : marker.symbol ?? "circle").split("-");
  const stroke = isLine || kind.length, filled = Array.isArray(marker.color) ? QUIET : marker.line?.color ?? marker.color;
  const colour = isLine ? line.color : filled;
  const mark = svg("path", {
    d: SYMBOLS[shape], fill: stroke ? "none" : colour, stroke: stroke ? colour : "none", "stroke-width": isLine ? line.width + 0.5 : 1.6,
    "stroke-dasharray": {dash: "4 3", dot: "2 2"}[line.dash] ?? "none"});
  return svg("svg", {viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true"}, mark);
}

const unescaped = text => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A list grouped by `key`: Map from key to its items, in order.
function grouped(list, key) {
  const groups = new Map();
  for (const item of list) {
    const name = key(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
}

// About `most` of a list, evenly.
const thinned = (list, most) => list.length <= most ? list
  : Array.from({length: most}, (_, i) => list[Math.floor(i * list.length / most)]);
