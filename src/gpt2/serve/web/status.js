// What is going on, in words; and the one piece of work that may be under way.

export const find = (id) => document.getElementById(id);

let running = null; // the AbortController of what is under way

export function say(text, wrong = false) {
  find("status").textContent = text;
  find("status").classList.toggle("wrong", wrong);
}

export const isBusy = () => running !== null;

export const stop = () => running?.abort();

// While the work is done there is a button to stop it; how it ended is said. True: it came to its end or was stopped.
export async function busy(form, words, work) {
  const [main, stopping] = [form.querySelector(".main"), form.querySelector(".stop")];
  running = new AbortController();
  document.body.classList.add("busy");
  main.disabled = true;
  if (stopping) stopping.hidden = false;
  say(words);
  try {
    say(await work(running.signal));
    return true;
  } catch (error) {
    const stopped = error.name === "AbortError";
    say(stopped ? "Stopped." : error.message, !stopped);
    return stopped;
  } finally {
    running = null;
    document.body.classList.remove("busy");
    if (stopping) {
      if (document.activeElement === stopping) form.querySelector("textarea").focus();
      stopping.hidden = true;
    }
    main.disabled = false;
  }
}
