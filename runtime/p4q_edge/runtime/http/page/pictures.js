// Pictures that are chosen, dropped or pasted.

import { classify, clearAnswer, render } from "./answers.js";
import { stopCamera } from "./camera.js";
import { byId, element, empty, percent, picture, problem, stage, state, unshown, video } from "./common.js";

const gallery = byId("gallery");

async function addPictures(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || /\.(heic|avif|ppm)$/i.test(file.name));
  if (!images.length) return problem("There is no picture among these files.");
  problem("");
  if (state.stream) stopCamera();
  const items = images.map((file) => {
    const item = { file, url: URL.createObjectURL(file), name: file.name || "pasted picture" };
    item.entry = document.createElement("li");
    item.button = element("button", "");
    item.button.type = "button";
    item.button.setAttribute("aria-pressed", "false");
    const image = document.createElement("img");
    image.src = item.url;
    image.alt = "";
    item.caption = document.createElement("span");
    item.caption.textContent = item.name;
    item.button.append(image, item.caption);
    item.button.addEventListener("click", () => show(item));
    item.entry.append(item.button);
    return item;
  });
  gallery.prepend(...items.map((item) => item.entry));
  gallery.hidden = false;
  await show(items[0]);
  for (const item of items.slice(1)) await answerOf(item).catch(() => {});
}

async function answerOf(item) {
  const say = (text) => {
    item.caption.textContent = text;
    item.button.setAttribute("aria-label", `${item.name}: ${text}`);
  };
  try {
    const answer = await classify(item.file);
    say(answer.known ? `${answer.label} ${percent(answer.score)}` : "unknown");
    return answer;
  } catch (error) {
    say(error.status === 422 ? "cannot be read" : "no answer");
    throw error;
  }
}

export async function show(item) {
  if (state.stream) stopCamera();
  state.shown = item;
  for (const button of gallery.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button === item.button));
  }
  picture.src = item.url;
  picture.alt = item.name;
  picture.hidden = false;
  video.hidden = empty.hidden = unshown.hidden = true;
  clearAnswer("Looking …");
  try {
    const answer = await answerOf(item);
    if (state.shown === item) { render(answer); problem(""); }
  } catch (error) {
    if (state.shown === item) { clearAnswer("No answer"); problem(error.message); }
  }
}

// The server reads more kinds of pictures than a browser shows.
picture.addEventListener("error", () => {
  if (picture.hidden) return;  // something else is looked at by now
  unshown.textContent = `This browser cannot show ${picture.alt}.`;
  unshown.hidden = false;
  picture.hidden = true;
});

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", (event) => {
  addPictures(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) addPictures(event.clipboardData.files);
});
document.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) stage.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  if (event.dataTransfer.files.length) addPictures(event.dataTransfer.files);
});
