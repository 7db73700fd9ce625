// Which turns are listed, and the list of them: only the rows in sight exist, so that thousands cost no more than ten.
const ROW = 58; // pixels, as page.css says
const SPARE = 6; // rows above and below those in sight
const list = document.getElementById("list");
const rows = document.getElementById("rows");
const filters = document.getElementById("filters");
let listed = new Int32Array(0);
let lowered = null; // texts, for the search

function field(label, name, options) {
  const control = make("select", { name }, ...options.map(([value, shown]) => make("option", { value }, shown)));
  filters.append(make("label", {}, label, control));
}

function makeFilters() {
  const show = [["all", "all"]];
  if (isLabel) show.push(["wrong", "wrong ones"], ["right", "right ones"]);
  else show.push(["wrong", `off by more than ${page.typicalError.toFixed(2)}`], ["right", "nearer than that"]);
  if (turns.disagree) show.push(["disagree", "audio and text disagree"]);
  if (other) {
    show.push(["both", "both models are right"], ["own", `only ${page.name} is right`]);
    show.push(["other", `only ${other.name} is right`], ["neither", "neither model is right"], ["differ", "the models differ"]);
  }
  show.push(["views", "with views of the model"]);
  field("show", "show", show);
  const labels = page.labels.map((label, index) => [String(index), label]);
  if (isLabel) {
    field("true emotion", "true", [["", "any"], ...labels]);
    field("predicted", "predicted", [["", "any"], ...labels]);
    if (page.seeds.length > 1) field("predicted by", "by", [["mean", "mean over seeds"], ["any", "any seed"]]);
  }
  if (page.splits.length > 1) field("split", "split", [["", "any"], ...page.splits.map((name, index) => [String(index), name])]);
  const order = [["said", "as they were said"], ["change", "biggest change without the other turns"]];
  order.push(isLabel ? ["sure", "least certain"] : ["error", "largest error"]);
  field("order", "order", order);
  const search = make("input", { name: "search", type: "search", placeholder: "words, speaker, id", "aria-keyshortcuts": "/" });
  filters.append(make("label", {}, "search", search), make("button", { type: "reset" }, "reset"));
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", applyFilters);
  filters.addEventListener("reset", () => setTimeout(applyFilters));
}

const TESTS = {
  all: () => true,
  wrong: (turn) => turns.wrong[turn] === 1,
  right: (turn) => hasTruth(turn) && turns.wrong[turn] === 0,
  disagree: (turn) => turns.disagree[turn] === 1,
  views: (turn) => String(turn) in page.views.content,
  both: (turn) => hasTruth(turn) && !turns.wrong[turn] && !other.wrong[turn],
  own: (turn) => hasTruth(turn) && !turns.wrong[turn] && other.wrong[turn] === 1,
  other: (turn) => hasTruth(turn) && turns.wrong[turn] === 1 && !other.wrong[turn],
  neither: (turn) => turns.wrong[turn] === 1 && other.wrong[turn] === 1,
  differ: (turn) => (isLabel ? turns.predicted[turn] !== other.predicted[turn] : turns.wrong[turn] !== other.wrong[turn]),
};

const isPredicted = (turn, label, by) =>
  by === "any" ? turns.bySeed.some((seed) => seed[turn] === label) : turns.predicted[turn] === label;

// What the list is ordered by, the largest first; as they were said where there is nothing.
function ranksOf(order) {
  if (order === "change") return turns.change;
  if (order === "error") return turns.true.map((score, turn) => (Number.isNaN(score) ? -1 : Math.abs(score - turns.mean[turn])));
  if (order === "sure") {
    return Float32Array.from(turns.predicted, (label, turn) => -turns.mean[turn * outputs + label]);
  }
  return null;
}

function chooseTurns() {
  const chosen = Object.fromEntries(new FormData(filters));
  const test = TESTS[chosen.show];
  const words = chosen.search.trim().toLowerCase();
  if (words && !lowered) {
    lowered = page.ids.map((id, turn) => `${textOf(turn)}\n${speakerOf(turn)}\n${id}`.toLowerCase());
  }
  const kept = [];
  for (let turn = 0; turn < turns.count; turn++) {
    if (!test(turn)) continue;
    if (chosen.true && turns.true[turn] !== Number(chosen.true)) continue;
    if (chosen.predicted && !isPredicted(turn, Number(chosen.predicted), chosen.by)) continue;
    if (chosen.split && page.splitOf[turns.conversation[turn]] !== Number(chosen.split)) continue;
    if (words && !lowered[turn].includes(words)) continue;
    kept.push(turn);
  }
  const found = Int32Array.from(kept);
  const ranks = ranksOf(chosen.order);
  return ranks ? found.sort((one, other) => ranks[other] - ranks[one] || one - other) : found;
}

// Lists the turns of a cell of a table, which names values of the filters.
function listTurnsOf(cell) {
  for (const control of filters.querySelectorAll("select")) control.selectedIndex = 0;
  filters.elements.search.value = "";
  const wanted = { ...cell.dataset };
  if ("true" in wanted && page.seeds.length > 1) wanted.by = "any";
  if (page.splits.includes("test") && filters.elements.split) wanted.split = String(page.splits.indexOf("test"));
  for (const [name, value] of Object.entries(wanted)) filters.elements[name].value = value;
  applyFilters();
  document.getElementById("conversations").scrollIntoView();
  list.focus({ preventScroll: true });
}

function makeCells() {
  const cells = page.splits.includes("test") ? "[data-true], [data-show]" : "[data-show]";
  for (const cell of document.querySelectorAll(cells)) {
    const count = cell.querySelector("b") || cell;
    if (count.textContent === "0") continue;
    const button = make("button", { type: "button", class: "cell", title: "List these turns" }, ...count.childNodes);
    button.addEventListener("click", () => listTurnsOf(cell));
    count.append(button);
  }
}

function applyFilters() {
  listed = chooseTurns();
  const wrong = listed.reduce((sum, turn) => sum + turns.wrong[turn], 0);
  const shown = isLabel ? "wrong" : "far off";
  document.getElementById("count").textContent =
    `${listed.length.toLocaleString("en")} of ${turns.count.toLocaleString("en")} turns, ${wrong.toLocaleString("en")} ${shown}`;
  rows.style.height = `${listed.length * ROW}px`;
  list.scrollTop = 0;
  drawRows();
  if (listed.length) choose(listed[0], "filter");
  else showNothing();
}

function rowOf(place) {
  const turn = listed[place];
  const speaker = speakerOf(turn);
  const row = make("div", {
    class: "row", role: "option", id: `row${turn}`, "aria-selected": String(turn === chosenTurn),
    "aria-posinset": place + 1, "aria-setsize": listed.length, onclick: () => choose(turn, "list"),
  });
  row.style.top = `${place * ROW}px`;
  row.append(
    make("div", {}, markOf(turn), make("b", {}, speaker ? `${speaker}: ` : ""), textOf(turn)),
    make("div", {}, make("small", {}, dotOf(turns.true[turn]), `${truthText(turn)} → ${predictionText(turn)} · ${page.ids[turn]}`)),
  );
  return row;
}

function drawRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
  const last = Math.min(listed.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
  const drawn = [];
  for (let place = first; place < last; place++) drawn.push(rowOf(place));
  rows.replaceChildren(...drawn);
  const chosen = document.getElementById(`row${chosenTurn}`);
  if (chosen) list.setAttribute("aria-activedescendant", chosen.id);
  else list.removeAttribute("aria-activedescendant");
}

function bringIntoSight(place) {
  const top = place * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

function step(by) {
  if (!listed.length) return;
  const here = listed.indexOf(chosenTurn);
  const place = Math.min(Math.max(here < 0 ? 0 : here + by, 0), listed.length - 1);
  choose(listed[place], "list");
  bringIntoSight(place);
}

list.addEventListener("scroll", () => requestAnimationFrame(drawRows));
list.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -turns.count, End: turns.count }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  step(by);
});
