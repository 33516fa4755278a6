"use strict";
// The account of a run: the answer, why to believe it, the picture, and what it cost.

const BETWEEN_ANNOUNCEMENTS = 5;

class Account {
  /** `load` gives one whole rollout; `actions` are buttons that stand below the answer. */
  constructor(run, { load = null, actions = [] } = {}) {
    this.run = run;
    this.picture = new Picture(run, (place) => this.open(place, true));
    this.reading = new Reading(run, load, (place) => this.picture.select(place));
    this.standing = element("p", { class: "standing" });
    this.announcement = element("p", { class: "unseen", role: "status" });
    this.announced = -Infinity;
    this.details = element("details", { class: "how", open: true }, element("summary", {}, "How it came about"),
      this.picture.root, legend(), this.reading.root); // prettier-ignore
    this.progress = element("div", { class: "progress", role: "progressbar", "aria-label": "Candidates done", "aria-valuemin": "0" });
    this.verdict = element("div", { class: "verdict" });
    this.reply = element("div", { class: "prose reply" });
    this.reasons = element("ul", { class: "reasons" });
    this.figures = element("dl", { class: "costs" });
    this.actions = element("div", { class: "actions" }, copyButton(() => run.text, "Copy the reply as it was written", "Copy reply"), ...actions);
    this.root = element("div", { class: "account" },
      element("div", { class: "side" },
        element("div", { class: "outcome" }, this.verdict, this.reply, this.reasons),
        element("div", { class: "ledger" }, this.actions, this.figures)),
      element("div", { class: "evidence" }, this.standing, this.progress, this.announcement, this.details)); // prettier-ignore
    this.rendered = null;
    this.update(0);
  }

  /** Follow the run. */
  update(now) {
    say(this.standing, standing(this.run));
    this.announce(now);
    this.picture.update();
    this.reading.update();
    this.updateProgress();
    this.updateVerdict();
    this.updateReply();
    this.updateReasons();
    this.tick(now);
    this.actions.firstChild.hidden = !this.run.text.trim();
    this.root.classList.toggle("over", this.run.closing !== null);
  }

  /** Tell those who listen, without telling every candidate. */
  announce(now) {
    if (!this.run.closing && now - this.announced < BETWEEN_ANNOUNCEMENTS) return;
    this.announced = now;
    const answer = this.run.closing?.answer;
    say(this.announcement, standing(this.run) + (answer ? ` The answer is ${answer}.` : ""));
  }

  /** Make room for the next turn. */
  fold() {
    this.details.open = false;
  }

  /** What changes with the time alone. */
  tick(now) {
    const { run } = this;
    const left = run.left();
    const rows = [["Time", duration(run.seconds(now)) + (left === null ? "" : `, about ${duration(Math.max(1, left))} left`)], ["Generated", several(run.tokens, "token")], ...costs(run)];
    const text = rows.flat().join("|");
    if (this.figures.dataset.shown === text) return;
    this.figures.dataset.shown = text;
    this.figures.replaceChildren(...rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  }

  open(place, focus) {
    this.reading.open(place);
    if (place && focus) this.reading.root.scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
  }

  updateProgress() {
    const { run } = this;
    const expected = [...run.places()].filter((place) => place !== run.final || run.finalIs === "always");
    const done = expected.filter((place) => place.ended).length;
    this.progress.style.setProperty("--done", String(run.closing ? 1 : done / expected.length));
    this.progress.setAttribute("aria-valuemax", String(expected.length));
    this.progress.setAttribute("aria-valuenow", String(done));
  }

  updateVerdict() {
    const { run } = this;
    const ended = run.closing?.kind === "end";
    const row = run.votedRow;
    const group = ended ? run.closing.group : row === null ? null : run.votes(row)[0][0];
    const said = ended ? "Answer" : run.closing ? "Best so far" : "Leading so far";
    const key = `${group}|${said}`;
    if (this.verdict.dataset.shown === key) return;
    this.verdict.dataset.shown = key;
    this.verdict.classList.toggle("provisional", !ended);
    if (group === null) this.verdict.replaceChildren(element("span", { class: "said" }, ended ? "No short answer was found in the reply" : run.closing ? "No answer" : "Working"));
    else this.verdict.replaceChildren(element("span", { class: "said" }, said), answerChip(run, group, 48));
  }

  updateReply() {
    const { run } = this;
    const waiting = !run.text.trim();
    const key = `${run.text}|${run.reasoningCharacters > 0}|${run.closing?.kind}`;
    if (this.rendered === key) return;
    this.rendered = key;
    this.reply.classList.toggle("empty", waiting);
    if (!waiting) this.reply.replaceChildren(markdown(run.text));
    else this.reply.replaceChildren(element("p", { class: "note" }, whyNothingYet(run)));
    this.reply.setAttribute("aria-busy", String(run.closing === null && !waiting));
  }

  updateReasons() {
    const { run } = this;
    const said = run.closing ? reasons(run) : [];
    if (this.reasons.dataset.shown === said.join("|")) return;
    this.reasons.dataset.shown = said.join("|");
    this.reasons.replaceChildren(...said.map((text) => element("li", {}, text)));
  }
}

function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

// ---- sentences

/** Where the run is, for somebody who looks up, or listens. */
function standing(run) {
  const { closing } = run;
  if (closing?.kind === "failed") return `The run failed: ${closing.error.message}`;
  if (closing?.kind === "stopped") return `Stopped. ${several(run.count("answered") + run.count("silent"), "candidate")} had ended and are kept.`;
  if (closing?.kind === "unfinished") return "This run had not ended; what follows is as far as it got.";
  if (closing) return { answered: "Answered.", budget: "Its token budget ended the run early.", deadline: "Its deadline ended the run early." }[closing.finish_reason];
  const row = run.currentRow;
  if (row === null) return run.finalIs === "never" ? "All candidates are done." : "The final call is writing the reply.";
  if (run.rows.length === 1 && row.length === 1) return "Writing.";
  const words = [`Round ${row[0].round} of ${run.config.rounds}: ${row.filter((place) => place.ended).length} of ${row.length} done`];
  const votes = run.votes(row);
  if (votes.length) words.push(`${letter(votes[0][0])} (${shortened(run.answers[votes[0][0]], 24)}) leads with ${several(votes[0][1], "vote")}`);
  return `${words.join(", ")}.`;
}

function whyNothingYet(run) {
  if (run.closing?.kind === "end") return "No reply was written before its limit.";
  if (run.closing) return "No reply was written.";
  if (run.reasoningCharacters) return "The reply is being thought through.";
  if (run.finalIs === "never") return run.rows.length === 1 && run.rows[0].length === 1 ? "The reply appears here." : "The reply appears here once all candidates have ended.";
  return "The reply is written after the last round.";
}

/** Why to believe the answer, and why not. */
function reasons(run) {
  const said = [];
  const { closing } = run;
  const group = closing.group ?? null;
  const last = run.lastRound >= 0 ? run.rows[run.lastRound] : null;
  if (closing.kind === "end" && last !== null && last.length > 1) {
    if (group !== null) said.push(agreement(run, last, group));
    const [leader] = run.votes(last);
    if (leader && leader[0] !== group) said.push(`The vote of the last round says otherwise: ${letter(leader[0])} (${shortened(run.answers[leader[0]], 32)}) has ${leader[1]} of ${last.length}.`);
    else if (leader && 2 * leader[1] <= last.length) said.push("No answer is held by more than half of the last round, so take it with care.");
    if (closing.chosen) said.push(whoAnswers(run, last));
  }
  const failures = [...run.places()].filter((place) => place.stage === "failed");
  const total = [...run.places()].filter((place) => place.record !== null).length;
  if (failures.length) said.push(`${failures.length} of ${several(total, "rollout")} failed, such as: ${shortened(failures[0].record.failure, 120)}`);
  const cut = run.count("cut");
  if (cut) said.push(`${several(cut, "rollout")} ${cut === 1 ? "was" : "were"} cut before the end.`);
  return said;
}

function agreement(run, last, group) {
  const held = (row) => row.filter((place) => place.group === group).length;
  const words = [`${held(last)} of ${last.length} in the last round hold ${letter(group)}`];
  if (run.lastRound > 0) words.push(`${held(run.rows[0])} of ${run.rows[0].length} held it in round 0`);
  return `${words.join("; ")}.`;
}

function whoAnswers(run, last) {
  const { chosen } = run;
  if (chosen === run.final) {
    const read = run.parents(chosen).map((place) => place.index + 1);
    return read.length ? `The final call wrote the reply from the tails of candidates ${listed(read)}.` : "The final call wrote the reply.";
  }
  const failed = run.final?.stage === "failed" ? "The final call failed; instead the" : "The";
  const among = last.filter((place) => place.group === chosen.group).length;
  return `${failed} reply is that of ${placeName(run, chosen)}${among > 1 && chosen.group !== null ? ", the shortest of those that agree" : ""}.`;
}

function costs(run) {
  const usage = run.closing?.usage;
  const { config } = run;
  const rows = [];
  if (usage) rows.push(["Read", `${several(usage.prompt_tokens, "token")}${usage.cached_tokens ? `, ${count(usage.cached_tokens)} cached` : ""}`]);
  rows.push(["Model", run.header.model ?? "not named"]);
  const shape = config.rounds ? `N ${config.candidates}, C ${config.tails}, T ${config.rounds}, β ${count(config.beta)}, τ ${count(config.tau)}` : `N ${config.candidates}`;
  rows.push(["Settings", `${shape}, seed ${config.seed}`]);
  return rows;
}

function legend() {
  const entry = (kind, mark, word) => element("li", {}, element("span", { class: `cell ${kind}`, "aria-hidden": "true" }, mark), word);
  return element("ul", { class: "legend" },
    entry("answer-0", "A", "an answer"), entry("writing", "", "writing"), entry("silent", "–", "no answer"),
    entry("cut", "✂\uFE0E", "cut"), entry("failed", "×", "failed"), entry("answer-0 chosen", "A", "answers")); // prettier-ignore
}
