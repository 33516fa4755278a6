"use strict";
// The picture of a run: a band of candidates for each round, the votes beneath it, and lines from tails to their readers.

const COLOURS = 8;
const STAGE_WORDS = {
  waiting: "to come", writing: "writing", silent: "no answer", cut: "cut", failed: "failed", unused: "not run",
}; // prettier-ignore
const STAGE_MARKS = { waiting: "", writing: "", silent: "–", cut: "✂\uFE0E", failed: "×", unused: "" };

/** The class that gives an answer its colour. */
function colour(group) {
  return group < COLOURS ? `answer-${group}` : "answer-other";
}

/** An answer's letter in its colour, and its text where it is wanted. */
function answerChip(run, group, length = 0) {
  const mark = element("span", { class: `letter ${colour(group)}`, "aria-hidden": length > 0 }, letter(group));
  if (!length) return mark;
  const text = shortened(run.answers[group] ?? "", length);
  return element("span", { class: "chip", title: run.answers[group] ?? "" }, mark, element("span", { class: "chip-text" }, text));
}

/** How a candidate is called. */
function placeName(run, place) {
  if (place === run.final) return "the final call";
  return `candidate ${place.index + 1} of round ${place.round}`;
}

class Picture {
  /** `onselect` is told which place was chosen, or null. */
  constructor(run, onselect) {
    this.run = run;
    this.onselect = onselect;
    this.selected = null;
    this.pointed = null;
    this.cells = new Map();
    this.lines = drawn("svg", { class: "lines", "aria-hidden": "true", focusable: "false" });
    this.bands = run.rows.map((row, round) => this.band(row, round));
    if (run.final !== null) this.bands.push(this.band([run.final], run.final.round));
    this.root = element("div", { class: "picture", role: "group", "aria-label": "Candidates by round. Arrow keys move, Enter opens one." },
      this.lines, ...this.bands.map((band) => band.root)); // prettier-ignore
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.root.addEventListener("pointerleave", () => this.point(null));
    this.observer = new ResizeObserver(() => this.layOut());
    this.observer.observe(this.root);
    [...this.cells.values()][0].tabIndex = 0;
    this.update();
  }

  // ---- its parts

  band(row, round) {
    const isFinal = row[0] === this.run.final;
    const cells = row.map((place) => this.cell(place));
    const name = isFinal ? "Final" : `Round ${round}`;
    const parts = {
      row,
      how: element("span", { class: "how" }, this.howTheyStart(row, round, isFinal)),
      figures: element("span", { class: "figures" }),
      votes: element("div", { class: "votes", "aria-hidden": "true" }),
      tally: element("p", { class: "tally" }),
    };
    parts.root = element("section", { class: isFinal ? "band final" : "band", "aria-label": name },
      element("header", {}, element("h3", {}, name), parts.how, parts.figures),
      element("div", { class: "cells", role: "group" }, ...cells),
      isFinal ? null : parts.votes,
      parts.tally); // prettier-ignore
    return parts;
  }

  howTheyStart(row, round, isFinal) {
    const { tails, candidates } = this.run.config;
    const read = Math.min(tails, candidates);
    if (isFinal) return this.run.finalIs === "maybe" ? "only if no answer has more than half" : `reads ${several(read, "tail")}, writes the reply`;
    if (round === 0) return row.length === 1 ? "one reply" : "each starts afresh";
    return tails === 1 ? "each goes on from its own tail" : `each reads ${several(read, "tail")}`;
  }

  cell(place) {
    const cell = element("button", {
      type: "button",
      tabindex: "-1",
      onclick: () => this.select(this.selected === place ? null : place),
      onpointerenter: (event) => event.pointerType === "mouse" && this.point(place),
      onfocus: () => cell.matches(":focus-visible") && this.point(place),
      onblur: () => this.point(null),
    });
    this.cells.set(place, cell);
    return cell;
  }

  // ---- following the run

  update() {
    if (this.run.final !== null && !this.cells.has(this.run.final)) {
      this.bands.push(this.band([this.run.final], this.run.final.round));
      this.root.append(this.bands.at(-1).root);
    }
    for (const [place, cell] of this.cells) this.updateCell(place, cell);
    for (const band of this.bands) this.updateBand(band);
    this.drawLines();
  }

  updateCell(place, cell) {
    const { run } = this;
    const answered = place.group !== null && place.stage !== "failed";
    const kind = answered ? `${colour(place.group)} ${place.stage}` : place.stage;
    const chosen = place === run.chosen ? " chosen" : "";
    const state = `cell ${kind}${chosen}`;
    if (cell.className !== state) cell.className = state;
    say(cell, answered ? this.mark(place) : STAGE_MARKS[place.stage]);
    if (place.stage === "writing") cell.style.setProperty("--level", this.level(place).toFixed(2));
    const label = this.label(place, answered);
    if (cell.getAttribute("aria-label") !== label) {
      cell.setAttribute("aria-label", label);
      cell.title = label;
    }
    cell.setAttribute("aria-pressed", String(place === this.selected));
    cell.disabled = place.stage === "unused";
  }

  mark(place) {
    const own = letter(place.group);
    return place === this.run.final ? `${own}\u2002${shortened(this.run.answers[place.group], 40)}` : own;
  }

  label(place, answered) {
    const { run } = this;
    const words = [placeName(run, place)];
    if (answered) words.push(`answer ${letter(place.group)}, ${shortened(run.answers[place.group], 60)}`);
    if (!answered || place.stage === "cut") words.push(STAGE_WORDS[place.stage]);
    if (place.tokens) words.push(several(place.tokens, "token"));
    const said = words.join(", ");
    return said[0].toUpperCase() + said.slice(1);
  }

  /** How full the cell of a writing candidate is: by its limit, or by the longest so far where few come near it. */
  level(place) {
    const longest = Math.max(0, ...[...this.run.places()].filter((each) => each.ended).map((each) => each.tokens));
    const limit = this.run.limit(place.round) ?? Infinity;
    const scale = Math.min(limit, longest ? 1.25 * longest : limit, 1e6);
    return Math.min(1, Math.max(0.06, place.tokens / (Number.isFinite(scale) ? scale : 4096)));
  }

  updateBand({ row, root, figures, votes, tally }) {
    const { run } = this;
    const records = row.map((place) => place.record).filter(Boolean);
    const tokens = row.reduce((sum, place) => sum + place.tokens, 0);
    const over = row.every((place) => place.ended);
    const began = Math.min(...records.map((record) => record.started));
    const took = Math.max(...records.map((record) => record.started + record.seconds)) - began;
    const words = [tokens ? several(tokens, "token") : "", over && records.length ? duration(took) : ""];
    say(figures, words.filter(Boolean).join(" · "));
    root.classList.toggle("idle", row.every((place) => place.stage === "waiting" || place.stage === "unused"));
    if (row[0] === run.final) return;
    const held = run.votes(row);
    const counts = new Map(held);
    const shares = [...counts.keys()].sort((a, b) => a - b);
    const key = shares.map((group) => `${group}:${counts.get(group)}`).join() + this.lost(row).join();
    if (root.dataset.votes === key) return;
    root.dataset.votes = key;
    votes.replaceChildren(...shares.map((group) => element("span", { class: colour(group), "--share": counts.get(group) })));
    votes.append(element("span", { class: "nobody", "--share": row.length - records.filter((record) => record.group !== null).length }));
    tally.replaceChildren(
      ...held.slice(0, 5).map(([group, number]) => element("span", { class: "tallied" }, answerChip(run, group, 18), element("span", { class: "times" }, `×${number}`))),
      held.length > 5 ? element("span", { class: "tallied others" }, `${held.length - 5} other answers`) : "",
      ...this.lost(row).map((said) => element("span", { class: "tallied lost" }, said)),
    );
  }

  lost(row) {
    return ["silent", "failed", "cut"]
      .map((stage) => [stage, row.filter((place) => place.stage === stage && place.group === null).length])
      .filter(([, number]) => number)
      .map(([stage, number]) => `${number} ${stage === "silent" ? "without an answer" : stage}`);
  }

  // ---- choosing

  select(place, tell = true) {
    this.selected = place;
    for (const [each, cell] of this.cells) {
      cell.setAttribute("aria-pressed", String(each === place));
      if (each === place) this.rove(cell);
    }
    this.drawLines();
    if (tell) this.onselect(place);
  }

  point(place) {
    const pointed = place?.record ? place : null;
    if (this.pointed === pointed) return;
    this.pointed = pointed;
    this.drawLines();
  }

  rove(cell) {
    for (const each of this.cells.values()) each.tabIndex = each === cell ? 0 : -1;
  }

  onKey(event) {
    const here = [...this.cells].find(([, cell]) => cell === document.activeElement)?.[0];
    if (!here) return;
    if (event.key === "Escape" && this.selected) this.select(null);
    const target = this.towards(here, event.key);
    if (!target) return;
    event.preventDefault();
    const cell = this.cells.get(target);
    this.rove(cell);
    cell.focus();
  }

  /** The place that a key leads to; cells of candidates that never ran are passed over. */
  towards(here, key) {
    const band = this.bands.findIndex(({ row }) => row.includes(here));
    const { row } = this.bands[band];
    const free = (place) => place && place.stage !== "unused";
    const along = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (along) return row[here.index + along] && free(row[here.index + along]) ? row[here.index + along] : null;
    if (key === "Home") return row.find(free);
    if (key === "End") return row.findLast(free);
    const step = { ArrowUp: -1, ArrowDown: 1 }[key];
    if (!step) return null;
    for (let at = band + step; at >= 0 && at < this.bands.length; at += step) {
      const other = this.bands[at].row;
      const wanted = Math.round((here.index / Math.max(1, row.length - 1)) * (other.length - 1));
      if (free(other[wanted])) return other[wanted];
      if (other.some(free)) return other.find(free);
    }
    return null;
  }

  // ---- lines

  /** Cells of a round in as few equal lines as the width allows. */
  layOut() {
    const width = this.bands[0].root.clientWidth;
    for (const { row, root } of this.bands) {
      const most = Math.max(1, Math.floor((width + 6) / 36));
      const lines = Math.ceil(row.length / most);
      root.style.setProperty("--columns", String(Math.ceil(row.length / lines)));
    }
    this.drawLines();
  }

  /**
   * Lines to the tails that the candidate in view read, to what those read in turn, and on to whoever read it. Where
   * none is in view, only to the tails that the one which answers read.
   */
  drawLines() {
    const { run } = this;
    const centre = this.pointed ?? this.selected ?? run.chosen;
    const explicit = Boolean(this.pointed ?? this.selected);
    const shown = new Map();
    const edges = [];
    if (centre?.record) {
      shown.set(centre, 0);
      const near = explicit ? Infinity : 1;
      for (const [place, distance] of run.ancestors(centre)) if (distance <= near) shown.set(place, distance);
      for (const [place, distance] of [...shown]) {
        if (distance >= near) continue;
        for (const parent of run.parents(place)) edges.push([parent, place, distance === 0 ? "direct" : "distant"]);
      }
      if (explicit) for (const reader of run.readers(centre)) edges.push([centre, reader, "onward"]), shown.set(reader, 1);
    }
    this.root.classList.toggle("tracing", explicit && edges.length > 0);
    for (const [place, cell] of this.cells) cell.classList.toggle("related", shown.has(place));
    const frame = this.root.getBoundingClientRect();
    const at = (place, edge) => {
      const box = this.cells.get(place).getBoundingClientRect();
      return [box.left + box.width / 2 - frame.left, box[edge] - frame.top];
    };
    this.lines.replaceChildren(
      ...edges.map(([from, to, kind]) => {
        const [x, y] = at(from, "bottom");
        const [u, v] = at(to, "top");
        const bend = Math.max(12, (v - y) / 2);
        return drawn("path", { class: kind, d: `M${x} ${y}C${x} ${y + bend} ${u} ${v - bend} ${u} ${v}` });
      }),
    );
  }
}
