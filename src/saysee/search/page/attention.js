/** Attention over an image: it is darkened except where the current moment of speech attends to. */

const SPAN = 0.1; // seconds averaged before and after a moment, as single frames flicker
const SHADE = { color: [9, 12, 18], strength: 0.76 };
const GAMMA = 0.6; // below 1, so that weak attention brightens a patch enough to see it
const GLOW = { color: [255, 183, 77], strength: 0.34 };
const PLACES = [
  ["upper left", "top", "upper right"],
  ["left", "middle", "right"],
  ["lower left", "bottom", "lower right"],
];

export class Attention {
  /** @param {object} answer of POST /attention */
  constructor(answer) {
    Object.assign(this, answer);
    this.uniform = 1 / (this.rows * this.columns);
    // Full brightness: the 95th percentile of the strongest patch of each moment.
    const strongest = this.frames.map((_, frame) => Math.max(...this.#mean(frame))).sort((a, b) => a - b);
    this.full = Math.max(strongest[Math.floor(0.95 * (strongest.length - 1))] ?? 0, this.uniform * 1.5);
  }

  /** Brightness of each patch at a moment, 0 to 1; 0 for a uniform share of attention or less. */
  at(seconds) {
    const frame = Math.min(Math.max(Math.floor(seconds / this.frame_seconds), 0), this.frames.length - 1);
    return this.#mean(frame).map((weight) => Math.min(Math.max((weight - this.uniform) / (this.full - this.uniform), 0), 1));
  }

  /** The part of the image with the brightest patch, in words. */
  place(seconds) {
    const brightness = this.at(seconds);
    const best = brightness.indexOf(Math.max(...brightness));
    const [left, top, right, bottom] = this.box;
    const x = left + ((right - left) * ((best % this.columns) + 0.5)) / this.columns;
    const y = top + ((bottom - top) * (Math.floor(best / this.columns) + 0.5)) / this.rows;
    const third = (share) => Math.min(Math.max(Math.floor(3 * share), 0), 2);
    return PLACES[third(y)][third(x)];
  }

  /** Whether the model saw the whole image. */
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

/** Draws a moment over an image that is centered behind the canvas; with Math.max as `fit` its edges are cut. */
export function drawAttention(canvas, image, attention, seconds, fit = Math.min) {
  const context = clear(canvas);
  const scale = fit(canvas.width / image.naturalWidth, canvas.height / image.naturalHeight);
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  const [x, y] = [(canvas.width - width) / 2, (canvas.height - height) / 2];
  const [left, top, right, bottom] = attention.box;
  const grid = [x + left * width, y + top * height, (right - left) * width, (bottom - top) * height];
  const brightness = attention.at(seconds);

  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  const outside = new Path2D();
  outside.rect(x, y, width, height);
  outside.rect(...grid);
  context.fillStyle = `rgb(${SHADE.color.join(" ")} / ${100 * SHADE.strength}%)`;
  context.fill(outside, "evenodd");
  context.beginPath();
  context.rect(...grid);
  context.clip();
  drawPatches(context, attention, patches(attention, brightness, SHADE, (value) => 1 - value ** GAMMA), grid);
  context.globalCompositeOperation = "overlay";
  drawPatches(context, attention, patches(attention, brightness, GLOW, (value) => value), grid);
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

/** Clears a canvas, and gives it the resolution of the screen. */
export function clear(canvas) {
  canvas.width = canvas.clientWidth * window.devicePixelRatio;
  canvas.height = canvas.clientHeight * window.devicePixelRatio;
  return canvas.getContext("2d");
}

/** An image with one pixel a patch, and its border repeated around it. */
function patches({ rows, columns }, brightness, { color, strength }, opacity) {
  const small = new OffscreenCanvas(columns + 2, rows + 2);
  const pixels = new ImageData(columns + 2, rows + 2);
  const within = (place, count) => Math.min(Math.max(place - 1, 0), count - 1);
  for (let pixel = 0; pixel < pixels.width * pixels.height; pixel++) {
    const row = within(Math.floor(pixel / pixels.width), rows);
    const value = brightness[row * columns + within(pixel % pixels.width, columns)];
    pixels.data.set([...color, 255 * strength * opacity(value)], 4 * pixel);
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  return small;
}

/** Scales it up to the grid of patches with a blur, whose edge falls on the repeated border. */
function drawPatches(context, { rows, columns }, small, [x, y, width, height]) {
  const [wide, tall] = [width / columns, height / rows];
  context.imageSmoothingQuality = "high";
  context.filter = `blur(${0.3 * Math.min(wide, tall)}px)`;
  context.drawImage(small, x - wide, y - tall, width + 2 * wide, height + 2 * tall);
}
