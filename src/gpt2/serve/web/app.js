// The page: three tabs, one server. Text from the model is only ever set as textContent or as a field's value.

import { startChat } from "/chat.js";
import { startComplete } from "/complete.js";
import { lookAfter, startInside } from "/inside.js";
import { model, setKey } from "/server.js";
import { drawSettings, limitTokens } from "/settings.js";
import { find, isBusy, say, stop } from "/status.js";

const tabs = [...document.querySelectorAll("[role=tab]")];
const name = (tab) => tab.getAttribute("aria-controls");

async function introduce() {
  const card = await model();
  find("model").textContent = card.id;
  limitTokens(card.context_length);
  const does = !card.answers ? "was trained on running text: it continues what you write"
    : card.turns === 1 ? "was tuned on single questions: it answers each on its own" : "was trained to answer";
  find("chat-hint").textContent = `It ${does}, and sees ${card.context_length} tokens at once.`;
}

function show(tab) {
  const before = tabs.find((each) => each.getAttribute("aria-selected") === "true");
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", String(chosen));
    each.tabIndex = chosen ? 0 : -1;
    find(name(each)).hidden = !chosen;
  }
  find("conversations").hidden = name(tab) !== "chat";
  find("settings-box").hidden = name(tab) === "inside"; // a look has its own
  document.body.dataset.tab = name(tab);
  history.replaceState(null, "", `#${name(tab)}`);
  if (name(tab) === "inside") lookAfter(name(before));
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

for (const button of document.querySelectorAll(".stop")) button.addEventListener("click", stop);
addEventListener("keydown", (event) => { if (event.key === "Escape" && isBusy()) stop(); });
find("key-row").addEventListener("submit", (event) => event.preventDefault());
find("key").addEventListener("change", () => {
  setKey(find("key").value);
  introduce().then(() => say(""), (error) => say(error.message, true));
});

// In the hand, what stands beside the work is folded away.
const narrow = matchMedia("(max-width: 46rem)");
const fold = () => { for (const box of document.querySelectorAll("aside details")) box.open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();

// What is said may take several lines; what stands at the end of the window stands above it.
new ResizeObserver(() => document.body.style.setProperty("--status", `${find("status").offsetHeight}px`)).observe(find("status"));

drawSettings();
startChat();
startComplete();
startInside();
show(tabs.find((tab) => `#${name(tab)}` === location.hash) ?? tabs[0]);
introduce().catch((error) => say(error.message, true));
