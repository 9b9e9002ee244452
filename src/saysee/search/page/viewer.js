/** A result, large; while the query plays back, what each moment of it attends to lights up on the picture. */

import { element, labelPlayer, make } from "./elements.js";
import { Attention, clear, drawAttention } from "./overlay.js";
import { attention, file } from "./service.js";
import { drawWave } from "./sound.js";

const WAVE_PARTS = 160;
const SOURCES = {
  fusion: "the attention of the model's fusion encoder",
  similarity: "the similarity of speech frames and picture patches (the model has no fusion encoder to read)",
};

export class Viewer {
  /**
   * @param {(picture: Blob, name: string) => void} similar called to search by the picture that is shown
   * @param {() => void} closed called when it has been closed
   */
  constructor(similar, closed) {
    this.dialog = element("viewer");
    this.picture = element("viewer-picture");
    this.overlay = element("overlay");
    this.slider = element("moment");
    this.query = null;
    this.moment = null; // seconds; null while nothing is lit
    element("viewer-close").addEventListener("click", () => this.close());
    element("viewer-back").addEventListener("click", () => this.#step(-1));
    element("viewer-forward").addEventListener("click", () => this.#step(1));
    element("play").addEventListener("click", () => this.#play());
    element("lit").addEventListener("change", () => this.#draw());
    element("similar").addEventListener("click", () => this.blob && similar(this.blob, this.hits[this.place].name));
    this.slider.addEventListener("input", () => this.#move(Number(this.slider.value)));
    this.dialog.addEventListener("keydown", (event) => this.#key(event));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.close());
    this.dialog.addEventListener("close", () => {
      this.query?.sound?.pause();
      this.loading?.abort();
      closed();
    });
    new ResizeObserver(() => this.dialog.open && this.#draw()).observe(this.overlay);
  }

  /** Shows the picture at a place of a query's hits. */
  open(query, hits, place) {
    if (this.query !== query) this.#take(query);
    this.hits = hits;
    if (!this.dialog.open) this.dialog.showModal();
    this.#show(place);
  }

  close() {
    this.dialog.close();
  }

  // ---------------------------------------------------------------- what is shown

  /** Makes the player one of this query. */
  #take(query) {
    this.query = query;
    this.peaks = new Float32Array(0);
    element("player").hidden = element("lit-choice").hidden = query.sound === null;
    if (query.sound === null) return;
    query.sound.watch("viewer", () => this.#changed(query));
    query.sound.wave(WAVE_PARTS).then((peaks) => {
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
    element("viewer-name").textContent = this.picture.alt = hit.name;
    element("viewer-place").textContent = `${place + 1} of ${this.hits.length} · score ${hit.score.toFixed(3)}`;
    element("viewer-back").disabled = place === 0;
    element("viewer-forward").disabled = place === this.hits.length - 1;
    const known = metadata(hit);
    element("viewer-metadata").replaceChildren(...known);
    element("viewer-more").hidden = known.length === 0;
    this.slider.value = "0";
    this.#draw();
    try {
      await Promise.all([this.#loadPicture(hit, loading.signal), this.#loadAttention(hit, loading.signal)]);
      if (!loading.signal.aborted) this.#draw();
    } catch (trouble) {
      if (trouble.name !== "AbortError") this.#note(trouble.message);
    }
  }

  async #loadPicture(hit, signal) {
    URL.revokeObjectURL(this.picture.src);
    this.picture.removeAttribute("src");
    const blob = await file(hit.url, signal);
    this.blob = blob;
    this.picture.src = URL.createObjectURL(blob);
    // Browsers do not show every kind of picture that can be indexed, TIFF for one.
    await this.picture.decode().catch(async () => {
      this.picture.src = URL.createObjectURL(await file(hit.thumbnail, signal));
      await this.picture.decode();
    });
  }

  async #loadAttention(hit, signal) {
    const { query } = this;
    if (query.sound === null) {
      this.#note("Ask by speaking to see which regions each moment of your words attends to.");
      return;
    }
    if (!query.attention.has(hit.id)) {
      this.#note("Reading where each moment of your words looks…");
      query.attention.set(hit.id, new Attention(await attention(query.content, hit.id, signal)));
    }
    this.attention = query.attention.get(hit.id);
    this.slider.max = String(this.attention.seconds);
    const seen = this.attention.whole ? "" : " The model sees what lies within the dashed line.";
    const how = "Play, or drag: the regions that each moment attends to light up.";
    this.#note(`${how} Read from ${SOURCES[this.attention.source]}.${seen}`);
  }

  #note(text) {
    element("viewer-note").textContent = text;
  }

  // ---------------------------------------------------------------- what moves it

  async #play() {
    try {
      await this.query.sound.toggle();
    } catch {
      this.#note("This browser cannot play the query. Drag the slider instead.");
    }
  }

  #move(seconds) {
    this.query.sound.move(seconds);
    this.moment = seconds;
    this.#draw();
  }

  #changed(query) {
    if (query !== this.query) return;
    const { sound } = query;
    labelPlayer(element("play"), sound.playing);
    if (sound.element.ended) this.moment = null;
    this.#draw();
    if (sound.playing) requestAnimationFrame(() => this.#follow(query));
  }

  #follow(query) {
    if (query !== this.query || !query.sound.playing || !this.dialog.open) return;
    this.moment = query.sound.element.currentTime;
    this.slider.value = String(this.moment);
    this.#draw();
    requestAnimationFrame(() => this.#follow(query));
  }

  #step(by) {
    const place = this.place + by;
    if (place < 0 || place >= this.hits.length) return;
    this.query.sound?.pause();
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
    if (this.query?.sound) drawWave(element("wave"), this.peaks, total ? seconds / total : 0);
    clear(this.overlay);
    let where = "";
    if (this.attention && this.moment !== null && this.picture.naturalWidth) {
      where = `, most at the ${this.attention.place(seconds)}`;
      if (element("lit").checked) drawAttention(this.overlay, this.picture, this.attention, seconds);
    }
    this.slider.setAttribute("aria-valuetext", `${seconds.toFixed(1)} of ${total.toFixed(1)} seconds${where}`);
  }
}

function metadata(hit) {
  const rows = { ...(hit.folder && hit.folder !== "." ? { folder: hit.folder } : {}), ...hit.metadata };
  return Object.entries(rows)
    .filter(([, value]) => ["string", "number", "boolean"].includes(typeof value))
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]);
}
