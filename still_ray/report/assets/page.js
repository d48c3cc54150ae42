"use strict";
// The page works without this script but for the colour switch, the labels of marks and the trajectory browser.
// Texts of models enter the page through textContent alone.

const byId = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// -- colours ----------------------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  try {
    localStorage.setItem("still-ray-theme", theme);
  } catch {
    // a page opened from a file may have no storage: the choice then lasts as long as the page
  }
}

function storedTheme() {
  try {
    return localStorage.getItem("still-ray-theme") ?? "auto";
  } catch {
    return "auto";
  }
}

byId("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
setTheme(THEMES.includes(storedTheme()) ? storedTheme() : "auto");

// -- labels of marks --------------------------------------------------------------------------------------------

const tip = byId("tip");

function showTip(event) {
  const mark = event.target.closest?.(".plot [aria-roledescription][aria-label]");
  if (!mark || /axis|legend/.test(mark.getAttribute("aria-roledescription"))) {
    tip.hidden = true;
    return;
  }
  tip.textContent = mark.getAttribute("aria-label");
  tip.hidden = false;
  const left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
  const above = event.clientY - tip.offsetHeight - 12;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 8 ? above : event.clientY + 16}px`;
}

document.addEventListener("pointermove", showTip);
document.addEventListener("pointerdown", showTip);
document.addEventListener("scroll", () => (tip.hidden = true), { passive: true });

// -- blocks -----------------------------------------------------------------------------------------------------

const MAX_OPEN_BLOCKS = 24;
const openBlocks = new Map();

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function block(number) {
  if (!openBlocks.has(number)) {
    openBlocks.set(number, unpack(`block-${number}`));
    if (openBlocks.size > MAX_OPEN_BLOCKS) openBlocks.delete(openBlocks.keys().next().value);
  }
  return openBlocks.get(number);
}

// -- texts ------------------------------------------------------------------------------------------------------

const DELIMITER = new RegExp(`(${[
  "<\\|(?:begin|end)_of_(?:thought|solution)\\|>",
  "</?(?:think|thinking|thought|reason|reasoning|answer)>",
  "<\\|(?:channel|message|start|end|return|eom|eot)\\|>",
  "<\\|channel>|<channel\\|>",
].join("|")})`, "i");
const PART_NAMES = { thought: "Thought", solution: "Solution", outside: "Outside thought and solution" };

function textPart(kind, text) {
  const part = make("div", `part ${kind}`);
  part.append(make("h4", "", PART_NAMES[kind]), make("div", "prose", text.trim()));
  return part;
}

/** What parts thought and solution, and any other text that stands there. */
function outside(text) {
  return text.split(DELIMITER).filter((piece) => piece.trim()).map((piece) =>
    DELIMITER.test(piece) ? make("code", "marker", piece) : textPart("outside", piece));
}

/** A response cut into its parts; what parts them stays visible. */
function responseText(response, [thoughtStart, thoughtEnd, solutionStart, solutionEnd]) {
  const whole = make("div", "response");
  let done = 0;
  for (const [kind, start, end] of [["thought", thoughtStart, thoughtEnd], ["solution", solutionStart, solutionEnd]]) {
    if (end <= start) continue;
    whole.append(...outside(response.slice(done, start)), textPart(kind, response.slice(start, end)));
    done = end;
  }
  whole.append(...outside(response.slice(done)));
  if (!response.trim()) whole.append(make("p", "missing", "The response is empty."));
  return whole;
}

function definitions(entries) {
  const list = make("dl", "facts");
  for (const [name, value] of entries) {
    const pair = make("div");
    pair.append(make("dt", "", name), make("dd", "", value));
    list.append(pair);
  }
  return list;
}

const number = (value) => value.toLocaleString("en-US");
const perplexity = (value) => value.toPrecision(4);

// -- the browser ------------------------------------------------------------------------------------------------

const ROW_PX = 58;
const SPARE_ROWS = 6;

class Browser {
  constructor(index) {
    this.index = index;
    this.responses = index.responses;
    this.tab = "responses";
    this.items = [];
    this.cursor = -1;
    this.shown = 0; // counts what was asked for, so that a late block does not replace a newer choice
    this.ofProblem = new Map();
    this.responses.problem.forEach((problem, row) => {
      if (!this.ofProblem.has(problem)) this.ofProblem.set(problem, []);
      this.ofProblem.get(problem).push(row);
    });
    this.byName = new Map(this.responses.problem.map((_, row) => [this.nameOf(row), row]));
    this.words = this.responses.problems.map(([id, question]) => `${id} ${question}`.toLowerCase());
    this.pairWords = index.pairs.map(([id, , , question]) => `${id} ${question}`.toLowerCase());
    this.panes = byId("panes");
    this.list = byId("list");
    this.detail = byId("detail");
    this.fillFilters();
    this.listen();
    this.panes.hidden = false;
    this.filter();
  }

  nameOf(row) {
    const { round, problem, problems, sample } = this.responses;
    return `${round[row]}/${problems[problem[row]][0]}/${sample[row]}`;
  }

  // ---- filters

  fillFilters() {
    const { round, verdict, problems, used } = this.responses;
    const distinct = (values) => [...new Set(values)];
    const options = (id, all, entries) => {
      byId(id).replaceChildren(new Option(all, ""), ...entries.map(([text, value]) => new Option(text, value)));
    };
    const levels = distinct(problems.map((problem) => problem[3])).filter((level) => level !== null);
    options("f-round", "all", distinct(round).sort((a, b) => a - b).map((one) => [`round ${one}`, one]));
    options("f-verdict", "all", distinct(verdict).sort((a, b) => a - b).map((one) => [this.index.verdicts[one], one]));
    options("f-domain", "all", distinct(problems.map((problem) => problem[2])).sort().map((one) => [one, one]));
    options("f-level", levels.length ? "all" : "not stated", levels.sort((a, b) => a - b).map((one) => [`level ${one}`, one]));
    const stages = distinct(used.flat()).sort((a, b) => a - b).map((stage) => [this.index.trained[stage], stage]);
    options("f-used", "any or none", [...stages, ["not trained on", "none"]]);
  }

  filter() {
    const wanted = (id) => byId(id).value;
    const words = wanted("f-text").trim().toLowerCase();
    if (this.tab === "pairs") {
      this.items = this.pairWords.map((_, row) => row).filter((row) => this.pairWords[row].includes(words));
    } else {
      const { round, verdict, problem, problems, used } = this.responses;
      const tests = [
        [wanted("f-round"), (row, value) => round[row] === Number(value)],
        [wanted("f-verdict"), (row, value) => verdict[row] === Number(value)],
        [wanted("f-domain"), (row, value) => problems[problem[row]][2] === value],
        [wanted("f-level"), (row, value) => problems[problem[row]][3] === Number(value)],
        [wanted("f-used"), (row, value) => (value === "none" ? !used[row].length : used[row].includes(Number(value)))],
        [words, (row, value) => this.words[problem[row]].includes(value)],
      ].filter(([value]) => value !== "");
      this.items = [];
      for (let row = 0; row < round.length; row++) {
        if (tests.every(([value, test]) => test(row, value))) this.items.push(row);
      }
    }
    const total = this.tab === "pairs" ? this.index.pairs.length : this.responses.round.length;
    const noun = this.tab === "pairs" ? "preference pairs" : "responses";
    byId("found").textContent = `${number(this.items.length)} of ${number(total)} ${noun}`;
    byId("sizer").style.height = `${this.items.length * ROW_PX}px`;
    this.list.scrollTop = 0;
    this.cursor = -1;
    if (this.items.length) this.choose(0);
    else {
      this.draw();
      this.shown++;
      this.fill(make("p", "missing", "Nothing matches these filters."));
    }
  }

  // ---- the list

  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW_PX) - SPARE_ROWS);
    const last = Math.min(this.items.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW_PX) + SPARE_ROWS);
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this.drawRow(at));
    byId("sizer").replaceChildren(...rows);
    if (this.cursor >= first && this.cursor < last) this.list.setAttribute("aria-activedescendant", `row-${this.cursor}`);
    else this.list.removeAttribute("aria-activedescendant");
  }

  drawRow(at) {
    const row = make("div", "row");
    row.id = `row-${at}`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(at === this.cursor));
    row.setAttribute("aria-setsize", String(this.items.length));
    row.setAttribute("aria-posinset", String(at + 1));
    row.style.transform = `translateY(${at * ROW_PX}px)`;
    row.dataset.at = at;
    if (this.tab === "pairs") this.fillPair(row, this.items[at]);
    else this.fillResponse(row, this.items[at]);
    return row;
  }

  fillResponse(row, item) {
    const { problem, problems, round, sample, verdict, tokens, perplexity: values } = this.responses;
    const name = this.index.verdicts[verdict[item]];
    row.append(
      make("span", `dot ${name}`),
      make("span", "question", problems[problem[item]][1]),
      make("span", "meta", `${name} · round ${round[item]} · sample ${sample[item]} · ${number(tokens[item])} tokens · perplexity ${perplexity(values[item])}`),
    );
  }

  fillPair(row, item) {
    const [, , , question, chosen, rejected] = this.index.pairs[item];
    row.append(
      make("span", "dot pair"),
      make("span", "question", question),
      make("span", "meta", `perplexity ${perplexity(chosen)} chosen, ${perplexity(rejected)} rejected`),
    );
  }

  choose(at) {
    if (!this.items.length) return;
    this.cursor = Math.max(0, Math.min(this.items.length - 1, at));
    const top = this.cursor * ROW_PX;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (top + ROW_PX > this.list.scrollTop + this.list.clientHeight) {
      this.list.scrollTop = top + ROW_PX - this.list.clientHeight;
    }
    this.draw();
    this.show(this.items[this.cursor]);
  }

  // ---- the chosen one

  async show(item) {
    const asked = ++this.shown;
    const content = this.tab === "pairs" ? await this.pairContent(item) : await this.responseContent(item);
    if (asked !== this.shown) return;
    this.fill(this.backButton(), ...content);
    this.detail.scrollTop = 0;
    this.detail.dataset.item = item;
  }

  /** Puts other content into the text's pane. Focus on what was there goes to the pane, where the keys still work. */
  fill(...content) {
    const hadFocus = this.detail.contains(document.activeElement);
    this.detail.replaceChildren(...content);
    if (hadFocus) this.detail.focus({ preventScroll: true });
  }

  backButton() {
    const back = make("button", "back", "Back to the list");
    back.type = "button";
    back.addEventListener("click", () => this.leave());
    return back;
  }

  async responseContent(item) {
    const r = this.responses;
    const [question, answer, response, extracted, detail, cuts] = (await block(r.block[item]))[r.at[item]];
    const [id, , domain, level] = r.problems[r.problem[item]];
    const name = this.index.verdicts[r.verdict[item]];
    const verdict = make("p", "verdict-line");
    verdict.append(make("span", `verdict ${name}`, name), make("span", "why", detail));
    const used = r.used[item].map((stage) => this.index.trained[stage]).join(", ");
    const facts = definitions([
      ["answer found", extracted ?? "none"],
      ["reference", answer],
      ["perplexity", perplexity(r.perplexity[item])],
      ["tokens", number(r.tokens[item])],
      ["of them thought", number(r.thought[item])],
      ["ended", r.truncated[item] ? "at the token limit" : "by itself"],
      ["policy", `v${r.policy[item]}`],
      ["domain", level === null ? domain : `${domain}, level ${level}`],
      ["trained on by", used || "no stage"],
    ]);
    return [make("h3", "", question), make("p", "id", `${id} · round ${r.round[item]}, sample ${r.sample[item]}`), this.steps(item), verdict, facts, responseText(response, cuts)];
  }

  /** All rollouts of the problem, to step through. */
  steps(item) {
    const rows = this.ofProblem.get(this.responses.problem[item]);
    const bar = make("div", "steps");
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Rollouts of this problem");
    const at = rows.indexOf(item);
    bar.append(this.stepButton("‹", "Previous rollout of this problem", rows[at - 1]));
    let round = 0;
    for (const row of rows) {
      if (this.responses.round[row] !== round) {
        round = this.responses.round[row];
        bar.append(make("span", "round", `round ${round}`));
      }
      const name = this.index.verdicts[this.responses.verdict[row]];
      const button = this.stepButton("", `Round ${round}, sample ${this.responses.sample[row]}: ${name}`, row);
      button.classList.add("rollout", name);
      if (row === item) button.setAttribute("aria-current", "true");
      bar.append(button);
    }
    bar.append(this.stepButton("›", "Next rollout of this problem", rows[at + 1]));
    bar.append(make("span", "count", `${at + 1} of ${rows.length}`));
    return bar;
  }

  stepButton(text, label, row) {
    const button = make("button", "", text);
    button.type = "button";
    button.setAttribute("aria-label", label);
    button.title = label;
    button.disabled = row === undefined;
    button.addEventListener("click", () => this.goTo(row));
    return button;
  }

  /** Shows a response, and moves the list to it if it is there. */
  goTo(row) {
    const at = this.items.indexOf(row);
    if (at >= 0) this.choose(at);
    else this.show(row);
  }

  step(by) {
    if (this.tab === "pairs" || !this.items.length) return;
    const item = Number(this.detail.dataset.item);
    const rows = this.ofProblem.get(this.responses.problem[item]);
    const next = rows[rows.indexOf(item) + by];
    if (next !== undefined) this.goTo(next);
  }

  async pairContent(item) {
    const [problem, chosenId, rejectedId, , chosen, rejected, number_, at] = this.index.pairs[item];
    const [question, chosenThought, chosenSolution, rejectedThought, rejectedSolution] = (await block(number_))[at];
    const sides = make("div", "sides");
    sides.append(
      this.side("Chosen, correct", "correct", chosen, chosenId, chosenThought, chosenSolution),
      this.side("Rejected, incorrect", "incorrect", rejected, rejectedId, rejectedThought, rejectedSolution),
    );
    return [make("h3", "", question), make("p", "id", `${problem} · pair of ${this.index.pairStage}`), sides];
  }

  side(title, verdict, value, id, thought, solution) {
    const side = make("section", "side");
    const head = make("div", "side-head");
    head.append(make("span", `verdict ${verdict}`, title), make("span", "", "perplexity "), make("strong", "", perplexity(value)));
    side.append(head, textPart("thought", thought), textPart("solution", solution));
    if (this.byName.has(id)) {
      const open = make("button", "see", "See it among the rollouts of its problem");
      open.type = "button";
      open.addEventListener("click", () => {
        this.setTab("responses");
        this.goTo(this.byName.get(id));
      });
      side.append(open);
    }
    return side;
  }

  // ---- hands

  setTab(tab) {
    if (tab === "pairs" && !this.index.pairs.length) return;
    this.tab = tab;
    for (const name of ["responses", "pairs"]) {
      const button = byId(`tab-${name}`);
      button.setAttribute("aria-selected", String(name === tab));
      button.tabIndex = name === tab ? 0 : -1;
    }
    this.list.setAttribute("aria-label", tab === "pairs" ? "Preference pairs" : "Responses");
    for (const label of document.querySelectorAll("#filters [data-for]")) label.hidden = label.dataset.for !== tab;
    this.filter();
  }

  read() {
    this.panes.classList.add("reading");
    this.detail.focus({ preventScroll: true });
  }

  leave() {
    this.panes.classList.remove("reading");
    this.list.focus({ preventScroll: true });
    this.draw();
  }

  listen() {
    let due = 0;
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("filters").addEventListener("change", () => this.filter());
    byId("f-text").addEventListener("input", () => {
      clearTimeout(due);
      due = setTimeout(() => this.filter(), 80);
    });
    this.list.addEventListener("scroll", () => requestAnimationFrame(() => this.draw()), { passive: true });
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (!row) return;
      this.choose(Number(row.dataset.at));
      if (matchMedia("(max-width: 860px)").matches) this.read();
    });
    for (const name of ["responses", "pairs"]) byId(`tab-${name}`).addEventListener("click", () => this.setTab(name));
    byId("tab-responses").parentElement.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      this.setTab(this.tab === "pairs" ? "responses" : "pairs");
      byId(`tab-${this.tab}`).focus();
    });
    this.panes.addEventListener("keydown", (event) => this.onKey(event));
    addEventListener("resize", () => this.draw());
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, .tabs")) return;
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW_PX) - 1);
    const anywhere = {
      j: () => this.choose(this.cursor + 1),
      k: () => this.choose(this.cursor - 1),
      h: () => this.step(-1),
      l: () => this.step(1),
      Escape: () => this.leave(),
    };
    const inList = {
      ArrowDown: anywhere.j,
      ArrowUp: anywhere.k,
      ArrowLeft: anywhere.h,
      ArrowRight: anywhere.l,
      PageDown: () => this.choose(this.cursor + page),
      PageUp: () => this.choose(this.cursor - page),
      Home: () => this.choose(0),
      End: () => this.choose(this.items.length - 1),
      Enter: () => this.read(),
    };
    const action = anywhere[event.key] ?? (event.target === this.list ? inList[event.key] : undefined);
    if (!action) return;
    event.preventDefault();
    action();
  }
}

async function startBrowser() {
  if (!byId("panes")) return;
  if (!("DecompressionStream" in window)) {
    byId("panes").replaceWith(make("p", "notice", "This browser is too old to open the trajectories (2023 or later is needed)."));
    return;
  }
  window.stillRayBrowser = new Browser(await unpack("index"));
}

startBrowser();
