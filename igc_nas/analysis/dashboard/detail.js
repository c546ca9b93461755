// The detail dialog of a trial: costs, forms, training, diagram, and the command that exports it.

let opener = null, shownTrial = null;

function showDetail(trial, from = null) {
  const dialog = part("detail");
  opener = from ?? opener ?? document.activeElement;
  shownTrial = trial;
  dialog.replaceChildren(...detailOf(trial));
  dialog.scrollTop = 0;
  if (!dialog.open) isNarrow() ? dialog.showModal() : dialog.show();
  mark(trial);
  pointOut();
  dialog.querySelector("h2").focus({preventScroll: true});
}

function closeDetail() {
  const dialog = part("detail");
  if (dialog.open) dialog.close();
}

function detailOf(trial) {
  const close = el("button", {type: "button", class: "close", "aria-label": "Close", onclick: closeDetail}, "×");
  const tag = (text, is, kind = "tag") => is ? el("span", {class: kind}, text) : null;
  const tags = [tag(stateText(trial), true, "tag soft"), tag("on the front", trial.front), tag("knee", trial.study.knee === trial.trial),
    tag("noisy", trial.noisy, "tag soft"), isMany() ? named(trial.study.name) : null];
  const title = el("h2", {id: "igc-detail-title", tabindex: -1}, `Trial ${trial.trial}`);
  return [
    el("div", {class: "bar-top"}, title, close),
    el("p", {class: "tags"}, ...tags.filter(Boolean)),
    trial.arch ? el("p", {class: "arch"}, el("code", {}, archText(trial.arch))) : null,
    trial.arch ? el("p", {class: "note"}, trial.study.legend) : null,
    trial.reason ? el("p", {}, trial.reason) : null,
    factsOf(trial), ...commandOf(trial), ...formsOf(trial), ...trainingOf(trial),
    ...(trial.arch ? [el("h3", {}, "Architecture"), el("p", {class: "note"}, DIAGRAM_NOTE), diagram(trial.arch)] : []),
  ].filter(Boolean);
}

function factsOf(trial) {
  const facts = [
    ["id", trial.id], ["held-out error", trial.error != null && percentText(trial.error)],
    ["predicted final error when pruned", trial.expected != null && percentText(trial.expected)],
    ["parameters", trial.params != null && exactText(trial.params)], ["MACs", trial.macs != null && exactText(trial.macs)],
    ["activations", trial.activations != null && exactText(trial.activations)],
    ["latency, normalised [95 %]", latencyText(trial)], ["latency, raw", trial.median != null && msText(trial.median)], ["runs as", formText(trial)], ["noisy because", trial.noise],
    ["took", trial.wall_s && secondsText(trial.wall_s)],
  ].filter(([, value]) => value);
  return el("dl", {}, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function commandOf(trial) {
  if (!trial.arch) return [];
  const {argument: name, stored} = trial.study;
  const complete = trial.state === "complete" || trial.study.in_database_only;  // `show` reads folders only
  const text = complete ? `igc-nas export ${name} --pick trial:${trial.trial} -o arch.toml${stored}` : `igc-nas show ${name}:${trial.trial}`;
  const words = text.split(" ").flatMap((word, i) => [...(i ? [" "] : []), el("span", {}, word)]);  // a line ends between words
  const code = el("code", {tabindex: 0}, ...words), said = el("span", {class: "note", role: "status"});
  const button = el("button", {type: "button", onclick: async () => { said.textContent = await copied(text, code); }}, "Copy");
  const save = el("button", {type: "button", class: "toml", onclick: () => saveToml(trial)}, "Download TOML");
  return [el("h3", {}, complete ? "Export" : "Show"), el("div", {class: "command"}, el("pre", {}, code), button, save), said];
}

// The architecture as the file that `igc-nas export` writes and every command reads; above it a comment says whose.
function saveToml({study, trial, id, toml}) {
  const text = toml.map(table => plans.tables[table]).join("\n");
  saveFile(`${study.name}-${trial}.toml`, "application/toml", `# ${study.name}, trial ${trial}, id ${id}\n\n${text}`);
}

// Copy text to the clipboard; if the browser refuses, select it.
async function copied(text, code) {
  try {
    await navigator.clipboard.writeText(text);
    return "Copied.";
  } catch {
    getSelection().selectAllChildren(code);
    return "Selected: press Ctrl+C (⌘C) to copy.";
  }
}

function formsOf(trial) {
  if (!trial.forms && trial.state === "complete") {
    const command = `igc-nas show ${trial.study.argument}:${trial.trial} --json`;
    if (trial.study.in_database_only) return [];
    return [el("p", {class: "note"}, "This page does not include the times of its forms; ", el("code", {}, command), " prints them.")];
  }
  if (!trial.forms) return [];
  if (trial.forms.length < 2) return [];
  const slowest = Math.max(...trial.forms.map(form => form.high ?? form.median));
  const rows = [...trial.forms].sort((a, b) => a.median - b.median).map(form => el("tr", {class: form.chosen ? "chosen" : null},
    el("th", {scope: "row"}, form.name, form.chosen ? el("span", {class: "tag"}, "chosen") : null),
    el("td", {class: "bars"}, bar(form.median / slowest, "all")),
    el("td", {}, `${msText(form.median)}${form.low == null ? "" : ` [${msText(form.low).slice(0, -3)}–${msText(form.high).slice(0, -3)}]`}`),
    el("td", {}, countText(form.macs)), el("td", {}, countText(form.params))));
  const head = ["form", "", "time [95 %]", "MACs", "params"].map(text => el("th", {scope: "col"}, text));
  const table = el("table", {class: "forms"}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
  return [
    el("h3", {}, "Forms"),
    el("p", {class: "note"}, "Times, not normalised, of the rounds in which the form was chosen; the latency above was measured after that and is normalised."),
    el("div", {class: "table", tabindex: 0, role: "region", "aria-label": "Forms"}, table),
  ];
}

// The training: its error on the training images, and the held-out error at the rungs and at the end.
function trainingOf(trial) {
  const {curves, samples} = trial.study, row = curves ? curves.trial.indexOf(trial.trial) : -1;
  const held = row < 0 ? (trial.error == null ? [] : [[samples, trial.error]])
    : curves.samples.of[curves.samples.at[row]].map((at, i) => [at, curves.errors[row][i]]);
  const train = [];
  for (let i = 0; i < (trial.epochs ?? []).length; i += 2) train.push([trial.epochs[i], trial.epochs[i + 1]]);
  if (held.length + train.length < 2) return [];
  const words = held.map(([at, error]) => `${percentText(error)} after ${exactText(at)} images`).join(", ");
  return [
    el("h3", {}, "Training"),
    el("p", {class: "note key"}, el("span", {class: "held"}, "held-out error"),
      el("span", {class: "train"}, "training error (of augmented images, over the epoch)")),
    curveDrawing({train, held}, `Held-out error: ${words}`),
  ];
}

// Errors over images seen: a line with dots for each kind.
function curveDrawing(curves, label) {
  const all = Object.values(curves).flat(), most = Math.max(...all.map(([at]) => at)), errors = all.map(([, error]) => error);
  const high = Math.ceil(Math.max(...errors) * 10) / 10, low = Math.floor(Math.min(...errors) * 10) / 10;
  const [width, height, left, bottom] = [440, 170, 44, 26];
  const x = at => left + 6 + (width - left - 20) * at / most;
  const y = error => 8 + (height - bottom - 14) * (high - error) / (high - low || 1);
  const nodes = [], step = (high - low) / 0.1 > 5 ? 0.2 : 0.1;
  for (let error = low; error <= high + 1e-9; error += step) {
    nodes.push(svg("path", {d: `M${left} ${y(error)}H${width - 8}`, class: "grid"}),
      svg("text", {x: left - 6, y: y(error) + 4, "text-anchor": "end"}, shareText(error)));
  }
  nodes.push(svg("text", {x: x(0), y: height - 6}, "0"),
    svg("text", {x: x(most), y: height - 6, "text-anchor": "end"}, `${exactText(most)} images`));
  for (const [kind, points] of Object.entries(curves)) {
    nodes.push(svg("path", {d: points.map(([at, error], i) => `${i ? "L" : "M"}${x(at)} ${y(error)}`).join(""), class: kind}));
    nodes.push(...points.map(([at, error]) => svg("circle", {cx: x(at), cy: y(error), r: 3.5, class: `${kind} dot`},
      svg("title", {}, `${exactText(at)} images: ${percentText(error)}`))));
  }
  return svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "curve"}, ...nodes);
}

function watchDetail() {
  part("detail").addEventListener("close", () => {
    mark(null);
    const back = opener;
    opener = shownTrial = null;
    pointOut();
    if (back?.isConnected) back.focus({preventScroll: true});
  });
  document.addEventListener("keydown", event => { if (event.key === "Escape" && part("detail").open) closeDetail(); });
}
