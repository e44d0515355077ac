// Asking the server, with the token where it wants one.

import { byId, state } from "./common.js";

export class Failed extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

export async function ask(path, options = {}) {
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
