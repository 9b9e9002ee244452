/** Helpers for the elements of the page. */

export const element = (id) => document.getElementById(id);

/** Creates an element with properties and children, which are nodes or text. */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

/** One of the icons at the start of index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Labels a button that plays or pauses the query. */
export function labelPlayer(button, playing) {
  button.querySelector("use").setAttribute("href", playing ? "#icon-pause" : "#icon-play");
  button.querySelector(".hidden").textContent = playing ? "Pause the query" : "Play the query";
}
