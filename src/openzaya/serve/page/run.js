"use strict";
// A run as its records tell it. Everything that is drawn comes from here, and nothing here draws.

const ENDED_BY_ITSELF = new Set(["stop", "tool_calls"]);
const LEFT_BEHIND = new Set(["cut", "budget", "deadline"]);
const SPEED_WINDOW = 10;

/** One candidate's place in the picture. Its `stage`: waiting, writing, answered, silent, cut, failed or unused. */
class Place {
  constructor(round, index) {
    this.round = round;
    this.index = index;
    this.stage = "waiting";
    this.tokens = 0;
    this.group = null;
    this.record = null;
  }

  get ended() {
    return this.stage !== "waiting" && this.stage !== "writing";
  }
}

class Run {
  constructor() {
    this.header = null;
    this.rows = [];
    this.final = null;
    this.answers = [];
    this.closing = null;
    this.text = "";
    this.reasoningCharacters = 0;
    this.startedAt = null;
    this.samples = [];
  }

  /** Take the next record. `now` is in seconds of any steady clock, for a run that is followed while it goes on. */
  take(record, now = 0) {
    const kinds = { header: "takeHeader", rollout: "takeRollout", now: "takeNow" };
    if (kinds[record.kind]) this[kinds[record.kind]](record, now);
    else this.close(record);
    this.sample(now);
  }

  takeHeader(record, now) {
    this.header = record;
    this.startedAt = now;
    const { rounds } = record.config;
    for (let round = 0; round <= rounds; round += 1) {
      this.rows.push(Array.from({ length: this.width(round) }, (_, index) => new Place(round, index)));
    }
    if (this.finalIs !== "never") this.final = new Place(rounds + 1, 0);
  }

  takeRollout(record) {
    const place = this.place(record.round, record.index);
    place.record = record;
    place.tokens = record.usage.completion_tokens;
    place.group = record.group;
    if (record.group !== null && this.answers[record.group] === undefined) this.answers[record.group] = record.answer;
    if (record.failure !== null) place.stage = "failed";
    else if (LEFT_BEHIND.has(record.finish_reason)) place.stage = "cut";
    else place.stage = record.group === null ? "silent" : "answered";
  }

  takeNow(record) {
    for (const [round, index, tokens] of record.writing) {
      const place = this.place(round, index);
      place.stage = "writing";
      place.tokens = tokens;
    }
    this.text = this.text.slice(0, record.from) + record.text;
    this.reasoningCharacters = record.reasoning_characters;
  }

  /** Take the last record: `end`, `failed`, `stopped`, or `unfinished` for a journal that stops early. */
  close(record) {
    this.closing = record;
    if (record.kind === "end") {
      this.text = record.text;
      if (record.group !== null && this.answers[record.group] === undefined) this.answers[record.group] = record.answer;
    }
    for (const place of this.places()) {
      if (place.stage === "waiting" || place.stage === "writing") place.stage = "unused";
    }
  }

  // ---- its shape

  get config() {
    return this.header.config;
  }

  /** Whether a final call comes: always, never, or maybe (where no answer has more than half of the last round). */
  get finalIs() {
    const { select } = this.config;
    if (select === "final" || this.header.controls.forces_final) return "always";
    return select === "auto" && this.config.rounds + this.config.candidates > 1 ? "maybe" : "never";
  }

  width(round) {
    const { candidates, rounds, final_n: narrowed } = this.config;
    return rounds > 0 && round === rounds && narrowed !== null ? narrowed : candidates;
  }

  /** Token limit of a candidate; null where only the context limits it. */
  limit(round) {
    return round < this.config.rounds ? this.config.beta : this.config.final_tokens;
  }

  /** The place of a rollout; that of a final call that was not expected is made. */
  place(round, index) {
    if (round < this.rows.length) return this.rows[round][index];
    if (this.final === null) this.final = new Place(round, index);
    return this.final;
  }

  *places() {
    for (const row of this.rows) yield* row;
    if (this.final !== null) yield this.final;
  }

  /** The question, and what was said before it. */
  get question() {
    const turns = this.header.messages;
    const place = turns.findLastIndex((turn) => turn.role === "user");
    return { text: plainText(turns[place]), earlier: turns.slice(0, place) };
  }

  // ---- who read whom

  /** The last round that has candidates: what a final call reads. */
  get lastRound() {
    return this.rows.findLastIndex((row) => row.some((place) => place.record !== null));
  }

  parents(place) {
    if (place.record === null || place.round === 0) return [];
    const above = place === this.final ? this.lastRound : place.round - 1;
    return place.record.tails_read.map((index) => this.rows[above][index]);
  }

  readers(place) {
    const below = place.round + 1 < this.rows.length ? this.rows[place.round + 1] : [];
    const candidates = this.final !== null && place.round === this.lastRound ? [...below, this.final] : below;
    return candidates.filter((reader) => this.parents(reader).includes(place));
  }

  /** Every candidate whose words may have reached this one, with the number of rounds in between. */
  ancestors(place) {
    const found = new Map();
    let current = [place];
    for (let distance = 1; current.length; distance += 1) {
      const above = new Set(current.flatMap((each) => this.parents(each)));
      for (const each of above) found.set(each, distance);
      current = [...above];
    }
    return found;
  }

  // ---- votes and figures

  /** Of a row: [group, candidates that hold it], the most first. */
  votes(row) {
    const held = new Map();
    for (const place of row) if (place.group !== null) held.set(place.group, (held.get(place.group) ?? 0) + 1);
    return [...held].sort(([a, first], [b, second]) => second - first || a - b);
  }

  /** The latest row with a vote; null before the first. */
  get votedRow() {
    return this.rows.findLast((row) => row.some((place) => place.group !== null)) ?? null;
  }

  /** The row at work: the first that is not over. */
  get currentRow() {
    return this.rows.find((row) => row.some((place) => !place.ended)) ?? null;
  }

  /** The candidate that answers. */
  get chosen() {
    const chosen = this.closing?.chosen;
    return chosen ? this.place(chosen[0], chosen[1]) : null;
  }

  get tokens() {
    return [...this.places()].reduce((sum, place) => sum + place.tokens, 0);
  }

  seconds(now) {
    if (this.closing?.kind === "end") return this.closing.seconds;
    const ends = [...this.places()].map(({ record }) => (record ? record.started + record.seconds : 0));
    return Math.max(...ends, this.closing === null ? now - this.startedAt : 0);
  }

  count(stage) {
    return [...this.places()].filter((place) => place.stage === stage).length;
  }

  sample(now) {
    this.samples.push([now, this.tokens]);
    while (this.samples.length > 2 && this.samples[0][0] < now - SPEED_WINDOW) this.samples.shift();
  }

  /** Seconds that are left, about; null while there is nothing to judge by. */
  left() {
    const [[since, before], [until, after]] = [this.samples[0], this.samples.at(-1)];
    const ends = [...this.places()].filter((place) => place.stage === "answered" || place.stage === "silent");
    if (this.closing || !ends.length || until - since < 1 || after <= before) return null;
    const typical = ends.reduce((sum, place) => sum + place.tokens, 0) / ends.length;
    const open = [...this.places()].filter((place) => !place.ended && (place !== this.final || this.finalIs === "always"));
    const tokens = open.reduce((sum, place) => sum + Math.max(0, typical - place.tokens), 0);
    return (tokens * (until - since)) / (after - before);
  }
}

/** The text of a turn, which may be made of parts. */
function plainText(turn) {
  if (!turn || turn.content === null || turn.content === undefined) return "";
  if (typeof turn.content === "string") return turn.content;
  return turn.content.map((part) => part.text ?? `[${part.type}]`).join("\n");
}

/** The letter of an answer, by the order in which it appeared. */
function letter(group) {
  return group < 26 ? String.fromCharCode(65 + group) : String(group + 1);
}

/** A run from all its records at once. */
function runFrom(records) {
  const run = new Run();
  for (const record of records) run.take(record);
  if (run.header !== null && run.closing === null) run.close({ kind: "unfinished" });
  return run;
}
