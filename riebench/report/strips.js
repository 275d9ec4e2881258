// The strips of a run: from the index in #strips-index, written by strips.py, the cases that are asked for are drawn,
// a page at a time. Pictures are loaded when they come near the screen.
"use strict";

(() => {
  const holder = document.getElementById("strips-index");
  if (!holder) return;
  const index = JSON.parse(holder.textContent);
  const cases = index.cases;
  const count = cases.edit.length;
  const get = (name) => document.getElementById(`strips-${name}`);
  const controls = Object.fromEntries(
    ["category", "method", "strength", "blocks", "by", "order"].map((name) => [name, get(name)]));
  const PAGE = 12;
  const EACH = "each block alone";
  const EVERY = "all methods side by side";
  let page = 0;
  let found = [];

  /** Float32 numbers in base64, one a case; they are decoded when they are first asked for. */
  const decoded = new Map();
  function numbers(base64) {
    if (base64 === undefined) return new Float32Array(count).fill(NaN);
    if (!decoded.has(base64)) {
      const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
      decoded.set(base64, new Float32Array(bytes.buffer));
    }
    return decoded.get(base64);
  }

  const scoreOf = (setting, name, i) => numbers(setting.scores[name])[i];
  const gainOf = (setting, i) => scoreOf(setting, index.gain, i) - numbers(index.unchanged)[i];

  function text(value, signed) {
    if (!Number.isFinite(value)) return "–";
    const words = value.toFixed(3).replace("-", "−");
    if (/^−?0\.000$/.test(words)) return "0.000";
    return signed && value > 0 ? `+${words}` : words;
  }

  function make(tag, className, ...inside) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...inside);
    return element;
  }

  /** Gives a list its options; names: what is shown for each value. The old choice is kept where it still exists. */
  function fill(select, values, names = values) {
    const before = select.value;
    select.replaceChildren(...values.map((value, i) => new Option(names[i], value)));
    if (values.includes(before)) select.value = before;
    select.parentElement.hidden = names.length < 2;
  }

  /** The settings whose pictures are shown, after the case's own; cases are ordered by the first of them. */
  function shownSettings() {
    if (controls.method.value === EVERY) return [index.settings[index.first], ...index.settings.filter(
      (setting, i) => i !== index.first && setting.whole)];
    const some = index.settings.filter((setting) =>
      setting.method === controls.method.value && setting.strength === controls.strength.value);
    if (controls.blocks.value === EACH) return some.filter((setting) => setting.single);
    return some.filter((setting) => setting.blocks === controls.blocks.value);
  }

  function fillStrengths() {
    const some = index.settings.filter((setting) => setting.method === controls.method.value);
    fill(controls.strength, [...new Set(some.map((setting) => setting.strength))]);
  }

  function fillBlocks() {
    const some = index.settings.filter((setting) =>
      setting.method === controls.method.value && setting.strength === controls.strength.value);
    const each = some.filter((setting) => setting.single).length > 1 ? [EACH] : [];
    fill(controls.blocks, [...some.map((setting) => setting.blocks), ...each],
      [...some.map((setting) => (setting.whole ? "all blocks" : setting.blocks)), ...each]);
  }

  /** 0 to 2^32, the same sequence for the same seed: mulberry32. */
  function generator(seed) {
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let z = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z;
      return (z ^ (z >>> 14)) >>> 0;
    };
  }

  /** The chosen cases in the chosen order. Cases without a value come last. */
  function choose() {
    const category = index.categories.indexOf(controls.category.value);
    const chosen = [];
    for (let i = 0; i < count; i++) {
      if (category < 0 || index.edits[cases.edit[i]].category === category) chosen.push(i);
    }
    if (controls.order.value === "random") {
      const next = generator(0);
      const places = Array.from({ length: count }, next);
      return chosen.sort((a, b) => places[a] - places[b]);
    }
    const setting = shownSettings()[0];
    if (controls.order.value === "edit" || !setting) return chosen;
    const score = index.scores.find(({ label }) => label === controls.by.value);
    const value = (i) => (score ? scoreOf(setting, score.name, i) : gainOf(setting, i));
    const descending = (controls.order.value === "best") === (!score || score.better === "higher");
    const keyed = chosen.map((i) => ({ i, key: value(i), gain: gainOf(setting, i) }));
    keyed.sort((a, b) => {
      if (Number.isNaN(a.key) || Number.isNaN(b.key)) return Number.isNaN(a.key) - Number.isNaN(b.key);
      if (a.key === b.key) return controls.order.value === "best" ? b.gain - a.gain : a.gain - b.gain;
      return descending ? b.key - a.key : a.key - b.key;
    });
    return keyed.map(({ i }) => i);
  }

  function tile(i, path, label, words) {
    const edit = index.edits[cases.edit[i]];
    const empty = () => make("div", "none", "no image");
    let picture = empty();
    if (path) {
      picture = new Image();
      picture.loading = "lazy";
      picture.decoding = "async";
      picture.alt = `${label}: ${edit.id}, seed ${cases.seed[i]}`;
      picture.addEventListener("error", () => picture.replaceWith(empty()));
      picture.src = path.split("/").map(encodeURIComponent).join("/");
    }
    return make("li", "", picture, make("b", "", label), ...words.map((word) => make("span", "", word)));
  }

  function pathOf(setting, i) {
    const between = setting.files.between[i];
    return between === null ? "" : cases.folder[i] + setting.files.before + between + setting.files.after;
  }

  function settingTile(setting, i, label) {
    const reason = setting.failed[i];
    const words = reason === undefined
      ? [`gain ${text(gainOf(setting, i), true)}`, `LPIPS ${text(scoreOf(setting, index.cost, i))}`]
      : [`failed: ${index.reasons[reason]}`];
    return tile(i, pathOf(setting, i), label, words);
  }

  function scoreList(setting, i) {
    const list = make("dl", "scores");
    for (const score of index.scores) {
      if (!(score.name in setting.scores)) continue;
      list.append(make("div", "", make("dt", "", score.label), make("dd", "", text(scoreOf(setting, score.name, i)))));
    }
    return list;
  }

  function strip(i, settings) {
    const edit = index.edits[cases.edit[i]];
    const tiles = [
      tile(i, cases.original[i], "original", []),
      tile(i, cases.edited[i], "edited", []),
    ];
    if (index.masks) tiles.push(tile(i, cases.regions[i], "mask", []));
    const alone = settings.length === 1;
    const side = controls.blocks.value === EACH && controls.method.value !== EVERY;
    for (const setting of settings) {
      tiles.push(settingTile(setting, i, alone ? "intervened" : side ? `${setting.blocks} alone` : setting.label));
    }
    const head = make("h3", "", `${edit.id}, seed ${cases.seed[i]}`, " ",
      make("span", "subtitle", index.categories[edit.category]));
    const article = make("article", "case", head);
    if (edit.prompts.length) {
      const [original, edited] = edit.prompts;
      article.append(make("p", "prompts", make("b", "", "original"), ` ${original}`, make("br", ""),
        make("b", "", "edited"), ` ${edited}`));
    }
    const pictures = make("ul", "strip", ...tiles);
    article.append(alone ? make("div", "beside", pictures, scoreList(settings[0], i)) : pictures);
    return article;
  }

  function draw() {
    const settings = shownSettings();
    const first = page * PAGE;
    const shown = found.slice(first, first + PAGE);
    get("list").replaceChildren(...shown.map((i) => strip(i, settings)));
    get("status").textContent = found.length
      ? `Cases ${first + 1} to ${first + shown.length} of ${found.length}`
      : "No case";
    get("previous").disabled = page === 0;
    get("next").disabled = first + PAGE >= found.length;
  }

  function search() {
    page = 0;
    found = choose();
    draw();
  }

  function turn(by) {
    page += by;
    draw();
    get("status").scrollIntoView({ block: "start" });
  }

  const first = index.settings[index.first];
  const methods = [...new Set(index.settings.map((setting) => setting.method))];
  fill(controls.category, ["all categories", ...index.categories]);
  fill(controls.method, methods.length > 1 ? [...methods, EVERY] : methods);
  const told = index.scores.filter(({ better }) => better !== "neither");
  fill(controls.by, ["Edit gain", ...told.map(({ label }) => label)]);
  const success = told.find(({ name }) => name === index.success);
  if (success) controls.by.value = success.label;
  controls.method.value = first.method;
  fillStrengths();
  controls.strength.value = first.strength;
  fillBlocks();
  controls.blocks.value = first.blocks;
  controls.method.addEventListener("change", () => { fillStrengths(); fillBlocks(); search(); });
  controls.strength.addEventListener("change", () => { fillBlocks(); search(); });
  for (const name of ["category", "blocks", "by", "order"]) controls[name].addEventListener("change", search);
  get("previous").addEventListener("click", () => turn(-1));
  get("next").addEventListener("click", () => turn(1));
  get("browser").hidden = false;
  search();
})();
