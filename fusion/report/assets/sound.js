// The recording of a turn: a player, and its waveform where the file is inside the page (others cannot be read here).
let player = null;
let span = null; // {begin, end} of the chosen turn in its recording, in seconds; end is Infinity while it is not known
let wave = null; // {canvas, samples} of the chosen turn; samples are null while they are not known
const decoded = new Map(); // by sound: samples and their rate

function stopSound() {
  if (player) player.pause();
  player = null;
  span = null;
  wave = null;
}

function soundOf(turn) {
  const index = turns.sound[turn];
  if (index < 0) return [];
  const sound = page.sounds[index];
  const own = { begin: Math.max(turns.begin[turn], 0), end: turns.end[turn] > 0 ? turns.end[turn] : Infinity };
  const audio = make("audio", { controls: true, preload: "metadata", "aria-label": "Recording of the turn" });
  const part = own.end < Infinity ? `${own.begin},${own.end}` : own.begin;
  audio.src = sound.inside ? sound.source : `${sound.source}#t=${part}`;
  audio.addEventListener("loadedmetadata", () => {
    own.end = Math.min(own.end, audio.duration);
    if (own.begin > 0) audio.currentTime = own.begin;
  });
  audio.addEventListener("play", () => {
    if (audio.currentTime < own.begin || audio.currentTime >= own.end) audio.currentTime = own.begin;
    follow(audio);
  });
  audio.addEventListener("seeked", () => follow(audio));
  audio.addEventListener("timeupdate", () => { if (audio.currentTime >= own.end) audio.pause(); });
  player = audio;
  span = own;
  const note = make("span", { class: "note" });
  audio.addEventListener("error", () => { note.textContent = `${sound.name} cannot be played: is it still beside this page?`; });
  const parts = [make("h4", {}, "Sound"), make("div", { class: "sound" }, audio, note)];
  if (sound.inside) parts.push(waveOf(index, own));
  else note.textContent = `Played from ${sound.name}, so only where this page was written.`;
  return parts;
}

function waveOf(index, own) {
  const canvas = make("canvas", { class: "wave", role: "img", "aria-label": "Waveform" });
  const note = make("span", {}, "waveform");
  const shown = { canvas, samples: null };
  wave = shown;
  decode(index).then(({ samples, rate }) => {
    const end = Math.min(own.end, samples.length / rate);
    shown.samples = samples.subarray(Math.floor(own.begin * rate), Math.ceil(end * rate));
    drawWave(shown);
  }, () => { note.textContent = "waveform: this browser cannot decode it"; });
  return make("div", { class: "strip" }, note, timed(canvas), make("span"));
}

// A picture over the time of the turn: a line crosses it where the player is, and a click plays from there.
function timed(canvas) {
  canvas.addEventListener("click", (event) => {
    if (!player || span.end === Infinity) return;
    player.currentTime = span.begin + (event.offsetX / canvas.clientWidth) * (span.end - span.begin);
    player.play();
  });
  return make("div", { class: "timed" }, canvas);
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
}

// Moves the line of all timed pictures along with the player.
function follow(audio) {
  const place = document.getElementById("turn");
  if (audio !== player || !place) return;
  const share = (audio.currentTime - span.begin) / (span.end - span.begin);
  place.classList.toggle("playing", share > 0 && share <= 1);
  place.style.setProperty("--at", String(Math.min(Math.max(share, 0), 1)));
  if (!audio.paused) requestAnimationFrame(() => follow(audio));
}
