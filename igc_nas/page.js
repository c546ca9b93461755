"use strict";
const page = JSON.parse(document.getElementById("igc-data").textContent);
const config = {responsive: true, displayModeBar: false};
const touched = matchMedia("(pointer: coarse)").matches;  // there a drag is to scroll the page, not to zoom
const isLog = name => name !== "error";

function filled(trace, axes, colour) {
  const {role, bars} = trace.meta;
  const table = role === "papers" ? page.papers : page.points;
  let rows = trace.meta.rows;
  if (role === "front") rows = page.pairs[axes.join()].front;
  if (role === "noisy" && !axes.includes("latency")) rows = [];
  const take = column => column ? rows.map(row => column[row]) : [];
  const out = {...trace};
  axes.forEach((name, i) => {
    const axis = "xyz"[i];
    out[axis] = take(table[name]);
    if (bars && name === "latency") out["error_" + axis] = {
      ...page.bars,
      array: rows.map(row => table.high[row] - table.latency[row]),
      arrayminus: rows.map(row => table.latency[row] - table.low[row]),
    };
  });
  if (trace.hoverinfo === "text") out.text = take(table.hover);
  if (role === "points" && colour !== "units") {
    const color = take(table[colour]).map(value => isLog(colour) ? Math.log10(value) : value);
    Object.assign(out, {marker: {...trace.marker, color, coloraxis: "coloraxis"}, showlegend: false});
  }
  return out;
}

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line, card] = ["--ink", "--line", "--card"].map(name => style.getPropertyValue(name).trim());
  const out = structuredClone(layout);
  out.font.color = ink;
  if (touched && !out.scene) out.dragmode = false;
  out.hoverlabel = {...out.hoverlabel, bgcolor: card, bordercolor: line, font: {...out.hoverlabel.font, color: ink}};
  for (const axes of [out, out.scene ?? {}]) for (const name of ["xaxis", "yaxis", "zaxis"]) {
    if (axes[name]) Object.assign(axes[name], {gridcolor: line, zerolinecolor: line, linecolor: line});
  }
  return out;
}

const part = name => document.getElementById("igc-" + name);
let chosen = {x: part("x").value, y: part("y").value, colour: part("colour").value};

function drawFlat() {
  const axes = [chosen.x, chosen.y];
  const layout = themed(page.pairs[axes.join()].layout);
  layout.uirevision = axes.join();
  layout.legend.uirevision = "kept";
  if (chosen.colour !== "units") layout.coloraxis = page.scales[chosen.colour];
  Plotly.react("igc-flat", page.flat.map(trace => filled(trace, axes, chosen.colour)), layout, config);
}

function drawOthers() {
  for (const [name, {data, layout}] of Object.entries(page.figures)) {
    if (part(name)) Plotly.react("igc-" + name, data, themed(layout), config);
  }
  const {axes, traces, layout} = page.solid;
  const solid = {...themed(layout), uirevision: "kept"};
  const eye = solid.scene.camera.eye;
  if (innerWidth < 600) for (const axis of "xyz") eye[axis] *= 1.7;
  Plotly.react("igc-solid", traces.map(trace => filled(trace, axes, "units")), solid, config);
}

for (const name of ["x", "y", "colour"]) part(name).addEventListener("change", event => {
  const before = chosen[name], other = {x: "y", y: "x"}[name];
  chosen[name] = event.target.value;
  if (other && chosen[other] === chosen[name]) part(other).value = chosen[other] = before;
  drawFlat();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawFlat(); drawOthers(); });
drawFlat();
drawOthers();
