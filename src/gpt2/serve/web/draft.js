// A text of segments: what the user wrote, and tokens of the model with what might have stood in their place.

const MOST_STEPS = 100; // that can be undone

// A segment: { text, token: null | { logprob, alternatives: [[text, logprob], …] } }. Segments never change; lists do.
export class Draft {
  segments = [];
  #past = [];
  #future = [];

  get text() {
    return this.segments.map((segment) => segment.text).join("");
  }

  get canUndo() { return this.#past.length > 0; }

  get canRedo() { return this.#future.length > 0; }

  // Remember how it is, before a change.
  mark(cursor) {
    this.#past.push({ segments: [...this.segments], cursor });
    if (this.#past.length > MOST_STEPS) this.#past.shift();
    this.#future = [];
  }

  // Forget the last mark: nothing has changed.
  unmark() { this.#past.pop(); }

  // As it was before the last change: where the cursor was.
  undo(cursor) { return this.#swap(this.#past, this.#future, cursor); }

  redo(cursor) { return this.#swap(this.#future, this.#past, cursor); }

  #swap(from, to, cursor) {
    const step = from.pop();
    to.push({ segments: this.segments, cursor });
    this.segments = step.segments;
    return step.cursor;
  }

  // The user has made it this text: tokens that were touched become theirs.
  edit(text) {
    const before = this.text;
    const shorter = Math.min(before.length, text.length);
    let [same, end] = [0, 0];
    while (same < shorter && before[same] === text[same]) same++;
    while (end < shorter - same && before.at(-1 - end) === text.at(-1 - end)) end++;
    const [head, , tail] = this.#cut(same, before.length - end);
    this.segments = [...head, { text: text.slice(same, text.length - end), token: null }, ...tail];
    this.#join();
  }

  // Split in front of a place, and tell the number of segments before it.
  split(place) {
    const [head, middle, tail] = this.#cut(place, place);
    this.segments = [...head, ...middle, ...tail];
    return head.length;
  }

  // Put a segment behind so many others.
  insert(number, segment) { this.segments.splice(number, 0, segment); }

  // The token that holds the character before a place, or if that is none, the one behind it: its number and where it begins.
  at(place) {
    let begin = 0;
    let found = null;
    for (const [number, segment] of this.segments.entries()) {
      const end = begin + segment.text.length;
      if (segment.token && begin <= place && place < end) return { number, begin };
      if (segment.token && place === end && begin < end) found = { number, begin };
      if (begin > place) break;
      begin = end;
    }
    return found;
  }

  // How many tokens of the model stand on end from this one.
  run(number) {
    let end = number;
    while (this.segments[end]?.token) end++;
    return end - number;
  }

  // Segments before a part of the text, in it, and behind it; what the borders cut becomes the user's.
  #cut(start, stop) {
    const parts = [[], [], []];
    let begin = 0;
    for (const segment of this.segments) {
      const end = begin + segment.text.length;
      if (end <= start) parts[0].push(segment);
      else if (begin >= stop) parts[2].push(segment);
      else {
        const [a, b] = [Math.max(0, start - begin), Math.min(segment.text.length, stop - begin)];
        const pieces = [segment.text.slice(0, a), segment.text.slice(a, b), segment.text.slice(b)];
        pieces.forEach((text, part) => { if (text) parts[part].push({ text, token: null }); });
      }
      begin = end;
    }
    return parts;
  }

  // What the user wrote on end is one segment.
  #join() {
    const joined = [];
    for (const segment of this.segments) {
      if (!segment.text) continue;
      if (!segment.token && joined.length && !joined.at(-1).token) {
        joined.push({ text: joined.pop().text + segment.text, token: null });
      } else joined.push(segment);
    }
    this.segments = joined;
  }
}
