/** Requests to the service. Every failure is a PageError, whose message is chosen by the code of the answer. */

const TOKEN_KEY = "saysee-token";
const MAX_TRIES = 4;
const MAX_WAIT = 30; // seconds

/** What the service holds and accepts, as GET /about describes it; filled by `loadAbout`. */
export const served = {
  name: "",
  trained_on: null,
  images: 0,
  clips: 0,
  speech: [],
  attention: null,
  examples: [],
  limits: { bytes: Infinity, seconds: 60, pixels: Infinity, k: 100, text: 1000 },
  formats: { image: [], clip: [] },
};

const PAGE = 24; // items that are loaded together
const MOST_SMALL = 2000; // small images that are kept in memory, some 30 MB

/** What to do about each code; `name` is what was sent, `detail` the answer's line, which other codes show. */
const MESSAGES = {
  busy: () => "The service is busy. Try again in a minute.",
  empty: (name) => `${name} is empty. Copy or record it again.`,
  "file-gone": () => "The file of this result was moved, deleted or changed. Update the index with saysee index.",
  "index-unavailable": () => "The index cannot be read at the moment. Try again in a minute.",
  "invalid-vector": () => "This link is incomplete or belongs to another index. Speak, type or choose the query again.",
  "no-speech": (name) => `No words were recognized in ${name}. Speak closer to the microphone.`,
  "no-speech-encoder": () =>
    "The model of this index does not understand speech. Type, or start the service with --recognizer.",
  "no-recognizer": () => "This service has no speech recognizer. Start it with --recognizer.",
  "no-text-encoder": () => "The model of this index does not understand text. Speak, or choose a file.",
  "not-finite": (name) => `The model cannot encode ${name}. Record or save it again.`,
  silent: (name) => `${name} is silent. Check the microphone, or choose another file.`,
  "too-large": (name) => {
    const pixels = Math.round(served.limits.pixels / 1e6);
    return `${name} is too large. The limits are ${megabytes(served.limits.bytes)} and ${pixels} megapixels.`;
  },
  "too-long": (name) => `${name} is longer than ${served.limits.seconds} s. Shorten it, or choose another.`,
  "too-short": (name) => `${name} is too short. Record it again.`,
  truncated: (name) => `${name} is damaged or incomplete. Copy or record it again.`,
  undecodable: (name, detail) => `${name} ${detail.replace(/^\w+ of [\d,]+ bytes: /, "")}`,
};

export class PageError extends Error {
  /** With code and line of the service's answer, and whether the same request may succeed later. */
  constructor(message, { code = null, detail = "", retry = false } = {}) {
    super(message);
    Object.assign(this, { code, detail, retry });
  }

  /** The message, about the file or recording called `name`. */
  about(name) {
    return MESSAGES[this.code]?.(name, this.detail) ?? this.message;
  }
}

/** Set by the page: asks the user for the token; resolves to null if there is none. */
export const user = {
  /** @type {(wrong: boolean) => Promise<string | null>} */
  askToken: async () => null,
};

export const megabytes = (bytes) => `${Number((bytes / 2 ** 20).toPrecision(2))} MB`;

/** Keeps a token for this tab; false if no service has such a one, and a header could not carry it. */
export function keepToken(token) {
  const possible = /^[\x21-\x7e]+$/.test(token);
  if (possible) sessionStorage.setItem(TOKEN_KEY, token);
  return possible;
}

/** Fills `served`; calls `wait(seconds)` before it tries again. */
export async function loadAbout(wait) {
  Object.assign(served, await (await request("about", {}, wait)).json());
}

/**
 * Searches by the fields of a query for a kind of hits (null: the default), skipping the first `offset`. It calls
 * `wait(seconds)` before it tries again.
 */
export async function search(query, { find, filters, offset = 0 }, { signal, wait } = {}) {
  const form = new FormData();
  for (const [name, value] of Object.entries(query)) {
    form.append(name, value, ...(value instanceof Blob ? ["query"] : []));
  }
  if (find) form.append("kind", find);
  for (const filter of filters) form.append("filter", filter);
  form.append("k", String(Math.min(PAGE, served.limits.k)));
  form.append("offset", String(offset));
  return (await request("search", { method: "POST", body: form, signal }, wait)).json();
}

/** The items of the newest files, as of a search. */
export async function newest(kind, filters, offset) {
  const fields = new URLSearchParams({ kind, k: String(Math.min(PAGE, served.limits.k)), offset: String(offset) });
  for (const filter of filters) fields.append("filter", filter);
  return (await (await request(`items?${fields}`, {})).json()).items;
}

/** The sources of attention, the quickest first and the best last; none where the model has no speech encoder. */
export const sources = () => (served.attention ? [...new Set([served.attention, "interaction"])] : []);

export async function attention(audio, id, source, signal) {
  const form = new FormData();
  form.append("audio", audio, "query");
  form.append("id", String(id));
  form.append("source", source);
  return (await request("attention", { method: "POST", body: form, signal })).json();
}

/** A file of the index as a blob. */
export const file = async (url, signal) => (await request(url.replace(/^\//, ""), { signal })).blob();

const kept = new Map();

/** The address of a small image that is in memory. */
export function small(url) {
  if (!kept.has(url)) {
    const address = file(url).then((blob) => URL.createObjectURL(blob));
    kept.set(url, address);
    address.catch(() => kept.delete(url));
    if (kept.size > MOST_SMALL) {
      const [oldest] = kept.keys();
      kept.get(oldest).then(URL.revokeObjectURL);
      kept.delete(oldest);
    }
  }
  return kept.get(url);
}

async function request(path, options, wait = () => {}) {
  for (let tries = 1; ; tries++) {
    const token = sessionStorage.getItem(TOKEN_KEY);
    const response = await send(path, token, options);
    if (response.ok) return response;
    if (response.status === 401) {
      if (token === sessionStorage.getItem(TOKEN_KEY)) await newToken();
      continue;
    }
    const seconds = Number(response.headers.get("Retry-After"));
    if (response.status === 503 && seconds && tries < MAX_TRIES) {
      const shorter = Math.min(seconds, MAX_WAIT);
      wait(shorter);
      await pause(shorter, options.signal);
      continue;
    }
    const { code = null, detail = `The service answered with status ${response.status}.` } = await response
      .json()
      .catch(() => ({}));
    const message = MESSAGES[code]?.("The query", detail) ?? detail;
    throw new PageError(message, { code, detail, retry: response.status >= 500 });
  }
}

async function send(path, token, options) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const message = "The service does not answer. Start it again (saysee serve INDEX), then try again.";
    throw new PageError(message, { retry: true });
  }
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });

let askingToken = null;

/** Asks for the token once, even if all images of a grid need it. */
function newToken() {
  askingToken ??= (async () => {
    let wrong = sessionStorage.getItem(TOKEN_KEY) !== null;
    for (;;) {
      const token = await user.askToken(wrong);
      if (token === null) throw new PageError("This service requires its token. Try again, and enter it.", { retry: true });
      if (keepToken(token)) return;
      wrong = true;
    }
  })().finally(() => {
    askingToken = null;
  });
  return askingToken;
}
