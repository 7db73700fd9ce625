// The recording of a turn: a player, and its waveform where the file is inside the page (others cannot be read here).
let player = null;
let wave = null; // {canvas, begin, end, peaks} of the chosen turn
const decoded = new Map(); // by sound: samples and their rate

function stopSound() {
  if (player) player.pause();
  player = null;
  wave = null;
}

function soundOf(turn) {
  const index = turns.sound[turn];
  if (index < 0) return [];
  const sound = page.sounds[index];
  const begin = Math.max(turns.begin[turn], 0);
  const end = turns.end[turn] > 0 ? turns.end[turn] : Infinity;
  const audio = make("audio", { controls: true, preload: "metadata", "aria-label": "Recording of the turn" });
  audio.src = sound.inside ? sound.source : `${sound.source}#t=${begin}${end < Infinity ? `,${end}` : ""}`;
  audio.addEventListener("loadedmetadata", () => { if (begin > 0) audio.currentTime = begin; });
  audio.addEventListener("play", () => {
    if (audio.currentTime < begin || audio.currentTime >= end) audio.currentTime = begin;
    follow(audio);
  });
  audio.addEventListener("timeupdate", () => { if (audio.currentTime >= end) audio.pause(); });
  player = audio;
  const told = make("span", { class: "note" });
  audio.addEventListener("error", () => { told.textContent = `${sound.name} cannot be played: is it still beside this page?`; });
  const parts = [make("h4", {}, "Sound"), make("div", { class: "sound" }, audio, told)];
  if (sound.inside) parts.push(waveOf(audio, index, begin, end));
  else told.textContent = `Played from ${sound.name}, so only where this page was written.`;
  return parts;
}

function waveOf(audio, index, begin, end) {
  const canvas = make("canvas", { class: "wave", role: "img", "aria-label": "Waveform" });
  const told = make("span", {}, "waveform");
  const row = make("div", { class: "strip" }, told, canvas, make("span"));
  wave = { canvas, begin, end, samples: null };
  const own = wave;
  canvas.addEventListener("click", (event) => {
    if (!own.samples) return;
    audio.currentTime = own.begin + (event.offsetX / canvas.clientWidth) * (own.end - own.begin);
    audio.play();
  });
  decode(index).then(({ samples, rate }) => {
    own.end = Math.min(end, samples.length / rate);
    own.samples = samples.subarray(Math.floor(begin * rate), Math.ceil(own.end * rate));
    drawWave(own);
  }, () => { told.textContent = "waveform: this browser cannot decode it"; });
  return row;
}

async function decode(index) {
  if (!decoded.has(index)) {
    const source = page.sounds[index].source;
    const context = new OfflineAudioContext(1, 1, 16000);
    const content = await context.decodeAudioData(bytesOf(source.slice(source.indexOf(",") + 1)).buffer);
    decoded.clear(); // one at a time: samples of a long recording are large
    decoded.set(index, { samples: content.getChannelData(0), rate: content.sampleRate });
  }
  return decoded.get(index);
}

function drawWave(own) {
  if (!own || !own.samples) return;
  const { context, width, height } = prepared(own.canvas);
  const per = own.samples.length / width;
  context.fillStyle = colour("--accent");
  for (let x = 0; x < width; x++) {
    let low = 0;
    let high = 0;
    for (let at = Math.floor(x * per); at < Math.min((x + 1) * per, own.samples.length); at++) {
      low = Math.min(low, own.samples[at]);
      high = Math.max(high, own.samples[at]);
    }
    context.fillRect(x, ((1 - high) * height) / 2, 1, Math.max(1, ((high - low) * height) / 2));
  }
  if (player && player.currentTime > own.begin) {
    context.fillStyle = colour("--wrong");
    context.fillRect(((player.currentTime - own.begin) / (own.end - own.begin)) * width - 1, 0, 2, height);
  }
}

function follow(audio) {
  if (audio !== player) return;
  drawWave(wave);
  if (!audio.paused) requestAnimationFrame(() => follow(audio));
}
