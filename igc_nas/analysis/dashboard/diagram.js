// An architecture as a diagram: stem, one block of each stage with the number of its repeats, end. Channels run from left
// to right, a group of a convolution is a box, an interleave crossing lines: which group goes where.

const DRAWN = {width: 190, most: 24, left: 16, label: 214, full: 440};

const DIAGRAM_NOTE = "Channels run from left to right, layers downwards. A box is a group of a convolution (spatial ones are "
  + `brighter), crossing lines an interleave. At most ${DRAWN.most} groups are drawn, and 6 × 4 lines of an interleave.`;

const band = (y, height, kind, inset = 0) => svg("rect", {
  x: DRAWN.left + inset, y: y + 2, width: DRAWN.width - 2 * inset, height, rx: inset && 3, class: kind});

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
  Act: ([, kind], y) => [11, [band(y, 7, "act")], {relu: "ReLU", relu6: "ReLU6", hswish: "h-swish"}[kind] ?? kind],
  PRelu: (_, y) => [11, [band(y, 7, "act")], "PReLU"],
  Select: ([, , from, to], y) => [11, [band(y, 7, "norm")], `${to} of ${from} channels`],
  SqueezeExcite: ([, , channels, squeeze], y) => [24, [band(y, 20, "act", 40)], `squeeze-excite ${channels}→${squeeze}→${channels}`],
  MaxPool: ([, kernel, stride], y) => [16, [band(y, 12, "norm", 20)], `max pool ${kernel}×${kernel}, stride ${stride}`],
  AvgPool: ([, kernel, stride], y) => [16, [band(y, 12, "norm", 20)], `average pool ${kernel}×${kernel}, stride ${stride}`],
  Subsample: ([, stride], y) => [11, [band(y, 7, "norm", 20)], `every ${stride}th pixel, zero channels`],
  Flatten: (_, y) => [11, [band(y, 7, "norm")], "flatten"],
  Pool: (_, y) => {
    const funnel = `M${DRAWN.left} ${y + 2}h${DRAWN.width}l-60 12h-${DRAWN.width - 120}z`;
    return [16, [svg("path", {d: funnel, class: "norm"})], "global average pool"];
  },
  Linear: ([, , from, to], y) => [24, [band(y, 20, "point", 60)], `linear ${from}→${to}`],
};

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
      const [inside, below] = branchesDrawn(layer, y + 4), short = joinText(layer);
      const middle = DRAWN.left + DRAWN.width / 2;
      nodes.push(...inside, svg("path", {d: `M${middle} ${y + 1}H6V${below + 9}H${middle - 7}`, class: "shortcut"}),
        svg("circle", {cx: middle, cy: below + 9, r: 6, class: "sum"}),
        svg("path", {d: `M${middle - 4} ${below + 9}h8m-4 -4v8`, class: "shortcut"}),
        svg("text", {x: DRAWN.label, y: below + 13}, short));
      y = below + 20;
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

// The branches of a layer from y downwards: the body of a residual one alone, else one below the other.
function branchesDrawn(layer, from) {
  if (layer.kind === "Residual") return stack(layer.branches[0], from);
  const drawn = layer.branches.filter(branch => branch.length), nodes = [];
  let y = from;
  drawn.forEach((branch, i) => {
    if (drawn.length > 1) {
      nodes.push(svg("text", {x: DRAWN.label, y: y + 14}, `branch ${i + 1}`));
      y += 20;
    }
    const [inside, below] = stack(branch, y);
    nodes.push(...inside);
    y = below;
  });
  return [nodes, y];
}

// How the branches are joined.
function joinText({kind, channels, branches}) {
  const [conv] = branches.at(-1).filter(inner => inner[0] === "Conv");
  const own = branches.some(branch => !branch.length) ? " with the input" : "";
  return {
    Residual: conv ? `shortcut ${LAYERS.Conv(conv, 0)[2]}` : branches.at(-1).length ? "shortcut added" : "identity added",
    Concat: `concatenated${own}`,
    Split: `split at ${channels}, concatenated`,
    DualPath: `${channels} added, others concatenated`,
  }[kind];
}

function blockDrawing(layers, label) {
  const [nodes, y] = stack(layers, 2);
  return svg("svg", {viewBox: `0 0 ${DRAWN.full} ${y + 4}`, role: "img", "aria-label": label, class: "block"}, ...nodes);
}

// The layers in words, for screen readers.
function layersText(layers) {
  const text = layer => layer.kind === "Residual" ? `residual of (${layersText(layer.branches[0])})`
    : layer.branches ? `(${layer.branches.map(layersText).join(") and (")}) ${joinText(layer)}` : LAYERS[layer[0]](layer, 0)[2];
  return layers.map(text).filter(Boolean).join("; ");
}

// Where the stride stands in the fields of a layer.
const STRIDES = {Conv: 5, MaxPool: 2, AvgPool: 2, Subsample: 1};
const strideOf = layers => layers.reduce((stride, layer) => stride * (
  layer.branches ? strideOf(layer.branches.find(branch => branch.length) ?? []) : layer[STRIDES[layer[0]]] ?? 1), 1);

function diagram(arch) {
  const pieces = [], stem = layersOf(arch[1]);
  let side = Math.ceil(arch[0] / strideOf(stem));
  const place = (title, facts, layers) => pieces.push(
    el("li", {}, el("h4", {}, title, el("span", {}, facts)), blockDrawing(layers, layersText(layers))));
  place("stem", `${channelsOut(arch[1])} channels, ${side}×${side}`, stem);
  stagesOf(arch).forEach((stage, i) => {
    const first = layersOf(stage.first), further = layersOf(stage.further);
    side = Math.ceil(side / strideOf(first));
    const {enters, leaves: width} = stage;
    const facts = `${plans.stages[stage.text]} · ${width} channels, ${side}×${side}`;
    if (stage.count === 1 || stage.first === stage.further) {
      place(`stage ${i + 1}`, `${facts}${stage.count > 1 ? ` · all ${stage.count} blocks alike` : ""}`, first);
      return;
    }
    const drawing = el("div", {}, blockDrawing(further, layersText(further)));
    const one = stage.count > 2 ? `one of the ${stage.count - 1} further blocks` : "the second block";
    const stride = strideOf(first) > 1 ? `, stride ${strideOf(first)}` : "";
    const grows = further.some(layer => ["Concat", "DualPath"].includes(layer.kind));  // each block has channels of its own
    const words = {
      further: [`Drawn: ${one}${grows ? "" : `, ${width}→${width}`}.`, "Show the first"],
      first: [`Drawn: the first block${grows ? "" : `, ${enters}→${width}`}${stride}.`, "Show a further one"],
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
