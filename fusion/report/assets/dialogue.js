// One conversation as a dialogue, with the chosen turn opened in its place.
const AROUND = 150; // turns shown on each side of the chosen one; longer conversations are cut there
const dialogue = document.getElementById("dialogue");
let chosenTurn = -1;

const counted = (count, name) => `${count} ${name}${count === 1 ? "" : "s"}`;

function choose(turn, from) {
  stopSound();
  chosenTurn = turn;
  const conversation = turns.conversation[turn];
  const start = Math.max(turns.starts[conversation], turn - AROUND);
  const end = Math.min(turns.starts[conversation + 1], turn + AROUND + 1);
  const items = [];
  for (let index = start; index < end; index++) items.push(bubbleOf(index));
  const count = turns.starts[conversation + 1] - turns.starts[conversation];
  const cut = end - start < count ? `, of which ${end - start} are shown` : "";
  dialogue.replaceChildren(
    make("h3", {}, `${page.conversations[conversation]} (${page.splits[page.splitOf[conversation]]}, ${counted(count, "turn")}${cut})`),
    make("ol", {}, ...items),
  );
  const chosen = dialogue.querySelector(".chosen");
  chosen.append(detailsOf(turn));
  drawAll();
  drawRows();
  if (from !== "filter") history.replaceState(null, "", linkTo(turn));
  if (from === "link") chosen.scrollIntoView({ block: "start" });
  if (from === "dialogue") {
    chosen.querySelector("button").focus();
    chosen.scrollIntoView({ block: "nearest" });
  }
}

const linkTo = (turn) => `#turn=${encodeURIComponent(page.ids[turn])}`;

// The turn that the address names; -1: none.
function linkedTurn() {
  try {
    return location.hash.startsWith("#turn=") ? page.ids.indexOf(decodeURIComponent(location.hash.slice(6))) : -1;
  } catch {
    return -1; // not an address of ours
  }
}

window.addEventListener("hashchange", () => {
  const turn = linkedTurn();
  if (turn >= 0 && turn !== chosenTurn) choose(turn, "link");
});

function showNothing() {
  stopSound();
  chosenTurn = -1;
  dialogue.replaceChildren(make("p", { class: "note" }, "No turn is like this."));
}

function bubbleOf(turn) {
  const speaker = speakerOf(turn);
  const isChosen = turn === chosenTurn;
  const bubble = make(
    "button",
    { class: "bubble", type: "button", "aria-expanded": String(isChosen), onclick: () => choose(turn, "dialogue") },
    make("span", { class: "who" }, speaker ? `${speaker} ` : ""),
    make("span", {}, textOf(turn)),
    make("br"),
    make(
      "span", { class: "said" }, markOf(turn), dotOf(turns.true[turn]), `${truthText(turn)} → `,
      dotOf(isLabel ? turns.predicted[turn] : -1), predictionText(turn),
    ),
    ...(other ? [make("br"), make("span", { class: "said" }, `${other.name}: `, markOf(turn, other),
      dotOf(isLabel ? other.predicted[turn] : -1), predictionText(turn, other))] : []),
  );
  return make("li", { class: isChosen ? "chosen" : null }, bubble);
}

dialogue.addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (by === undefined || !event.target.classList.contains("bubble")) return;
  event.preventDefault();
  const conversation = turns.conversation[chosenTurn];
  const next = chosenTurn + by;
  if (next >= turns.starts[conversation] && next < turns.starts[conversation + 1]) choose(next, "dialogue");
});

function detailsOf(turn) {
  const status = turns.status && page.statuses.names[turns.status[turn]];
  const facts = [page.ids[turn], status && status !== "ok" ? `status ${status}` : null];
  facts.push(turns.seconds[turn] > 0 ? `${turns.seconds[turn].toFixed(2)} s` : null);
  facts.push(`${counted(turns.frames[turn], "frame")} and ${counted(turns.tokens[turn], "token")} as the model is given them`);
  return make(
    "div", { id: "turn", role: "group", "aria-label": "The chosen turn" },
    make("p", { class: "note" }, facts.filter(Boolean).join(" · "), " · ", make("a", { href: linkTo(turn) }, "link to this turn")),
    answersOf(turn),
    make("p", { class: "note" }, changeText(turn)),
    ...soundOf(turn),
    ...viewsOf(turn),
  );
}

function changeText(turn) {
  const moved = isLabel
    ? `${Math.round(100 * turns.change[turn])} % of the probability moves`
    : `the score moves by ${turns.change[turn].toFixed(2)}`;
  return `Without the other turns ${moved} (seed ${page.seeds[0]}).${turns.disagree ? ` ${sidesText(turn)}` : ""}`;
}

function sidesText(turn) {
  const [audio, text] = [turns.frames[turn] > 0, turns.tokens[turn] > 0];
  if (audio && text) return `Audio and text ${turns.disagree[turn] ? "disagree" : "agree"}.`;
  if (!audio && !text) return "There is neither audio nor text.";
  return `There is no ${audio ? "text" : "audio"}.`;
}

function answersOf(turn) {
  const columns = page.seeds.map((seed, index) => [`seed\u00a0${seed}`, turns.answers[index]]);
  columns.push([`seed\u00a0${page.seeds[0]} without\u00a0other\u00a0turns`, turns.alone]);
  if (turns.audio) columns.push(["audio's head", turns.audio], ["text's head", turns.text]);
  if (other) columns.push([other.name, other.mean]);
  const header = make("tr", {}, make("th", { scope: "col" }, ""), make("th", { scope: "col", class: "left" }, "mean over seeds"),
    ...columns.map(([name]) => make("th", { scope: "col" }, name)));
  const body = make("tbody");
  for (let output = 0; output < outputs; output++) {
    const isTrue = isLabel && turns.true[turn] === output;
    const name = isLabel ? page.labels[output] : `score (true ${truthText(turn)})`;
    const bar = make("i");
    if (isLabel) bar.style.width = `${(turns.mean[turn * outputs + output] * 100) / 255}%`;
    body.append(make("tr", {},
      make("th", { scope: "row" }, dotOf(isLabel ? output : -1), name, isTrue ? " (true)" : ""),
      make("td", { class: "bar" }, bar, make("b", {}, answerText(turns.mean, turn, output))),
      ...columns.map(([, answers]) => make("td", {}, answerText(answers, turn, output)))));
  }
  return make("div", { class: "wide", role: "region", "aria-label": "What the models say", tabindex: "0" },
    make("table", {}, make("thead", {}, header), body));
}
