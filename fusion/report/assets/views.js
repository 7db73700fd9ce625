// What the model shows of itself for a turn: curves over frames, words or turns, and maps between them.
const LONGEST = 32; // positions of an axis, as fusion/report/views.py averages them
const CIVIDIS = ["00204d", "00336f", "39486b", "575c6d", "707173", "8a8779", "a69d75", "c4b56c", "e4cf5b", "ffea46"]
  .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
let drawings = []; // of the chosen turn, to be drawn anew when the page is resized or changes its colours
let mapName = null; // the one that was chosen last
let allOpen = false; // whether all views are shown

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

function prepared(canvas) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  return { context: canvas.getContext("2d"), width: canvas.width, height: canvas.height };
}

function drawAll() {
  drawWave(wave);
  for (const draw of drawings) draw();
}

async function inflate(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// How many positions there are of each kind, and how many stand along an axis.
function wholeOf(turn) {
  const conversation = turns.conversation[turn];
  return {
    frames: turns.frames[turn], tokens: turns.tokens[turn], turns: turns.starts[conversation + 1] - turns.starts[conversation],
  };
}

function lengthsOf(turn) {
  return Object.fromEntries(Object.entries(wholeOf(turn)).map(([kind, count]) => [kind, Math.min(count, LONGEST)]));
}

// By name: {axes, sizes, values}, values from 0 to 1 as they are.
async function readViews(turn) {
  const bytes = await inflate(page.views.content[turn]);
  const numbers = new DataView(bytes.buffer);
  const lengths = lengthsOf(turn);
  const found = [];
  let at = 0;
  for (const { name, axes } of page.views.shown) {
    const sizes = axes.map((axis) => lengths[axis.kind] + axis.extra);
    const largest = numbers.getFloat32(at, true);
    const count = sizes.reduce((product, size) => product * size, 1);
    const values = Float32Array.from(bytes.subarray(at + 4, at + 4 + count), (step) => (step * largest) / 255);
    found.push({ name, axes, sizes, values, largest });
    at += 4 + count;
  }
  return found;
}

function viewsOf(turn) {
  drawings = [];
  if (!page.views.shown.length) return [make("p", { class: "note" }, "This model shows nothing of itself.")];
  if (!(turn in page.views.content)) {
    return [make("p", { class: "note" }, "Views of the model are kept for other turns (show: with views of the model).")];
  }
  const place = make("div", { id: "views" });
  readViews(turn).then((views) => {
    if (!place.isConnected) return; // another turn was chosen meanwhile
    drawings = [];
    const first = firstOf(views);
    const all = make("details", { open: allOpen }, make("summary", {}, `All ${views.length} views, by the names of the model's parts`));
    all.addEventListener("toggle", () => {
      allOpen = all.open;
      if (all.open && all.childElementCount === 1) all.append(...helpOf(views), ...mapsOf(turn, views), ...stripsOf(turn, views));
      drawAll();
    });
    place.replaceChildren(...firstViewsOf(turn, first), ...(views.length > first.length ? [all] : []));
    drawAll();
  });
  const part = page.views.note ? "deep part" : "model";
  const note = page.views.note ? [make("p", { class: "note", id: "views-note" }, page.views.note)] : [];
  return [make("h4", {}, `What the ${part} of seed ${page.views.seed} looks at`), ...note, place];
}

const kindOf = (view) => view.axes.map((axis) => axis.kind).join(" ");
const isShare = (view) => /gate|relevance/.test(view.name); // from 0 to 1 each; all others share a weight of 1

// The views that a reader meets first: which moments count, which words, and how sound and words look at each other.
function firstOf(views) {
  const rank = (view) => (/pool/.test(view.name) ? 0 : isShare(view) ? 2 : 1) * 100 + view.axes.at(-1).extra + view.name.split(".").length;
  const best = (kinds) => views.filter((view) => kinds.includes(kindOf(view)) && view.sizes.every((size) => size > 0))
    .sort((one, two) => rank(one) - rank(two))[0];
  const map = views.findLast((view) => view.name === mapName) ||
    best(["frames tokens"]) || best(["tokens frames"]) || best(["frames frames"]) || best(["tokens tokens"]);
  const found = [best(["frames"]), map, best(["tokens"])].filter(Boolean);
  return found.length ? found : views.slice(0, 1);
}

function plainName(view) {
  const names = {
    frames: isShare(view) ? "how far text is taken in, moment by moment" : "moments that count",
    tokens: isShare(view) ? "how far sound is taken in, word by word" : "words that count",
    turns: "turns that count",
    "frames tokens": `which words${view.axes.at(-1).extra ? " and turns" : ""} each moment looks at`,
    "tokens frames": "which moments each word looks at",
    "frames frames": "which moments each moment looks at",
    "tokens tokens": "which words each word looks at",
  };
  return names[kindOf(view)] || nameOf(view.name);
}

function firstViewsOf(turn, views) {
  const read = make("output", { class: "read" });
  const parts = [];
  for (const view of views) {
    if (view.axes.length === 2) {
      parts.push(make("h4", {}, capital(plainName(view))), ...mapOf(turn, view));
      continue;
    }
    const labels = labelsOf(turn, view.axes[0], view.sizes[0]);
    parts.push(stripOf(turn, view, labels, read, plainName(view)));
    if (view.axes[0].kind !== "frames") parts.push(wordsOf(labels));
  }
  return [...parts, read, make("p", { class: "note" }, `By name: ${views.map((view) => nameOf(view.name)).join(", ")}.`)];
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

// What the names mean, of the views that there are.
function helpOf(views) {
  const has = (part) => views.some((view) => view.name.split(".").includes(part));
  const notes = ["Names are those of the model's parts, the outermost first."];
  if (has("gate")) {
    notes.push("Gate: 1 takes the modality's own stream alone, 0 the other modality's alone" +
      `${has("relevance") ? ", weighted by relevance" : ""}${has("augment") ? "; in augment, how much of what it looked at is added" : ""}.`);
  }
  if (has("relevance")) notes.push("Relevance: 0 closes the relation to the other modality.");
  if (has("intra") || has("inter")) notes.push("Intra is attention within a modality, inter from it to the other one.");
  if (views.some((view) => view.axes.length === 2)) {
    notes.push("Attention: how a position shares a weight of 1 among those that it looks at; above each map stands " +
      "which lie in its rows and which in its columns.");
  }
  return [make("p", { class: "note" }, notes.join(" "))];
}

// The weight that each would have if a position looked at all alike: one over their number. Other keys behind an axis
// that get nothing from anyone, such as turns before the first one, are not there.
function evenShare(turn, view) {
  const axis = view.axes.at(-1);
  const whole = wholeOf(turn)[axis.kind];
  if (axis.kind === "turns" && whole <= LONGEST) { // a turn may look at some of them alone
    return 1 / Math.max(view.values.filter((value) => value > 0).length, 1);
  }
  const keys = view.sizes.at(-1);
  let extra = 0;
  for (let key = keys - axis.extra; key < keys; key++) {
    for (let at = key; at < view.values.length; at += keys) {
      if (view.values[at] > 0) { extra += 1; break; }
    }
  }
  return 1 / Math.max(whole + extra, 1);
}

// What stands along an axis: words, seconds or turns; of several positions that were averaged, the first and the last.
function labelsOf(turn, axis, size) {
  const lengths = lengthsOf(turn), whole = wholeOf(turn)[axis.kind];
  const words = page.views.words[turn];
  const numbered = (name, index) => {
    const [first, last] = [index, index + 1].map((edge) => Math.floor((edge * whole) / lengths[axis.kind]));
    return last - first > 1 ? `${name}s ${first + 1}\u2013${last}` : `${name} ${first + 1}`;
  };
  const labels = [];
  for (let index = 0; index < size; index++) {
    if (index >= lengths[axis.kind]) labels.push(`turn near ${index - lengths[axis.kind] + 1}`);
    else if (axis.kind === "tokens") labels.push(words ? words[index] : numbered("token", index));
    else if (axis.kind === "turns") labels.push(numbered("turn", index));
    else if (turns.seconds[turn] > 0) labels.push(`${(((index + 0.5) / size) * turns.seconds[turn]).toFixed(2)} s`);
    else labels.push(numbered("frame", index));
  }
  return labels;
}

const KINDS = { frames: "over time", tokens: "over words", turns: "over the turns of the conversation" };

function stripsOf(turn, views) {
  const parts = [];
  for (const [kind, title] of Object.entries(KINDS)) {
    const own = views.filter((view) => view.axes.length === 1 && view.axes[0].kind === kind && view.sizes[0] > 0);
    if (!own.length) continue;
    const labels = labelsOf(turn, own[0].axes[0], own[0].sizes[0]);
    const read = make("output", { class: "read" });
    parts.push(make("h4", {}, title), ...own.map((view) => stripOf(turn, view, labels, read, nameOf(view.name))));
    if (kind !== "frames") parts.push(wordsOf(labels));
    parts.push(read);
  }
  return parts;
}

function wordsOf(labels) {
  return make("div", { class: "strip", "aria-hidden": "true" }, make("span"),
    make("div", { class: `words${labels.length > 8 ? " many" : ""}` }, ...labels.map((label) => make("b", { title: label }, label))));
}

function described(view, labels) {
  const highest = view.values.indexOf(Math.max(...view.values));
  return `${view.name}: ${labels.length} values up to ${view.largest.toFixed(2)}, highest at ${labels[highest]}`;
}

// A value as it is and, of a weight, against the even share.
const valueText = (value, even) => value.toFixed(3) + (even ? `, ${(value / even).toFixed(1)} × even` : "");

// A curve: shares from 0 to 1; weights from 0 to the largest, with a line at the even share.
function stripOf(turn, view, labels, read, name) {
  const canvas = make("canvas", { role: "img", "aria-label": described(view, labels), tabindex: "0" });
  const even = isShare(view) ? null : evenShare(turn, view);
  const top = even === null ? 1 : Math.max(view.largest, even * 1.05);
  drawings.push(() => {
    const { context, width, height } = prepared(canvas);
    const step = width / labels.length;
    context.fillStyle = colour("--accent");
    view.values.forEach((value, index) => {
      const tall = (value / top) * height;
      const left = Math.floor(index * step);
      context.fillRect(left, height - tall, Math.floor((index + 1) * step) - left - (step > 6 ? 1 : 0), tall);
    });
    if (even !== null) {
      context.fillStyle = colour("--wrong");
      for (let x = 0; x < width; x += 8) context.fillRect(x, Math.round(height - (even / top) * height) - 1, 4, 2);
    }
  });
  pick(canvas, labels.length, 1, (column) => {
    read.textContent = `${name}, ${labels[column]}: ${valueText(view.values[column], even)}`;
  });
  const scale = even === null ? "0 to 1" : `0 to ${(top / even).toFixed(1)} × even`;
  const picture = view.axes[0].kind === "frames" ? timed(canvas) : canvas;
  return make("div", { class: "strip" }, make("span", { title: view.name }, name), picture, make("span", {}, scale));
}

const nameOf = (name) => name.replaceAll(".", " › ");

function mapsOf(turn, views) {
  const maps = views.filter((view) => view.axes.length === 2 && view.sizes[0] > 0 && view.sizes[1] > 0);
  if (!maps.length) return [];
  const crossing = (view) => view.axes[0].kind !== view.axes[1].kind;
  const first = maps.find((view) => view.name === mapName) || maps.find(crossing) || maps[0];
  const select = make("select", { "aria-label": "Which map" },
    ...maps.map((view) => make("option", { value: view.name, selected: view === first }, nameOf(view.name))));
  const place = make("div");
  const strips = drawings.length;
  const show = () => {
    mapName = select.value;
    drawings.length = strips;
    place.replaceChildren(...mapOf(turn, maps.find((view) => view.name === mapName)));
    drawAll();
  };
  select.addEventListener("change", show);
  show();
  return [make("h4", {}, "Attention, mean over heads"), select, place];
}

function mapOf(turn, view) {
  // frames lie across, where there are any, so that time runs as in the waveform
  const turned = view.axes[0].kind !== "frames" && view.axes[1].kind === "frames";
  const keysAcross = view.axes[0].kind !== "frames" && !turned;
  const [across, down] = keysAcross ? [1, 0] : turned ? [1, 0] : [0, 1];
  const [columns, rowCount] = [view.sizes[across], view.sizes[down]];
  const value = (column, row) => (across === 1 ? view.values[row * columns + column] : view.values[column * rowCount + row]);
  const labels = [labelsOf(turn, view.axes[across], columns), labelsOf(turn, view.axes[down], rowCount)];
  const read = make("output", { class: "read" });
  const canvas = make("canvas", {
    tabindex: "0", role: "img",
    "aria-label": `${view.name}: ${columns} by ${rowCount}, up to ${view.largest.toFixed(2)}; arrow keys read it`,
  });
  const even = evenShare(turn, view);
  const tall = view.axes[down].kind === "frames" ? 5 : 17;
  canvas.style.height = `${Math.max(rowCount * tall, 60)}px`;
  let cell = null;
  drawings.push(() => {
    const { context, width, height } = prepared(canvas);
    const [wide, high] = [width / columns, height / rowCount];
    for (let row = 0; row < rowCount; row++) {
      for (let column = 0; column < columns; column++) {
        context.fillStyle = cividis(view.largest ? value(column, row) / view.largest : 0);
        context.fillRect(Math.floor(column * wide), Math.floor(row * high), Math.ceil(wide), Math.ceil(high));
      }
    }
    if (cell) {
      context.strokeStyle = "#d55e00";
      context.lineWidth = 3;
      context.strokeRect(cell[0] * wide, cell[1] * high, wide, high);
    }
  });
  const draw = drawings[drawings.length - 1];
  pick(canvas, columns, rowCount, (column, row) => {
    cell = [column, row];
    const [asks, looks] = across === 0 ? [labels[0][column], labels[1][row]] : [labels[1][row], labels[0][column]];
    read.textContent = `${asks} looks at ${looks}: ${valueText(value(column, row), even)}`;
    draw();
  });
  const asking = view.axes[0].kind;
  const isWhole = Math.max(turns.frames[turn], turns.tokens[turn]) <= LONGEST; // means over blocks of keys sum to less
  const notes = `${asking} (${across === 0 ? "columns" : "rows"}) look at ` +
    `${view.axes[1].kind}${view.axes[1].extra ? " and neighbouring turns" : ""} (${across === 0 ? "rows" : "columns"})` +
    (isWhole ? `: each ${across === 0 ? "column" : "row"} sums to 1` : "");
  const labelled = (axis, names) => names.map((name) => make("b", { title: name }, view.axes[axis].kind === "frames" ? "" : name));
  const ends = view.axes[across].kind === "frames" ? [labels[0][0], labels[0][columns - 1]] : [];
  const side = make("div", { class: "down", "aria-hidden": "true" }, ...labelled(down, labels[1]));
  const scale = make("span", { class: "scale", role: "img", "aria-label": `from 0 to ${(view.largest / even).toFixed(1)} times the even share` });
  const mark = make("b");
  mark.style.left = `${Math.min((100 * even) / (view.largest || 1), 100)}%`;
  if (view.largest >= even) scale.append(mark);
  return [
    make("p", { class: "note" }, notes, make("br"), "0", scale, `${(view.largest / even).toFixed(1)} × even (the mark is an even share, ${even.toFixed(3)})`),
    make("div", { class: "map" }, side, view.axes[across].kind === "frames" ? timed(canvas) : canvas,
      view.axes[across].kind === "frames"
        ? make("div", { class: "foot" }, ...ends.map((end) => make("span", {}, end)))
        : make("div", { class: "across foot", "aria-hidden": "true" }, ...labelled(across, labels[0]))),
    read,
  ];
}

function cividis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const below = Math.min(Math.floor(at), CIVIDIS.length - 2);
  const mixed = CIVIDIS[below].map((low, index) => Math.round(low + (CIVIDIS[below + 1][index] - low) * (at - below)));
  return `rgb(${mixed.join(",")})`;
}

// Calls `tell(column, row)` for the cell under the pointer, or the one that arrow keys move to.
function pick(canvas, columns, rowCount, tell) {
  let [column, row] = [0, 0];
  canvas.addEventListener("pointermove", (event) => {
    column = Math.min(columns - 1, Math.max(0, Math.floor((event.offsetX / canvas.clientWidth) * columns)));
    row = Math.min(rowCount - 1, Math.max(0, Math.floor((event.offsetY / canvas.clientHeight) * rowCount)));
    tell(column, row);
  });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!by) return;
    event.preventDefault();
    column = Math.min(columns - 1, Math.max(0, column + by[0]));
    row = Math.min(rowCount - 1, Math.max(0, row + by[1]));
    tell(column, row);
  });
}
