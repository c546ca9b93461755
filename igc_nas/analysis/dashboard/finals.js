// Finals: test error over parameters of the networks that were trained to the end, a plot for each recipe.

const FINAL_KINDS = [["the study’s candidates", "circle", () => COLOURS[0]], ["baselines", "diamond", () => colourOf("--ink")]];

function drawFinals() {
  for (const study of studies) study.finals.forEach((networks, number) => {
    const name = `finals-${study.place}-${number}`;
    const table = document.querySelector(`[data-study="${study.place}"] [data-finals="${number}"]`);
    if (!table || networks.length < 2) return;  // a served page has the tables of when it was opened
    if (!part(name)) table.before(el("div", {id: `igc-${name}`, class: "plot middle", role: "img"}));
    drawFinalsGroup(name, networks, study);
  });
}

function drawFinalsGroup(name, networks, study) {
  const tops = networks.flatMap(network => [network.error - network.half, network.error + network.half]);
  const axis = (key, span, log) => ({values: networks.map(network => network[key]), span, log});
  const params = networks.map(network => network.params);
  const places = labelPlaces(part(name), networks.map(network => network.name), [axis("params", params, true), axis("error", tops, false)]);
  const traces = FINAL_KINDS.map(([words, symbol, colour], kind) => {
    const rows = networks.flatMap((network, i) => (network.trial == null) === Boolean(kind) ? [i] : []), own = rows.map(i => networks[i]);
    return {
      type: "scatter", mode: "markers+text", name: words, x: own.map(network => network.params), y: own.map(network => network.error),
      customdata: own.map(({trial}) => trial == null ? null : `${study.place}:${trial}`),
      text: rows.map(i => places[i] ? escaped(networks[i].name) : ""), textposition: rows.map(i => places[i] ?? "top right"),
      textfont: {size: 11}, cliponaxis: false, hovertext: own.map(finalText), hoverinfo: "text",
      error_y: {type: "data", array: own.map(network => network.half), thickness: 1, width: 3, color: QUIET},
      marker: {symbol, size: 9, color: colour(), line: {width: 0}},
    };
  });
  const front = networks.filter(network => network.front).sort((a, b) => a.params - b.params);
  traces.unshift({
    type: "scatter", mode: "lines", name: "front of these two axes", hoverinfo: "skip", x: front.map(network => network.params),
    y: front.map(network => network.error), line: {shape: "hv", color: ACCENT, width: 1.5},
  });
  draw(name, traces, {
    xaxis: axisOf("params", params), yaxis: {title: {text: "test error"}, automargin: true, tickformat: ".0%"},
  }, `Test error over parameters of ${plural(networks.length, "network")}; the table below has every value.`);
}

function finalText({name, error, half, seeds, params, macs}) {
  const interval = half ? ` ± ${percentText(half)}` : "";
  return `<b>${escaped(name)}</b><br>test error ${percentText(error)}${interval} (${plural(seeds, "seed")})<br>`
    + `${exactText(params)} parameters · ${countText(macs)} MACs`;
}
