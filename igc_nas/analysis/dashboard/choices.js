// Which choices the front prefers, and what each explains by itself: tables with bars in them.

const UNLIKELY = 0.01;

function bar(share, kind) {
  const node = el("span", {class: `bar ${kind}`, "aria-hidden": true});
  node.style.setProperty("--share", Math.max(0, Math.min(1, share)));
  return node;
}

function drawChoices() {
  const study = chosenStudy(), {choices} = study;
  const values = choices.reduce((sum, choice) => sum + choice.shares.length, 0);
  part("choices-note").textContent = choices.length
    ? `Grey: the share of ${plural(study.complete.length, "completed trial")} with that value; red: of the `
      + `${plural(study.members.length, "trial")} on the front. Bold is what a front drawn by lot would show less than once in `
      + `${Math.round(1 / UNLIKELY)} times; of ${values} values about ${Math.max(1, Math.round(values * UNLIKELY))} would be bold by chance. `
      + "The letters of a unit count among the trials that have it. A search is no balanced experiment: it tries more often what it likes."
    : "Nothing varies among the completed trials.";
  const parts = grouped(choices, choice => choice.name.split(".")[0]);
  part("choices").replaceChildren(...[...parts].map(([name, own]) => stageTable(name, own)));
  drawWeights(study);
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

function drawWeights(study) {
  const told = study.choices.filter(choice => choice.error || choice.latency);
  part("weights-note").textContent = told.length
    ? "The share of the variance of the error, and of the latency’s logarithm, that a choice explains alone "
      + "(epsilon squared: eta squared less what chance explains), with the p of its F test. "
      + "Choices that lean on each other share what they explain; the rows do not add up to 100 %."
    : "Too few completed trials to tell.";
  const share = choice => choice.error?.[0] ?? 0;
  const cell = effect => effect ? el("td", {class: "bars"}, bar(effect[0], effect[1] < UNLIKELY ? "front" : "all"),
    el("span", {class: effect[1] < UNLIKELY ? "strong" : null}, shareText(effect[0])),
    el("small", {}, effect[1] < 0.001 ? "p < .001" : `p ${effect[1].toFixed(3).replace(/^0/, "")}`)) : el("td", {}, "–");
  const head = ["choice", "n", "values", "error", "latency"].map(
    (text, i) => el("th", {scope: "col", class: [1, 2].includes(i) ? null : "left"}, text));
  const rows = [...told].sort((a, b) => share(b) - share(a)).map(choice => el("tr", {},
    el("th", {scope: "row"}, choice.name.replace("stage", "stage ").replace(".", " · ")), el("td", {}, exactText(choice.evaluated)),
    el("td", {}, String(choice.shares.length)), cell(choice.error), cell(choice.latency)));
  part("weights").replaceChildren(el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
  part("weights").closest(".table").hidden = !told.length;
}
