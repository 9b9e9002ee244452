/** Elements of the page. */

export const element = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {object} properties set on it
 * @param {...(Node | string)} children
 */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

/** One of the drawings at the head of index.html. */
export function icon(name) {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  drawing.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  drawing.append(use);
  return drawing;
}

/** Makes a button say what it does to the query's sound. */
export function labelPlayer(button, playing) {
  button.querySelector("use").setAttribute("href", playing ? "#icon-pause" : "#icon-play");
  button.querySelector(".hidden").textContent = playing ? "Pause the query" : "Play the query";
}
