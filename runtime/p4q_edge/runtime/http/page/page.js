// The page of `p4q-edge serve`: no library, nothing loaded from elsewhere.

const byId = (id) => document.getElementById(id);
const video = byId("video"), picture = byId("picture"), stage = byId("stage"), empty = byId("empty");
const unshown = byId("unshown");
const headSelect = byId("head"), bars = byId("bars"), best = byId("best"), gallery = byId("gallery");
const SENT_SIDE = 480;       // shortest side of what is sent; more than any of the models' inputs
const QUALITY = 0.92;
const TAKE_EVERY_MS = 250;
const SPEAK_EVERY_MS = 2000;
const RETRY_MS = 1500;
const NOTHING = "Nothing to look at yet";

const state = {
  token: sessionStorage.getItem("p4q-edge-token") || "",
  heads: [], chosen: "", base: "", stream: null, facing: "environment", running: false, run: 0,
  shown: null, spokenAt: -Infinity, spoken: "", fps: null, latency: null, device: null, lastAnswer: 0,
};

// ---------------------------------------------------------------- asking the server

class Failed extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (state.token) headers.set("Authorization", `Bearer ${state.token}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch {
    throw new Failed("The server does not answer. Is it still running?", 0);
  }
  if (response.status === 401) {
    await askForToken();
    return ask(path, options);
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) {
    const reason = content.error?.message ?? content.predictions?.[0]?.error?.message;
    throw new Failed(reason ?? `The server answered ${response.status}.`, response.status);
  }
  return { content, response };
}

let asking = null;
function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token-dialog");
    byId("token-form").addEventListener("submit", () => {
      state.token = byId("token").value.trim();
      sessionStorage.setItem("p4q-edge-token", state.token);
      asking = null;
      resolve();
    }, { once: true });
    // Escape would leave a page that can do nothing.
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    if (!dialog.open) dialog.showModal();
  });
  return asking;
}

function problem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

// ---------------------------------------------------------------- class sets

async function loadHeads(wanted) {
  const { content } = await ask("/heads");
  state.heads = content.heads;
  state.chosen = wanted ?? (state.heads.some((head) => head.name === state.chosen) ? state.chosen : content.active);
  headSelect.replaceChildren(...state.heads.map((head) => {
    const count = `${head.class_names.length} ${head.class_names.length === 1 ? "class" : "classes"}`;
    const option = new Option(`${head.name} · ${count}${head.saved ? "" : " · not saved"}`, head.name);
    option.selected = head.name === state.chosen;
    return option;
  }));
  headSelect.disabled = false;
  // What was just learned answers, and is no base for the next lesson: that is whatever was chosen by hand.
  if (!state.heads.some((head) => head.name === state.base)) state.base = state.chosen;
  byId("keep-base").textContent = state.base;
  byId("teach").hidden = content.read_only;
  offerToSave();
}

function offerToSave() {
  byId("save").hidden = state.heads.find((head) => head.name === state.chosen)?.saved ?? true;
}

headSelect.addEventListener("change", () => {
  state.chosen = state.base = headSelect.value;
  byId("keep-base").textContent = state.base;
  offerToSave();
  if (state.shown) show(state.shown);
});

// ---------------------------------------------------------------- answers

async function classify(blob) {
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

const percent = (value) => `${(100 * value).toFixed(value >= 0.0995 ? 0 : 1)} %`;

function render(answer) {
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

function clearAnswer(text) {
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

function element(tag, className) {
  const made = document.createElement(tag);
  made.className = className;
  return made;
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

// ---------------------------------------------------------------- camera

const canvas = document.createElement("canvas");

function shot(source, width, height) {
  const scale = Math.min(1, SENT_SIDE / Math.min(width, height));
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Failed("The picture cannot be read."))), "image/jpeg", QUALITY);
  });
}

async function startCamera() {
  if (state.stream) return true;
  if (!navigator.mediaDevices?.getUserMedia) {
    problem("A browser gives the camera only to pages of this machine or over HTTPS. Open the page as localhost, start "
      + "the server with --tls-certificate, or choose pictures: a phone then offers its camera.");
    return false;
  }
  try {
    const wanted = { facingMode: state.facing, width: { ideal: 1280 }, height: { ideal: 960 } };
    state.stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
  } catch (error) {
    problem(error.name === "NotAllowedError"
      ? "The browser was not allowed to use the camera. Allow it in the address bar, or choose pictures."
      : `The camera cannot be used: ${error.message || error.name}. Choose pictures instead.`);
    return false;
  }
  problem("");
  video.srcObject = state.stream;
  await video.play();
  state.shown = null;
  picture.hidden = empty.hidden = unshown.hidden = true;
  video.hidden = false;
  byId("camera").textContent = "Stop camera";
  const cameras = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "videoinput");
  byId("flip").hidden = cameras.length < 2;
  state.running = true;
  state.fps = state.latency = state.device = null;
  state.lastAnswer = 0;
  look(++state.run);
  return true;
}

function stopCamera() {
  state.running = false;
  state.run += 1;
  state.stream?.getTracks().forEach((track) => track.stop());
  state.stream = null;
  video.srcObject = null;
  video.hidden = true;
  empty.hidden = !picture.hidden;
  byId("camera").textContent = "Start camera";
  byId("flip").hidden = true;
  clearAnswer(NOTHING);
}

const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

async function look(run) {
  while (run === state.run) {
    if (document.hidden || !video.videoWidth) {
      await pause(100);
      continue;
    }
    try {
      const answer = await classify(await shot(video, video.videoWidth, video.videoHeight));
      if (run === state.run) { render(answer); problem(""); }
    } catch (error) {
      if (run === state.run && error.status !== 503) {
        clearAnswer("No answer");
        problem(error.message);
      }
      await pause(RETRY_MS);
      // A class set may have gone with a restart of the server.
      if (run === state.run) await loadHeads().catch(() => {});
    }
    await new Promise((resolve) => requestAnimationFrame(resolve));
  }
}

// Who takes photos further down sees what the camera sees.
new IntersectionObserver(([seen]) => video.classList.toggle("floating", seen.intersectionRatio < 0.2), {
  threshold: [0, 0.2, 1],
}).observe(stage);

byId("camera").addEventListener("click", () => (state.stream ? stopCamera() : startCamera()));
byId("flip").addEventListener("click", () => {
  state.facing = state.facing === "environment" ? "user" : "environment";
  stopCamera();
  startCamera();
});

// ---------------------------------------------------------------- pictures

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

async function show(item) {
  if (state.stream) stopCamera();
  state.shown = item;
  gallery.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button === item.button)));
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

// ---------------------------------------------------------------- teaching

const lessons = [];

function addClass({ name = "", strangers = false, focus = false } = {}) {
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
  item.entry.querySelector(".count").textContent = `${item.photos.length} ${item.photos.length === 1 ? "photo" : "photos"}`;
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
    return add ? "Take photos of a class first." : "Take photos of two classes or more, so that there is something to tell apart.";
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
      : ` ${percent(content.held_out_accuracy)} of ${content.held_out} photos that were held out are right.`;
    lessonResult(`Learned “${content.head.name}” with ${content.head.class_names.length} classes in ${seconds} s.${share} `
      + "It answers now; save it to keep it.");
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

// ---------------------------------------------------------------- begin

addClass();
addClass();
addClass({ strangers: true });
try {
  const { content } = await ask("/healthz");
  byId("engine").textContent = `${content.engine} · version ${content.version}`;
  await loadHeads();
} catch (error) {
  byId("engine").textContent = "Not connected";
  problem(error.message);
}
