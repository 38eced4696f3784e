// The page: two tabs, one server. Text from the model is only ever set as textContent or as a field's value.

const find = (id) => document.getElementById(id);
const state = { model: null, key: "", running: null, messages: [], before: "" };

// ---- the server ----------------------------------------------------------------------------------------------------

function headers() {
  const known = state.key ? { Authorization: `Bearer ${state.key}` } : {};
  return { "Content-Type": "application/json", ...known };
}

async function failure(response) {
  if (response.status === 401) find("key-row").hidden = false;
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `The server answered ${response.status}.`);
}

async function loadModel() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) throw await failure(response);
  const [card] = (await response.json()).data;
  state.model = card.id;
  find("model").textContent = card.id;
  find("max-tokens").max = card.context_length;
  find("max-tokens").value = Math.min(200, Math.floor(card.context_length / 2));
  find("chat-hint").textContent = card.answers
    ? `It was trained to answer, and sees ${card.context_length} tokens at once.`
    : `It was trained on running text: it continues what you write, and sees ${card.context_length} tokens at once.`;
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

// Send a request, hand on each piece of text, and tell in words how it ended.
async function write(path, request, onText) {
  if (state.model === null) await loadModel();
  state.running = new AbortController();
  const began = performance.now();
  let [usage, cut] = [null, ""];
  try {
    const options = { model: state.model, stream: true, stream_options: { include_usage: true } };
    const response = await fetch(path, {
      method: "POST",
      headers: headers(),
      signal: state.running.signal,
      body: JSON.stringify({ ...request, ...settings(), ...options }),
    });
    if (!response.ok) throw await failure(response);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") break;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      usage = piece.usage ?? usage;
      const choice = piece.choices[0];
      if (choice?.finish_reason === "length") cut = ", cut at the limit";
      if (choice) onText(choice.delta?.content ?? choice.text ?? "");
    }
  } catch (error) {
    if (error.name === "AbortError") return "Stopped.";
    throw error;
  } finally {
    state.running = null;
  }
  const seconds = (performance.now() - began) / 1000;
  return usage ? `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s${cut}` : "The answer broke off.";
}

// ---- settings and status -------------------------------------------------------------------------------------------

function settings() {
  const seed = find("seed").value;
  return {
    temperature: Number(find("temperature").value),
    top_p: Number(find("top-p").value),
    max_tokens: Math.max(1, Math.floor(Number(find("max-tokens").value))),
    ...(seed === "" ? {} : { seed: Math.floor(Number(seed)) }),
  };
}

function say(text, wrong = false) {
  find("status").textContent = text;
  find("status").classList.toggle("wrong", wrong);
}

// While the work is done: a button to stop it, and its outcome in words.
async function busy(form, work) {
  const [main, stop] = [form.querySelector(".main"), form.querySelector(".stop")];
  main.disabled = true;
  stop.hidden = false;
  say("Writing …");
  try {
    say(await work());
  } catch (error) {
    say(error.message, true);
  } finally {
    main.disabled = false;
    stop.hidden = true;
  }
}

// ---- chat ----------------------------------------------------------------------------------------------------------

function bubble(role, text) {
  const item = document.createElement("li");
  item.className = role;
  item.textContent = text;
  find("messages").append(item);
  item.scrollIntoView({ block: "nearest" });
  return item;
}

async function chat() {
  const text = find("chat-text").value;
  if (!text.trim() || state.running) return;
  find("chat-text").value = "";
  const asked = bubble("user", text);
  const answer = bubble("assistant", "");
  answer.classList.add("writing");
  const messages = [...state.messages, { role: "user", content: text }];
  await busy(find("chat-form"), () =>
    write("/v1/chat/completions", { messages }, (piece) => {
      answer.textContent += piece;
      answer.scrollIntoView({ block: "nearest" });
    }),
  );
  answer.classList.remove("writing");
  if (answer.textContent && answer.isConnected) {
    state.messages = [...messages, { role: "assistant", content: answer.textContent }];
  } else { // nothing came: the message goes back to where it was written
    asked.remove();
    answer.remove();
    find("chat-text").value ||= text;
  }
}

function clearChat() {
  state.running?.abort();
  state.messages = [];
  find("messages").replaceChildren();
  say("");
}

// ---- complete ------------------------------------------------------------------------------------------------------

async function complete() {
  if (state.running) return;
  const field = find("complete-text");
  state.before = field.value;
  field.readOnly = true;
  await busy(find("complete-form"), () =>
    write("/v1/completions", { prompt: state.before }, (piece) => {
      field.value += piece;
      field.scrollTop = field.scrollHeight;
    }),
  );
  field.readOnly = false;
  find("complete-undo").disabled = field.value === state.before;
}

function undo() {
  find("complete-text").value = state.before;
  find("complete-undo").disabled = true;
}

// ---- tabs, buttons and keys ----------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", String(chosen));
    each.tabIndex = chosen ? 0 : -1;
    find(each.getAttribute("aria-controls")).hidden = !chosen;
  }
}

for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    show(next);
    next.focus();
  });
}

for (const [id, action] of [["chat-form", chat], ["complete-form", complete]]) {
  const form = find(id);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
  form.querySelector(".stop").addEventListener("click", () => state.running?.abort());
}

find("chat-text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  chat();
});
find("complete-text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  complete();
});
find("chat-clear").addEventListener("click", clearChat);
find("complete-undo").addEventListener("click", undo);
find("settings").addEventListener("submit", (event) => event.preventDefault());
find("key").addEventListener("change", () => {
  state.key = find("key").value;
  loadModel().then(() => say(""), (error) => say(error.message, true));
});
for (const shown of document.querySelectorAll("output")) {
  const input = find(shown.htmlFor.value);
  const update = () => { shown.textContent = input.value; };
  input.addEventListener("input", update);
  update();
}

show(tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash) ?? tabs[0]);
loadModel().catch((error) => say(error.message, true));
