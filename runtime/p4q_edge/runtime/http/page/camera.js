// The camera, and the answers to what it sees.

import { classify, clearAnswer, render } from "./answers.js";
import { Failed } from "./ask.js";
import { byId, empty, pause, picture, problem, stage, state, unshown, video } from "./common.js";
import { loadHeads } from "./heads.js";

const SENT_SIDE = 480;       // shortest side of what is sent; more than any of the models' inputs
const QUALITY = 0.92;
const RETRY_MS = 1500;
const NOTHING = "Nothing to look at yet";

const canvas = document.createElement("canvas");

export function shot(source, width, height) {
  const scale = Math.min(1, SENT_SIDE / Math.min(width, height));
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => {
      if (blob) resolve(blob);
      else reject(new Failed("The picture cannot be read."));
    }, "image/jpeg", QUALITY);
  });
}

export async function startCamera() {
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

export function stopCamera() {
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
