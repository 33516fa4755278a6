"use strict";
// The LaTeX that models write in replies, as MathML. What is not known here is shown as its source.

const MATHML = "http://www.w3.org/1998/Math/MathML";
const DEEPEST_FORMULA = 40;

const SYMBOLS = {
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ϵ", varepsilon: "ε", zeta: "ζ", eta: "η", theta: "θ", vartheta: "ϑ",
  iota: "ι", kappa: "κ", lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", sigma: "σ", tau: "τ", upsilon: "υ", phi: "ϕ",
  varphi: "φ", chi: "χ", psi: "ψ", omega: "ω", Gamma: "Γ", Delta: "Δ", Theta: "Θ", Lambda: "Λ", Xi: "Ξ", Pi: "Π", Sigma: "Σ",
  Phi: "Φ", Psi: "Ψ", Omega: "Ω", infty: "∞", partial: "∂", nabla: "∇", ell: "ℓ", hbar: "ℏ", emptyset: "∅", varnothing: "∅",
  Re: "ℜ", Im: "ℑ", aleph: "ℵ", ldots: "…", dots: "…", cdots: "⋯", vdots: "⋮", ddots: "⋱", prime: "′", degree: "°", circ: "∘",
  triangle: "△", square: "□", angle: "∠", checkmark: "✓", therefore: "∴", because: "∵",
}; // prettier-ignore
const OPERATORS = {
  cdot: "⋅", times: "×", div: "÷", pm: "±", mp: "∓", ast: "∗", star: "⋆", oplus: "⊕", otimes: "⊗", cup: "∪", cap: "∩", setminus: "∖",
  wedge: "∧", vee: "∨", land: "∧", lor: "∨", lnot: "¬", neg: "¬", le: "≤", leq: "≤", ge: "≥", geq: "≥", ne: "≠", neq: "≠", approx: "≈",
  equiv: "≡", sim: "∼", simeq: "≃", cong: "≅", propto: "∝", ll: "≪", gg: "≫", in: "∈", notin: "∉", ni: "∋", subset: "⊂", subseteq: "⊆",
  supset: "⊃", supseteq: "⊇", to: "→", rightarrow: "→", leftarrow: "←", Rightarrow: "⇒", Leftarrow: "⇐", leftrightarrow: "↔", iff: "⇔",
  Leftrightarrow: "⇔", implies: "⟹", mapsto: "↦", uparrow: "↑", downarrow: "↓", forall: "∀", exists: "∃", mid: "∣", nmid: "∤",
  parallel: "∥", perp: "⊥", lfloor: "⌊", rfloor: "⌋", lceil: "⌈", rceil: "⌉", langle: "⟨", rangle: "⟩", lbrace: "{", rbrace: "}", vert: "|",
  Vert: "‖", backslash: "∖", bmod: "mod", colon: ":",
}; // prettier-ignore
const LARGE = { sum: "∑", prod: "∏", coprod: "∐", int: "∫", iint: "∬", oint: "∮", bigcup: "⋃", bigcap: "⋂", bigoplus: "⨁" };
const LIMITS = new Set(["sum", "prod", "coprod", "bigcup", "bigcap", "bigoplus", "lim", "max", "min", "sup", "inf", "limsup", "liminf"]);
const FUNCTIONS = new Set(
  "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim max min sup inf gcd lcm det dim ker deg arg mod Pr limsup liminf".split(" "),
);
const SPACES = { ",": "0.17em", ":": "0.22em", ";": "0.28em", " ": "0.25em", quad: "1em", qquad: "2em", "!": "-0.17em" };
const ACCENTS = { bar: "‾", overline: "‾", hat: "^", widehat: "^", vec: "→", overrightarrow: "→", tilde: "~", widetilde: "~", dot: "˙", ddot: "¨" };
const FONTS = { mathrm: "normal", mathbf: "bold", boldsymbol: "bold", mathbb: "double-struck", mathcal: "script", mathit: null, mathsf: "normal" };
const FENCES = { matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], vmatrix: ["|", "|"], Bmatrix: ["{", "}"], cases: ["{", ""] };
const ALIGNED = new Set(["aligned", "align", "align*", "array", "gathered", "gather", "gather*", "split", "equation", "equation*"]);
const IGNORED = new Set(["displaystyle", "textstyle", "limits", "nolimits", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "tag", "hline"]);

/** A formula; its source in code where it holds something unknown. */
function mathematics(source, displayed) {
  try {
    const reader = new FormulaReader(source);
    const row = reader.row(() => reader.ended);
    const math = mathElement("math", { display: displayed ? "block" : "inline" }, row);
    math.setAttribute("aria-label", source.trim());
    return math;
  } catch (error) {
    if (!(error instanceof UnknownFormula)) throw error;
    return element("code", { class: "formula" }, source.trim());
  }
}

class UnknownFormula extends Error {}

function mathElement(tag, attributes, ...children) {
  const made = document.createElementNS(MATHML, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

class FormulaReader {
  constructor(source) {
    this.pieces = source.match(/\\[a-zA-Z]+\*?|\\[\s\S]|\d+(?:[.,]\d+)*|\s+|[\s\S]/gu) ?? [];
    this.at = 0;
    this.depth = 0;
  }

  get ended() {
    return this.at >= this.pieces.length;
  }

  next() {
    if (this.ended) throw new UnknownFormula();
    return this.pieces[this.at++];
  }

  skipSpace() {
    while (!this.ended && this.pieces[this.at].trim() === "") this.at += 1;
  }

  peek() {
    this.skipSpace();
    return this.pieces[this.at];
  }

  /** Everything up to where `closed` says so. */
  row(closed) {
    if (++this.depth > DEEPEST_FORMULA) throw new UnknownFormula();
    const made = [];
    this.skipSpace();
    while (!closed()) {
      made.push(this.scripted());
      this.skipSpace();
    }
    this.depth -= 1;
    return made.length === 1 ? made[0] : mathElement("mrow", {}, ...made);
  }

  /** An atom with what hangs below and above it. */
  scripted() {
    const name = (this.peek() ?? "").slice(1);
    const base = this.peek() === "^" || this.peek() === "_" ? mathElement("mrow", {}) : this.atom();
    let below = null;
    let above = null;
    for (;;) {
      const mark = this.peek();
      if (mark === "_" && !below) [this.at, below] = [this.at + 1, null], (below = this.argument());
      else if (mark === "^" && !above) (this.at += 1), (above = this.argument());
      else if (mark === "'") (this.at += 1), (above = mathElement("mo", {}, "′"));
      else break;
    }
    if (!below && !above) return base;
    const under = LIMITS.has(name);
    const tag = under ? (below && above ? "munderover" : below ? "munder" : "mover") : below && above ? "msubsup" : below ? "msub" : "msup";
    return mathElement(tag, {}, ...[base, below, above].filter(Boolean));
  }

  /** What a command applies to: a group in braces, or one atom. */
  argument() {
    if (this.peek() === "{") return this.group();
    return this.atom();
  }

  group() {
    this.next();
    const row = this.row(() => this.peek() === "}" || this.fail());
    this.next();
    return row;
  }

  fail() {
    if (this.ended) throw new UnknownFormula();
    return false;
  }

  /** The text of a group, as it stands. */
  literal() {
    if (this.peek() !== "{") throw new UnknownFormula();
    this.next();
    let text = "";
    for (let depth = 1; depth; ) {
      const piece = this.next();
      if (piece === "{") depth += 1;
      else if (piece === "}") depth -= 1;
      if (depth) text += piece;
    }
    return text;
  }

  atom() {
    this.skipSpace();
    if (this.pieces[this.at] === "{") return this.group();
    const piece = this.next();
    if (piece.startsWith("\\")) return this.command(piece.slice(1));
    if (/^\d/.test(piece)) return mathElement("mn", {}, piece);
    if (/^\p{L}$/u.test(piece)) return mathElement("mi", {}, piece);
    if ("}&#^_".includes(piece)) throw new UnknownFormula();
    if (piece === "-") return mathElement("mo", {}, "−");
    return mathElement("mo", "()[]|".includes(piece) ? { stretchy: "false" } : {}, piece);
  }

  command(name) {
    if (Object.hasOwn(SYMBOLS, name)) return mathElement("mi", { mathvariant: "normal" }, SYMBOLS[name]);
    if (Object.hasOwn(OPERATORS, name)) return mathElement("mo", {}, OPERATORS[name]);
    if (Object.hasOwn(LARGE, name)) return mathElement("mo", {}, LARGE[name]);
    if (FUNCTIONS.has(name)) return mathElement("mi", {}, name);
    if (Object.hasOwn(SPACES, name)) return mathElement("mspace", { width: SPACES[name] });
    if (Object.hasOwn(ACCENTS, name)) return mathElement("mover", { accent: "true" }, this.argument(), mathElement("mo", {}, ACCENTS[name]));
    if (Object.hasOwn(FONTS, name)) return this.inFont(FONTS[name]);
    if (IGNORED.has(name)) return mathElement("mrow", {});
    if ("{}%$#&_|".includes(name)) return mathElement("mo", { stretchy: "false" }, name === "|" ? "‖" : name);
    switch (name) {
      case "frac": case "dfrac": case "tfrac": case "cfrac":
        return mathElement("mfrac", {}, this.argument(), this.argument());
      case "binom": case "dbinom":
        return this.fenced("(", mathElement("mfrac", { linethickness: "0" }, this.argument(), this.argument()), ")");
      case "sqrt":
        return this.root();
      case "boxed": case "fbox":
        return mathElement("mrow", { class: "boxed" }, this.argument());
      case "text": case "textbf": case "textit": case "mbox": case "textrm":
        return mathElement("mtext", {}, this.literal());
      case "operatorname":
        return mathElement("mi", {}, this.literal());
      case "pmod":
        return this.fenced("(", mathElement("mrow", {}, mathElement("mi", {}, "mod"), mathElement("mspace", { width: "0.3em" }), this.argument()), ")");
      case "left":
        return this.between();
      case "begin":
        return this.environment(this.literal());
      case "underline": case "underbrace": case "overbrace": case "cancel":
        return this.argument();
      default:
        throw new UnknownFormula();
    }
  } // prettier-ignore

  inFont(variant) {
    const inside = this.argument();
    if (variant === null) return inside;
    const letters = inside.textContent;
    if (variant === "double-struck" && /^[A-Z]$/.test(letters)) {
      return mathElement("mi", {}, { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" }[letters] ?? letters);
    }
    if (variant === "bold") return mathElement("mrow", { class: "bold" }, inside);
    return variant === "normal" ? mathElement("mi", { mathvariant: "normal" }, letters) : inside;
  }

  root() {
    if (this.peek() !== "[") return mathElement("msqrt", {}, this.argument());
    this.next();
    const degree = this.row(() => this.peek() === "]" || this.fail());
    this.next();
    return mathElement("mroot", {}, this.argument(), degree);
  }

  between() {
    const mark = () => {
      const piece = this.peek();
      this.next();
      return piece === "." ? "" : piece.startsWith("\\") ? (OPERATORS[piece.slice(1)] ?? piece.slice(1)) : piece;
    };
    const opened = mark();
    const row = this.row(() => this.peek() === "\\right" || this.fail());
    this.next();
    return this.fenced(opened, row, mark());
  }

  environment(name) {
    if (name === "array") this.literal();
    const fences = FENCES[name] ?? (ALIGNED.has(name) ? ["", ""] : null);
    if (!fences) throw new UnknownFormula();
    const rows = [[]];
    for (;;) {
      const stops = () => ["&", "\\\\", "\\end"].includes(this.peek()) || this.fail();
      rows.at(-1).push(mathElement("mtd", {}, this.row(stops)));
      const stop = this.next();
      if (stop === "\\\\") rows.push([]);
      if (stop === "\\end") break;
    }
    this.literal();
    const kept = rows.filter((cells) => cells.some((cell) => cell.textContent));
    const made = mathElement("mtable", { class: ALIGNED.has(name) ? "aligned" : "" }, ...kept.map((cells) => mathElement("mtr", {}, ...cells)));
    return this.fenced(fences[0], made, fences[1]);
  }

  fenced(opened, inside, closed) {
    const fence = (mark) => (mark ? [mathElement("mo", { fence: "true", stretchy: "true" }, mark)] : []);
    return mathElement("mrow", {}, ...fence(opened), inside, ...fence(closed));
  }
}
