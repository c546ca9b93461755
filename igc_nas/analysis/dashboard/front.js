// The front: every trial over any two or three objectives.

const MOST_BARS = 300, MOST_DOMINATED = 3000, MOST_UNFINISHED = 1000;
const UNITS = ["igcv1", "igcv2", "igcv3", "conv"];
const UNFINISHED = {
  pruned: {symbol: "triangle-down-open", words: "pruned"},
  infeasible: {symbol: "x-thin", words: "infeasible"},
  failed: {symbol: "cross-thin", words: "failed"},
};

// The settings above the plot.
function frontChoices() {
  const axes = [part("x").value, part("y").value, part("z").value].filter(Boolean);
  return {
    axes, colour: part("colour").value, dominated: part("dominated").checked, unfinished: part("unfinished").checked,
    papers: part("papers").checked, baselines: part("baselines").checked,
  };
}

// A trial's value on an axis; for the error of a pruned trial, the predicted final error.
const placed = (trial, name) => name === "error" ? trial.error ?? trial.expected : trial[name];

function mixColour(mix) {
  const mixes = [];
  for (let bits = 1; bits < 8; bits++) mixes.push(UNITS.filter((_, i) => bits >> i & 1).join("+"));
  const order = mixes.sort((a, b) => a.split("+").length - b.split("+").length);
  const place = order.indexOf(mix.replace(/\+?conv$/, ""));
  return COLOURS[place < 0 ? 7 : place];
}

function pointTrace(trials, axes, style) {
  const trace = {
    type: axes.length === 3 ? "scatter3d" : "scatter", mode: "markers", hoverinfo: "text",
    customdata: trials.map(keyOf), text: trials.map(hoverText), ...style,
  };
  axes.forEach((name, i) => { trace["xyz"[i]] = trials.map(trial => placed(trial, name)); });
  return trace;
}

const bars = trials => ({
  type: "data", symmetric: false, thickness: 1, width: 0, color: QUIET,
  array: trials.map(trial => trial.high - trial.latency), arrayminus: trials.map(trial => trial.latency - trial.low),
});

function withBars(trace, trials, axes) {
  const at = axes.indexOf("latency");
  return at < 0 ? trace : {...trace, ["error_" + "xyz"[at]]: bars(trials)};
}

// The completed trials, in groups of one colour each: mixes of units, or studies; or all by an objective.
function cloud(trials, axes, colour) {
  const solid = axes.length === 3, many = trials.length > 1000;
  const size = solid ? (many ? 2.5 : 4) : many ? 5 : 8;
  const marker = {size, opacity: many ? 0.55 : 0.75, line: {width: 0}};
  const all = !solid && trials.length <= MOST_BARS;
  if (OBJECTIVES.has(colour)) {
    const values = trials.map(trial => OBJECTIVES.get(colour).log ? Math.log10(trial[colour]) : trial[colour]);
    const style = {name: "trials", marker: {...marker, color: values, coloraxis: "coloraxis"}, showlegend: false};
    const trace = pointTrace(trials, axes, style);
    return [all ? withBars(trace, trials, axes) : trace];
  }
  const groups = grouped(trials, trial => colour === "study" ? trial.study.place : trial.units);
  const keys = colour === "study" ? studies.map(study => study.place) : [...groups.keys()].sort(
    (a, b) => a.split("+").length - b.split("+").length || a.localeCompare(b));
  return keys.filter(key => groups.has(key)).map(key => {
    const own = groups.get(key);
    const look = colour === "study" ? {color: COLOURS[key % COLOURS.length]}
      : {color: mixColour(key), symbol: key.includes("conv") ? "square" : "circle"};
    const name = colour === "study" ? studies[key].name : key;
    const trace = pointTrace(own, axes, {name: escaped(name), marker: {...marker, ...look}});
    return all ? withBars(trace, own, axes) : trace;
  });
}

function frontLines(axes) {
  return studies.map(study => {
    const front = frontOf(study.trials, axes);
    const color = isMany() ? COLOURS[study.place % COLOURS.length] : ACCENT;
    const name = "front of these axes" + (isMany() ? `: ${escaped(study.name)}` : "");
    if (axes.length === 3) {
      const marker = {symbol: "diamond", size: 4, color, line: {width: 0}};
      return pointTrace(front, axes, {name, marker});
    }
    const line = {shape: "hv", color, width: 1.5};
    return {...pointTrace(front, axes, {name, line}), mode: "lines", hoverinfo: "skip"};
  });
}

function memberRings(axes) {
  const trials = studies.flatMap(study => study.members);
  const objectives = new Set(studies.map(study => study.objectives.join(", ")));
  const own = isMany() ? "the studies’ fronts" : "the study’s front";
  const name = objectives.size === 1 ? `${own} (${[...objectives][0]})` : own;
  const marker = {symbol: "circle-open", size: 11, color: ACCENT, line: {width: 1.5}};
  return withBars({...pointTrace(trials, axes, {name, marker}), hoverinfo: "skip"}, trials, axes);
}

// Trials that did not complete: at their values; if one of them is unknown, at the end of that axis; else left out.
function unfinishedTraces(axes) {
  const traces = [], left = {sampled: 0, unknown: 0}, solid = axes.length === 3;
  for (const [state, {symbol, words}] of Object.entries(UNFINISHED)) {
    const all = allTrials().filter(trial => trial.state === state);
    const known = all.filter(trial => axes.filter(name => placed(trial, name) == null).length <= (solid ? 0 : 1));
    const some = thinned(known, MOST_UNFINISHED);
    left.unknown += all.length - known.length;
    left.sampled += known.length - some.length;
    const marker = solid ? {symbol: symbol.split("-")[0].replace("triangle", "circle"), size: 3, color: QUIET, opacity: 0.35}
      : {symbol, size: 7, color: QUIET, line: {width: 1.5, color: QUIET}, opacity: 0.9};
    const inside = some.filter(trial => axes.every(name => placed(trial, name) != null));
    const shown = {legendgroup: state, marker};
    traces.push(pointTrace(inside, axes, {...shown, name: words}));
    if (solid) continue;
    axes.forEach((name, i) => {
      const edge = some.filter(trial => placed(trial, name) == null && placed(trial, axes[1 - i]) != null);
      const trace = pointTrace(edge, axes, {...shown, name: words, showlegend: !inside.length && i === 1});
      trace["xy"[i]] = edge.map(() => 0.985);
      trace[i ? "yaxis" : "xaxis"] = i ? "y2" : "x2";
      traces.push(trace);
    });
  }
  return [traces, left];
}

function noisyTrace(axes, trials) {
  const noisy = axes.includes("latency") ? trials.filter(trial => trial.noisy) : [];
  const marker = {symbol: "x-thin", size: 7, line: {width: 1.5, color: ACCENT}};
  return {...pointTrace(noisy, axes, {name: "noisy latency", marker}), hoverinfo: "skip"};
}

function papersTrace(axes) {
  const rows = new Map();
  for (const {papers} of studies) papers.name.forEach((name, row) => rows.set(name, {papers, row}));
  const known = [...rows.values()].filter(({papers}) => axes.every(name => papers.columns[name]));
  known.sort((a, b) => a.papers.columns[axes[0]]?.[a.row] - b.papers.columns[axes[0]]?.[b.row]);
  const text = known.map(({papers, row}, i) => escaped(papers.name[row]) + (i % 3 === 2 ? "<br> " : ""));  // neighbours
  const textposition = known.map((_, i) => i % 3 === 1 ? "bottom left" : "top left");  // apart: above, below, higher
  const hover = known.map(({papers, row}) => {
    const take = name => papers.columns[name][row];
    return `<b>${escaped(papers.name[row])}</b><br>${escaped(papers.source[row])}<br>printed test error `
      + `${percentText(take("error"))}: not comparable with proxy errors<br>${exactText(take("params"))} parameters · `
      + `${countText(take("macs"))} MACs`;
  });
  const trace = {
    type: axes.length === 3 ? "scatter3d" : "scatter", mode: known.length > 8 ? "markers" : "markers+text", text,
    hovertext: hover, hoverinfo: "text", textposition, textfont: {size: 11, color: QUIET}, cliponaxis: false,
    name: "the papers’ networks (printed test errors)", marker: {symbol: "diamond-open", size: 10, color: QUIET, line: {width: 2}},
  };
  axes.forEach((name, i) => { trace["xyz"[i]] = known.map(({papers, row}) => papers.columns[name][row]); });
  return trace;
}

// The baselines: networks that the study evaluated under its own conditions, by name. A name that finds no free place
// beside its point is shown when the pointer is over it.
function baselinesTrace(axes, span) {
  const trials = studies.flatMap(study => study.baselines), ink = colourOf("--ink");
  const values = name => ({values: trials.map(trial => trial[name]), span: span(name), log: OBJECTIVES.get(name).log});
  const places = axes.length === 3 ? trials.map(() => "top center")
    : labelPlaces(part("front"), trials.map(trial => trial.baseline), axes.map(values));
  const trace = pointTrace(trials, axes, {
    name: "baselines, trained and measured alike", hovertext: trials.map(hoverText), cliponaxis: false,
    textposition: places.map(place => place ?? "top right"), textfont: {size: 11, color: ink},
    marker: {symbol: "diamond", size: axes.length === 3 ? 4 : 9, color: ink, line: {width: 0}},
  });
  return {...trace, mode: "markers+text", text: trials.map((trial, i) => places[i] ? escaped(trial.baseline) : "")};
}

// For each named point where its name stands without covering another name or leaving the plot, by estimated widths;
// or null. `axes` has the values of the points on each axis, all values that the axis spans, and whether it is a log axis.
function labelPlaces(box, names, axes) {
  const width = box.clientWidth - 90, height = box.clientHeight - 90, taken = [];
  const [xs, ys] = axes.map(({values, span, log}, i) => {
    const scale = log ? Math.log10 : value => value, [low, high] = extent(span.filter(value => value != null).map(scale));
    return values.map(value => (scale(value) - low) / (high - low || 1) * (i ? height : width));
  });
  return names.map((name, i) => {
    const [x, y, wide] = [xs[i], ys[i], 6.3 * name.length];
    for (const place of ["top right", "bottom right", "top left", "bottom left"]) {
      const left = place.endsWith("right") ? x + 5 : x - 5 - wide, low = place.startsWith("top") ? y + 3 : y - 17;
      const rect = [left, left + wide, low, low + 14];
      if (rect[0] < 0 || rect[1] > width) continue;
      if (taken.some(other => rect[0] < other[1] && other[0] < rect[1] && rect[2] < other[3] && other[2] < rect[3])) continue;
      taken.push(rect);
      return place;
    }
    return null;
  });
}

function budgetLines(axes) {
  return axes.flatMap((name, i) => {
    const limits = new Set(studies.map(study => study.limits[name]).filter(Boolean));
    const [along, across] = i ? ["y", "x"] : ["x", "y"];
    return [...limits].map(value => ({
      type: "line", line: {color: QUIET, width: 1.5, dash: "dash"},
      [along + "ref"]: along, [along + "0"]: value, [along + "1"]: value,
      [across + "ref"]: "paper", [across + "0"]: 0, [across + "1"]: 1,
      label: {
        text: `budget ${valueText(name, value)}`, textangle: 0, font: {color: QUIET, size: 11},
        textposition: "start", xanchor: i ? "left" : "right", yanchor: "bottom",
      },
    }));
  });
}

function colourBar(name, trials) {
  const {label, log} = OBJECTIVES.get(name);
  const shades = trials.map(trial => log ? Math.log10(trial[name]) : trial[name]);
  const [low, high] = extent(shades);
  const ticks = [0, 1, 2, 3, 4].map(part => low + (high - low) * part / 4);
  return {
    colorscale: SCALE, cmin: low, cmax: high,
    colorbar: {
      title: {text: label, side: "top"}, tickvals: ticks, orientation: "h", thickness: 10, len: 0.9, y: -0.2,
      yanchor: "top", outlinewidth: 0, ticktext: ticks.map(tick => valueText(name, log ? Math.round(10 ** tick * 1000) / 1000 : tick)),
    },
  };
}

function drawFront() {
  const {axes, colour, dominated, unfinished, papers, baselines} = frontChoices();
  const complete = studies.flatMap(study => study.complete), here = new Set(studies.flatMap(study => frontOf(study.trials, axes)));
  const kept = complete.filter(trial => trial.front || here.has(trial));
  const rest = dominated ? thinned(complete.filter(trial => !trial.front && !here.has(trial)), MOST_DOMINATED) : [];
  const shown = [...rest, ...kept];
  const [others, left] = unfinished ? unfinishedTraces(axes) : [[], {sampled: 0, unknown: 0}];
  const solid = axes.length === 3;
  const beside = baselines ? studies.flatMap(study => study.baselines) : [];
  const span = name => [...[...shown, ...beside].map(trial => trial[name]), ...(papers ? [papersTrace([name]).x].flat() : [])];
  const traces = [
    ...others, ...cloud(shown, axes, colour), ...frontLines(axes),
    ...(solid ? [] : [memberRings(axes), noisyTrace(axes, shown)]), ...(papers ? [papersTrace(axes)] : []),
    ...(baselines ? [baselinesTrace(axes, span)] : []),
  ];
  const layout = {uirevision: axes.join(), coloraxis: OBJECTIVES.has(colour) ? colourBar(colour, shown) : undefined};
  if (solid) {
    const far = isNarrow() ? 1.7 : 1;
    layout.scene = {aspectmode: "cube", camera: {
      eye: {x: 1.45 * far, y: 1.35 * far, z: 0.75 * far}, center: {x: 0, y: 0, z: -0.2}}};
    axes.forEach((name, i) => { layout.scene["xyz"[i] + "axis"] = {...axisOf(name, shown.map(trial => trial[name])), nticks: 4}; });
  } else {
    layout.xaxis = axisOf(axes[0], span(axes[0]));
    layout.yaxis = axisOf(axes[1], span(axes[1]));
    const edge = {range: [0, 1], visible: false, fixedrange: true};
    layout.xaxis2 = {...edge, overlaying: "x"};
    layout.yaxis2 = {...edge, overlaying: "y"};
    layout.shapes = budgetLines(axes);
    layout.annotations = pointer(axes);
  }
  const words = axes.map(name => OBJECTIVES.get(name).label);
  const label = `${plural(complete.length, "completed trial")} over ${words.join(", ")}; ${plural(here.size, "trial")} on `
    + "the front of these axes. The table of trials has every value.";
  const drawn = draw("front", traces, layout, label);
  const missing = studies.filter(study => study.against).map(
    study => (isMany() ? `${study.name}: ` : "") + study.against[0].toUpperCase() + study.against.slice(1) + ".");
  if (dominated && rest.length < complete.length - kept.length) {
    missing.push(`Of ${exactText(complete.length)} completed trials the fronts are drawn, and an even sample of `
      + `${exactText(rest.length)} of the others.`);
  }
  if (left.sampled) missing.push(`Of the trials that did not complete an even sample is drawn; ${exactText(left.sampled)} are left out.`);
  if (left.unknown) missing.push(`${plural(left.unknown, "trial")} that did not complete: values on these axes are unknown.`);
  part("front-note").textContent = missing.join(" ");
  return drawn;
}

// An annotation at the point of the trial that is open in the detail dialog.
function pointer(axes) {
  const at = shownTrial && axes.length === 2 ? axes.map(name => placed(shownTrial, name)) : [null];
  if (at.some(value => value == null)) return [];
  const [x, y] = at.map((value, i) => OBJECTIVES.get(axes[i]).log ? Math.log10(value) : value);
  const [ink, card] = ["--ink", "--card"].map(colourOf);
  return [{x, y, text: escaped(nameText(shownTrial)), ax: 28, ay: -32, arrowhead: 0, arrowwidth: 1.5, arrowcolor: ink, standoff: 7,
    bgcolor: card, bordercolor: ink, borderpad: 3, font: {size: 12}}];
}

const pointOut = () => Plotly.relayout(part("front"), {annotations: pointer(frontChoices().axes)});

function fillFrontControls() {
  const names = [...OBJECTIVES].map(([name, {label}]) => [name, label]);
  const [first, second] = studies[0].objectives;
  options(part("x"), names, second);
  options(part("y"), names, first);
  options(part("z"), [["", "none"], ...names], "");
  const groups = [["units", "mix of units"], ...(isMany() ? [["study", "study"]] : [])];
  options(part("colour"), [...groups, ...names], isMany() ? "study" : "units");
  part("baselines-label").hidden = !studies.some(study => study.baselines.length);
  part("papers-label").hidden = !studies.some(study => study.papers.name.length);
  let before = {x: second, y: first, z: ""};
  for (const axis of "xyz") part(axis).addEventListener("change", event => {
    const value = event.target.value;  // if another axis shows this value, the two axes swap values
    const twin = [..."xyz"].find(other => other !== axis && value && part(other).value === value);
    if (twin) part(twin).value = before[axis] || names.map(([name]) => name).find(name => ![..."xyz"].some(a => part(a).value === name));
    before = {x: part("x").value, y: part("y").value, z: part("z").value};
    redrawFront();
  });
  for (const name of ["colour", "dominated", "unfinished", "papers", "baselines"]) part(name).addEventListener("change", redrawFront);
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => el("option", {value}, text)));
  select.value = chosen;
}

// Switching between two and three dimensions needs a new plot.
let wasSolid = false;
function redrawFront() {
  const solid = part("z").value !== "";
  if (solid !== wasSolid) Plotly.purge(part("front"));
  wasSolid = solid;
  return drawFront();
}
