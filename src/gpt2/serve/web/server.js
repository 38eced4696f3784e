// The server: its model, its key, and what is asked of it.

import { find } from "/status.js";

let key = "";
let card = null;

function headers() {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function failure(response) {
  if (response.status === 401) find("key-row").hidden = false;
  const body = await response.json().catch(() => null);
  const error = new Error(body?.error?.message ?? `The server answered ${response.status}.`);
  return Object.assign(error, { code: body?.error?.code });
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers() }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached. Is it still running?");
  });
  if (!response.ok) throw await failure(response);
  return response;
}

export function setKey(given) {
  [key, card] = [given, null];
}

// What there is to know about the model: id, context_length, answers, turns.
export async function model() {
  if (card === null) [card] = (await (await ask("/v1/models")).json()).data;
  return card;
}

export async function post(path, request, signal) {
  const { id } = await model();
  return ask(path, { method: "POST", signal, body: JSON.stringify({ model: id, ...request }) });
}

// The data of server-sent events, one by one, however the network has cut them.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

// Have a text written, hand on each piece (text, log-probabilities), and tell in words how it ended.
export async function write(path, request, signal, onPiece) {
  const began = performance.now();
  const response = await post(path, { ...request, stream: true, stream_options: { include_usage: true } }, signal);
  let [usage, cut] = [null, ""];
  for await (const data of events(response.body)) {
    if (data === "[DONE]") break;
    const piece = JSON.parse(data);
    if (piece.error) throw new Error(piece.error.message);
    usage = piece.usage ?? usage;
    const choice = piece.choices[0];
    if (!choice) continue;
    if (choice.finish_reason === "length") cut = ", cut at the limit";
    onPiece(choice.delta?.content ?? choice.text ?? "", choice.logprobs);
  }
  if (usage === null) throw new Error("The answer broke off.");
  const seconds = (performance.now() - began) / 1000;
  return `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s${cut}`;
}
