"use strict";
// A run from the records that lie in this file.

(() => {
  const run = runFrom(JSON.parse(document.getElementById("records").textContent));
  if (run.header === null) {
    document.getElementById("run").append(element("p", { class: "note" }, "There is nothing in this run yet."));
    return;
  }
  const { text, earlier } = run.question;
  const before = earlier.filter((turn) => turn.role === "user" || turn.role === "assistant");
  const said = before.map((turn) => element("div", { class: `earlier ${turn.role}` }, turn.role === "user" ? plainText(turn) : markdown(plainText(turn))));
  const account = new Account(run);
  document.getElementById("run").append(...said, element("h2", { class: "question" }, text), account.root);
})();
