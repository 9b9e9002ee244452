/** The ways to enter a query: holding or clicking the microphone, typing, and choosing, dropping or pasting a file. */

import { element } from "./elements.js";
import { Query } from "./queries.js";
import { Meter, Recorder } from "./recorder.js";
import { megabytes, PageError, served } from "./service.js";

const HOLD = 400; // ms: a longer press is held while speaking, a shorter one is a click
const MARGIN = 0.5; // seconds below the limit: recordings last a little longer than they were timed
const QUIET = { seconds: 2.5, level: 0.08 }; // after this time, a lower level means that nothing is heard
const HINT = element("microphone-hint").textContent;

/** Calls `ask(query, note)` or `showError(error)` for every way to enter a query; `announce` is to screen readers. */
export function listenToInputs(ask, showError, announce) {
  element("write").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = element("text").value.trim();
    if (text) ask(new Query("text", text, text));
  });
  listenToFiles((file) => {
    try {
      ask(fromFile(file));
    } catch (error) {
      showError(error);
    }
  });
  new Microphone(ask, showError, announce);
}

/** Suffixes of the files that can be queries, for the file chooser. */
export function showFormats() {
  element("file").accept = ["audio/*", "image/*", ...served.formats.clip, ...served.formats.image].join(",");
}

function fromFile(file) {
  if (file.size > served.limits.bytes) {
    const message = `${file.name} is larger than ${megabytes(served.limits.bytes)}, the limit of this service.`;
    throw new PageError(`${message} Make it smaller, or choose another.`);
  }
  return new Query("file", file, file.name || "Pasted file"); // its content says what it is, not its name
}

function listenToFiles(take) {
  const chooser = element("file");
  element("choose").addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", () => {
    if (chooser.files.length) take(chooser.files[0]);
    chooser.value = ""; // the same file may be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event.clipboardData.files[0]);
  });
  const hasFile = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!hasFile(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}

class Microphone {
  constructor(ask, showError, announce) {
    Object.assign(this, { ask, showError, announce });
    this.button = element("microphone");
    this.meter = new Meter(element("meter"));
    this.recorder = null;
    this.opening = null; // identifies the attempt to open the microphone
    this.held = false;
    this.pressed = 0;
    this.#listen();
  }

  #listen() {
    const { button } = this;
    let pressed = false; // a click after a press has been handled
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId);
      pressed = true;
      this.#press();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      button.addEventListener(name, () => {
        this.#release();
        setTimeout(() => (pressed = false)); // after the click
      });
    }
    for (const [name, act] of [["keydown", () => this.#press()], ["keyup", () => this.#release()]]) {
      button.addEventListener(name, (event) => {
        if (![" ", "Enter"].includes(event.key)) return;
        event.preventDefault(); // no click follows
        if (!event.repeat) act();
      });
    }
    button.addEventListener("click", () => {
      if (pressed) return;
      this.#press(); // by a screen reader or voice control, which cannot hold
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
    else if (!this.opening) this.#start();
  }

  #release() {
    const long = performance.now() - this.pressed > HOLD;
    if (this.held && long && this.recorder && this.recorder.seconds > HOLD / 1000) this.#finish("");
    this.held = false;
  }

  async #start() {
    const opening = (this.opening = {});
    try {
      const recorder = await Recorder.start();
      if (this.opening !== opening) {
        recorder.discard();
        return;
      }
      this.recorder = recorder;
      recorder.stream.getAudioTracks()[0].addEventListener("ended", () => {
        if (this.recorder === recorder) this.#finish("The microphone was disconnected; searching with the recording.");
      });
      Object.assign(this, { loudest: 0, quiet: false });
      this.meter.clear();
      this.#show(true);
      this.announce("Recording");
      this.#watch(recorder);
    } catch (error) {
      if (this.opening === opening) this.showError(error);
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
    if (quiet && !this.quiet) this.announce(unheard("Nothing is heard", recorder.name));
    this.quiet = quiet;
    element("microphone-hint").textContent = quiet
      ? unheard("Nothing is heard", recorder.name)
      : `Recording, ${clock(seconds)}. ${this.held ? "Release to search." : "Click again to search."}`;
    const limit = served.limits.seconds;
    if (seconds > Math.max(limit - MARGIN, MARGIN)) {
      this.#finish(`The limit is ${limit} s; searching with the recording until here.`);
      return;
    }
    requestAnimationFrame(() => this.#watch(recorder));
  }

  async #finish(note) {
    const { recorder } = this;
    const seconds = Math.max(recorder.seconds, 0.1).toFixed(1);
    this.recorder = null;
    this.held = false;
    this.#show(false);
    const query = new Query("audio", await recorder.finish(), `Your recording, ${seconds} s`);
    query.microphone = recorder.name;
    if (this.loudest >= QUIET.level) this.ask(query, note);
    else this.showError(new PageError(unheard("Nothing was heard", recorder.name)), () => this.ask(query, note), "Search anyway");
  }

  /** Stops, and drops the recording. */
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

/** What to do where nothing, or no word, was heard from the microphone of this name, which may be empty. */
export const unheard = (what, name) =>
  `${what} from the microphone${name && ` “${name}”`}. Check that it is the right one and not muted, and speak closer to it.`;

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
