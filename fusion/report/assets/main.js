// The page comes to life: keys, colours, the first turn.
const theme = document.getElementById("theme");
const THEMES = ["auto", "light", "dark"];
theme.addEventListener("click", () => {
  const now = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "auto") + 1) % THEMES.length];
  document.documentElement.dataset.theme = now;
  theme.querySelector("span").textContent = now;
  drawAll();
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
window.addEventListener("resize", () => { drawRows(); drawAll(); });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const acts = {
    j: () => step(1),
    k: () => step(-1),
    p: () => { if (player) (player.paused ? player.play() : player.pause()); },
    "/": () => filters.elements.search.focus(),
  };
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
});

makeFilters();
makeCells();
const linked = linkedTurn();
applyFilters();
if (linked >= 0) choose(linked, "link");
