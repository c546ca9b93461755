// Importance of the choices: which values the front prefers, and how much of the variance each choice explains.

const UNLIKELY = 0.01;

function bar(share, kind) {
  const node = el("span", {class: `bar ${kind}`, "aria-hidden": true});
  node.style.setProperty("--share", Math.max(0, Math.min(1, share)));
  return node;
}

function drawImportance() {
  const study = chosenStudy(), {choices} = study;
  const values = choices.reduce((sum, choice) => sum + choice.shares.length, 0);
  part("choices-note").textContent = choices.length
    ? `Grey: the share of ${plural(study.complete.length, "completed trial")} with that value; red: of the `
      + `${plural(study.members.length, "trial")} on the front. A bold share would occur in fewer than 1 of `
      + `${Math.round(1 / UNLIKELY)} fronts drawn at random; of ${values} values about ${Math.max(1, Math.round(values * UNLIKELY))} would be bold by chance. `
      + "A unit’s own options (L, M, K, ...) are counted among the trials with that unit. A search is not a balanced experiment: "
      + "the sampler tries some values more often than others."
    : "All completed trials have the same values.";
  const parts = grouped(choices, choice => choice.name.split(".")[0]);
  part("choices").replaceChildren(...[...parts].map(([name, own]) => stageTable(name, own)));
  drawEffects(study);
}

function stageTable(name, choices) {
  const rows = choices.flatMap(choice => choice.shares.map(([value, evaluated, front, p], i) => {
    const all = evaluated / choice.evaluated, some = choice.front ? front / choice.front : 0;
    const key = choice.name.split(".")[1];
    const counts = `${front} of ${choice.front} on the front, ${evaluated} of ${choice.evaluated} evaluated; p ${p.toPrecision(2)}`;
    return el("tr", {class: i ? null : "first"},
      el("th", {scope: "row"}, i ? el("span", {class: "unseen"}, key) : key),
      el("td", {}, value),
      el("td", {class: "bars"}, bar(all, "all"), bar(some, "front")),
      el("td", {class: p < UNLIKELY ? "strong" : null, title: counts},
        `${shareText(all)} → ${choice.front ? shareText(some) : "–"}`));
  }));
  const head = ["choice", "value", "bars", "evaluated → front"].map(text => el("th", {scope: "col"}, text));
  return el("table", {}, el("caption", {}, name.replace("stage", "stage ")), el("thead", {class: "unseen"}, el("tr", {}, ...head)),
    el("tbody", {}, ...rows));
}

function drawEffects(study) {
  const shown = study.choices.filter(choice => choice.error || choice.latency);
  part("effects-note").textContent = shown.length
    ? "Share of the variance of the error, and of the logarithm of the latency, that each choice explains alone "
      + "(epsilon squared: eta squared corrected for chance), with the p value of its F test. "
      + "Correlated choices explain the same variance, so the rows do not add up to 100 %."
    : "Too few completed trials.";
  const share = choice => choice.error?.[0] ?? 0;
  const cell = effect => effect ? el("td", {class: "bars"}, bar(effect[0], effect[1] < UNLIKELY ? "front" : "all"),
    el("span", {class: effect[1] < UNLIKELY ? "strong" : null}, shareText(effect[0])),
    el("small", {}, effect[1] < 0.001 ? "p < .001" : `p ${effect[1].toFixed(3).replace(/^0/, "")}`)) : el("td", {}, "–");
  const head = ["choice", "n", "values", "error", "latency"].map(
    (text, i) => el("th", {scope: "col", class: [1, 2].includes(i) ? null : "left"}, text));
  const rows = [...shown].sort((a, b) => share(b) - share(a)).map(choice => el("tr", {},
    el("th", {scope: "row"}, choice.name.replace("stage", "stage ").replace(".", " · ")), el("td", {}, exactText(choice.evaluated)),
    el("td", {}, String(choice.shares.length)), cell(choice.error), cell(choice.latency)));
  part("effects").replaceChildren(el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
  part("effects").closest(".table").hidden = !shown.length;
}
