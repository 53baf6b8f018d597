"use strict";
// The page of a run: reads the run's files out of the element "data" and draws everything into "page".
// Text of a model goes in as text nodes only.

// --- Small helpers --------------------------------------------------------------------------------

const NAMESPACE = "http://www.w3.org/2000/svg";
const CLOCK = /second|^step$|^run$|^seed$|^set$|_ci$/;
const REFLECTION = /(\b(?:wait|mistake|however|but|retry|error|verify|wrong|evaluate|check|espera|reviso)\b)/gi;

function make(parent, tag, attributes = {}, text = null) {
  const isDrawing = ["svg", "path", "line", "rect", "circle", "text", "g"].includes(tag);
  const element = isDrawing ? document.createElementNS(NAMESPACE, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function show(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x !== 0 && Math.abs(x) < 0.5 * 10 ** -digits) return x.toExponential(1).replace("-", "−").replace("e-", "e−");
  return x.toFixed(digits).replace("-", "−");
}

function parseCSV(text) {
  const rows = [];
  let row = [], cell = "", quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c === '"' && text[i + 1] === '"') { cell += '"'; i++; }
      else if (c === '"') quoted = false;
      else cell += c;
    } else if (c === '"') quoted = true;
    else if (c === ",") { row.push(cell); cell = ""; }
    else if (c === "\n") { row.push(cell); rows.push(row); row = []; cell = ""; }
    else if (c !== "\r") cell += c;
  }
  const [header, ...body] = rows;
  return body.map((cells) => Object.fromEntries(header.map((name, i) => [name, cells[i] ?? ""])));
}

const sum = (xs) => xs.reduce((a, b) => a + b, 0);
const mean = (xs) => sum(xs) / xs.length;

// What a click or Enter does; the element can be reached with the keyboard.
function onPress(element, act, key) {
  element.setAttribute("tabindex", "0");
  element.setAttribute("data-key", key);  // where the focus stays when all is drawn again
  element.addEventListener("click", act);
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(event); }
  });
}

// --- The data -------------------------------------------------------------------------------------

const parseLines = (text) => text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
const runs = JSON.parse(document.getElementById("data").textContent).map((files) => ({
  name: files.name,
  about: files["run.json"] ? JSON.parse(files["run.json"]) : { flags: {} },
  metrics: parseCSV(files["metrics.csv"]),
  eval: parseCSV(files["eval.csv"]),
  groups: parseLines(files["groups.jsonl"]),
  heldOut: parseLines(files["held_out.jsonl"]),
}));
const main = runs[0];
const flags = main.about.flags;
const isPPO = main.groups.some((group) => group.values);
const mainSet = main.eval.length ? main.eval[0].set : "";
for (const run of runs) run.eval = run.eval.filter((row) => row.set === mainSet);
const state = { group: main.groups.length - 1, response: 0, token: 0, colour: "advantage x weight", preset: "as recorded" };
// report.html#group=2&response=5&preset=rloo opens there.
for (const [name, text] of new URLSearchParams(location.hash.slice(1)))
  if (name in state) state[name] = typeof state[name] === "number" ? Number(text) : text;

// --- The formulas: of grpo.py, ppo.py and variants.py ---------------------------------------------

const PRESETS = {
  "as recorded": null,
  grpo: { baseline: "group", scale: "group", aggregation: "sequence" },
  dr_grpo: { baseline: "group", scale: "none", aggregation: "constant" },
  dapo: { baseline: "group", scale: "group", aggregation: "token" },
  maxrl: { baseline: "group", scale: "mean", aggregation: "sequence" },
  rloo: { baseline: "others", scale: "none", aggregation: "constant" },
  reinforce: { baseline: "none", scale: "none", aggregation: "constant" },
};
const CONSTANT = 160;

// rewards (null: could not be judged) -> one advantage a response.
function groupAdvantages(rewards, preset) {
  const known = rewards.filter((r) => r !== null);
  const m = mean(known);
  const std = Math.sqrt(mean(known.map((r) => (r - m) ** 2)));
  const differ = Math.max(...known) > Math.min(...known);
  return rewards.map((r) => {
    if (r === null) return 0;
    if (preset.baseline === "none") return r;
    if (!differ) return 0;
    let A = r - m;
    if (preset.baseline === "others") A *= known.length / (known.length - 1);
    if (preset.scale === "group") A /= std;
    if (preset.scale === "mean") A = m > 0 ? A / m : 0;
    return A;
  });
}

// lengths of the responses -> the weight of each token of each response.
function tokenWeights(lengths, preset) {
  if (preset.aggregation === "token") return lengths.map(() => 1 / sum(lengths));
  if (preset.aggregation === "constant") return lengths.map(() => 1 / (lengths.length * CONSTANT));
  return lengths.map((T) => 1 / T / lengths.length);
}

// What the objective says of token t of response i: every number of the equations.
function numbersOf(group, i, t) {
  const preset = PRESETS[state.preset];
  const rewards = group.judged.map((facts) => facts.reward);
  const known = rewards.filter((r) => r !== null);
  const lengths = group.tokens.map((tokens) => tokens.length);
  const n = { reward: rewards[i], mean: mean(known), length: lengths[i], G: lengths.length };
  n.std = Math.sqrt(mean(known.map((r) => (r - n.mean) ** 2)));
  n.A = preset ? groupAdvantages(rewards, preset)[i] : group.advantages[i][t];
  n.weight = preset ? tokenWeights(lengths, preset)[i] : group.weights[i][t];
  n.old = group.old_logprobs[i][t];
  n.after = group.logprobs_after[i][t];
  n.entropy = group.entropy_after[i][t];
  n.low = 1 - (flags.clip_low ?? 0.2);
  n.high = 1 + (flags.clip_high ?? 0.2);
  n.ratio = Math.exp(Math.min(20, Math.max(-20, n.after - n.old)));
  n.clipped = Math.min(n.high, Math.max(n.low, n.ratio));
  n.surrogate = Math.min(n.ratio * n.A, n.clipped * n.A);
  n.isClipped = n.clipped * n.A < n.ratio * n.A;
  n.klCoef = flags.kl_coef ?? 0;
  n.kl = 0;
  if (group.ref_logprobs) {
    n.ref = group.ref_logprobs[i][t];
    const d = n.after - n.ref;
    n.kl = Math.exp(Math.min(20, -d)) + Math.max(-20, d) - 1;
  }
  if (group.values) {
    const isLast = t === n.length - 1;
    n.price = group.ref_logprobs ? -n.klCoef * (n.old - n.ref) : 0;
    n.tokenReward = n.price + (isLast ? n.reward : 0);
    n.value = group.values[i][t];
    n.next = isLast ? 0 : group.values[i][t + 1];
    n.delta = n.tokenReward + flags.gamma * n.next - n.value;
    n.return = group.returns[i][t];
  }
  n.part = (n.surrogate - (group.values ? 0 : n.klCoef * n.kl)) * n.weight;
  return n;
}

const COLOURS = {
  "advantage x weight": (n) => n.A * n.weight,
  "probability: after minus before": (n) => Math.exp(n.after) - Math.exp(n.old),
  "ratio minus 1": (n) => n.ratio - 1,
  "KL to the reference": (n) => n.kl,
  "entropy after": (n) => n.entropy,
  "value of the critic": (n) => n.value,
};

// --- Overview -------------------------------------------------------------------------------------

function overview(page) {
  const task = flags.task ?? "a task";
  make(page, "h1", {}, `${(flags.algo ?? "SFT").toUpperCase()} on ${task}`);
  const first = main.eval[0], last = main.eval.at(-1);
  const steps = main.metrics.length;
  let sentence = `${steps} steps`;
  if (flags.prompts_per_step) sentence += ` of ${flags.prompts_per_step} problems with ${flags.group_size} responses each`;
  if (first && last) sentence += `; right on held-out problems (${mainSet}): ${show(+first.accuracy, 2)} before, ${show(+last.accuracy, 2)} after.`;
  make(page, "p", {}, sentence);
  const tiles = make(page, "div", { class: "tiles" });
  const tile = (value, text) => {
    const box = make(tiles, "div", { class: "tile" });
    make(box, "b", {}, value);
    make(box, "span", {}, text);
  };
  if (first && last) {
    for (const [row, when] of [[first, "before"], [last, "after"]])
      tile(`${show(+row.accuracy, 2)} ± ${show(+row.accuracy_ci, 2)}`, `accuracy ${when} (step ${row.step}), 95% interval`);
    tile(`${show(+first.length, 0)} → ${show(+last.length, 0)}`, "tokens a response");
    tile(`${show(100 * first.reflection, 0)}% → ${show(100 * last.reflection, 0)}%`, "responses with a self-check");
  }
  tile(show(sum(main.metrics.map((row) => +row.seconds)) / 60, 1), "minutes of training");
  const more = make(page, "details");
  make(more, "summary", {}, "flags and versions");
  make(more, "pre", { class: "prompt" }, JSON.stringify(main.about, null, 1));
}

// --- Curves ---------------------------------------------------------------------------------------

// {line's name: [{step, mean, low, high}]} of a column; seeds of one run are one line.
function linesOf(source, column) {
  const lines = {};
  for (const run of runs)
    for (const row of run[source]) {
      if (!row.step || row[column] === "" || row[column] === "nan" || row[column] === undefined) continue;
      const name = row.run ?? (runs.length > 1 ? run.name.replace(/-\d+$/, "") : run.name);
      ((lines[name] ??= {})[+row.step] ??= []).push(+row[column]);
    }
  for (const name in lines)
    lines[name] = Object.entries(lines[name]).map(([step, xs]) => ({ step: +step, mean: mean(xs), low: Math.min(...xs), high: Math.max(...xs) })).sort((a, b) => a.step - b.step);
  return lines;
}

const HUES = [215, 25, 150, 290, 50, 340, 185, 100];

function chart(parent, chosen) {
  const box = make(parent, "div", { class: "panel" });
  const select = make(box, "select", { "aria-label": "what is drawn" });
  for (const [source, title] of [["eval", "held out: "], ["metrics", ""]]) {
    const columns = Object.keys(main[source][0] ?? {}).filter((name) => !CLOCK.test(name));
    for (const column of columns) make(select, "option", { value: `${source} ${column}` }, title + column);
  }
  if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
  const holder = make(box, "div");
  const readout = make(box, "div", { class: "readout", role: "status" });
  const draw = () => {
    holder.replaceChildren();
    const at = select.value.indexOf(" ");
    const lines = linesOf(select.value.slice(0, at), select.value.slice(at + 1));
    const points = Object.values(lines).flat();
    if (!points.length) return;
    const steps = [...new Set(points.map((p) => p.step))].sort((a, b) => a - b);
    const x0 = steps[0], x1 = Math.max(steps.at(-1), x0 + 1);
    let y0 = Math.min(0, ...points.map((p) => p.low)), y1 = Math.max(...points.map((p) => p.high));
    if (y1 === y0) y1 = y0 + 1;
    const X = (s) => 40 + (310 * (s - x0)) / (x1 - x0), Y = (v) => 160 - (145 * (v - y0)) / (y1 - y0);
    const svg = make(holder, "svg", { viewBox: "0 0 360 190", role: "img", "aria-label": select.value, tabindex: "0" });
    for (const k of [0, 1, 2, 3, 4]) {
      const v = y0 + ((y1 - y0) * k) / 4;
      make(svg, "line", { x1: 40, x2: 350, y1: Y(v), y2: Y(v), stroke: "var(--line)" });
      make(svg, "text", { x: 36, y: Y(v) + 4, "text-anchor": "end" }, show(v, y1 - y0 > 20 ? 0 : 2));
    }
    for (const s of [x0, Math.round((x0 + x1) / 2), x1]) make(svg, "text", { x: X(s), y: 186, "text-anchor": "middle" }, `${s}`);
    Object.entries(lines).forEach(([, line], i) => {
      const hue = `hsl(${HUES[i % HUES.length]} 60% 50%)`;
      const band = line.map((p) => `${X(p.step)},${Y(p.high)}`).concat(line.toReversed().map((p) => `${X(p.step)},${Y(p.low)}`));
      make(svg, "path", { d: `M${band.join("L")}Z`, fill: hue, opacity: 0.18 });
      make(svg, "path", { d: `M${line.map((p) => `${X(p.step)},${Y(p.mean)}`).join("L")}`, fill: "none", stroke: hue, "stroke-width": 2 });
      if (line.length <= 12) for (const p of line) make(svg, "circle", { cx: X(p.step), cy: Y(p.mean), r: 2.5, fill: hue });
    });
    for (const [k, group] of main.groups.entries()) {
      const dot = make(svg, "circle", { cx: X(group.step), cy: 168, r: k === state.group ? 4 : 2.5, fill: "var(--blue)" });
      make(dot, "title", {}, `the recorded group of step ${group.step}`);
    }
    const cursor = make(svg, "line", { y1: 15, y2: 160, stroke: "var(--soft)", visibility: "hidden" });
    let current = steps.at(-1);
    const read = (step) => {
      current = step;
      for (const name of ["x1", "x2"]) cursor.setAttribute(name, X(step));
      cursor.setAttribute("visibility", "visible");
      const parts = Object.entries(lines).map(([name, line]) => {
        const p = line.find((p) => p.step === step);
        return p ? `${Object.keys(lines).length > 1 ? name + " " : ""}${show(p.mean)}` : null;
      });
      readout.textContent = `step ${step}: ${parts.filter(Boolean).join(", ")}`;
    };
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect();
      const s = x0 + ((((event.clientX - frame.left) / frame.width) * 360 - 40) / 310) * (x1 - x0);
      read(steps.reduce((a, b) => (Math.abs(b - s) < Math.abs(a - s) ? b : a)));
    });
    const open = () => {
      if (!main.groups.length) return;
      const distance = main.groups.map((group) => Math.abs(group.step - current));
      state.group = distance.indexOf(Math.min(...distance));
      render();
    };
    svg.addEventListener("click", open);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (move) read(steps[Math.min(steps.length - 1, Math.max(0, steps.indexOf(current) + move))]);
      if (event.key === "Enter") open();
      if (move || event.key === "Enter") event.preventDefault();
    });
  };
  select.addEventListener("change", draw);
  return draw;
}

// --- The group ------------------------------------------------------------------------------------

function bars(parent, group) {
  const rewards = group.judged.map((facts) => facts.reward);
  const preset = PRESETS[state.preset];
  const A = preset ? groupAdvantages(rewards, preset) : group.advantages.map((row) => row[0]);
  const top = Math.max(1e-9, ...A.map(Math.abs)), G = A.length;
  const svg = make(make(parent, "div", { class: "scroll" }), "svg", { viewBox: "0 0 720 230", role: "group", "aria-label": "advantages of the group", style: "min-width:640px" });
  make(svg, "line", { x1: 0, x2: 720, y1: 110, y2: 110, stroke: "var(--line)" });
  A.forEach((a, i) => {
    const width = 720 / G, height = (74 * Math.abs(a)) / top;
    const facts = group.judged[i];
    const colour = facts.accuracy === 1 ? "var(--good)" : "var(--bad)";
    const column = make(svg, "g", { role: "button", "data-advantage": a, "aria-pressed": i === state.response, "aria-label": `response ${i + 1}, reward ${show(facts.reward, 2)}, advantage ${show(a, 2)}` });
    make(column, "rect", { x: i * width, y: 0, width, height: 230, fill: i === state.response ? "rgba(var(--blue-rgb), .12)" : "transparent" });
    make(column, "rect", { x: i * width + width * 0.18, width: width * 0.64, y: a >= 0 ? 110 - height : 110, height: Math.max(height, 1.5), fill: colour, rx: 2 });
    make(column, "text", { x: (i + 0.5) * width, y: 224, "text-anchor": "middle", opacity: 0.8 }, `${group.tokens[i].length}`);
    make(column, "text", { x: (i + 0.5) * width, y: a >= 0 ? 103 - height : 124 + height, "text-anchor": "middle" }, show(a, 1));
    onPress(column, () => select(i), `column ${i}`);
  });
  make(parent, "div", { class: "note" }, "One column a response: green is right, the height is its advantage, the number below its length in tokens.");
}

function select(response, token = 0) {
  state.response = response;
  state.token = token;
  render();
}

// The response with the highest reward.
function best(group) {
  const rewards = group.judged.map((facts) => facts.reward ?? -Infinity);
  return rewards.indexOf(Math.max(...rewards));
}

function step(move) {
  state.group = Math.min(main.groups.length - 1, Math.max(0, state.group + move));
  state.response = best(main.groups[state.group]);
  state.token = 0;
  render();
}

function groupSection(parent, group) {
  const row = make(parent, "div", { class: "row" });
  const back = make(row, "button", { "data-key": "back" }, "◀ before");
  const next = make(row, "button", { class: "main", "data-key": "next" }, `${isPPO ? "PPO" : "GRPO"} steps ▶`);
  back.disabled = state.group === 0;
  next.disabled = state.group === main.groups.length - 1;
  back.onclick = () => step(-1);
  next.onclick = () => step(1);
  const rewards = group.judged.map((facts) => facts.reward).filter((r) => r !== null);
  const m = mean(rewards), std = Math.sqrt(mean(rewards.map((r) => (r - m) ** 2)));
  const right = group.judged.filter((facts) => facts.accuracy === 1).length;
  const text = `step ${group.step}: ${right} of ${group.judged.length} right, mean reward ${show(m, 2)}, spread ${show(std, 2)}, ${show(mean(group.tokens.map((x) => x.length)), 0)} tokens`;
  make(row, "span", { class: "mono", role: "status" }, text);
  const pick = make(make(parent, "div", { class: "row" }, "advantages and weights: "), "select", { "aria-label": "variant" });
  for (const name in PRESETS) make(pick, "option", {}, name);
  pick.value = state.preset;
  pick.onchange = () => { state.preset = pick.value; render(); };
  make(parent, "pre", { class: "prompt" }, group.prompt);
  bars(parent, group);
}

// A text with its words of reflection marked.
function marked(parent, text) {
  for (const [k, part] of text.split(REFLECTION).entries()) {
    if (k % 2) make(parent, "mark", {}, part);
    else parent.append(part);
  }
}

function cards(parent, group) {
  const box = make(parent, "div", { class: "cards" });
  const order = [...group.tokens.keys()].sort((a, b) => (group.judged[b].reward ?? -9) - (group.judged[a].reward ?? -9));
  const top = Math.max(1e-9, ...group.advantages.map((row) => Math.abs(row[0])));
  for (const i of order) {
    const facts = group.judged[i], a = group.advantages[i][0];
    const card = make(box, "div", { class: "card", role: "button", "aria-pressed": i === state.response });
    const head = make(card, "div", { class: "head" });
    const isRight = facts.accuracy === 1;
    make(head, "span", { class: isRight ? "right" : "wrong" }, `${i + 1}. ${facts.unjudged ? "not judged" : isRight ? "right" : facts.accuracy > 0 ? "in part" : "wrong"}`);
    make(head, "span", {}, `A ${show(a, 2)}`);
    const bar = make(card, "div", { class: "bar" });
    const width = (50 * Math.abs(a)) / top;
    make(bar, "i", { style: `left:${a >= 0 ? 50 : 50 - width}%;width:${width}%;background:var(--${a >= 0 ? "good" : "bad"})` });
    const logprob = sum(group.old_logprobs[i]);
    let note = `reward ${show(facts.reward, 2)} = accuracy ${show(facts.accuracy, 2)} + ${flags.format_weight ?? 0} × format ${facts.format}`;
    for (const name in facts) if (name.startsWith("reward_")) note += ` + ${name.slice(7)} ${show(facts[name], 2)}`;
    note += ` · ${facts.length} tokens · log-prob ${show(logprob, 1)}${facts.truncated ? " · cut off" : ""}`;
    make(card, "div", { class: "note" }, note);
    const lines = facts.text.split("\n"), limit = 9;
    const pre = make(card, "pre", {});
    if (lines.length > limit + 2) {
      marked(pre, lines.slice(0, limit - 3).join("\n"));
      const more = make(card, "details");
      make(more, "summary", {}, `${lines.length - limit} lines more`);
      marked(make(more, "pre"), lines.slice(limit - 3, -3).join("\n"));
      more.addEventListener("click", (event) => event.stopPropagation());
      marked(make(card, "pre"), lines.slice(-3).join("\n"));
    } else marked(pre, facts.text);
    onPress(card, () => select(i), `card ${i}`);
  }
}

// The first responses to held-out problems, before RL and after the last evaluation.
function beforeAndAfter(parent) {
  const before = main.heldOut[0], asked = before[1][0][0];
  const after = main.heldOut.findLast(([, samples]) => samples[0][0] === asked);
  make(parent, "h2", {}, "Before and after");
  make(parent, "p", {}, "Held-out problems, the first response to each.");
  before[1].forEach(([prompt], i) => {
    make(parent, "pre", { class: "prompt" }, prompt);
    const pair = make(parent, "div", { class: "charts" });
    for (const [step, samples] of [before, after]) {
      const panel = make(pair, "div", { class: "panel" });
      make(panel, "div", { class: "note" }, `step ${step}`);
      marked(make(panel, "pre", { class: "prompt" }), samples[i][1]);
    }
  });
}

// --- A response, a token --------------------------------------------------------------------------

function tokens(parent, group) {
  const i = state.response;
  const row = make(parent, "div", { class: "row" }, `response ${i + 1}, coloured by `);
  const pick = make(row, "select", { "aria-label": "colour" });
  for (const name in COLOURS) if (group.values || !name.startsWith("value")) make(pick, "option", {}, name);
  pick.value = state.colour;
  pick.onchange = () => { state.colour = pick.value; render(); };
  const values = group.tokens[i].map((_, t) => COLOURS[state.colour](numbersOf(group, i, t)));
  const top = Math.max(1e-12, ...values.map(Math.abs));
  const box = make(parent, "div", { class: "tokens" });
  group.tokens[i].forEach((token, t) => {
    const colour = values[t] >= 0 ? (/KL|entropy|value/.test(state.colour) ? "blue" : "good") : "bad";
    const style = `background:rgba(var(--${colour}-rgb), ${((0.5 * Math.abs(values[t])) / top).toFixed(3)})`;
    const button = make(box, "button", { style, "aria-pressed": t === state.token, title: show(values[t], 4) }, token.replaceAll("\n", "⏎"));
    button.onclick = () => select(i, t);
    if (token.includes("\n")) make(box, "br");
  });
  box.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    select(i, Math.min(values.length - 1, Math.max(0, state.token + move)));
    document.querySelectorAll(".tokens button")[state.token].focus();
  });
}

function surrogatePlot(parent, n) {
  const svg = make(parent, "svg", { viewBox: "0 0 360 170", role: "img", "aria-label": "the clipped objective over the ratio" });
  const f = (r) => Math.min(r * n.A, Math.min(n.high, Math.max(n.low, r)) * n.A);
  const rs = Array.from({ length: 101 }, (_, k) => k / 50);
  const top = Math.max(1e-9, ...rs.map((r) => Math.abs(f(r)))), X = (r) => 20 + 160 * r, Y = (v) => 80 - (62 * v) / top;
  make(svg, "line", { x1: 20, x2: 340, y1: 80, y2: 80, stroke: "var(--line)" });
  for (const r of [n.low, 1, n.high]) {
    make(svg, "line", { x1: X(r), x2: X(r), y1: 10, y2: 150, stroke: "var(--line)", "stroke-dasharray": r === 1 ? "none" : "4 3" });
    make(svg, "text", { x: X(r), y: 165, "text-anchor": "middle" }, show(r, 1));
  }
  make(svg, "path", { d: `M${rs.map((r) => `${X(r)},${Y(f(r))}`).join("L")}`, fill: "none", stroke: "var(--blue)", "stroke-width": 2 });
  const r = Math.min(2, n.ratio);
  make(svg, "circle", { cx: X(r), cy: Y(f(r)), r: 5, fill: n.isClipped ? "var(--bad)" : "var(--good)" });
  make(parent, "div", { class: "note" }, `The objective of this token over its ratio. The point is this token${n.isClipped ? ": clipped, without a gradient" : ""}.`);
}

function everyNumber(parent, group) {
  const n = numbersOf(group, state.response, state.token);
  const file = group.values ? "ppo.py" : state.preset === "as recorded" || state.preset === "grpo" ? "grpo.py" : "variants.py";
  const table = make(parent, "table");
  const line = (label, text, value, where) => {
    const row = make(table, "tr", { "data-name": where.split(" ").at(-1), "data-value": value });
    make(row, "td", {}, label);
    make(make(row, "td", { class: "mono" }, text), "small", {}, where);
  };
  const s = show;
  line("token", JSON.stringify(group.tokens[state.response][state.token]), state.token, `token ${state.token + 1} of ${n.length}`);
  if (group.values) {
    line("(1)", `r = −${n.klCoef} × (${s(n.old)} − ${s(n.ref)}) + ${s(n.tokenReward - n.price, 2)} = ${s(n.tokenReward, 4)}`, n.tokenReward, `${file} advantages`);
    line("(2)", `δ = ${s(n.tokenReward, 3)} + ${flags.gamma} × ${s(n.next)} − ${s(n.value)} = ${s(n.delta)}`, n.delta, `${file} gae`);
    line("(3)", `A = Σ (γλ)^k δ, normalised over the rollout = ${s(n.A)}`, n.A, `${file} gae`);
  } else if (PRESETS[state.preset]?.baseline === "none") {
    line("(1)", `A = r = ${s(n.A)}`, n.A, `${file} group_advantages`);
  } else {
    const scale = (PRESETS[state.preset] ?? PRESETS.grpo).scale;
    const by = { group: ` / ${s(n.std)}`, mean: ` / ${s(n.mean)}`, none: "" }[scale];
    const others = PRESETS[state.preset]?.baseline === "others" ? ` × ${n.G}/${n.G - 1}` : "";
    line("(1)", `A = (${s(n.reward)} − ${s(n.mean)})${by}${others} = ${s(n.A)}`, n.A, `${file} group_advantages`);
  }
  const k = group.values ? 4 : 2;
  line(`(${k})`, `ratio = exp(${s(n.after)} − ${s(n.old)}) = ${s(n.ratio)}`, n.ratio, `${file} objective`);
  line(`(${k + 1})`, `min(${s(n.ratio)} × ${s(n.A, 2)}, ${s(n.clipped)} × ${s(n.A, 2)}) = ${s(n.surrogate)}`, n.surrogate, `${file} objective`);
  if (group.ref_logprobs) {
    const d = n.ref - n.after;
    line(group.values ? "KL" : "(4)", `kl = exp(${s(d)}) − ${s(d)} − 1 = ${s(n.kl, 4)}`, n.kl, `${file} objective`);
  }
  line(group.values ? "(6)" : "(5)", `weight = ${s(n.weight, 5)}`, n.weight, `${file} weights`);
  const minus = group.values ? "" : ` − ${n.klCoef} × ${s(n.kl, 4)}`;
  line("", `its part of J = (${s(n.surrogate)}${minus}) × ${s(n.weight, 5)} = ${s(n.part, 5)}`, n.part, `${file} loss`);
  if (group.values) line("(7)", `V = ${s(n.value)}, return = ${s(n.return)}`, n.return, `${file} value_loss`);
  line("", `probability ${s(Math.exp(n.old))} before the step, ${s(Math.exp(n.after))} after; entropy after ${s(n.entropy)} nats`, n.entropy, "logprobs.py token_logprobs");
  surrogatePlot(parent, n);
}

const QUESTIONS = [
  ["All rewards of a group are equal. Which way does the policy move?", "Nowhere: every reward equals the mean, so every advantage is exactly 0. Such a group costs its sampling and teaches nothing (the column zero_groups)."],
  ["Two wrong responses have the same advantage, −1; one is ten times as long. Which of its tokens are pushed down harder?", "Those of the short one. Each response is averaged over its own tokens, so a token of the long one has a tenth of the weight: long wrong answers are punished less a token. Choose dapo or dr_grpo above, where every token weighs the same."],
  ["The ratio of a token is 1.5, the clip 0.2 and its advantage negative. Is it clipped?", "No. min(1.5 A, 1.2 A) with A < 0 is 1.5 A: where the policy has moved the wrong way, the gradient brings it back. Only what already moved far enough the right way is clipped."],
];

// --- All of it ------------------------------------------------------------------------------------

const page = document.getElementById("page");
overview(page);
make(page, "h2", {}, "Curves");
make(page, "p", {}, main.groups.length ? "Choose what is drawn; move over a curve, or use ← and →, to read it. The dots below are recorded groups: a click opens the nearest." : "Choose what is drawn; move over a curve, or use ← and →, to read it.");
const charts = make(page, "div", { class: "charts" });
const draws = ["eval accuracy", "metrics length", "metrics reflection"].map((column) => chart(charts, column));
if (main.heldOut.length) beforeAndAfter(page);
const body = make(page, "div");

function section(title, text) {
  make(body, "h2", {}, title);
  if (text) make(body, "p", {}, text);
  return make(body, "div");
}

function render() {
  const group = main.groups[state.group];
  const key = document.activeElement?.dataset.key;
  draws.forEach((draw) => draw());
  body.replaceChildren();
  if (!group) return;
  groupSection(section("One group", `Every ${flags.inspect_every ?? 10} steps a run records one problem with all its responses: the first whose rewards differ. Step through them: accuracy climbs, responses grow, the spread of the rewards shrinks.`), group);
  cards(section("Its responses", "The best first. Words of reflection are marked."), group);
  const split = make(section("One response, one token", "Choose a token (← and → move). The numbers are those of the update: log-probs of the policy that sampled, and of the policy after the step."), "div", { class: "split" });
  tokens(make(split, "div", { class: "panel" }), group);
  everyNumber(make(split, "div", { class: "panel" }), group);
  const quiz = section("Predict first");
  for (const [question, answer] of QUESTIONS) {
    const details = make(quiz, "details", { class: "panel" });
    make(details, "summary", {}, question);
    make(details, "p", {}, answer);
  }
  if (key) body.querySelector(`[data-key="${key}"]`)?.focus({ preventScroll: true });
}

if (main.groups.length && !location.hash) state.response = best(main.groups[state.group]);
render();
