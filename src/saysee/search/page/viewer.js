/** An image result, large. While the query plays, the regions that each moment attends to are highlighted. */

import { clear, drawAttention } from "./attention.js";
import { drawWaveform } from "./audio.js";
import { element, labelPlayer, make } from "./elements.js";
import { dateOf, placeOf } from "./results.js";
import { file, small, sources } from "./service.js";
import { Zoom } from "./zoom.js";

const PEAKS = 160;
const SOURCES = {
  fusion: "the attention of the model's fusion encoder; a better highlight is being computed",
  interaction: "how the similarity changes when a region is covered and a moment silenced",
};

export class Viewer {
  /** Calls `similar(image, name)` to search with the image that is shown, and `closed()` after it was closed. */
  constructor(similar, closed) {
    this.dialog = element("viewer");
    this.image = element("viewer-image");
    this.overlay = element("overlay");
    this.slider = element("moment");
    this.zoom = new Zoom(element("stage"), element("layer"), (scale) => this.#zoomed(scale));
    this.query = null;
    this.moment = null; // seconds; null while nothing is highlighted
    element("viewer-close").addEventListener("click", () => this.close());
    element("viewer-back").addEventListener("click", () => this.#step(-1));
    element("viewer-forward").addEventListener("click", () => this.#step(1));
    element("play").addEventListener("click", () => this.#play());
    element("highlight").addEventListener("change", () => this.#draw());
    element("viewer-zoom").addEventListener("click", () => (this.zoom.scale > 1 ? this.zoom.reset() : this.zoom.by(2)));
    element("download").addEventListener("click", () => this.#withFile((blob, hit) => download(blob, hit.name)));
    element("similar").addEventListener("click", () => this.#withFile((blob, hit) => similar(blob, hit.name)));
    this.slider.addEventListener("input", () => this.#seek(Number(this.slider.value)));
    this.dialog.addEventListener("keydown", (event) => this.#key(event));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.close());
    this.dialog.addEventListener("close", () => {
      this.query?.audio?.pause();
      this.loading?.abort();
      closed();
    });
    new ResizeObserver(() => this.dialog.open && this.#draw()).observe(this.overlay);
  }

  /** Shows the image at a place of the hits that a query (or null) found, into which `grow()` loads more. */
  open(query, hits, place, grow) {
    if (this.query !== query || query === null) this.#setQuery(query);
    Object.assign(this, { hits, grow });
    if (!this.dialog.open) this.dialog.showModal();
    this.#show(place);
  }

  close() {
    this.dialog.close();
  }

  /** Prepares the player for a query. */
  #setQuery(query) {
    this.query = query;
    this.peaks = new Float32Array(0);
    const silent = !query?.audio;
    element("player").hidden = silent;
    element("highlight-choice").hidden = silent || !sources().length;
    if (silent) return;
    query.audio.watch("viewer", () => this.#changed(query));
    query.audio.peaks(PEAKS).then((peaks) => {
      if (query !== this.query) return;
      this.peaks = peaks;
      this.#draw();
    });
  }

  #show(place) {
    this.loading?.abort();
    const loading = (this.loading = new AbortController());
    const hit = this.hits[place];
    Object.assign(this, { place, attention: null, moment: null, failure: "" });
    this.zoom.reset();
    element("viewer-name").textContent = element("viewer-name").title = this.image.alt = hit.name;
    this.#label();
    if (place === this.hits.length - 1) this.grow().then(() => this.#label());
    const known = metadata(hit);
    element("viewer-metadata").replaceChildren(...known);
    element("viewer-more").hidden = known.length === 0;
    this.slider.value = "0";
    this.#draw();
    const failed = (error) => {
      if (loading.signal.aborted) return;
      this.failure = error.message;
      this.#explain();
    };
    this.#loadAttention(hit, loading.signal).catch(failed);
    this.#loadImage(hit, loading.signal).catch(failed);
  }

  /** Shows the thumbnail at once, then a size for the screen, then the file itself if the browser can. */
  async #loadImage(hit, signal) {
    this.image.removeAttribute("src");
    await this.#showImage(await small(hit.thumbnail), signal);
    await this.#showFile(await file(hit.preview, signal), signal);
    if (navigator.connection?.saveData) return;
    await this.#showFile(await file(hit.url, signal), signal).catch(() => {}); // browsers cannot show every format, TIFF for one
  }

  async #showFile(blob, signal) {
    const address = URL.createObjectURL(blob);
    try {
      await this.#showImage(address, signal);
    } finally {
      URL.revokeObjectURL(address); // it would keep the file in memory; the image has its pixels
    }
  }

  async #showImage(address, signal) {
    const image = new Image();
    image.src = address;
    await image.decode();
    signal.throwIfAborted();
    this.image.src = address;
    await this.image.decode();
    this.#draw();
  }

  async #loadAttention(hit, signal) {
    const { query } = this;
    if (sources().length && !query?.audio) {
      this.#note("Search by speaking to see which regions each moment of your words attends to.");
      return;
    }
    this.#explain();
    for (const source of sources()) {
      const attention = await query.attentionTo(hit, source, signal);
      signal.throwIfAborted();
      Object.assign(this, { attention, source });
      this.#explain();
      this.#draw();
    }
  }

  /** Says what failed, or how regions are highlighted and what they are computed from. */
  #explain() {
    const { query, attention, source, failure } = this;
    const parts = query?.unplayable ? ["This browser cannot play the query."] : [];
    if (failure) {
      parts.push(failure);
    } else if (attention) {
      parts.push(query.unplayable ? "Drag" : "Play or drag", "to highlight the regions that each moment attends to.");
      parts.push(`Computed from ${SOURCES[source]}.`);
      if (!attention.whole) parts.push("The model sees only the part within the dashed line.");
    } else if (sources().length) {
      parts.push("Computing which regions each moment of your words attends to…");
    }
    this.#note(parts.join(" "));
  }

  #note(text) {
    element("viewer-note").textContent = text;
  }

  async #play() {
    const { query } = this;
    try {
      await query.audio.toggle();
      query.unplayable = false;
    } catch {
      query.unplayable = true;
      this.#explain();
    }
  }

  #seek(seconds) {
    this.query.audio.seek(seconds);
    this.moment = seconds;
    this.#draw();
  }

  #changed(query) {
    if (query !== this.query) return;
    const { audio } = query;
    labelPlayer(element("play"), audio.playing);
    if (audio.element.ended) this.moment = null;
    this.#draw();
    if (audio.playing) requestAnimationFrame(() => this.#follow(query));
  }

  #follow(query) {
    if (query !== this.query || !query.audio.playing || !this.dialog.open) return;
    this.moment = query.audio.element.currentTime;
    this.slider.value = String(this.moment);
    this.#draw();
    requestAnimationFrame(() => this.#follow(query));
  }

  #step(by) {
    const place = this.place + by;
    if (place < 0 || place >= this.hits.length) return;
    this.query?.audio?.pause();
    this.#show(place);
  }

  #label() {
    const hit = this.hits[this.place];
    element("viewer-place").textContent = [`${this.place + 1} of ${this.hits.length}`, dateOf(hit), placeOf(hit)]
      .filter(Boolean)
      .join(" · ");
    element("viewer-back").disabled = this.place === 0;
    element("viewer-forward").disabled = this.place === this.hits.length - 1;
  }

  #key(event) {
    if (event.target === this.slider || event.ctrlKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (this.zoom.key(event.key)) event.preventDefault();
    else if (by) this.#step(by);
  }

  #zoomed(scale) {
    element("viewer-zoom").querySelector(".hidden").textContent = scale > 1 ? "Show the whole image" : "Zoom in";
    element("viewer-zoom").querySelector("use").setAttribute("href", scale > 1 ? "#icon-out" : "#icon-in");
  }

  /** Calls `act` with the file of the image that is shown. */
  async #withFile(act) {
    const hit = this.hits[this.place];
    try {
      act(await file(hit.url), hit);
    } catch (error) {
      this.#note(error.message);
    }
  }

  #draw() {
    const total = this.attention?.seconds ?? this.query?.audio?.seconds ?? 0;
    if (total) this.slider.max = String(total);
    const seconds = this.moment ?? Number(this.slider.value);
    element("time").textContent = total ? `${seconds.toFixed(1)} / ${total.toFixed(1)} s` : "";
    if (this.query?.audio) drawWaveform(element("waveform"), this.peaks, total ? seconds / total : 0);
    clear(this.overlay);
    let region = "";
    if (this.attention && this.moment !== null && this.image.naturalWidth) {
      region = `, mostly at the ${this.attention.place(seconds)}`;
      if (element("highlight").checked) drawAttention(this.overlay, this.image, this.attention, seconds);
    }
    this.slider.setAttribute("aria-valuetext", `${seconds.toFixed(1)} of ${total.toFixed(1)} seconds${region}`);
  }
}

function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function metadata(hit) {
  const cosine = hit.measure === "cosine" ? { similarity: `${hit.score.toFixed(3)} (cosine)` } : {};
  const score = hit.measure === "reciprocal-rank" ? { "rank score": `${hit.score.toFixed(4)} (no similarity)` } : cosine;
  const rows = { ...score, name: hit.name, ...(hit.folder && hit.folder !== "." ? { folder: hit.folder } : {}), ...hit.metadata };
  return Object.entries(rows)
    .filter(([, value]) => ["string", "number", "boolean"].includes(typeof value))
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]);
}
