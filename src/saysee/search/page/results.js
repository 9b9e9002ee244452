/** Grids of images and clips, which grow as the user scrolls. */

import { ClipAudio } from "./audio.js";
import { icon, make } from "./elements.js";
import { file, small } from "./service.js";

const AHEAD = "800px"; // below the screen, where further results are loaded already
const DATE = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });

/** A list of items and a button that loads more, which is pressed by itself when it comes near. */
export class Grid {
  /** Calls `open(place)` for an image that is chosen, and `failed(error)` if no more can be loaded. */
  constructor(list, open, failed) {
    Object.assign(this, { list, open, failed, found: null, growing: null });
    this.more = make("button", { type: "button", className: "quiet more", hidden: true }, "Show more");
    this.more.addEventListener("click", () => this.grow());
    list.after(this.more);
    this.observer = new IntersectionObserver((entries) => entries.at(-1).isIntersecting && this.grow(), {
      rootMargin: AHEAD,
    });
  }

  /** Shows placeholders until the items arrive. */
  wait(count) {
    this.found = null;
    this.more.hidden = true;
    this.list.replaceChildren(...Array.from({ length: count }, () => make("li", { className: "waiting" })));
  }

  /**
   * Shows what was found; images appear as they are loaded. It has `hits`, which grow by `load` until it is `complete`,
   * and for an example the `right` value of image_id.
   */
  show(found) {
    Object.assign(this, { found, growing: null });
    this.list.replaceChildren(...found.hits.map((hit, place) => this.#item(hit, place)));
    this.#wait();
  }

  /** Loads more, if there is more; resolves when it is there. */
  grow() {
    const { found } = this;
    if (!found || found.complete) return Promise.resolve();
    return (this.growing ??= this.#load(found));
  }

  async #load(found) {
    this.observer.disconnect();
    try {
      const start = found.hits.length;
      const hits = await found.load(start);
      found.complete = hits.length === 0;
      found.hits.push(...hits);
      if (found !== this.found) return;
      this.list.append(...hits.map((hit, place) => this.#item(hit, start + place)));
      this.growing = null;
      this.#wait();
    } catch (error) {
      this.growing = null;
      if (found === this.found) this.failed(error);
    }
  }

  #wait() {
    this.more.hidden = this.found.complete;
    this.observer.disconnect();
    this.observer.observe(this.more); // reports at once whether it is near
  }

  #item(hit, place) {
    const right = Boolean(this.found.right) && hit.metadata.image_id === this.found.right;
    return make("li", {}, hit.kind === "image" ? imageTile(hit, () => this.open(place), right) : clipTile(hit, right));
  }
}

function imageTile(hit, open, right) {
  const frame = make("span", { className: "frame" });
  const tile = make("button", { type: "button", className: "tile" }, frame, ...caption(hit, right));
  tile.addEventListener("click", open);
  loadImage(hit.thumbnail, frame);
  return tile;
}

async function loadImage(url, frame) {
  const image = make("img", { alt: "" });
  try {
    image.src = await small(url);
    await image.decode();
    frame.prepend(image);
    requestAnimationFrame(() => image.classList.add("loaded"));
  } catch (error) {
    frame.replaceChildren(make("span", { className: "failure" }, error.message));
  }
}

function clipTile(hit, right) {
  const frame = make("span", { className: "frame" }, icon("play"));
  const tile = make("button", { type: "button", className: "tile clip" }, frame, ...caption(hit, right));
  tile.prepend(make("span", { className: "hidden" }, "Play "));
  let audio = null;
  tile.addEventListener("click", async () => {
    try {
      audio ??= file(hit.url).then((blob) => new ClipAudio(blob));
      const opened = await audio;
      opened.watch("tile", (playing) => frame.replaceChildren(icon(playing ? "pause" : "play")));
      await opened.toggle();
    } catch (error) {
      audio = null;
      const message = error instanceof DOMException ? "This browser cannot play the clip." : error.message;
      frame.replaceChildren(make("span", { className: "failure", role: "alert" }, message));
    }
  });
  return tile;
}

/** When and where an image was taken, else its name; the words that belong to it; whether it is the right answer. */
function caption(hit, right) {
  const lines = [make("span", { className: "name", title: hit.name }, dateOf(hit) ?? hit.name)];
  const more = [placeOf(hit), hit.copies > 1 ? `${hit.copies} copies` : null].filter(Boolean).join(" · ");
  if (right) lines.push(make("span", { className: "right" }, hit.kind === "image" ? "The image described" : "Said of this image"));
  if (more) lines.push(make("span", { className: "place" }, more));
  const { text } = hit.metadata;
  if (typeof text === "string" && text) lines.push(make("span", { className: "transcript", title: text }, text));
  return [make("span", { className: "caption" }, ...lines)];
}

/** The day on which an image was taken, by its camera's clock; null if it is not known. */
export function dateOf({ metadata }) {
  const taken = typeof metadata.taken === "string" ? new Date(`${metadata.taken.slice(0, 10)}T00:00Z`) : null;
  return taken === null || Number.isNaN(taken.getTime()) ? null : DATE.format(taken);
}

/** Where an image was taken; null if it is not known. */
export function placeOf({ metadata: { lat, lon } }) {
  if (typeof lat !== "number" || typeof lon !== "number") return null;
  const degrees = (value, [above, below]) => `${Math.abs(value).toFixed(2)}° ${value < 0 ? below : above}`;
  return `${degrees(lat, "NS")}, ${degrees(lon, "EW")}`;
}
