/** The filters: their text, and the inputs that write the most common ones into it. */

import { element } from "./elements.js";

const WIDE = "(min-width: 900px)"; // where the filters are always open
const FOLDER = /^folder:/;
const TAKEN = /^taken:(?<from>\d{4}-\d\d-\d\d)?\.\.(?<to>\d{4}-\d\d-\d\d)?$/;

/** Filters of a text, such as "folder:my photos taken:2024-06..2024-08". */
export const splitFilters = (text) => text.trim().split(/\s+(?=[^\s:]+:)/).filter(Boolean);

/** Calls `changed` when the filters are to be applied. */
export function listenToFilters(changed) {
  const wide = matchMedia(WIDE);
  const fold = () => (element("filters").open = wide.matches || Boolean(filterText()));
  wide.addEventListener("change", fold);
  fold();
  element("filter-form").addEventListener("submit", (event) => {
    event.preventDefault();
    showFilter(filterText());
    changed();
  });
  for (const name of ["folder", "from", "to"]) {
    element(name).addEventListener("change", () => {
      showFilter(composed());
      changed();
    });
  }
}

export const filterText = () => element("filter").value.trim();

/** Shows the filters of a text in all inputs. */
export function showFilter(text) {
  const parts = splitFilters(text);
  const taken = parts.map((part) => TAKEN.exec(part)?.groups).find(Boolean);
  element("filter").value = text;
  element("folder").value = (parts.find((part) => FOLDER.test(part)) ?? "").replace(FOLDER, "");
  element("from").value = taken?.from ?? "";
  element("to").value = taken?.to ?? "";
  if (text) element("filters").open = true;
}

function composed() {
  const parts = splitFilters(filterText());
  const shown = [FOLDER, TAKEN].map((kind) => parts.find((part) => kind.test(part)));
  const others = parts.filter((part) => !shown.includes(part));
  const [folder, from, to] = ["folder", "from", "to"].map((name) => element(name).value.trim());
  if (folder) others.unshift(`folder:${folder}`);
  if (from || to) others.push(`taken:${from}..${to}`);
  return others.join(" ");
}
