/** The grid of results. */

import { ClipAudio } from "./audio.js";
import { icon, make } from "./elements.js";
import { file } from "./service.js";

/** Shows placeholders until the results arrive. */
export function showWaiting(list, count) {
  list.replaceChildren(...Array.from({ length: count }, () => make("li", { className: "waiting" })));
}

/**
 * Shows the hits; images appear as they are loaded.
 * @param {HTMLElement} list
 * @param {object[]} hits of an answer
 * @param {(place: number) => void} open called with the place of an image that is chosen
 */
export function showHits(list, hits, open) {
  for (const image of list.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  const best = Math.max(...hits.map((hit) => hit.score), 0.01);
  list.replaceChildren(
    ...hits.map((hit, place) => {
      const tile = hit.kind === "image" ? imageTile(hit, best, () => open(place)) : clipTile(hit, best);
      return make("li", {}, tile);
    }),
  );
}

function imageTile(hit, best, open) {
  const frame = make("span", { className: "frame" });
  const tile = make("button", { type: "button", className: "tile" }, frame, ...caption(hit, best));
  tile.addEventListener("click", open);
  loadImage(hit.thumbnail, frame);
  return tile;
}

async function loadImage(url, frame) {
  const image = make("img", { alt: "" });
  try {
    image.src = URL.createObjectURL(await file(url));
    await image.decode();
    frame.replaceChildren(image);
    requestAnimationFrame(() => image.classList.add("loaded"));
  } catch (error) {
    frame.replaceChildren(make("span", { className: "failure" }, error.message));
  }
}

function clipTile(hit, best) {
  const frame = make("span", { className: "frame" }, icon("play"));
  const text = typeof hit.metadata.text === "string" ? [make("span", { className: "transcript" }, hit.metadata.text)] : [];
  const tile = make("button", { type: "button", className: "tile clip" }, frame, ...caption(hit, best), ...text);
  tile.prepend(make("span", { className: "hidden" }, "Play "));
  let audio = null;
  tile.addEventListener("click", async () => {
    try {
      if (audio === null) {
        audio = new ClipAudio(await file(hit.url));
        audio.watch("tile", (playing) => frame.replaceChildren(icon(playing ? "pause" : "play")));
      }
      await audio.toggle();
    } catch (error) {
      const message = error instanceof DOMException ? "This browser cannot play the clip." : error.message;
      frame.replaceChildren(make("span", { className: "failure", role: "alert" }, message));
    }
  });
  return tile;
}

function caption(hit, best) {
  const bar = make("span");
  bar.style.width = `${Math.max((100 * hit.score) / best, 0)}%`;
  return [
    make(
      "span",
      { className: "caption" },
      make("span", { className: "name", title: hit.name }, hit.name),
      make("span", { className: "score" }, make("span", { className: "hidden" }, "score "), hit.score.toFixed(3)),
    ),
    make("span", { className: "strength" }, bar),
  ];
}
