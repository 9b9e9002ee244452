/** Attention over a picture: a veil that opens where the moment that is heard looks. */

const SPAN = 0.1; // seconds before and after a moment that are averaged: single frames flicker
const VEIL = { colour: [9, 12, 18], strength: 0.76 };
const OPENING = 0.6; // below 1 also weak light opens the veil so far that what lies there can be seen
const GLOW = { colour: [255, 183, 77], strength: 0.34 };
const PLACES = [
  ["upper left", "top", "upper right"],
  ["left", "middle", "right"],
  ["lower left", "bottom", "lower right"],
];

export class Attention {
  /** @param {object} answer of POST /attention */
  constructor(answer) {
    Object.assign(this, answer);
    this.even = 1 / (this.rows * this.columns);
    // What counts as full light: the strongest that nearly all moments stay below.
    const strongest = this.frames.map((_, frame) => Math.max(...this.#mean(frame))).sort((a, b) => a - b);
    this.full = Math.max(strongest[Math.floor(0.95 * (strongest.length - 1))] ?? 0, this.even * 1.5);
  }

  /** How bright each patch is at a moment, 0 to 1: 0 at an even share of attention or less. */
  at(seconds) {
    const frame = Math.min(Math.max(Math.floor(seconds / this.frame_seconds), 0), this.frames.length - 1);
    return this.#mean(frame).map((weight) => Math.min(Math.max((weight - this.even) / (this.full - this.even), 0), 1));
  }

  /** Where on the picture the brightest patch lies, in words. */
  place(seconds) {
    const light = this.at(seconds);
    const best = light.indexOf(Math.max(...light));
    const [left, top, right, bottom] = this.box;
    const x = left + ((right - left) * ((best % this.columns) + 0.5)) / this.columns;
    const y = top + ((bottom - top) * (Math.floor(best / this.columns) + 0.5)) / this.rows;
    const third = (share) => Math.min(Math.max(Math.floor(3 * share), 0), 2);
    return PLACES[third(y)][third(x)];
  }

  /** Whether the model saw the whole picture. */
  get whole() {
    const [left, top, right, bottom] = this.box;
    return left < 0.01 && top < 0.01 && right > 0.99 && bottom > 0.99;
  }

  #mean(frame) {
    const reach = Math.floor(SPAN / this.frame_seconds);
    const frames = this.frames.slice(Math.max(frame - reach, 0), frame + reach + 1);
    return frames[0].map((_, patch) => frames.reduce((sum, weights) => sum + weights[patch], 0) / frames.length);
  }
}

/**
 * Draws a moment over a picture that is shown whole and centred in the canvas's own place.
 * @param {HTMLCanvasElement} canvas
 * @param {HTMLImageElement} picture
 * @param {Attention} attention
 * @param {number} seconds the moment
 */
export function drawAttention(canvas, picture, attention, seconds) {
  const context = clear(canvas);
  const scale = Math.min(canvas.width / picture.naturalWidth, canvas.height / picture.naturalHeight);
  const [width, height] = [picture.naturalWidth * scale, picture.naturalHeight * scale];
  const [x, y] = [(canvas.width - width) / 2, (canvas.height - height) / 2];
  const [left, top, right, bottom] = attention.box;
  const grid = [x + left * width, y + top * height, (right - left) * width, (bottom - top) * height];
  const light = attention.at(seconds);

  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  const outside = new Path2D();
  outside.rect(x, y, width, height);
  outside.rect(...grid);
  context.fillStyle = `rgb(${VEIL.colour.join(" ")} / ${100 * VEIL.strength}%)`;
  context.fill(outside, "evenodd");
  context.beginPath();
  context.rect(...grid);
  context.clip();
  drawPatches(context, attention, patches(attention, light, VEIL, (value) => 1 - value ** OPENING), grid);
  context.globalCompositeOperation = "overlay";
  drawPatches(context, attention, patches(attention, light, GLOW, (value) => value), grid);
  context.globalCompositeOperation = "source-over";
  context.filter = "none";
  if (!attention.whole) {
    context.setLineDash([8, 8]);
    context.lineWidth = 2;
    context.strokeStyle = "rgb(255 255 255 / 75%)";
    context.strokeRect(...grid);
  }
  context.restore();
}

/** Empties a canvas, and makes it as fine as the screen. */
export function clear(canvas) {
  canvas.width = canvas.clientWidth * window.devicePixelRatio;
  canvas.height = canvas.clientHeight * window.devicePixelRatio;
  return canvas.getContext("2d");
}

/** A picture of one pixel a patch, with its border once more around it. */
function patches({ rows, columns }, light, { colour, strength }, opacity) {
  const small = new OffscreenCanvas(columns + 2, rows + 2);
  const pixels = new ImageData(columns + 2, rows + 2);
  const within = (place, count) => Math.min(Math.max(place - 1, 0), count - 1);
  for (let pixel = 0; pixel < pixels.width * pixels.height; pixel++) {
    const row = within(Math.floor(pixel / pixels.width), rows);
    const value = light[row * columns + within(pixel % pixels.width, columns)];
    pixels.data.set([...colour, 255 * strength * opacity(value)], 4 * pixel);
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  return small;
}

/** Scales it up to a grid of patches, softly; the border keeps the blur's own edge outside. */
function drawPatches(context, { rows, columns }, small, [x, y, width, height]) {
  const [wide, tall] = [width / columns, height / rows];
  context.imageSmoothingQuality = "high";
  context.filter = `blur(${0.3 * Math.min(wide, tall)}px)`;
  context.drawImage(small, x - wide, y - tall, width + 2 * wide, height + 2 * tall);
}
