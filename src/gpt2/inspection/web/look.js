// A look inside, drawn from the JSON of gpt2/inspection/view.py. All text is set as textContent.

// ---- small tools -----------------------------------------------------------------------------------------------

export function make(tag, properties = {}, ...children) {
  const { data = {}, aria = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(data)) element.dataset[name] = value;
  for (const [name, value] of Object.entries(aria)) element.setAttribute(`aria-${name}`, value);
  element.append(...children);
  return element;
}

// White space can be seen: a token may be nothing else.
export function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ /, "␣").replace(/ $/, "␣");
}

const percent = (share) => (share >= 0.0995 ? share.toFixed(2) : share.toFixed(4)).replace(/^1\.00$/, "1.0");

// Never so deep that a word on it could not be read.
function colour(variable, share) {
  return `rgba(var(--${variable}), ${(0.55 * Math.min(1, share)).toFixed(3)})`;
}

// ---- probabilities ---------------------------------------------------------------------------------------------

// What the sampler would draw from: temperature, then the k likeliest, then the nucleus of mass p.
export function distribution(token, { temperature, topK, topP }) {
  const heat = Math.max(temperature, 1e-3);
  const largest = token.guesses[0][2];
  const weights = token.guesses.map(([, , logit]) => Math.exp((logit - largest) / heat));
  const others = token.rest.reduce((sum, [logit, count]) => sum + count * Math.exp((logit - largest) / heat), 0);
  const allowed = topK > 0 ? Math.min(topK, weights.length) : weights.length;
  const kept = weights.slice(0, allowed);
  const beyond = topK > 0 && topK <= weights.length ? 0 : others;
  const total = kept.reduce((sum, weight) => sum + weight, beyond);
  let nucleus = 0;
  let before = 0;
  while (nucleus < kept.length && (nucleus === 0 || before / total < topP)) before += kept[nucleus++];
  const whole = topP < 1 ? before : total;
  return weights.map((weight, place) => (place < nucleus ? weight / whole : 0));
}

export function attentionOf(view) {
  const bytes = Uint8Array.from(atob(view.attention), (letter) => letter.charCodeAt(0));
  const numbers = new Uint16Array(bytes.buffer);
  const size = view.tokens.length;
  return (layer, head, from, to) => numbers[((layer * view.heads + head) * size + from) * size + to] / 65535;
}

// ---- the parts -------------------------------------------------------------------------------------------------

function drawTokens(view, state, choose) {
  const covered = new Set();
  for (const span of view.origins?.spans ?? []) {
    const offset = view.tokens.length - view.origins.tokens;
    for (let place = span.start; place < span.stop; place++) covered.add(place + offset);
  }
  const buttons = view.tokens.map((token, place) => {
    const button = make("button", { type: "button", className: "token", textContent: visible(token.text) });
    button.classList.toggle("written", token.written);
    button.classList.toggle("verbatim", covered.has(place));
    button.addEventListener("click", () => choose(place));
    return button;
  });
  const about = make("p", { className: "about", role: "status" });
  const strip = make("div", { className: "tokens" });
  buttons.forEach((button, place) => {
    strip.append(button);
    if (view.tokens[place].text.includes("\n")) strip.append("\n");
  });
  function update() {
    const chosen = view.tokens[state.place];
    buttons.forEach((button, place) => {
      const token = view.tokens[place];
      button.setAttribute("aria-pressed", String(place === state.place));
      const attended = state.shows === "attention" && place <= state.place;
      const share = attended ? state.attention(state.layer, state.head, state.place, place) : 0;
      button.style.background = state.shows === "attention" ? colour("cool", share)
        : token.loss === null ? "none" : colour("warm", token.loss / 12);
      button.title = token.loss === null ? `id ${token.id}` : `id ${token.id}, loss ${token.loss.toFixed(2)}`;
    });
    about.textContent = `Token ${state.place + 1} of ${view.tokens.length}: “${visible(chosen.text)}”, id ${chosen.id}` +
      (chosen.loss === null ? "; nothing stood before it." : `; probability ${percent(Math.exp(-chosen.loss))}, ` +
        `loss ${chosen.loss.toFixed(3)} nats, ` + (chosen.rank ? `${chosen.rank} tokens were likelier.` : "the first guess."));
  }
  const losses = view.tokens.filter((token) => token.loss !== null).map((token) => token.loss);
  const mean = losses.length ? `, mean ${(losses.reduce((a, b) => a + b, 0) / losses.length).toFixed(3)}` : "";
  const section = make("section", {}, make("h2", { textContent: "The text, token by token" }),
    make("p", { textContent: `The redder, the less it was expected (loss${mean}). Underlined: written by the model` +
      `${covered.size ? "; double line: stands word for word in the training text" : ""}. Choose a token.` }),
    strip, about);
  return [section, update];
}

function slider(label, properties, shown, changed) {
  const output = make("output");
  const input = make("input", { type: "range", ...properties, aria: { label } }); // a label of its own means the output
  const update = () => { output.textContent = shown(Number(input.value)); };
  input.addEventListener("input", () => { update(); changed(Number(input.value)); });
  update();
  return make("label", {}, make("span", {}, `${label} `, output), input);
}

function drawNext(view, state) {
  const bars = make("div", { className: "bars" });
  const heading = make("h2");
  function update() {
    const token = view.tokens[state.place];
    heading.textContent = `What comes after “${visible(token.text)}”`;
    const shares = distribution(token, state);
    const uncut = distribution(token, { ...state, topK: 0, topP: 1 });
    const following = view.tokens[state.place + 1];
    bars.replaceChildren(...token.guesses.slice(0, 20).flatMap(([id, text], place) => {
      const [out, share] = shares[place] === 0 ? [" out", uncut[place]] : ["", shares[place]];
      const here = following?.id === id ? " ←" : "";
      return [
        make("span", { className: `word${out}`, textContent: visible(text) + here, title: `id ${id}` }),
        make("progress", { max: 1, value: share, className: out, aria: { label: `probability of ${visible(text)}` } }),
        make("span", { className: out, textContent: percent(share) }),
      ];
    }));
  }
  const sliders = make("div", { className: "sliders" },
    slider("Temperature", { min: 0, max: 2, step: 0.05, value: state.temperature }, (v) => v.toFixed(2),
      (value) => { state.temperature = value; update(); }),
    slider("Top k", { min: 0, max: 48, step: 1, value: state.topK }, (v) => (v ? String(v) : "all"),
      (value) => { state.topK = value; update(); }),
    slider("Top p", { min: 0.05, max: 1, step: 0.05, value: state.topP }, (v) => v.toFixed(2),
      (value) => { state.topP = value; update(); }));
  return [make("section", {}, heading,
    make("p", { textContent: "Probabilities under these settings. Struck out, with what it would have had: what top k and top p cut off. An arrow marks what stands in the text." }),
    sliders, bars), update];
}

function drawLens(view, state) {
  const table = make("table");
  function update() {
    const from = Math.max(0, Math.min(state.place - 4, view.tokens.length - 8));
    const places = view.tokens.map((_, place) => place).slice(from, from + 8);
    const head = make("tr", {}, make("th", { textContent: "after", scope: "col" }), ...places.map((place) =>
      make("th", { textContent: visible(view.tokens[place].text), scope: "col" })));
    const rows = view.lens.map((guesses, depth) => make("tr", {},
      make("th", { textContent: depth ? `layer ${depth}` : "embeddings", scope: "row" }),
      ...places.map((place) => {
        const [text, share] = guesses[place][0];
        const title = guesses[place].map(([word, part]) => `${visible(word)} ${percent(part)}`).join("\n");
        const cell = make("td", { textContent: visible(text), title });
        cell.style.background = colour("cool", share);
        if (place === state.place) cell.style.outline = "2px solid var(--main)";
        return cell;
      })));
    table.replaceChildren(head, ...rows.reverse());
  }
  return [make("section", {}, make("h2", { textContent: "What each layer would say" }),
    make("p", { textContent: "The logit lens: the stream after each layer, read as if it were the last. The deeper the colour, the surer." }),
    make("div", { className: "scroll", tabIndex: 0, role: "region", aria: { label: "Guesses of each layer" } }, table)), update];
}

function paint(canvas, view, attention, layer, head) {
  const size = view.tokens.length;
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  const [red, green, blue] = getComputedStyle(canvas).getPropertyValue("--cool").split(",").map(Number);
  for (let from = 0; from < size; from++) {
    for (let to = 0; to <= from; to++) {
      image.data.set([red, green, blue, 255 * Math.sqrt(attention(layer, head, from, to))], 4 * (from * size + to));
    }
  }
  context.putImageData(image, 0, 0);
}

function drawAttention(view, state, changed) {
  const big = make("canvas", { className: "big", role: "img" });
  const told = make("p", { role: "status" });
  const buttons = [];
  const rows = Array.from({ length: view.layers }, (_, layer) => make("div", {}, make("span", { textContent: `layer ${layer + 1}` }),
    ...Array.from({ length: view.heads }, (_, head) => {
      const canvas = make("canvas");
      const button = make("button", { type: "button", className: "head", aria: { label: `Layer ${layer + 1}, head ${head + 1}` } }, canvas);
      button.addEventListener("click", () => { [state.layer, state.head, state.shows] = [layer, head, "attention"]; changed(); });
      buttons.push([button, canvas, layer, head]);
      return button;
    })));
  big.addEventListener("click", (event) => {
    const size = view.tokens.length;
    const place = Math.floor((event.offsetY / big.clientHeight) * size);
    if (place >= 0 && place < size) { state.place = place; state.shows = "attention"; changed(); }
  });
  let painted = false;
  function update() {
    if (!painted && big.isConnected) {
      painted = true;
      for (const [, canvas, layer, head] of buttons) paint(canvas, view, state.attention, layer, head);
    }
    for (const [button, , layer, head] of buttons) {
      button.setAttribute("aria-pressed", String(layer === state.layer && head === state.head));
    }
    if (big.isConnected) paint(big, view, state.attention, state.layer, state.head);
    big.setAttribute("aria-label", `Attention of layer ${state.layer + 1}, head ${state.head + 1}`);
    const given = view.tokens.slice(0, state.place + 1).map((token, place) =>
      [state.attention(state.layer, state.head, state.place, place), token]).sort((a, b) => b[0] - a[0]).slice(0, 5);
    told.textContent = `Layer ${state.layer + 1}, head ${state.head + 1}: “${visible(view.tokens[state.place].text)}” looks at ` +
      given.map(([share, token]) => `“${visible(token.text)}” ${percent(share)}`).join(", ") + ".";
  }
  const toggle = make("button", { type: "button", textContent: "Colour the text by loss" });
  toggle.addEventListener("click", () => { state.shows = "loss"; changed(); });
  return [make("section", {}, make("h2", { textContent: "Who looks at whom" }),
    make("p", { textContent: "Attention, a square for each head: rows are tokens, columns what they look at. Choose a head, and the text is coloured by it." }),
    make("div", { className: "columns" },
      make("div", { className: "scroll", tabIndex: 0, role: "region", aria: { label: "All heads" } }, make("div", { className: "heads" }, ...rows)),
      make("div", {}, big, told, toggle))), update];
}

function drawOrigins(origins) {
  const section = make("section", {}, make("h2", { textContent: "Where it may have read that" }));
  if (!origins) {
    section.append(make("p", { textContent: "The training text is not at hand, so nothing can be compared." }));
    return section;
  }
  const share = Math.round(100 * origins.share);
  section.append(make("p", {}, make("meter", { min: 0, max: 1, value: origins.share, aria: { label: "Share copied" } }),
    ` ${share} % of what it wrote stands word for word in the training text, in spans of ${origins.characters} characters or more.`));
  for (const span of origins.spans) {
    section.append(make("p", { textContent: span.document }),
      make("blockquote", {}, `… ${span.before}`, make("mark", { textContent: span.text }), `${span.after} …`));
  }
  if (origins.passages.length) section.append(make("h2", { textContent: "Nearest passages of the training text" }));
  for (const passage of origins.passages) {
    section.append(make("p", { textContent: `${passage.document}, score ${passage.score}` }),
      make("blockquote", { textContent: passage.text }));
  }
  return section;
}

// ---- all of it -------------------------------------------------------------------------------------------------

export function drawLook(root, view) {
  root.classList.add("look");
  const first = view.tokens.findIndex((token) => token.written);
  const state = {
    place: Math.max(0, (first === -1 ? view.tokens.length : first) - 1), layer: view.layers - 1, head: 0, shows: "loss",
    temperature: view.sampling?.temperature ?? 1, topK: Math.min(48, view.sampling?.top_k ?? 0), topP: view.sampling?.top_p ?? 1,
    attention: attentionOf(view),
  };
  const updates = [];
  const changed = () => updates.forEach((update) => update());
  const [tokens, updateTokens] = drawTokens(view, state, (place) => { state.place = place; changed(); });
  const [next, updateNext] = drawNext(view, state);
  const [lens, updateLens] = drawLens(view, state);
  const [attention, updateAttention] = drawAttention(view, state, changed);
  updates.push(updateTokens, updateNext, updateLens, updateAttention);
  const heading = view.name ? [make("h1", { textContent: `${view.name}: a look inside` })] : [];
  root.replaceChildren(...heading, tokens, make("div", { className: "columns" }, next, lens), attention, drawOrigins(view.origins));
  changed();
}

// The same prompt, answered by every checkpoint that was kept.
export function drawGrowth(root, view) {
  root.classList.add("look");
  const answer = make("blockquote");
  const label = make("output");
  const bars = make("div", { className: "bars" });
  const input = make("input", { type: "range", min: 0, max: view.checkpoints.length - 1, step: 1, aria: { label: "Checkpoint" } });
  input.value = view.checkpoints.length - 1;
  function update() {
    const at = view.checkpoints[Number(input.value)];
    label.textContent = `step ${at.step.toLocaleString("en")}` + (at.loss === null ? "" : `, validation loss ${at.loss.toFixed(4)}`);
    answer.replaceChildren(view.prompt, view.asked ? "\n" : "", make("mark", { textContent: at.text }));
    bars.replaceChildren(...at.guesses.flatMap(([text, share]) => [
      make("span", { className: "word", textContent: visible(text) }),
      make("progress", { max: 1, value: share, aria: { label: `probability of ${visible(text)}` } }),
      make("span", { textContent: percent(share) })]));
  }
  input.addEventListener("input", update);
  root.replaceChildren(make("h1", { textContent: `${view.name}: a model growing up` }),
    make("p", { textContent: "One prompt, answered by every checkpoint that was kept. Move the slider, or use the arrow keys." }),
    make("div", { className: "years" }, input, label), answer,
    make("h2", { textContent: "What it expected next" }), bars);
  update();
}

const embedded = document.getElementById("view");
if (embedded !== null) {
  const view = JSON.parse(embedded.textContent);
  (view.checkpoints ? drawGrowth : drawLook)(document.getElementById("look"), view);
}
