// Answers: asked for, drawn, spoken, counted.

import { ask } from "./ask.js";
import { byId, element, percent, state } from "./common.js";

const bars = byId("bars"), best = byId("best");
const SPEAK_EVERY_MS = 2000;

export async function classify(blob) {
  const started = performance.now();
  const query = new URLSearchParams({ head: state.chosen, top_k: "5" });
  const { content, response } = await ask(`/classify?${query}`, {
    method: "POST", body: blob, headers: { "Content-Type": blob.type || "application/octet-stream" },
  });
  const device = /dur=([\d.]+)/.exec(response.headers.get("server-timing") ?? "");
  return {
    ...content.predictions[0], latency: performance.now() - started, device: device ? Number(device[1]) : null,
  };
}

export function render(answer) {
  best.classList.remove("muted");
  best.textContent = answer.known ? answer.label : "Unknown";
  byId("known").hidden = answer.known;
  byId("known").textContent = `nearest: ${answer.label}`;
  byId("legend").hidden = !answer.topk.some((entry) => entry.threshold > 0);
  while (bars.children.length > answer.topk.length) bars.lastElementChild.remove();
  while (bars.children.length < answer.topk.length) bars.append(newBar());
  answer.topk.forEach((entry, index) => {
    const bar = bars.children[index];
    bar.classList.toggle("accepted", entry.score >= entry.threshold);
    bar.querySelector(".label").textContent = entry.label;
    bar.querySelector(".score").textContent = percent(entry.score);
    bar.querySelector(".fill").style.width = `${100 * entry.score}%`;
    const least = bar.querySelector(".least");
    least.hidden = entry.threshold <= 0;
    least.style.left = `calc(${100 * entry.threshold}% - 1px)`;
  });
  speak(answer);
  numbers(answer);
}

export function clearAnswer(text) {
  // What stood here was about another picture.
  best.classList.add("muted");
  best.textContent = text;
  byId("known").hidden = byId("legend").hidden = true;
  bars.replaceChildren();
  state.spoken = byId("spoken").textContent = "";
  state.spokenAt = -Infinity;
  for (const id of ["fps", "latency", "device"]) byId(id).textContent = "–";
}

function newBar() {
  const bar = document.createElement("li");
  const row = element("div", "row"), track = element("div", "track");
  row.append(element("span", "label"), element("span", "score"));
  track.append(element("div", "fill"), element("div", "least"));
  track.setAttribute("aria-hidden", "true");
  bar.append(row, track);
  return bar;
}

function speak(answer) {
  // A screen reader hears a change, and not each frame.
  const text = answer.known ? `${answer.label}, ${percent(answer.score)}` : `Unknown, nearest ${answer.label}`;
  const subject = answer.known ? answer.label : "?";
  const now = performance.now();
  if (subject === state.spoken || now - state.spokenAt < SPEAK_EVERY_MS) return;
  state.spoken = subject;
  state.spokenAt = now;
  byId("spoken").textContent = text;
}

const smooth = (old, value) => (old === null ? value : 0.85 * old + 0.15 * value);
const milliseconds = (value) => (value === null ? "–" : `${value < 9.95 ? value.toFixed(1) : value.toFixed(0)} ms`);

function numbers(answer) {
  const now = performance.now();
  if (state.running) {
    if (state.lastAnswer) state.fps = smooth(state.fps, 1000 / (now - state.lastAnswer));
    state.lastAnswer = now;
  }
  state.latency = state.running ? smooth(state.latency, answer.latency) : answer.latency;
  state.device = answer.device === null ? null : state.running ? smooth(state.device, answer.device) : answer.device;
  byId("fps").textContent = state.running && state.fps !== null ? state.fps.toFixed(1) : "–";
  byId("latency").textContent = milliseconds(state.latency);
  byId("device").textContent = milliseconds(state.device);
}
