// Complete: a text that the model goes on with from the cursor. Behind the field lies the same text, coloured.

import { Draft } from "/draft.js";
import { make, visible } from "/look.js";
import { write } from "/server.js";
import { settings } from "/settings.js";
import { busy, find, isBusy } from "/status.js";
import { keep, kept } from "/store.js";

const ALTERNATIVES = 10;
const REDDEST = 12; // nats, as in a look inside
const PAUSE = 1000; // milliseconds between two letters that end what one undo takes back

const draft = new Draft();
let lastTyped = -Infinity;

const field = () => find("complete-text");

// ---- drawing -------------------------------------------------------------------------------------------------------

function colour(segment) {
  if (!segment.token) return document.createTextNode(segment.text);
  const span = make("span", { className: "token", textContent: segment.text });
  span.style.backgroundColor = `rgba(var(--warm), ${Math.min(0.6, 0.04 - segment.token.logprob / REDDEST).toFixed(3)})`;
  return span;
}

// The last letter keeps the height of a last line that is empty.
function draw(cursor) {
  field().value = draft.text;
  find("complete-colours").replaceChildren(...draft.segments.map(colour), "\u200b");
  if (cursor !== undefined) field().setSelectionRange(cursor, cursor);
  finish();
}

function finish() {
  find("complete-undo").disabled = !draft.canUndo;
  find("complete-redo").disabled = !draft.canRedo;
  keep("draft", draft.segments);
  drawAlternatives();
}

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return `${share >= 9.95 ? share.toFixed(0) : share.toPrecision(share < 0.01 ? 1 : 2)} %`;
};

const named = (text) => (text === "" ? "the end of the text" : visible(text));

function drawAlternatives() {
  const box = find("alternatives");
  const found = isBusy() ? null : draft.at(field().selectionStart);
  box.hidden = found === null;
  for (const span of find("complete-colours").querySelectorAll(".chosen")) span.classList.remove("chosen");
  if (found === null) return;
  const { text, token } = draft.segments[found.number];
  find("complete-colours").childNodes[found.number].classList.add("chosen");
  find("alternatives-about").textContent = `“${visible(text)}” had a probability of ${percent(token.logprob)}. What might have stood there:`;
  box.querySelector("ol").replaceChildren(...token.alternatives.map(([other, logprob]) => {
    const share = Math.exp(logprob);
    const button = make("button", { type: "button", disabled: other.startsWith("bytes:") }, make("span", { textContent: named(other) }),
      make("span", { className: "bar", aria: { hidden: "true" } }), make("span", { textContent: percent(logprob) }));
    button.querySelector(".bar").style.width = `${Math.max(1, 100 * share)}%`;
    if (other === text) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => take(found, other));
    return make("li", {}, button);
  }));
}

// ---- writing -------------------------------------------------------------------------------------------------------

// Go on from a place. `first`, if given, is put there before.
async function writeFrom(place, first = null) {
  lastTyped = -Infinity;
  let number = draft.split(place);
  let cursor = place;
  const colours = find("complete-colours");
  const put = ({ text, token }) => {
    const segment = { text: text.replaceAll("\r", "\n"), token }; // as a field has it
    draft.insert(number, segment);
    colours.insertBefore(colour(segment), colours.childNodes[number] ?? null);
    number += 1;
    cursor += segment.text.length;
  };
  draw(place);
  if (first?.text) put(first);
  const prompt = field().value.slice(0, place) + (first?.text ?? "");
  const tail = field().value.slice(place);
  let shown = 0; // the frame that will show what has come
  const show = () => {
    field().value = draft.segments.slice(0, number).map((segment) => segment.text).join("") + tail;
    field().setSelectionRange(cursor, cursor);
    shown = 0;
  };
  find("alternatives").hidden = true;
  let held = null; // the first of the tokens whose text has not come yet: half a character
  field().readOnly = true;
  if (first?.text !== "") {
    await busy(find("complete-form"), "Writing …", (signal) =>
      writeBehind(prompt, signal, (text, logprobs) => {
        for (const [at, logprob] of (logprobs?.token_logprobs ?? []).entries()) {
          const others = Object.entries(logprobs.top_logprobs[at]).sort((a, b) => b[1] - a[1]);
          if (held === null) held = { logprob, alternatives: others };
          else held.logprob += logprob;
        }
        if (!text) return;
        put({ text, token: held });
        held = null;
        shown ||= requestAnimationFrame(show);
      }));
  }
  cancelAnimationFrame(shown);
  field().readOnly = false;
  if (cursor === place && first === null) draft.unmark(); // nothing came
  draw(cursor);
  field().focus();
}

// Of a text that is too long for the model, the end is read.
async function writeBehind(prompt, signal, onPiece) {
  let read = prompt;
  for (;;) {
    try {
      const ended = await write("/v1/completions", { prompt: read, logprobs: ALTERNATIVES, ...settings() }, signal, onPiece);
      return read === prompt ? ended : `${ended}; of so long a text the model saw the end.`;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || read.length < 2) throw error;
      read = [...read].slice(Math.ceil(read.length / 5)).join("");
    }
  }
}

async function proceed() {
  if (isBusy()) return;
  const place = field().selectionEnd;
  draft.mark(place);
  await writeFrom(place);
}

// Put another token in the place of one; what the model wrote behind it is dropped and written anew.
async function take({ number, begin }, text) {
  if (isBusy()) return;
  draft.mark(field().selectionStart);
  const { token } = draft.segments[number];
  draft.segments.splice(number, draft.run(number));
  const logprob = token.alternatives.find(([other]) => other === text)[1];
  await writeFrom(begin, { text, token: { ...token, logprob } });
}

function go(step) {
  if (isBusy()) return;
  lastTyped = -Infinity;
  draw(step(field().selectionStart));
  field().focus();
}

const undo = () => { if (draft.canUndo) go((cursor) => draft.undo(cursor)); };
const redo = () => { if (draft.canRedo) go((cursor) => draft.redo(cursor)); };

// The text, for a look inside: what stood before the model's last words, and these, if nothing stands behind them.
export function lastText() {
  const { segments, text } = draft;
  if (!text) return null;
  let begin = segments.length;
  while (begin > 0 && segments[begin - 1].token) begin--;
  const answer = segments.slice(begin).map((segment) => segment.text).join("");
  return { prompt: text.slice(0, text.length - answer.length), answer };
}

export function startComplete() {
  const before = kept("draft");
  if (Array.isArray(before) && before.every((segment) => typeof segment?.text === "string")) draft.segments = before;
  draw();
  find("complete-form").addEventListener("submit", (event) => {
    event.preventDefault();
    proceed();
  });
  field().addEventListener("input", () => {
    const cursor = field().selectionStart;
    if (performance.now() - lastTyped > PAUSE) draft.mark(cursor);
    lastTyped = performance.now();
    draft.edit(field().value);
    draw(cursor);
  });
  field().addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey)) return;
    const does = { enter: proceed, z: event.shiftKey ? redo : undo, y: redo }[event.key.toLowerCase()];
    if (!does) return;
    event.preventDefault();
    does();
  });
  document.addEventListener("selectionchange", () => { if (document.activeElement === field()) drawAlternatives(); });
  find("complete-undo").addEventListener("click", undo);
  find("complete-redo").addEventListener("click", redo);
}
