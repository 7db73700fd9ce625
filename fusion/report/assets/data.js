// The turns as the page holds them (fusion/report/turns.py), unpacked once.
const page = JSON.parse(document.getElementById("turns").textContent);

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
  return bytes;
}

function unpack(base64, Kind) {
  return base64 === null ? null : new Kind(bytesOf(base64).buffer);
}

const isLabel = page.target === "label";
const outputs = isLabel ? page.labels.length : 1;
const Answer = isLabel ? Uint8Array : Float32Array;
const turns = {
  count: page.ids.length,
  starts: unpack(page.starts, Int32Array),
  speaker: unpack(page.speakers.of, Int32Array),
  status: page.statuses && unpack(page.statuses.of, Int32Array),
  seconds: unpack(page.seconds, Float32Array),
  frames: unpack(page.frames, Uint32Array),
  tokens: unpack(page.tokens, Uint32Array),
  true: unpack(page.true, isLabel ? Int16Array : Float32Array),
  mean: unpack(page.mean, Answer),
  answers: page.answers.map((one) => unpack(one, Answer)),
  alone: unpack(page.alone, Answer),
  audio: unpack(page.audio, Answer),
  text: unpack(page.text, Answer),
  predicted: unpack(page.predicted, Int16Array),
  bySeed: page.predictedBySeed.map((one) => unpack(one, Int16Array)),
  wrong: unpack(page.wrong, Uint8Array),
  disagree: unpack(page.disagree, Uint8Array),
  change: unpack(page.change, Float32Array),
  sound: unpack(page.soundOf, Int32Array),
  begin: unpack(page.begin, Float32Array),
  end: unpack(page.end, Float32Array),
  conversation: new Int32Array(page.ids.length),
};
const other = page.beside && {
  name: page.beside.name,
  mean: unpack(page.beside.mean, Answer),
  predicted: unpack(page.beside.predicted, Int16Array),
  wrong: unpack(page.beside.wrong, Uint8Array),
};
for (let index = 0; index + 1 < turns.starts.length; index++) {
  turns.conversation.fill(index, turns.starts[index], turns.starts[index + 1]);
}

const hasTruth = (turn) => (isLabel ? turns.true[turn] !== page.unlabelled : !Number.isNaN(turns.true[turn]));
const textOf = (turn) => (page.texts && page.texts[turn] !== null ? page.texts[turn] : page.ids[turn]);
const speakerOf = (turn) => page.speakers.names[turns.speaker[turn]];
// Of a label that is read from right to left, so that the number behind it stays behind it.
const labelText = (label) => (/[\u0590-\u08ff\ufb1d-\ufefc]/.test(page.labels[label]) ? `\u2068${page.labels[label]}\u2069` : page.labels[label]);
function scoreText(value) {
  const size = Math.abs(value).toFixed(2);
  return (value < 0 && Number(size) > 0 ? "−" : "+") + size; // zero has a plus
}

// One answer as text: a share of the probability, or a score.
function answerText(answers, turn, output) {
  const value = answers[turn * outputs + output];
  return isLabel ? `${Math.round((value * 100) / 255)} %` : scoreText(value);
}

function truthText(turn) {
  if (!hasTruth(turn)) return isLabel ? "no label" : "no score";
  return isLabel ? labelText(turns.true[turn]) : scoreText(turns.true[turn]);
}

function predictionText(turn, model = turns) {
  if (!isLabel) return scoreText(model.mean[turn]);
  return `${labelText(model.predicted[turn])} ${answerText(model.mean, turn, model.predicted[turn])}`;
}

// An element with attributes and children; texts become text nodes, so that none of them is ever markup.
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function markOf(turn, model = turns) {
  if (!hasTruth(turn)) return make("span", { class: "mark", title: "no truth" }, "–");
  const [kind, sign, meaning] = model.wrong[turn]
    ? ["wrong", "✗", isLabel ? "wrong" : "far off"]
    : ["right", "✓", isLabel ? "right" : "near"];
  return make("span", { class: `mark ${kind}`, role: "img", "aria-label": meaning, title: meaning }, sign);
}

function dotOf(label) {
  return isLabel && label >= 0 ? make("span", { class: `dot e${label % 8}`, "aria-hidden": "true" }) : null;
}
