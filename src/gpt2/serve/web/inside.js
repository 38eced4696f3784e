// Look inside: what goes on in the model at the text of Complete, or at the last exchange of Chat.

import { lastExchange } from "/chat.js";
import { lastText } from "/complete.js";
import { drawLook, make } from "/look.js";
import { post } from "/server.js";
import { drawing } from "/settings.js";
import { busy, find, idle, say } from "/status.js";

const SOURCES = { complete: lastText, chat: lastExchange };
const NOTHING = { complete: "There is no text in Complete yet.", chat: "Nothing was said in Chat yet." };

let drawn = ""; // what was asked for the picture that is shown

const source = () => find("inside-form").elements["inside-source"];

export async function look() {
  await idle();
  if (find("inside").hidden) return; // left again, while Chat or Complete were written
  const body = SOURCES[source().value]();
  const view = find("inside-view");
  if (body === null) {
    drawn = "";
    view.replaceChildren(make("p", { className: "hint", textContent: `${NOTHING[source().value]} Write something there, and come back.` }));
    say("");
    return;
  }
  if (!body.answer) delete body.answer;
  const asked = JSON.stringify({ ...body, ...drawing() });
  if (asked === drawn) return;
  const began = performance.now();
  await busy(find("inside-form"), "Looking …", async (signal) => {
    const response = await post("/v1/look", JSON.parse(asked), signal);
    const picture = make("div");
    drawLook(picture, await response.json());
    view.replaceChildren(picture);
    picture.querySelector(".token[aria-pressed=true]").click(); // now that it has a size, it can be painted
    drawn = asked;
    return `Looked in ${((performance.now() - began) / 1000).toFixed(1)} s`;
  });
}

// The tab was opened: look at what was worked on before.
export function lookAfter(tab) {
  if (tab in SOURCES) source().value = tab;
  look();
}

export function startInside() {
  find("inside-form").addEventListener("submit", (event) => {
    event.preventDefault();
    look();
  });
  find("inside-form").addEventListener("change", look);
}
