"use strict";
// Elements are made one by one and text is always a text node: nothing that a model wrote is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (`onclick: function`), custom properties (`--name: value`) and children. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) made.style.setProperty(name, String(value));
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** An element of a drawing. */
function drawn(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}

/** Set a text only where it differs, so that readers of the screen are told of changes alone. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const WHOLE = new Intl.NumberFormat("en-US");

/** 12480 as "12,480". */
function count(number) {
  return WHOLE.format(number);
}

/** "1 candidate", "16 candidates". */
function several(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** Seconds as people say them. */
function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}

/** A text on one line, at most so long. */
function shortened(text, length) {
  const line = text.split(/\s+/u).join(" ").trim();
  const letters = Array.from(line);
  return letters.length <= length ? line : `${letters.slice(0, length - 1).join("")}…`;
}

/** "2, 5 and 7". */
function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}
