// An architecture as a diagram: stem, one block of each stage with the number of its repeats, end. Channels run from left
// to right, a group of a convolution is a box, an interleave crossing lines: which group goes where.

const DRAWN = {width: 190, most: 24, left: 16, label: 214, full: 440};

const DIAGRAM_NOTE = "Channels run from left to right, layers downwards. A box is a group of a convolution (spatial ones are "
  + `brighter), crossing lines an interleave. At most ${DRAWN.most} groups are drawn, and 6 × 4 lines of an interleave.`;

const band = (y, height, kind, inset = 0) => svg("rect", {
  x: DRAWN.left + inset, y: y + 2, width: DRAWN.width - 2 * inset, height, rx: inset && 3, class: kind});

const funnel = y => svg("path", {
  d: `M${DRAWN.left} ${y + 2}h${DRAWN.width}l-60 12h-${DRAWN.width - 120}z`, class: "norm"});

// One layer as [height, elements at the top y, words].
const LAYERS = {
  Conv: ([, name, from, to, kernel, stride, groups], y) => {
    const boxes = Math.min(groups, DRAWN.most), step = DRAWN.width / boxes, gap = boxes > 1 ? Math.min(3, step * 0.25) : 0;
    const box = {y: y + 2, width: step - gap, height: 20, rx: Math.min(3, step / 4), class: kernel > 1 ? "spatial" : "point"};
    const nodes = Array.from({length: boxes}, (_, i) => svg("rect", {...box, x: DRAWN.left + i * step + gap / 2}));
    const kind = groups === 1 ? "" : groups === from && from === to ? ", depthwise" : `, ${groups} groups of ${from / groups}`;
    const width = from === to ? "" : ` ${from}→${to}`;
    return [24, nodes, `${kernel}×${kernel}${width}${kind}${stride > 1 ? `, stride ${stride}` : ""}`, name];
  },
  Interleave: ([, channels, groups], y) => {
    if (groups === 1 || groups === channels) return [0, [], ""];  // moves nothing
    const wide = Math.min(groups, 6), each = Math.min(channels / groups, 4), all = wide * each, step = DRAWN.width / all;
    const place = i => DRAWN.left + (i + 0.5) * step;
    const nodes = [];
    for (let group = 0; group < wide; group++) for (let i = 0; i < each; i++) {  // out[j*g + i] = in[i*(C/g) + j]
      const from = place(group * each + i), to = place(i * wide + group);
      const way = `M${from} ${y + 1}C${from} ${y + 14} ${to} ${y + 16} ${to} ${y + 29}`;
      nodes.push(svg("path", {d: way, class: "wire", stroke: COLOURS[group % COLOURS.length]}));
    }
    return [30, nodes, `interleave ${groups} × ${channels / groups}`];
  },
  Norm: (_, y) => [9, [band(y, 5, "norm")], "batch norm"],
  Act: ([, kind], y) => [11, [band(y, 7, "act")], {relu: "ReLU", relu6: "ReLU6", hswish: "h-swish"}[kind]],
  PRelu: (_, y) => [11, [band(y, 7, "act")], "PReLU"],
  SqueezeExcite: ([, , channels, squeeze], y) => [
    16, [band(y, 12, "point", 60), band(y + 4, 4, "act")], `squeeze-excite ${channels}→${squeeze}→${channels}`],
  Pool: (_, y) => [16, [funnel(y)], "global average pool"],
  MaxPool: ([, kernel, stride], y) => [16, [funnel(y)], `max-pool ${kernel}×${kernel}, stride ${stride}`],
  AvgPool: ([, kernel, stride], y) => [16, [funnel(y)], `average pool ${kernel}×${kernel}, stride ${stride}`],
  Subsample: ([, stride, before = 0, after = 0], y) => [16, [funnel(y)],
    [...(stride > 1 ? [`pixel ${stride} by ${stride}`] : []), ...(before + after ? [`${before + after} zero channels`] : [])].join(", ")],
  Select: ([, , from, to], y) => [9, [band(y, 5, "norm", 20)], `${to} of ${from} channels by index`],
  Flatten: (_, y) => [9, [band(y, 5, "norm")], "flatten"],
  Linear: ([, , from, to], y) => [24, [band(y, 20, "point", 60)], `linear ${from}→${to}`],
};

// The branches that are drawn: of a sum the body, else all that have layers.
const drawnBranches = layer => layer.kind === "Residual" || layer.kind === "DualPath"
  ? [layer.branches[0]] : layer.branches.filter(branch => branch.length);

function joinWords({kind, channels, branches}) {
  const [layer] = kind === "Residual" || kind === "DualPath"
    ? branches[1].filter(inner => inner[0] === "Conv" || inner[0] === "Subsample") : [];
  const short = layer ? `shortcut ${LAYERS[layer[0]](layer, 0)[2]}` : "identity";
  const passes = branches.findIndex(branch => !branch.length);
  switch (kind) {
    case "Residual": return layer ? short : "identity added";
    case "DualPath": return `${channels} channels summed, others appended; ${short}`;
    case "Split": return passes < 0 ? `split at ${channels}, concatenated`
      : `${passes ? `the channels from ${channels} on` : `the first ${channels} channels`} pass, concatenated`;
    default: return passes < 0 ? "concatenated" : "appended to the input";
  }
}

// Layers downwards from y: [elements, y below them]. Small consecutive layers share one line of text.
function stack(layers, from) {
  const nodes = [];
  let y = from, words = [], at = 0;
  const flush = () => {
    if (words.length) nodes.push(svg("text", {x: DRAWN.label, y: at}, words.join(", ")));
    words = [];
  };
  for (const layer of layers) {
    if (layer.branches) {
      flush();
      const top = y, middle = DRAWN.left + DRAWN.width / 2;
      const drawn = drawnBranches(layer);
      drawn.forEach((branch, i) => {
        if (drawn.length > 1) nodes.push(svg("text", {x: DRAWN.label, y: y + 14, class: "branch"}, `branch ${i + 1}`));
        const [inside, below] = stack(branch, y + (drawn.length > 1 ? 18 : 4));
        nodes.push(...inside);
        y = below;
      });
      const sum = layer.kind === "Residual" || layer.kind === "DualPath";
      const sign = sum ? `M${middle - 4} ${y + 9}h8m-4 -4v8` : `M${middle - 4} ${y + 7}h8m-8 4h8`;
      nodes.push(svg("path", {d: `M${middle} ${top + 1}H6V${y + 9}H${middle - 7}`, class: "shortcut"}),
        svg("circle", {cx: middle, cy: y + 9, r: 6, class: "sum"}), svg("path", {d: sign, class: "shortcut"}),
        svg("text", {x: DRAWN.label, y: y + 13}, joinWords(layer)));
      y += 20;
      continue;
    }
    const [height, drawn, text] = LAYERS[layer[0]](layer, y);
    if (!height) continue;
    const small = height < 16 && words.length && words.at(-1).length < 14;
    if (!small) { flush(); at = y + height / 2 + 4; }
    words.push(text);
    nodes.push(...drawn);
    y += height;
  }
  flush();
  return [nodes, y];
}

function blockDrawing(layers, label) {
  const [nodes, y] = stack(layers, 2);
  return svg("svg", {viewBox: `0 0 ${DRAWN.full} ${y + 4}`, role: "img", "aria-label": label, class: "block"}, ...nodes);
}

// The layers in words, for screen readers.
function layersText(layers) {
  const text = layer => layer.branches
    ? `${drawnBranches(layer).map(branch => `(${layersText(branch)})`).join(" and ")}: ${joinWords(layer)}`
    : LAYERS[layer[0]](layer, 0)[2];
  return layers.map(text).filter(Boolean).join("; ");
}

function diagram(arch) {
  const pieces = [], stem = layersOf(arch[1]);
  let side = sideAfter(stem, arch[0]), enters = widthAfter(stem, 0);
  const place = (title, facts, layers) => pieces.push(
    el("li", {}, el("h4", {}, title, el("span", {}, facts)), blockDrawing(layers, layersText(layers))));
  place("stem", `${enters} channels, ${side}×${side}`, stem);
  stagesOf(arch).forEach((stage, i) => {
    const first = layersOf(stage.first), further = layersOf(stage.further);
    const before = side, entering = enters, width = widthAfter(first, entering), next = widthAfter(further, width);
    side = sideAfter(first, before);
    enters = stage.count > 1 ? next + (stage.count - 2) * (next - width) : width;
    const facts = `${plans.stages[stage.text]} · ${enters} channels, ${side}×${side}`;
    if (stage.count === 1 || stage.first === stage.further) {
      place(`stage ${i + 1}`, `${facts}${stage.count > 1 ? ` · all ${stage.count} blocks alike` : ""}`, first);
      return;
    }
    const drawing = el("div", {}, blockDrawing(further, layersText(further)));
    const one = stage.count > 2 ? `one of the ${stage.count - 1} further blocks` : "the second block";
    const sides = side === before ? "" : `, ${before}×${before} to ${side}×${side}`;
    const words = {
      further: [`Drawn: ${one}, ${width}→${next}.`, "Show the first"],
      first: [`Drawn: the first block, ${entering}→${width}${sides}.`, "Show a further one"],
    };
    const said = el("span", {}, words.further[0]);
    let shown = "further";
    const button = el("button", {type: "button", class: "link", onclick: () => {
      shown = shown === "first" ? "further" : "first";
      const layers = shown === "first" ? first : further;
      drawing.replaceChildren(blockDrawing(layers, layersText(layers)));
      [said.textContent, button.textContent] = words[shown];
    }}, words.further[1]);
    pieces.push(el("li", {}, el("h4", {}, `stage ${i + 1}`, el("span", {}, facts)), el("p", {class: "note"}, said, " ", button), drawing));
  });
  const end = layersOf(arch.at(-1));
  place(end.length > 2 ? "head and classifier" : "classifier", "", end);
  return el("ol", {class: "diagram"}, ...pieces);
}
