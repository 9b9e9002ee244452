/** Sounds: playing a query or a clip, one at a time, and the shape of its wave. */

const RATE = 16_000; // Hz: what is played is what the model hears

let playing = null;

/** Stops whatever plays. */
export function silence() {
  playing?.pause();
}

/**
 * A sound that can be played, stopped and asked where it is.
 *
 * It is played as a WAV of its samples: browsers do not know how long their own recordings are, and cannot go to a
 * moment of some FLAC files. What a browser cannot decode it may still be able to play as it is.
 */
export class Sound {
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

  /**
   * Calls `act` whenever it begins or ceases to play, in place of what `who` gave before.
   * @param {string} who
   * @param {(playing: boolean) => void} act
   */
  watch(who, act) {
    this.watchers.set(who, act);
  }

  /** Plays from where it stands, or from the beginning if it has ended; stops any other. */
  async play() {
    await this.ready;
    if (playing !== this) silence();
    playing = this;
    await this.element.play();
  }

  pause() {
    this.element.pause();
  }

  /** Plays, or pauses if it plays. */
  async toggle() {
    if (this.playing) this.pause();
    else await this.play();
  }

  /** Goes to a moment, where the browser knows how. */
  async move(seconds) {
    await this.ready;
    if (Number.isFinite(this.element.duration)) this.element.currentTime = seconds;
  }

  /** Its loudness in equal parts, each 0 to 1, the loudest 1; empty if it cannot be decoded. */
  async wave(parts) {
    await this.ready;
    const { samples } = this;
    const found = new Float32Array(samples.length && parts);
    for (let index = 0; index < samples.length; index++) {
      const part = Math.floor((index * parts) / samples.length);
      found[part] = Math.max(found[part], Math.abs(samples[index]));
    }
    const loudest = Math.max(...found, 1e-9);
    return found.map((peak) => peak / loudest);
  }

  async #load(blob) {
    try {
      this.samples = mixed(await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer()));
      blob = wav(this.samples);
    } catch {
      // It is tried as it is.
    }
    const loaded = new Promise((resolve) => {
      for (const name of ["loadedmetadata", "error"]) this.element.addEventListener(name, resolve, { once: true });
    });
    this.element.src = URL.createObjectURL(blob);
    await loaded;
  }
}

/** The mean of a sound's channels. */
function mixed(decoded) {
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, channel) => decoded.getChannelData(channel));
  return channels[0].map((_, index) => channels.reduce((sum, samples) => sum + samples[index], 0) / channels.length);
}

/** Samples as a WAV of 16 bits. */
function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const words = (at, text) => [...text].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  words(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  words(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format
  view.setUint16(20, 1, true); // plain samples
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true); // bytes a second
  view.setUint16(32, 2, true); // bytes a sample
  view.setUint16(34, 16, true); // bits a sample
  words(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, index) => view.setInt16(44 + 2 * index, 32_767 * Math.min(Math.max(sample, -1), 1), true));
  return new Blob([view], { type: "audio/wav" });
}

/** Draws a wave; what lies before `share` of it in the colour of what has been played. */
export function drawWave(canvas, peaks, share) {
  const scale = window.devicePixelRatio;
  const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const colours = { played: style.getPropertyValue("--accent"), ahead: style.getPropertyValue("--ink-soft") };
  const step = width / Math.max(peaks.length, 1);
  peaks.forEach((peak, index) => {
    const played = (index + 0.5) / peaks.length <= share;
    const tall = Math.max(peak * height * 0.9, 2 * scale);
    context.fillStyle = played ? colours.played : colours.ahead;
    context.globalAlpha = played ? 1 : 0.45;
    context.fillRect(index * step, (height - tall) / 2, Math.max(step * 0.6, scale), tall);
  });
}
