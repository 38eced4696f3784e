// How the model writes: each setting with what it does, in plain words.

import { make } from "/look.js";
import { keep, kept } from "/store.js";
import { find } from "/status.js";

const SETTINGS = [
  ["temperature", "Temperature", { type: "range", min: 0, max: 2, step: 0.05 }, 0.8,
    "How daring. 0 always takes the likeliest token; 1 draws as the model expects; above, it grows wild."],
  ["top_p", "Top p", { type: "range", min: 0.05, max: 1, step: 0.05 }, 0.95,
    "Only the likeliest tokens that together have this probability may come. 1: all."],
  ["top_k", "Top k", { type: "number", min: 0, max: 1000, step: 1 }, 0,
    "Only this many likeliest tokens may come. 0: all."],
  ["repetition_penalty", "Against repetition", { type: "range", min: 1, max: 2, step: 0.05 }, 1,
    "Above 1, what was said before becomes less likely. 1.1 to 1.3 helps small models out of a loop."],
  ["max_tokens", "Tokens at most", { type: "number", min: 1, max: 100000, step: 1 }, 200,
    "The answer is cut there. A token is a word or a part of one."],
  ["seed", "Seed", { type: "number", min: 0, max: 2 ** 31, step: 1, placeholder: "new each time" }, "",
    "The same number and settings give the same text again."],
];

const number = (name) => Number(find(name).value);

function shown(name) {
  const { min, max } = find(name);
  return Math.min(Number(max), Math.max(Number(min), Number.isFinite(number(name)) ? number(name) : Number(min)));
}

// As requests have them.
export function settings() {
  const { temperature, top_p, top_k } = drawing();
  return {
    temperature, top_p, top_k,
    repetition_penalty: shown("repetition_penalty"),
    max_tokens: Math.floor(shown("max_tokens")),
    ...(find("seed").value === "" ? {} : { seed: Math.floor(shown("seed")) }),
  };
}

// Those of them by which a token is drawn from what the model expects.
export function drawing() {
  return { temperature: shown("temperature"), top_p: shown("top_p"), top_k: Math.floor(shown("top_k")) };
}

export function limitTokens(context) {
  find("max_tokens").max = context;
  if (number("max_tokens") >= context) find("max_tokens").value = Math.floor(context / 2);
}

export function drawSettings() {
  const before = kept("settings") ?? {};
  const form = find("settings");
  for (const [id, label, properties, value, words] of SETTINGS) {
    const input = make("input", { id, ...properties, value: before[id] ?? value, aria: { describedby: `${id}-words` } });
    const head = make("span", {}, label);
    if (properties.type === "range") {
      const output = make("output", { textContent: input.value });
      input.addEventListener("input", () => { output.textContent = input.value; });
      head.append(output);
    }
    form.append(make("div", {}, make("label", { htmlFor: id }, head), input, make("small", { id: `${id}-words`, textContent: words })));
  }
  const reset = make("button", { type: "button", textContent: "As at first" });
  reset.addEventListener("click", () => {
    for (const [id, , , value] of SETTINGS) {
      find(id).value = value;
      find(id).dispatchEvent(new Event("input"));
    }
    keep("settings", {});
  });
  form.append(reset);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    keep("settings", Object.fromEntries(SETTINGS.map(([id]) => [id, find(id).value])));
  });
}
