// What every part of the page uses: its elements, what it knows, how it writes.

export const byId = (id) => document.getElementById(id);
export const stage = byId("stage"), video = byId("video"), picture = byId("picture");
export const empty = byId("empty"), unshown = byId("unshown");

export const state = {
  token: sessionStorage.getItem("p4q-edge-token") || "",
  heads: [], chosen: "", base: "", stream: null, facing: "environment", running: false, run: 0,
  shown: null, spokenAt: -Infinity, spoken: "", fps: null, latency: null, device: null, lastAnswer: 0,
};

export const percent = (value) => `${(100 * value).toFixed(value >= 0.0995 ? 0 : 1)} %`;
export const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

export function element(tag, className) {
  const made = document.createElement(tag);
  made.className = className;
  return made;
}

export function problem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}
