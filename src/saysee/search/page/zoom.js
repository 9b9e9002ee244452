/** Zooming into an image: by the wheel, two fingers, a double click, keys and a button; and moving it around. */

const MOST = 8;
const STEP = 2;
const MOVE = 60; // pixels that an arrow key moves the image

export class Zoom {
  /** The stage is what is seen of the image, the layer, as large, the image with everything on it. */
  constructor(stage, layer, changed) {
    Object.assign(this, { stage, layer, changed });
    this.fingers = new Map();
    this.reset();
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.by(Math.exp(-event.deltaY / 400), event);
    });
    layer.addEventListener("dblclick", (event) => (this.scale > 1 ? this.reset() : this.by(STEP, event)));
    layer.addEventListener("pointerdown", (event) => {
      layer.setPointerCapture(event.pointerId);
      this.fingers.set(event.pointerId, event);
    });
    layer.addEventListener("pointermove", (event) => this.#drag(event));
    for (const name of ["pointerup", "pointercancel"]) {
      layer.addEventListener(name, (event) => this.fingers.delete(event.pointerId));
    }
  }

  reset() {
    Object.assign(this, { scale: 1, x: 0, y: 0 });
    this.#apply();
  }

  /** Scales by a factor around a point of the screen; by default around the middle. */
  by(factor, { clientX, clientY } = {}) {
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    const scale = Math.min(Math.max(this.scale * factor, 1), MOST);
    const [dx, dy] = clientX === undefined ? [0, 0] : [clientX - left - width / 2, clientY - top - height / 2];
    this.x = dx - ((dx - this.x) * scale) / this.scale;
    this.y = dy - ((dy - this.y) * scale) / this.scale;
    this.scale = scale;
    this.#apply();
  }

  /** Handles a key; returns whether it was one of these. */
  key(name) {
    const factor = { "+": STEP, "=": STEP, "-": 1 / STEP }[name];
    const move = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[name];
    if (factor) this.by(factor);
    else if (name === "0") this.reset();
    else if (move && this.scale > 1) this.#move(...move.map((part) => part * MOVE));
    else return false;
    return true;
  }

  #drag(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return;
    const other = [...this.fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      this.by(apart(event) / Math.max(apart(before), 1), other);
    } else if (this.scale > 1) {
      this.#move(event.clientX - before.clientX, event.clientY - before.clientY);
    }
    this.fingers.set(event.pointerId, event);
  }

  #move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.#apply();
  }

  #apply() {
    const { clientWidth, clientHeight } = this.stage;
    const within = (value, size) => Math.min(Math.max(value, (-size * (this.scale - 1)) / 2), (size * (this.scale - 1)) / 2);
    this.x = within(this.x, clientWidth);
    this.y = within(this.y, clientHeight);
    this.layer.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.stage.classList.toggle("zoomed", this.scale > 1);
    this.changed(this.scale);
  }
}
