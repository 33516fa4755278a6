"use strict";
// Where a question is written: the model with its preset, settings for those who want them, send and stop.

const SETTINGS = [
  ["candidates", "N", "candidates in a round"],
  ["tails", "C", "tails that each reads"],
  ["rounds", "T", "rounds after the first"],
  ["beta", "β", "token limit of a candidate"],
  ["tau", "τ", "tokens of a tail"],
  ["seed", "Seed", "repeats a run exactly"],
];

const EXAMPLES = {
  tiny: ["Compute 84 - 37 + 58 - 19.", "Compute 17 + 25 - 9.", "Compute 6 * 7 mod 5."],
  other: ["How many primes are there below 100?", "A bat and a ball cost 1.10 together; the bat costs 1.00 more. What does the ball cost?", "Write a function that merges two sorted lists."],
};

class Composer {
  /** `onsend` is told {text, model, mrsa}, `onstop` that the run shall end. */
  constructor(form, { onsend, onstop }) {
    this.form = form;
    this.text = form.querySelector("textarea");
    this.models = form.querySelector("select");
    this.settings = form.querySelector(".settings");
    this.send = form.querySelector(".send");
    this.stop = form.querySelector(".stop");
    this.byName = new Map();
    this.inputs = new Map();
    this.settings.append(...SETTINGS.map((setting) => this.setting(...setting)));
    this.onsend = onsend;
    this.busy = false;
    form.addEventListener("submit", (event) => (event.preventDefault(), this.submit()));
    this.stop.addEventListener("click", onstop);
    this.models.addEventListener("change", () => this.showPreset());
    this.text.addEventListener("input", () => this.fit());
    this.text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    this.fit();
  }

  setting(name, sign, meaning) {
    const input = element("input", { type: "number", inputmode: "numeric", min: name === "rounds" || name === "seed" ? 0 : 1, step: 1, id: `setting-${name}` });
    this.inputs.set(name, input);
    return element("label", { for: input.id }, element("b", {}, sign), element("span", {}, meaning), input);
  }

  /** The names that the service offers, the default first. */
  offer(models) {
    this.byName = new Map(models.map((model) => [model.id, model]));
    const [base] = models;
    this.models.replaceChildren(...models.map(({ id, mrsa }) => element("option", { value: id }, presetLabel(id, mrsa, base))));
    this.showPreset();
  }

  showPreset() {
    const shape = this.byName.get(this.models.value)?.mrsa ?? {};
    for (const [name, input] of this.inputs) input.placeholder = name === "seed" ? "any" : String(shape[name] ?? "");
  }

  get model() {
    return this.models.value;
  }

  /** Settings that were changed from the preset's. */
  get mrsa() {
    const given = [...this.inputs].filter(([, input]) => input.value !== "");
    return Object.fromEntries(given.map(([name, input]) => [name, Number(input.value)]));
  }

  submit() {
    const text = this.text.value.trim();
    if (!text || this.busy || !this.form.reportValidity()) return;
    this.onsend({ text, model: this.model, mrsa: this.mrsa });
  }

  /** Whether a question is on its way, so that no second one is sent. */
  set asking(asking) {
    this.busy = asking;
    this.fit();
  }

  /** Whether a run goes on that can be stopped. */
  set working(working) {
    this.stop.hidden = !working;
    this.send.hidden = working;
    this.asking = working;
  }

  write(text) {
    this.text.value = text;
    this.fit();
  }

  /** As high as its text, within reason. */
  fit() {
    this.text.style.setProperty("height", "auto");
    this.text.style.setProperty("height", `${Math.min(240, this.text.scrollHeight)}px`);
    this.send.disabled = this.busy || this.text.value.trim() === "";
  }
}

function presetLabel(id, shape, base) {
  const name = id === base.id ? "Default" : id.slice(base.id.length + 1);
  if (!shape) return name;
  if (shape.rounds === 0) return shape.candidates === 1 ? `${name}: one reply` : `${name}: ${shape.candidates} replies, vote`;
  return `${name}: ${shape.candidates} × ${shape.rounds + 1} rounds`;
}
