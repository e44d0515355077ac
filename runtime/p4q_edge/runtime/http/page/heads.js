// The class sets of the server, and which of them answers.

import { ask } from "./ask.js";
import { byId, state } from "./common.js";

const headSelect = byId("head");

export async function loadHeads(wanted) {
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

// What is looked at belongs to another part: it is told when another class set was chosen by hand.
export function onHeadChosen(chosen) {
  headSelect.addEventListener("change", () => {
    state.chosen = state.base = headSelect.value;
    byId("keep-base").textContent = state.base;
    offerToSave();
    chosen();
  });
}
