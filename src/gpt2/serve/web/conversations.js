// Several conversations, each kept in the browser under a name of its own, so that two windows do not lose each other's.

import { make } from "/look.js";
import { forget, keep, kept, names } from "/store.js";
import { find, stop } from "/status.js";

const TITLE = 40; // characters of a first message

// { id, title, messages: [{ role, content }], changed: milliseconds }
let current = null;
let deleted = null;
let opened = () => {}; // called with the conversation that is to be shown

const fresh = () => ({ id: crypto.randomUUID?.() ?? String(Math.random()).slice(2), title: "", messages: [], changed: Date.now() });

export const conversation = () => current;

export function titleOf({ title, messages }) {
  const first = messages[0]?.content.trim().split("\n")[0] ?? "";
  return title || (first.length > TITLE ? `${[...first].slice(0, TITLE).join("")}…` : first) || "New conversation";
}

// Keep the conversation as it is now. An empty one is not kept.
export function save(talk = current) {
  if (talk.messages.length) keep(`chat.${talk.id}`, talk);
}

function all() {
  const found = names("chat.").map(kept).filter((talk) => talk?.id && Array.isArray(talk.messages));
  if (!found.some((talk) => talk.id === current.id)) found.push(current);
  return found.map((talk) => (talk.id === current.id ? current : talk)).sort((a, b) => b.changed - a.changed);
}

function open(talk) {
  current = talk;
  keep("current", talk.id);
  opened(talk);
  drawList();
}

// To another conversation. An answer that is being written is stopped; what has come of it stays where it belongs.
function leaveFor(talk) {
  open(talk);
  return stop();
}

function rename(talk, item) {
  const field = make("input", { value: titleOf(talk), maxLength: 80, aria: { label: "Title" } });
  let ended = false;
  const end = (changed) => {
    if (ended) return;
    ended = true;
    if (changed) {
      talk.title = field.value.trim();
      save(talk);
    }
    field.remove();
    drawList();
    find("conversations").querySelector(`[data-id="${talk.id}"] .rename`)?.focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault(); // else Enter would press the button that has the focus next
    end(event.key === "Enter");
  });
  field.addEventListener("blur", () => end(true));
  item.replaceChildren(field);
  field.focus();
  field.select();
}

async function remove(talk) {
  if (talk.id === current.id) await stop(); // else what it writes would be kept after all
  deleted = talk;
  forget(`chat.${talk.id}`);
  if (talk.id === current.id) {
    current = fresh();
    open(all()[1] ?? current);
  }
  drawList();
  find("conversation-back").focus();
}

export function drawList() {
  const list = find("conversations").querySelector("ul");
  if (list.querySelector("input")) return; // a title is being written: its end draws the list
  list.replaceChildren(...all().map((talk) => {
    const title = titleOf(talk);
    const choose = make("button", { type: "button", className: "title", textContent: title, title });
    if (talk.id === current.id) choose.setAttribute("aria-current", "true");
    choose.addEventListener("click", () => { if (talk.id !== current.id) leaveFor(talk); });
    const item = make("li", { data: { id: talk.id } }, choose);
    if (!talk.messages.length) return item;
    const change = make("button", { type: "button", className: "small rename", textContent: "✎", title: "Rename", aria: { label: `Rename ${title}` } });
    const away = make("button", { type: "button", className: "small", textContent: "✕", title: "Delete", aria: { label: `Delete ${title}` } });
    change.addEventListener("click", () => rename(talk, item));
    away.addEventListener("click", () => remove(talk));
    item.append(change, away);
    return item;
  }));
  const back = find("conversation-back");
  back.hidden = deleted === null;
  back.textContent = deleted === null ? "" : `Bring back “${titleOf(deleted)}”`;
}

export function startConversations(show) {
  opened = show;
  find("conversation-new").addEventListener("click", () => {
    leaveFor(current.messages.length ? fresh() : current);
    find("chat-text").focus();
  });
  find("conversation-back").addEventListener("click", () => {
    const talk = deleted;
    deleted = null;
    save(talk);
    leaveFor(talk);
  });
  addEventListener("storage", drawList); // another window has changed something
  current = fresh();
  const before = kept("current");
  open(all().find((talk) => talk.id === before) ?? current);
}
