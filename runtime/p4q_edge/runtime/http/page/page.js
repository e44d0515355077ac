// The page of `p4q-edge serve`: no library, nothing loaded from elsewhere. Here it begins; its parts lie beside it.

import { ask } from "./ask.js";
import { byId, problem, state } from "./common.js";
import { loadHeads, onHeadChosen } from "./heads.js";
import { show } from "./pictures.js";
import { addClass } from "./teach.js";

onHeadChosen(() => {
  if (state.shown) show(state.shown);
});
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
