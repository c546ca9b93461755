// The page: decode, draw the front first, then the other figures; redraw when colours, width or data change.

function drawCards() {
  studies.forEach((study, i) => {
    const place = document.querySelector(`[data-study="${i}"]`), empty = place.querySelector(".empty");
    place.querySelector(".cards").replaceChildren(...study.cards.map(
      ([name, value]) => el("li", {}, el("strong", {}, value), el("span", {}, name))));
    if (isMany()) place.querySelector(".dot").style.background = COLOURS[i % COLOURS.length];
    if (empty) empty.hidden = study.complete.length > 0;
  });
}

const FIGURES = [drawFinals, drawVolume, drawImportance, drawForms, drawCurves, drawSurrogate];

// One figure after the other; the page stays responsive in between.
async function inTurn() {
  for (const figure of FIGURES) {
    await new Promise(next => setTimeout(next));
    figure();
  }
}

let isBegun = false;

// Called once, as soon as there is a completed trial.
function begin() {
  isBegun = true;
  part("app").hidden = false;
  part("study-label").hidden = !isMany();
  options(part("study"), studies.map((study, i) => [String(i), study.name]), "0");
  fillFrontControls();
  fillTableControls();
  watchTable();
  watchDetail();
  part("study").addEventListener("change", inTurn);
  part("over").addEventListener("change", drawVolume);
  redrawFront();
  performance.mark("front");
  drawTable();
  inTurn().then(() => { document.body.dataset.drawn = "all"; });
}

function redrawAll() {
  drawCards();
  if (!studies.some(study => study.complete.length)) return;
  if (!isBegun) return begin();
  redrawFront();
  fillTableControls();
  drawTable();
  inTurn();
  if (shownTrial) shownTrial = trialOf(keyOf(shownTrial)) ?? null;
}

decode(JSON.parse(part("data").textContent));
redrawAll();
let wasNarrow = isNarrow();
const redrawPlots = () => { if (isBegun) { redrawFront(); inTurn(); } };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawPlots);
addEventListener("resize", () => { if (wasNarrow !== isNarrow()) { wasNarrow = isNarrow(); redrawPlots(); } });
if ("live" in document.body.dataset) poll();
