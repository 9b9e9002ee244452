/** The microphone: a recording, its level while it lasts, and the sentences for when there is none. */

import { Trouble } from "./service.js";

const FORMATS = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];
// Speech encoders learn from sound as it was recorded; what calls do to it for the ear only makes it stranger to them.
const AS_IT_IS = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
const OTHER_WAYS = "or choose a sound file, or write what you want to see.";
const REFUSALS = {
  NotAllowedError: `The microphone is not allowed here. Allow it beside the address, and press again; ${OTHER_WAYS}`,
  NotFoundError: `There is no microphone. Plug one in, and press again; ${OTHER_WAYS}`,
  NotReadableError: `The microphone is in use by another program. Close that, and press again; ${OTHER_WAYS}`,
};

export class Recorder {
  /** Opens the microphone and begins. Throws a Trouble where that cannot be. */
  static async begin() {
    if (!navigator.mediaDevices || !window.MediaRecorder) {
      const why = "Browsers give a microphone to pages on this computer or behind https only. Open this page so;";
      throw new Trouble(`${why} ${OTHER_WAYS}`);
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: AS_IT_IS });
    } catch (error) {
      throw new Trouble(REFUSALS[error.name] ?? `The microphone cannot be opened (${error.message}); ${OTHER_WAYS}`);
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
    this.recorder.start();
    this.started = performance.now();
  }

  /** How long it has lasted. */
  get seconds() {
    return (performance.now() - this.started) / 1000;
  }

  /** How loud it is now, 0 to 1: from −60 dB of full scale to −10 dB. */
  level() {
    this.analyser.getFloatTimeDomainData(this.samples);
    const power = this.samples.reduce((sum, sample) => sum + sample * sample, 0) / this.samples.length;
    return Math.min(Math.max((10 * Math.log10(power + 1e-12) + 60) / 50, 0), 1);
  }

  /** Ends it, and gives what was recorded. */
  async finish() {
    if (this.recorder.state !== "inactive") this.recorder.stop(); // a microphone that is pulled out stops it too
    await this.stopped;
    this.discard();
    return new Blob(this.parts, { type: this.recorder.mimeType.split(";")[0] });
  }

  /** Ends it, and forgets it. */
  discard() {
    if (this.recorder.state !== "inactive") this.recorder.stop();
    this.stream.getTracks().forEach((track) => track.stop());
    if (this.context.state !== "closed") this.context.close();
  }
}

/** The last seconds of a recording as bars that rise with its level. */
export class Meter {
  constructor(canvas) {
    this.canvas = canvas;
    this.levels = [];
  }

  clear() {
    this.levels = [];
  }

  /** Adds a level and draws; to be called at each frame. */
  draw(level) {
    const { canvas, levels } = this;
    const context = canvas.getContext("2d");
    const bars = canvas.width / 10;
    levels.push(level);
    levels.splice(0, levels.length - bars);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = getComputedStyle(canvas).getPropertyValue("--live");
    for (const [index, value] of levels.entries()) {
      const height = 4 + value * (canvas.height - 8);
      context.globalAlpha = 0.25 + 0.75 * (index / bars);
      context.beginPath();
      context.roundRect((bars - levels.length + index) * 10 + 3, (canvas.height - height) / 2, 4, height, 2);
      context.fill();
    }
  }
}
