// The text shown when the pointer is over a trial, and the selection of a trial.

const stateText = trial => trial.baseline ? `baseline ${trial.baseline}` + (trial.state === "complete" ? "" : `, ${trial.state}`)
  : trial.state === "complete" && trial.over ? "complete, over budget" : trial.state;
const nameText = trial => (trial.baseline ? `${trial.baseline}, ` : "") + `trial ${trial.trial}` + (isMany() ? ` of ${trial.study.name}` : "");

function latencyText(trial) {
  if (trial.latency == null) return "";
  return `${msText(trial.latency)} [${msText(trial.low).slice(0, -3)}–${msText(trial.high).slice(0, -3)}]`;
}

function formText(trial) {
  if (!trial.form) return "";
  if (trial.deployed_params == null) return trial.form;
  return `${trial.form}: ${countText(trial.deployed_params)} parameters, ${countText(trial.deployed_macs)} MACs, `
    + `${(trial.weight_bytes / 1e6).toFixed(2)} MB`;
}

function hoverText(trial) {
  const lines = [`<b>${escaped(nameText(trial))}</b> · ${escaped(stateText(trial))} · ${escaped(trial.id)}`];
  if (trial.arch) lines.push(...archText(trial.arch).split(" | ").map((word, i) => (i ? "  | " : "") + escaped(word)));
  const facts = [];
  if (trial.error != null) facts.push(`error ${percentText(trial.error)}`);
  if (trial.expected != null) facts.push(`predicted final error ${percentText(trial.expected)}`);
  if (trial.params != null) facts.push(`${exactText(trial.params)} parameters`, `${countText(trial.macs)} MACs`);
  if (facts.length) lines.push(facts.join(" · "));
  if (trial.latency != null) lines.push(`latency ${latencyText(trial)}${trial.noisy ? " · noisy" : ""}`, `as ${escaped(formText(trial))}`);
  if (trial.reason) lines.push(escaped(trial.reason.slice(0, 90)));
  return lines.join("<br>");
}

const keyOf = trial => `${trial.study.place}:${trial.trial}`;
const trialOf = key => {
  const [place, number] = key.split(":").map(Number);
  return studies[place]?.byNumber.get(number);
};

// A click on a point of a plot shows its trial.
function choose(event) {
  const key = event.points.map(point => point.customdata).find(Boolean);
  if (key) showDetail(trialOf(key));
}
