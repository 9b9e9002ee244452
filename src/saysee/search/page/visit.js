/** What was asked in this visit, and how the address of the page holds a query. */

import { element, icon, make } from "./elements.js";
import { keepToken } from "./service.js";
import { Sound } from "./sound.js";

const ICONS = { audio: "microphone", text: "text", vector: "link", image: "picture" };
// Two loads of the page must not take each other's queries for their own.
const LOAD = Math.random().toString(36).slice(2);

/** A query of this visit. */
export class Query {
  /**
   * @param {"audio" | "image" | "text" | "vector"} kind
   * @param {Blob | string} content
   * @param {string} title what the page calls it
   */
  constructor(kind, content, title) {
    Object.assign(this, { kind, content, title });
    this.key = "";
    /** The answers by what was to be found: "image" or "clip". */
    this.answers = {};
    /** What each picture's regions are, by the picture's id. */
    this.attention = new Map();
    this.sound = kind === "audio" ? new Sound(content) : null;
    this.preview = kind === "image" ? URL.createObjectURL(content) : null;
  }

  /** The part of an address that asks this again, with nothing kept on the server. */
  address(find) {
    const asked = this.kind === "text" ? { text: this.content } : { vector: this.answers[find].query.vector };
    return `#${new URLSearchParams({ ...asked, kind: find })}`;
  }
}

/** The query that the page's address holds, if any; a token in it is kept, and taken out of the address. */
export function inAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  if (parts.has("token")) {
    keepToken(parts.get("token"));
    parts.delete("token");
    history.replaceState(history.state, "", parts.size ? `#${parts}` : location.pathname);
  }
  const find = ["image", "clip"].find((kind) => kind === parts.get("kind")) ?? null;
  if (parts.get("text")) return { query: new Query("text", parts.get("text"), parts.get("text")), find };
  if (parts.get("vector")) return { query: new Query("vector", parts.get("vector"), "A query by link"), find };
  return null;
}

/** The list of what was asked, the last one first. */
export class Visit {
  /** @param {(query: Query) => void} choose called when one is chosen again */
  constructor(choose) {
    this.queries = [];
    this.choose = choose;
  }

  add(query) {
    query.key ||= `${LOAD}-${this.queries.push(query)}`;
  }

  /** The query of a state of the browser's history. */
  of(state) {
    return this.queries.find((query) => query.key === state?.key) ?? null;
  }

  /** Draws the list; `current` is marked. */
  show(current) {
    element("visit").hidden = this.queries.length < 2;
    const items = this.queries.map((query) => make("li", {}, this.#button(query, query === current))).reverse();
    element("queries").replaceChildren(...items);
  }

  #button(query, current) {
    const sign = query.preview ? make("img", { alt: "", src: query.preview }) : icon(ICONS[query.kind]);
    const button = make("button", { type: "button" }, sign, make("span", {}, query.title));
    if (current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => this.choose(query));
    return button;
  }
}
