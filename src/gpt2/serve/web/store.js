// What the browser keeps. Where it keeps nothing (private windows, full storage), the page works on without.

import { say } from "/status.js";

const PREFIX = "gpt2.";

export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    say("The browser keeps nothing more: its storage is full or switched off. Delete some conversations.", true);
  }
}

export function kept(name) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name));
  } catch {
    return null; // somebody else's, or cut
  }
}

export function forget(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch { /* nothing was kept */ }
}

// Names that begin likewise.
export function names(beginning) {
  try {
    return Object.keys(localStorage).filter((name) => name.startsWith(PREFIX + beginning)).map((name) => name.slice(PREFIX.length));
  } catch {
    return [];
  }
}
