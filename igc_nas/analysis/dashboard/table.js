// The table of trials: search, sorting, pages, and arrow keys to move between rows.

const PAGE = 50;
const COLUMNS = [
  {name: "study", text: "study", of: trial => trial.study.name, left: true, many: true},
  {name: "trial", text: "trial", of: trial => trial.trial},
  {name: "state", text: "state", of: stateText, left: true},
  {name: "error", text: "error", of: trial => trial.error, show: trial => valueText("error", trial.error)},
  {name: "params", text: "parameters", of: trial => trial.params, show: trial => trial.params == null ? "" : exactText(trial.params)},
  {name: "macs", text: "MACs", of: trial => trial.macs, show: trial => valueText("macs", trial.macs)},
  {name: "latency", text: "latency [95 %]", of: trial => trial.latency, show: latencyText},
  {name: "form", text: "runs as", of: trial => trial.form, left: true},
  {name: "arch", text: "architecture", of: trial => trial.words, left: true, code: true},
];
let tableState = {by: "error", down: false, page: 0, focus: 0};
const tableColumns = () => COLUMNS.filter(column => isMany() || !column.many);

function wordsOf(trial) {
  trial.words ??= archText(trial.arch);
  const noisy = trial.noisy ? "noisy" : "";
  return [trial.trial, trial.baseline, trial.id, trial.form, trial.words, noisy, trial.reason, trial.study.name].join(" ").toLowerCase();
}

function foundTrials() {
  const state = part("state").value, words = part("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = allTrials().filter(trial => state === "all" || (
    state === "front" ? trial.front : state === "baseline" ? trial.baseline : trial.state === state && !trial.baseline));
  return words.length ? wanted.filter(trial => { const text = wordsOf(trial); return words.every(word => text.includes(word)); }) : wanted;
}

function sortedTrials(trials) {
  const {of} = COLUMNS.find(column => column.name === tableState.by), sign = tableState.down ? -1 : 1;
  const isMissing = value => value == null || value === "";
  if (tableState.by === "arch") trials.forEach(wordsOf);
  return [...trials].sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    if (isMissing(x) || isMissing(y)) return isMissing(x) - isMissing(y);  // unknown values last
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", {numeric: true}) : x - y) || a.trial - b.trial;
  });
}

function drawTable() {
  const found = sortedTrials(foundTrials()), last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
  tableState.page = Math.min(tableState.page, last);
  const start = tableState.page * PAGE, rows = found.slice(start, start + PAGE);
  tableState.focus = Math.min(tableState.focus, Math.max(0, rows.length - 1));
  drawHead();
  const body = part("table").tBodies[0], isWalked = body.contains(document.activeElement);
  body.replaceChildren(...rows.map(rowOf));
  if (isWalked) body.rows[tableState.focus]?.focus({preventScroll: true});
  const range = found.length ? `${exactText(start + 1)}–${exactText(start + rows.length)} of ` : "";
  part("count").textContent = range + plural(found.length, "trial");
  part("before").disabled = tableState.page === 0;
  part("after").disabled = tableState.page === last;
  mark(shownTrial);
}

// The rows that are found, of all pages, as a file; text that a spreadsheet would take for a formula or a number gets an
// apostrophe.
function saveTable() {
  const cell = value => typeof value === "string" ? `"${value.replace(/^([=+@\t\r-]|[\d.,]+(e\d+)?$)/i, "'$&").replaceAll('"', '""')}"` : value ?? "";
  const columns = tableColumns(), trials = sortedTrials(foundTrials());
  trials.forEach(wordsOf);
  const rows = trials.map(trial => columns.map(({of}) => cell(of(trial))));
  const text = [columns.map(column => column.name), ...rows].map(row => row.join(",") + "\r\n").join("");
  saveFile("trials.csv", "text/csv", text);
}

function drawHead() {
  const [order, arrow] = tableState.down ? ["descending", " ▼"] : ["ascending", " ▲"];
  const cells = tableColumns().map(({name, text, left}) => {
    const on = tableState.by === name, sorted = el("span", {"aria-hidden": true}, on ? arrow : "");
    return el("th", {scope: "col", class: left ? "left" : null, "aria-sort": on ? order : null},
      el("button", {type: "button", "data-sort": name, onclick: () => sortBy(name)}, text, sorted));
  });
  const row = el("tr", {}, ...cells), focused = document.activeElement?.dataset?.sort;
  part("table").tHead.replaceChildren(row);
  if (focused) row.querySelector(`[data-sort="${focused}"]`)?.focus({preventScroll: true});
}

function sortBy(name) {
  tableState = {...tableState, by: name, down: tableState.by === name && !tableState.down, page: 0, focus: 0};
  drawTable();
}

function rowOf(trial, place) {
  wordsOf(trial);
  const cells = tableColumns().map(({name, of, show, left, code}) => {
    const text = String((show ?? of)(trial) ?? "");
    const inside = code ? el("code", {}, text) : name === "study" ? named(text) : text;
    const cell = el("td", {class: left ? "left" : null}, inside);
    if (name === "state" && trial.front) cell.replaceChildren(el("span", {class: "tag"}, "front"));
    if (name === "state" && trial.study.knee === trial.trial) cell.append(el("span", {class: "tag"}, "knee"));
    if (name === "latency" && trial.noisy) cell.append(el("span", {class: "tag soft"}, "noisy"));
    return cell;
  });
  return el("tr", {"data-key": keyOf(trial), tabindex: place === tableState.focus ? 0 : -1}, ...cells);
}

// Highlight the row of the trial that is open in the detail dialog.
function mark(trial) {
  for (const row of part("table").tBodies[0].rows) {
    if (trial && row.dataset.key === keyOf(trial)) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
}

function walkTo(place) {
  const {rows} = part("table").tBodies[0];
  if (!rows.length) return;
  tableState.focus = Math.max(0, Math.min(rows.length - 1, place));
  [...rows].forEach((row, i) => { row.tabIndex = i === tableState.focus ? 0 : -1; });
  rows[tableState.focus].focus();
}

function turnTo(page) {
  tableState = {...tableState, page, focus: 0};
  drawTable();
}

function fillTableControls() {
  const states = [...new Set(allTrials().map(trial => trial.state))].filter(state => state !== "complete").sort();
  const before = part("state").value;
  if (studies.some(study => study.baselines.length)) states.push("baseline");
  const others = states.length ? [...states.map(state => [state, state]), ["all", "all"]] : [];
  options(part("state"), [["complete", "completed"], ["front", "the front"], ...others], "complete");
  if ([...part("state").options].some(option => option.value === before)) part("state").value = before;
}

function watchTable() {
  part("state").addEventListener("change", () => turnTo(0));
  part("find").addEventListener("input", () => turnTo(0));
  part("before").addEventListener("click", () => turnTo(tableState.page - 1));
  part("after").addEventListener("click", () => turnTo(tableState.page + 1));
  part("csv").addEventListener("click", saveTable);
  const body = part("table").tBodies[0];
  const trialAt = event => { const row = event.target.closest("tr"); return row && trialOf(row.dataset.key); };
  body.addEventListener("click", event => {
    const trial = trialAt(event);
    if (!trial || String(getSelection())) return;
    walkTo(event.target.closest("tr").sectionRowIndex);
    showDetail(trial, event.target.closest("tr"));
  });
  body.addEventListener("keydown", event => {
    const row = event.target.closest("tr"), trial = trialAt(event);
    if (!trial || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = {ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -PAGE, End: PAGE};
    if (event.key === "Enter" || event.key === " ") showDetail(trial, row);
    else if (event.key in steps) walkTo(row.sectionRowIndex + steps[event.key]);
    else return;
    event.preventDefault();
  });
}
