// The studies: columns decoded to one object per trial, and the fronts over any objectives.

const OBJECTIVES = new Map();  // name -> {label, log}
let studies = [], plans = {};

const texts = column => column.at.map(number => column.of[number]);

function decode(payload) {
  for (const [name, label, log] of payload.objectives) OBJECTIVES.set(name, {label, log});
  plans = payload.plans;
  studies = payload.studies.map((raw, place) => decodeStudy(raw, place));
}

function decodeStudy(raw, place) {
  const study = {...raw, place};
  const columns = {...raw.trials};
  for (const name of ["state", "baseline", "units", "form", "noise", "reason"]) columns[name] = texts(columns[name]);
  const {noisy, over, ...byRow} = columns;
  study.trials = columns.trial.map((_, row) => {
    const trial = {study};
    for (const name in byRow) trial[name] = byRow[name][row];
    trial.flops = trial.macs && 2 * trial.macs;
    return trial;
  });
  for (const row of noisy) study.trials[row].noisy = true;
  for (const row of over) study.trials[row].over = true;
  study.members = raw.front.map(row => study.trials[row]);
  for (const trial of study.members) trial.front = true;
  study.complete = study.trials.filter(trial => trial.state === "complete" && !trial.baseline);
  study.baselines = study.trials.filter(trial => trial.state === "complete" && trial.baseline);
  study.byNumber = new Map(study.trials.map(trial => [trial.trial, trial]));
  decodeForms(study, raw.forms);
  study.trials.filter(trial => trial.forms).forEach((trial, i) => { trial.epochs = raw.epochs[i]; });
  return study;
}

// The forms' columns as a list for each trial that has them.
function decodeForms(study, raw) {
  const names = texts(raw.form), chosen = new Set(raw.chosen);
  raw.trial.forEach((number, row) => {
    const trial = study.byNumber.get(number);
    (trial.forms ??= []).push({
      name: names[row], params: raw.params[row], macs: raw.macs[row], median: raw.median_ms[row],
      low: raw.low_ms[row], high: raw.high_ms[row], chosen: chosen.has(row),
    });
  });
}

// The trials that no other one dominates, by the first objective; of equal ones the first. In lexicographic order a
// trial can only be dominated by an earlier one.
function frontOf(trials, names) {
  const known = trials.filter(trial => trial.state === "complete" && !trial.over && !trial.baseline);
  known.sort((a, b) => {
    for (const name of names) if (a[name] !== b[name]) return a[name] - b[name];
    return a.trial - b.trial;
  });
  const [, ...rest] = names, kept = [];
  if (rest.length === 1) {
    let least = Infinity;
    for (const trial of known) if (trial[rest[0]] < least) { least = trial[rest[0]]; kept.push(trial); }
    return kept;
  }
  for (const trial of known) {
    if (!kept.some(other => rest.every(name => other[name] <= trial[name]))) kept.push(trial);
  }
  return kept;
}

const isMany = () => studies.length > 1;
const allTrials = () => studies.flatMap(study => study.trials);

// The architecture as text, as Python's `str` gives it: stem | stages | head.
function archText(arch) {
  if (!arch) return "";
  const head = plans.stages[arch.at(-2)];
  const words = [widthAfter(layersOf(arch[1]), 0), ...stagesOf(arch).map(stage => plans.stages[stage.text])];
  return [...words, ...(head ? [head] : [])].join(" | ");
}

function stagesOf(arch) {
  const stages = [];
  for (let at = 2; at < arch.length - 2; at += 4) {
    stages.push({text: arch[at], first: arch[at + 1], further: arch[at + 2], count: arch[at + 3]});
  }
  return stages;
}

// The layers of a block: [kind, ...fields], or {kind, channels, branches} of one with branches.
const layersOf = block => opened(plans.blocks[block]);
const opened = numbers => numbers.map(number => {
  if (!Array.isArray(number)) return plans.layers[number];
  if (typeof number[0] !== "string") return {kind: "Residual", branches: number.map(opened)};
  return {kind: number[0], channels: number[1], branches: number.slice(2).map(opened)};
});

// The channels behind layers, for those in front of them.
const widthAfter = (layers, before) => layers.reduce((channels, layer) => {
  if (layer.branches) {
    const split = layer.kind === "Split" ? [layer.channels, channels - layer.channels] : null;
    const widths = layer.branches.map((branch, i) => widthAfter(branch, split ? split[i] : channels));
    if (layer.kind === "Residual") return widths[0];
    return widths.reduce((sum, width) => sum + width) - (layer.kind === "DualPath" ? layer.channels : 0);
  }
  if (layer[0] === "Conv" || layer[0] === "Select") return layer[3];
  return layer[0] === "Subsample" ? channels + (layer[2] ?? 0) + (layer[3] ?? 0) : channels;
}, before);

// The side of the map behind layers, for that of the one in front of them.
const sideAfter = (layers, before) => layers.reduce((side, layer) => {
  if (layer.branches) return sideAfter(layer.branches.at(-1).length ? layer.branches.at(-1) : layer.branches[0], side);
  const window = (kernel, stride, padding) => Math.floor((side + 2 * padding - kernel) / stride) + 1;
  if (layer[0] === "Conv") return window(layer[4], layer[5], layer[7] ?? Math.floor(layer[4] / 2));
  if (layer[0] === "MaxPool" || layer[0] === "AvgPool") return window(layer[1], layer[2], layer[3] ?? 0);
  return layer[0] === "Subsample" ? Math.ceil(side / layer[1]) : side;
}, before);
