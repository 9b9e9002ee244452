/** Queries to try that the index carries: clips to hear, and images to find speech for. */

import { element, icon, make } from "./elements.js";
import { Query } from "./queries.js";
import { file, served, small } from "./service.js";

const SHOW = "What was said of this image?";

export class Examples {
  /** @param {(query: Promise<Query>, find: "image" | "clip") => void} choose called when one is chosen */
  constructor(choose) {
    this.choose = choose;
    this.queries = new Map(); // by the id of the item, so that an example is one query, however often it is chosen
    this.buttons = new Map();
  }

  /** Fills the list with what the service names. */
  fill() {
    element("examples").hidden = !served.examples.length;
    element("examples-list").replaceChildren(...served.examples.map((item) => make("li", {}, this.#button(item))));
  }

  /** Marks the current query. */
  show(current) {
    for (const [query, button] of this.buttons) {
      button.ariaCurrent = query === current ? "true" : null;
    }
  }

  #button(item) {
    const isClip = item.kind === "clip";
    const text = item.metadata.text ?? item.name;
    const picture = isClip ? icon("play") : make("img", { alt: "" });
    if (!isClip) small(item.thumbnail).then((address) => (picture.src = address), () => picture.remove());
    const button = make("button", { type: "button" }, picture, make("span", {}, isClip ? `“${text}”` : SHOW));
    if (isClip) button.prepend(make("span", { className: "hidden" }, "Play and search: "));
    button.addEventListener("click", () => this.choose(this.#query(item, isClip ? text : item.name, button), isClip ? "image" : "clip"));
    return button;
  }

  #query(item, title, button) {
    if (!this.queries.has(item.id)) {
      const query = file(item.url).then((blob) => {
        const made = new Query(item.kind === "clip" ? "audio" : "image", blob, title);
        Object.assign(made, { example: item, words: item.metadata.words ?? [] });
        this.buttons.set(made, button);
        return made;
      });
      this.queries.set(item.id, query);
      query.catch(() => this.queries.delete(item.id));
    }
    return this.queries.get(item.id);
  }
}
