/** While the query plays, the current word of its title and the regions of the first results that it attends to light up. */

import { drawAttention } from "./attention.js";
import { element, make } from "./elements.js";
import { sources } from "./service.js";

const LIT = 5; // results: about a row; each takes one run of the model, and then fifty
const PATIENCE = 4000; // ms that playing waits for the first of them

/** The title of a query; its words are marked while they are heard, where it is known when. */
export function showTitle(query) {
  const title = element("answer-title");
  const parts = query.title.split(/(\s+)/);
  const quoted = query.kind === "text" || query.example?.kind === "clip";
  const words = query.words?.length === Math.ceil(parts.length / 2) ? query.words : null;
  const spans = parts.map((part, place) => (words && place % 2 === 0 ? make("span", {}, part) : part));
  title.replaceChildren(...(quoted ? ["“", ...spans, "”"] : spans));
}

/** Resolves when the first result can light up, or waiting for that takes too long. */
export async function readyToLight(query, hits) {
  const first = load(query, hits.slice(0, 1), new Map(), () => true, sources().slice(0, 1));
  await Promise.race([first, new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
}

/** Lights up what plays in the title and in the `hits` that `list` shows, until it stops or `isShown()` is false. */
export function light(query, hits, list, isShown) {
  const lit = new Map();
  load(query, hits.slice(0, LIT), lit, isShown);
  const draw = () => {
    const playing = query.audio.playing && isShown();
    const seconds = query.audio.element.currentTime;
    for (const [place, attention] of lit) drawTile(list.children[place], playing ? attention : null, seconds);
    const { words } = query;
    const spans = element("answer-title").children;
    if (isShown()) {
      [...spans].forEach((span, place) => {
        const { start, end } = words[place];
        span.classList.toggle("spoken", playing && start <= seconds && seconds < end);
      });
    }
    if (playing) requestAnimationFrame(draw);
  };
  draw();
}

/** Fills `lit` by the quickest source for all hits, then by the best. */
async function load(query, hits, lit, isShown, by = sources()) {
  for (const source of by) {
    for (const [place, hit] of hits.entries()) {
      if (hit.kind !== "image" || !isShown()) return;
      try {
        lit.set(place, await query.attentionTo(hit, source));
      } catch {
        return; // the viewer names the reason
      }
    }
  }
}

function drawTile(tile, attention, seconds) {
  const image = tile?.querySelector("img.loaded");
  if (!image) return;
  let canvas = tile.querySelector("canvas");
  if (attention === null) {
    canvas?.remove();
    return;
  }
  if (!canvas) image.after((canvas = make("canvas", { ariaHidden: "true" })));
  drawAttention(canvas, image, attention, seconds, Math.max);
}
