"use strict";
// The Markdown that models write, as elements: blocks, emphasis, code, lists, quotes, tables, links and mathematics.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^ *\|? *:?-+:? *(\| *:?-+:? *)+\|? *$/;
const DEEPEST = 6;

/** A text as elements. */
function markdown(text) {
  const made = document.createDocumentFragment();
  made.append(...blocks(text.replaceAll("\r\n", "\n").split("\n"), 0));
  return made;
}

function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const reader = [codeBlock, displayedMathematics, heading, rule, quote, table, list].find((each) => each(lines, at, depth));
    const [block, next] = line.trim() === "" ? [null, at + 1] : (reader ?? paragraph)(lines, at, depth);
    if (block) made.push(block);
    at = next;
  }
  return made;
}

function codeBlock(lines, at) {
  const opened = lines[at].match(FENCE);
  if (!opened) return null;
  let end = at + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(opened[1]) && /^[`~\s]+$/.test(lines[end]))) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  const code = element("pre", { tabindex: "0", "aria-label": opened[2] ? `Code in ${opened[2]}` : "Code" }, element("code", {}, text));
  return [element("div", { class: "code" }, code, copyButton(() => text, "Copy code")), end + 1];
}

function displayedMathematics(lines, at) {
  const opened = lines[at].match(/^\s*(\\\[|\$\$)(.*)$/);
  if (!opened) return null;
  const closing = opened[1] === "$$" ? "$$" : "\\]";
  let source = opened[2];
  let end = at;
  while (!source.includes(closing) && end + 1 < lines.length) {
    end += 1;
    source += `\n${lines[end]}`;
  }
  const [inside, ...after] = source.split(closing);
  const rest = after.join(closing).trim();
  return [element("div", { class: "displayed" }, mathematics(inside, true), rest ? element("p", {}, ...inline(rest)) : null), end + 1];
}

function heading(lines, at) {
  const found = lines[at].match(HEADING);
  // The page has its own first three levels.
  return found && [element(`h${Math.min(6, found[1].length + 3)}`, {}, ...inline(found[2])), at + 1];
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? [element("hr"), at + 1] : null;
}

function quote(lines, at, depth) {
  if (depth > DEEPEST || !QUOTE.test(lines[at])) return null;
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.match(QUOTE)[1]);
  return [element("blockquote", {}, ...blocks(inside, depth + 1)), end];
}

function table(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !TABLE_RULE.test(lines[at + 1])) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => inline(cell.trim()));
  const row = (line, tag) => element("tr", {}, ...cells(line).map((cell) => element(tag, {}, ...cell)));
  const body = lines.slice(at + 2, end).map((line) => row(line, "td"));
  const made = element("table", {}, element("thead", {}, row(lines[at], "th")), element("tbody", {}, ...body));
  return [element("div", { class: "scrolled", tabindex: "0" }, made), end];
}

function list(lines, at, depth) {
  const first = lines[at].match(ITEM);
  if (!first || depth > DEEPEST) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = lines[end].match(ITEM);
    if (!item || item[1].length !== first[1].length || /\d/.test(item[2]) !== ordered) break;
    const inside = [item[3]];
    end += 1;
    while (end < lines.length && belongsToItem(lines, end, first[1].length)) {
      inside.push(lines[end].slice(Math.min(indentation(lines[end]), first[1].length + first[2].length + 1)));
      end += 1;
    }
    items.push(element("li", {}, ...unwrapped(blocks(inside, depth + 1))));
    while (end + 1 < lines.length && lines[end].trim() === "" && ITEM.test(lines[end + 1])) end += 1;
  }
  const start = ordered ? Number.parseInt(first[2], 10) : null;
  return [element(ordered ? "ol" : "ul", { start: start === 1 ? null : start }, ...items), end];
}

function indentation(line) {
  return line.length - line.trimStart().length;
}

function belongsToItem(lines, at, outer) {
  if (lines[at].trim() === "") return at + 1 < lines.length && indentation(lines[at + 1]) > outer && lines[at + 1].trim() !== "";
  return indentation(lines[at]) > outer;
}

function unwrapped(made) {
  return made.flatMap((block) => (block.tagName === "P" ? [...block.childNodes] : [block]));
}

function paragraph(lines, at) {
  let end = at + 1;
  const ends = (line) => line.trim() === "" || [FENCE, HEADING, ITEM, RULE, QUOTE, /^\s*(\\\[|\$\$)/].some((each) => each.test(line));
  while (end < lines.length && !ends(lines[end])) end += 1;
  return [element("p", {}, ...inline(lines.slice(at, end).join("\n").trim())), end];
}

// ---- inside a line

const INLINE = [
  [/^(`+)(?!`)([\s\S]*?[^`])\1(?!`)/, (found) => element("code", {}, found[2].replace(/^ (.*) $/s, "$1"))],
  [/^\\\(([\s\S]+?)\\\)/, (found) => mathematics(found[1], false)],
  [/^\\\[([\s\S]+?)\\\]/, (found) => mathematics(found[1], true)],
  [/^\$\$([^$]+?)\$\$/, (found) => mathematics(found[1], true)],
  [/^\$(?![\s$])([^$\n]*?[^\s$\\])\$(?!\d)/, (found) => mathematics(found[1], false)],
  [/^(\*\*|__)(?=\S)([\s\S]*?\S)\1/, (found) => element("strong", {}, ...inline(found[2]))],
  [/^\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)/, (found) => element("em", {}, ...inline(found[1]))],
  [/^~~(?=\S)([^~]*\S)~~/, (found) => element("del", {}, ...inline(found[1]))],
  [/^\[([^[\]]+)\]\((https?:\/\/[^\s()]+)\)/, (found) => outside(found[2], found[1])],
  [/^\\([!-/:-@[-`{-~])/, (found) => document.createTextNode(found[1])],
];
const LONGEST_INLINE = 8000;

function inline(text) {
  if (text.length > LONGEST_INLINE) return [text];
  const made = [];
  let plain = "";
  let at = 0;
  while (at < text.length) {
    const boxed = text.startsWith("\\boxed{", at) ? balanced(text, at + 6) : null;
    const rest = "`\\$*_~[".includes(text[at]) ? text.slice(at) : "";
    const inWord = text[at] === "_" && /\w/.test(text[at - 1] ?? "");
    let found = null;
    const kind = rest && !inWord && !boxed ? INLINE.find(([pattern]) => (found = rest.match(pattern))) : null;
    if (boxed || kind) {
      if (plain) made.push(plain);
      plain = "";
      const part = boxed ? mathematics(text.slice(at, boxed), false) : kind[1](found);
      at = boxed ?? at + found[0].length;
      const mark = /[.,;:!?)]/.test(text[at] ?? "") && part.localName === "math" ? text[at++] : "";
      made.push(mark ? element("span", { class: "joined" }, part, mark) : part);
    } else {
      plain += text[at];
      at += 1;
    }
  }
  return plain ? [...made, plain] : made;
}

/** Where the brace that opens here is closed, as the place behind it; null where it is not. */
function balanced(text, open) {
  let depth = 0;
  for (let at = open; at < text.length; at += 1) {
    if (text[at] === "{") depth += 1;
    if (text[at] === "}" && --depth === 0) return at + 1;
  }
  return null;
}

function outside(address, said) {
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...inline(said));
}

/** A button that puts a text on the clipboard and says so. */
function copyButton(text, label, said = "Copy") {
  const button = element("button", { type: "button", class: "quiet copy", title: label }, said);
  button.addEventListener("click", async () => {
    const done = await copied(text());
    button.textContent = done ? "Copied" : "Select and copy by hand";
    setTimeout(() => (button.textContent = said), 1600);
  });
  return button;
}

/** Whether a text could be put on the clipboard; pages from a file may need the older way. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { class: "unseen", readonly: true });
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}
