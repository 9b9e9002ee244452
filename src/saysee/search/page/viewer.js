/** An image result, large. While the query plays, the regions that each moment attends to are highlighted. */

import { Attention, clear, drawAttention } from "./attention.js";
import { drawWaveform } from "./audio.js";
import { element, labelPlayer, make } from "./elements.js";
import { attention, file } from "./service.js";

const PEAKS = 160;
const SOURCES = {
  fusion: "the attention of the model's fusion encoder",
  similarity: "the similarity of speech frames and image patches (the model has no fusion encoder)",
};

export class Viewer {
  /**
   * @param {(image: Blob, name: string) => void} similar called to search with the image that is shown
   * @param {() => void} closed called after it was closed
   */
  constructor(similar, closed) {
    this.dialog = element("viewer");
    this.image = element("viewer-image");
    this.overlay = element("overlay");
    this.slider = element("moment");
    this.query = null;
    this.moment = null; // seconds; null while nothing is highlighted
    element("viewer-close").addEventListener("click", () => this.close());
    element("viewer-back").addEventListener("click", () => this.#step(-1));
    element("viewer-forward").addEventListener("click", () => this.#step(1));
    element("play").addEventListener("click", () => this.#play());
    element("highlight").addEventListener("change", () => this.#draw());
    element("similar").addEventListener("click", () => this.blob && similar(this.blob, this.hits[this.place].name));
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

  /** Shows the image at a place of a query's hits. */
  open(query, hits, place) {
    if (this.query !== query) this.#setQuery(query);
    this.hits = hits;
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
    element("player").hidden = element("highlight-choice").hidden = query.audio === null;
    if (query.audio === null) return;
    query.audio.watch("viewer", () => this.#changed(query));
    query.audio.peaks(PEAKS).then((peaks) => {
      if (query !== this.query) return;
      this.peaks = peaks;
      this.#draw();
    });
  }

  async #show(place) {
    this.loading?.abort();
    const loading = (this.loading = new AbortController());
    const hit = this.hits[place];
    Object.assign(this, { place, attention: null, moment: null, blob: null });
    element("viewer-name").textContent = this.image.alt = hit.name;
    element("viewer-place").textContent = `${place + 1} of ${this.hits.length} · score ${hit.score.toFixed(3)}`;
    element("viewer-back").disabled = place === 0;
    element("viewer-forward").disabled = place === this.hits.length - 1;
    const known = metadata(hit);
    element("viewer-metadata").replaceChildren(...known);
    element("viewer-more").hidden = known.length === 0;
    this.slider.value = "0";
    this.#draw();
    try {
      await Promise.all([this.#loadImage(hit, loading.signal), this.#loadAttention(hit, loading.signal)]);
      if (!loading.signal.aborted) this.#draw();
    } catch (error) {
      if (error.name !== "AbortError") this.#note(error.message);
    }
  }

  async #loadImage(hit, signal) {
    URL.revokeObjectURL(this.image.src);
    this.image.removeAttribute("src");
    const blob = await file(hit.url, signal);
    this.blob = blob;
    this.image.src = URL.createObjectURL(blob);
    // Browsers cannot show every format that can be indexed, TIFF for one.
    await this.image.decode().catch(async () => {
      this.image.src = URL.createObjectURL(await file(hit.thumbnail, signal));
      await this.image.decode();
    });
  }

  async #loadAttention(hit, signal) {
    const { query } = this;
    if (query.audio === null) {
      this.#note("Search by speaking to see which regions each moment of your words attends to.");
      return;
    }
    if (!query.attention.has(hit.id)) {
      this.#note("Computing which regions each moment of your words attends to…");
      query.attention.set(hit.id, new Attention(await attention(query.content, hit.id, signal)));
    }
    this.attention = query.attention.get(hit.id);
    this.slider.max = String(this.attention.seconds);
    const seen = this.attention.whole ? "" : " The model sees only the part within the dashed line.";
    const how = "Play or drag to highlight the regions that each moment attends to.";
    this.#note(`${how} Computed from ${SOURCES[this.attention.source]}.${seen}`);
  }

  #note(text) {
    element("viewer-note").textContent = text;
  }

  async #play() {
    try {
      await this.query.audio.toggle();
    } catch {
      this.#note("This browser cannot play the query. Drag the slider instead.");
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
    this.query.audio?.pause();
    this.#show(place);
  }

  #key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && event.target !== this.slider) this.#step(by);
  }

  #draw() {
    const seconds = this.moment ?? Number(this.slider.value);
    const total = this.attention?.seconds ?? 0;
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

function metadata(hit) {
  const rows = { ...(hit.folder && hit.folder !== "." ? { folder: hit.folder } : {}), ...hit.metadata };
  return Object.entries(rows)
    .filter(([, value]) => ["string", "number", "boolean"].includes(typeof value))
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]);
}
