"use strict";
// What one candidate wrote: the tail that others may read, the reply, and whose tails it was shown.

const HINT = "Choose a candidate to read its tail and its reply, and to see whose tails it was shown.";

class Reading {
  /** `load` gives a whole rollout where the records left its reasoning out; `onselect` opens another place. */
  constructor(run, load, onselect) {
    this.run = run;
    this.load = load;
    this.onselect = onselect;
    this.place = null;
    this.shown = null;
    this.root = element("section", { class: "reading", tabindex: "-1" });
    this.open(null);
  }

  /** Show a place, or nothing. */
  open(place) {
    this.place = place;
    this.shown = null;
    this.root.classList.toggle("hint", place === null);
    if (place === null) this.root.replaceChildren(element("p", { class: "note" }, HINT));
    this.update();
  }

  update() {
    const { place } = this;
    if (place === null) return;
    const state = place.record ?? `${place.stage}`;
    const readers = this.run.readers(place).length;
    if (this.shown?.state === state && this.shown.readers === readers) return;
    this.shown = { state, readers };
    const name = placeName(this.run, place);
    this.root.setAttribute("aria-label", name);
    this.root.replaceChildren(this.head(name), ...(place.record === null ? [this.pending()] : this.whole(place.record)));
  }

  head(name) {
    const { run, place } = this;
    const close = element("button", { type: "button", class: "quiet", onclick: () => this.onselect(null) }, "Close");
    const chip = place.group === null ? null : answerChip(run, place.group, 60);
    return element("header", {}, element("h3", {}, name[0].toUpperCase() + name.slice(1)), chip, close);
  }

  pending() {
    return element("p", { class: "note" }, this.place.stage === "writing" ? "Still writing. Its text is here once it has ended." : "It has not begun.");
  }

  whole(record) {
    const made = [element("p", { class: "facts" }, this.facts(record))];
    if (record.failure !== null) made.push(element("p", { class: "note bad" }, `It failed: ${record.failure}`));
    made.push(this.family("It read the tails of", this.run.parents(this.place)));
    made.push(this.family("Its tail was read by", this.run.readers(this.place)));
    if (record.tail || record.reasoning || record.reasoning_characters) made.push(...this.thought(record));
    if (record.content.trim()) made.push(element("h4", {}, "Its reply"), element("div", { class: "prose boxed-text" }, markdown(record.content)));
    return made.filter(Boolean);
  }

  facts(record) {
    const how = {
      stop: "ended by itself", tool_calls: "ended with a tool call", length: "reached its token limit", cut: "cut, because enough others were done",
      budget: "cut by the budget", deadline: "cut by the deadline", failed: "failed",
    }[record.finish_reason] ?? record.finish_reason; // prettier-ignore
    const words = [several(record.usage.completion_tokens, "token"), duration(record.seconds), how];
    if (record.usage.cached_tokens) words.push(`${count(record.usage.cached_tokens)} of ${several(record.usage.prompt_tokens, "prompt token")} cached`);
    return words.join(" · ");
  }

  family(said, places) {
    if (!places.length) return null;
    const buttons = places.map((place) => {
      const mark = place.group === null ? element("span", { class: "letter none" }, "–") : answerChip(this.run, place.group);
      const name = place === this.run.final ? "final" : String(place.index + 1);
      return element("button", { type: "button", class: "member", "aria-label": placeName(this.run, place), onclick: () => this.onselect(place) }, mark, name);
    });
    return element("div", { class: "family" }, element("span", {}, said), ...buttons);
  }

  /** The tail as a part of what it was cut from. */
  thought(record) {
    const tail = record.tail;
    const whole = record.reasoning ?? null;
    const block = element("pre", { class: "thought", tabindex: "0", "aria-label": tail ? "Tail" : "Reasoning" });
    const made = [element("h4", {}, tail ? "Its tail" : "Its reasoning"), tail ? element("p", { class: "note" }, this.aboutTail(tail, record)) : null];
    const before = whole === null ? null : tail && whole.endsWith(tail.text) ? whole.slice(0, whole.length - tail.text.length) : tail ? "" : whole;
    const unseen = before === null ? record.reasoning_characters - (tail ? tail.text.length : 0) : before.length;
    if (tail) block.append(element("mark", {}, tail.text));
    if (unseen > 0 && (tail || before === null)) {
      const more = element("button", { type: "button", class: "quiet" }, `Show the ${several(unseen, "character")} before it`);
      if (!tail) more.textContent = `Show its ${several(unseen, "character")}`;
      more.addEventListener("click", () => this.expand(more, block, record));
      made.push(more);
    } else if (before) block.prepend(before);
    made.push(block);
    return made;
  }

  aboutTail(tail, record) {
    const exactness = { ids: "counted in the model's own tokens", tokenize: "counted by the server's tokenizer", local: "counted by a local tokenizer", ratio: "counted by characters, so about" };
    const nothing = record.reasoning === "" || record.reasoning_characters === 0 ? " of its reply" : "";
    return `The last ${several(tail.tokens, "token")}${nothing}, ${exactness[tail.exactness]}: all that a later candidate may read of it.`;
  }

  async expand(button, block, record) {
    button.disabled = true;
    try {
      record.reasoning ??= (await this.load(record.round, record.index)).reasoning;
      const tail = record.tail?.text ?? "";
      block.prepend(record.reasoning.endsWith(tail) ? record.reasoning.slice(0, record.reasoning.length - tail.length) : record.reasoning);
      block.focus();
      button.remove();
    } catch (error) {
      button.disabled = false;
      button.textContent = `${error.message} Try again`;
    }
  }
}
