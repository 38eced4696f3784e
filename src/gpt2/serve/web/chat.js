// Chat: messages and answers, which can be copied, edited, and written anew.

import { conversation, drawList, save, startConversations } from "/conversations.js";
import { make } from "/look.js";
import { write } from "/server.js";
import { settings } from "/settings.js";
import { busy, find, isBusy, say } from "/status.js";

const SAVE_EVERY = 500; // milliseconds, while an answer is written

// ---- drawing -------------------------------------------------------------------------------------------------------

function action(text, label, does) {
  const button = make("button", { type: "button", className: "small", textContent: text, aria: { label } });
  button.addEventListener("click", does);
  return button;
}

function bubble(message, place) {
  const text = make("div", { className: "text" }, document.createTextNode(message.content));
  const mine = message.role === "user";
  const which = mine ? `message ${Math.floor(place / 2) + 1}` : `answer ${Math.floor(place / 2) + 1}`;
  const actions = make("div", { className: "actions" }, action("Copy", `Copy ${which}`, () => copy(message.content)),
    mine ? action("Edit", `Edit ${which}`, () => edit(place)) : action("Retry", `Write ${which} anew`, () => retry(place)));
  return make("li", { className: message.role }, make("span", { className: "sr", textContent: mine ? "You: " : "Model: " }), text, actions);
}

function draw() {
  find("messages").replaceChildren(...conversation().messages.map(bubble));
}

// Who reads what stood before is not torn away from it.
function follow(change) {
  const page = document.scrollingElement;
  const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  change();
  if (atEnd) page.scrollTop = page.scrollHeight;
}

// ---- asking --------------------------------------------------------------------------------------------------------

// Have the last message answered. If nothing comes, the conversation is `before` again; tells whether something came.
async function answer(before) {
  const talk = conversation();
  const messages = [...talk.messages];
  const said = { role: "assistant", content: "" };
  talk.messages.push(said);
  talk.changed = Date.now();
  draw();
  drawList();
  const item = find("messages").lastElementChild;
  const text = item.querySelector(".text").firstChild;
  item.classList.add("writing");
  document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
  let [saved, frame] = [0, 0];
  const show = () => {
    frame = 0;
    if (text.isConnected) follow(() => text.appendData(said.content.slice(text.length)));
  };
  await busy(find("chat-form"), "Writing …", (signal) =>
    write("/v1/chat/completions", { messages, ...settings() }, signal, (piece) => {
      said.content += piece;
      frame ||= requestAnimationFrame(show);
      if (performance.now() - saved > SAVE_EVERY && said.content) {
        saved = performance.now();
        save(talk);
      }
    }));
  find("heard").textContent = said.content; // read aloud once, when it is whole
  cancelAnimationFrame(frame);
  if (!said.content) talk.messages = before;
  save(talk);
  if (conversation() === talk) follow(draw);
  drawList();
  return said.content !== "";
}

async function send() {
  const content = find("chat-text").value;
  if (!content.trim() || isBusy()) return;
  const talk = conversation();
  const before = [...talk.messages];
  // A message that was never answered, as when a reload cut it off, is replaced.
  const kept = before.at(-1)?.role === "user" ? before.slice(0, -1) : before;
  find("chat-text").value = "";
  const asked = [...kept, { role: "user", content }];
  talk.messages = [...asked]; // to which the answer is added
  if (await answer(before)) return;
  if (conversation() === talk) {
    find("chat-text").value ||= content;
  } else { // it was left for another, in whose field the message has no place
    talk.messages = asked;
    save(talk);
    drawList();
  }
}

async function retry(place) {
  if (isBusy()) return;
  const before = conversation().messages;
  conversation().messages = before.slice(0, place);
  await answer(before);
}

function edit(place) {
  if (isBusy()) return;
  draw();
  const before = conversation().messages;
  const item = find("messages").children[place];
  const field = make("textarea", { value: before[place].content, rows: 3, aria: { label: "Your message" } });
  const end = () => {
    draw();
    find("messages").children[place]?.querySelector("button:last-of-type").focus();
  };
  const ask = async () => {
    if (!field.value.trim() || isBusy()) return;
    conversation().messages = [...before.slice(0, place), { role: "user", content: field.value }];
    await answer(before);
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") end();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  const again = make("button", { type: "button", className: "small main", textContent: "Ask again" });
  again.addEventListener("click", ask);
  item.classList.add("editing");
  item.replaceChildren(field, make("div", { className: "actions" }, again, action("Cancel", "Cancel", end),
    make("small", { textContent: place + 2 < before.length ? "What was said after it is dropped." : "" })));
  field.focus();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch { // only pages of this machine, or by https, may write there
    say("The browser does not let this page copy: select the text instead.", true);
  }
}

// The last exchange, for a look inside: messages up to the question, and its answer.
export function lastExchange() {
  const { messages } = conversation();
  const place = messages.findLastIndex((message) => message.role === "user");
  if (place === -1) return null;
  return { messages: messages.slice(0, place + 1), answer: messages[place + 1]?.content ?? "" };
}

export function startChat() {
  startConversations(draw);
  find("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  find("chat-text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  addEventListener("pagehide", () => save());
}
