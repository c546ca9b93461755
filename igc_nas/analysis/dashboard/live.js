// A served page polls its server for the running trials and for changed data. A page in a file sends no requests.

const POLL_MS = 2000, RETRY_MS = 10000;
let have = "", etag = "";

async function poll() {
  let wait = POLL_MS;
  try {
    if (!document.hidden) {
      const answer = await fetch(`data.json?have=${have}`, {headers: etag ? {"If-None-Match": etag} : {}, cache: "no-store"});
      if (answer.status === 200) update(await answer.json(), answer.headers.get("ETag"));
      else if (answer.status !== 304) throw new Error(String(answer.status));
      document.body.classList.remove("lost");
    }
  } catch {
    document.body.classList.add("lost");
    const words = "No answer from igc-nas dashboard --serve; this page shows the last data and keeps asking.";
    part("live").replaceChildren(el("p", {role: "alert"}, words));
    etag = "";
    wait = RETRY_MS;
  }
  setTimeout(poll, wait);
}

function update(snapshot, tag) {
  etag = tag;
  if (snapshot.page) {
    have = snapshot.tag;
    decode(snapshot.page);
    redrawAll();
  }
  drawRunning(snapshot.live);
}

function drawRunning(live) {
  const place = part("live"), cards = [];
  live.studies.forEach((state, i) => {
    if (isMany() && (state.owner || state.running.length)) cards.push(el("h3", {}, named(studies[i].name)));
    for (const trial of state.running) cards.push(runningCard(trial));
    if (state.waiting) cards.push(el("p", {class: "note"}, `${plural(state.waiting, "trial")} will be continued by the next search.`));
  });
  const owners = live.studies.filter(state => state.owner);
  const processes = [...new Set(owners.map(state => state.owner))].join(", ");
  const who = owners.length ? `Searched by ${processes} since ${localTime(owners[0].since)}.` : "No search is running.";
  const words = [...live.problems, who, `This page updates itself; last change ${new Date().toLocaleTimeString()}.`].join(" ");
  const running = cards.length ? [el("div", {class: "running"}, ...cards)] : [];
  place.replaceChildren(el("p", {class: owners.length ? "on" : ""}, words), ...running);
}

function localTime(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : date.toLocaleString();
}

function runningCard(trial) {
  const share = trial.samples == null ? null : Math.min(1, trial.samples / trial.of);
  const facts = [trial.doing, ...(trial.samples == null ? [] : [`${exactText(trial.samples)} of ${exactText(trial.of)} images`]),
    ...(trial.train_error == null ? [] : [`training error ${shareText(trial.train_error)}`])];
  return el("div", {class: "trial"}, el("strong", {}, `Trial ${trial.trial}${trial.longer_of == null ? "" : `, trial ${trial.longer_of} for longer`}`), el("span", {}, facts.join(", ")),
    el("progress", share == null ? {"aria-label": `trial ${trial.trial}`} : {value: share, max: 1, "aria-label": `trial ${trial.trial}`}),
    el("code", {}, trial.arch), el("small", {}, `since ${localTime(trial.since)}, ${trial.by}`));
}
