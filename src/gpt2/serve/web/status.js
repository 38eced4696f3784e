// What is going on, in words; and the one piece of work that may be under way.

export const find = (id) => document.getElementById(id);

let running = null; // the AbortController of what is under way
let over = Promise.resolve(); // when that has ended, however

export function say(text, wrong = false) {
  find("status").textContent = text;
  find("status").classList.toggle("wrong", wrong);
}

export const isBusy = () => running !== null;

// The promise of its end.
export function stop() {
  running?.abort();
  return over;
}

export async function idle() {
  while (isBusy()) await over;
}

// While the work is done no other can begin, and each tab has a button to stop it; how it ended is said.
export function busy(form, words, work) {
  over = whileBusy(form, words, work);
  return over;
}

function show(working) {
  document.body.classList.toggle("busy", working);
  for (const button of document.querySelectorAll(".main")) button.disabled = working;
  for (const button of document.querySelectorAll(".stop")) button.hidden = !working;
}

async function whileBusy(form, words, work) {
  running = new AbortController();
  show(true);
  say(words);
  try {
    say(await work(running.signal));
  } catch (error) {
    const stopped = error.name === "AbortError";
    say(stopped ? "Stopped." : error.message, !stopped);
  } finally {
    running = null;
    if (document.activeElement.matches(".stop")) form.querySelector("textarea")?.focus();
    show(false);
  }
}
