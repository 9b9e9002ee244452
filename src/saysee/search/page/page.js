/** The page: what is asked goes to the service, and what comes back is shown; Back and links lead to it again. */

import { listenToAll } from "./asking.js";
import { element, labelPlayer } from "./elements.js";
import { showHits, showWaiting } from "./results.js";
import { about, person, search } from "./service.js";
import { silence } from "./sound.js";
import { Viewer } from "./viewer.js";
import { inAddress, Query, Visit } from "./visit.js";

const EXPECTED = 12; // hits of an answer, as the service gives them by default
const NOUNS = { image: ["picture", "pictures"], clip: ["clip", "clips"] };

/** What is shown: a query, what was found for it, and the request under way. */
const shown = { query: null, find: null, request: null };
const index = { images: 0, clips: 0, limits: { seconds: 60, bytes: Infinity, text: 1000 } };
const visit = new Visit((query) => go(query, Object.keys(query.answers).at(-1)));
/** Browsers go back later than they are told: until the closed viewer's step is left, this is waiting for that. */
let leaving = null;
const viewer = new Viewer(
  (picture, name) => {
    viewer.leaving = true; // what is found takes the viewer's place in the history
    viewer.close();
    ask(new Query("image", picture, `Similar to ${name}`), "", "image");
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
  person.giveToken = giveToken;
  person.wait = (seconds) => say(`The service is busy. Trying again in ${seconds} s…`);
  window.addEventListener("popstate", returned);
  element("home").addEventListener("click", (event) => {
    event.preventDefault();
    history.pushState(null, "", location.pathname);
    showNothing();
  });
  element("link").addEventListener("click", copyLink);
  element("hear").addEventListener("click", hear);
  element("find").addEventListener("change", (event) => find(event.target.value));
  const asked = inAddress(); // first of all: the address may hold the token
  listenToAll(index.limits, ask, tell, announce);
  try {
    await learn();
    if (asked) await ask(asked.query, "", asked.find);
  } catch (trouble) {
    tell(trouble, () => location.reload());
  }
}

/** Asks what the service holds. */
async function learn() {
  const found = await about();
  Object.assign(index.limits, found.limits);
  Object.assign(index, { images: found.images, clips: found.clips });
  element("text").maxLength = found.limits.text;
  const kinds = [["image", found.images], ["clip", found.clips]];
  const counts = kinds.filter(([, count]) => count).map(([kind, count]) => counted(count, kind));
  element("about").textContent = [found.name, counts.join(", ")].filter(Boolean).join(" · ");
  if (!counts.length) tell(new Error(EMPTY));
}

const EMPTY =
  "This index is empty. Put pictures into it (saysee index MODEL FOLDER --to INDEX), then load this page again.";

// ------------------------------------------------------------------ asking

/**
 * Asks, and shows the answer.
 * @param {Query} query
 * @param {string} why something to be said beside it
 * @param {string | null} kind what to find; null for what is usual
 */
async function ask(query, why = "", kind = null) {
  shown.request?.abort();
  const request = (shown.request = new AbortController());
  hush();
  Object.assign(shown, { query, find: null });
  showQuery(query);
  showWaiting(element("results"), EXPECTED);
  say([why, "Searching…"].filter(Boolean).join(" "));
  try {
    const answer = await search({ [query.kind]: query.content }, kind, request.signal);
    await leaving;
    if (request.signal.aborted) return;
    visit.add(query);
    query.answers[answer.kind] = answer;
    remember(query, answer.kind);
    show(query, answer.kind, why);
  } catch (trouble) {
    if (request.signal.aborted) return;
    showNothing();
    tell(named(trouble, query), trouble.again ? () => ask(query, "", kind) : null);
  }
}

/** Shows what was asked before, as a step of its own. */
function go(query, kind) {
  remember(query, kind);
  show(query, kind);
}

/** The same query again, for the other kind of hits. */
function find(kind) {
  if (shown.query.answers[kind]) go(shown.query, kind);
  else ask(shown.query, "", kind);
}

/** The service cannot know what a file is called, and says how large it is instead. */
function named(trouble, query) {
  const name = query.title.startsWith("What you said") ? "What you said" : query.title;
  trouble.message = trouble.message.replace(/^(audio|image) of [\d,]+ bytes: /, `${name} `);
  return trouble;
}

// ------------------------------------------------------------------ history and links

function remember(query, kind) {
  const [state, address] = [{ key: query.key, find: kind }, query.address(kind)];
  if (location.hash === address || history.state?.viewer) history.replaceState(state, "", address);
  else history.pushState(state, "", address);
}

function returned({ state }) {
  if (leaving) {
    leaving = null; // what lies behind the closed viewer is shown already, or something newer is asked
    return;
  }
  if (viewer.dialog.open && !state?.viewer) {
    viewer.leaving = true;
    viewer.close();
  }
  const query = visit.of(state);
  if (query && query.answers[state.find]) {
    if (query !== shown.query || state.find !== shown.find) show(query, state.find);
    return;
  }
  const asked = inAddress();
  if (asked) ask(asked.query, "", asked.find);
  else showNothing();
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied. Whoever can reach this page finds the same with it.");
  } catch {
    say("Copy the address of this page: it is the link.");
  }
}

// ------------------------------------------------------------------ showing

function show(query, kind, why = "") {
  shown.request?.abort();
  Object.assign(shown, { query, find: kind });
  hush();
  showQuery(query);
  const { hits, milliseconds } = query.answers[kind];
  showHits(element("results"), hits, (place) => {
    history.pushState({ key: query.key, find: kind, viewer: true }, "");
    viewer.open(query, hits, place);
  });
  element("find").hidden = !(index.images && index.clips);
  element("find").querySelector(`[value=${kind}]`).checked = true;
  element("link").hidden = false;
  visit.show(query);
  const found = `${counted(hits.length, kind)}, the best first, in ${Math.round(milliseconds)} ms`;
  if (hits.length) say([why, found].filter(Boolean).join(" "));
  else tellNothingFound(kind);
}

function tellNothingFound(kind) {
  say(`No ${NOUNS[kind][1]} found`);
  const other = kind === "image" ? "clip" : "image";
  const empty = !index.images && !index.clips;
  if (empty) tell(new Error(EMPTY));
  else tell(new Error(`There are no ${NOUNS[kind][1]} in this index.`), () => find(other), `Find ${NOUNS[other][1]}`);
}

/** The head of an answer, as soon as it is asked. */
function showQuery(query) {
  silence();
  labelPlayer(element("hear"), false);
  document.body.classList.add("answered");
  document.title = `${query.title} – SaySee`;
  element("answer").hidden = false;
  element("answer-title").textContent = query.kind === "text" ? `“${query.title}”` : query.title;
  element("hear").hidden = query.sound === null;
  element("shown").hidden = query.preview === null;
  if (query.preview) element("shown").src = query.preview;
  element("find").hidden = element("link").hidden = true;
  element("text").value = query.kind === "text" ? query.content : "";
}

function showNothing() {
  shown.request?.abort();
  Object.assign(shown, { query: null, find: null });
  hush();
  document.body.classList.remove("answered");
  document.title = "SaySee";
  element("answer").hidden = true;
  visit.show(null);
}

async function hear() {
  const { query } = shown;
  query.sound.watch("head", (playing) => query === shown.query && labelPlayer(element("hear"), playing));
  try {
    await query.sound.toggle();
  } catch {
    tell(new Error("This browser cannot play the query, but it was searched with all the same."));
  }
}

const counted = (count, kind) => `${count.toLocaleString("en")} ${NOUNS[kind][count === 1 ? 0 : 1]}`;

// ------------------------------------------------------------------ telling

/** Tells what went wrong; with `act`, offers to try again, or whatever `name` says. */
function tell(trouble, act = null, name = "Try again") {
  element("notice-text").textContent = trouble.message;
  const button = element("notice-action");
  button.hidden = act === null;
  button.textContent = name;
  button.onclick = act;
  element("notice").hidden = false;
}

function hush() {
  element("notice").hidden = true;
}

function say(words) {
  element("status").textContent = words;
  announce(words);
}

function announce(words) {
  element("announcement").textContent = words;
}

function giveToken(wrong) {
  const dialog = element("token");
  if (wrong) element("token-why").textContent = "This token is not the one that the service was started with.";
  element("token-value").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const close = () => resolve(dialog.returnValue === "given" ? element("token-value").value : null);
    dialog.returnValue = "";
    dialog.addEventListener("close", close, { once: true });
    element("token-form").onsubmit = (event) => {
      event.preventDefault(); // the form goes nowhere: the page's policy would say so in the console
      dialog.close("given");
    };
  });
}
