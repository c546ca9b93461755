// The other plots: hypervolume, forms, trainings, surrogate. All but the first show the selected study.

const MOST_LINES = 300;
const chosenStudy = () => studies[Number(part("study").value) || 0];

function drawVolume() {
  const over = part("over").value, timed = over === "time";
  const traces = studies.map(study => {
    const {trials, volumes, busy_s} = study.volume;
    const steps = (timed ? busy_s : trials).map((place, i) => [place, volumes[i]]).filter(([place]) => place != null);
    return {
      type: "scatter", mode: "lines", name: escaped(study.name), showlegend: isMany(), x: steps.map(([x]) => x),
      y: steps.map(([, y]) => y), hovertemplate: (timed ? "%{text}" : "after %{x} trials") + ": %{y:.4f}<extra></extra>",
      text: timed ? steps.map(([x]) => secondsText(x)) : undefined,
      line: {shape: "hv", color: isMany() ? COLOURS[study.place % COLOURS.length] : ACCENT, width: 2},
    };
  });
  const most = Math.max(1, ...traces.flatMap(trace => trace.x.slice(-1)));
  const [unit, words] = !timed ? [1, ""] : most > 7200 ? [3600, "hours"] : most > 120 ? [60, "minutes"] : [1, "seconds"];
  for (const trace of traces) trace.x = trace.x.map(x => x / unit);
  const known = traces.some(trace => trace.x.length);
  part("volume").hidden = !known;
  const note = known ? "" : timed && studies.some(study => study.volume.trials.length)
    ? "The times of these trials were not recorded."
    : "The study has no bounds yet: they are fixed when the latency scale is calibrated.";
  part("volume-note").textContent = note;
  if (!known) return;
  draw("volume", traces, {
    xaxis: {title: {text: timed ? `${words} in which trials ran` : "completed trials"}, automargin: true, rangemode: "tozero"},
    yaxis: {title: {text: "hypervolume"}, automargin: true, rangemode: "tozero"}, hovermode: "x",
  }, `Hypervolume over ${timed ? "time" : "completed trials"}: `
    + traces.map((trace, i) => `${studies[i].name} ends at ${trace.y.at(-1)}`).join("; "));
}

const FORM_COLOURS = {factored: COLOURS[7], folded: COLOURS[4], semidense: COLOURS[2], dense: COLOURS[1], mixed: COLOURS[0]};

function drawForms() {
  const study = chosenStudy(), trials = study.complete.filter(trial => trial.forms);
  const batch = study.batch, byForm = new Map();
  for (const trial of trials) for (const form of trial.forms) {
    if (!byForm.has(form.name)) byForm.set(form.name, []);
    byForm.get(form.name).push({trial, form});
  }
  const order = [...Object.keys(FORM_COLOURS), ...[...byForm.keys()].sort()];
  const names = [...byForm.keys()].sort((a, b) => order.indexOf(a) - order.indexOf(b));
  const rate = ({macs, median}) => macs * batch / median / 1e6;
  const point = (rows, style) => ({
    type: "scatter", mode: "markers", x: rows.map(({form}) => form.macs), y: rows.map(({form}) => form.median),
    customdata: rows.map(({trial}) => keyOf(trial)), hoverinfo: "text",
    text: rows.map(({trial, form}) => `<b>${escaped(nameText(trial))}</b> as ${escaped(form.name)}${form.chosen ? " (chosen)" : ""}<br>`
      + `${countText(form.macs)} MACs in ${msText(form.median)}: ${rate(form).toPrecision(3)} GMAC/s`), ...style,
  });
  const many = trials.length > 500;
  const traces = names.map((name, i) => {
    const rows = byForm.get(name), color = FORM_COLOURS[name] ?? COLOURS[i % COLOURS.length];
    return point(rows, {name: escaped(name), marker: {color, size: many ? 4 : 6, opacity: many ? 0.4 : 0.55, line: {width: 0}}});
  });
  const chosen = names.flatMap(name => byForm.get(name).filter(({form}) => form.chosen));
  const ring = {symbol: "circle-open", size: many ? 5 : 9, color: colourOf("--ink"), line: {width: 1}, opacity: many ? 0.5 : 0.9};
  traces.push({...point(chosen, {name: "the form that it runs in", marker: ring}), hoverinfo: "skip"});
  const all = trials.flatMap(trial => trial.forms);
  const lines = all.length ? speedLines(all, batch) : {traces: [], annotations: []};
  const slower = trials.filter(trial => trial.forms.length > 1).map(fewestMacsSlower).filter(value => value != null);
  const inverted = slower.filter(ratio => ratio > 1).length;
  part("forms-text").textContent = "Each candidate in each of its forms: the form’s MACs for one image against its time. "
    + (slower.length
      ? `In ${exactText(inverted)} of ${plural(slower.length, "candidate")} the form with the fewest MACs is not the fastest.`
      : "These candidates were timed in one form only.");
  part("forms-note").textContent = study.detailed < study.complete.length
    ? `The times of all forms are stored for ${exactText(study.detailed)} of ${exactText(study.complete.length)} candidates: `
      + "the front, and an even sample of the others." : "";
  draw("forms", [...lines.traces, ...traces], {
    xaxis: {...axisOf("macs", all.map(form => form.macs)), title: {text: "MACs of the form"}},
    yaxis: {...axisOf("latency", all.map(form => form.median)), title: {text: `time of a pass${batch > 1 ? ` of ${batch}` : ""} (ms)`}},
    annotations: lines.annotations,
  }, `Times of ${plural(trials.length, "candidate")} in ${plural(names.length, "form")} over their MACs. ${part("forms-text").textContent}`);
}

// Time of the form with the fewest MACs over the time of the fastest form.
function fewestMacsSlower({forms}) {
  const least = Math.min(...forms.map(form => form.macs)), best = Math.min(...forms.map(form => form.median));
  return Math.min(...forms.filter(form => form.macs === least).map(form => form.median)) / best;
}

// Lines of equal speed (MACs per second) across the plotted range, one or two per decade.
function speedLines(forms, batch) {
  let [[few, most], [fast, slow]] = [extent(forms.map(form => form.macs)), extent(forms.map(form => form.median))];
  [few, most, fast, slow] = [few / 1.3, most * 1.3, fast / 1.3, slow * 1.3];
  const traces = [], annotations = [];
  for (const rate of [-2, -1, 0, 1, 2, 3, 4].flatMap(power => isNarrow() ? [10 ** power] : [10 ** power, 3 * 10 ** power])) {
    const per = batch / rate / 1e6;  // ms per MAC
    const from = Math.max(few, fast / per), to = Math.min(most, slow / per);
    if (to / from < 1.5) continue;
    traces.push({type: "scatter", mode: "lines", x: [from, to], y: [from * per, to * per], hoverinfo: "skip",
      showlegend: false, line: {color: QUIET, width: 1, dash: "dot"}});
    const end = Math.log10(to) - 1e-6;  // at the very end of an axis plotly may leave it out
    annotations.push({x: end, y: end + Math.log10(per), text: `${Number(rate.toPrecision(1))} GMAC/s`, showarrow: false,
      xanchor: "right", yanchor: "bottom", font: {size: 11, color: QUIET}});
  }
  return {traces, annotations};
}

function drawCurves() {
  const study = chosenStudy(), {curves} = study;
  document.getElementById("trainings").hidden = !curves;
  if (!curves) return;
  const rows = curves.trial.map((number, row) => ({
    trial: study.byNumber.get(number), samples: curves.samples.of[curves.samples.at[row]], errors: curves.errors[row]}));
  const pruned = thinned(rows.filter(({trial}) => trial.state === "pruned"), MOST_LINES);
  const front = rows.filter(({trial}) => trial.front);
  const usual = rows.filter(({trial}) => trial.state === "complete" && !trial.front);
  const some = thinned(usual, MOST_LINES);
  const faint = some.length > 100 ? 0.25 : 0.45;
  draw("curves", [
    curveTrace(some, "complete", {mode: "lines", line: {color: COLOURS[0], width: 1}, opacity: faint}),
    curveTrace(pruned, "pruned", {mode: "lines", line: {color: QUIET, width: 1, dash: "dot"}, opacity: 0.6, showlegend: false}),
    curveTrace(pruned.map(row => ({...row, samples: row.samples.slice(-1), errors: row.errors.slice(-1)})), "pruned",
      {mode: "markers", marker: {symbol: "x-thin", size: 8, line: {width: 2, color: QUIET}}}),
    curveTrace(front, "the study’s front",
      {mode: "lines+markers", line: {color: ACCENT, width: 1.5}, marker: {size: 5}}),
  ], {
    xaxis: {title: {text: "images seen"}, automargin: true, rangemode: "tozero", tickformat: "~s"},
    yaxis: {title: {text: OBJECTIVES.get("error").label}, automargin: true, tickformat: ".0%"},
  }, `Held-out error over the images seen: ${plural(usual.length + front.length, "complete training")}, `
    + `${plural(rows.length - usual.length - front.length, "pruned one")}.`);
  const ends = pruned.length ? " A dotted line that ends in a cross was pruned there." : "";
  part("curves-text").textContent = `The held-out error of each training at its rungs and at its end.${ends} `
    + "A rung may be scored on fewer images than the end.";
  part("curves-note").textContent = some.length < usual.length
    ? `Drawn are the front and an even sample of ${exactText(some.length)} of ${exactText(usual.length)} other complete trainings.` : "";
}

// Many trainings as one trace: the points of each, then a gap.
function curveTrace(rows, name, style) {
  const x = [], y = [], customdata = [], text = [];
  for (const {trial, samples, errors} of rows) {
    samples.forEach((at, i) => {
      x.push(at); y.push(errors[i]); customdata.push(keyOf(trial));
      text.push(`<b>trial ${trial.trial}</b>, ${escaped(trial.state)}<br>${percentText(errors[i])} after ${exactText(at)} images`);
    });
    x.push(null); y.push(null); customdata.push(null); text.push("");
  }
  return {type: "scatter", name, legendgroup: name, x, y, customdata, text, hoverinfo: "text", ...style};
}

function drawSurrogate() {
  const study = chosenStudy(), {surrogate} = study;
  part("surrogate-plot").hidden = !surrogate;
  part("surrogate-text").textContent = surrogate
    ? `The surrogate of --sampler known-cost, evaluated on the completed trials: ${surrogate.sentence}.`
    : `${plural(study.complete.length, "completed trial")}: too few to evaluate how well the surrogate predicts errors.`;
  if (!surrogate) return;
  const both = [...surrogate.observed, ...surrogate.expected], ends = [Math.min(...both), Math.max(...both)];
  draw("surrogate-plot", [{
    type: "scatter", mode: "markers", name: "leave-one-out prediction with its 95 % interval", x: surrogate.observed, y: surrogate.expected,
    customdata: surrogate.trial.map(number => keyOf(study.byNumber.get(number))), hoverinfo: "text",
    text: surrogate.trial.map((number, i) => `<b>trial ${number}</b><br>observed ${percentText(surrogate.observed[i])}, predicted `
      + `${percentText(surrogate.expected[i])} ± ${percentText(1.96 * surrogate.std[i])}`),
    error_y: {type: "data", thickness: 1, width: 0, color: QUIET, array: surrogate.std.map(std => 1.96 * std)},
    marker: {color: COLOURS[0], size: 6, opacity: 0.8},
  }, {
    type: "scatter", mode: "lines", name: "predicted = observed", x: ends, y: ends, hoverinfo: "skip",
    line: {color: ACCENT, width: 1.5, dash: "dash"},
  }], {
    xaxis: {title: {text: "observed held-out error"}, automargin: true, tickformat: ".0%"},
    yaxis: {title: {text: "predicted error"}, automargin: true, tickformat: ".0%"},
  }, `Predicted against observed error. ${surrogate.sentence}`);
}
