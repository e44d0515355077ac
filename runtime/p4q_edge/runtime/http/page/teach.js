// Teaching: photos of each class, and the lesson.

import { ask } from "./ask.js";
import { shot, startCamera } from "./camera.js";
import { byId, pause, percent, state, video } from "./common.js";
import { loadHeads } from "./heads.js";
import { show } from "./pictures.js";

const TAKE_EVERY_MS = 250;
const lessons = [];

export function addClass({ name = "", strangers = false, focus = false } = {}) {
  const entry = byId("class-template").content.firstElementChild.cloneNode(true);
  const item = { entry, photos: [], strangers, taking: 0 };
  const input = entry.querySelector(".class-name"), label = entry.querySelector("label");
  const id = `class-${lessons.length + 1}-${Date.now()}`;
  input.id = id;
  label.htmlFor = id;
  input.value = name;
  item.name = () => (strangers ? "something else" : input.value.trim());
  const rename = () => {
    const words = item.name() || "this class";
    entry.querySelector(".hold").setAttribute("aria-label", `Hold to take photos of ${words}`);
    entry.querySelector(".from-files").setAttribute("aria-label", `Choose photos of ${words}`);
    entry.querySelector(".remove .visually-hidden").textContent = strangers ? "Remove these photos" : `Remove ${words}`;
  };
  if (strangers) {
    entry.classList.add("strangers");
    label.textContent = "Something else (optional): photos of none of the classes";
    input.hidden = true;
    label.removeAttribute("for");
    entry.querySelector(".remove").hidden = true;
  }
  input.addEventListener("input", rename);
  rename();
  entry.querySelector(".remove").addEventListener("click", () => {
    if (strangers) return removePhotos(item);
    lessons.splice(lessons.indexOf(item), 1);
    entry.remove();
    byId("add-class").focus();
  });
  holding(item, entry.querySelector(".hold"));
  const files = entry.querySelector(".class-files");
  entry.querySelector(".from-files").addEventListener("click", () => files.click());
  files.addEventListener("change", async () => {
    for (const file of files.files) await addPhotoFile(item, file);
    files.value = "";
  });
  const last = lessons.findIndex((other) => other.strangers);
  if (last < 0) { lessons.push(item); byId("classes").append(entry); }
  else { lessons[last].entry.before(entry); lessons.splice(last, 0, item); }
  if (focus) input.focus();
  return item;
}

async function addPhotoFile(item, file) {
  try {
    const image = await createImageBitmap(file);
    addPhoto(item, await shot(image, image.width, image.height));
    image.close();
  } catch {
    lessonResult(`${file.name} cannot be read as a picture.`, true);
  }
}

function addPhoto(item, blob) {
  item.photos.push(blob);
  const image = document.createElement("img");
  image.alt = "";
  image.src = URL.createObjectURL(blob);
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  item.entry.querySelector(".thumbs").prepend(image);
  const count = item.photos.length;
  item.entry.querySelector(".count").textContent = `${count} ${count === 1 ? "photo" : "photos"}`;
  item.entry.querySelector(".remove").hidden = false;
}

function removePhotos(item) {
  item.photos.length = 0;
  item.entry.querySelector(".thumbs").replaceChildren();
  item.entry.querySelector(".count").textContent = "";
  item.entry.querySelector(".remove").hidden = true;
  item.entry.querySelector(".hold").focus();
}

function holding(item, button) {
  const stop = () => {
    item.taking = 0;
    button.classList.remove("taking");
  };
  const start = async () => {
    if (item.taking) return;
    const run = (item.taking = performance.now());
    button.classList.add("taking");
    if (!state.stream && !(await startCamera())) return stop();
    do {
      if (video.videoWidth) addPhoto(item, await shot(video, video.videoWidth, video.videoHeight));
      await pause(TAKE_EVERY_MS);
    } while (item.taking === run);
  };
  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    button.setPointerCapture(event.pointerId);
    start();
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture", "blur"]) button.addEventListener(name, stop);
  button.addEventListener("contextmenu", (event) => event.preventDefault());
  button.addEventListener("keydown", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    if (!event.repeat) start();
  });
  button.addEventListener("keyup", stop);
}

function lessonResult(text, bad = false) {
  const result = byId("lesson-result");
  result.textContent = text;
  result.classList.toggle("bad", bad);
  result.hidden = !text;
}

function lessonProblem(taught, add, strangers) {
  if (add && strangers.photos.length) {
    return "Photos of something else decide the threshold, and classes that are added keep that of their class set. "
      + "Remove these photos, or learn without its classes.";
  }
  const named = taught.map((item) => item.name().toLowerCase());
  if (taught.some((item) => !item.name())) return "Give each class with photos a name.";
  if (new Set(named).size < named.length) return "Two classes have the same name. Put their photos together.";
  if (!taught.length || (!add && taught.length < 2)) {
    return add
      ? "Take photos of a class first."
      : "Take photos of two classes or more, so that there is something to tell apart.";
  }
  const few = taught.find((item) => item.photos.length < 2);
  return few ? `Take some more photos of ${few.name()}: at least 2, 4 to 16 are good.` : "";
}

async function learn(event) {
  event.preventDefault();
  const add = byId("keep").checked, name = byId("name").value.trim(), base = state.base;
  const taught = lessons.filter((item) => item.photos.length && !item.strangers);
  const strangers = lessons.find((item) => item.strangers);
  const wrong = lessonProblem(taught, add, strangers);
  if (wrong) return lessonResult(wrong, true);
  const form = new FormData();
  for (const item of taught) item.photos.forEach((photo, index) => form.append(item.name(), photo, `${index + 1}.jpg`));
  const query = new URLSearchParams({ base, add: String(add) });
  if (strangers.photos.length) {
    query.set("unknown", "none of these classes");
    strangers.photos.forEach((photo, index) => form.append("none of these classes", photo, `${index + 1}.jpg`));
  }
  byId("learn").disabled = true;
  lessonResult("Learning …");
  const started = performance.now();
  try {
    const { content } = await ask(`/heads/${encodeURIComponent(name)}/teach?${query}`, { method: "POST", body: form });
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    const share = content.held_out_accuracy === null ? ""
      : ` Right on photos that were held out: ${percent(content.held_out_accuracy)}, n = ${content.held_out}.`;
    const learned = `Learned “${content.head.name}” with ${content.head.class_names.length} classes in ${seconds} s.`;
    lessonResult(`${learned}${share} It answers now; save it to keep it.`);
    await loadHeads(content.head.name);
    if (state.shown) await show(state.shown);
  } catch (error) {
    lessonResult(error.message, true);
  } finally {
    byId("learn").disabled = false;
  }
}

byId("lesson").addEventListener("submit", learn);
byId("add-class").addEventListener("click", () => addClass({ focus: true }));
byId("save").addEventListener("click", async () => {
  try {
    const { content } = await ask(`/heads/${encodeURIComponent(state.chosen)}/save`, { method: "POST" });
    lessonResult(`Saved as ${content.file}. It is there after a restart`
      + (content.earlier_versions ? `, and ${content.earlier_versions} earlier of its name can be taken back.` : "."));
    await loadHeads();
  } catch (error) {
    lessonResult(error.message, true);
  }
});
