/** The page: sends queries to the service and shows the results; the browser's history and links lead back to them. */

import { pauseAll } from "./audio.js";
import { element, labelPlayer } from "./elements.js";
import { Examples } from "./examples.js";
import { filterText, listenToFilters, showFilter, splitFilters } from "./filters.js";
import { listenToInputs, showFormats, unheard } from "./inputs.js";
import { light, readyToLight, showTitle } from "./lights.js";
import { Query, queryInAddress, QueryList } from "./queries.js";
import { Grid } from "./results.js";
import { loadAbout, newest, PageError, search, served, user } from "./service.js";
import { Viewer } from "./viewer.js";

const PLACEHOLDERS = 12;
const NOUNS = { image: ["image", "images"], clip: ["clip", "clips"] };
const EMPTY = "This index is empty. Add images (saysee index MODEL FOLDER --to INDEX), then reload this page.";

/** What is shown: a query, the kind of its hits, the filter, the line about them, and the request in progress. */
const shown = { query: null, find: null, filter: "", line: "", request: null };
const queries = new QueryList((query) => go(query, query.latest));
const examples = new Examples(tryExample);
const results = new Grid(element("results"), openResult, (error) => showError(error, () => results.grow()));
const library = new Grid(element("library-list"), openItem, (error) => showError(error, () => library.grow()));
/** Browsers go back later than asked: set from the closing of the viewer until its history entry is left. */
let leaving = null;
const viewer = new Viewer(
  (image, name) => {
    viewer.leaving = true; // the new results replace the viewer in the history
    viewer.close();
    ask(new Query("image", image, `Similar to ${name}`), { find: "image" });
  },
  () => {
    if (history.state?.viewer && !viewer.leaving) {
      leaving = new Promise((done) => window.addEventListener("popstate", done, { once: true }));
      history.back();
    }
    viewer.leaving = false;
  },
);

start();

async function start() {
  user.askToken = askToken;
  window.addEventListener("popstate", returned);
  element("home").addEventListener("click", (event) => {
    event.preventDefault();
    history.pushState(null, "", location.pathname);
    library.found = null;
    showStart();
  });
  element("link").addEventListener("click", copyLink);
  element("hear").addEventListener("click", hear);
  element("find").addEventListener("change", (event) => change({ find: event.target.value }));
  element("speech").addEventListener("change", () => {
    if (shown.query?.audio) ask(new Query("audio", shown.query.content, shown.query.title), { find: shown.find });
  });
  listenToFilters(() => (shown.query ? change({ filter: filterText() }) : showLibrary()));
  const linked = queryInAddress(); // before any request: the address may contain the token
  listenToInputs((query, note) => ask(query, { note }), showError, announce);
  try {
    await loadAbout((seconds) => showError(new PageError(waiting(seconds))));
    showAbout();
    if (linked) await ask(linked.query, linked.view);
    else await showLibrary();
  } catch (error) {
    showError(error, () => location.reload());
  }
}

function showAbout() {
  showFormats();
  element("speech-choice").hidden = served.speech.length < 2;
  if (served.speech.length) [element("speech").value] = served.speech;
  examples.fill();
  element("text").maxLength = served.limits.text;
  const kinds = [["image", served.images], ["clip", served.clips]];
  const counts = kinds.filter(([, count]) => count).map(([kind, count]) => counted(count, kind));
  element("about").textContent = [served.name, counts.join(", ")].filter(Boolean).join(" · ");
  element("trained-on").textContent = served.trained_on
    ? `The model of this index was trained on ${served.trained_on}. For anything else, its results are random.`
    : "";
}

/** The newest images of the index, or clips where it has no images, within the filter. */
async function showLibrary() {
  const [kind, filter] = [served.images ? "image" : "clip", filterText()];
  hideError();
  element("library").hidden = false;
  if (!served.images && !served.clips) {
    element("library").hidden = true;
    showError(new PageError(EMPTY));
    return;
  }
  try {
    const load = (offset) => newest(kind, splitFilters(filter), offset);
    const hits = await load(0);
    if (shown.query || filter !== filterText()) return;
    library.show({ hits, complete: hits.length === 0, load, filter });
    if (!hits.length) showError(new PageError(`No ${NOUNS[kind][0]} matches the filter ${filter}`), clearFilter, "Clear filter");
  } catch (error) {
    showError(error, error.retry ? showLibrary : null);
  }
}

function clearFilter() {
  showFilter("");
  if (shown.query) change({ filter: "" });
  else showLibrary();
}

/** Searches, and shows the answer with a note. `find` is the kind of the hits, "image" or "clip"; null: the default. */
async function ask(query, { note = "", find = null, filter = filterText() } = {}) {
  shown.request?.abort();
  const request = (shown.request = new AbortController());
  hideError();
  if (shown.query === null) {
    Object.assign(shown, { query, find: null, filter });
    showQuery(query, filter);
    results.wait(PLACEHOLDERS);
  }
  element("results").setAttribute("aria-busy", "true"); // the previous results stay until there are others
  showStatus([note, "Searching…"].filter(Boolean).join(" "));
  const filters = splitFilters(filter);
  if (served.speech.length > 1 && ["audio", "file"].includes(query.kind)) query.speech ??= element("speech").value;
  try {
    const wait = (seconds) => showStatus(waiting(seconds));
    const answer = await search(query.fields(), { find, filters }, { signal: request.signal, wait });
    await leaving;
    if (request.signal.aborted) return;
    queries.add(query);
    const view = { find: answer.kind, filters };
    query.keep(answer, filter, async (offset) => {
      return (await search(query.fields(), { ...view, offset })).hits;
    });
    go(query, query.latest, note);
  } catch (error) {
    if (request.signal.aborted) return;
    if (shown.query.answer(shown)) {
      showStatus(shown.line);
      showFilter(filter);
    } else {
      showStart(filter);
    }
    const act = error.retry ? () => ask(query, { find, filter }) : null;
    showError(error, act, "Try again", reason(error, query));
  } finally {
    if (shown.request === request) element("results").removeAttribute("aria-busy");
  }
}

/** Why a query failed; of a recording without speech, what to do about the microphone. */
function reason(error, { microphone, title }) {
  if (microphone === null) return error.about?.(title);
  const what = { silent: "Nothing was heard", "no-speech": "No words were recognized" }[error.code];
  return what ? unheard(what, microphone) : error.about?.("Your recording");
}

/** Searches with an example, and plays it. */
async function tryExample(chosen, find) {
  try {
    const query = await chosen;
    if (query.latest) go(query, query.latest);
    else await ask(query, { find });
    if (query !== shown.query || !query.audio) return;
    await readyToLight(query, results.found.hits);
    if (query !== shown.query) return;
    await query.audio.seek(0);
    await hear();
  } catch (error) {
    showError(error);
  }
}

/** Shows the answer to an earlier query as a new entry of the history. */
function go(query, view, note = "") {
  const [state, address] = [{ key: query.key, ...view }, query.address(view)];
  if (location.hash === address || history.state?.viewer) history.replaceState(state, "", address);
  else history.pushState(state, "", address);
  show(query, view, note);
}

/** The same query with another kind of hits or another filter. */
function change(changed) {
  const { query, find, filter } = { ...shown, ...changed };
  if (query.answer({ find, filter })) go(query, { find, filter });
  else ask(query, { find, filter });
}

function returned({ state }) {
  if (leaving) {
    leaving = null; // the entry behind the closed viewer is shown already, or a newer query is
    return;
  }
  if (viewer.dialog.open && !state?.viewer) {
    viewer.leaving = true;
    viewer.close();
    if (!shown.query) return; // it was an image of the library
  }
  const query = queries.of(state);
  if (query?.answer(state)) {
    if (query !== shown.query || state.find !== shown.find || state.filter !== shown.filter) show(query, state);
    return;
  }
  const linked = queryInAddress();
  if (linked) ask(linked.query, linked.view);
  else showStart();
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    showStatus("Link copied. It shows the same results to anyone with access to this service.");
  } catch {
    showStatus("Copy the address of this page: it is the link.");
  }
}

function openResult(place) {
  const { query, find, filter } = shown;
  const found = query.answer({ find, filter });
  if (!found) return;
  history.pushState({ key: query.key, find, filter, viewer: true }, "");
  viewer.open(query, found.hits, place, () => results.grow());
}

function openItem(place) {
  history.pushState({ viewer: true }, "");
  viewer.open(null, library.found.hits, place, () => library.grow());
}

function show(query, { find, filter }, note = "") {
  shown.request?.abort();
  Object.assign(shown, { query, find, filter });
  hideError();
  showQuery(query, filter);
  const found = query.answer({ find, filter });
  const { hits, milliseconds } = found;
  const { speech, transcript } = found.query;
  element("results").removeAttribute("aria-busy");
  results.show(found);
  element("find").hidden = !(served.images && served.clips);
  element("find").querySelector(`[value=${find}]`).checked = true;
  element("link").hidden = false;
  queries.show(query);
  examples.show(query);
  const kind = NOUNS[find][1];
  const line = `${kind[0].toUpperCase()}${kind.slice(1)}, best first, in ${Math.round(milliseconds)} ms`;
  const way = served.speech.length > 1 && speech && `By ${element("speech").querySelector(`[value=${speech}]`).textContent}`;
  const limited = filter && `Filter: ${filter}`;
  if (transcript) element("text").value = transcript;
  const heard = transcript && `Heard “${transcript}”: correct it in the text field`;
  if (hits.length) showStatus([note, heard, way, line, limited].filter(Boolean).join(" · "));
  else showNothingFound(find, filter);
  shown.line = element("status").textContent;
  showUnused(found.query, transcript ?? query.content);
}

/** Shows what of a text the model did not use: words that it does not know, and all behind its limit. */
function showUnused({ unknown_words: words, used_text: used }, text) {
  const lines = [];
  if (words.length) {
    const all = text.match(/[\p{L}\p{N}’']+/gu)?.length === words.length;
    const result = all ? "so the results are random" : "and ignored them";
    const named = words.map((word) => `“${word}”`).join(", ");
    lines.push(`The model does not know ${named}, ${result}. Use other words, or speak.`);
  }
  if (used) lines.push(`The text is too long for the model. Only the part up to “…${used.slice(-40)}” was used.`);
  if (lines.length) showError(new PageError(lines.join(" ")));
}

function showNothingFound(find, filter) {
  showStatus(`No ${NOUNS[find][1]} found`);
  const other = find === "image" ? "clip" : "image";
  if (filter) {
    showError(new PageError(`No ${NOUNS[find][0]} matches the filter ${filter}`), clearFilter, "Clear filter");
  } else if (!served.images && !served.clips) {
    showError(new PageError(EMPTY));
  } else {
    const message = `There are no ${NOUNS[find][1]} in this index.`;
    showError(new PageError(message), () => change({ find: other }), `Find ${NOUNS[other][1]}`);
  }
}

/** The header of the results, as soon as the search starts. */
function showQuery(query, filter) {
  pauseAll();
  labelPlayer(element("hear"), false);
  document.body.classList.add("answered");
  element("library").hidden = true;
  document.title = `${query.title} – SaySee`;
  element("answer").hidden = false;
  showTitle(query);
  element("hear").hidden = query.audio === null;
  element("query-image").hidden = query.preview === null;
  if (query.preview) element("query-image").src = query.preview;
  element("find").hidden = element("link").hidden = true;
  element("text").value = query.kind === "text" ? query.content : "";
  showFilter(filter);
}

function showStart(filter = "") {
  shown.request?.abort();
  Object.assign(shown, { query: null, find: null, filter: "" });
  hideError();
  document.body.classList.remove("answered");
  document.title = "SaySee";
  element("answer").hidden = true;
  showFilter(filter);
  queries.show(null);
  examples.show(null);
  if (library.found?.filter === filter) element("library").hidden = false;
  else if (served.name) showLibrary();
}

async function hear() {
  const { query } = shown;
  const isShown = () => query === shown.query;
  query.audio.watch("header", (playing) => {
    if (!isShown()) return;
    labelPlayer(element("hear"), playing);
    if (playing && results.found) light(query, results.found.hits, element("results"), isShown);
  });
  try {
    await query.audio.toggle();
  } catch {
    showError(new PageError("This browser cannot play the query; the search is not affected."));
  }
}

const waiting = (seconds) => `The service cannot answer yet. Trying again in ${seconds} s…`;

const counted = (count, kind) => `${count.toLocaleString("en")} ${NOUNS[kind][count === 1 ? 0 : 1]}`;

/** Shows what went wrong, and a button for `act` if given. */
function showError(error, act = null, label = "Try again", text = error.about?.("The query")) {
  element("notice-text").textContent = text ?? error.message;
  element("notice").dataset.code = error.code ?? "";
  const button = element("notice-action");
  button.hidden = act === null;
  button.textContent = label;
  button.onclick = act;
  element("notice").hidden = false;
}

function hideError() {
  element("notice").hidden = true;
}

function showStatus(text) {
  element("status").textContent = text;
  announce(text);
}

function announce(text) {
  element("announcement").textContent = text;
}

function askToken(wrong) {
  const dialog = element("token");
  if (wrong) element("token-reason").textContent = "This is not the token that the service was started with.";
  element("token-value").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const close = () => resolve(dialog.returnValue === "entered" ? element("token-value").value : null);
    dialog.returnValue = "";
    dialog.addEventListener("close", close, { once: true });
    element("token-form").onsubmit = (event) => {
      event.preventDefault(); // the page's policy forbids submitting forms
      dialog.close("entered");
    };
  });
}
