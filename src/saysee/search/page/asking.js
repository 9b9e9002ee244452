/** The ways to ask: holding or clicking the microphone, writing, and giving a file by hand, drop or clipboard. */

import { element } from "./elements.js";
import { Meter, Recorder } from "./recorder.js";
import { Trouble } from "./service.js";
import { Query } from "./visit.js";

const HOLD = 400; // ms: a longer press is held while speaking, a shorter one is a click
const SPARE = 0.5; // seconds kept free below the limit: recordings come out a little longer than they lasted
const QUIET = { seconds: 2.5, level: 0.08 }; // from when on, and below what, nothing counts as heard
const SUFFIXES = {
  audio: /\.(wav|flac|ogg|opus|mp3|webm|weba|m4a|mp4|aac)$/i,
  image: /\.(png|jpe?g|webp|gif|bmp|tiff?)$/i,
};
const HINT = element("microphone-hint").textContent;

/**
 * Listens to every way to ask.
 * @param {{seconds: number, bytes: number}} limits of the service
 * @param {(query: Query) => void} ask
 * @param {(trouble: Trouble) => void} tell
 * @param {(words: string) => void} announce to those who do not see the page
 */
export function listenToAll(limits, ask, tell, announce) {
  element("write").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = element("text").value.trim();
    if (text) ask(new Query("text", text, text));
  });
  const give = (file) => {
    try {
      ask(fromFile(file, limits));
    } catch (trouble) {
      tell(trouble);
    }
  };
  listenToFiles(give);
  new Microphone(limits, ask, tell, announce);
}

function fromFile(file, limits) {
  const kind = ["audio", "image"].find((name) => file.type.startsWith(`${name}/`) || SUFFIXES[name].test(file.name));
  if (!kind) {
    throw new Trouble(`${file.name} is neither a sound nor a picture. Choose a WAV, MP3, JPEG, PNG or the like.`);
  }
  if (file.size > limits.bytes) {
    const most = Number((limits.bytes / 2 ** 20).toPrecision(2));
    const why = `${file.name} has over ${most} MB, the most that is taken here.`;
    throw new Trouble(`${why} Make it smaller, or choose another.`);
  }
  return new Query(kind, file, file.name || (kind === "image" ? "A picture" : "A sound"));
}

function listenToFiles(give) {
  const chooser = element("file");
  chooser.accept = "audio/*,image/*,video/webm,video/mp4";
  element("choose").addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", () => {
    if (chooser.files.length) give(chooser.files[0]);
    chooser.value = ""; // the same file may be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) give(event.clipboardData.files[0]);
  });
  const carriesFile = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!carriesFile(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) give(event.dataTransfer.files[0]);
  });
}

class Microphone {
  constructor(limits, ask, tell, announce) {
    Object.assign(this, { limits, ask, tell, announce });
    this.button = element("microphone");
    this.meter = new Meter(element("meter"));
    this.recorder = null;
    this.opening = null; // a token of the attempt under way
    this.held = false;
    this.pressed = 0;
    this.#listen();
  }

  #listen() {
    const { button } = this;
    let pressed = false; // a click that follows a press has been done already
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId);
      pressed = true;
      this.#press();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      button.addEventListener(name, () => {
        this.#release();
        setTimeout(() => (pressed = false)); // behind the click
      });
    }
    for (const [name, act] of [["keydown", () => this.#press()], ["keyup", () => this.#release()]]) {
      button.addEventListener(name, (event) => {
        if (![" ", "Enter"].includes(event.key)) return;
        event.preventDefault(); // so that no click comes of it
        if (!event.repeat) act();
      });
    }
    button.addEventListener("click", () => {
      if (pressed) return;
      this.#press(); // by a screen reader or a voice, which hold nothing
      this.#release();
    });
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // of a long touch
    element("discard").addEventListener("click", () => this.discard());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.discard());
    window.addEventListener("pagehide", () => this.discard());
  }

  #press() {
    this.held = true;
    this.pressed = performance.now();
    if (this.recorder) this.#finish("");
    else if (!this.opening) this.#begin();
  }

  #release() {
    const long = performance.now() - this.pressed > HOLD;
    if (this.held && long && this.recorder && this.recorder.seconds > HOLD / 1000) this.#finish("");
    this.held = false;
  }

  async #begin() {
    const opening = (this.opening = {});
    try {
      const recorder = await Recorder.begin();
      if (this.opening !== opening) {
        recorder.discard();
        return;
      }
      this.recorder = recorder;
      recorder.stream.getAudioTracks()[0].addEventListener("ended", () => {
        if (this.recorder === recorder) this.#finish("The microphone went away; searching with what was said.");
      });
      this.loudest = 0;
      this.meter.clear();
      this.#show(true);
      this.announce("Recording");
      this.#watch(recorder);
    } catch (trouble) {
      if (this.opening === opening) this.tell(trouble);
    } finally {
      if (this.opening === opening) this.opening = null;
    }
  }

  #watch(recorder) {
    if (this.recorder !== recorder) return;
    const level = recorder.level();
    this.loudest = Math.max(this.loudest, level);
    this.meter.draw(level);
    this.button.style.setProperty("--level", level.toFixed(3));
    const { seconds } = recorder;
    const quiet = seconds > QUIET.seconds && this.loudest < QUIET.level;
    const how = this.held ? "Release to search." : "Click again to search.";
    element("microphone-hint").textContent = quiet
      ? "Nothing is heard. Is the microphone muted, or is it another one?"
      : `Listening, ${clock(seconds)}. ${how}`;
    if (seconds > Math.max(this.limits.seconds - SPARE, SPARE)) {
      this.#finish(`Longer than ${this.limits.seconds} s is not taken; searching with what was said so far.`);
      return;
    }
    requestAnimationFrame(() => this.#watch(recorder));
  }

  async #finish(why) {
    const { recorder } = this;
    const seconds = Math.max(recorder.seconds, 0.1).toFixed(1);
    this.recorder = null;
    this.held = false;
    this.#show(false);
    const blob = await recorder.finish();
    this.ask(new Query("audio", blob, `What you said, ${seconds} s`), why);
  }

  /** Stops, and forgets what was said. */
  discard() {
    this.opening = null;
    if (!this.recorder) return;
    this.recorder.discard();
    this.recorder = null;
    this.#show(false);
    this.announce("Discarded");
  }

  #show(recording) {
    document.body.classList.toggle("recording", recording);
    element("discard").hidden = !recording;
    this.button.querySelector("use").setAttribute("href", recording ? "#icon-send" : "#icon-microphone");
    element("microphone-label").textContent = recording ? "Stop and search" : "Speak";
    if (!recording) {
      element("microphone-hint").textContent = HINT;
      this.button.style.setProperty("--level", "0");
    }
  }
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
