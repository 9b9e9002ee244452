/** Recording from the microphone, and the level while recording. */

import { PageError } from "./service.js";

const FORMATS = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];
// Speech encoders are trained on unprocessed recordings.
const UNPROCESSED = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
const OTHER_WAYS = "or choose an audio file, or type what you want to see.";
const MESSAGES = {
  NotAllowedError: `The microphone is blocked for this page. Allow it next to the address, and press again; ${OTHER_WAYS}`,
  NotFoundError: `There is no microphone. Connect one, and press again; ${OTHER_WAYS}`,
  NotReadableError: `Another program uses the microphone. Close it, and press again; ${OTHER_WAYS}`,
};

export class Recorder {
  /** Opens the microphone and starts recording. Throws a PageError if that fails. */
  static async start() {
    if (!navigator.mediaDevices || !window.MediaRecorder) {
      const why = "Browsers allow the microphone only on this computer or over https. Open this page that way,";
      throw new PageError(`${why} ${OTHER_WAYS}`);
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: UNPROCESSED });
    } catch (error) {
      throw new PageError(MESSAGES[error.name] ?? `The microphone cannot be opened (${error.message}); ${OTHER_WAYS}`);
    }
    return new Recorder(stream);
  }

  constructor(stream) {
    this.stream = stream;
    const format = FORMATS.find((name) => MediaRecorder.isTypeSupported(name));
    this.recorder = new MediaRecorder(stream, { mimeType: format, audioBitsPerSecond: 64_000 });
    this.parts = [];
    this.recorder.addEventListener("dataavailable", (event) => this.parts.push(event.data));
    this.stopped = new Promise((resolve) => this.recorder.addEventListener("stop", resolve, { once: true }));
    this.context = new AudioContext();
    this.analyser = this.context.createAnalyser();
    this.analyser.fftSize = 1024;
    this.samples = new Float32Array(this.analyser.fftSize);
    this.context.createMediaStreamSource(stream).connect(this.analyser);
    this.context.resume(); // some browsers start it only on request
    this.recorder.start();
    this.started = performance.now();
  }

  /** Of the microphone, as the browser calls it; empty if it does not say. */
  get name() {
    return this.stream.getAudioTracks()[0]?.label ?? "";
  }

  /** Duration of the recording. */
  get seconds() {
    return (performance.now() - this.started) / 1000;
  }

  /** The current level, 0 to 1 for −60 to −10 dB of full scale. */
  level() {
    this.analyser.getFloatTimeDomainData(this.samples);
    const power = this.samples.reduce((sum, sample) => sum + sample * sample, 0) / this.samples.length;
    return Math.min(Math.max((10 * Math.log10(power + 1e-12) + 60) / 50, 0), 1);
  }

  /** Stops, and returns the recording. */
  async finish() {
    if (this.recorder.state !== "inactive") this.recorder.stop(); // disconnecting the microphone stops it too
    await this.stopped;
    this.discard();
    return new Blob(this.parts, { type: this.recorder.mimeType.split(";")[0] });
  }

  /** Stops, and drops the recording. */
  discard() {
    if (this.recorder.state !== "inactive") this.recorder.stop();
    this.stream.getTracks().forEach((track) => track.stop());
    if (this.context.state !== "closed") this.context.close();
  }
}

/** The last seconds of a recording as bars. */
export class Meter {
  constructor(canvas) {
    this.canvas = canvas;
    this.levels = [];
  }

  clear() {
    this.levels = [];
  }

  /** Adds a level and draws; called for each frame. */
  draw(level) {
    const { canvas, levels } = this;
    const context = canvas.getContext("2d");
    const bars = canvas.width / 10;
    levels.push(level);
    levels.splice(0, levels.length - bars);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = getComputedStyle(canvas).color;
    for (const [index, value] of levels.entries()) {
      const height = 4 + value * (canvas.height - 8);
      context.globalAlpha = 0.25 + 0.75 * (index / bars);
      context.beginPath();
      context.roundRect((bars - levels.length + index) * 10 + 3, (canvas.height - height) / 2, 4, height, 2);
      context.fill();
    }
  }
}
