"use strict";
// The conversation: turns, each a run with its account, and the address that reopens the last one.

class Conversation {
  constructor() {
    this.turns = document.getElementById("turns");
    this.welcome = document.getElementById("welcome");
    this.trouble = document.getElementById("trouble");
    this.earlier = [];
    this.current = null;
    this.client = new ServiceClient(askKey);
    this.composer = new Composer(document.getElementById("composer"), { onsend: (asked) => this.ask(asked), onstop: () => this.stop() });
    document.getElementById("new").addEventListener("click", () => this.restart());
    addEventListener("hashchange", () => this.openAddress());
  }

  async begin() {
    try {
      const models = await this.client.models();
      this.composer.offer(models);
      say(document.getElementById("model"), models[0].id);
      this.showExamples(models[0].id.startsWith("zaya1-tiny") ? EXAMPLES.tiny : EXAMPLES.other);
      await this.openAddress();
    } catch (error) {
      this.tell(error);
    }
    this.composer.text.focus();
  }

  showExamples(examples) {
    const buttons = examples.map((text) => element("button", { type: "button", class: "example", onclick: () => (this.composer.write(text), this.composer.text.focus()) }, text));
    document.getElementById("examples").replaceChildren(...buttons);
  }

  // ---- turns

  async ask({ text, model, mrsa }) {
    this.tell(null);
    this.composer.asking = true;
    const messages = [...this.earlier, { role: "user", content: text }];
    try {
      const id = await this.client.start({ model, messages, ...(Object.keys(mrsa).length ? { mrsa } : {}) });
      this.composer.write("");
      history.pushState(null, "", `#${id}`);
      await this.follow(new Turn(this, id, text));
    } catch (error) {
      this.tell(error);
    }
    this.composer.asking = false;
  }

  async follow(turn) {
    this.current?.fold();
    this.current = turn;
    this.welcome.hidden = true;
    this.turns.append(turn.root);
    this.composer.working = true;
    turn.root.scrollIntoView({ block: "start", behavior: calm() ? "auto" : "smooth" });
    try {
      await turn.follow();
      if (turn.run.text.trim()) this.earlier = [...turn.run.header.messages, { role: "assistant", content: turn.run.text }];
    } finally {
      if (this.current === turn) this.composer.working = false;
    }
  }

  async stop() {
    try {
      await this.client.cancel(this.current.id);
    } catch (error) {
      this.tell(error);
    }
  }

  /** Open the run that the address names. */
  async openAddress() {
    const id = location.hash.slice(1);
    if (id === this.current?.id || (!id && !this.current)) return;
    this.clear();
    if (!id) return;
    try {
      await this.follow(new Turn(this, id, null));
    } catch (error) {
      this.tell(error);
    }
  }

  restart() {
    history.pushState(null, "", location.pathname);
    this.clear();
    this.composer.text.focus();
  }

  clear() {
    this.tell(null);
    this.current?.leave();
    this.current = null;
    this.earlier = [];
    this.turns.replaceChildren();
    this.welcome.hidden = false;
    this.composer.working = false;
  }

  /** Say what went wrong, or take it back. */
  tell(error) {
    this.trouble.hidden = error === null;
    if (error === null) return;
    if (!(error instanceof Trouble)) console.error(error);
    say(this.trouble.querySelector("p"), error instanceof Trouble ? error.message : `The page failed: ${error.message}`);
  }
}

/** One question and its run. */
class Turn {
  constructor(conversation, id, question) {
    this.conversation = conversation;
    this.client = conversation.client;
    this.id = id;
    this.run = new Run();
    this.account = null;
    this.leaving = new AbortController();
    this.lost = element("p", { class: "note connection", hidden: true, role: "status" }, "The connection is lost; the run goes on at the service. Trying again…");
    this.heading = element("h2", { class: "question" }, question ?? "");
    this.place = element("div", { class: "place" });
    this.root = element("article", { class: "turn" }, this.heading, this.lost, this.place);
    this.clock = setInterval(() => this.account?.tick(performance.now() / 1000), 500);
  }

  async follow() {
    try {
      for await (const record of this.client.records(this.id, this.leaving.signal, (lost) => (this.lost.hidden = !lost))) {
        this.run.take(record, performance.now() / 1000);
        if (this.run.header === null) continue;
        if (this.account === null) this.begin();
        else this.refresh();
      }
    } catch (error) {
      if (this.run.header !== null) this.run.close({ kind: "failed", error: { message: error.message } });
      throw error;
    } finally {
      clearInterval(this.clock);
      this.lost.hidden = true;
      if (this.run.header !== null) this.account.update(performance.now() / 1000);
      else if (this.run.closing?.kind === "failed") this.conversation.tell(new Trouble(`The run could not start: ${this.run.closing.error.message}.`));
    }
  }

  /** Draw at most once a frame, however many records come. */
  refresh() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.account.update(performance.now() / 1000);
    });
  }

  begin() {
    const { text, earlier } = this.run.question;
    say(this.heading, text);
    if (!this.conversation.turns.contains(this.root) || this.root.previousElementSibling === null) this.root.prepend(...earlierTurns(earlier));
    const load = (round, index) => this.client.rollout(this.id, round, index);
    this.account = new Account(this.run, { load, actions: this.actions() });
    this.place.replaceChildren(this.account.root);
  }

  actions() {
    const link = copyButton(() => new URL(`#${this.id}`, location.href).href, "Copy a link that reopens this run", "Copy link");
    return [link, element("button", { type: "button", class: "quiet", onclick: () => this.save() }, "Save as a page")];
  }

  async save() {
    try {
      const address = URL.createObjectURL(await this.client.page(this.id));
      element("a", { href: address, download: `${this.id}.html` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 10000);
    } catch (error) {
      this.conversation.tell(error);
    }
  }

  fold() {
    this.account?.fold();
  }

  leave() {
    this.leaving.abort();
    clearInterval(this.clock);
  }
}

/** What was said before, where it is not on the page yet. */
function earlierTurns(turns) {
  const spoken = turns.filter((turn) => turn.role === "user" || turn.role === "assistant");
  return spoken.map((turn) => element("div", { class: `earlier ${turn.role}` }, turn.role === "user" ? plainText(turn) : markdown(plainText(turn))));
}

/** A key from the person, or null. */
function askKey(refused) {
  const dialog = document.getElementById("key");
  const input = dialog.querySelector("input");
  say(dialog.querySelector(".why"), refused ? "That key is not known to the service." : "This service asks for a key.");
  input.value = "";
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use" ? input.value.trim() : null), { once: true });
  });
}

new Conversation().begin();
