/** The queries of this visit, and queries in the address of the page. */

import { Attention } from "./attention.js";
import { ClipAudio } from "./audio.js";
import { element, icon, make } from "./elements.js";
import { attention, keepToken } from "./service.js";

const ICONS = { audio: "microphone", text: "text", vector: "link" };
const LONGEST_TITLE = 200;
// Distinguishes the history entries of this load of the page from those of an earlier one.
const LOAD = Math.random().toString(36).slice(2);

/** A query of this visit. */
export class Query {
  /** Of a kind, a field of the form: a "file" becomes "audio" or "image" once it was answered. The title is shown. */
  constructor(kind, content, title) {
    Object.assign(this, { content, title, audio: null, preview: null, speech: null, transcript: null });
    /** The item of the index that it is, and the words of a clip with their times, where it is an example. */
    Object.assign(this, { example: null, words: [] });
    /** The name of the microphone that recorded it; null for another query. */
    this.microphone = null;
    this.key = "";
    /** What was found by kind of hits and filter. */
    this.answers = new Map();
    /** Promises of attention by the id of an image and the source. */
    this.attention = new Map();
    this.#be(kind);
  }

  #be(kind) {
    this.kind = kind;
    if (kind === "audio") this.audio ??= new ClipAudio(this.content);
    if (kind === "image") this.preview ??= URL.createObjectURL(this.content);
  }

  /** The fields of the form that ask it. What was recognized once is not recognized again. */
  fields() {
    const spoken = Object.entries({ speech: this.speech, transcript: this.transcript }).filter(([, value]) => value);
    return { [this.kind]: this.content, ...Object.fromEntries(spoken) };
  }

  /** The last answer for this kind of hits and filter. */
  answer({ find, filter }) {
    return this.answers.get(`${find} ${filter}`);
  }

  /** Which regions of an image each moment attends to, by one of `sources()`. */
  attentionTo({ id }, source, signal) {
    const key = `${id} ${source}`;
    if (!this.attention.has(key)) {
      const found = attention(this.content, id, source, signal).then((answer) => new Attention(answer));
      this.attention.set(key, found);
      found.catch(() => this.attention.delete(key));
    }
    return this.attention.get(key);
  }

  /** Keeps an answer of the service; `load(offset)` gives further hits. */
  keep(answer, filter, load) {
    this.#be(answer.query.kind);
    if (answer.query.transcript) this.title = this.transcript = answer.query.transcript;
    this.answers.set(`${answer.kind} ${filter}`, {
      ...answer,
      right: this.example?.metadata.image_id,
      complete: answer.hits.length === 0,
      load,
    });
    this.latest = { find: answer.kind, filter };
  }

  /** The part of an address that repeats this query; the server keeps nothing for it. */
  address({ find, filter }) {
    const { vector } = this.answer({ find, filter }).query;
    const content = this.kind === "text" ? { text: this.content } : { vector, title: this.title };
    return `#${new URLSearchParams({ ...content, kind: find, ...(filter ? { filter } : {}) })}`;
  }
}

/** The query in the page's address, or null. A token in the address is kept for this tab and removed. */
export function queryInAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  if (parts.has("token")) {
    keepToken(parts.get("token"));
    parts.delete("token");
    history.replaceState(history.state, "", parts.size ? `#${parts}` : location.pathname);
  }
  const find = ["image", "clip"].find((kind) => kind === parts.get("kind")) ?? null;
  const view = { find, filter: parts.get("filter") ?? "" };
  if (parts.get("text")) return { query: new Query("text", parts.get("text"), parts.get("text")), view };
  const title = parts.get("title")?.slice(0, LONGEST_TITLE) || "Query from a link";
  if (parts.get("vector")) return { query: new Query("vector", parts.get("vector"), title), view };
  return null;
}

/** The list of queries, the latest first. */
export class QueryList {
  /** @param {(query: Query) => void} choose called when one is chosen again */
  constructor(choose) {
    this.queries = [];
    this.choose = choose;
  }

  add(query) {
    query.key ||= `${LOAD}-${this.queries.push(query)}`;
  }

  /** The query of an entry of the browser's history. */
  of(state) {
    return this.queries.find((query) => query.key === state?.key) ?? null;
  }

  /** Draws the list, without examples, which have their own, and marks the current query. */
  show(current) {
    const queries = this.queries.filter((query) => !query.example);
    element("visit").hidden = queries.length + this.queries.length < 3; // not the current one alone
    const items = queries.map((query) => make("li", {}, this.#button(query, query === current))).reverse();
    element("queries").replaceChildren(...items);
  }

  #button(query, current) {
    const image = query.preview ? make("img", { alt: "", src: query.preview }) : icon(ICONS[query.kind]);
    const button = make("button", { type: "button" }, image, make("span", {}, query.title));
    button.ariaCurrent = current ? "true" : null;
    button.addEventListener("click", () => this.choose(query));
    return button;
  }
}
