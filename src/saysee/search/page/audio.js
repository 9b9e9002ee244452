/** Playing a query or a clip, one at a time, and drawing its waveform. */

import { clear } from "./attention.js";

const RATE = 16_000; // Hz, as for the model

let playing = null;

/** Pauses what plays. */
export function pauseAll() {
  playing?.pause();
}

/**
 * The audio of a query or clip.
 *
 * It is played as a WAV of its samples: browsers do not know the duration of their own recordings, and cannot seek in
 * some FLAC files. What a browser cannot decode is played as it is.
 */
export class ClipAudio {
  constructor(blob) {
    this.element = new Audio();
    this.samples = new Float32Array(0);
    this.watchers = new Map();
    for (const name of ["play", "pause", "ended"]) {
      this.element.addEventListener(name, () => this.watchers.forEach((act) => act(this.playing)));
    }
    this.ready = this.#load(blob);
  }

  get playing() {
    return !this.element.paused && !this.element.ended;
  }

  /** Calls `act(playing)` when playing starts or stops. Each watcher, by its name, has one such function. */
  watch(watcher, act) {
    this.watchers.set(watcher, act);
  }

  /** Plays from the current moment, or from the start if it has ended; pauses any other. */
  async play() {
    await this.ready;
    if (playing !== this) pauseAll();
    playing = this;
    await this.element.play().catch((error) => {
      if (error.name !== "AbortError") throw error; // else a pause came before it began
    });
  }

  pause() {
    this.element.pause();
  }

  /** Plays or pauses. */
  async toggle() {
    if (this.playing) this.pause();
    else await this.play();
  }

  /** Its length; 0 as long as the browser does not know it. */
  get seconds() {
    return Number.isFinite(this.element.duration) ? this.element.duration : 0;
  }

  /** Seeks to a moment, if the browser can. */
  async seek(seconds) {
    await this.ready;
    if (this.seconds) this.element.currentTime = seconds;
  }

  /** The peaks of equal parts, scaled so that the largest is 1; empty if the audio cannot be decoded. */
  async peaks(parts) {
    await this.ready;
    const { samples } = this;
    const peaks = new Float32Array(samples.length && parts);
    for (let index = 0; index < samples.length; index++) {
      const part = Math.floor((index * parts) / samples.length);
      peaks[part] = Math.max(peaks[part], Math.abs(samples[index]));
    }
    const loudest = Math.max(...peaks, 1e-9);
    return peaks.map((peak) => peak / loudest);
  }

  async #load(blob) {
    try {
      this.samples = mixed(await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer()));
      blob = wav(this.samples);
    } catch {
      // The element may still play it.
    }
    const loaded = new Promise((resolve) => {
      for (const name of ["loadedmetadata", "error"]) this.element.addEventListener(name, resolve, { once: true });
    });
    this.element.src = URL.createObjectURL(blob);
    await loaded;
  }
}

/** The mean of the channels. */
function mixed(decoded) {
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, channel) => decoded.getChannelData(channel));
  return channels[0].map((_, index) => channels.reduce((sum, samples) => sum + samples[index], 0) / channels.length);
}

/** Samples as a 16-bit WAV file. */
function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const write = (at, text) => [...text].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  write(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format chunk
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true); // bytes a second
  view.setUint16(32, 2, true); // bytes a sample
  view.setUint16(34, 16, true); // bits a sample
  write(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, index) => view.setInt16(44 + 2 * index, 32_767 * Math.min(Math.max(sample, -1), 1), true));
  return new Blob([view], { type: "audio/wav" });
}

/** Draws a waveform; the first `share` of it in the color of what has been played. */
export function drawWaveform(canvas, peaks, share) {
  const scale = window.devicePixelRatio;
  const context = clear(canvas);
  const { width, height } = canvas;
  const [ahead, behind] = [canvas.parentElement, canvas].map((colored) => getComputedStyle(colored).color);
  const step = width / Math.max(peaks.length, 1);
  peaks.forEach((peak, index) => {
    const played = (index + 0.5) / peaks.length <= share;
    const tall = Math.max(peak * height * 0.9, 2 * scale);
    context.fillStyle = played ? behind : ahead;
    context.globalAlpha = played ? 1 : 0.45;
    context.fillRect(index * step, (height - tall) / 2, Math.max(step * 0.6, scale), tall);
  });
}
