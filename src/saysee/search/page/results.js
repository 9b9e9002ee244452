/** The grid of what was found. */

import { icon, make } from "./elements.js";
import { file } from "./service.js";
import { Sound } from "./sound.js";

/** Empty places, where results will be. */
export function showWaiting(list, count) {
  list.replaceChildren(...Array.from({ length: count }, () => make("li", { className: "waiting" })));
}

/**
 * Fills the grid; pictures come in as they are loaded.
 * @param {HTMLElement} list
 * @param {object[]} hits of the service's answer
 * @param {(place: number) => void} open called with a picture's place when it is chosen
 */
export function showHits(list, hits, open) {
  for (const picture of list.querySelectorAll("img")) URL.revokeObjectURL(picture.src);
  const best = Math.max(...hits.map((hit) => hit.score), 0.01);
  list.replaceChildren(
    ...hits.map((hit, place) => {
      const tile = hit.kind === "image" ? pictureTile(hit, best, () => open(place)) : clipTile(hit, best);
      return make("li", {}, tile);
    }),
  );
}

function pictureTile(hit, best, open) {
  const frame = make("span", { className: "frame" });
  const tile = make("button", { type: "button", className: "tile" }, frame, ...caption(hit, best));
  tile.addEventListener("click", open);
  loadPicture(hit.thumbnail, frame);
  return tile;
}

async function loadPicture(url, frame) {
  const picture = make("img", { alt: "" });
  try {
    picture.src = URL.createObjectURL(await file(url));
    await picture.decode();
    frame.replaceChildren(picture);
    requestAnimationFrame(() => picture.classList.add("there"));
  } catch (trouble) {
    frame.replaceChildren(make("span", { className: "why" }, trouble.message));
  }
}

function clipTile(hit, best) {
  const frame = make("span", { className: "frame" }, icon("play"));
  const said = typeof hit.metadata.text === "string" ? [make("span", { className: "said" }, hit.metadata.text)] : [];
  const tile = make("button", { type: "button", className: "tile clip" }, frame, ...caption(hit, best), ...said);
  tile.prepend(make("span", { className: "hidden" }, "Play "));
  let sound = null;
  tile.addEventListener("click", async () => {
    try {
      if (sound === null) {
        sound = new Sound(await file(hit.url));
        sound.watch("tile", (playing) => frame.replaceChildren(icon(playing ? "pause" : "play")));
      }
      await sound.toggle();
    } catch (trouble) {
      const why = trouble instanceof DOMException ? "This browser cannot play the clip; convert it." : trouble.message;
      frame.replaceChildren(make("span", { className: "why", role: "alert" }, why));
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
